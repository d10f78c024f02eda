#include "gateway/gateway_service.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "base/log.h"
#include "inference/failover.h"

namespace xgen::gateway {
namespace {

using inference::ModelService;
using Clock = std::chrono::steady_clock;
using Service = std::shared_ptr<ModelService>;
using Outcome = Balancer::Outcome;

constexpr std::chrono::seconds kRest{1};  // of a replica that had no room, if it does not say how long

Outcome outcome_of(const Error& error) {
  switch (error.code) {
    case ErrorCode::unavailable:
      return Outcome::failed;
    case ErrorCode::internal:
      return Outcome::doubtful;
    case ErrorCode::timeout:
      return Outcome::timed_out;
    case ErrorCode::cancelled:
      return Outcome::cancelled;
    default:
      // Also a refusal: it may come from this side, before the replica has heard anything.
      return Outcome::neutral;
  }
}

}  // namespace

// What the gateway and the requests that are under way share.
class GatewayService::State {
 public:
  State(GatewayOptions options, ReplicaFactory factory)
      : options_(std::move(options)), factory_(std::move(factory)), balancer_(options_.balancer) {}

  const GatewayOptions& options() const { return options_; }

  void set_replicas(const std::vector<std::string>& names);

  struct Picked {
    Service service;
    Balancer::Pick pick;
  };
  // Errors: unavailable, with when to try again.
  Result<Picked> pick(std::span<const std::uint64_t> chunks, const std::set<std::string>& tried);
  void answered(Picked& picked) {
    std::lock_guard lock(mutex_);
    if (is_there(picked)) balancer_.answered(picked.pick, Clock::now());
  }
  // Whose request it was, for the log; empty: not known.
  struct Whose {
    std::string request_id;
    trace::Context trace;
  };
  void ended(const Picked& picked, Outcome outcome, const Error* error, const Whose& whose);

  std::vector<Service> services() const {
    std::lock_guard lock(mutex_);
    std::vector<Service> out;
    for (const auto& [name, service] : services_) out.push_back(service);
    return out;
  }
  inference::ServiceStats stats() const;
  void close();
  std::vector<inference::ReplicaState> states() {
    std::vector<Service> gone;  // let go of without the lock
    std::lock_guard lock(mutex_);
    gone = refresh(Clock::now());
    return balancer_.states(Clock::now());
  }

 private:
  // What it returns is to be let go of without the lock.
  [[nodiscard]] std::vector<Service> refresh(Time now);
  std::vector<Service> take_gone();
  // Whether what was picked is still the replica of its name.
  bool is_there(const Picked& picked) const {
    const auto found = services_.find(picked.pick.name);
    return found != services_.end() && found->second == picked.service;
  }

  const GatewayOptions options_;
  const ReplicaFactory factory_;
  mutable std::mutex mutex_;
  Balancer balancer_;
  std::map<std::string, Service> services_;
  std::vector<Service> leaving_;  // no replicas any more; their last requests run
  inference::ServiceStats gone_;  // counters of those that have left
  bool closed_ = false;
  Time refreshed_{};
};

void GatewayService::State::set_replicas(const std::vector<std::string>& names) {
  std::vector<Service> gone;  // let go of without the lock
  std::lock_guard lock(mutex_);
  if (closed_) return;
  balancer_.set_replicas(names);
  for (auto it = services_.begin(); it != services_.end();) {
    if (std::find(names.begin(), names.end(), it->first) != names.end()) {
      ++it;
      continue;
    }
    log::info("gateway", "replica gone", {{"model", options_.model}, {"replica", it->first}});
    leaving_.push_back(std::move(it->second));
    it = services_.erase(it);
  }
  for (const std::string& name : names) {
    if (services_.contains(name)) continue;
    log::info("gateway", "replica", {{"model", options_.model}, {"replica", name}});
    services_.emplace(name, factory_(name));
  }
  refreshed_ = {};
  gone = take_gone();
}

// Those of the leaving whose last request has gone; what they have counted stays.
std::vector<Service> GatewayService::State::take_gone() {
  const auto gone =
      std::stable_partition(leaving_.begin(), leaving_.end(), [](const Service& each) { return each.use_count() > 1; });
  std::vector<Service> out(std::make_move_iterator(gone), std::make_move_iterator(leaving_.end()));
  leaving_.erase(gone, leaving_.end());
  for (const Service& each : out) inference::add_past(gone_, each->stats());
  return out;
}

inference::ServiceStats GatewayService::State::stats() const {
  std::lock_guard lock(mutex_);
  inference::ServiceStats sum = gone_;
  for (const auto& [name, service] : services_) inference::add(sum, service->stats());
  for (const Service& each : leaving_) inference::add(sum, each->stats());
  return sum;
}

void GatewayService::State::close() {
  std::vector<Service> all;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    all = leaving_;
    for (const auto& [name, service] : services_) all.push_back(service);
  }
  for (const Service& each : all) each->close();
}

