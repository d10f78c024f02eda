// One request tried on one service after the other, until one begins to answer.
#pragma once

#include <cstdint>
#include <memory>

#include "inference/model_service.h"

namespace xgen::inference {

// Whether the fault may be that of the service, so that another could do better.
bool another_may_do(const Error& error);

// The way of one request: which service comes next. Its functions are called one after the other, never at once, from
// whatever thread an attempt ends on.
class Route {
 public:
  enum class End : std::uint8_t { finished, failed, cancelled };
  virtual ~Route() = default;
  // The service to try: the first (`failure` is null), or the one after an attempt that failed before it had answered
  // anything. An error ends the request. Must not return a service that was tried already.
  virtual Result<std::shared_ptr<ModelService>> next(const Error* failure) = 0;
  // The attempt has given its first token: no other follows it.
  virtual void on_answer() {}
  // Exactly once. `failure` is null unless it failed.
  virtual void on_end(End end, const Error* failure) = 0;
};

// As ModelService::generate_async. Started is held back until something follows it, so that a service that dies after
// it has accepted a request costs the request nothing.
std::unique_ptr<RequestHandle> generate_with_failover(GenerateRequest request, std::shared_ptr<EventSink> sink,
                                                      std::unique_ptr<Route> route);

}  // namespace xgen::inference
