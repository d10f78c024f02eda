#include "remote/openai_service.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/log.h"
#include "remote/openai_request.h"
#include "remote/openai_stream.h"
#include "remote/request_stats.h"
#include "remote/secret_file.h"
#include "remote/sse.h"
#include "remote/upstream_error.h"

namespace xgen::remote {
namespace {

namespace json = boost::json;
using inference::Event;
using inference::GenerateRequest;
using std::chrono::milliseconds;

constexpr std::size_t kMaxEvent = 16 << 20;      // bytes of one event of a stream
constexpr std::size_t kMaxErrorBody = 64 << 10;  // bytes of a refusal that are read
constexpr std::size_t kMaxReply = 64 << 20;      // bytes of an answer to /tokenize and the like
constexpr milliseconds kHealthTimeout{5'000};

// Collects a whole answer and hands it over once.
class Reply final : public http::CallListener {
 public:
  using Done = std::function<void(const http::ResponseHead& head, std::string_view body, const http::CallEnd& end)>;
  explicit Reply(Done done) : done_(std::move(done)) {}
  void on_head(http::ResponseHead head) override { head_ = std::move(head); }
  void on_body(std::string_view chunk) override { body_ += chunk; }
  void on_end(http::CallEnd end) override { done_(head_, body_, end); }

 private:
  Done done_;
  http::ResponseHead head_;
  std::string body_;
};

// What the service and its requests share; requests may outlive the service, and nothing outlives the client.
class Shared {
 public:
  Shared(OpenAiOptions given, http::Client& http_client)
      : options(std::move(given)), client(http_client), key_(options.api_key_file) {
    dialect.store(options.dialect);
  }

  // A call of the server, but for its body. Errors: unavailable, if the key cannot be read.
  Result<http::ClientRequest> call(std::string_view method, std::string target, std::string* key_out) {
    auto key = key_.read();
    if (!key) return std::move(key).error();
    http::ClientRequest request;
    request.method = method;
    request.url = options.url;
    request.url.target = std::move(target);
    request.headers = options.headers;
    if (!key->empty()) request.headers.emplace_back("Authorization", "Bearer " + *key);
    if (method == "POST") request.headers.emplace_back("Content-Type", "application/json");
    request.ca_file = options.ca_file;
    request.connect_timeout = options.connect_timeout;
    request.first_byte_timeout = options.first_byte_timeout;
    request.idle_timeout = options.idle_timeout;
    *key_out = *std::move(key);
    return request;
  }
  Upstream upstream(std::string key) const { return {options.name, options.url.origin(), std::move(key)}; }
  // "/v1", or what else the base URL ends with, without a slash.
  std::string base() const {
    std::string base = options.url.target;
    while (base.ends_with('/')) base.pop_back();
    return base;
  }
  // Where vLLM and others have what is not OpenAI's: beside /v1.
  std::string root() const {
    std::string root = base();
    if (root.ends_with("/v1")) root.resize(root.size() - 3);
    return root;
  }
  Error closed_error() const {
    return make_error(ErrorCode::unavailable, "Model " + options.name + " is not running any more.");
  }

  // A slot for one more call. Errors: overloaded; unavailable once closed.
  Result<std::uint64_t> enter() {
    std::unique_lock lock(mutex_);
    if (closed_.load()) return closed_error();
    if (running_.size() >= options.max_requests) {
      lock.unlock();
      stats.refused_full();
      Error error = make_error(ErrorCode::overloaded, "Model " + options.name + " already has " +
                                                          std::to_string(options.max_requests) + " requests running.");
      error.retry_after_s = 1;
      return error;
    }
    running_.emplace(++last_id_, nullptr);
    return last_id_;
  }
  // Its call has started; it may be over already.
  void began(std::uint64_t id, std::shared_ptr<http::Call> call) {
    std::unique_lock lock(mutex_);
    const auto found = running_.find(id);
    if (found == running_.end()) return;
    found->second = std::move(call);
    if (!closed_.load()) return;
    call = found->second;
    lock.unlock();
    call->fail(closed_error());
  }
  void leave(std::uint64_t id) {
    std::shared_ptr<http::Call> call;
    std::lock_guard lock(mutex_);
    const auto found = running_.find(id);
    if (found == running_.end()) return;
    call = std::move(found->second);  // outlives the lock
    running_.erase(found);
  }
  void close() {
    std::vector<std::shared_ptr<http::Call>> calls;
    {
      std::lock_guard lock(mutex_);
      closed_.store(true);
      for (const auto& [id, call] : running_)
        if (call != nullptr) calls.push_back(call);
    }
    for (const auto& call : calls) call->fail(closed_error());
  }
  bool is_closed() const { return closed_.load(); }

  const OpenAiOptions options;
  http::Client& client;
  std::atomic<Dialect> dialect{Dialect::unknown};
  std::atomic<int> max_model_len{0};
  RequestStats stats;

 private:
  SecretFile key_;
  std::mutex mutex_;
  std::atomic<bool> closed_{false};
  std::uint64_t last_id_ = 0;
  std::unordered_map<std::uint64_t, std::shared_ptr<http::Call>> running_;
};

// ---- One request ----

class Request final : public http::CallListener {
 public:
  Request(std::shared_ptr<Shared> shared, const GenerateRequest& request, Upstream upstream,
          std::shared_ptr<inference::EventSink> sink, std::uint64_t id)
      : shared_(std::move(shared)),
        upstream_(upstream),
        deadline_(request.deadline),
        sink_(std::move(sink)),
        id_(id),
        sse_(kMaxEvent),
        stream_(request.n, std::move(upstream)) {
    times_.begin(request);
    shared_->stats.arrived(request);
  }
  ~Request() override = default;
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  // On the client's thread.
  void on_head(http::ResponseHead head) override {
    head_ = std::move(head);
    streaming_ = head_.status == 200 && head_.header("Content-Type").starts_with("text/event-stream");
  }
  void on_body(std::string_view chunk) override {
    if (!streaming_) {
      body_.append(chunk.substr(0, kMaxErrorBody - std::min(kMaxErrorBody, body_.size())));
      return;
    }
    std::string_view data;
    while (!over_.load(std::memory_order_relaxed)) {
      const SseReader::Step step = sse_.next(chunk, data);
      if (step == SseReader::Step::need_more) return;
      if (step == SseReader::Step::too_large)
        return fail(make_error(ErrorCode::internal, upstream_.says("sent an event that is too large")));
      if (Status status = stream_.take(data, emit_); !status) return fail(std::move(status).error());
      if (stream_.done()) return finish();
    }
  }
  void on_end(http::CallEnd end) override {
    const std::shared_ptr<http::Call> kept = let_go();
    if (over_.load()) return;
    if (!end.status) return fail(error_of_end(end));
    if (streaming_) return fail(make_error(ErrorCode::unavailable, upstream_.says("broke off its answer: no [DONE]")));
    if (head_.status == 200)
      return fail(make_error(ErrorCode::internal, upstream_.says("answered without a stream of events")));
    fail(error_of_answer(head_, body_, upstream_));
  }

  // From any thread: nothing more is wanted, and `call` is the last reference. What is under way is cancelled; after a
  // whole answer the connection is left alone until its last bytes are here, so that it can be kept.
  void abandon(std::shared_ptr<http::Call> call) {
    if (!over_.exchange(true)) {
      shared_->leave(id_);
      shared_->stats.ended(times_, RequestStats::End::abort);
      return call->cancel();
    }
    std::lock_guard lock(mutex_);
    if (!ended_ && !failed_.load()) kept_ = std::move(call);
  }

 private:
  Error error_of_end(const http::CallEnd& end) const {
    if (shared_->is_closed()) return shared_->closed_error();
    if (deadline_ && end.status.error().code == ErrorCode::timeout && std::chrono::steady_clock::now() >= *deadline_)
      return make_error(ErrorCode::timeout, "The request's time limit has passed.");
    return error_of_call(end, upstream_);
  }

  // False once nothing more is wanted.
  bool emit(Event event) {
    if (over_.load(std::memory_order_relaxed)) return false;
    if (const auto* delta = std::get_if<inference::Delta>(&event))
      shared_->stats.delta(times_, *delta);
    else if (std::holds_alternative<inference::Started>(event))
      shared_->stats.started(times_);
    else if (const auto* end = std::get_if<inference::ChoiceFinished>(&event))
      shared_->stats.choice_finished(end->reason);
    sink_->on_event(std::move(event));
    return true;
  }
  void finish() {
    if (Status status = stream_.check_end(); !status) return fail(std::move(status).error());
    if (over_.exchange(true)) return;
    shared_->stats.finished(times_, stream_.usage());
    end(inference::Finished{stream_.usage(), times_.timings()});
  }
  void fail(Error error) {
    failed_.store(true);
    if (over_.exchange(true)) return;
    shared_->stats.ended(times_, RequestStats::End::error);
    end(inference::Failed{std::move(error)});
  }
  void end(Event event) {
    shared_->leave(id_);
    std::exchange(sink_, nullptr)->on_event(std::move(event));
  }
  std::shared_ptr<http::Call> let_go() {
    std::lock_guard lock(mutex_);
    ended_ = true;
    return std::move(kept_);
  }

  const std::shared_ptr<Shared> shared_;
  const Upstream upstream_;
  const std::optional<std::chrono::steady_clock::time_point> deadline_;
  std::shared_ptr<inference::EventSink> sink_;
  const std::uint64_t id_;
  http::ResponseHead head_;
  bool streaming_ = false;
  std::string body_;  // of a refusal
  SseReader sse_;
  OpenAiStream stream_;
  const OpenAiStream::Emit emit_ = [this](Event event) { return emit(std::move(event)); };
  RequestTimes times_;
  std::atomic<bool> over_{false};    // finished, failed or abandoned
  std::atomic<bool> failed_{false};  // what may still come is of no use
  std::mutex mutex_;
  bool ended_ = false;                // on_end has come
  std::shared_ptr<http::Call> kept_;  // keeps the call, and with it this, until on_end
};

class Handle final : public inference::RequestHandle {
 public:
  Handle(std::shared_ptr<Request> request, std::shared_ptr<http::Call> call)
      : request_(std::move(request)), call_(std::move(call)) {}
  ~Handle() override { request_->abandon(std::move(call_)); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

 private:
  std::shared_ptr<Request> request_;
  std::shared_ptr<http::Call> call_;
};

// ---- Looking after the server ----

// Asks for the server's list of models now and then: whether it is there, which engine it is, the model's context.
class Watch final : public std::enable_shared_from_this<Watch> {
 public:
  explicit Watch(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

  void start() {
    if (shared_->options.health_interval.count() > 0) look();
  }
  void stop() {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    timer_.reset();
    call_.reset();
  }
  inference::Health health() const {
    std::lock_guard lock(mutex_);
    return health_;
  }

 private:
  void look() {
    std::string key;
    auto call = shared_->call("GET", shared_->base() + "/models", &key);
    if (!call) return note(call.error().message);
    call->connect_timeout = std::min(call->connect_timeout, kHealthTimeout);
    call->first_byte_timeout = call->idle_timeout = kHealthTimeout;
    call->max_body = kMaxReply;
    auto reply = std::make_shared<Reply>([weak = weak_from_this(), upstream = shared_->upstream(std::move(key))](
                                             const auto& head, std::string_view body, const auto& end) {
      const auto self = weak.lock();
      if (self == nullptr) return;
      if (!end.status)
        self->note(error_of_call(end, upstream).message);
      else if (head.status == 401 || head.status == 403 || head.status >= 500)
        self->note(error_of_answer(head, body, upstream).message);
      else
        self->note(head.status == 200 ? self->read(body) : std::string());
    });
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    call_ = shared_->client.start(*std::move(call), std::move(reply));
  }

  // The list of models; what is wrong with it, if anything.
  std::string read(std::string_view body) {
    const auto parsed = parse_json(body);
    const json::object* list = parsed ? parsed->if_object() : nullptr;
    const json::value* data = list == nullptr ? nullptr : list->if_contains("data");
    if (data == nullptr || !data->is_array()) return {};
    std::string names;
    for (const json::value& each : data->get_array()) {
      const json::object* card = each.if_object();
      const json::value* id = card == nullptr ? nullptr : card->if_contains("id");
      if (id == nullptr || !id->is_string()) continue;
      const std::string name(id->get_string().data(), id->get_string().size());
      if (name == shared_->options.model) {
        learn(*card);
        return {};
      }
      if (names.size() < 500) names += (names.empty() ? "" : ", ") + name;
    }
    return shared_->upstream({}).says("does not serve '" + shared_->options.model + "'" +
                                      (names.empty() ? std::string() : ", but " + names));
  }
  void learn(const json::object& card) {
    const json::value* length = card.if_contains("max_model_len");
    if (length != nullptr && length->is_int64() && length->get_int64() > 0 && length->get_int64() < (1 << 30))
      shared_->max_model_len.store(static_cast<int>(length->get_int64()));
    const json::value* owner = card.if_contains("owned_by");
    if (shared_->options.dialect == Dialect::unknown && owner != nullptr && owner->is_string())
      shared_->dialect.store(dialect_of_owner({owner->get_string().data(), owner->get_string().size()}));
  }

  void note(const std::string& fault) {
    using State = inference::Health::State;
    const State now = fault.empty() ? State::ready : State::degraded;
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    if (now != health_.state) {
      if (now == State::ready)
        log::info("remote", "engine is well again",
                  {{"model", shared_->options.name}, {"url", shared_->options.url.text()}});
      else
        log::warn("remote", "engine is not well", {{"model", shared_->options.name}, {"reason", fault}});
    }
    health_.state = now;
    health_.detail = fault;
    timer_ = shared_->client.after(shared_->options.health_interval, [weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->look();
    });
  }

  const std::shared_ptr<Shared> shared_;
  mutable std::mutex mutex_;
  bool stopped_ = false;
  inference::Health health_;
  std::unique_ptr<http::Client::Timer> timer_;
  std::unique_ptr<http::Call> call_;
};

// ---- The service ----

class OpenAiService final : public inference::ModelService {
 public:
  OpenAiService(OpenAiOptions options, http::Client& client)
      : shared_(std::make_shared<Shared>(std::move(options), client)), watch_(std::make_shared<Watch>(shared_)) {
    watch_->start();
  }
  ~OpenAiService() override { close(); }
  OpenAiService(const OpenAiService&) = delete;
  OpenAiService& operator=(const OpenAiService&) = delete;

  std::unique_ptr<inference::RequestHandle> generate_async(GenerateRequest request,
                                                           std::shared_ptr<inference::EventSink> sink) override {
    const auto refuse = [&](Error error) -> std::unique_ptr<inference::RequestHandle> {
      sink->on_event(inference::Failed{std::move(error)});
      return nullptr;
    };
    auto body = generate_body(request, shared_->options.model, shared_->dialect.load());
    if (!body) return refuse(std::move(body).error());
    std::string key;
    auto call = shared_->call("POST", shared_->base() + std::string(generate_path(request)), &key);
    if (!call) return refuse(std::move(call).error());
    call->body = *std::move(body);
    call->deadline = request.deadline;
    if (!request.request_id.empty()) call->headers.emplace_back("X-Request-Id", request.request_id);
    auto id = shared_->enter();
    if (!id) return refuse(std::move(id).error());
    auto running = std::make_shared<Request>(shared_, request, shared_->upstream(std::move(key)), std::move(sink), *id);
    std::shared_ptr<http::Call> started = shared_->client.start(*std::move(call), running);
    shared_->began(*id, started);
    return std::make_unique<Handle>(std::move(running), std::move(started));
  }

  void tokenize_async(inference::TokenizeRequest request,
                      std::function<void(Result<inference::Tokenized>)> done) override {
    post<inference::Tokenized>("/tokenize", tokenize_body(request, shared_->options.model, shared_->dialect.load()),
                               std::move(done), [](const json::object& reply) -> std::optional<inference::Tokenized> {
                                 inference::Tokenized out;
                                 const json::value* ids = reply.if_contains("tokens");
                                 if (ids == nullptr || !ids->is_array()) return std::nullopt;
                                 for (const json::value& id : ids->get_array()) {
                                   if (!id.is_int64()) return std::nullopt;
                                   out.ids.push_back(static_cast<inference::TokenId>(id.get_int64()));
                                 }
                                 const json::value* texts = reply.if_contains("token_strs");
                                 if (texts != nullptr && texts->is_array())
                                   for (const json::value& text : texts->get_array())
                                     if (const json::string* token = text.if_string())
                                       out.tokens.emplace_back(token->data(), token->size());
                                 return out;
                               });
  }
  void detokenize_async(std::vector<inference::TokenId> ids, std::function<void(Result<std::string>)> done) override {
    post<std::string>("/detokenize", detokenize_body(ids, shared_->options.model, shared_->dialect.load()),
                      std::move(done), [](const json::object& reply) -> std::optional<std::string> {
                        const json::value* text = reply.if_contains("prompt");
                        if (text == nullptr) text = reply.if_contains("text");  // SGLang
                        if (text == nullptr || !text->is_string()) return std::nullopt;
                        return std::string(text->get_string().data(), text->get_string().size());
                      });
  }

  inference::Capabilities capabilities() const override {
    return {.chat = true,
            .max_model_len = shared_->max_model_len.load(),
            .tools = true,
            .response_format = true,
            .images = true,
            .extensions = true};
  }
  inference::Health health() const override {
    if (shared_->is_closed()) return {inference::Health::State::dead, 0, "closed"};
    return watch_->health();
  }
  inference::ServiceStats stats() const override { return shared_->stats.snapshot(); }
  void close() override {
    watch_->stop();
    shared_->close();
  }

 private:
  // A call with a JSON object as its whole answer, which `read` understands or not.
  template <class T>
  void post(std::string_view route, Result<std::string> body, std::function<void(Result<T>)> done,
            std::optional<T> (*read)(const json::object&)) {
    if (!body) return done(std::move(body).error());
    std::string key;
    auto call = shared_->call("POST", shared_->root() + std::string(route), &key);
    if (!call) return done(std::move(call).error());
    call->body = *std::move(body);
    call->max_body = kMaxReply;
    auto id = shared_->enter();
    if (!id) return done(std::move(id).error());
    auto reply = std::make_shared<Reply>(
        [shared = shared_, id = *id, done = std::move(done), read, route = std::string(route),
         upstream = shared_->upstream(std::move(key))](const auto& head, std::string_view text, const auto& end) {
          shared->leave(id);
          if (!end.status) return done(shared->is_closed() ? shared->closed_error() : error_of_call(end, upstream));
          if (head.status == 404)
            return done(make_error(ErrorCode::unsupported, upstream.says("does not offer " + route)));
          if (head.status != 200) return done(error_of_answer(head, text, upstream));
          const auto parsed = parse_json(text);
          const json::object* object = parsed ? parsed->if_object() : nullptr;
          auto value = object == nullptr ? std::nullopt : read(*object);
          if (!value) return done(make_error(ErrorCode::internal, upstream.says("gave an answer that cannot be read")));
          done(*std::move(value));
        });
    shared_->began(*id, shared_->client.start(*std::move(call), std::move(reply)));
  }

  const std::shared_ptr<Shared> shared_;
  const std::shared_ptr<Watch> watch_;
};

}  // namespace

std::shared_ptr<inference::ModelService> make_openai_service(OpenAiOptions options, http::Client& client) {
  if (options.model.empty()) options.model = options.name;
  return std::make_shared<OpenAiService>(std::move(options), client);
}

}  // namespace xgen::remote
