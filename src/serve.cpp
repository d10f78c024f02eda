#include "serve.h"

#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/json_text.h"
#include "base/log.h"
#include "base/worker_pool.h"
#include "complain.h"
#include "crash.h"
#include "http/server.h"
#include "http/server_tls.h"
#include "kernels/kernel_table.h"
#include "live_config.h"
#include "registry/registry.h"
#include "reload.h"
#include "remote_models.h"
#include "server/api_keys.h"
#include "server/app.h"
#include "server/lifecycle.h"
#include "systemd.h"
#include "trace/otlp_exporter.h"

namespace xgen {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// Memory that is freed goes back to the system, for the budget counts it as free: by default the first large free()
// raises the bounds to up to 32 and 64 MiB, which every thread's heap could then keep.
void keep_heaps_small() {
  constexpr int kBytes = 1 << 20;
  mallopt(M_MMAP_THRESHOLD, kBytes);
  mallopt(M_TRIM_THRESHOLD, kBytes);
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

// What is read again while the server runs: the TLS files, the API keys and the configuration.
class Reloads {
 public:
  explicit Reloads(std::shared_ptr<http::ServerTls> tls) : tls_(std::move(tls)) {}

  // From then on a change of the file is noticed, too.
  void watch_config(const std::string& file, Reloader::Reload reload) { config_.emplace(file, std::move(reload)); }
  void watch_keys(const std::string& file, Reloader::Reload reload) { keys_.emplace(file, std::move(reload)); }

  // For an operator, who hears what came of it: one after the other, up to the first that fails.
  void request(Reloader::Done done) {
    if (tls_ != nullptr)
      if (Status read = tls_->reload(); !read) return done(std::move(read).error());
    if (!keys_ && !config_) return done(Result<std::string>("the TLS files were read"));
    if (!keys_) return config_->request(std::move(done));
    keys_->request([this, done = std::move(done)](Result<std::string> read) {
      if (!read || !config_) return done(std::move(read));
      config_->request([done, read = *std::move(read)](Result<std::string> applied) {
        done(applied ? Result<std::string>(*applied + "; " + read) : std::move(applied));
      });
    });
  }

  // For SIGHUP: each by itself, and the log tells what came of it.
  void hang_up() {
    if (tls_ != nullptr)
      if (const Status read = tls_->reload(); !read)
        log::error("config", "the TLS files are not taken; those before stay in force",
                   {{"reason", read.error().message}});
    if (config_) config_->request({});
    if (keys_) keys_->request({});
  }

 private:
  const std::shared_ptr<http::ServerTls> tls_;
  std::optional<Reloader> config_;
  std::optional<Reloader> keys_;  // ends first: it hands on to the other
};

registry::RegistryOptions registry_options(const config::Server& server) {
  registry::RegistryOptions options;
  options.drain_timeout = server.drain_timeout;
  options.replace_timeout = server.request_timeout;
  return options;
}

// What the configuration says of them; what calls back is still missing.
server::AppOptions app_options(const Setup& setup) {
  const config::Server& server = setup.config.server;
  server::AppOptions options;
  options.version = XGEN_VERSION;
  options.kernels = setup.machine.kernels->name;
  options.request_timeout = server.request_timeout;
  options.stall_limit = server.stall_limit;
  options.reject_unknown_fields = server.unknown_fields == "reject";
  options.trusted_proxies = server.trusted_proxies;
  options.cors_origins = server.cors_origins;
  options.gateway_operators = server.operators == "gateway";
  options.keys = setup.keys;
  if (setup.collector) {
    const config::Tracing& tracing = setup.config.tracing;
    const auto exporter = std::make_shared<trace::OtlpExporter>(trace::OtlpOptions{
        .url = *setup.collector, .ca_file = tracing.ca_file, .service = "xgen-model", .version = XGEN_VERSION});
    options.tracing = {exporter, tracing.sample};
    options.span_counts = [exporter] {
      const trace::OtlpExporter::Counts counts = exporter->counts();
      return server::SpanCounts{counts.sent, counts.dropped};
    };
  }
  return options;
}

// So many of server.max_body may be held at a time at least, for those who raise it because they need it.
constexpr std::size_t kLargestBodies = 16;

http::ServerOptions http_options(const config::Server& server, const std::shared_ptr<http::ServerTls>& tls) {
  http::ServerOptions options;
  options.tls = tls;
  options.host = server.host;
  options.port = static_cast<std::uint16_t>(server.port);
  options.threads = server.threads;
  options.max_connections = static_cast<std::size_t>(server.max_connections);
  options.max_header_bytes = server.max_headers;
  options.max_body_bytes = server.max_body;
  options.max_total_body_bytes = std::max(options.max_total_body_bytes, kLargestBodies * server.max_body);
  options.max_unsent_bytes = server.max_unsent;
  options.header_timeout = server.header_timeout;
  options.body_timeout = server.body_timeout;
  options.write_timeout = server.write_timeout;
  options.idle_timeout = server.idle_timeout;
  return options;
}

// The listener of operators where they have one of their own, else null.
Result<std::unique_ptr<http::Server>> bind_for_operators(const Setup& setup, server::App& app) {
  const config::Server& server = setup.config.server;
  if (!server.admin_port) return std::unique_ptr<http::Server>();
  http::ServerOptions options = http_options(server, setup.tls);
  options.host = server.admin_host;
  options.port = static_cast<std::uint16_t>(*server.admin_port);
  options.threads = 1;
  constexpr server::Serves kServes = server::Serves::operators;
  auto bound = http::Server::bind(options, app.handler(kServes), app.error_page(), app.head_check(kServes));
  if (bound) return bound;
  Error error = std::move(bound).error();
  error.message.insert(0, "server.admin_port: ");
  return error;
}

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
// move; then, as often as it wants to hear it, that the engines and the HTTP threads do.
void report(const std::stop_token& stop, const ServiceManager& manager, const server::App& app, http::Server& http,
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
    if (manager.watchdog() && app.live() && http.moves()) manager.alive();
    woken.wait_for(lock, stop, interval, [] { return false; });
  }
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
constexpr std::chrono::milliseconds kLastSpans = trace::OtlpOptions::kAtEnd;

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

// Both listeners' connections, counted on the threads of either: one that is being destroyed must not be asked.
class Listeners {
 public:
  void add(const http::Server* server) {
    const std::lock_guard lock(mutex_);
    servers_.push_back(server);
  }
  void forget() {
    const std::lock_guard lock(mutex_);
    servers_.clear();
  }
  std::size_t open_connections() const {
    const std::lock_guard lock(mutex_);
    std::size_t open = 0;
    for (const http::Server* server : servers_) open += server->open_connections();
    return open;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<const http::Server*> servers_;
};

// A fault that ends the start, once it is known how the log is written.
int not_started(int code, const std::string& reason) {
  if (log::format() != log::Format::json) return complain(code, reason);
  log::write(log::Level::error, "server", "not started", {{"reason", reason}});
  return code;
}

}  // namespace

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
  auto prepared = prepare(*std::move(config));
  if (!prepared) return not_started(kMisused, prepared.error().message);
  Setup& setup = *prepared;
  const config::Server& settings = setup.config.server;
  const double plan_ms = ms_since(start);

  registry::Registry registry(setup.budget, registry_options(settings));
  server::Lifecycle lifecycle;
  LiveConfig live(flags, setup);
  const bool has_file = !setup.config.file.empty();
  const bool can_reload = has_file || setup.keys != nullptr || setup.tls != nullptr;
  Reloads reloads(setup.tls);
  Listeners listeners;
  server::AppOptions options = app_options(setup);
  options.open_connections = [&] { return listeners.open_connections(); };
  options.make_model = [&](const server::LoadRequest& request) { return live.model_of(request); };
  if (can_reload) options.reload = [&](Reloader::Done done) { reloads.request(std::move(done)); };
  server::App app(std::move(options), registry, lifecycle);

  const server::Serves serves = settings.admin_port ? server::Serves::clients : server::Serves::everything;
  const auto http = http::Server::bind(http_options(settings, setup.tls), app.handler(serves), app.error_page(),
                                       app.head_check(serves));
  if (!http) return not_started(kFailed, http.error().message);
  const auto admin = bind_for_operators(setup, app);
  if (!admin) return not_started(kFailed, admin.error().message);
  listeners.add(http->get());
  if (*admin != nullptr) listeners.add(admin->get());
  const struct Forget {
    Listeners& all;
    ~Forget() { all.forget(); }
  } before_either_is_destroyed{listeners};
  setup.machine.remotes->run_on(**http);
  // Before the first request, which would find no model otherwise.
  if (Status status = registry.apply(std::move(setup.planned.definitions)); !status)
    return not_started(kMisused, status.error().message);
  // Only now: an older list must not come after a newer one.
  if (has_file)
    reloads.watch_config(setup.config.file, [&] {
      // While models load and while the process ends, the manager waits for something else.
      const auto serving = [&] { return lifecycle.state() == server::Lifecycle::State::ready; };
      if (!serving()) return live.reload(registry);
      manager.reloading();
      Result<std::string> outcome = std::string();
      try {
        outcome = live.reload(registry);
      } catch (const std::exception& fault) {
        outcome = make_error(ErrorCode::internal, fault.what());
      }
      if (serving()) manager.ready(outcome ? "Serving" : "Serving; the changed configuration is not valid");
      return outcome;
    });
  if (setup.keys != nullptr)
    reloads.watch_keys(settings.api_keys_file, [&] { return load_keys(settings.api_keys_file, *setup.keys); });
  if (can_reload) signals.on_hangup([&] { reloads.hang_up(); });
  (*http)->start();
  if (*admin != nullptr) {
    (*admin)->start();
    log::info("server", "operators' listener", {{"host", settings.admin_host}, {"port", (*admin)->port()}});
  }
  const std::jthread reporter(report, std::cref(manager), std::cref(app), std::ref(**http), std::cref(registry),
                              std::cref(lifecycle));
  const double bind_ms = ms_since(start) - plan_ms;

  if (Status status = load_at_start(registry, setup.config); !status) {
    signals.on_hangup({});
    return not_started(kFailed, status.error().message);
  }
  lifecycle.set(server::Lifecycle::State::ready);
  signals.serving();
  manager.ready("Serving");
  print_hints(registry, settings.host, (*http)->port(), setup.tls != nullptr, setup.keys != nullptr);
  log::info("server", "ready",
            {{"ms", log::Decimal{ms_since(start), 1}},
             {"plan_ms", log::Decimal{plan_ms, 1}},
             {"bind_ms", log::Decimal{bind_ms, 1}},
             {"load_ms", log::Decimal{ms_since(start) - plan_ms - bind_ms, 1}},
             {"port", (*http)->port()},
             {"threads", setup.machine.pool->size()},
             {"kernels", std::string(setup.machine.kernels->name)}});

  const int signal = signals.wait();
  signals.on_hangup([] { log::warn("config", "not reloaded; the server is ending"); });
  manager.stopping(settings.drain_delay + settings.drain_timeout + 3 * kLastWords + kLastSpans, "Finishing requests");
  drain(signal, settings, lifecycle, **http, registry, *setup.machine.remotes);
  if (*admin != nullptr) (*admin)->drain(kLastWords);
  return 0;
}

}  // namespace xgen