std::vector<Service> GatewayService::State::refresh(Time now) {
  if (refreshed_ != Time() && now - refreshed_ < options_.refresh_interval) return {};
  refreshed_ = now;
  for (const auto& [name, service] : services_) {
    const bool well = service->health().state == inference::Health::State::ready;
    balancer_.checked(name, well ? std::optional(service->load()) : std::nullopt);
  }
  return take_gone();
}

Result<GatewayService::State::Picked> GatewayService::State::pick(std::span<const std::uint64_t> chunks,
                                                                  const std::set<std::string>& tried) {
  const Time now = Clock::now();
  std::vector<Service> gone;  // let go of without the lock
  std::lock_guard lock(mutex_);
  gone = refresh(now);
  if (auto pick = balancer_.pick(chunks, tried, now)) {
    Service service = services_.at(pick->name);
    return Picked{std::move(service), *std::move(pick)};
  }
  Error error =
      make_error(ErrorCode::unavailable,
                 "No replica of the model '" + options_.model + "' " +
                     (services_.empty() ? "is known: " + options_.none_known + "."
                                        : "can be reached (" + std::to_string(services_.size()) + " are known)."),
                 "model");
  const auto chance = balancer_.next_chance(now);
  const Time when = chance.value_or(now);  // may be past, while a probe is under way
  error.retry_after_s = std::max(1, static_cast<int>(std::chrono::ceil<std::chrono::seconds>(when - now).count()));
  return error;
}

void GatewayService::State::ended(const Picked& picked, Outcome outcome, const Error* error, const Whose& whose) {
  const Time now = Clock::now();
  bool failed = outcome == Outcome::failed || outcome == Outcome::doubtful;
  std::lock_guard lock(mutex_);
  if (is_there(picked)) {
    failed = balancer_.ended(picked.pick, outcome, now);
    if (error != nullptr && error->code == ErrorCode::overloaded)
      balancer_.rest(picked.pick.name, now + std::max(std::chrono::seconds(error->retry_after_s), kRest));
  }
  if (!failed || !log::enabled(log::Level::warn)) return;
  std::vector<log::Field> fields{{"model", options_.model},
                                 {"replica", picked.pick.name},
                                 {"reason", error != nullptr ? error->message.substr(0, log::kMaxQuoted)
                                                             : "It gave no token for as long as its client waited."}};
  if (!whose.request_id.empty()) fields.emplace_back("request_id", whose.request_id);
  log::write(log::Level::warn, "gateway", trace::with_id("a replica failed a request", whose.trace), fields);
}

class GatewayService::GenerateRoute final : public inference::Route {
 public:
  GenerateRoute(std::shared_ptr<State> state, const inference::GenerateRequest& request)
      : state_(std::move(state)),
        chunks_(chunk_hashes(request)),
        deadline_(request.deadline),
        whose_{request.request_id, request.trace.context} {}

  Result<Service> next(const Error* failure) override {
    if (failure != nullptr) {
      state_->ended(*std::exchange(picked_, std::nullopt), outcome_of(*failure), failure, whose_);
      if (!inference::another_may_do(*failure) || static_cast<int>(tried_.size()) >= state_->options().max_attempts ||
          (deadline_ && Clock::now() >= *deadline_))
        return *failure;
    }
    auto picked = state_->pick(chunks_, tried_);
    if (!picked) return failure != nullptr ? *failure : std::move(picked).error();
    tried_.insert(picked->pick.name);
    picked_ = *std::move(picked);
    return picked_->service;
  }
  void on_answer() override { state_->answered(*picked_); }
  void on_end(End end, const Error* failure) override {
    if (!picked_) return;
    const Outcome outcome = end == End::finished    ? Outcome::good
                            : end == End::cancelled ? Outcome::cancelled
                                                    : outcome_of(*failure);
    state_->ended(*picked_, outcome, failure, whose_);
  }

