#include "registry/slot.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <utility>

namespace xgen::registry {
namespace {

// Of requests without a deadline of their own.
constexpr std::chrono::minutes kPatience{10};

}  // namespace

class Slot::Users {
 public:
  void leave() { last_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed); }
  Clock::time_point last() const { return Clock::time_point(Clock::duration(last_.load(std::memory_order_relaxed))); }

 private:
  std::atomic<Clock::rep> last_{0};
};

// A request that a service computes, and the reference that keeps the service. The request goes first.
class Slot::Handle final : public inference::RequestHandle {
 public:
  Handle(Use use, std::unique_ptr<inference::RequestHandle> request)
      : use_(std::move(use)), request_(std::move(request)) {}
  ~Handle() override {
    request_.reset();
    use_.users->leave();
  }

 private:
  Use use_;
  std::unique_ptr<inference::RequestHandle> request_;
};

// A request that waited, or still does.
class Slot::WaitingHandle final : public inference::RequestHandle {
 public:
  struct State {
    std::mutex mutex;
    bool cancelled = false;
    std::unique_ptr<inference::RequestHandle> request;
  };
  WaitingHandle(std::shared_ptr<State> state, std::weak_ptr<Slot> slot, std::uint64_t waiter)
      : state_(std::move(state)), slot_(std::move(slot)), waiter_(waiter) {}
  ~WaitingHandle() override {
    if (const auto slot = slot_.lock()) slot->withdraw(waiter_);
    std::unique_ptr<inference::RequestHandle> request;
    std::lock_guard lock(state_->mutex);
    state_->cancelled = true;
    request = std::move(state_->request);
  }

 private:
  std::shared_ptr<State> state_;
  std::weak_ptr<Slot> slot_;
  std::uint64_t waiter_;
};

Slot::Slot(std::function<void()> wanted) : wanted_(std::move(wanted)) { capabilities_.chat = true; }

void Slot::limit_waiting(std::size_t requests) {
  std::lock_guard lock(mutex_);
  max_waiting_ = requests;
}

void Slot::pass_on_to(std::shared_ptr<Slot> successor) {
  std::lock_guard lock(mutex_);
  successor_ = std::move(successor);
}

Slot::Service Slot::leave() {
  if (service_ != nullptr) capabilities_ = service_->capabilities();
  users_.reset();
  return std::exchange(service_, nullptr);
}

Slot::Use Slot::use() { return {service_, users_}; }

bool Slot::used() const { return users_ != nullptr && users_.use_count() > 1; }

void Slot::open(Service service) {
  std::deque<Waiter> waiters;
  Use use;
  {
    std::lock_guard lock(mutex_);
    service_ = std::move(service);
    users_ = std::make_shared<Users>();
    use = this->use();
    refusal_.reset();
    last_used_ = Clock::now();
    waiters.swap(waiters_);
  }
  for (Waiter& each : waiters) each.go(use);
}

Slot::Service Slot::hold() {
  std::lock_guard lock(mutex_);
  refusal_.reset();
  return leave();
}

Slot::Service Slot::hold(const Error& error) {
  Service left;
  std::deque<Waiter> waiters;
  {
    std::lock_guard lock(mutex_);
    left = leave();
    refusal_.reset();
    waiters.swap(waiters_);
  }
  for (Waiter& each : waiters) each.go(error);
  return left;
}

Slot::Service Slot::refuse(const Error& error) {
  Service left;
  std::deque<Waiter> waiters;
  std::shared_ptr<Slot> next;
  {
    std::lock_guard lock(mutex_);
    left = leave();
    refusal_ = error;
    next = successor_;
    waiters.swap(waiters_);
  }
  for (Waiter& each : waiters) {
    if (next != nullptr)
      next->enter(std::move(each));
    else
      each.go(error);
  }
  return left;
}

Slot::Service Slot::hold_if_unused(Clock::time_point unused_since) {
  std::lock_guard lock(mutex_);
  // Requests become users under this mutex, so what is unused stays unused here.
  if (service_ == nullptr || used() || std::max(last_used_, users_->last()) > unused_since) return nullptr;
  return leave();
}

void Slot::expire(Clock::time_point now, const Error& error) {
  std::vector<Waiter> late;
  {
    std::lock_guard lock(mutex_);
    const auto end = std::stable_partition(waiters_.begin(), waiters_.end(),
                                           [&](const Waiter& each) { return each.deadline > now; });
    late.assign(std::make_move_iterator(end), std::make_move_iterator(waiters_.end()));
    waiters_.erase(end, waiters_.end());
  }
  for (Waiter& each : late) each.go(error);
}

std::optional<Clock::time_point> Slot::next_deadline() const {
  std::lock_guard lock(mutex_);
  std::optional<Clock::time_point> next;
  for (const Waiter& each : waiters_) next = next ? std::min(*next, each.deadline) : each.deadline;
  return next;
}

std::size_t Slot::waiting() const {
  std::lock_guard lock(mutex_);
  return waiters_.size();
}

Clock::time_point Slot::last_used() const {
  std::lock_guard lock(mutex_);
  return users_ == nullptr ? last_used_ : std::max(last_used_, users_->last());
}

bool Slot::in_use() const {
  std::lock_guard lock(mutex_);
  return !waiters_.empty() || used();
}

Slot::Service Slot::service() const {
  std::lock_guard lock(mutex_);
  return service_;
}

std::uint64_t Slot::with_service(std::optional<Clock::time_point> deadline, std::function<void(Result<Use>)> go) {
  static std::atomic<std::uint64_t> last{0};
  const std::uint64_t id = ++last;
  enter({id, deadline.value_or(Clock::now() + kPatience), std::move(go)});
  return id;
}

