#include "remote/generation.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <utility>

#include "base/log.h"
#include "remote/ask.h"
#include "remote/sse.h"

namespace xgen::remote {
namespace {

using inference::Event;
using inference::GenerateRequest;

constexpr std::size_t kMaxEvent = 16 << 20;      // bytes of one event of a stream
constexpr std::size_t kMaxErrorBody = 64 << 10;  // bytes of a refusal that are read
constexpr std::chrono::milliseconds kCountTimeout{5'000};
constexpr std::chrono::milliseconds kStopTimeout{5'000};

// Keeps a call for whose end nobody waits, and is itself kept by it until then.
struct Unheard final : http::CallListener {
  void on_head(http::ResponseHead /*head*/) override {}
  void on_body(std::string_view /*chunk*/) override {}
  void on_end(http::CallEnd /*end*/) override {}
  std::unique_ptr<http::Call> call;
};

class Generation final : public http::CallListener, public std::enable_shared_from_this<Generation> {
 public:
  Generation(std::shared_ptr<Endpoint> endpoint, const GenerateRequest& request, GenerationCall call, Upstream upstream,
             std::shared_ptr<inference::EventSink> sink, std::uint64_t id)
      : endpoint_(std::move(endpoint)),
        upstream_(upstream),
        deadline_(request.deadline),
        sink_(std::move(sink)),
        id_(id),
        sse_(kMaxEvent),
        stream_(call.read(std::move(upstream))),
        count_(std::move(call.count)),
        count_here_(std::move(call.count_here)),
        stop_(std::move(call.stop)),
        trace_(request.trace) {
    times_.begin(request);
    endpoint_->stats.arrived();
  }
  ~Generation() override = default;
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // On the client's thread.
  void on_head(http::ResponseHead head) override {
    head_ = std::move(head);
    status_.store(head_.status);
    streaming_ = head_.status == 200 && head_.header("Content-Type").starts_with("text/event-stream");
  }
  void on_body(std::string_view chunk) override {
    if (!streaming_) {
      body_.append(chunk.substr(0, kMaxErrorBody - std::min(kMaxErrorBody, body_.size())));
      return;
    }
    std::string_view data;
    bool event = false;
    while (!over_.load(std::memory_order_relaxed) && !stream_->done()) {
      const SseReader::Step step = sse_.next(chunk, data);
      if (step == SseReader::Step::need_more) return event ? void() : check_silence();
      if (step == SseReader::Step::too_large)
        return give_up(make_error(ErrorCode::internal, upstream_.says("sent an event that is too large")));
      event = true;
      if (Status status = stream_->take(data, emit_); !status) return give_up(std::move(status).error());
      if (stream_->done()) return finish();
      last_event_ = std::chrono::steady_clock::now();
    }
  }
  void on_end(http::CallEnd end) override {
    const std::shared_ptr<http::Call> kept = let_go();
    if (over_.load() || stream_->done()) return;
    if (!end.status) {
      const bool ended_here = endpoint_->is_closed() || end.status.error().code == ErrorCode::timeout;
      Error error = endpoint_->error_of_end(end, deadline_, upstream_);
      return ended_here ? give_up(std::move(error)) : fail(std::move(error));
    }
    if (streaming_) {
      Status status = stream_->end(emit_);
      return status ? finish() : fail(std::move(status).error());
    }
    if (head_.status == 200)
      return fail(make_error(ErrorCode::internal, upstream_.says("answered without a stream of events")));
    fail(error_of_answer(head_, body_, upstream_));
  }

  // What the call tells the server of the trace.
  http::Headers trace_headers() const {
    if (!span_) return {};
    http::Headers headers{{"traceparent", span_.parent()}};
    if (!span_.state.empty()) headers.emplace_back("tracestate", span_.state);
    return headers;
  }
  // Its call has been started, and may have brought by then what made it useless.
  void began(http::Call& call) {
    if (useless_.load()) call.cancel();
  }

  // From any thread: nothing more is wanted, and `call` is the last reference. What is under way is cancelled; after a
  // whole answer the connection is left alone until its last bytes are here, so that it can be kept.
  void abandon(std::shared_ptr<http::Call> call) {
    if (!over_.exchange(true)) {
      endpoint_->leave(id_);
      endpoint_->stats.ended(times_, RequestStats::End::abort);
      end_span("cancelled");
      call->cancel();
      stop_server();
      std::unique_ptr<http::Call> counting;
      std::lock_guard lock(mutex_);
      counting = std::move(counting_);  // outlives the lock
      return;
    }
    std::lock_guard lock(mutex_);
    if (!ended_ && !useless_.load()) kept_ = std::move(call);
  }

 private:
  // Comments that keep a connection alive hide from the client that nothing is computed.
  void check_silence() {
    const auto limit = last_event_ ? endpoint_->options.idle_timeout : endpoint_->options.first_byte_timeout;
    if (std::chrono::steady_clock::now() - last_event_.value_or(begun_) < limit) return;
    give_up(make_error(ErrorCode::unavailable,
                       upstream_.says("sends nothing but signs of life for " + std::to_string(limit.count()) + " ms")));
  }

  // False once nothing more is wanted.
  bool emit(Event event) {
    if (over_.load(std::memory_order_relaxed)) return false;
    if (const auto* delta = std::get_if<inference::Delta>(&event))
      endpoint_->stats.delta(times_, *delta);
    else if (auto* started = std::get_if<inference::Started>(&event)) {
      endpoint_->stats.started(times_);
      started->timings = times_.timings();
    } else if (const auto* end = std::get_if<inference::ChoiceFinished>(&event))
      endpoint_->stats.choice_finished(end->reason);
    sink_->on_event(std::move(event));
    return true;
  }
  void finish() {
    if (stream_->cut()) {
      useless_.store(true);
      endpoint_->cancel(id_);
    }
    if (stream_->usage().prompt_tokens == 0 && !over_.load()) {
      if (count_) return count_prompt();
      if (count_here_) return count_here_([self = shared_from_this()](int tokens) { self->complete(tokens); });
    }
    complete(0);
  }
  void count_prompt() {
    std::string key;
    auto call = endpoint_->call("POST", count_->target, &key);
    if (!call) return complete(0);
    call->body = std::move(count_->body);
    call->connect_timeout = std::min(call->connect_timeout, kCountTimeout);
    call->first_byte_timeout = call->idle_timeout = kCountTimeout;
    call->deadline = std::chrono::steady_clock::now() + kCountTimeout;
    if (deadline_) call->deadline = std::min(*call->deadline, *deadline_);
    call->max_body = kMaxJsonReply;
    auto reply =
        std::make_shared<Reply>([self = shared_from_this()](const auto& head, std::string_view body, const auto& end) {
          const bool well = end.status && head.status == 200;
          self->complete(well ? self->count_->read(body).value_or(0) : 0);
        });
    auto counting = endpoint_->client.start(*std::move(call), std::move(reply));
    std::lock_guard lock(mutex_);
    if (!over_.load()) counting_ = std::move(counting);
  }
  // `prompt_tokens` of its own count; 0: what the answer said.
  void complete(int prompt_tokens) {
    if (over_.exchange(true)) return;
    inference::Usage usage = stream_->usage();
    if (prompt_tokens > 0) usage.prompt_tokens = prompt_tokens;
    endpoint_->stats.finished(times_, usage);
    end_span({});
    end(inference::Finished{usage, times_.timings()});
    if (stream_->cut()) stop_server();
  }
  // Beside the endpoint's limit and after its closing, too: it frees the server.
  void stop_server() {
    if (!stop_) return;
    std::string key;
    auto call = endpoint_->call("POST", stop_->target, &key);
    if (!call) return;
    call->body = stop_->body;
    call->max_body = kMaxErrorBody;
    call->deadline = std::chrono::steady_clock::now() + kStopTimeout;
    const auto unheard = std::make_shared<Unheard>();
    unheard->call = endpoint_->client.start(*std::move(call), unheard);
  }
  // The server may still be at work on it. It is told first: when the last request has its answer, the process may end.
  void give_up(Error error) {
    if (over_.load()) return;
    stop_server();
    fail(std::move(error));
  }
  // The call goes at once: the request may live on elsewhere, and its handle with it.
  void fail(Error error) {
    useless_.store(true);
    if (over_.exchange(true)) return;
    endpoint_->cancel(id_);
    endpoint_->stats.ended(times_, RequestStats::End::error);
    end_span(error.message);
    end(inference::Failed{std::move(error)});
  }
  // Of the call, which begins where this does.
  void end_span(std::string_view fault) const {
    if (trace_.sink == nullptr) return;
    trace::Span span;
    span.context = span_;
    span.parent_id = trace_.context.span_id;
    span.name = "call " + endpoint_->options.model;
    span.kind = trace::Span::Kind::client;
    span.start = trace::wall_time(begun_);
    span.end = std::chrono::system_clock::now();
    const http::Url& url = endpoint_->options.url;
    span.attributes = {{"gen_ai.request.model", endpoint_->options.model},
                       {"http.request.method", "POST"},
                       {"server.address", url.address.empty() ? url.host : url.address},
                       {"server.port", std::int64_t{url.port}}};
    if (const int status = status_.load(); status != 0)
      span.attributes.emplace_back("http.response.status_code", std::int64_t{status});
    if (!fault.empty()) {
      span.failed = true;
      span.error = fault.substr(0, log::kMaxQuoted);
      span.attributes.emplace_back("error.type", status_.load() >= 400 ? std::to_string(status_.load()) : "failed");
    }
    trace_.sink->add(std::move(span));
  }
  void end(Event event) {
    endpoint_->leave(id_);
    std::exchange(sink_, nullptr)->on_event(std::move(event));
  }
  std::shared_ptr<http::Call> let_go() {
    std::lock_guard lock(mutex_);
    ended_ = true;
    return std::move(kept_);
  }

  const std::shared_ptr<Endpoint> endpoint_;
  const Upstream upstream_;
  const std::optional<std::chrono::steady_clock::time_point> deadline_;
  std::shared_ptr<inference::EventSink> sink_;
  const std::uint64_t id_;
  http::ResponseHead head_;
  bool streaming_ = false;
  std::string body_;  // of a refusal
  SseReader sse_;
  const std::unique_ptr<AnswerStream> stream_;
  std::optional<GenerationCall::Count> count_;
  const std::function<void(std::function<void(int)>)> count_here_;
  const std::optional<GenerationCall::Stop> stop_;
  const trace::Carrier trace_;
  const trace::Context span_ = trace_.sink != nullptr ? trace::child_of(trace_.context) : trace_.context;
  std::atomic<int> status_{0};  // of the answer, once there is one
  const std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
  std::optional<std::chrono::steady_clock::time_point> last_event_;
  const AnswerStream::Emit emit_ = [this](Event event) { return emit(std::move(event)); };
  RequestTimes times_;
  std::atomic<bool> over_{false};     // finished, failed or abandoned
  std::atomic<bool> useless_{false};  // what may still come is of no use
  std::mutex mutex_;
  bool ended_ = false;                    // on_end has come
  std::shared_ptr<http::Call> kept_;      // keeps the call, and with it this, until on_end
  std::unique_ptr<http::Call> counting_;  // guarded by mutex_
};

class Handle final : public inference::RequestHandle {
 public:
  Handle(std::shared_ptr<Generation> request, std::shared_ptr<http::Call> call)
      : request_(std::move(request)), call_(std::move(call)) {}
  ~Handle() override { request_->abandon(std::move(call_)); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

 private:
  std::shared_ptr<Generation> request_;
  std::shared_ptr<http::Call> call_;
};

}  // namespace

std::unique_ptr<inference::RequestHandle> generate(const std::shared_ptr<Endpoint>& endpoint,
                                                   const GenerateRequest& request, Result<GenerationCall> call,
                                                   std::shared_ptr<inference::EventSink> sink) {
  const auto refuse = [&](Error error) -> std::unique_ptr<inference::RequestHandle> {
    sink->on_event(inference::Failed{std::move(error)});
    return nullptr;
  };
  if (!call) return refuse(std::move(call).error());
  std::string key;
  auto post = endpoint->call("POST", std::move(call->target), &key);
  if (!post) return refuse(std::move(post).error());
  post->body = std::move(call->body);
  post->deadline = request.deadline;
  if (!request.request_id.empty()) post->headers.emplace_back("X-Request-Id", request.request_id);
  post->headers.emplace_back(inference::kHopsHeader, std::to_string(request.hops + 1));
  auto id = endpoint->enter();
  if (!id) return refuse(std::move(id).error());
  auto running = std::make_shared<Generation>(endpoint, request, *std::move(call), endpoint->upstream(std::move(key)),
                                              std::move(sink), *id);
  const http::Headers trace = running->trace_headers();
  post->headers.insert(post->headers.end(), trace.begin(), trace.end());
  std::shared_ptr<http::Call> started = endpoint->client.start(*std::move(post), running);
  endpoint->began(*id, started);
  running->began(*started);
  return std::make_unique<Handle>(std::move(running), std::move(started));
}

}  // namespace xgen::remote
