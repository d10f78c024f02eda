#include "remote/openai_generation.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <utility>

#include "remote/openai_request.h"
#include "remote/openai_stream.h"
#include "remote/sse.h"

namespace xgen::remote {
namespace {

using inference::Event;
using inference::GenerateRequest;

constexpr std::size_t kMaxEvent = 16 << 20;      // bytes of one event of a stream
constexpr std::size_t kMaxErrorBody = 64 << 10;  // bytes of a refusal that are read

class Generation final : public http::CallListener {
 public:
  Generation(std::shared_ptr<OpenAiEndpoint> endpoint, const GenerateRequest& request, Upstream upstream,
             std::shared_ptr<inference::EventSink> sink, std::uint64_t id)
      : endpoint_(std::move(endpoint)),
        upstream_(upstream),
        deadline_(request.deadline),
        sink_(std::move(sink)),
        id_(id),
        sse_(kMaxEvent),
        stream_(request.n, std::move(upstream)) {
    times_.begin(request);
    endpoint_->stats.arrived(request);
  }
  ~Generation() override = default;
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

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
      endpoint_->leave(id_);
      endpoint_->stats.ended(times_, RequestStats::End::abort);
      return call->cancel();
    }
    std::lock_guard lock(mutex_);
    if (!ended_ && !failed_.load()) kept_ = std::move(call);
  }

 private:
  Error error_of_end(const http::CallEnd& end) const {
    if (endpoint_->is_closed()) return endpoint_->closed_error();
    if (deadline_ && end.status.error().code == ErrorCode::timeout && std::chrono::steady_clock::now() >= *deadline_)
      return make_error(ErrorCode::timeout, "The request's time limit has passed.");
    return error_of_call(end, upstream_);
  }

  // False once nothing more is wanted.
  bool emit(Event event) {
    if (over_.load(std::memory_order_relaxed)) return false;
    if (const auto* delta = std::get_if<inference::Delta>(&event))
      endpoint_->stats.delta(times_, *delta);
    else if (std::holds_alternative<inference::Started>(event))
      endpoint_->stats.started(times_);
    else if (const auto* end = std::get_if<inference::ChoiceFinished>(&event))
      endpoint_->stats.choice_finished(end->reason);
    sink_->on_event(std::move(event));
    return true;
  }
  void finish() {
    if (Status status = stream_.check_end(); !status) return fail(std::move(status).error());
    if (over_.exchange(true)) return;
    endpoint_->stats.finished(times_, stream_.usage());
    end(inference::Finished{stream_.usage(), times_.timings()});
  }
  void fail(Error error) {
    failed_.store(true);
    if (over_.exchange(true)) return;
    endpoint_->stats.ended(times_, RequestStats::End::error);
    end(inference::Failed{std::move(error)});
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

  const std::shared_ptr<OpenAiEndpoint> endpoint_;
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

std::unique_ptr<inference::RequestHandle> generate(const std::shared_ptr<OpenAiEndpoint>& endpoint,
                                                   const GenerateRequest& request,
                                                   std::shared_ptr<inference::EventSink> sink) {
  const auto refuse = [&](Error error) -> std::unique_ptr<inference::RequestHandle> {
    sink->on_event(inference::Failed{std::move(error)});
    return nullptr;
  };
  auto body = generate_body(request, endpoint->options.model, endpoint->dialect.load());
  if (!body) return refuse(std::move(body).error());
  std::string key;
  auto call = endpoint->call("POST", endpoint->base() + std::string(generate_path(request)), &key);
  if (!call) return refuse(std::move(call).error());
  call->body = *std::move(body);
  call->deadline = request.deadline;
  if (!request.request_id.empty()) call->headers.emplace_back("X-Request-Id", request.request_id);
  auto id = endpoint->enter();
  if (!id) return refuse(std::move(id).error());
  auto running =
      std::make_shared<Generation>(endpoint, request, endpoint->upstream(std::move(key)), std::move(sink), *id);
  std::shared_ptr<http::Call> started = endpoint->client.start(*std::move(call), running);
  endpoint->began(*id, started);
  return std::make_unique<Handle>(std::move(running), std::move(started));
}

}  // namespace xgen::remote
