#include "server/app.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "api/answer.h"
#include "api/errors.h"
#include "api/json_writer.h"
#include "api/requests.h"
#include "base/log.h"
#include "base/prep_thread.h"
#include "metrics/metrics.h"
#include "server/admin.h"
#include "server/cors.h"
#include "server/generate.h"
#include "server/request_info.h"

namespace xgen::server {

using State = Lifecycle::State;

struct Route;

// Why a request is refused.
struct Refusal {
  Error error;
  const api::ErrorKind* kind;
  http::Headers headers;  // beside those of every answer
};

// One request on its way: what every route's handler gets.
struct Context {
  std::shared_ptr<http::Exchange> exchange;
  RequestInfo info;
  std::string rest;                  // what {id} of the pattern stands for, percent-decoded
  std::shared_ptr<RateLimit> limit;  // of the caller's API key; null: none
  bool known = true;                 // false: where keys are asked for, the caller has none
  Serves serves = Serves::everything;
  const Route* route = nullptr;  // null where a browser only asks what is allowed
  std::string methods;           // of the path, where its route is not found
  http::Headers headers;         // of the answer

  void respond(http::Response response) {
    const int status = response.status;
    response.headers.emplace_back("x-request-id", info.id);
    response.headers.insert(response.headers.end(), headers.begin(), headers.end());
    add_retry_after(response, 0);
    exchange->respond(std::move(response));
    finish_request(info, {.status = status});
  }
  void fail(const Error& error) { fail(Refusal{error, &api::error_kind(error.code), {}}); }
  void fail(const Refusal& refusal) {
    exchange->respond(answer(refusal));
    finish(refusal);
  }
  http::Response answer(const Refusal& refusal) const {
    http::Response response = error_response(refusal.error, info.id, *refusal.kind);
    for (const auto* each : {&headers, &refusal.headers})
      response.headers.insert(response.headers.end(), each->begin(), each->end());
    return response;
  }
  void finish(const Refusal& refusal) const {
    finish_request(info, {.status = refusal.kind->status, .reason = refusal.error.message});
  }
};

namespace {

// A body that is larger is parsed on a thread of its own: the server thread has probes to answer.
constexpr std::size_t kInlineBody = 64 << 10;
constexpr std::size_t kMaxLargeBodies = 64;  // that wait for it; server.max_body and the server bound their size

// A request whose body is being parsed elsewhere. Everything but the parsing happens on its server thread.
template <class Call>
class LargeBody final : public http::ExchangeListener, public std::enable_shared_from_this<LargeBody<Call>> {
 public:
  using Parse = std::function<Result<Call>(const std::string& body)>;
  using Then = std::function<void(Context context, Result<Call> call)>;
  LargeBody(Context context, Parse parse, Then then)
      : context_(std::move(context)), parse_(std::move(parse)), then_(std::move(then)) {}

  void start(PrepThread& thread, std::string body) {
    const std::shared_ptr<http::Exchange> exchange = context_.exchange;
    body_ = std::move(body);
    exchange->set_listener(this->shared_from_this());
    // While it waits it does not keep the exchange, by which the body counts: a client that goes takes both along.
    const bool queued = thread.post([self = this->shared_from_this(), weak = std::weak_ptr(exchange)] {
      if (const auto alive = weak.lock()) self->parse(*alive);
    });
    if (queued || closed_) return;
    closed_ = true;
    Error error = make_error(ErrorCode::overloaded, "Too many large requests are being read already.");
    error.retry_after_s = 1;
    std::exchange(context_, {}).fail(error);
  }

  void on_wake() override {
    std::optional<Result<Call>> call;
    {
      std::lock_guard lock(mutex_);
      call = std::exchange(call_, std::nullopt);
    }
    if (!call || std::exchange(closed_, true)) return;
    then_(std::exchange(context_, {}), *std::move(call));
  }
  void on_close() override {
    if (std::exchange(closed_, true)) return;
    const Context context = std::exchange(context_, {});
    std::string body;
    {
      std::lock_guard lock(mutex_);
      body.swap(body_);
    }
    finish_request(context.info, {.status = 499, .reason = "the client went away"});
  }

 private:
  void parse(http::Exchange& exchange) {
    std::string body;
    {
      std::lock_guard lock(mutex_);
      body.swap(body_);
    }
    if (body.empty()) return;  // its client has gone
    Result<Call> call = contained(body);
    std::string().swap(body);
    {
      std::lock_guard lock(mutex_);
      call_ = std::move(call);
    }
    exchange.wake();
  }
  // What is thrown there, for want of memory above all, fails this request alone.
  Result<Call> contained(const std::string& body) const {
    try {
      return parse_(body);
    } catch (const std::exception& fault) {
      return make_error(ErrorCode::internal, std::string("The request could not be read: ") + fault.what());
    }
  }

  Context context_;
  const Parse parse_;
  const Then then_;
  bool closed_ = false;  // or handed on
  std::mutex mutex_;
  std::string body_;  // until it is parsed
  std::optional<Result<Call>> call_;
};

// Who is answered: everybody, or whoever has a key with this scope; operators also without (see check_operator).
enum class For : unsigned char { all, inference, metrics, operators };

}  // namespace

struct App::Impl {
  Impl(AppOptions given, registry::Registry& models, Lifecycle& cycle)
      : options(std::move(given)),
        registry(models),
        lifecycle(cycle),
        fingerprint("xgen-" + options.version),
        cors(options.cors_origins),
        responses(std::make_shared<ResponseCounts>(route_list().size())) {}

  void handle(std::shared_ptr<http::Exchange> exchange, Serves serves);
  std::optional<http::Response> check_head(const http::Request& request, Serves serves);
  Context describe_call(const http::Request& request, Serves serves) const;
  std::optional<Refusal> find_route(Context& context, const http::Request& request) const;

