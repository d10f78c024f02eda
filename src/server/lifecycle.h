// Lifecycle: what the process as a whole is doing; main sets it, health and the inference routes read it.
#pragma once

#include <atomic>
#include <cstdint>

namespace xgen::server {

class Lifecycle {
 public:
  enum class State : std::uint8_t {
    starting,  // loading models
    ready,
    draining,  // told to end: not ready any more, but still serving what comes
    refusing,  // new requests for inference get 503; running ones go on
  };

  State state() const { return state_.load(std::memory_order_relaxed); }
  void set(State state) { state_.store(state, std::memory_order_relaxed); }

 private:
  std::atomic<State> state_{State::starting};
};

}  // namespace xgen::server
