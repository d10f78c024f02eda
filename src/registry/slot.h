// Slot: the place of one model in the registry, as the service that clients of the registry hold. It outlives what is
// loaded into it: a request that finds the model absent waits here until it is loaded, or until its deadline.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "inference/model_service.h"

namespace xgen::registry {

using Clock = std::chrono::steady_clock;

// Thread-safe. Every request holds a reference to the service that computes it until its handle goes, so a service
// that has left the slot lives as long as its last request.
class Slot final : public inference::ModelService, public std::enable_shared_from_this<Slot> {
 public:
  // `wanted` is called (from any thread) when a request begins to wait, or does not any more; it must not call back.
  explicit Slot(std::function<void()> wanted);

  void limit_waiting(std::size_t requests);
  // Requests that would be refused here go to `successor` instead, from the next refuse() on also those that wait.
  void pass_on_to(std::shared_ptr<Slot> successor);

  // From now on requests go to `service`, those first that wait.
  void open(std::shared_ptr<inference::ModelService> service);
  // From now on requests wait. Returns the service that was there, if any.
  std::shared_ptr<inference::ModelService> hold();
  // The same, and those that wait now fail.
  std::shared_ptr<inference::ModelService> hold(const Error& error);
  // From now on requests fail, and those that wait fail now. Returns the service that was there, if any.
  std::shared_ptr<inference::ModelService> refuse(const Error& error);
  // As hold(), if a service is there, no request uses it and none has since `unused_since`; else null.
  std::shared_ptr<inference::ModelService> hold_if_unused(Clock::time_point unused_since);

  // stats() has what `service` counts until what is returned goes; what it has counted by then stays.
  std::shared_ptr<void> count(const inference::ModelService& service);

  // Fails what waits and should not: everything whose deadline has passed.
  void expire(Clock::time_point now, const Error& error);
  std::optional<Clock::time_point> next_deadline() const;
  std::size_t waiting() const;
  Clock::time_point last_used() const;  // begin or end of a request
  bool in_use() const;                  // by a request, here or in the service
  std::shared_ptr<inference::ModelService> service() const;

  std::unique_ptr<inference::RequestHandle> generate_async(inference::GenerateRequest request,
                                                           std::shared_ptr<inference::EventSink> sink) override;
  void tokenize_async(inference::TokenizeRequest request,
                      std::function<void(Result<inference::Tokenized>)> done) override;
  void detokenize_async(inference::DetokenizeRequest request, std::function<void(Result<std::string>)> done) override;
  // Of the service, or, while none is there, of the one before (everything may be possible if there was none).
  inference::Capabilities capabilities() const override;
  inference::Health health() const override;
  // Of all services that it has had, those that are leaving or gone included, with the requests that wait here.
  inference::ServiceStats stats() const override;
  void close() override;

 private:
  using Service = std::shared_ptr<inference::ModelService>;
  // Held by every request of one service; others, who only look at it, do not keep it from being unloaded.
  class Users;
  struct Use {
    Service service;
    std::shared_ptr<Users> users;
  };
  struct Waiter {
    std::uint64_t id = 0;  // unique over all slots
    Clock::time_point deadline;
    std::function<void(Result<Use>)> go;
  };
  class Handle;
  class WaitingHandle;

  // `go` is called once, now or later, unless withdraw() comes first with the id that is returned.
  std::uint64_t with_service(std::optional<Clock::time_point> deadline, std::function<void(Result<Use>)> go);
  void enter(Waiter waiter);
  void withdraw(std::uint64_t waiter);
  Use use();
  Service leave();
  bool used() const;

  const std::function<void()> wanted_;
  mutable std::mutex mutex_;
  Service service_;  // null: requests wait, or are refused
  std::shared_ptr<Users> users_;
  std::optional<Error> refusal_;
  std::shared_ptr<Slot> successor_;
  std::deque<Waiter> waiters_;  // by id
  std::size_t max_waiting_ = 0;
  std::uint64_t refused_ = 0;  // for there were as many
  inference::Capabilities capabilities_;
  Clock::time_point last_used_ = Clock::now();

  mutable std::mutex stats_mutex_;
  inference::ServiceStats past_;  // of services that are gone
  std::vector<const inference::ModelService*> counted_;
};

}  // namespace xgen::registry