  void chat_completions(Context context) { generate_route(std::move(context), api::Endpoint::chat); }
  void completions(Context context) { generate_route(std::move(context), api::Endpoint::completions); }
  void generate_route(Context context, api::Endpoint endpoint);
  void generate_call(Context context, api::GenerateCall call, int hops);
  void tokenize_call(Context context, api::TokenizeCall call, int hops);
  void detokenize_call(Context context, api::DetokenizeCall call, int hops);
  // Parses the body, here or elsewhere by its size, and goes on with what it says; `then` is one of the above.
  template <class Call>
  void with_body(Context context, std::function<Result<Call>(const std::string& body)> parse,
                 void (Impl::*then)(Context context, Call call, int hops));
  Status admit(Context& context, const http::Request& request, For who) const;
  Status take_rate(Context& context, const std::vector<inference::GenerateRequest>& requests, RateShare& share) const;
  void tokenize(Context context);
  void detokenize(Context context);
  void models(Context context);
  void model(Context context);
  void health(Context context);
  void live(Context context);
  bool moves() const;
  bool any_use() const;
  void ready(Context context);
  void startup(Context context);
  void version(Context context);
  void metrics_page(Context context);
  void index(Context context);
  void admin_models(Context context);
  void admin_load(Context context) { change_model(std::move(context), &registry::Registry::load); }
  void admin_unload(Context context) { change_model(std::move(context), &registry::Registry::unload); }
  void admin_sleep(Context context) { change_model(std::move(context), &registry::Registry::sleep); }
  void admin_reload(Context context);
  void log_level(Context context);
  void set_log_level(Context context);
  void management_load(Context context);
  void management_unload(Context context);
  void management_status(Context context);
  void management_gpus(Context context);
  void change_model(Context context, void (registry::Registry::*change)(std::string_view, registry::Registry::Done));

  Result<std::shared_ptr<inference::ModelService>> find_model(std::string_view name) const;
  // When the request must have ended, if it must.
  std::optional<std::chrono::steady_clock::time_point> deadline_of(const Context& context) const;
  void log_unknown(const Context& context, const std::vector<std::string>& fields) const;
  // `detailed`: with the models, their names and what is wrong with them.
  std::string models_state_json(std::string_view status, bool detailed) const;

