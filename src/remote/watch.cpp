#include "remote/watch.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "remote/address_watch.h"
#include "remote/load_report.h"
#include "remote/reply.h"

namespace xgen::remote {

namespace {

constexpr std::uint64_t kMaxAnswer = 4 << 20;   // bytes of what a server says of itself
constexpr std::uint64_t kMaxMetrics = 8 << 20;  // bytes of a page of metrics
constexpr std::chrono::milliseconds kHealthTimeout{5'000};

// Nothing is asked any more. It may be said while a call is being started, and a lock held.
bool client_has_gone(const http::CallEnd& end) {
  return !end.status && end.status.error().code == ErrorCode::cancelled;
}

}  // namespace

void Watch::stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  timer_.reset();
  call_.reset();
  load_timer_.reset();
  load_call_.reset();
}

inference::Health Watch::health() const {
  std::lock_guard lock(mutex_);
  return health_;
}

std::optional<inference::Load> Watch::load() const {
  std::lock_guard lock(mutex_);
  return load_;
}

void Watch::look_at_load() {
  std::string key;
  auto call = endpoint_->call("GET", endpoint_->root() + "/metrics", &key);
  if (!call) return note_load(std::nullopt);  // health() tells; the key may be readable again a moment later
  call->connect_timeout = std::min(call->connect_timeout, kHealthTimeout);
  call->first_byte_timeout = call->idle_timeout = kHealthTimeout;
  call->max_body = kMaxMetrics;
  auto reply = std::make_shared<Reply>([weak = weak_from_this(), before = endpoint_->stats.snapshot().unfinished()](
                                           const auto& head, std::string_view body, const auto& end) {
    const auto self = weak.lock();
    if (self == nullptr || client_has_gone(end)) return;
    auto load = end.status && head.status == 200 ? read_load(body, self->endpoint_->options.model) : std::nullopt;
    // What the server saw of ours lies between what there was before and after.
    if (load) load->own = static_cast<double>(std::max(before, self->endpoint_->stats.snapshot().unfinished()));
    self->note_load(load);
  });
  std::lock_guard lock(mutex_);
  if (stopped_) return;
  load_call_ = endpoint_->client.start(*std::move(call), std::move(reply));
}

void Watch::note_load(const std::optional<inference::Load>& load) {
  std::lock_guard lock(mutex_);
  if (stopped_) return;
  load_ = load;
  load_timer_ = endpoint_->client.after(endpoint_->options.load_interval, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->look_at_load();
  });
}

void Watch::ask(std::size_t which) {
  std::string key;
  auto call = endpoint_->call("GET", questions_[which].target, &key);
  if (!call) return note(call.error().message);
  call->connect_timeout = std::min(call->connect_timeout, kHealthTimeout);
  call->first_byte_timeout = call->idle_timeout = kHealthTimeout;
  call->max_body = kMaxAnswer;
  auto reply = std::make_shared<Reply>([weak = weak_from_this(), which, upstream = endpoint_->upstream(std::move(key))](
                                           const auto& head, std::string_view body, const auto& end) {
    const auto self = weak.lock();
    if (self == nullptr || client_has_gone(end)) return;
    std::string fault;
    if (!end.status)
      fault = error_of_call(end, upstream).message;
    else if (head.status == 401 || head.status == 403 || head.status >= 500)
      fault = error_of_answer(head, body, upstream).message;
    else
      fault = self->questions_[which].read(head, body);
    if (!fault.empty() || which + 1 == self->questions_.size()) return self->note(fault);
    self->ask(which + 1);
  });
  std::lock_guard lock(mutex_);
  if (stopped_) return;
  call_ = endpoint_->client.start(*std::move(call), std::move(reply));
}

void Watch::note(const std::string& fault) {
  using State = inference::Health::State;
  const State now = fault.empty() ? State::ready : State::degraded;
  if (endpoint_->options.health_interval.count() == 0) return;  // nobody would hear that it is well again
  std::lock_guard lock(mutex_);
  if (stopped_) return;
  if (now != health_.state) {
    if (now == State::ready)
      log::info("remote", "engine is well again",
                {{"model", endpoint_->options.name}, {"url", replica_name(endpoint_->options.url)}});
    else
      log::warn("remote", "engine is not well",
                {{"model", endpoint_->options.name}, {"url", replica_name(endpoint_->options.url)}, {"reason", fault}});
  }
  health_.state = now;
  health_.detail = fault;
  timer_ = endpoint_->client.after(endpoint_->options.health_interval, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->ask(0);
  });
}

}  // namespace xgen::remote
