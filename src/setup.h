// What the commands make of the command line and the configuration before they begin: `serve` and `check` go the same
// way up to the plan of the models' memory, so that what `check` finds well is served.
#pragma once

#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <string>

#include "base/memory_budget.h"
#include "base/result.h"
#include "config/config.h"
#include "http/server_tls.h"
#include "http/url.h"
#include "local_models.h"
#include "server/api_keys.h"

namespace xgen {

// The flags that set a key of the configuration, over the file.
struct KeyFlag {
  const char* name;
  const char* key;
  bool serve_only;
};
inline constexpr KeyFlag kKeyFlags[] = {
    {"--host", "server.host", true},
    {"--port", "server.port", true},
    {"--api-keys-file", "server.api_keys_file", false},
    {"--tls-cert-file", "server.tls_cert_file", false},
    {"--tls-key-file", "server.tls_key_file", false},
    {"--max-model-len", "defaults.max_model_len", false},
    {"--max-num-seqs", "defaults.max_num_seqs", false},
    {"--threads", "compute.threads", false},
    {"--kernels", "compute.kernels", false},
    {"--cache", "sources.cache", false},
    {"--log-level", "log.level", false},
    {"--log-format", "log.format", false},
};

// As given on the command line.
struct Flags {
  std::optional<std::string> source;  // serve SOURCE
  std::optional<std::string> config;
  std::optional<std::string> name;
  std::optional<std::string> keys[std::size(kKeyFlags)];  // by place in kKeyFlags
};

// The models.yaml that --config, the environment or the working directory names; empty if there is none.
std::string config_path(const Flags& flags);
// The configuration with the flags over it. Errors name the flag, or the file and the place in it.
Result<config::Config> load_config(const Flags& flags);

// All that serving needs, read and checked.
struct Setup {
  config::Config config;
  Machine machine;
  std::shared_ptr<server::ApiKeys> keys;  // null: nobody is asked for one
  std::optional<http::Url> collector;     // where spans go; nothing if they go nowhere
  std::shared_ptr<http::ServerTls> tls;   // null: the server speaks plain HTTP
  std::shared_ptr<MemoryBudget> budget;   // of all models together
  PlannedModels planned;
};
// Errors name the key or the file.
Result<Setup> prepare(config::Config config);

// Puts the keys of the file in force; a word on them. Errors name the file; the keys stay as they were then.
Result<std::string> load_keys(const std::string& file, server::ApiKeys& keys);
// What all models together may take. Errors: invalid_argument, if the machine has less.
Result<std::uint64_t> host_budget(const config::Config& config);

}  // namespace xgen
