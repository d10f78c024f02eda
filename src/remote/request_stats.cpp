#include "remote/request_stats.h"

#include <algorithm>

namespace xgen::remote {
namespace {

double seconds(std::chrono::steady_clock::duration d) { return std::chrono::duration<double>(d).count(); }

}  // namespace

inference::Timings RequestTimes::timings() const {
  const double queue = seconds(begun_ - arrival_);
  if (first_ == Clock::time_point()) return {queue, seconds(Clock::now() - begun_), 0};
  return {queue, seconds(first_ - begun_), seconds(last_ - first_)};
}

void RequestStats::arrived() {
  std::lock_guard lock(mutex_);
  ++stats_.requests_waiting;
}

void RequestStats::refused_full() {
  std::lock_guard lock(mutex_);
  ++stats_.rejected_queue_full;
}

void RequestStats::started(RequestTimes& times) {
  std::lock_guard lock(mutex_);
  if (times.state_ != RequestTimes::State::waiting) return;
  times.state_ = RequestTimes::State::running;
  --stats_.requests_waiting;
  ++stats_.requests_running;
}

void RequestStats::delta(RequestTimes& times, const inference::Delta& delta) {
  if (delta.tokens == 0) return;
  const auto now = RequestTimes::Clock::now();
  std::lock_guard lock(mutex_);
  if (times.first_ == RequestTimes::Clock::time_point()) {
    times.first_ = now;
    stats_.time_to_first_token.observe(seconds(now - times.arrival_));
    stats_.prefill_time.observe(seconds(now - times.begun_));
  } else if (times.n_ == 1) {
    stats_.inter_token_latency.observe(seconds(now - times.last_) / delta.tokens);
  }
  times.last_ = now;
  if (times.echoes_logprobs_) return;
  times.counted_ += static_cast<std::uint64_t>(delta.tokens);
  stats_.generation_tokens += static_cast<std::uint64_t>(delta.tokens);
}

void RequestStats::choice_finished(inference::FinishReason reason) {
  std::lock_guard lock(mutex_);
  switch (reason) {
    case inference::FinishReason::length:
      ++stats_.finished_length;
      break;
    case inference::FinishReason::abort:
      ++stats_.finished_abort;
      break;
    default:
      ++stats_.finished_stop;
      break;
  }
}

void RequestStats::finished(RequestTimes& times, const inference::Usage& usage) {
  const auto now = RequestTimes::Clock::now();
  const inference::Timings timings = times.timings();
  std::lock_guard lock(mutex_);
  leave(times);
  // What the stream did not show; it never counts down.
  const auto generated = static_cast<std::uint64_t>(usage.completion_tokens);
  stats_.generation_tokens += std::max(generated, times.counted_) - times.counted_;
  stats_.prompt_tokens += static_cast<std::uint64_t>(usage.prompt_tokens);
  stats_.prompt_tokens_cached += static_cast<std::uint64_t>(usage.cached_tokens);
  stats_.prefix_cache_queries += static_cast<std::uint64_t>(usage.prompt_tokens);
  stats_.prefix_cache_hits += static_cast<std::uint64_t>(usage.cached_tokens);
  stats_.request_n.observe(times.n_);
  if (times.max_tokens_) stats_.request_max_tokens.observe(*times.max_tokens_);
  stats_.request_prompt_tokens.observe(usage.prompt_tokens);
  stats_.request_generation_tokens.observe(usage.completion_tokens);
  stats_.queue_time.observe(timings.queue);
  stats_.decode_time.observe(timings.decode);
  stats_.inference_time.observe(timings.prefill + timings.decode);
  stats_.e2e_latency.observe(seconds(now - times.arrival_));
  const int per_choice = (usage.completion_tokens + times.n_ - 1) / times.n_;
  if (per_choice > 1) stats_.time_per_output_token.observe(timings.decode / (per_choice - 1));
}

void RequestStats::ended(RequestTimes& times, End how) {
  std::lock_guard lock(mutex_);
  leave(times);
  ++(how == End::error ? stats_.finished_error : stats_.finished_abort);
}

void RequestStats::leave(RequestTimes& times) {
  --(times.state_ == RequestTimes::State::running ? stats_.requests_running : stats_.requests_waiting);
  times.state_ = RequestTimes::State::gone;
}

inference::ServiceStats RequestStats::snapshot() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

}  // namespace xgen::remote
