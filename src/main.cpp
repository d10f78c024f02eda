// xgen-model: reads the command line and the configuration, wires the parts together, runs, and drains on a signal.
#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <future>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/json_text.h"
#include "base/log.h"
#include "base/model_source.h"
#include "base/prefetch.h"
#include "base/units.h"
#include "base/worker_pool.h"
#include "bench.h"
#include "chat.h"
#include "config/config.h"
#include "crash.h"
#include "healthcheck.h"
#include "http/client.h"
#include "http/server.h"
#include "http/server_tls.h"
#include "import/import.h"
#include "import_command.h"
#include "kernels/kernel_table.h"
#include "local_models.h"
#include "metrics/metrics.h"
#include "pull.h"
#include "registry/registry.h"
#include "reload.h"
#include "server/api_keys.h"
#include "server/app.h"
#include "server/lifecycle.h"
#include "systemd.h"
#include "trace/otlp_exporter.h"

namespace xgen {
namespace {

using Clock = std::chrono::steady_clock;

// Exit codes: 1 for what goes wrong while running, 2 for what the user wrote.
constexpr int kFailed = 1;
constexpr int kMisused = 2;

int complain(int code, const std::string& message) {
  std::fprintf(stderr, "xgen-model: %s\n", message.c_str());
  return code;
}

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// The flags that set a key of the configuration, over the file.
struct KeyFlag {
  const char* name;
  const char* key;
  bool serve_only;
};
constexpr KeyFlag kKeyFlags[] = {
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

struct Flags {
  std::optional<std::string> source;  // serve SOURCE
  std::optional<std::string> config;
  std::optional<std::string> name;
  std::optional<std::string> keys[std::size(kKeyFlags)];  // by place in kKeyFlags
};

void add_flags(CLI::App& command, Flags& flags, bool serve) {
  command.add_option(
      "source", flags.source,
      "What to serve instead of a models.yaml: a model folder, a .gguf file, hf://ORG/REPO or s3://BUCKET/PREFIX");
  command.add_option("--config", flags.config, "The models.yaml (default: $MODEL_CONFIG_PATH, then ./models.yaml)");
  command.add_option("--name", flags.name, "Name of the model given as SOURCE");
  for (std::size_t i = 0; i < std::size(kKeyFlags); ++i)
    if (serve || !kKeyFlags[i].serve_only)
      command.add_option(kKeyFlags[i].name, flags.keys[i], config::describe_key(kKeyFlags[i].key));
}

// The models.yaml that --config, the environment or the working directory names; empty if there is none.
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

// Puts the keys of the file in force. Errors name the file; the keys stay as they were then.
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

// What all models together may take. Errors: invalid_argument, if the machine has less.
Result<std::uint64_t> host_budget(const config::Config& config) {
  const std::uint64_t available = available_host_memory();
  if (config.memory.host.bytes > available)
    return make_error(ErrorCode::invalid_argument, (config.file.empty() ? "" : config.file + ": ") +
                                                       "memory.host: " + format_bytes(config.memory.host.bytes) +
                                                       " is more than the " + format_bytes(available) +
                                                       " that this machine, or the process's control group, has");
  return config.memory.host.of(available);
}

// Where spans go; nothing if they go nowhere. Errors: invalid_argument.
Result<std::optional<http::Url>> collector(const config::Config& config) {
  if (config.tracing.endpoint.empty()) return std::optional<http::Url>();
  auto url = http::parse_url(config.tracing.endpoint);
  if (!url)
    return make_error(ErrorCode::invalid_argument,
                      (config.file.empty() ? "" : config.file + ": ") + "tracing.endpoint: " + url.error().message);
  if (url->target == "/") url->target = "/v1/traces";
  return std::optional(*std::move(url));
}

int check(const Flags& flags, bool print_effective) {
  auto config = load_config(flags);
  if (!config) return complain(kMisused, config.error().message);
  const auto machine = make_machine(*config);
  if (!machine) return complain(kMisused, machine.error().message);
  server::ApiKeys keys;
  if (!config->server.api_keys_file.empty())
    if (const auto loaded = load_keys(config->server.api_keys_file, keys); !loaded)
      return complain(kMisused, loaded.error().message);
  if (const auto url = collector(*config); !url) return complain(kMisused, url.error().message);
  if (const auto tls = load_tls(config->server); !tls) return complain(kMisused, tls.error().message);
  const auto total = host_budget(*config);
  if (!total) return complain(kMisused, total.error().message);
  const auto planned = plan_models(*config, *machine, *total);
  if (!planned) return complain(kMisused, planned.error().message);
  if (Status status = check_text(planned->definitions); !status) return complain(kMisused, status.error().message);
  if (print_effective) {
    auto settings = source_settings(config->sources);
    if (!settings) return complain(kMisused, settings.error().message);
    config->sources.cache = std::filesystem::path(settings->s3.cache).parent_path().string();
    std::fputs(config::effective_yaml(*config).c_str(), stdout);
    return 0;
  }
  std::printf("%s: valid\n%s", config->file.empty() ? "configuration" : config->file.c_str(), planned->text.c_str());
  return 0;
}

// Takes SIGTERM, SIGINT and SIGHUP on a thread of its own. The first of the former begins the shutdown, the second ends
// the process at once; SIGHUP reloads the configuration, and is like SIGTERM where there is none to reload.
class Signals {
 public:
  // Must be made before any other thread, so that all inherit the mask.
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    sigaddset(&set_, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    std::signal(SIGPIPE, SIG_IGN);
    std::thread([this] { run(); }).detach();
  }

  // Waits for the first signal; its number.
  int wait() {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [&] { return signal_ != 0; });
    return signal_;
  }
  // What SIGHUP does.
  void on_hangup(std::function<void()> action) {
    std::lock_guard lock(mutex_);
    hangup_ = std::move(action);
  }
  // Before models serve there is nothing to drain: a signal then ends the process.
  void serving() {
    std::lock_guard lock(mutex_);
    serving_ = true;
  }

 private:
  void run() {
    for (;;) {
      int number = 0;
      if (sigwait(&set_, &number) != 0) continue;
      std::lock_guard lock(mutex_);
      if (number == SIGHUP && hangup_) {
        hangup_();
        continue;
      }
      if (signal_ != 0) {
        log::warn("server", "second signal: ending at once", {{"signal", strsignal(number)}});
        _exit(128 + number);
      }
      if (!serving_) {
        log::info("server", "signal while starting: ending", {{"signal", strsignal(number)}});
        _exit(0);
      }
      signal_ = number;
      arrived_.notify_all();
    }
  }

  sigset_t set_{};
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::function<void()> hangup_;
  int signal_ = 0;
  bool serving_ = false;
};

// As one word of a POSIX shell.
std::string shell_quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'')
      out += "'\\''";
    else
      out += c;
  }
  return out + "'";
}