void Slot::enter(Waiter waiter) {
  std::optional<Result<Use>> outcome;  // none: it waits
  std::shared_ptr<Slot> next;
  {
    std::lock_guard lock(mutex_);
    last_used_ = Clock::now();
    if (service_ != nullptr) {
      outcome = use();
    } else if (refusal_ && successor_ != nullptr) {
      next = successor_;
    } else if (refusal_) {
      outcome = *refusal_;
    } else if (waiters_.size() >= max_waiting_) {
      ++refused_;
      Error error = make_error(ErrorCode::overloaded, "Too many requests wait for this model to load already.");
      error.retry_after_s = 1;
      outcome = std::move(error);
    } else {
      const auto place = std::upper_bound(waiters_.begin(), waiters_.end(), waiter.id,
                                          [](std::uint64_t id, const Waiter& each) { return id < each.id; });
      waiters_.insert(place, std::move(waiter));
    }
  }
  if (next != nullptr) {
    next->enter(std::move(waiter));
  } else if (outcome) {
    waiter.go(*std::move(outcome));
  } else {
    wanted_();
  }
}

void Slot::withdraw(std::uint64_t waiter) {
  Waiter gone;  // what it holds ends outside the lock
  std::unique_lock lock(mutex_);
  const auto it = std::lower_bound(waiters_.begin(), waiters_.end(), waiter,
                                   [](const Waiter& each, std::uint64_t id) { return each.id < id; });
  if (it == waiters_.end() || it->id != waiter) {
    const std::shared_ptr<Slot> next = successor_;
    lock.unlock();
    if (next != nullptr) next->withdraw(waiter);
    return;
  }
  gone = std::move(*it);
  waiters_.erase(it);
  lock.unlock();
  wanted_();
}

std::unique_ptr<inference::RequestHandle> Slot::generate_async(inference::GenerateRequest request,
                                                               std::shared_ptr<inference::EventSink> sink) {
  // The way of every request of a loaded model, without what only waiting ones need.
  Use use;
  {
    std::lock_guard lock(mutex_);
    last_used_ = Clock::now();
    use = this->use();
  }
  if (use.service != nullptr) {
    auto handle = use.service->generate_async(std::move(request), std::move(sink));
    if (handle == nullptr) return nullptr;
    return std::make_unique<Handle>(std::move(use), std::move(handle));
  }
  auto state = std::make_shared<WaitingHandle::State>();
  const auto deadline = request.deadline;
  auto shared = std::make_shared<inference::GenerateRequest>(std::move(request));  // std::function copies
  const auto waiter = with_service(deadline, [state, shared, sink = std::move(sink)](Result<Use> outcome) {
    std::lock_guard lock(state->mutex);
    if (state->cancelled) return;
    if (!outcome) return sink->on_event(inference::Failed{outcome.error()});
    try {
      auto handle = outcome->service->generate_async(std::move(*shared), sink);
      if (handle != nullptr) state->request = std::make_unique<Handle>(*std::move(outcome), std::move(handle));
    } catch (const std::exception& fault) {
      // On the registry's thread, where others wait as well: this request fails alone.
      sink->on_event(inference::Failed{make_error(ErrorCode::internal, fault.what())});
    }
  });
  return std::make_unique<WaitingHandle>(std::move(state), weak_from_this(), waiter);
}

void Slot::tokenize_async(inference::TokenizeRequest request, std::function<void(Result<inference::Tokenized>)> done) {
  const auto deadline = request.deadline;
  with_service(deadline, [request = std::move(request), done = std::move(done)](Result<Use> outcome) mutable {
    if (!outcome) return done(std::move(outcome).error());
    inference::ModelService& service = *outcome->service;
    service.tokenize_async(std::move(request), [kept = *std::move(outcome), done = std::move(done)](
                                                   Result<inference::Tokenized> result) { done(std::move(result)); });
  });
}

void Slot::detokenize_async(inference::DetokenizeRequest request, std::function<void(Result<std::string>)> done) {
  const auto deadline = request.deadline;
  with_service(deadline, [request = std::move(request), done = std::move(done)](Result<Use> outcome) mutable {
    if (!outcome) return done(std::move(outcome).error());
    inference::ModelService& service = *outcome->service;
    service.detokenize_async(std::move(request), [kept = *std::move(outcome), done = std::move(done)](
                                                     Result<std::string> result) { done(std::move(result)); });
  });
}

inference::Capabilities Slot::capabilities() const {
  const Service service = this->service();
  if (service != nullptr) return service->capabilities();
  std::lock_guard lock(mutex_);
  return capabilities_;
}

inference::Health Slot::health() const {
  const Service service = this->service();
  return service != nullptr ? service->health() : inference::Health{};
}

std::shared_ptr<void> Slot::count(const inference::ModelService& service) {
  {
    std::lock_guard lock(stats_mutex_);
    counted_.push_back(&service);
  }
  return {this, [self = shared_from_this(), &service](void*) {
            std::lock_guard lock(self->stats_mutex_);
            std::erase(self->counted_, &service);
            try {
              inference::add_past(self->past_, service.stats());
            } catch (const std::exception&) {  // no memory for a copy: what it has counted is lost
            }
          }};
}

inference::ServiceStats Slot::stats() const {
  std::lock_guard lock(stats_mutex_);
  inference::ServiceStats stats = past_;
  for (const inference::ModelService* each : counted_) inference::add(stats, each->stats());
  std::lock_guard waiting_lock(mutex_);
  stats.requests_waiting += waiters_.size();
  stats.rejected_loading += refused_;
  return stats;
}

void Slot::close() {
  if (const Service left = refuse(make_error(ErrorCode::unavailable, "The model is closed."))) left->close();
}

}  // namespace xgen::registry
