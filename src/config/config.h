// models.yaml as typed structs. One key table (keys.h) drives reading, checking, printing and
// docs/configuration.md.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ip_range.h"
#include "base/log.h"
#include "base/result.h"

namespace xgen::config {

using std::chrono::milliseconds;

struct Server {
  std::string host = "0.0.0.0";
  int port = 8000;
  int threads = 1;
  std::int64_t max_connections = 16384;
  std::uint64_t max_body = std::uint64_t{16} << 20;
  std::uint64_t max_headers = std::uint64_t{32} << 10;
  std::uint64_t max_unsent = std::uint64_t{256} << 20;
  milliseconds header_timeout{10'000};
  milliseconds body_timeout{60'000};
  milliseconds write_timeout{30'000};
  milliseconds idle_timeout{75'000};
  milliseconds request_timeout{600'000};
  milliseconds stall_limit{60'000};
  milliseconds drain_delay{5'000};
  milliseconds drain_timeout{30'000};
  std::string unknown_fields = "reject";  // reject | warn
  std::string operators = "local";        // local | gateway
  std::string api_keys_file;              // with load_keys(); empty: nobody is asked for a key
  std::string tls_cert_file;              // absolute, as the next two; empty: plain HTTP
  std::string tls_key_file;
  std::string tls_client_ca_file;            // empty: clients show no certificates
  std::string tls_client_auth = "required";  // required | optional
  std::string admin_host = "127.0.0.1";
  std::optional<int> admin_port;          // unset: operators' routes are the clients' listener's, too
  std::vector<IpRange> trusted_proxies;   // none: no proxy's word counts
  std::vector<std::string> cors_origins;  // "*" is every one
  std::string tls_min_version = "1.2";    // 1.2 | 1.3
  bool operator==(const Server&) const = default;
};

struct Log {
  log::Level level = log::Level::info;
  log::Format format = log::Format::text;
  bool content = false;
};

// Where spans go.
struct Tracing {
  std::string endpoint;  // a URL; empty: nowhere
  double sample = 1;     // 0–1
  std::string ca_file;   // absolute; empty: the system's store
  bool operator==(const Tracing&) const = default;
};

// A share of what there is, or a number of bytes.
struct MemoryLimit {
  double share = 0;  // 0–1; used if bytes == 0
  std::uint64_t bytes = 0;
  std::uint64_t of(std::uint64_t total) const {
    return bytes != 0 ? bytes : static_cast<std::uint64_t>(share * static_cast<double>(total));
  }
  bool operator==(const MemoryLimit&) const = default;
};

struct Memory {
  MemoryLimit host{0.8, 0};
  bool operator==(const Memory&) const = default;
};

struct Compute {
  int threads = 0;               // 0: one per usable CPU
  std::string kernels = "auto";  // auto, or the name of an instruction set
  bool operator==(const Compute&) const = default;
};

// How models from the Hub and from S3 come here.
struct Sources {
  std::string cache;    // empty: the user's
  int connections = 8;  // a file
  milliseconds timeout{30'000};
  int retries = 5;
  bool operator==(const Sources&) const = default;
};

// What a model may set for itself; `defaults` sets it for all.
struct ModelSettings {
  std::optional<int> max_model_len;  // tokens; unset: what the model and the memory allow
  int max_num_seqs = 64;
  int max_num_batched_tokens = 512;
  std::int64_t max_waiting = 1024;
  std::optional<std::uint64_t> kv_cache;  // bytes; unset: planned
  std::string kv_cache_dtype = "auto";    // auto | f32 | f16 | bf16
  bool prefix_caching = true;
  bool on_demand = false;       // load: startup | on_demand
  milliseconds idle_unload{0};  // 0: never
  bool pin = false;
  int weight = 1;                 // of its steps among those of the others
  std::string engine = "native";  // native | openai | tgi | triton
};

// A model that another engine serves.
struct Remote {
  std::string model;                                         // its name there; empty: the same as here
  std::vector<std::string> urls;                             // with /v1, if the engine is openai
  bool replica_per_address = false;                          // every address of their hosts is a replica
  std::string dialect = "auto";                              // auto | openai | vllm | sglang | trtllm | llamacpp | xgen
  std::string tokenizer;                                     // absolute; empty: none
  std::string api_key_file;                                  // absolute; empty: no key
  std::vector<std::pair<std::string, std::string>> headers;  // sent with every request
  std::string ca_file;                                       // absolute; empty: the system's store
  milliseconds connect_timeout{5'000};
  milliseconds first_byte_timeout{300'000};
  milliseconds idle_timeout{60'000};
  milliseconds health_interval{10'000};  // 0: never
  std::string balance = "prefix";        // prefix | least_loaded | round_robin
  int max_attempts = 3;
  std::int64_t max_requests = 4096;
};

struct Model {
  std::string name;
  std::vector<std::string> aliases;
  std::vector<std::string> fallbacks;  // names of other models of the list, none an alias
  std::string source;  // absolute path, hf://…, s3://…, or "builtin:xgen-demo"; empty if it is remote
  ModelSettings settings;
  Remote remote;
  bool is_remote() const { return settings.engine != "native"; }
  std::string where;  // "models.yaml:12", for messages
};

struct Config {
  std::string file;  // empty: no file was read
  Server server;
  Log log;
  Memory memory;
  Compute compute;
  Sources sources;
  Tracing tracing;
  ModelSettings defaults;
  std::vector<Model> models;
  bool lists_models = true;  // false: nothing does, and the one there is is the demo

  // A message about a key's value ("server.port: …") with the place where the file sets it in front:
  // "models.yaml:3:9: server.port: …". As it is where no file does.
  std::string located(const std::string& message) const;
  std::map<std::string, std::string> places;  // of the sections' keys: "server.port" -> "models.yaml:3:9"
};

// One of those who may send requests.
struct ApiKey {
  std::string name;
  std::array<std::uint8_t, 32> sha256{};
  std::vector<std::string> scopes{"inference"};  // inference | metrics | admin
  std::int64_t requests_per_minute = 0;          // 0: no limit
  std::int64_t tokens_per_minute = 0;
};

inline constexpr std::string_view kDemoName = "xgen-demo";
inline constexpr std::string_view kDemoSource = "builtin:xgen-demo";

// The configuration without a file: the built-in demo model.
Config demo_config();
// The configuration of `xgen-model serve SOURCE`: one model, named after the folder, file or repository unless `name`
// is given.
Result<Config> single_model_config(const std::string& source, const std::optional<std::string>& name = {});

// Reads and checks a whole file. Relative sources are relative to the file's folder. The error message has one line per
// fault: "FILE:LINE:COLUMN: KEY: what was expected". Without a `models` key the built-in demo is served.
Result<Config> load_file(const std::string& path);
// The same for text; `file` is used for messages and relative sources.
Result<Config> load_text(std::string_view text, const std::string& file);

// Of a file only server.host, server.port, server.tls_cert_file, tls_key_file, tls_client_ca_file and tls_client_auth,
// or their defaults; faults elsewhere in it do not matter.
Result<Server> load_address(const std::string& path);
Result<Server> load_address_text(std::string_view text, const std::string& file);

// Reads and checks a file of API keys. Errors as above.
Result<std::vector<ApiKey>> load_keys(const std::string& path);
Result<std::vector<ApiKey>> load_keys_text(std::string_view text, const std::string& file);

// Sets one key ("server.port") of a section or of `defaults` as a file would; the latter for every model, over its own.
// Errors: invalid_argument, what was expected, as the fault of a file would say it.
Status set(Config& config, std::string_view key, const std::string& value);
// What the reference says of such a key: its meaning and the values it takes. Empty if there is no such key.
std::string describe_key(std::string_view key);

// The whole configuration as a models.yaml with every key, sections and keys by name, models in their order. What is
// not set is a comment; the values of headers read "hidden".
std::string effective_yaml(const Config& config);

// Everything of a model that its loading depends on, the size and time of its files in a local source included: a
// reload replaces a model when this changes.
std::string fingerprint(const Model& model);

// Every key path ("server.port", "models[].name"), for docs and tests.
std::vector<std::string> key_names();
// The reference as Markdown.
std::string reference_markdown();

}  // namespace xgen::config
