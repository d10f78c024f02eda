#include "inference/failover.h"

#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace xgen::inference {
namespace {

class Failover final : public std::enable_shared_from_this<Failover> {
 public:
  Failover(GenerateRequest request, std::shared_ptr<EventSink> sink, std::unique_ptr<Route> route)
      : request_(std::move(request)), sink_(std::move(sink)), route_(std::move(route)) {}

  // Tries services until one takes the request, or fails it later.
  void run(std::optional<Error> failure);
  void cancel();

 private:
  class Sink final : public EventSink {
   public:
    Sink(std::shared_ptr<Failover> owner, int attempt) : owner_(std::move(owner)), attempt_(attempt) {}
    void on_event(Event event) override { owner_->take(attempt_, std::move(event)); }

   private:
    const std::shared_ptr<Failover> owner_;
    const int attempt_;
  };

  void take(int attempt, Event event);

  GenerateRequest request_;  // until an attempt answers
  const std::shared_ptr<EventSink> sink_;
  std::mutex mutex_;
  std::unique_ptr<Route> route_;                         // by the attempt that is under way
  std::vector<std::shared_ptr<ModelService>> services_;  // outlive their requests' handles
  std::vector<std::unique_ptr<RequestHandle>> handles_;  // an attempt's must not go while its event is delivered
  std::optional<Started> started_;                       // held back
  std::optional<Error> failed_while_starting_;
  int attempt_ = 0;
  bool starting_ = false;  // generate_async has not returned
  bool answering_ = false;
  bool over_ = false;
};

void Failover::run(std::optional<Error> failure) {
  for (;;) {
    std::optional<Error> end;
    std::shared_ptr<ModelService> service;
    GenerateRequest request;
    int attempt = 0;
    {
      std::lock_guard lock(mutex_);
      if (over_) return;
      auto next = route_->next(failure ? &*failure : nullptr);
      if (next) {
        service = *std::move(next);
        services_.push_back(service);
        request = request_;
        attempt = ++attempt_;
        starting_ = true;
      } else {
        end = std::move(next).error();
        over_ = true;
        route_->on_end(Route::End::failed, &*end);
      }
    }
    if (end) return sink_->on_event(Failed{*std::move(end)});
    auto handle = service->generate_async(std::move(request), std::make_shared<Sink>(shared_from_this(), attempt));
    std::lock_guard lock(mutex_);
    starting_ = false;
    if (over_) return;  // cancelled meanwhile, or answered in full: the handle goes, after the lock
    if (handle != nullptr) handles_.push_back(std::move(handle));
    if (!failed_while_starting_) return;
    failure = std::exchange(failed_while_starting_, std::nullopt);
  }
}

void Failover::take(int attempt, Event event) {
  std::optional<Started> started;
  std::optional<Error> again;
  {
    std::lock_guard lock(mutex_);
    if (over_ || attempt != attempt_) return;
    auto* failed = std::get_if<Failed>(&event);
    if (failed != nullptr && !answering_) {
      started_.reset();
      if (starting_) {
        failed_while_starting_ = std::move(failed->error);
        return;
      }
      again = std::move(failed->error);
    } else if (auto* begun = std::get_if<Started>(&event); begun != nullptr && !answering_) {
      started_ = std::move(*begun);
      return;
    } else {
      if (!answering_) {
        answering_ = true;
        request_ = {};
        route_->on_answer();
      }
      started = std::exchange(started_, std::nullopt);
      if (failed != nullptr || std::holds_alternative<Finished>(event)) {
        over_ = true;
        route_->on_end(failed != nullptr ? Route::End::failed : Route::End::finished,
                       failed != nullptr ? &failed->error : nullptr);
      }
    }
  }
  if (again) return run(std::move(again));
  if (started) sink_->on_event(*std::move(started));
  sink_->on_event(std::move(event));
}

// With the owner's handle goes all that is held, on the owner's thread: a service must not end on its own.
void Failover::cancel() {
  std::vector<std::shared_ptr<ModelService>> services;
  std::vector<std::unique_ptr<RequestHandle>> handles;
  std::unique_ptr<Route> route;
  std::lock_guard lock(mutex_);
  if (!std::exchange(over_, true)) route_->on_end(Route::End::cancelled, nullptr);
  services.swap(services_);
  handles.swap(handles_);
  route.swap(route_);
}

class Handle final : public RequestHandle {
 public:
  explicit Handle(std::shared_ptr<Failover> request) : request_(std::move(request)) {}
  ~Handle() override { request_->cancel(); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

 private:
  const std::shared_ptr<Failover> request_;
};

}  // namespace

bool another_may_do(const Error& error) {
  return error.code == ErrorCode::unavailable || error.code == ErrorCode::internal ||
         error.code == ErrorCode::overloaded;
}

std::unique_ptr<RequestHandle> generate_with_failover(GenerateRequest request, std::shared_ptr<EventSink> sink,
                                                      std::unique_ptr<Route> route) {
  auto failover = std::make_shared<Failover>(std::move(request), std::move(sink), std::move(route));
  failover->run(std::nullopt);
  return std::make_unique<Handle>(std::move(failover));
}

}  // namespace xgen::inference
