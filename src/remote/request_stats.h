// What a remote model's requests are counted as: the same numbers as a local engine's, seen from this side.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>

#include "inference/stats.h"
#include "inference/types.h"

namespace xgen::remote {

class RequestStats;

// One request's times and state; what changes of it is guarded by the RequestStats.
class RequestTimes {
 public:
  void begin(const inference::GenerateRequest& request) {
    arrival_ = request.arrival;
    begun_ = Clock::now();
    n_ = request.n;
    max_tokens_ = request.stop.max_tokens;
    echoes_logprobs_ = request.prompt_logprobs;
  }
  // Seconds, for Started and Finished: until it was sent it queued, and all waiting that is seen from then on is the
  // prompt's.
  inference::Timings timings() const;

 private:
  friend class RequestStats;
  using Clock = std::chrono::steady_clock;
  Clock::time_point arrival_;
  Clock::time_point begun_;
  Clock::time_point first_;
  Clock::time_point last_;
  int n_ = 1;
  std::optional<int> max_tokens_;
  bool echoes_logprobs_ = false;  // tokens of the prompt come as the answer's
  std::uint64_t counted_ = 0;     // as the answer's tokens
  enum class State : std::uint8_t { waiting, running, gone } state_ = State::waiting;
};

// Thread-safe.
class RequestStats {
 public:
  void arrived();
  void refused_full();
  void started(RequestTimes& times);
  void delta(RequestTimes& times, const inference::Delta& delta);
  void choice_finished(inference::FinishReason reason);
  void finished(RequestTimes& times, const inference::Usage& usage);
  enum class End : std::uint8_t { error, abort };
  void ended(RequestTimes& times, End how);
  inference::ServiceStats snapshot() const;

 private:
  void leave(RequestTimes& times);

  mutable std::mutex mutex_;
  inference::ServiceStats stats_;
};

}  // namespace xgen::remote