void print_hints(const registry::Registry& registry, const std::string& listens_on, int port, bool tls,
                 bool asks_for_keys) {
  const std::string host = listens_on == "0.0.0.0" || listens_on == "::" ? "localhost" : listens_on;
  const std::string url = (tls ? "https://" : "http://") +
                          (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" + std::to_string(port);
  std::string names;
  const std::vector<registry::ModelEntry> models = registry.list();
  for (const registry::ModelEntry& each : models) names += (names.empty() ? "" : ", ") + each.name;
  // One that is loaded says whether it can chat.
  const auto loaded =
      std::find_if(models.begin(), models.end(), [](const auto& each) { return each.service != nullptr; });
  const registry::ModelEntry& shown = loaded == models.end() ? models.front() : *loaded;
  const bool chat = shown.service == nullptr || shown.service->capabilities().chat;
  std::string body = "{\"model\":\"";
  append_json_escaped(body, shown.name);
  body += chat ? "\",\"messages\":[{\"role\":\"user\",\"content\":\"How do I add a model?\"}]}"
               : "\",\"prompt\":\"Once upon a time\",\"max_tokens\":64}";
  std::printf("xgen-model " XGEN_VERSION " serves %s%s at %s/v1\n", names.c_str(),
              names == config::kDemoName ? ", its built-in demo model," : "", url.c_str());
  std::printf("  Try it:         curl %s/v1/%s%s -H 'Content-Type: application/json' -d %s\n", url.c_str(),
              chat ? "chat/completions" : "completions", asks_for_keys ? " -H \"Authorization: Bearer $KEY\"" : "",
              shell_quoted(body).c_str());
  if (names == config::kDemoName) {
    std::printf("  Your own model: xgen-model serve /path/to/model   (a folder with safetensors, or a .gguf file)\n");
    std::printf("  Several:        list them in models.yaml, then xgen-model serve --config models.yaml\n");
  }
  std::fflush(stdout);
}

http::ServerOptions http_options(const config::Server& server, const std::shared_ptr<http::ServerTls>& tls) {
  http::ServerOptions options;
  options.tls = tls;
  options.host = server.host;
  options.port = static_cast<std::uint16_t>(server.port);
  options.threads = server.threads;
  options.max_connections = static_cast<std::size_t>(server.max_connections);
  options.max_header_bytes = server.max_headers;
  options.max_body_bytes = server.max_body;
  options.max_unsent_bytes = server.max_unsent;
  options.header_timeout = server.header_timeout;
  options.body_timeout = server.body_timeout;
  options.write_timeout = server.write_timeout;
  options.idle_timeout = server.idle_timeout;
  return options;
}

std::uint64_t requests_in_flight(const registry::Registry& registry) {
  std::uint64_t sum = 0;
  for (const registry::ModelEntry& entry : registry.list()) {
    sum += entry.waiting;
    if (entry.service != nullptr) sum += entry.service->stats().unfinished();
  }
  return sum;
}

// For the answers of requests that are cut off to be sent, and for other engines to be told to stop.
constexpr std::chrono::milliseconds kLastWords{1'000};

// Not ready at once; for drain_delay everything is still served, so that load balancers can notice; then new requests
// get 503 while running ones finish within drain_timeout. What runs on is ended with an error.
void drain(int signal, const config::Server& settings, server::Lifecycle& lifecycle, http::Server& http,
           registry::Registry& registry, const RemoteClient& remotes) {
  lifecycle.set(server::Lifecycle::State::draining);
  http.close_connections_after_answers();
  log::info("server", "draining", {{"signal", strsignal(signal)}, {"requests", requests_in_flight(registry)}});
  if (signal != SIGINT) std::this_thread::sleep_for(settings.drain_delay);
  lifecycle.set(server::Lifecycle::State::refusing);
  const Clock::time_point deadline = Clock::now() + settings.drain_timeout;
  while (requests_in_flight(registry) > 0 && Clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
  const bool finished = http.drain(std::max(left, std::chrono::milliseconds(100)));
  const Clock::time_point last = Clock::now() + kLastWords;
  const std::uint64_t cut = requests_in_flight(registry);
  if (!finished) {
    registry.end_requests();
    http.drain(kLastWords);
  }
  while (remotes.running() > 0 && Clock::now() < last) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  if (finished) return log::info("server", "stopped; every request was finished");
  log::warn("server", "stopped; drain_timeout cut off running requests", {{"requests", cut}});
}

// Waits for the models that are to be there from the start; the first error among them. What an operator unloads or a
// reload removes meanwhile is not waited for; one that finds no room, since requests have had others loaded, is.
Status load_at_start(registry::Registry& registry, const config::Config& config) {
  using registry::ModelState;
  constexpr std::chrono::milliseconds kBetweenLooks{100};
  std::vector<std::pair<std::string, std::future<Status>>> loads;
  for (const config::Model& model : config.models) {
    if (model.settings.on_demand) continue;
    auto done = std::make_shared<std::promise<Status>>();
    loads.emplace_back(model.name, done->get_future());
    registry.load(model.name, [done](Status status) { done->set_value(std::move(status)); });
  }
  for (auto& [name, loaded] : loads) {
    if (loaded.get()) continue;
    for (;;) {
      std::this_thread::sleep_for(kBetweenLooks);
      const auto entry = registry.entry(name);
      if (!entry || entry->name != name) break;
      if (entry->state == ModelState::failed) return make_error(ErrorCode::unavailable, entry->detail);
      const bool no_room = entry->state == ModelState::unloaded && !entry->detail.empty();  // it is tried again
      if (entry->state != ModelState::loading && !no_room) break;
    }
  }
  return {};
}

void apply_log(const config::Log& settings) {
  log::set_level(settings.level);
  log::set_format(settings.format);
  log::set_content(settings.content);
}

// The sections that only a new process takes up, where they differ: "server, memory".
std::string needs_restart(const config::Config& before, const config::Config& now) {
  std::string sections;
  const auto compare = [&](const char* name, bool same) {
    if (!same) sections += (sections.empty() ? "" : ", ") + std::string(name);
  };
  compare("server", before.server == now.server);
  compare("memory", before.memory == now.memory);
  compare("compute", before.compute == now.compute);
  compare("sources", before.sources == now.sources);
  compare("tracing", before.tracing == now.tracing);
  return sections;
}

// Each model by name, with all that a reload may change of it.
using Digests = std::map<std::string, std::string>;
Digests digests_of(const std::vector<registry::ModelDefinition>& models) {
  Digests digests;
  for (const registry::ModelDefinition& each : models) {
    std::string& digest = digests[each.name];
    digest = each.fingerprint + (each.on_demand ? "\non demand" : "") + (each.pin ? "\npinned" : "") + "\n" +
             std::to_string(each.idle_unload.count());
    for (const std::string& alias : each.aliases) digest += "\nalias " + alias;
    for (const std::string& fallback : each.fallbacks) digest += "\nfallback " + fallback;
  }
  return digests;
}

// What differs: "models added: a; changed: b, c; removed: d".
std::string changes(const Digests& before, const Digests& now) {
  std::string added;
  std::string changed;
  std::string removed;
  const auto list = [](std::string& names, const std::string& name) { names += (names.empty() ? "" : ", ") + name; };
  for (const auto& [name, digest] : now) {
    const auto old = before.find(name);
    if (old == before.end())
      list(added, name);
    else if (old->second != digest)
      list(changed, name);
  }
  for (const auto& [name, digest] : before)
    if (!now.contains(name)) list(removed, name);
  std::string text;
  for (const auto& [what, names] : {std::pair{"added: ", &added}, {"changed: ", &changed}, {"removed: ", &removed}})
    if (!names->empty()) text += (text.empty() ? "models " : "; ") + (what + *names);
  return text.empty() ? "the models are as before" : text;
}

// What is in force; a reload changes it.
struct Current {
  std::mutex mutex;
  config::ModelSettings defaults;  // of models that are loaded by path
  Digests models;
};

// The model of a load request: as if it stood in the file, with the file's defaults.
Result<registry::ModelDefinition> model_of(const server::LoadRequest& request, const Machine& machine,
                                           std::uint64_t budget, Current& current) {
  auto config = config::single_model_config(
      request.path, request.name.empty() ? std::optional<std::string>() : std::optional(request.name));
  if (!config) {
    Error error = std::move(config).error();
    error.code = ErrorCode::invalid_argument;
    if (error.param.empty()) error.param = "model_path";
    return error;
  }
  {
    std::lock_guard lock(current.mutex);
    config->defaults = current.defaults;
  }
  config->models.front().settings = config->defaults;
  config->models.front().settings.on_demand = false;
  config->models.front().where = "load request";
  for (const server::LoadRequest::Setting& each : request.settings) {
    if (Status status = config::set(*config, "defaults." + each.key, each.value); !status) {
      Error error = std::move(status).error();
      error.message = "'" + each.field + "': " + error.message;
      error.param = each.field;
      return error;
    }
  }
  return define(std::make_shared<LocalModelLoader>(config->models.front(), machine, budget));
}

// Reads the file again and applies what a running process can take up: the models and the log's level and form.
Result<std::string> reload(const Flags& flags, const config::Config& started_with, const Machine& machine,
                           registry::Registry& registry, Current& current) {
  // A file that was found at the start is not forgotten when it has gone.
  Flags same = flags;
  if (!same.source && !started_with.file.empty()) same.config = started_with.file;
  auto config = load_config(same);
  if (!config) {
    Error error = std::move(config).error();
    error.code = ErrorCode::invalid_argument;  // whatever it was: the file is what is wrong
    return error;
  }
  // An emptied or half-written file would end every model.
  if (started_with.lists_models && !config->lists_models)
    return make_error(ErrorCode::invalid_argument,
                      config->file + ": models: missing; a reload does not replace the models by the demo");
  if (const auto total = host_budget(*config); !total) return total.error();
  auto planned = plan_models(*config, machine, registry.budget().total());
  if (!planned) return std::move(planned).error();
  Digests models = digests_of(planned->definitions);
  std::vector<registry::ModelDefinition> changed;
  {
    std::lock_guard lock(current.mutex);
    for (const registry::ModelDefinition& each : planned->definitions) {
      const auto known = current.models.find(each.name);
      if (known == current.models.end() || known->second != models[each.name]) changed.push_back(each);
    }
  }
  const Status readable = in_background(machine.pool->shared(), [&] { return check_text(changed); });
  if (!readable) return readable.error();
  changed.clear();
  if (Status status = registry.apply(std::move(planned->definitions)); !status) return std::move(status).error();
  apply_log(config->log);
  const std::string sections = needs_restart(started_with, *config);
  std::lock_guard lock(current.mutex);
  std::string text = changes(current.models, models);
  if (!sections.empty()) text += "; changes of these sections need a restart: " + sections;
  current.models = std::move(models);
  current.defaults = config->defaults;
  return text;
}

// Memory that is freed goes back to the system, for the budget counts it as free: by default the first large free()
// raises the bounds to up to 32 and 64 MiB, which every thread's heap could then keep.
void keep_heaps_small() {
  constexpr int kBytes = 1 << 20;
  mallopt(M_MMAP_THRESHOLD, kBytes);
  mallopt(M_TRIM_THRESHOLD, kBytes);
}

// How far the models of the start are, 0-1.
double loading_progress(const registry::Registry& registry) {
  double progress = 0;
  int count = 0;
  for (const registry::ModelEntry& each : registry.list()) {
    if (each.on_demand) continue;
    progress += each.progress;
    ++count;
  }
  return progress / std::max(count, 1);
}

// Tells the service manager what goes on: while models load, how far they are, and that it takes longer as long as they
// move; then, as often as it wants to hear it, that the engines do.
void report(const std::stop_token& stop, const ServiceManager& manager, const server::App& app,
            const registry::Registry& registry, const server::Lifecycle& lifecycle) {
  std::mutex mutex;
  std::condition_variable_any woken;
  std::unique_lock lock(mutex);
  const auto interval = std::min<std::chrono::milliseconds>(manager.watchdog().value_or(ServiceManager::kPatience / 3),
                                                            ServiceManager::kPatience / 3);
  double before = -1;
  while (!stop.stop_requested()) {
    if (lifecycle.state() == server::Lifecycle::State::starting) {
      const double progress = loading_progress(registry);
      manager.loading("Loading models: " + std::to_string(static_cast<int>(progress * 100)) + "%", progress > before);
      before = progress;
    }
    if (manager.watchdog() && app.live()) manager.alive();
    woken.wait_for(lock, stop, interval, [] { return false; });
  }
}

int serve(const Flags& flags) {
  const Clock::time_point start = Clock::now();
  keep_heaps_small();
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which tell of crashes themselves
  log_crashes();
#endif
  const ServiceManager manager;
  // Never destroyed: its thread runs until the process ends.
  static Signals& signals = *new Signals;

  auto config = load_config(flags);
  if (!config) return complain(kMisused, config.error().message);
  apply_log(config->log);
  const auto machine = make_machine(*config);
  if (!machine) return complain(kMisused, machine.error().message);
  const std::string keys_file = config->server.api_keys_file;
  const auto keys = keys_file.empty() ? nullptr : std::make_shared<server::ApiKeys>();
  if (keys != nullptr)
    if (const auto loaded = load_keys(keys_file, *keys); !loaded) return complain(kMisused, loaded.error().message);
  auto traces = collector(*config);
  if (!traces) return complain(kMisused, traces.error().message);
  const auto tls = load_tls(config->server);
  if (!tls) return complain(kMisused, tls.error().message);
  const auto total = host_budget(*config);
  if (!total) return complain(kMisused, total.error().message);
  auto budget = std::make_shared<MemoryBudget>(*total);
  auto planned = plan_models(*config, *machine, budget->total());
  if (!planned) return complain(kMisused, planned.error().message);
  const double plan_ms = ms_since(start);

  registry::RegistryOptions registry_options;
  registry_options.drain_timeout = config->server.drain_timeout;
  registry_options.replace_timeout = config->server.request_timeout;
  registry::Registry registry(budget, registry_options);
  server::Lifecycle lifecycle;
  std::atomic<http::Server*> http_server{nullptr};
  std::atomic<http::Server*> admin_server{nullptr};
  server::AppOptions app_options;
  app_options.version = XGEN_VERSION;
  app_options.kernels = machine->kernels->name;
  app_options.request_timeout = config->server.request_timeout;
  app_options.stall_limit = config->server.stall_limit;
  app_options.reject_unknown_fields = config->server.unknown_fields == "reject";
  app_options.open_connections = [&] {
    std::size_t open = 0;
    for (const http::Server* server : {http_server.load(), admin_server.load()})
      if (server != nullptr) open += server->open_connections();
    return open;
  };
  Current current;
  current.defaults = config->defaults;
  current.models = digests_of(planned->definitions);
  if (*traces) {
    const auto exporter = std::make_shared<trace::OtlpExporter>(trace::OtlpOptions{.url = **std::move(traces),
                                                                                   .ca_file = config->tracing.ca_file,
                                                                                   .service = "xgen-model",
                                                                                   .version = XGEN_VERSION});
    app_options.tracing = {exporter, config->tracing.sample};
    app_options.span_counts = [exporter] {
      const trace::OtlpExporter::Counts counts = exporter->counts();
      return server::SpanCounts{counts.sent, counts.dropped};
    };
  }
  app_options.trusted_proxies = config->server.trusted_proxies;
  app_options.cors_origins = config->server.cors_origins;
  app_options.gateway_operators = config->server.operators == "gateway";
  app_options.make_model = [&](const server::LoadRequest& request) {
    return model_of(request, *machine, budget->total(), current);
  };
  app_options.keys = keys;
  const bool has_file = !config->file.empty();
  const bool reloads = has_file || keys != nullptr || *tls != nullptr;
  std::optional<Reloader> reloader;
  std::optional<Reloader> keys_reloader;  // ends first: it hands on to the other
  if (reloads) {
    app_options.reload = [&](Reloader::Done done) {
      if (*tls != nullptr)
        if (Status read = (*tls)->reload(); !read) return done(std::move(read).error());
      if (!keys_reloader && !reloader) return done(Result<std::string>("the TLS files were read"));
      if (!keys_reloader) return reloader->request(std::move(done));
      keys_reloader->request([&, done = std::move(done)](Result<std::string> read) {
        if (!read || !reloader) return done(std::move(read));
        reloader->request([done, read = *std::move(read)](Result<std::string> applied) {
          done(applied ? Result<std::string>(*applied + "; " + read) : std::move(applied));
        });
      });
    };
  }
  server::App app(std::move(app_options), registry, lifecycle);
  const bool admin_apart = config->server.admin_port.has_value();
  auto http = http::Server::bind(http_options(config->server, *tls),
                                 app.handler(admin_apart ? server::Serves::clients : server::Serves::everything),
                                 app.error_page());
  if (!http) return complain(kFailed, http.error().message);
  http_server.store(http->get());
  std::unique_ptr<http::Server> admin;
  if (admin_apart) {
    http::ServerOptions options = http_options(config->server, *tls);
    options.host = config->server.admin_host;
    options.port = static_cast<std::uint16_t>(*config->server.admin_port);
    options.threads = 1;
    auto bound = http::Server::bind(options, app.handler(server::Serves::operators), app.error_page());
    if (!bound) return complain(kFailed, "server.admin_port: " + bound.error().message);
    admin = *std::move(bound);
    admin_server.store(admin.get());
  }
  machine->remotes->run_on(**http);
  // Before the first request, which would find no model otherwise.
  if (Status status = registry.apply(std::move(planned->definitions)); !status)
    return complain(kMisused, status.error().message);
  // Only now: an older list must not come after a newer one.
  if (has_file)
    reloader.emplace(config->file, [&] {
      manager.reloading();
      auto outcome = reload(flags, *config, *machine, registry, current);
      manager.ready(outcome ? "Serving" : "Serving; the changed configuration is not valid");
      return outcome;
    });
  if (keys != nullptr) keys_reloader.emplace(keys_file, [&] { return load_keys(keys_file, *keys); });
  if (reloads) {
    signals.on_hangup([&] {
      if (*tls != nullptr)
        if (const Status read = (*tls)->reload(); !read)
          log::error("config", "the TLS files are not taken; those before stay in force",
                     {{"reason", read.error().message}});
      if (reloader) reloader->request({});
      if (keys_reloader) keys_reloader->request({});
    });
  }
  (*http)->start();
  if (admin != nullptr) {
    admin->start();
    log::info("server", "operators' listener", {{"host", config->server.admin_host}, {"port", admin->port()}});
  }
  const std::jthread reporter(report, std::cref(manager), std::cref(app), std::cref(registry), std::cref(lifecycle));
  const double bind_ms = ms_since(start) - plan_ms;
  if (Status status = load_at_start(registry, *config); !status) {
    signals.on_hangup({});
    return complain(kFailed, status.error().message);
  }
  lifecycle.set(server::Lifecycle::State::ready);
  signals.serving();
  manager.ready("Serving");
  print_hints(registry, config->server.host, (*http)->port(), *tls != nullptr, keys != nullptr);
  log::info("server", "ready",
            {{"ms", log::Decimal{ms_since(start), 1}},
             {"plan_ms", log::Decimal{plan_ms, 1}},
             {"bind_ms", log::Decimal{bind_ms, 1}},
             {"load_ms", log::Decimal{ms_since(start) - plan_ms - bind_ms, 1}},
             {"port", (*http)->port()},
             {"threads", machine->pool->size()},
             {"kernels", std::string(machine->kernels->name)}});

  const int signal = signals.wait();
  signals.on_hangup([] { log::warn("config", "not reloaded; the server is ending"); });
  manager.stopping(config->server.drain_delay + config->server.drain_timeout + 2 * kLastWords, "Finishing requests");
  drain(signal, config->server, lifecycle, **http, registry, *machine->remotes);
  if (admin != nullptr) admin->drain(kLastWords);
  return 0;
}

// The sources that are named, or all of the configuration's; its settings in both cases.
int pull(const Flags& flags, std::vector<std::string> list) {
  auto config = load_config(flags);
  if (!config) return complain(kMisused, config.error().message);
  for (const std::string& source : list) {
    if (!is_remote_source(source))
      return complain(kMisused, "'" + source + "': expected hf://ORG/REPO[@REVISION][/FILE] or s3://BUCKET/PREFIX");
    if (const auto parsed = parse_remote_source(source); !parsed) return complain(kMisused, parsed.error().message);
  }
  if (list.empty()) {
    for (const config::Model& model : config->models)
      if (is_remote_source(model.source) && std::find(list.begin(), list.end(), model.source) == list.end())
        list.push_back(model.source);
    if (list.empty()) {
      return complain(kMisused, (config->file.empty() ? std::string("no SOURCE is given and there is no models.yaml")
                                                      : config->file + ": no model has an hf:// or s3:// source") +
                                    ": nothing to download");
    }
  }
  auto settings = source_settings(config->sources);
  if (!settings) return complain(kMisused, settings.error().message);
  std::signal(SIGPIPE, SIG_IGN);  // a connection that has gone is an error like others
  sources::Sources sources(*std::move(settings));
  return pull_all(sources, list) ? 0 : kFailed;
}

// Asks the server that runs with the same configuration. The exit code is 0 or 1, as Docker wants it.
int healthcheck(const Flags& flags, const std::string& probe, std::string url) {
  if (url.empty()) {
    const std::string path = config_path(flags);
    auto server = path.empty() ? Result<config::Server>(config::Server()) : config::load_address(path);
    if (!server) return complain(kFailed, server.error().message);
    if (server->port == 0)
      return complain(kFailed, path + ": server.port: 0 takes any free port; give the server's address with --url");
    if (!server->tls_cert_file.empty())
      return complain(kFailed, path + ": the server speaks TLS; give --url https://NAME:PORT/health/" + probe +
                                   ", with a name that its certificate is for");
    url = health_url(server->host, server->port, probe);
  }
  const auto answer = ask_health(url, "xgen-model/" XGEN_VERSION);
  if (!answer) return complain(kFailed, answer.error().message);
  std::puts(answer->c_str());
  return 0;
}

int docs(const std::string& topic) {
  const std::string text = topic == "configuration" ? config::reference_markdown()
                           : topic == "import"
                               ? importer::reference_markdown()
                               : server::reference_markdown() + "\n## Metrics\n\n" + metrics::reference_markdown();
  std::fwrite(text.data(), 1, text.size(), stdout);
  return 0;
}

int main_with(int argc, char** argv) {
  const std::string_view first = argc > 1 ? argv[1] : "";
  constexpr std::string_view kCommands[] = {"serve", "check", "healthcheck", "pull", "import", "bench", "chat", "docs"};
  if (std::find(std::begin(kCommands), std::end(kCommands), first) == std::end(kCommands) && !first.starts_with('-')) {
    std::string list;
    for (const std::string_view each : kCommands)
      list.append(list.empty() ? "" : each == kCommands[std::size(kCommands) - 1] ? " or " : ", ").append(each);
    return complain(kMisused, (first.empty() ? "a command is needed" : "unknown command '" + std::string(first) + "'") +
                                  ": " + list + "; xgen-model --help tells more");
  }
  CLI::App command{"xgen-model " XGEN_VERSION ": serves language models over the OpenAI API"};
  command.set_version_flag("--version", "xgen-model " XGEN_VERSION);
  command.require_subcommand(1);
  Flags flags;
  CLI::App* serve_command =
      command.add_subcommand("serve", "Serve models (with neither PATH nor configuration: the built-in demo)");
  add_flags(*serve_command, flags, true);
  CLI::App* check_command =
      command.add_subcommand("check", "Check the configuration and print the memory plan, without serving");
  add_flags(*check_command, flags, false);
  bool print_effective = false;
  check_command->add_flag("--print-effective", print_effective,
                          "Print the whole configuration that is in force instead, flags and defaults included");
  CLI::App* health_command = command.add_subcommand(
      "healthcheck", "Ask the server that runs here whether it is well: exit code 0, or 1 and the reason");
  std::string probe = "ready";
  std::string health_at;
  health_command->add_option("probe", probe, "What to ask: ready (the default), live or startup")
      ->check(CLI::IsMember({"ready", "live", "startup"}));
  health_command->add_option("--url", health_at, "Ask this URL instead of the address in the configuration");
  health_command->add_option("--config", flags.config,
                             "The models.yaml (default: $MODEL_CONFIG_PATH, then ./models.yaml)");
  CLI::App* pull_command = command.add_subcommand(
      "pull", "Download models into the cache: the sources given, or all that the configuration names");
  std::vector<std::string> pull_list;
  Flags pull_flags;
  pull_command->add_option("source", pull_list, "hf://ORG/REPO[@REVISION][/FILE] or s3://BUCKET/PREFIX");
  pull_command->add_option("--config", pull_flags.config,
                           "The models.yaml (default: $MODEL_CONFIG_PATH, then ./models.yaml)");
  for (std::size_t i = 0; i < std::size(kKeyFlags); ++i)
    if (std::string_view(kKeyFlags[i].key).starts_with("sources."))
      pull_command->add_option(kKeyFlags[i].name, pull_flags.keys[i], config::describe_key(kKeyFlags[i].key));
  CLI::App* import_command = command.add_subcommand("import",
                                                    "Write a models.yaml for what runs today: a command line of vLLM, "
                                                    "TGI or llama-server, Docker Compose, Kubernetes, "
                                                    "Ray Serve; and report what became of each option");
  ImportArguments import_arguments;
  import_command->add_option("input", import_arguments.input,
                             "A file, or - for stdin; or, after --, the words of a command line");
  import_command->add_option("-o,--output", import_arguments.output, "Where the models.yaml goes (default: stdout)");
  import_command->add_option("--report", import_arguments.report, "Where the report goes (default: stderr)");
  import_command->add_flag("--force", import_arguments.force, "Replace files that are there");
  std::string import_for = "host";
  import_command
      ->add_option("--for", import_for,
                   "Whose paths and ports are written: the machine's, or the container's (default: host; of Kubernetes "
                   "always the container's)")
      ->check(CLI::IsMember({"host", "container"}));
  BenchFlags bench_flags;
  CLI::App* bench_command = add_bench(command, bench_flags);
  ChatFlags chat_flags;
  CLI::App* chat_command = add_chat(command, chat_flags);
  CLI::App* docs_command = command.add_subcommand("docs", "Print a reference page as Markdown");
  std::string topic;
  docs_command->add_option("page", topic, "Which page")
      ->required()
      ->check(CLI::IsMember({"configuration", "api", "import"}));
  if (first == "import")  // the words after "--" are none of ours
    if (char** const end =
            std::find_if(argv, argv + argc, [](const char* word) { return std::string_view(word) == "--"; });
        end != argv + argc) {
      import_arguments.words.assign(end + 1, argv + argc);
      argc = static_cast<int>(end - argv);
    }
  try {
    command.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return command.exit(error) == 0 ? 0 : kMisused;
  }
  if (serve_command->parsed()) return serve(flags);
  if (check_command->parsed()) return check(flags, print_effective);
  if (health_command->parsed()) return healthcheck(flags, probe, health_at);
  if (pull_command->parsed()) return pull(pull_flags, std::move(pull_list));
  if (import_command->parsed()) {
    import_arguments.in_container = import_for == "container";
    const Status status = run_import(import_arguments);
    if (status) return 0;
    return complain(status.error().code == ErrorCode::internal ? kFailed : kMisused, status.error().message);
  }
  if (bench_command->parsed()) return bench(bench_flags, XGEN_VERSION);
  if (chat_command->parsed()) return chat(chat_flags);
  return docs(topic);
}

}  // namespace
}  // namespace xgen

int main(int argc, char** argv) {
  try {
    return xgen::main_with(argc, argv);
  } catch (const std::exception& error) {
    return xgen::complain(xgen::kFailed, error.what());
  }
}
