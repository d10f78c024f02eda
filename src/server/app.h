// App: the routes. It brings requests from http to the models of the registry, and their answers back.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "http/server.h"
#include "registry/registry.h"
#include "server/api_keys.h"
#include "server/lifecycle.h"
#include "server/management.h"
#include "server/proxies.h"
#include "server/request_info.h"

namespace xgen::server {

// Spans that a collector has taken, and those that were lost on the way.
struct SpanCounts {
  std::uint64_t sent = 0;
  std::uint64_t dropped = 0;
};

struct AppOptions {
  std::string version;
  std::string kernels;                                 // the instruction set; only told
  std::chrono::milliseconds request_timeout{600'000};  // of one inference request: 408; 0 = none
  Tracing tracing;
  std::function<SpanCounts()> span_counts;        // for /metrics; may be empty
  bool reject_unknown_fields = true;              // false: logged and let through
  std::chrono::milliseconds stall_limit{60'000};  // an engine step that runs longer makes /health/live fail
  std::function<std::size_t()> open_connections;  // for /metrics; may be empty
  // Whose word counts of who the client is: x-forwarded-for, forwarded, x-user-id, x-user-admin.
  Proxies trusted_proxies;
  // Takes operators' requests from elsewhere, too, if one of these has marked them (x-user-admin).
  bool gateway_operators = false;
  // Web pages of these origins may ask (see Cors).
  std::vector<std::string> cors_origins;
  // Asked for by all but health, the version and the list of routes; null: nobody is asked, and operators are who comes
  // from this machine.
  std::shared_ptr<ApiKeys> keys;
  // The model of a load request that names a path. Errors name the field. Empty: there are no such requests.
  std::function<Result<registry::ModelDefinition>(const LoadRequest&)> make_model;
  // Reads the configuration again and applies it; calls back once, from any thread, with a word on what changed or
  // with the reason why nothing did. Empty: there is no file to read.
  std::function<void(std::function<void(Result<std::string>)>)> reload;
};

// What a listener answers. Health, the version and the list of its routes all do.
enum class Serves : unsigned char {
  everything,
  clients,    // all but what the operators' listener answers
  operators,  // operators' routes, management and metrics alone
};

// Thread-safe. Registry and lifecycle must outlive the app; the app must outlive the HTTP server that calls it.
class App {
 public:
  App(AppOptions options, registry::Registry& registry, Lifecycle& lifecycle);
  ~App();

  http::Handler handler(Serves serves = Serves::everything);
  // Refuses before the body what handler() would refuse whatever the body says.
  http::HeadCheck head_check(Serves serves = Serves::everything);
  http::ErrorPage error_page();

  // Whether every engine moves on: what /health/live answers.
  bool live() const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

// docs/api.md: routes, parameters and errors, from the tables in the code.
std::string reference_markdown();

// The routes as "METHOD /path", for tests and for the first lines that `serve` prints.
std::vector<std::string> route_list();

}  // namespace xgen::server