  AppOptions options;
  registry::Registry& registry;
  Lifecycle& lifecycle;
  std::string fingerprint;
  const Cors cors;
  std::shared_ptr<ResponseCounts> responses;  // shared, because exchanges may outlive the app
  std::shared_ptr<FallbackCounts> fallbacks = std::make_shared<FallbackCounts>();
  std::once_flag first_large_body;
  std::unique_ptr<PrepThread> bodies;  // reads large ones; last: its work uses the above
};

namespace {

enum class Log : unsigned char { normal, quiet };

}  // namespace

struct Route {
  std::string_view method;
  std::string_view pattern;  // may end in "{id}", which also matches slashes
  void (App::Impl::*handler)(Context);
  bool inference;  // refused with 503 once the process is ending
  For who;
  Log log;
  std::string_view doc;
};

namespace {

constexpr Route kRoutes[] = {
    {"POST", "/v1/chat/completions", &App::Impl::chat_completions, true, For::inference, Log::normal, "Answer a chat."},
    {"POST", "/v1/completions", &App::Impl::completions, true, For::inference, Log::normal,
     "Continue one or several prompts."},
    {"GET", "/v1/models", &App::Impl::models, false, For::inference, Log::normal,
     "The models that are served, with their aliases."},
    {"GET", "/v1/models/{id}", &App::Impl::model, false, For::inference, Log::normal,
     "One of them. A slash in the name may be sent as it is or as %2F."},
    {"POST", "/tokenize", &App::Impl::tokenize, true, For::inference, Log::normal,
     "Token ids of a prompt or a chat: {count, max_model_len (null if the engine does not tell), tokens, token_strs}."},
    {"POST", "/detokenize", &App::Impl::detokenize, true, For::inference, Log::normal, "Text of token ids: {prompt}."},
    {"GET", "/health", &App::Impl::health, false, For::all, Log::quiet,
     "200 while the models are well, 503 while starting or if one is not."},
    {"GET", "/health/live", &App::Impl::live, false, For::all, Log::quiet, "503 if an engine's step hangs."},
    {"GET", "/health/ready", &App::Impl::ready, false, For::all, Log::quiet,
     "200 while new requests are welcome, else 503."},
    {"GET", "/health/startup", &App::Impl::startup, false, For::all, Log::quiet,
     "200 once started; until then 503 with the progress of loading."},
    {"GET", "/version", &App::Impl::version, false, For::all, Log::normal, "{version}"},
    {"GET", "/metrics", &App::Impl::metrics_page, false, For::metrics, Log::quiet,
     "Metrics in Prometheus' text format."},
    {"GET", "/admin/models", &App::Impl::admin_models, false, For::operators, Log::normal,
     "Operators: every model with its state and memory, and the memory budget."},
    {"POST", "/admin/load", &App::Impl::admin_load, false, For::operators, Log::normal,
     "Operators: load {model}; answers when it is ready."},
    {"POST", "/admin/unload", &App::Impl::admin_unload, false, For::operators, Log::normal,
     "Operators: unload {model}; running requests finish first."},
    {"POST", "/admin/sleep", &App::Impl::admin_sleep, false, For::operators, Log::normal,
     "Operators: free the KV cache and workspace of {model} and keep its weights; the next request wakes it."},
    {"POST", "/admin/wake", &App::Impl::admin_load, false, For::operators, Log::normal, "Operators: the same as load."},
    {"POST", "/admin/reload", &App::Impl::admin_reload, false, For::operators, Log::normal,
     "Operators: read the configuration again and apply it; a bad one changes nothing."},
    {"GET", "/admin/log-level", &App::Impl::log_level, false, For::operators, Log::normal,
     "Operators: the least level that is logged: {level}."},
    {"PUT", "/admin/log-level", &App::Impl::set_log_level, false, For::operators, Log::normal,
     "Operators: set it to {level}: debug, info, warn, error or off; until the configuration is read again."},
    {"POST", "/load", &App::Impl::management_load, false, For::operators, Log::normal,
     "XGEN's gateway: load the model of {model_name, model_path, …}; answers LOADING at once."},
    {"GET", "/loading-status", &App::Impl::management_status, false, For::operators, Log::quiet,
     "XGEN's gateway: what is loading, and how far it is."},
    {"POST", "/api/management/load", &App::Impl::management_load, false, For::operators, Log::normal,
     "The same as `/load`."},
    {"POST", "/api/management/unload", &App::Impl::management_unload, false, For::operators, Log::normal,
     "XGEN's gateway: unload {model_name}; one that was loaded by path is forgotten."},
    {"GET", "/api/management/status", &App::Impl::management_status, false, For::operators, Log::quiet,
     "The same as `/loading-status`."},
    {"GET", "/api/management/gpus", &App::Impl::management_gpus, false, For::inference, Log::quiet,
     "XGEN's gateway: the GPUs; there are none in this version."},
    {"GET", "/api/management/health", &App::Impl::health, false, For::all, Log::quiet, "The same as `/health`."},
    {"GET", "/", &App::Impl::index, false, For::all, Log::normal, "This list, as text."},
};

// Under these the same routes answer to XGEN's gateway.
constexpr std::string_view kPrefixes[] = {"/api/inference", "/api/vllm"};

// Null if the text holds a broken escape.
std::optional<std::string> percent_decode(std::string_view text) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = digit(text[i + 1]);
    const int low = digit(text[i + 2]);
    if (high < 0 || low < 0) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

// The content coding of the request's body, unless it is sent as it is; empty then.
std::string_view content_coding(const http::Request& request) {
  const std::string_view coding = request.header("Content-Encoding");
  return http::equal_ignoring_case(coding, "identity") ? std::string_view{} : coding;
}

// Whether the path fits; `rest` is what {id} stands for.
bool matches(const Route& route, std::string_view path, std::string_view& rest) {
  constexpr std::string_view kId = "{id}";
  if (!route.pattern.ends_with(kId)) return path == route.pattern;
  const std::string_view head = route.pattern.substr(0, route.pattern.size() - kId.size());
  if (!path.starts_with(head) || path.size() == head.size()) return false;
  rest = path.substr(head.size());
  return true;
}

// The path without a prefix, as the routes have it.
std::string_view without_prefix(std::string_view path) {
  for (const std::string_view prefix : kPrefixes)
    if (path.starts_with(prefix) && path.size() > prefix.size() && path[prefix.size()] == '/')
      return path.substr(prefix.size());
  return path;
}

// The place of the first route that fits, whatever its method; the number of routes if there is none.
std::size_t route_of(std::string_view path) {
  std::string_view rest;
  const auto fits = [&](const Route& route) { return matches(route, path, rest); };
  return static_cast<std::size_t>(std::find_if(std::begin(kRoutes), std::end(kRoutes), fits) - std::begin(kRoutes));
}

std::string_view pattern_of(std::size_t route) { return route < std::size(kRoutes) ? kRoutes[route].pattern : "none"; }

// Whether the listener answers the route.
bool answers(Serves serves, const Route& route) {
  if (serves == Serves::everything || route.who == For::all) return true;
  const bool operators_own = route.who != For::inference || route.pattern.starts_with("/api/management/");
  return operators_own == (serves == Serves::operators);
}

// Whether web pages may have it, if the configuration lets them.
bool for_pages(const Route& route) { return route.who == For::all || route.who == For::inference; }

Refusal refusal(Error error) {
  const api::ErrorKind& kind = api::error_kind(error.code);
  return {std::move(error), &kind, {}};
}

http::Response status_json(int status, std::string_view word) {
  return {.status = status, .body = "{\"status\":\"" + std::string(word) + "\"}"};
}

}  // namespace

Context App::Impl::describe_call(const http::Request& request, Serves serves) const {
  Context context{nullptr, describe(request, responses)};
  context.serves = serves;
  if (!options.trusted_proxies.empty()) {
    context.info.remote = client_address(request, options.trusted_proxies);
    if (from_trusted_proxy(request, options.trusted_proxies)) context.info.user = only_value(request, "x-user-id");
  }
  return context;
}

// Finds the request's route and decides all that its body has no say in.
std::optional<Refusal> App::Impl::find_route(Context& context, const http::Request& request) const {
  const bool preflight = cors.is_preflight(request);
  const std::string_view path = without_prefix(request.path);
  context.info.route = route_of(path);
  for (const Route& route : kRoutes) {
    std::string_view rest;
    if (!answers(context.serves, route) || !matches(route, path, rest)) continue;
    if (preflight && !for_pages(route)) continue;
    if (request.method != route.method && !(request.method == "HEAD" && route.method == "GET")) {
      context.methods +=
          (context.methods.empty() ? "" : ", ") + std::string(route.method) + (route.method == "GET" ? ", HEAD" : "");
      continue;
    }
    context.route = &route;
    context.info.quiet = route.log == Log::quiet;
    if (route.inference)
      begin_span(context.info, options.tracing, std::string(route.method) + " " + std::string(route.pattern));
    if (for_pages(route)) context.headers = cors.headers(request);
    if (Status allows = admit(context, request, route.who); !allows) {
      const bool unknown = allows.error().code == ErrorCode::unauthenticated;
      return Refusal{allows.error(), &api::error_kind(allows.error().code),
                     unknown ? http::Headers{{"WWW-Authenticate", "Bearer"}} : http::Headers()};
    }
    if (!rest.empty()) {
      auto decoded = percent_decode(rest);
      if (!decoded) return refusal(make_error(ErrorCode::invalid_argument, "The path holds a broken percent escape."));
      context.rest = std::move(*decoded);
    }
    if (const std::string_view coding = content_coding(request); !coding.empty()) {
      Error error = make_error(ErrorCode::invalid_argument,
                               "The header Content-Encoding: " + std::string(coding.substr(0, 64)) +
                                   " is not supported; send the body without compression.",
                               "Content-Encoding");
      return Refusal{
          std::move(error), &api::error_kind("unsupported_content_encoding"), {{"Accept-Encoding", "identity"}}};
    }
    if (route.inference && lifecycle.state() == State::refusing)
      return refusal(make_error(ErrorCode::unavailable, "This server is shutting down."));
    return {};
  }
  if (preflight && !context.methods.empty()) return {};
  if (!context.methods.empty()) {
    Error error = make_error(ErrorCode::invalid_argument,
                             "The method " + request.method + " is not allowed here, only " + context.methods + ".");
    return Refusal{std::move(error), &api::error_kind("method_not_allowed"), {{"Allow", context.methods}}};
  }
  Error error = make_error(ErrorCode::not_found,
                           "There is nothing at " + request.path.substr(0, 256) + "; GET / lists what there is.");
  return Refusal{std::move(error), &api::error_kind("not_found"), {}};
}

void App::Impl::handle(std::shared_ptr<http::Exchange> exchange, Serves serves) {
  const http::Request& request = exchange->request();
  Context context = describe_call(request, serves);
  context.exchange = std::move(exchange);
  if (const auto refused = find_route(context, request)) return context.fail(*refused);
  if (context.route == nullptr) return context.respond(cors.preflight(request, context.methods));
  const auto handler = context.route->handler;
  (this->*handler)(std::move(context));
}

std::optional<http::Response> App::Impl::check_head(const http::Request& request, Serves serves) {
  Context context = describe_call(request, serves);
  const auto refused = find_route(context, request);
  if (!refused) return {};
  context.finish(*refused);
  return context.answer(*refused);
}

// Whether the caller may have this route; notes who it is.
Status App::Impl::admit(Context& context, const http::Request& request, For who) const {
  if (who == For::all) {
    context.known = options.keys == nullptr || options.keys->check(request.header("Authorization"), {});
    return {};
  }
  if (who == For::operators) {
    if (options.gateway_operators && only_value(request, "x-user-admin") == "true" &&
        from_trusted_proxy(request, options.trusted_proxies))
      return {};
    if (options.keys == nullptr) return check_operator(request, options.trusted_proxies);
  }
  if (options.keys == nullptr) return {};
  const Scope scope = who == For::inference ? Scope::inference : who == For::metrics ? Scope::metrics : Scope::admin;
  auto caller = options.keys->check(request.header("Authorization"), scope);
  if (!caller) return std::move(caller).error();
  context.info.key = std::move(caller->name);
  context.limit = std::move(caller->limit);
  return {};
}

namespace {

// As OpenAI's clients read them.
http::Headers rate_headers(const RateLimits& limits, const RateLimit::Left& left) {
  http::Headers headers;
  const auto add = [&headers](std::string_view what, std::int64_t limit, std::int64_t remaining, double reset_s) {
    if (limit == 0) return;
    char seconds[32];
    std::snprintf(seconds, sizeof(seconds), "%.3fs", reset_s);
    headers.emplace_back("x-ratelimit-limit-" + std::string(what), std::to_string(limit));
    headers.emplace_back("x-ratelimit-remaining-" + std::string(what), std::to_string(remaining));
    headers.emplace_back("x-ratelimit-reset-" + std::string(what), seconds);
  };
  add("requests", limits.requests_per_minute, left.requests, left.requests_reset_s);
  add("tokens", limits.tokens_per_minute, left.tokens, left.tokens_reset_s);
  return headers;
}

// Tokens that are reserved for an answer without a limit of its own. More is paid when it ends.
constexpr int kOpenAnswer = 512;

// About: before the model's tokenizer has seen it, four bytes are taken for a token.
std::int64_t estimated_tokens(const inference::Prompt& prompt) {
  constexpr std::size_t kBytes = 4;
  std::size_t bytes = 0;
  if (const auto* ids = std::get_if<std::vector<inference::TokenId>>(&prompt))
    return static_cast<std::int64_t>(ids->size());
  if (const auto* text = std::get_if<std::string>(&prompt)) bytes = text->size();
  if (const auto* messages = std::get_if<std::vector<inference::Message>>(&prompt)) {
    for (const inference::Message& each : *messages) {
      bytes += each.content.size();
      for (const inference::ContentPart& part : each.parts)
        if (part.kind == inference::ContentPart::Kind::text) bytes += part.value.size();
    }
  }
  return static_cast<std::int64_t>((bytes + kBytes - 1) / kBytes);
}

}  // namespace

// Takes what the call may come to from the rates of the caller's key. Errors: overloaded.
Status App::Impl::take_rate(Context& context, const std::vector<inference::GenerateRequest>& requests,
                            RateShare& share) const {
  share.headers = context.headers;
  if (context.limit == nullptr) return {};
  std::int64_t answers = 0;
  for (const inference::GenerateRequest& each : requests) {
    share.prompt_tokens += estimated_tokens(each.prompt);
    answers += std::int64_t{each.n} * each.stop.max_tokens.value_or(kOpenAnswer);
  }
  RateLimit::Left left;
  auto permit = context.limit->admit(share.prompt_tokens + answers, std::chrono::steady_clock::now(), left);
  for (auto& header : rate_headers(context.limit->limits(), left)) context.headers.push_back(std::move(header));
  share.headers = context.headers;
  if (!permit) {
    Error error = std::move(permit).error();
    error.message = "The rate of the API key '" + context.info.key + "' is used up: " + error.message + ".";
    return error;
  }
  share.permit = *std::move(permit);
  return {};
}

std::optional<std::chrono::steady_clock::time_point> App::Impl::deadline_of(const Context& context) const {
  if (options.request_timeout.count() == 0) return std::nullopt;
  return context.info.start + options.request_timeout;
}

void App::Impl::log_unknown(const Context& context, const std::vector<std::string>& fields) const {
  for (const std::string& field : fields)
    log::warn("http", trace::with_id("unknown parameter let through", context.info.trace),
              {{"parameter", field}, {"request_id", context.info.id}});
}

namespace {

constexpr int kMaxHops = 8;  // servers, one behind the other

// Errors: invalid_argument, if it has come through too many servers.
Result<int> hops_of(const http::Request& request) {
  const std::string_view text = request.header(inference::kHopsHeader);
  int hops = 0;
  std::from_chars(text.data(), text.data() + text.size(), hops);
  if (hops >= kMaxHops)
    return make_error(ErrorCode::invalid_argument, "The request has come through " + std::to_string(hops) +
                                                       " servers: the URLs of a remote model lead in a circle.");
  return std::max(hops, 0);
}

}  // namespace

template <class Call>
void App::Impl::with_body(Context context, std::function<Result<Call>(const std::string& body)> parse,
                          void (Impl::*then)(Context context, Call call, int hops)) {
  const auto hops = hops_of(context.exchange->request());
  if (!hops) return context.fail(hops.error());
  std::string body = std::move(context.exchange->request().body);
  // Thousands of requests may wait for tokens: nothing of theirs is kept that is not needed any more.
  context.exchange->request() = {};
  auto go_on = [this, then, hops = *hops](Context with, Result<Call> call) {
    if (!call) return with.fail(call.error());
    log_unknown(with, call->unknown);
    (this->*then)(std::move(with), *std::move(call), hops);
  };
  if (body.size() <= kInlineBody) return go_on(std::move(context), parse(body));
  std::call_once(first_large_body, [this] { bodies = std::make_unique<PrepThread>(kMaxLargeBodies); });
  std::make_shared<LargeBody<Call>>(std::move(context), std::move(parse), std::move(go_on))
      ->start(*bodies, std::move(body));
}

void App::Impl::generate_route(Context context, api::Endpoint endpoint) {
  with_body<api::GenerateCall>(
      std::move(context),
      [endpoint, strict = options.reject_unknown_fields](const std::string& body) {
        return api::parse_generate(endpoint, body, {strict});
      },
      &Impl::generate_call);
}

void App::Impl::generate_call(Context context, api::GenerateCall call, int hops) {
  RateShare share;
  if (Status taken = take_rate(context, call.requests, share); !taken) return context.fail(taken.error());
  const auto deadline = deadline_of(context);
  for (auto& request : call.requests) {
    request.deadline = deadline;
    request.hops = hops;
  }
  FallbackRoute route(registry, fallbacks, call.model, context.info.id, context.info.trace, deadline);
  const auto service = route.next(nullptr);
  if (!service) return context.fail(service.error());
  // A fallback refuses by itself, and the route goes on.
  if (call.endpoint == api::Endpoint::chat && !route.fell_back() && !(*service)->capabilities().chat)
    return context.fail(make_error(ErrorCode::unsupported,
                                   "The model '" + call.model + "' has no chat template; use /v1/completions.",
                                   "messages"));
  generate(std::move(context.exchange), std::move(context.info), std::move(call), std::move(route), **service,
           fingerprint, std::move(share));
}

// A name may be left out where there is nothing to choose from.
Result<std::shared_ptr<inference::ModelService>> App::Impl::find_model(std::string_view name) const {
  if (!name.empty()) return registry.find(name);
  auto all = registry.list();
  std::erase_if(all, [](const registry::ModelEntry& each) { return each.retires; });
  if (all.size() == 1) return registry.find(all.front().name);
  return make_error(ErrorCode::invalid_argument, "'model' is required where several models are served", "model");
}

void App::Impl::tokenize(Context context) {
  with_body<api::TokenizeCall>(
      std::move(context),
      [strict = options.reject_unknown_fields](const std::string& body) { return api::parse_tokenize(body, {strict}); },
      &Impl::tokenize_call);
}

void App::Impl::tokenize_call(Context context, api::TokenizeCall call, int hops) {
  RateShare share;
  if (Status taken = take_rate(context, {}, share); !taken) return context.fail(taken.error());
  const auto service = find_model(call.model);
  if (!service) return context.fail(service.error());
  call.request.deadline = deadline_of(context);
  call.request.hops = hops;
  (*service)->tokenize_async(std::move(call.request),
                             [context = std::move(context), model = *service,
                              with_strings = call.return_token_strs](Result<inference::Tokenized> result) mutable {
                               if (!result) return context.fail(result.error());
                               // Not before: the model may have been loaded for this.
                               const int max_model_len = model->capabilities().max_model_len;
                               context.respond({.body = api::tokenize_json(*result, max_model_len, with_strings)});
                             });
}

void App::Impl::detokenize(Context context) {
  with_body<api::DetokenizeCall>(
      std::move(context),
      [strict = options.reject_unknown_fields](const std::string& body) {
        return api::parse_detokenize(body, {strict});
      },
      &Impl::detokenize_call);
}

void App::Impl::detokenize_call(Context context, api::DetokenizeCall call, int hops) {
  RateShare share;
  if (Status taken = take_rate(context, {}, share); !taken) return context.fail(taken.error());
  const auto service = find_model(call.model);
  if (!service) return context.fail(service.error());
  call.request.deadline = deadline_of(context);
  call.request.hops = hops;
  (*service)->detokenize_async(std::move(call.request),
                               [context = std::move(context)](Result<std::string> result) mutable {
                                 if (!result) return context.fail(result.error());
                                 context.respond({.body = api::detokenize_json(*result)});
                               });
}

void App::Impl::models(Context context) {
  std::vector<api::ModelCard> cards;
  for (const auto& entry : registry.list()) {
    // What a request could not have, now or by waiting for it, is not offered.
    if (!entry.service && (!entry.waits || entry.state == registry::ModelState::failed)) continue;
    const int length = entry.service ? entry.service->capabilities().max_model_len : 0;
    if (!entry.retires) cards.push_back({entry.name, entry.name, entry.created, length});
    for (const std::string& alias : entry.aliases) cards.push_back({alias, entry.name, entry.created, length});
  }
  context.respond({.body = api::models_json(cards)});
}

void App::Impl::model(Context context) {
  const auto entry = registry.entry(context.rest);
  if (!entry) return context.fail(entry.error());
  const int length = entry->service ? entry->service->capabilities().max_model_len : 0;
  context.respond({.body = api::model_json({context.rest, entry->name, entry->created, length})});
}

std::string App::Impl::models_state_json(std::string_view status, bool detailed) const {
  const std::vector<registry::ModelEntry> entries = registry.list();
  double progress = 0;
  int at_start = 0;
  for (const auto& entry : entries) {
    if (entry.on_demand) continue;
    progress += entry.progress;
    ++at_start;
  }
  std::string out = "{\"status\":\"" + std::string(status) + "\",\"progress\":";
  api::append_json_float(out, at_start == 0 ? 1 : static_cast<float>(progress / at_start));
  if (!detailed) return out + '}';
  out += ",\"models\":[";
  bool first = true;
  for (const auto& entry : entries) {
    if (!std::exchange(first, false)) out += ',';
    out += "{\"name\":";
    api::append_json_string(out, entry.name);
    out += ",\"state\":\"" + std::string(registry::state_name(entry.state)) + "\",\"progress\":";
    api::append_json_float(out, static_cast<float>(entry.progress));
    if (const std::string detail = detail_of(entry); !detail.empty()) {
      out += ",\"detail\":";
      api::append_json_string(out, detail);
    }
    out += '}';
  }
  out += "]}";
  return out;
}

void App::Impl::health(Context context) {
  const State state = lifecycle.state();
  if (state == State::starting)
    return context.respond({.status = 503, .body = models_state_json("starting", context.known)});
  for (const auto& entry : registry.list()) {
    // What an operator tried to add does not make the rest unwell.
    const bool failed = entry.state == registry::ModelState::failed && !entry.added;
    const bool well = !failed && (!entry.service || entry.service->health().state == inference::Health::State::ready);
    if (!well) return context.respond({.status = 503, .body = models_state_json("degraded", context.known)});
  }
  if (state == State::refusing) return context.respond(status_json(503, "ending"));
  context.respond(status_json(200, state == State::draining ? "draining" : "ok"));
}

bool App::Impl::moves() const {
  const double limit = std::chrono::duration<double>(options.stall_limit).count();
  const std::vector<registry::ModelEntry> entries = registry.list();
  return std::none_of(entries.begin(), entries.end(), [limit](const registry::ModelEntry& entry) {
    if (!entry.service) return false;
    const inference::Health health = entry.service->health();
    return health.state == inference::Health::State::dead || health.seconds_since_step > limit;
  });
}

void App::Impl::live(Context context) {
  if (moves()) return context.respond(status_json(200, "ok"));
  context.respond({.status = 503, .body = models_state_json("hanging", context.known)});
}

// False if models have failed and none is left to answer, now or after a wait. One that has failed is tried again by a
// request after a while: then it is worth one.
bool App::Impl::any_use() const {
  bool failed = false;
  for (const registry::ModelEntry& entry : registry.list()) {
    if (entry.added) continue;
    if (entry.service || entry.waits || entry.state == registry::ModelState::loading) return true;
    failed = failed || entry.state == registry::ModelState::failed;
  }
  return !failed;
}

void App::Impl::ready(Context context) {
  switch (lifecycle.state()) {
    case State::ready:
      if (any_use()) return context.respond(status_json(200, "ready"));
      return context.respond({.status = 503, .body = models_state_json("failed", context.known)});
    case State::starting:
      return context.respond({.status = 503, .body = models_state_json("starting", context.known)});
    case State::draining:
    case State::refusing:
      return context.respond(status_json(503, "ending"));
  }
}

void App::Impl::startup(Context context) {
  const bool started = lifecycle.state() != State::starting;
  context.respond(
      {.status = started ? 200 : 503, .body = models_state_json(started ? "started" : "starting", context.known)});
}

void App::Impl::version(Context context) {
  std::string body = "{\"version\":";
  api::append_json_string(body, options.version);
  body += '}';
  context.respond({.body = std::move(body)});
}

void App::Impl::metrics_page(Context context) {
  const std::vector<registry::ModelEntry> entries = registry.list();
  std::vector<metrics::ModelSample> samples;
  samples.reserve(entries.size());
  for (const auto& entry : entries) samples.push_back({entry.name, entry.slot->stats()});
  metrics::ProcessSample process = metrics::sample_process();
  if (options.open_connections) process.http_connections = options.open_connections();
  if (options.span_counts) {
    const SpanCounts spans = options.span_counts();
    process.spans_sent = spans.sent;
    process.spans_dropped = spans.dropped;
  }
  for (const ResponseCounts::Count& each : responses->counts()) {
    process.http_responses.push_back({pattern_of(each.route), each.status, each.count});
  }
  for (std::size_t route = 0; route <= responses->none(); ++route) {
    inference::Histogram seconds = responses->durations(route);
    if (std::any_of(seconds.counts().begin(), seconds.counts().end(), [](std::uint64_t n) { return n > 0; }))
      process.http_durations.push_back({pattern_of(route), std::move(seconds)});
  }
  process.version = options.version;
  process.kernels = options.kernels;
  std::vector<metrics::RegisteredModel> registered;
  for (const auto& entry : entries) {
    registered.push_back({entry.name, registry::state_name(entry.state), entry.reserved, entry.borrowed,
                          entry.counts.loads, entry.counts.failures, entry.counts.evictions, entry.counts.unloads,
                          entry.last_load.fetch, entry.last_load.wait, entry.last_load.load});
    if (entry.service) registered.back().replicas = entry.service->replicas();
    for (const std::string& target : entry.fallbacks)
      registered.back().fallbacks.emplace_back(target, fallbacks->count(entry.name, target));
  }
  metrics::MemorySample host{"host", registry.budget().total()};
  for (const MemoryBudget::Use& use : registry.budget().uses()) {
    host.reserved_bytes += use.reserved;
    host.borrowed_bytes += use.borrowed;
  }
  context.respond({.body = metrics::render(samples, process) + metrics::render_registry(registered, {&host, 1}),
                   .content_type = std::string(metrics::kContentType)});
}

void App::Impl::index(Context context) {
  std::string text = "xgen-model " + options.version + "\n\n";
  for (const Route& route : kRoutes) {
    if (!answers(context.serves, route)) continue;
    std::string line = std::string(route.method) + " " + std::string(route.pattern);
    line.resize(std::max<std::size_t>(line.size() + 1, 28), ' ');
    text += line + std::string(route.doc) + "\n";
  }
  context.respond({.body = std::move(text), .content_type = "text/plain; charset=utf-8"});
}

void App::Impl::admin_models(Context context) { context.respond({.body = admin_models_json(registry)}); }

void App::Impl::change_model(Context context,
                             void (registry::Registry::*change)(std::string_view, registry::Registry::Done)) {
  const auto name = parse_name(context.exchange->request().body, "model");
  if (!name) return context.fail(name.error());
  context.info.model = *name;
  auto shared = std::make_shared<Context>(std::move(context));  // std::function copies
  // The registry may answer when the app is gone.
  (registry.*change)(*name, [&models = registry, shared, name = *name](const Status& status) {
    if (!status) return shared->fail(status.error());
    const auto entry = models.entry(name);
    if (!entry) return shared->fail(entry.error());
    shared->respond({.body = admin_model_json(*entry)});
  });
}

void App::Impl::admin_reload(Context context) {
  if (!options.reload)
    return context.fail(
        make_error(ErrorCode::invalid_argument, "This server was started without a configuration file."));
  auto shared = std::make_shared<Context>(std::move(context));
  options.reload([shared](Result<std::string> result) {
    if (!result) return shared->fail(result.error());
    std::string body = "{\"status\":";
    api::append_json_string(body, *result);
    shared->respond({.body = body + "}"});
  });
}

void App::Impl::log_level(Context context) {
  context.respond({.body = "{\"level\":\"" + std::string(log::level_name(log::level())) + "\"}"});
}

void App::Impl::set_log_level(Context context) {
  const auto name = parse_name(context.exchange->request().body, "level");
  if (!name) return context.fail(name.error());
  const auto level = log::level_of(*name);
  if (!level)
    return context.fail(
        make_error(ErrorCode::invalid_argument, "'level' must be one of debug, info, warn, error, off.", "level"));
  log::write(std::max(*level, log::level()), "server", "the log's level is set",
             {{"level", *name}, {"request_id", context.info.id}});
  log::set_level(*level);
  log_level(std::move(context));
}

void App::Impl::management_load(Context context) {
  const auto request = parse_load_request(context.exchange->request().body);
  if (!request) return context.fail(request.error());
  context.info.model = request->name.empty() ? request->path : request->name;
  auto shared = std::make_shared<Context>(std::move(context));  // std::function copies
  // The registry may answer when the app is gone.
  const auto answer = [&models = registry, shared](const std::string& name) {
    const auto entry = models.entry(name);
    if (!entry) return shared->fail(entry.error());
    shared->respond({.status = entry->service ? 200 : 202, .body = gateway_model_json(*entry)});
  };
  if (request->path.empty()) {
    return registry.begin_load(request->name, [shared, answer, name = request->name](const Status& status) {
      if (!status) return shared->fail(status.error());
      answer(name);
    });
  }
  if (!options.make_model)
    return shared->fail(make_error(ErrorCode::unsupported, "This server loads no models by path.", "model_path"));
  auto definition = options.make_model(*request);
  if (!definition) return shared->fail(definition.error());
  const std::string name = definition->name;
  registry.add(*std::move(definition), [shared, answer, name](const Status& status) {
    if (!status) return shared->fail(status.error());
    answer(name);
  });
}

void App::Impl::management_unload(Context context) {
  const auto name = parse_unload_request(context.exchange->request().body);
  if (!name) return context.fail(name.error());
  context.info.model = *name;
  if (const auto entry = registry.entry(*name); !entry) return context.fail(entry.error());
  registry.remove(*name, {});
  std::string body = "{\"model_name\":";
  api::append_json_string(body, *name);
  context.respond({.status = 202, .body = body + ",\"status\":\"UNLOADING\"}"});
}

void App::Impl::management_status(Context context) { context.respond({.body = loading_status_json(registry)}); }

void App::Impl::management_gpus(Context context) { context.respond({.body = R"({"count":0,"gpus":[]})"}); }

App::App(AppOptions options, registry::Registry& registry, Lifecycle& lifecycle)
    : impl_(std::make_unique<Impl>(std::move(options), registry, lifecycle)) {}
App::~App() = default;

bool App::live() const { return impl_->moves(); }

http::Handler App::handler(Serves serves) {
  return [impl = impl_.get(), serves](std::shared_ptr<http::Exchange> exchange) {
    impl->handle(std::move(exchange), serves);
  };
}

http::HeadCheck App::head_check(Serves serves) {
  return [impl = impl_.get(), serves](const http::Request& request) { return impl->check_head(request, serves); };
}

http::ErrorPage App::error_page() {
  return [counts = impl_->responses, cors = impl_->cors](const http::Request& request, int status,
                                                         std::string_view message) {
    RequestInfo info = describe(request, counts);
    info.route = route_of(without_prefix(request.path));
    const api::ErrorKind& kind = api::error_kind_of_status(status);
    const Error error = make_error(kind.code, std::string(message));
    http::Response response = error_response(error, info.id, kind);
    const bool pages = info.route < std::size(kRoutes) && for_pages(kRoutes[info.route]);
    if (pages)
      for (auto& header : cors.headers(request)) response.headers.push_back(std::move(header));
    finish_request(info, {.status = status, .reason = error.message, .remote = request.remote});
    return response;
  };
}

std::vector<std::string> route_list() {
  std::vector<std::string> list;
  for (const Route& route : kRoutes) list.push_back(std::string(route.method) + " " + std::string(route.pattern));
  return list;
}

std::string reference_markdown() {
  std::string out =
      "# The HTTP API\n\nMade by `xgen-model` itself from the tables that drive it.\n\n## Routes\n\n"
      "| method | path | what it does |\n| --- | --- | --- |\n";
  for (const Route& route : kRoutes)
    out += "| " + std::string(route.method) + " | `" + std::string(route.pattern) + "` | " + std::string(route.doc) +
           " |\n";
  out += "\nThe same routes answer under";
  for (std::size_t i = 0; i < std::size(kPrefixes); ++i)
    out += (i == 0 ? " `" : " and `") + std::string(kPrefixes[i]) + "`";
  out +=
      ". HEAD is answered wherever GET is.\n\nA request may carry `x-request-id`: 1 to 128 characters of printable "
      "ASCII, "
      "none of them a space. It comes back with the answer and stands in the log. Any other, with a space or a letter "
      "outside ASCII for example, is replaced by one made here, as is a missing one: 32 hexadecimal digits.\n\nThe "
      "operators' routes under `/admin` and the gateway's that load and unload answer on this machine only (but see "
      "`server.operators`): 403 for requests from another address, with a "
      "`Host` that is not this machine, from a web page of another origin, or through a proxy "
      "(`server.trusted_proxies`). With `server.admin_port` they, the rest of `/api/management` and `/metrics` answer "
      "at that port alone (404 at the other), which answers nothing else but health, the version and its list. Where "
      "the server asks for API keys "
      "([api-keys.md](api-keys.md)), they answer to keys of scope `admin` instead, wherever those come from; "
      "`/metrics` "
      "to keys of scope `metrics`, and the rest, but for `/health`, `/version` and `/`, to those of scope "
      "`inference`.\n\n## Parameters\n\nA field that is null "
      "counts as left out. A field that no specification knows is refused with 400, unless `server.unknown_fields` is "
      "`warn`.\n\n" +
      api::parameters_markdown() + "\n### Limits\n\n" + api::limits_markdown() +
      "\n## Loading through XGEN's gateway\n\n`POST /api/inference/load` and "
      "`POST /api/management/load` take these fields; others are refused by name. Models that are loaded by path live "
      "beside those of the configuration: a reload leaves them alone, unless the file takes their name, and a restart "
      "forgets them. The answer is `{model_name, status, progress, error, …}` with 202 while it is LOADING, 200 when "
      "it "
      "is LOADED; `loading-status` tells the rest. `status` is LOADING, LOADED (asleep as well), UNLOADING, ERROR with "
      "the reason in `error`, or UNLOADED for a model that a request or an operator may load again. Who may call them: "
      "`server.operators`.\n\n" +
      load_fields_markdown() +
      "\n## Fallbacks\n\nWhere the model asked for cannot answer and the configuration lets another stand in "
      "(`models[].fallbacks`), `model` in the answer names the one that answered, and so does the header "
      "`x-xgen-model`.\n" +
      "\n## Errors\n\nEvery error is `{\"error\":{\"message\",\"type\",\"param\",\"code\"}}`; `param` names the field "
      "at fault, or is null. 429 and 503 carry `Retry-After`, those of `/health` too. An error inside a stream is one "
      "`data:` chunk of this shape, then `data: [DONE]`. The log tells the reason of every refusal, without what the "
      "message quotes of the request.\n\n" +
      api::errors_markdown() +
      "\n## Disconnects\n\nA client that goes away cancels its request within one step of the engine. A client that "
      "closes its sending side after the request (`shutdown(SHUT_WR)`, as `nc -N` does) cannot be told from one that "
      "is gone, so that it counts as gone as well, as with vLLM (uvicorn): what is answered at once, or complete by "
      "then, is still sent; an answer that a model is working on is cancelled. Keep the sending side open until the "
      "answer "
      "has come.\n";
  return out;
}

}  // namespace xgen::server
