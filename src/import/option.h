// What an input gives (options), what the tables say of it (rules), and what became of it (entries of the report).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace xgen::importer {

// One flag, environment variable or key of the input.
struct Option {
  std::string name;   // as written: "--max-model-len", "HF_TOKEN", "deploy.replicas"
  std::string value;  // empty for a flag alone
  std::string where;  // "compose.yaml:12", or empty for the words of a command line
  bool open = false;  // the value holds a variable whose value is not known
  bool off = false;   // --no-NAME
  bool used = false;  // a variable whose value stands in other ones
};

enum class Group : std::uint8_t { maps, changes, none, unknown };

// One line of the report.
struct Entry {
  std::string label;  // what it belongs to: "services.vllm"; empty where there is one thing only
  Option option;
  Group group = Group::unknown;
  std::string key;   // of models.yaml: "models[].max_model_len"
  std::string text;  // how, or what to do instead
};

// How many words follow a flag.
enum class Takes : std::uint8_t { nothing, one, maybe, many };

// What is done with an option beside reporting it. Those with a key write it.
enum class Effect : std::uint8_t {
  say,
  secret,        // the same, and its value is shown nowhere
  api_key,       // a key of clients: a hint at server.api_keys_file
  model,         // a folder, a file or a repository
  model_path,    // a path, whatever it looks like
  hub_repo,      // org/repo, with or without :QUANT
  hub_file,      // a file of hub_repo
  revision,      // of the repository
  names,         // the name and aliases, in several words or with commas
  integer,       // positive; 0, -1 and auto leave it to the plan
  context,       // llama-server: the tokens of all slots together, or of each with a unified cache
  slots,         // llama-server: that number
  unified,       // llama-server: all slots share one cache
  gib,           // a number of GiB
  bytes,         // a number of bytes
  seconds,       // a duration
  on,            // true, or the value if it is true or false
  off,           // the opposite
  kv_dtype,      // number format of keys and values
  quantization,  // none, or not offered
  log_level,
  host,
  port,
  scale_to_zero,  // 0 replicas at least: loaded by the first request
  idle,           // seconds until scaled to zero
  // Of containers; their parts are options of their own.
  extends,
  image,
  entrypoint,
  command,
  environment,
  volumes,
  ports,
  // Of Ray.
  engine_kwargs,
};

// One row of a table.
struct Rule {
  std::string_view names;  // separated by blanks; one that ends in * stands for all that begin so
  Takes takes = Takes::one;
  Group group = Group::none;
  Effect effect = Effect::say;
  std::string_view key;   // of models.yaml, empty if there is none
  std::string_view text;  // for the report
};

using Rules = std::span<const Rule>;

// The rule for a name, an exact one before one with *; null if there is none. Flags are also found with _ for -.
// `exact`: which of both it was.
const Rule* find_rule(Rules rules, std::string_view name, bool* exact = nullptr);

// One of the engines whose commands are read.
struct Engine {
  std::string_view name;   // "vLLM"
  Rules rules;             // flags and environment variables
  std::string_view port;   // where it listens if nothing is said
  std::string_view host;   // empty: everywhere
  std::string_view notes;  // what else is different here, a line each
};

extern const Engine kVllm;
extern const Engine kTgi;
extern const Engine kLlamaServer;
Rules environment_rules();  // variables that several engines, or what they are made of, read
Rules compose_rules();      // of a service
Rules docker_run_rules();
Rules workload_rules();   // Kubernetes, outside of the pod
Rules pod_rules();        // but for the containers
Rules container_rules();  // Kubernetes
Rules serve_rules();      // Ray Serve, outside of the applications
Rules application_rules();
Rules deployment_rules();  // Ray Serve, a deployment of an application
Rules llm_config_rules();  // Ray Serve LLM
Rules ray_env_rules();     // what applications of one's own are often told

}  // namespace xgen::importer