 private:
  const std::shared_ptr<State> state_;
  const std::vector<std::uint64_t> chunks_;
  const std::optional<Time> deadline_;
  const State::Whose whose_;
  std::set<std::string> tried_;
  std::optional<State::Picked> picked_;
};

GatewayService::GatewayService(GatewayOptions options, ReplicaFactory factory, const std::vector<std::string>& replicas)
    : state_(std::make_shared<State>(std::move(options), std::move(factory))) {
  state_->set_replicas(replicas);
}
GatewayService::~GatewayService() = default;

void GatewayService::set_replicas(const std::vector<std::string>& names) { state_->set_replicas(names); }

std::unique_ptr<inference::RequestHandle> GatewayService::generate_async(inference::GenerateRequest request,
                                                                         std::shared_ptr<inference::EventSink> sink) {
  auto route = std::make_unique<GenerateRoute>(state_, request);
  return inference::generate_with_failover(std::move(request), std::move(sink), std::move(route));
}

// Asks one replica after the other, as far as their faults are their own. `ask` may be called several times; `failure`
// is that of the replica before.
template <class T>
void GatewayService::ask_one(std::shared_ptr<State> state, Ask<T> ask, std::function<void(Result<T>)> done,
                             std::set<std::string> tried, std::optional<Error> failure) {
  auto picked = state->pick({}, tried);
  if (!picked) return done(failure ? *std::move(failure) : std::move(picked).error());
  tried.insert(picked->pick.name);
  const Service service = picked->service;
  ask(*service, [state, ask, done = std::move(done), tried = std::move(tried),
                 picked = *std::move(picked)](Result<T> result) mutable {
    const Error* error = result ? nullptr : &result.error();
    state->ended(picked, error == nullptr ? Outcome::good : outcome_of(*error), error, {});
    if (error != nullptr && inference::another_may_do(*error) &&
        static_cast<int>(tried.size()) < state->options().max_attempts)
      return ask_one<T>(std::move(state), std::move(ask), std::move(done), std::move(tried), *error);
    done(std::move(result));
  });
}

void GatewayService::tokenize_async(inference::TokenizeRequest request,
                                    std::function<void(Result<inference::Tokenized>)> done) {
  ask_one<inference::Tokenized>(state_,
                                [request = std::move(request)](ModelService& service, auto answer) {
                                  service.tokenize_async(request, std::move(answer));
                                },
                                std::move(done), {});
}

void GatewayService::detokenize_async(inference::DetokenizeRequest request,
                                      std::function<void(Result<std::string>)> done) {
  ask_one<std::string>(state_,
                       [request = std::move(request)](ModelService& service, auto answer) {
                         service.detokenize_async(request, std::move(answer));
                       },
                       std::move(done), {});
}

inference::Capabilities GatewayService::capabilities() const {
  const auto services = state_->services();
  return services.empty() ? inference::Capabilities{.chat = true} : services.front()->capabilities();
}

inference::Health GatewayService::health() const {
  inference::Health health;
  std::size_t in = 0;
  const auto states = state_->states();
  for (const auto& each : states) {
    if (each.healthy && !each.open) {
      ++in;
      continue;
    }
    health.detail += (health.detail.empty() ? "" : ", ") + each.name + (each.healthy ? " fails" : " is not ready");
  }
  if (states.empty()) health.detail = "no replica is known: " + state_->options().none_known;
  // Some are enough to serve. Without any, this process is as alive as before.
  if (in == 0) health.state = inference::Health::State::degraded;
  return health;
}

inference::ServiceStats GatewayService::stats() const { return state_->stats(); }

inference::Load GatewayService::load() const {
  inference::Load sum;
  for (const Service& each : state_->services()) {
    const inference::Load one = each->load();
    sum.running += one.running;
    sum.waiting += one.waiting;
    sum.kv_tokens += one.kv_tokens;
    sum.own += one.own;
  }
  return sum;
}

std::vector<inference::ReplicaState> GatewayService::replicas() const { return state_->states(); }

void GatewayService::close() { state_->close(); }

}  // namespace xgen::gateway
