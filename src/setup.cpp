#include "setup.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "base/units.h"
#include "base/worker_pool.h"
#include "http/client.h"
#include "kernels/kernel_table.h"
#include "pull.h"
#include "remote_models.h"
#include "sources/sources.h"

namespace xgen {
namespace {

Result<Machine> make_machine(const config::Config& config) {
  const config::Compute& compute = config.compute;
  auto table = kernels::select_kernels(compute.kernels == "auto" ? std::string_view{} : compute.kernels);
  if (!table) {
    Error error = std::move(table).error();
    error.message = "compute.kernels: " + error.message;
    return error;
  }
  auto settings = source_settings(config.sources);
  if (!settings) return std::move(settings).error();
  http::ClientOptions client;
  client.user_agent = "xgen-model/" XGEN_VERSION;
  return Machine{std::make_shared<WorkerPool>(compute.threads != 0 ? compute.threads : available_cpus()), *table,
                 std::make_shared<sources::Sources>(*std::move(settings)),
                 std::make_shared<RemoteClient>(std::move(client))};
}

// Null: the server speaks plain HTTP. Errors name the key and the file.
Result<std::shared_ptr<http::ServerTls>> load_tls(const config::Server& server) {
  const auto missing = [](const char* key, const char* of) {
    return make_error(ErrorCode::invalid_argument, std::string(key) + ": missing; " + of + " is of no use without it");
  };
  if (server.tls_cert_file.empty()) {
    if (!server.tls_key_file.empty()) return missing("server.tls_cert_file", "server.tls_key_file");
    if (!server.tls_client_ca_file.empty()) return missing("server.tls_cert_file", "server.tls_client_ca_file");
    return std::shared_ptr<http::ServerTls>();
  }
  if (server.tls_key_file.empty()) return missing("server.tls_key_file", "server.tls_cert_file");
  return http::ServerTls::load({server.tls_cert_file, server.tls_key_file, server.tls_client_ca_file,
                                server.tls_client_auth == "required", server.tls_min_version == "1.3"});
}

// Where spans go; nothing if they go nowhere. Errors: invalid_argument.
Result<std::optional<http::Url>> collector_of(const config::Config& config) {
  if (config.tracing.endpoint.empty()) return std::optional<http::Url>();
  auto url = http::parse_url(config.tracing.endpoint);
  if (!url)
    return make_error(ErrorCode::invalid_argument,
                      config.located("tracing.endpoint: " + url.error().message));
  if (url->target == "/") url->target = "/v1/traces";
  return std::optional(*std::move(url));
}

}  // namespace

std::string config_path(const Flags& flags) {
  if (flags.config && !flags.config->empty()) return *flags.config;
  const char* variable = std::getenv("MODEL_CONFIG_PATH");
  if (variable != nullptr && *variable != '\0') return variable;
  // A file that cannot be reached, or a link to nowhere, is there all the same: reading it gives the error.
  std::error_code error;
  const auto kind = std::filesystem::symlink_status("models.yaml", error).type();
  return kind != std::filesystem::file_type::not_found ? "models.yaml" : "";
}

Result<config::Config> load_config(const Flags& flags) {
  const auto misused = [](const char* message) { return make_error(ErrorCode::invalid_argument, message); };
  if (flags.source && flags.config) return misused("give either SOURCE or --config, not both");
  if (!flags.source && flags.name) return misused("--name needs a SOURCE");
  if (flags.source && flags.source->ends_with(".yaml") && std::filesystem::is_regular_file(*flags.source))
    return make_error(ErrorCode::invalid_argument,
                      *flags.source + " is a configuration, not a model: give it with --config " + *flags.source);
  // An unset variable of a script must not end up as the demo model.
  if (flags.source && flags.source->empty()) return misused("SOURCE is empty");
  if (flags.config && flags.config->empty()) return misused("--config: the path is empty");
  const std::string path = flags.source ? "" : config_path(flags);
  auto config = flags.source    ? config::single_model_config(*flags.source, flags.name)
                : !path.empty() ? config::load_file(path)
                                : Result<config::Config>(config::demo_config());
  if (!config) return config;
  for (std::size_t i = 0; i < std::size(kKeyFlags); ++i) {
    if (!flags.keys[i]) continue;
    if (Status status = config::set(*config, kKeyFlags[i].key, *flags.keys[i]); !status) {
      Error error = std::move(status).error();
      error.message = std::string(kKeyFlags[i].name) + ": " + error.message;
      return error;
    }
  }
  return config;
}

Result<std::string> load_keys(const std::string& file, server::ApiKeys& keys) {
  auto read = config::load_keys(file);
  if (!read) {
    Error error = std::move(read).error();
    error.code = ErrorCode::invalid_argument;
    error.message.insert(0, "server.api_keys_file: ");
    return error;
  }
  std::vector<server::ApiKey> all;
  for (config::ApiKey& each : *read) {
    server::ApiKey key{std::move(each.name), each.sha256, {}, {each.requests_per_minute, each.tokens_per_minute}};
    for (const server::Scope scope : {server::Scope::inference, server::Scope::metrics, server::Scope::admin})
      if (std::find(each.scopes.begin(), each.scopes.end(), server::scope_name(scope)) != each.scopes.end())
        key.scopes.push_back(scope);
    all.push_back(std::move(key));
  }
  keys.set(std::move(all));
  return std::to_string(read->size()) + " API keys";
}

Result<std::uint64_t> host_budget(const config::Config& config) {
  const std::uint64_t available = available_host_memory();
  if (config.memory.host.bytes > available)
    return make_error(
        ErrorCode::invalid_argument,
        config.located("memory.host: " + format_bytes(config.memory.host.bytes) + " is more than the " +
                       format_bytes(available) + " that this machine, or the process's control group, has"));
  return config.memory.host.of(available);
}

Result<Setup> prepare(config::Config config) {
  const auto located = [&config](Error error) {
    error.message = config.located(error.message);
    return error;
  };
  auto machine = make_machine(config);
  if (!machine) return located(std::move(machine).error());
  std::shared_ptr<server::ApiKeys> keys;
  if (const std::string& file = config.server.api_keys_file; !file.empty()) {
    keys = std::make_shared<server::ApiKeys>();
    if (auto loaded = load_keys(file, *keys); !loaded) return located(std::move(loaded).error());
  }
  auto collector = collector_of(config);
  if (!collector) return std::move(collector).error();
  auto tls = load_tls(config.server);
  if (!tls) return located(std::move(tls).error());
  const auto total = host_budget(config);
  if (!total) return total.error();
  auto planned = plan_models(config, *machine, *total);
  if (!planned) return std::move(planned).error();
  return Setup{std::move(config),     *std::move(machine), std::move(keys),
               *std::move(collector), *std::move(tls),     std::make_shared<MemoryBudget>(*total),
               *std::move(planned)};
}

}  // namespace xgen
