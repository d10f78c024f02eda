// The registry with loaders and services that compute nothing, so that every moment of loading and unloading can be
// held still.
#include "registry/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <stop_token>
#include <thread>

#include "base/log.h"

namespace xgen::registry {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

// Requests stay open until finish_all() or close().
class FakeService final : public inference::ModelService {
 public:
  std::unique_ptr<inference::RequestHandle> generate_async(inference::GenerateRequest,
                                                           std::shared_ptr<inference::EventSink> sink) override {
    struct Handle final : inference::RequestHandle {
      explicit Handle(std::function<void()> at_end) : end(std::move(at_end)) {}
      ~Handle() override { end(); }
      std::function<void()> end;
    };
    std::lock_guard lock(state_->mutex);
    if (state_->closed) {
      sink->on_event(inference::Failed{make_error(ErrorCode::unavailable, "closed")});
      return nullptr;
    }
    const int id = state_->next++;
    state_->open[id] = std::move(sink);
    return std::make_unique<Handle>([state = state_, id] {
      std::lock_guard guard(state->mutex);
      state->open.erase(id);
    });
  }
  void finish_all() { end_all(inference::Finished{}); }
  void close() override {
    {
      std::lock_guard lock(state_->mutex);
      state_->closed = true;
    }
    end_all(inference::Failed{make_error(ErrorCode::unavailable, "closed")});
  }
  void tokenize_async(inference::TokenizeRequest, std::function<void(Result<inference::Tokenized>)> done) override {
    done(inference::Tokenized{});
  }
  void detokenize_async(inference::DetokenizeRequest, std::function<void(Result<std::string>)> done) override {
    done(std::string("text"));
  }
  void on_failure(std::function<void(Error)> failed) override {
    std::lock_guard lock(state_->mutex);
    failed_ = std::move(failed);
  }
  void fail(const std::string& reason) {
    close();
    std::function<void(Error)> failed;
    {
      std::lock_guard lock(state_->mutex);
      failed = failed_;
    }
    if (failed) failed(make_error(ErrorCode::unavailable, reason));
  }
  inference::Capabilities capabilities() const override { return {}; }
  inference::Health health() const override { return {}; }
  inference::ServiceStats stats() const override {
    inference::ServiceStats stats;
    stats.generation_tokens = tokens;
    stats.kv_blocks = 7;
    std::lock_guard lock(state_->mutex);
    stats.requests_running = state_->open.size();
    return stats;
  }
  std::atomic<std::uint64_t> tokens{0};

 private:
  struct State {
    std::mutex mutex;
    bool closed = false;
    int next = 0;
    std::map<int, std::shared_ptr<inference::EventSink>> open;
  };
  void end_all(inference::Event event) {
    std::map<int, std::shared_ptr<inference::EventSink>> open;
    {
      std::lock_guard lock(state_->mutex);
      open.swap(state_->open);
    }
    for (auto& [id, sink] : open) sink->on_event(event);
  }
  std::shared_ptr<State> state_ = std::make_shared<State>();
  std::function<void(Error)> failed_;
};

// Gives borrowed memory back for models that borrow, as an engine's thread would.
class Giver {
 public:
  ~Giver() {
    {
      std::lock_guard lock(mutex_);
      over_ = true;
    }
    wanted_.notify_all();
  }
  void want(std::weak_ptr<MemoryBudget::Account> from, std::uint64_t bytes) {
    {
      std::lock_guard lock(mutex_);
      queue_.emplace_back(std::move(from), bytes);
    }
    wanted_.notify_all();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wanted_.wait(lock, [this] { return over_ || !queue_.empty(); });
      if (over_) return;
      const auto [from, bytes] = std::move(queue_.back());
      queue_.pop_back();
      lock.unlock();
      if (const auto account = from.lock()) account->give_back(std::min(bytes, account->borrowed()));
      lock.lock();
    }
  }
  std::mutex mutex_;
  std::condition_variable wanted_;
  std::vector<std::pair<std::weak_ptr<MemoryBudget::Account>, std::uint64_t>> queue_;
  bool over_ = false;
  std::jthread thread_{[this] { run(); }};
};

// Loads at once, unless it is told to wait or to fail.
class FakeLoader final : public ModelLoader {
 public:
  FakeLoader(std::uint64_t least, std::uint64_t wanted) : need_{least, wanted} {}

  Result<Need> need() override {
    const Alone alone(*this, true);
    ++needs_;
    std::unique_lock lock(mutex_);
    may_load_.wait(lock, [this] { return !need_held_; });
    lock.unlock();
    if (throws_) throw std::runtime_error("thrown by need");
    return need_;
  }
  Result<std::shared_ptr<inference::ModelService>> load(std::shared_ptr<MemoryBudget::Account> account,
                                                        const std::function<void(double)>& progress) override {
    const Alone alone(*this, true);
    progress(0.5);
    std::unique_lock lock(mutex_);
    ++loads_;
    reserved_ = account->reserved();
    account_ = account;
    if (giver_ != nullptr) {
      account->may_lend(need_.least, kMiB);
      account->on_reclaim([giver = giver_, owner = account_](std::uint64_t bytes, bool) { giver->want(owner, bytes); });
      account->borrow(10 * kMiB);
    }
    may_load_.wait(lock, [this] { return !held_; });
    if (std::exchange(reports_again_, false)) {
      ended_early_ = true;
      progress(0.7);
      ended_early_ = false;
    }
    if (!fault_.empty()) return make_error(ErrorCode::invalid_argument, fault_);
    if (throws_) throw std::runtime_error("thrown by load");
    auto service = std::make_shared<FakeService>();
    service_ = service;
    services_.push_back(service);
    return std::shared_ptr<inference::ModelService>(std::move(service));
  }
  std::uint64_t kept_asleep() const override { return asleep_; }
  std::uint64_t limit() const override { return limit_; }
  void set_limit(std::uint64_t bytes) override { limit_ = bytes; }
  std::shared_ptr<MemoryBudget::Account> account() { return account_.lock(); }
  void borrow(Giver& giver) { giver_ = &giver; }
  void release() override {
    const Alone alone(*this, false);
    std::unique_lock lock(mutex_);
    may_load_.wait(lock, [this] { return !release_held_; });
    ++releases_;
  }

  // Its files come first: until they are let go, or it is stopped.
  bool fetches() const override { return fetches_; }
  Status fetch(const std::function<void(double, std::string)>& progress, const std::stop_token& stop) override {
    EXPECT_EQ(++fetching_, 1) << "two fetches of one loader";
    progress(0.5, "downloading half");
    std::unique_lock lock(mutex_);
    ++fetched_;
    fetch_moved_.wait(lock, stop, [this] { return !fetch_held_; });
    const bool stopped = stop.stop_requested();
    --fetching_;
    if (stopped) return make_error(ErrorCode::cancelled, "stopped");
    if (!fetch_fault_.empty()) return make_error(ErrorCode::unauthenticated, fetch_fault_);
    return {};
  }
  void fetch_first(bool held = false) {
    set([&] {
      fetches_ = true;
      fetch_held_ = held;
    });
    fetch_moved_.notify_all();
  }
  void fail_fetch_with(std::string fault) {
    set([&] { fetch_fault_ = std::move(fault); });
  }
  int fetched() const { return fetched_; }
  int fetching() const { return fetching_; }

  void hold() {
    set([this] { held_ = true; });
  }
  void hold_need() {
    set([this] { need_held_ = true; });
  }
  void hold_release() {
    set([this] { release_held_ = true; });
  }
  void let_go() {
    set([this] { held_ = need_held_ = release_held_ = false; });
  }
  void fail_with(std::string fault) {
    set([&] { fault_ = std::move(fault); });
  }
  void keep_asleep(std::uint64_t bytes) { asleep_ = bytes; }
  void report_again() {
    set([this] { reports_again_ = true; });
  }
  bool ended_early() const { return ended_early_; }
  void throw_something() { throws_ = true; }
  int needs() const { return needs_; }
  // Whether two threads were in it at once, or it was asked to work while its service was still there.
  bool abused() const { return abused_; }
  int loads() const { return loads_; }
  int releases() const { return releases_; }
  std::uint64_t reserved() const { return reserved_; }
  // While a test holds it, need() and load() wait: it may be all that is left of it.
  std::shared_ptr<FakeService> service() {
    std::lock_guard lock(mutex_);
    auto live = service_.lock();
    if (live == nullptr) return nullptr;
    ++borrowed_;
    FakeService* const raw = live.get();
    return {raw, [this, live = std::move(live)](FakeService*) mutable {
              live.reset();
              --borrowed_;
            }};
  }
  void finish_everything() {
    std::vector<std::weak_ptr<FakeService>> services;
    {
      std::lock_guard lock(mutex_);
      services = services_;
      ++borrowed_;
    }
    for (const auto& each : services)
      if (const auto live = each.lock()) live->finish_all();
    --borrowed_;
  }

 private:
  template <class Fn>
  void set(Fn&& fn) {
    {
      std::lock_guard lock(mutex_);
      fn();
    }
    may_load_.notify_all();
  }
  struct Alone {
    Alone(FakeLoader& owner, bool needs_no_service) : loader(owner) {
      if (loader.inside_.exchange(true)) loader.abused_ = true;
      if (needs_no_service && loader.has_service()) loader.abused_ = true;
    }
    ~Alone() { loader.inside_ = false; }
    Alone(const Alone&) = delete;
    Alone& operator=(const Alone&) = delete;
    FakeLoader& loader;
  };
  const Need need_;
  bool has_service() {
    const auto end = std::chrono::steady_clock::now() + 2s;
    for (;;) {
      {
        std::lock_guard lock(mutex_);
        if (borrowed_ == 0 || std::chrono::steady_clock::now() > end) return !service_.expired();
      }
      std::this_thread::yield();
    }
  }
  bool need_held_ = false;
  bool release_held_ = false;
  std::atomic<int> borrowed_{0};
  std::atomic<bool> inside_{false};
  std::atomic<bool> abused_{false};
  std::atomic<bool> throws_{false};
  std::atomic<bool> ended_early_{false};
  bool reports_again_ = false;
  std::atomic<int> needs_{0};
  std::mutex mutex_;
  std::condition_variable may_load_;
  bool held_ = false;
  std::string fault_;
  std::condition_variable_any fetch_moved_;
  std::atomic<bool> fetches_{false};
  bool fetch_held_ = false;
  std::string fetch_fault_;
  std::atomic<int> fetched_{0};
  std::atomic<int> fetching_{0};
  std::atomic<std::uint64_t> asleep_{0};
  std::atomic<std::uint64_t> limit_{UINT64_MAX};
  std::weak_ptr<MemoryBudget::Account> account_;
  Giver* giver_ = nullptr;
  std::atomic<int> loads_{0};
  std::atomic<int> releases_{0};
  std::atomic<std::uint64_t> reserved_{0};
  std::weak_ptr<FakeService> service_;
  std::vector<std::weak_ptr<FakeService>> services_;
};

// What happened to one request.
struct Sink final : inference::EventSink {
  void on_event(inference::Event event) override {
    {
      std::lock_guard lock(mutex);
      if (auto* failed = std::get_if<inference::Failed>(&event)) error = failed->error;
      ++terminals;
    }
    ended.notify_all();
  }
  bool wait(std::chrono::milliseconds patience = 5s) {
    std::unique_lock lock(mutex);
    return ended.wait_for(lock, patience, [this] { return terminals > 0; });
  }
  std::mutex mutex;
  std::condition_variable ended;
  int terminals = 0;
  std::optional<Error> error;
};

struct Request {
  std::shared_ptr<Sink> sink = std::make_shared<Sink>();
  std::unique_ptr<inference::RequestHandle> handle;
};

template <class Condition>
bool eventually(Condition&& condition, std::chrono::milliseconds patience = 5s) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

class RegistryTest : public testing::Test {
 protected:
  RegistryTest() : budget_(std::make_shared<MemoryBudget>(100 * kMiB)) {}

  static ModelDefinition model(const std::string& name, std::uint64_t mib, bool on_demand = false) {
    ModelDefinition definition;
    definition.name = name;
    definition.on_demand = on_demand;
    definition.fingerprint = name + std::to_string(mib);
    definition.loader = std::make_shared<FakeLoader>(mib * kMiB, mib * kMiB);
    return definition;
  }
  static FakeLoader& loader(const ModelDefinition& definition) { return static_cast<FakeLoader&>(*definition.loader); }
  void make(std::vector<ModelDefinition> definitions, RegistryOptions options = {}) {
    registry_ = std::make_unique<Registry>(budget_, options);
    ASSERT_TRUE(registry_->apply(std::move(definitions)).ok());
  }
  ModelState state(const std::string& name) { return registry_->entry(name)->state; }
  bool becomes(const std::string& name, ModelState wanted) {
    return eventually([&] { return state(name) == wanted; });
  }
  Request ask(const std::string& name, std::optional<std::chrono::milliseconds> patience = {}) {
    Request request;
    inference::GenerateRequest generate;
    if (patience) generate.deadline = std::chrono::steady_clock::now() + *patience;
    auto service = registry_->find(name);
    if (!service) {
      request.sink->on_event(inference::Failed{service.error()});
    } else {
      request.handle = (*service)->generate_async(std::move(generate), request.sink);
    }
    return request;
  }
  Status act(void (Registry::*action)(std::string_view, Registry::Done), const std::string& name) {
    std::promise<Status> done;
    (registry_.get()->*action)(name, [&](Status status) { done.set_value(std::move(status)); });
    return done.get_future().get();
  }
  std::uint64_t reserved() const {
    std::uint64_t sum = 0;
    for (const auto& use : budget_->uses()) sum += use.reserved;
    return sum;
  }

  std::shared_ptr<MemoryBudget> budget_;
  std::unique_ptr<Registry> registry_;
};

TEST(Share, EverybodyGetsTheLeastAndAnEqualPartOfTheRest) {
  using V = std::vector<std::uint64_t>;
  EXPECT_EQ(share(100, {}), V{});
  EXPECT_EQ(share(100, {{10, 50}}), V{50});
  EXPECT_EQ(share(100, {{10, 500}}), V{100});
  EXPECT_EQ(share(100, {{10, 20}, {10, 500}, {20, 500}}), (V{20, 35, 45}));
  EXPECT_EQ(share(100, {{60, 60}, {40, 90}}), (V{60, 40}));
}

TEST_F(RegistryTest, LoadsAtStartAndFindsByNameAndAlias) {
  auto a = model("a", 10);
  a.aliases = {"x", "y"};
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  EXPECT_EQ(registry_->find("a").value(), registry_->find("y").value());
  EXPECT_EQ(registry_->entry("x")->name, "a");
  EXPECT_GT(registry_->entry("x")->created, 0);
  EXPECT_EQ(registry_->entry("a")->reserved, 10 * kMiB);
  Request request = ask("x");
  loader(a).service()->finish_all();
  EXPECT_TRUE(request.sink->wait());
  EXPECT_FALSE(request.sink->error);
}

TEST_F(RegistryTest, UnknownLoadingAndFailedModelsAreDifferentErrors) {
  auto a = model("a", 10);
  auto b = model("b", 10);
  loader(a).hold();
  loader(b).fail_with("no such tensor");
  make({a, b});
  EXPECT_EQ(registry_->find("c").error().code, ErrorCode::not_found);
  EXPECT_THAT(registry_->find("c").error().message, HasSubstr("'a', 'b'"));
  EXPECT_EQ(registry_->find("c").error().param, "model");
  ASSERT_TRUE(eventually([&] { return loader(a).loads() == 1; }));
  const auto loading = registry_->find("a");
  ASSERT_FALSE(loading.ok());
  EXPECT_EQ(loading.error().code, ErrorCode::unavailable);
  EXPECT_THAT(loading.error().message, HasSubstr("50%"));
  EXPECT_GT(loading.error().retry_after_s, 0);
  loader(a).let_go();
  ASSERT_TRUE(becomes("b", ModelState::failed));
  EXPECT_EQ(registry_->entry("b")->detail, "no such tensor");
  Request request = ask("b");
  ASSERT_TRUE(request.sink->wait());
  EXPECT_THAT(request.sink->error->message, HasSubstr("no such tensor"));
  EXPECT_EQ(reserved(), 10 * kMiB);  // b's went back
}

TEST_F(RegistryTest, NamesAreUnique) {
  auto a = model("a", 1);
  a.aliases = {"x"};
  make({a});
  EXPECT_FALSE(registry_->apply({model("a", 1), model("a", 2)}).ok());
  auto b = model("b", 1);
  b.aliases = {"a"};
  EXPECT_FALSE(registry_->apply({a, b}).ok());
  EXPECT_EQ(registry_->list().size(), 1u);
}

TEST_F(RegistryTest, ARequestLoadsAModelOnDemandAndWaitsForIt) {
  auto a = model("a", 10, true);
  loader(a).hold();
  make({a});
  EXPECT_EQ(state("a"), ModelState::unloaded);
  EXPECT_EQ(loader(a).loads(), 0);
  Request first = ask("a");
  Request second = ask("a");
  ASSERT_TRUE(becomes("a", ModelState::loading));
  EXPECT_FALSE(first.sink->wait(20ms));
  second.handle.reset();  // its client went away
  loader(a).let_go();
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(eventually([&] { return registry_->entry("a")->in_use; }));
  loader(a).service()->finish_all();
  EXPECT_TRUE(first.sink->wait());
  EXPECT_FALSE(first.sink->error);
  EXPECT_EQ(second.sink->terminals, 0);
  EXPECT_EQ(loader(a).loads(), 1);
}

TEST_F(RegistryTest, AWaitingRequestEndsAtItsDeadlineWithTheProgress) {
  auto a = model("a", 10, true);
  loader(a).hold();
  make({a});
  Request request = ask("a", 50ms);
  ASSERT_TRUE(request.sink->wait());
  EXPECT_EQ(request.sink->error->code, ErrorCode::unavailable);
  EXPECT_THAT(request.sink->error->message, HasSubstr("loading (50%)"));
  EXPECT_GT(request.sink->error->retry_after_s, 0);
  loader(a).let_go();
}

TEST_F(RegistryTest, EvictsTheLeastRecentlyUsedModelThatNobodyUses) {
  auto a = model("a", 40, true);
  auto b = model("b", 40, true);
  auto c = model("c", 40, true);
  make({a, b, c});
  Request using_a = ask("a");
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request used_b = ask("b");
  ASSERT_TRUE(becomes("b", ModelState::ready));
  used_b.handle.reset();
  Request wants_c = ask("c");  // a was used before b, but is in use still
  ASSERT_TRUE(becomes("c", ModelState::ready));
  EXPECT_EQ(state("b"), ModelState::unloaded);
  EXPECT_EQ(state("a"), ModelState::ready);
  EXPECT_EQ(reserved(), 80 * kMiB);
  EXPECT_EQ(registry_->counts().evictions, 1u);
  // Nobody can go: the numbers say so.
  Request wants_b = ask("b");
  ASSERT_TRUE(wants_b.sink->wait());
  EXPECT_EQ(wants_b.sink->error->code, ErrorCode::unavailable);
  EXPECT_THAT(wants_b.sink->error->message, HasSubstr("needs 40.0 MiB"));
  EXPECT_THAT(wants_b.sink->error->message, HasSubstr("'a' 40.0 MiB"));
  EXPECT_GT(wants_b.sink->error->retry_after_s, 0);
  // Later there is room again, without anybody's help.
  using_a.handle.reset();
  Request again = ask("b");
  ASSERT_TRUE(becomes("b", ModelState::ready));
  EXPECT_EQ(state("a"), ModelState::unloaded);
}

TEST_F(RegistryTest, SleepingModelsAreEvictedUnlessTheyArePinned) {
  auto a = model("a", 50);
  auto b = model("b", 50);
  b.pin = true;
  auto c = model("c", 60, true);
  make({a, b, c});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(becomes("b", ModelState::ready));
  loader(a).keep_asleep(30 * kMiB);
  loader(b).keep_asleep(30 * kMiB);
  EXPECT_TRUE(act(&Registry::sleep, "b").ok());
  EXPECT_TRUE(act(&Registry::sleep, "a").ok());
  const Request wants_c = ask("c");
  EXPECT_TRUE(becomes("c", ModelState::ready));
  EXPECT_EQ(state("a"), ModelState::unloaded);
  EXPECT_EQ(state("b"), ModelState::sleeping);
  EXPECT_EQ(reserved(), 90 * kMiB);
  EXPECT_EQ(registry_->counts().evictions, 1u);
  EXPECT_EQ(loader(a).releases(), 1);
}

TEST_F(RegistryTest, PinnedModelsStay) {
  auto a = model("a", 60);
  a.pin = true;
  a.idle_unload = 1ms;
  auto b = model("b", 60, true);
  make({a, b});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request request = ask("b");
  ASSERT_TRUE(request.sink->wait());
  EXPECT_THAT(request.sink->error->message, HasSubstr("budget of 100.0 MiB"));
  EXPECT_EQ(state("a"), ModelState::ready);
  EXPECT_EQ(registry_->counts().unloads, 0u);
}

// A remote engine's model takes nothing here, so that its going would free nothing.
TEST_F(RegistryTest, WhatTakesNoMemoryIsNotEvicted) {
  auto far = model("far", 0);
  auto a = model("a", 60, true);
  auto b = model("b", 60, true);
  make({far, a, b});
  ASSERT_TRUE(becomes("far", ModelState::ready));
  {
    const Request used_a = ask("a");
    ASSERT_TRUE(becomes("a", ModelState::ready));
  }
  const Request wants_b = ask("b");
  ASSERT_TRUE(becomes("b", ModelState::ready));
  EXPECT_EQ(state("a"), ModelState::unloaded);
  EXPECT_EQ(state("far"), ModelState::ready);
  EXPECT_EQ(registry_->counts().evictions, 1u);
}

TEST_F(RegistryTest, TakesLessThanItWantsRatherThanEvict) {
  auto a = model("a", 60);
  ModelDefinition b = model("b", 0, true);
  b.loader = std::make_shared<FakeLoader>(20 * kMiB, 80 * kMiB);
  make({a, b});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request request = ask("b");
  ASSERT_TRUE(becomes("b", ModelState::ready));
  EXPECT_EQ(loader(b).reserved(), 40 * kMiB);
  EXPECT_EQ(state("a"), ModelState::ready);
}

TEST_F(RegistryTest, UnloadWaitsForRunningRequestsAndGivesEverythingBack) {
  auto a = model("a", 10);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request running = ask("a");
  std::promise<Status> unloaded;
  registry_->unload("a", [&](Status status) { unloaded.set_value(std::move(status)); });
  ASSERT_TRUE(becomes("a", ModelState::draining));
  Request refused = ask("a");
  ASSERT_TRUE(refused.sink->wait());
  EXPECT_THAT(refused.sink->error->message, HasSubstr("unloaded by an operator"));
  auto future = unloaded.get_future();
  EXPECT_EQ(future.wait_for(20ms), std::future_status::timeout);
  EXPECT_EQ(running.sink->terminals, 0);
  loader(a).service()->finish_all();
  running.handle.reset();
  EXPECT_TRUE(future.get().ok());
  EXPECT_EQ(state("a"), ModelState::unloaded);
  EXPECT_EQ(reserved(), 0u);
  EXPECT_EQ(loader(a).releases(), 1);
  EXPECT_TRUE(act(&Registry::load, "a").ok());
  EXPECT_EQ(state("a"), ModelState::ready);
  EXPECT_EQ(act(&Registry::load, "nope").error().code, ErrorCode::not_found);
}

TEST_F(RegistryTest, AfterTheDrainTimeoutRunningRequestsEnd) {
  auto a = model("a", 10);
  RegistryOptions options;
  options.drain_timeout = 50ms;
  make({a}, options);
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request running = ask("a");
  registry_->unload("a", [](const Status&) {});
  ASSERT_TRUE(running.sink->wait());
  EXPECT_EQ(running.sink->error->code, ErrorCode::unavailable);
  EXPECT_EQ(state("a"), ModelState::draining);  // until the handle goes
  running.handle.reset();
  EXPECT_TRUE(becomes("a", ModelState::unloaded));
}

TEST_F(RegistryTest, IdleModelsAreUnloadedAndComeBack) {
  auto a = model("a", 10);
  a.idle_unload = 60ms;
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request running = ask("a");
  std::this_thread::sleep_for(150ms);
  EXPECT_EQ(state("a"), ModelState::ready);  // in use
  running.handle.reset();
  ASSERT_TRUE(becomes("a", ModelState::unloaded));
  EXPECT_EQ(reserved(), 0u);
  Request again = ask("a");
  ASSERT_TRUE(becomes("a", ModelState::ready));
  again.handle.reset();
}

TEST_F(RegistryTest, SleepKeepsTheWeightsAndARequestWakes) {
  auto a = model("a", 10);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  EXPECT_EQ(act(&Registry::sleep, "a").error().code, ErrorCode::unsupported);
  loader(a).keep_asleep(4 * kMiB);
  EXPECT_TRUE(act(&Registry::sleep, "a").ok());
  EXPECT_EQ(state("a"), ModelState::sleeping);
  EXPECT_EQ(reserved(), 4 * kMiB);
  EXPECT_EQ(loader(a).releases(), 0);
  Request request = ask("a");
  ASSERT_TRUE(becomes("a", ModelState::ready));
  EXPECT_EQ(reserved(), 10 * kMiB);
  request.handle.reset();
  EXPECT_TRUE(act(&Registry::sleep, "a").ok());
  EXPECT_TRUE(act(&Registry::unload, "a").ok());
  EXPECT_EQ(reserved(), 0u);
  EXPECT_EQ(loader(a).releases(), 1);
}

TEST_F(RegistryTest, WhatWasCountedStaysWhenServicesComeAndGo) {
  auto a = model("a", 10);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  const auto stats = [&] { return registry_->entry("a")->slot->stats(); };
  loader(a).service()->tokens = 5;
  Request running = ask("a");
  std::promise<Status> unloaded;
  registry_->unload("a", [&](Status status) { unloaded.set_value(std::move(status)); });
  ASSERT_TRUE(becomes("a", ModelState::draining));
  EXPECT_EQ(stats().generation_tokens, 5u);
  EXPECT_EQ(stats().requests_running, 1u);
  // At no moment on its way out is it gone from the page.
  std::atomic<bool> over{false};
  std::uint64_t least = UINT64_MAX;
  std::thread watch([&] {
    do least = std::min(least, stats().generation_tokens);
    while (!over);
  });
  running.handle.reset();
  EXPECT_TRUE(unloaded.get_future().get().ok());
  over = true;
  watch.join();
  EXPECT_EQ(least, 5u);
  EXPECT_EQ(stats().generation_tokens, 5u);
  EXPECT_EQ(stats().requests_running, 0u);
  EXPECT_EQ(stats().kv_blocks, 0u);
  ASSERT_TRUE(act(&Registry::load, "a").ok());
  loader(a).service()->tokens = 2;
  EXPECT_EQ(stats().generation_tokens, 7u);
  EXPECT_EQ(stats().kv_blocks, 7u);
  // A reload that replaces it.
  auto changed = model("a", 20);
  ASSERT_TRUE(registry_->apply({changed}).ok());
  ASSERT_TRUE(eventually([&] { return registry_->counts().loads == 3; }));
  loader(changed).service()->tokens = 1;
  EXPECT_EQ(stats().generation_tokens, 8u);
  ASSERT_TRUE(eventually([&] { return registry_->counts().unloads == 2; }));
  EXPECT_EQ(stats().generation_tokens, 8u);
}

TEST_F(RegistryTest, AModelThatIsUnloadedWhileItWakesIsReleasedAfterwards) {
  auto a = model("a", 10);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  loader(a).keep_asleep(4 * kMiB);
  ASSERT_TRUE(act(&Registry::sleep, "a").ok());
  const int needs = loader(a).needs();
  loader(a).hold_need();
  Request request = ask("a");
  ASSERT_TRUE(eventually([&] { return loader(a).needs() > needs; }));
  std::promise<Status> unloaded;
  registry_->unload("a", [&](Status status) { unloaded.set_value(std::move(status)); });
  ASSERT_TRUE(becomes("a", ModelState::unloading));
  EXPECT_EQ(loader(a).releases(), 0) << "the loading thread is inside it";
  loader(a).let_go();
  EXPECT_TRUE(unloaded.get_future().get().ok());
  EXPECT_EQ(loader(a).releases(), 1);
  EXPECT_FALSE(loader(a).abused());
  EXPECT_EQ(reserved(), 0u);
}

TEST_F(RegistryTest, AReloadReplacesBesideTheOldOneWhereThereIsRoom) {
  auto a = model("a", 30);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request old = ask("a");
  auto changed = model("a", 40);
  loader(changed).hold();
  ASSERT_TRUE(registry_->apply({changed}).ok());
  ASSERT_TRUE(eventually([&] { return loader(changed).loads() == 1; }));
  Request meanwhile = ask("a");  // still served by the old one
  loader(a).service()->finish_all();
  EXPECT_TRUE(meanwhile.sink->wait());
  EXPECT_FALSE(meanwhile.sink->error);
  EXPECT_TRUE(old.sink->wait());
  loader(changed).let_go();
  ASSERT_TRUE(eventually([&] { return registry_->counts().loads == 2; }));
  Request fresh = ask("a");
  loader(changed).service()->finish_all();
  EXPECT_TRUE(fresh.sink->wait());
  old.handle.reset();
  meanwhile.handle.reset();
  EXPECT_TRUE(eventually([&] { return reserved() == 40 * kMiB; }));
  EXPECT_EQ(loader(a).releases(), 1);
}

TEST_F(RegistryTest, AReloadWithoutRoomDrainsTheOldOneAndRequestsWait) {
  auto a = model("a", 60);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request old = ask("a");
  auto changed = model("a", 70);
  ASSERT_TRUE(registry_->apply({changed}).ok());
  ASSERT_TRUE(becomes("a", ModelState::draining));
  Request meanwhile = ask("a");
  EXPECT_FALSE(meanwhile.sink->wait(20ms));
  loader(a).service()->finish_all();
  EXPECT_TRUE(old.sink->wait());
  EXPECT_FALSE(old.sink->error);
  old.handle.reset();
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(eventually([&] { return registry_->entry("a")->in_use; }));
  loader(changed).service()->finish_all();
  EXPECT_TRUE(meanwhile.sink->wait());
  EXPECT_FALSE(meanwhile.sink->error);
  EXPECT_EQ(reserved(), 70 * kMiB);
}

TEST_F(RegistryTest, AReloadThatFailsKeepsTheOldOneAndSaysWhy) {
  auto a = model("a", 30);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  auto changed = model("a", 40);
  loader(changed).fail_with("broken file");
  ASSERT_TRUE(registry_->apply({changed}).ok());
  ASSERT_TRUE(eventually([&] { return registry_->entry("a")->detail == "broken file"; }));
  EXPECT_EQ(state("a"), ModelState::ready);
  Request request = ask("a");
  loader(a).service()->finish_all();
  EXPECT_TRUE(request.sink->wait());
  EXPECT_FALSE(request.sink->error);
}

TEST_F(RegistryTest, AServiceThatFailsIsLetGoAndCanBeLoadedAgain) {
  auto a = model("a", 10);
  auto b = model("b", 10);
  make({a, b});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(becomes("b", ModelState::ready));
  Request request = ask("a");
  loader(a).service()->fail("a.gguf cannot be read");
  ASSERT_TRUE(becomes("a", ModelState::failed));
  EXPECT_EQ(registry_->entry("a")->detail, "a.gguf cannot be read");
  EXPECT_EQ(registry_->entry("a")->service, nullptr);
  EXPECT_TRUE(request.sink->wait());
  Request refused = ask("a");
  ASSERT_TRUE(refused.sink->wait());
  EXPECT_EQ(refused.sink->error->code, ErrorCode::unavailable);
  EXPECT_THAT(refused.sink->error->message, HasSubstr("has failed: a.gguf cannot be read"));
  EXPECT_GT(refused.sink->error->retry_after_s, 0);
  EXPECT_EQ(state("b"), ModelState::ready);
  // Somebody still holds the service: nothing is read again before it is gone.
  std::promise<Status> loaded;
  registry_->load("a", [&](Status status) { loaded.set_value(std::move(status)); });
  ASSERT_TRUE(becomes("a", ModelState::loading));
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(loader(a).needs(), 1);
  EXPECT_EQ(loader(a).releases(), 0);
  request.handle.reset();
  EXPECT_TRUE(loaded.get_future().get().ok());
  EXPECT_EQ(loader(a).needs(), 2);
  EXPECT_EQ(loader(a).releases(), 1) << "it is opened afresh";
  EXPECT_EQ(state("a"), ModelState::ready);
  EXPECT_EQ(registry_->entry("a")->detail, "");
  EXPECT_EQ(reserved(), 20 * kMiB);
  EXPECT_EQ(registry_->counts().failures, 1u);
}

TEST_F(RegistryTest, AFailedModelOnDemandIsTriedAgainByARequestLater) {
  auto a = model("a", 10, true);
  RegistryOptions options;
  options.retry_failed_after = 50ms;
  make({a}, options);
  EXPECT_TRUE(act(&Registry::load, "a").ok());
  loader(a).service()->fail("gone");
  ASSERT_TRUE(becomes("a", ModelState::failed));
  ASSERT_TRUE(eventually([&] {
    ask("a").sink->wait(1ms);
    return loader(a).loads() == 2;
  }));
}

TEST_F(RegistryTest, AServiceThatFailsWhileItLeavesChangesNothing) {
  auto a = model("a", 10);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request request = ask("a");
  const auto service = loader(a).service();
  registry_->unload("a", [](const Status&) {});
  ASSERT_TRUE(becomes("a", ModelState::draining));
  service->fail("too late");
  request.handle.reset();
  EXPECT_TRUE(becomes("a", ModelState::unloaded));
  EXPECT_EQ(registry_->counts().failures, 0u);
}

TEST_F(RegistryTest, AFailedModelIsUnloadedWhileItsServiceIsStillHeld) {
  auto a = model("a", 10);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request request = ask("a");
  loader(a).service()->fail("gone");
  ASSERT_TRUE(becomes("a", ModelState::failed));
  std::promise<Status> unloaded;
  registry_->unload("a", [&](Status status) { unloaded.set_value(std::move(status)); });
  ASSERT_TRUE(becomes("a", ModelState::draining));
  request.handle.reset();
  EXPECT_TRUE(unloaded.get_future().get().ok());
  EXPECT_TRUE(becomes("a", ModelState::unloaded));
}

TEST_F(RegistryTest, AReloadAddsAndRemoves) {
  auto a = model("a", 30);
  auto b = model("b", 30);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request running = ask("a");
  ASSERT_TRUE(registry_->apply({b}).ok());
  EXPECT_EQ(registry_->find("a").error().code, ErrorCode::not_found);
  ASSERT_TRUE(becomes("b", ModelState::ready));
  EXPECT_EQ(running.sink->terminals, 0);
  loader(a).service()->finish_all();
  EXPECT_FALSE(running.sink->error);
  running.handle.reset();
  EXPECT_TRUE(eventually([&] { return reserved() == 30 * kMiB; }));
}

TEST_F(RegistryTest, FallbacksChangeWithoutLoadingAnew) {
  using Names = std::vector<std::string>;
  auto a = model("a", 10);
  a.aliases = {"x"};
  a.fallbacks = {"b", "c"};
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  EXPECT_EQ(registry_->fallbacks("a"), (Names{"b", "c"}));
  EXPECT_EQ(registry_->fallbacks("x"), (Names{"b", "c"}));
  EXPECT_EQ(registry_->entry("a")->fallbacks, (Names{"b", "c"}));
  EXPECT_EQ(registry_->fallbacks("nobody"), Names{});
  a.fallbacks = {"c"};
  ASSERT_TRUE(registry_->apply({a}).ok());
  EXPECT_EQ(registry_->fallbacks("a"), Names{"c"});
  EXPECT_EQ(loader(a).loads(), 1);
}

TEST_F(RegistryTest, FallbacksAreThoseOfAReplacementThatIsNotThereYet) {
  using Names = std::vector<std::string>;
  const auto a = model("a", 10);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  auto other = model("a", 10);
  other.fingerprint = "other";
  other.fallbacks = {"b"};
  loader(other).hold();
  ASSERT_TRUE(registry_->apply({other}).ok());
  EXPECT_EQ(registry_->fallbacks("a"), Names{"b"});
  ASSERT_TRUE(eventually([&] { return loader(other).loads() == 1; }));
  auto again = other;
  again.fallbacks = {"c"};
  again.aliases = {"x"};
  ASSERT_TRUE(registry_->apply({again}).ok());
  EXPECT_EQ(registry_->fallbacks("x"), Names{"c"});
  EXPECT_EQ(registry_->entry("a")->fallbacks, Names{"c"});
  loader(other).let_go();
}

TEST_F(RegistryTest, AModelThatIsFetchedDelaysNobodyAndSaysHowFarItIs) {
  auto slow = model("slow", 10);
  loader(slow).fetch_first(true);
  make({slow, model("a", 10)});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(eventually([&] { return registry_->entry("slow")->detail == "downloading half"; }));
  EXPECT_EQ(state("slow"), ModelState::loading);
  EXPECT_DOUBLE_EQ(registry_->entry("slow")->progress, 0.45);
  EXPECT_THAT(registry_->find("slow").error().message, HasSubstr("still being downloaded (45%)"));
  EXPECT_EQ(loader(slow).loads(), 0);
  loader(slow).hold();
  loader(slow).fetch_first();
  ASSERT_TRUE(eventually([&] { return loader(slow).loads() == 1; }));
  EXPECT_DOUBLE_EQ(registry_->entry("slow")->progress, 0.725);  // half of the rest
  loader(slow).let_go();
  EXPECT_TRUE(becomes("slow", ModelState::ready));
  EXPECT_EQ(registry_->entry("slow")->detail, "");
}

TEST_F(RegistryTest, AskingForALoadThatIsUnderWayLetsNobodyWaitForIt) {
  auto a = model("a", 10);
  loader(a).fetch_first(true);
  make({a});
  std::promise<Status> loaded;
  registry_->load("a", [&](Status status) { loaded.set_value(std::move(status)); });
  ASSERT_TRUE(eventually([&] { return loader(a).fetched() == 1; }));
  EXPECT_FALSE(registry_->find("a"));
  EXPECT_FALSE(registry_->find("a"));
  loader(a).fetch_first();
  EXPECT_TRUE(loaded.get_future().get().ok());
  EXPECT_TRUE(registry_->find("a"));
}

TEST_F(RegistryTest, ARequestFetchesAModelOnDemandAndWaitsForIt) {
  auto a = model("a", 10, true);
  loader(a).fetch_first(true);
  make({a});
  Request late = ask("a", 50ms);
  Request patient = ask("a");
  ASSERT_TRUE(late.sink->wait());
  EXPECT_THAT(late.sink->error->message, HasSubstr("still being downloaded (45%)"));
  loader(a).fetch_first();
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(eventually([&] { return registry_->entry("a")->in_use; }));
  loader(a).service()->finish_all();
  EXPECT_TRUE(patient.sink->wait());
  EXPECT_FALSE(patient.sink->error);
  EXPECT_EQ(loader(a).fetched(), 1);
}

TEST_F(RegistryTest, AFetchThatFailsIsToldAndTriedAgain) {
  auto a = model("a", 10, true);
  loader(a).fetch_first();
  loader(a).fail_fetch_with("a token is needed");
  RegistryOptions options;
  options.retry_failed_after = 20ms;
  make({a}, options);
  Request request = ask("a");
  ASSERT_TRUE(request.sink->wait());
  EXPECT_THAT(request.sink->error->message, HasSubstr("a token is needed"));
  EXPECT_EQ(state("a"), ModelState::failed);
  loader(a).fail_fetch_with("");
  EXPECT_TRUE(eventually([&] {
    Request again = ask("a", 100ms);
    return eventually([&] { return loader(a).loads() == 1; }, 100ms);
  }));
}

TEST_F(RegistryTest, UnloadingStopsAFetchAndLoadingBeginsItAgain) {
  auto a = model("a", 10);
  loader(a).fetch_first(true);
  make({a});
  ASSERT_TRUE(eventually([&] { return loader(a).fetched() == 1; }));
  EXPECT_TRUE(act(&Registry::unload, "a").ok());
  EXPECT_EQ(state("a"), ModelState::unloaded);
  EXPECT_TRUE(eventually([&] { return loader(a).fetching() == 0; }));
  std::promise<Status> loaded;
  registry_->load("a", [&](Status status) { loaded.set_value(std::move(status)); });
  ASSERT_TRUE(eventually([&] { return loader(a).fetched() == 2; }));
  loader(a).fetch_first();
  EXPECT_TRUE(loaded.get_future().get().ok());
  EXPECT_EQ(loader(a).loads(), 1);
}

TEST_F(RegistryTest, OnlySoManyAreFetchedAtOnce) {
  RegistryOptions options;
  options.max_fetches = 2;
  std::vector<ModelDefinition> models = {model("a", 10), model("b", 10), model("c", 10)};
  for (const auto& each : models) loader(each).fetch_first(true);
  make(models, options);
  ASSERT_TRUE(eventually([&] { return loader(models[0]).fetched() + loader(models[1]).fetched() == 2; }));
  EXPECT_EQ(loader(models[2]).fetched(), 0);
  loader(models[0]).fetch_first();
  EXPECT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(eventually([&] { return loader(models[2]).fetched() == 1; }));
  EXPECT_TRUE(act(&Registry::unload, "b").ok());
  loader(models[2]).fetch_first();
  EXPECT_TRUE(becomes("c", ModelState::ready));
}

TEST_F(RegistryTest, AReloadTurnsAFetchToTheNewSource) {
  auto before = model("a", 10);
  loader(before).fetch_first(true);
  make({before});
  ASSERT_TRUE(eventually([&] { return loader(before).fetched() == 1; }));
  auto after = model("a", 20);
  loader(after).fetch_first();
  ASSERT_TRUE(registry_->apply({after}).ok());
  ASSERT_TRUE(becomes("a", ModelState::ready));
  EXPECT_EQ(loader(before).loads(), 0);
  EXPECT_EQ(loader(after).loads(), 1);
  // One that serves goes on while its successor is fetched.
  auto third = model("a", 30);
  loader(third).fetch_first(true);
  ASSERT_TRUE(registry_->apply({third}).ok());
  ASSERT_TRUE(eventually([&] { return loader(third).fetched() == 1; }));
  EXPECT_EQ(state("a"), ModelState::ready);
  // Back to what it was: the successor is not wanted any more.
  ASSERT_TRUE(registry_->apply({after}).ok());
  EXPECT_TRUE(eventually([&] { return loader(third).fetching() == 0; }));
  EXPECT_EQ(loader(third).loads(), 0);
  EXPECT_EQ(loader(after).loads(), 1);
}

TEST_F(RegistryTest, TheEndStopsEveryFetch) {
  auto a = model("a", 10);
  auto b = model("b", 10, true);
  loader(a).fetch_first(true);
  loader(b).fetch_first(true);
  make({a, b});
  Request request = ask("b");
  ASSERT_TRUE(eventually([&] { return loader(a).fetched() + loader(b).fetched() == 2; }));
  registry_.reset();
  EXPECT_EQ(loader(a).fetching() + loader(b).fetching(), 0);
  ASSERT_TRUE(request.sink->wait());
  EXPECT_TRUE(request.sink->error);
}

TEST_F(RegistryTest, FiftyTimesLoadedAndUnloadedNothingIsLeft) {
  auto a = model("a", 30);
  make({a});
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(act(&Registry::load, "a").ok());
    EXPECT_EQ(reserved(), 30 * kMiB);
    ASSERT_TRUE(act(&Registry::unload, "a").ok());
    EXPECT_EQ(reserved(), 0u);
  }
}

TEST_F(RegistryTest, ALoaderIsLeftAloneUntilItsServiceIsGone) {
  auto a = model("a", 10, true);
  make({a});
  Request running = ask("a");
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(eventually([&] { return registry_->entry("a")->in_use; }));
  std::promise<Status> unloaded;
  registry_->unload("a", [&](Status status) { unloaded.set_value(std::move(status)); });
  ASSERT_TRUE(becomes("a", ModelState::draining));
  Request next = ask("a");
  ASSERT_TRUE(becomes("a", ModelState::loading));
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(loader(a).needs(), 1);
  running.handle.reset();
  EXPECT_TRUE(unloaded.get_future().get().ok());
  ASSERT_TRUE(becomes("a", ModelState::ready));
  EXPECT_EQ(loader(a).loads(), 2);
  EXPECT_FALSE(loader(a).abused());
}

TEST_F(RegistryTest, AModelOfAReloadTakesTheRoomOfOneThatGoes) {
  auto a = model("a", 60);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  loader(a).hold_release();
  ASSERT_TRUE(registry_->apply({model("b", 60)}).ok());
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(state("b"), ModelState::loading) << registry_->entry("b")->detail;
  loader(a).let_go();
  EXPECT_TRUE(becomes("b", ModelState::ready));
  // While requests run as well.
  Request running = ask("b");
  auto c = model("c", 60);
  ASSERT_TRUE(registry_->apply({c}).ok());
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(state("c"), ModelState::loading) << registry_->entry("c")->detail;
  running.handle.reset();
  EXPECT_TRUE(becomes("c", ModelState::ready));
  EXPECT_EQ(registry_->counts().failures, 0u);
}

TEST_F(RegistryTest, ANameThatPassesOnIsServedThroughout) {
  auto a = model("a", 30);
  a.aliases = {"default"};
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  const auto served_by = [this](const ModelDefinition& definition) {
    Request request = ask("default");
    loader(definition).service()->finish_all();
    return request.sink->wait(0ms) && !request.sink->error;
  };
  // To a new model, beside which the old one stays;
  auto without = model("a", 30);
  auto b = model("b", 30);
  b.aliases = {"default"};
  loader(b).hold();
  ASSERT_TRUE(registry_->apply({without, b}).ok());
  ASSERT_TRUE(eventually([&] { return loader(b).loads() == 1; }));
  EXPECT_TRUE(served_by(a));
  loader(b).let_go();
  ASSERT_TRUE(becomes("b", ModelState::ready));
  EXPECT_TRUE(eventually([&] { return registry_->entry("default")->name == "b"; }));
  EXPECT_TRUE(served_by(b));
  // to one that takes the old one's place, also if it cannot be loaded at first;
  auto c = model("c", 30);
  c.aliases = {"default"};
  loader(c).fail_with("broken");
  ASSERT_TRUE(registry_->apply({without, c}).ok());
  ASSERT_TRUE(becomes("c", ModelState::failed));
  EXPECT_TRUE(served_by(b));
  EXPECT_EQ(registry_->entry("b").error().code, ErrorCode::not_found);
  loader(c).fail_with("");
  EXPECT_TRUE(act(&Registry::load, "c").ok());
  EXPECT_TRUE(eventually([&] { return registry_->entry("default")->name == "c"; }));
  EXPECT_TRUE(served_by(c));
  EXPECT_TRUE(eventually([&] { return reserved() == 60 * kMiB && registry_->list().size() == 2; }));
  // and to one that has no room beside it: requests wait.
  auto d = model("d", 80);
  d.aliases = {"default"};
  Request running = ask("default");
  loader(d).hold();
  ASSERT_TRUE(registry_->apply({without, d}).ok());
  EXPECT_TRUE(eventually([&] { return registry_->entry("default")->name == "d"; }));
  Request waiting = ask("default");
  loader(c).service()->finish_all();
  EXPECT_TRUE(running.sink->wait());
  EXPECT_FALSE(running.sink->error);
  running.handle.reset();
  ASSERT_TRUE(eventually([&] { return loader(d).loads() == 1; }));
  EXPECT_EQ(waiting.sink->terminals, 0);
  loader(d).let_go();
  ASSERT_TRUE(becomes("d", ModelState::ready));
  loader(d).service()->finish_all();
  EXPECT_TRUE(waiting.sink->wait());
  EXPECT_FALSE(waiting.sink->error);
}

// By the plan of the new list both fit; what one has beyond its share it has to give back.
TEST_F(RegistryTest, AReloadTakesFromOneModelWhatAnotherNeeds) {
  auto a = model("a", 30);
  a.loader = std::make_shared<FakeLoader>(30 * kMiB, 90 * kMiB);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  EXPECT_EQ(reserved(), 90 * kMiB);
  const Request using_it = ask("a");
  const auto account = loader(a).account();
  account->may_lend(30 * kMiB, kMiB);
  std::jthread giver;
  account->on_reclaim([&](std::uint64_t bytes, bool must) {
    EXPECT_TRUE(must);
    giver = std::jthread([account, bytes] { account->give_back(bytes); });
  });
  auto same = model("a", 30);
  loader(same).set_limit(50 * kMiB);
  ASSERT_TRUE(registry_->apply({same, model("b", 50)}).ok());
  EXPECT_TRUE(becomes("b", ModelState::ready)) << registry_->entry("b")->detail;
  EXPECT_EQ(registry_->entry("a")->reserved, 50 * kMiB);
  EXPECT_EQ(registry_->entry("a")->borrowed, 0u);
  EXPECT_EQ(loader(a).limit(), 50 * kMiB);
  account->on_reclaim({});
}

// A plan that comes while a model loads holds for it as well.
TEST_F(RegistryTest, AShareThatChangesDuringALoadCounts) {
  Giver giver;
  auto a = model("a", 30);
  a.pin = true;
  a.loader = std::make_shared<FakeLoader>(30 * kMiB, 90 * kMiB);
  loader(a).hold();
  loader(a).borrow(giver);
  make({a});
  ASSERT_TRUE(eventually([&] { return loader(a).loads() == 1; }));
  auto same = model("a", 30);
  same.pin = true;
  loader(same).set_limit(50 * kMiB);
  ASSERT_TRUE(registry_->apply({same, model("b", 50)}).ok());
  loader(a).let_go();
  EXPECT_TRUE(becomes("b", ModelState::ready));
  EXPECT_EQ(registry_->entry("a")->reserved, 50 * kMiB);
}

TEST_F(RegistryTest, WhatWaitsForADrainLeavesTheRestToOthers) {
  auto a = model("a", 30);
  auto y = model("y", 5, true);
  make({a, y});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request running = ask("a");
  ASSERT_TRUE(registry_->apply({model("x", 75), y}).ok());
  Request small = ask("y");
  EXPECT_TRUE(becomes("y", ModelState::ready));
  EXPECT_EQ(state("x"), ModelState::loading);
  running.handle.reset();
  EXPECT_TRUE(becomes("x", ModelState::ready));
}

TEST_F(RegistryTest, AReplacementTakesItsOwnRoomFirst) {
  auto a = model("a", 60);
  auto b = model("b", 20, true);
  auto c = model("c", 20, true);
  make({a, b, c});
  for (const char* name : {"b", "c"}) {
    const Request used = ask(name);
    ASSERT_TRUE(becomes(name, ModelState::ready));
  }
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(registry_->apply({model("a", 55), b, c}).ok());
  ASSERT_TRUE(eventually([&] { return registry_->counts().loads == 4; }));
  EXPECT_EQ(registry_->counts().evictions, 0u);
  // With what it needs beyond that it evicts no more than it must.
  ASSERT_TRUE(registry_->apply({model("a", 75), b, c}).ok());
  ASSERT_TRUE(eventually([&] { return registry_->counts().loads == 5; }));
  EXPECT_EQ(registry_->counts().evictions, 1u);
}

TEST_F(RegistryTest, AReloadWaitsForWhatGoesRatherThanEvict) {
  auto x = model("x", 40);
  auto a = model("a", 50);
  make({x, a});
  ASSERT_TRUE(becomes("x", ModelState::ready));
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request running = ask("a");
  ASSERT_TRUE(registry_->apply({x, model("b", 50)}).ok());
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(state("x"), ModelState::ready);
  running.handle.reset();
  EXPECT_TRUE(becomes("b", ModelState::ready));
  EXPECT_EQ(registry_->counts().evictions, 0u);
}

TEST_F(RegistryTest, WhatStillAnswersToANameDoesNotGoInVain) {
  auto a = model("a", 10);
  a.aliases = {"default"};
  auto pinned = model("pinned", 50);
  pinned.pin = true;
  auto c = model("c", 60, true);
  make({a, pinned, c});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(becomes("pinned", ModelState::ready));
  auto b = model("b", 10);
  b.aliases = {"default"};
  loader(b).fail_with("broken");
  ASSERT_TRUE(registry_->apply({b, pinned, c}).ok());
  ASSERT_TRUE(becomes("b", ModelState::failed));
  Request using_it = ask("default");
  Request never = ask("c");
  ASSERT_TRUE(never.sink->wait());
  EXPECT_EQ(registry_->entry("default")->name, "a");
  // It is told under the names that lead there.
  const auto list = registry_->list();
  EXPECT_EQ(list.back().name, "a");
  EXPECT_TRUE(list.back().retires);
  EXPECT_EQ(list.back().aliases, std::vector<std::string>{"default"});
  EXPECT_TRUE(list.front().aliases.empty());
  // Whoever brings a model of its name takes it up again.
  std::promise<Status> added;
  registry_->add(model("a", 10), [&](Status status) { added.set_value(std::move(status)); });
  EXPECT_TRUE(added.get_future().get().ok());
  EXPECT_EQ(registry_->entry("a")->name, "a");
  EXPECT_EQ(registry_->list().size(), 4u);
  // Without the name that it kept only for another.
  loader(b).fail_with("");
  EXPECT_TRUE(act(&Registry::load, "b").ok());
  EXPECT_TRUE(eventually([&] { return registry_->entry("default")->name == "b"; }));
}

TEST_F(RegistryTest, WhatKeepsANameIsNotUnloadedForBeingIdle) {
  auto a = model("a", 10);
  a.aliases = {"default"};
  a.idle_unload = 10ms;
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  auto listed = model("a", 10);
  listed.idle_unload = 10ms;
  auto b = model("b", 10);
  b.aliases = {"default"};
  loader(b).fail_with("broken");
  ASSERT_TRUE(registry_->apply({listed, b}).ok());
  ASSERT_TRUE(becomes("b", ModelState::failed));
  std::this_thread::sleep_for(1200ms);  // idle models are looked at once a second
  EXPECT_EQ(registry_->entry("default")->name, "a");
  EXPECT_EQ(registry_->entry("default")->state, ModelState::ready);
  loader(b).fail_with("");
  EXPECT_TRUE(act(&Registry::load, "b").ok());
  EXPECT_TRUE(becomes("a", ModelState::unloaded)) << "it keeps nothing any more";
}

// The one that was used longest ago, and none that would free nothing.
TEST_F(RegistryTest, NoMoreOfWhatRetiresEndsThanIsNeeded) {
  auto remote = model("remote", 0);
  remote.aliases = {"x"};
  auto first = model("first", 30);
  first.aliases = {"y"};
  auto second = model("second", 30);
  second.aliases = {"z"};
  make({remote, first, second});
  for (const char* name : {"remote", "first", "second"}) ASSERT_TRUE(becomes(name, ModelState::ready));
  std::vector<Request> running;
  for (const char* name : {"x", "y", "z"}) {
    running.push_back(ask(name));
    std::this_thread::sleep_for(2ms);
  }
  auto heir = model("heir", 1);
  heir.aliases = {"x", "y", "z"};
  loader(heir).fail_with("broken");
  ASSERT_TRUE(registry_->apply({heir, model("large", 60)}).ok());
  ASSERT_TRUE(eventually([&] { return registry_->entry("y")->name == "heir"; }));
  EXPECT_EQ(registry_->entry("x")->name, "remote");
  EXPECT_EQ(registry_->entry("z")->name, "second");
  running[1].handle.reset();
  EXPECT_TRUE(becomes("large", ModelState::ready));
  EXPECT_EQ(registry_->entry("x")->name, "remote");
  EXPECT_EQ(registry_->entry("z")->name, "second");
}

TEST_F(RegistryTest, AChangeOfWhatRetiresIsTakenBack) {
  auto a = model("a", 20);
  a.aliases = {"default"};
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  auto changed = model("a", 30);
  changed.aliases = {"default"};
  loader(changed).hold();
  ASSERT_TRUE(registry_->apply({changed}).ok());
  ASSERT_TRUE(eventually([&] { return loader(changed).loads() == 1; }));
  auto b = model("b", 10);
  b.aliases = {"default"};
  loader(b).hold();
  ASSERT_TRUE(registry_->apply({b}).ok());
  loader(changed).let_go();
  ASSERT_TRUE(eventually([&] { return loader(b).loads() == 1; }));
  EXPECT_EQ(registry_->entry("default")->reserved, 20 * kMiB) << "it goes on as it was";
  EXPECT_EQ(registry_->counts().loads, 1u);
  // One that comes back into the list, changed, while its load is thrown away, is loaded after all.
  auto again = model("a", 40);
  again.aliases = {"default"};
  loader(again).hold();
  loader(b).let_go();
  ASSERT_TRUE(registry_->apply({again}).ok());
  ASSERT_TRUE(eventually([&] { return loader(again).loads() == 1; }));
  ASSERT_TRUE(registry_->apply({b}).ok());
  auto last = model("a", 40);
  last.aliases = {"default"};
  ASSERT_TRUE(registry_->apply({last}).ok());
  loader(again).let_go();
  EXPECT_TRUE(eventually([&] { return registry_->entry("default")->reserved == 40 * kMiB; }));
  EXPECT_EQ(registry_->entry("default")->name, "a");
}

TEST_F(RegistryTest, ANewOwnerThatFailedIsTriedAgainByItself) {
  auto a = model("a", 20);
  a.aliases = {"default"};
  RegistryOptions options;
  options.retry_failed_after = 20ms;
  make({a}, options);
  ASSERT_TRUE(becomes("a", ModelState::ready));
  auto b = model("b", 20);
  b.aliases = {"default"};
  loader(b).fail_with("network");
  ASSERT_TRUE(registry_->apply({b}).ok());
  ASSERT_TRUE(eventually([&] { return loader(b).loads() >= 2; }));
  loader(b).fail_with("");
  EXPECT_TRUE(eventually([&] { return registry_->entry("default")->name == "b"; }));
}

TEST_F(RegistryTest, AModelOfTheStartThatFoundNoRoomIsTriedAgain) {
  auto a = model("a", 60, true);
  RegistryOptions options;
  options.retry_failed_after = 20ms;
  make({a}, options);
  Request running = ask("a");
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(registry_->apply({a, model("b", 60)}).ok());
  ASSERT_TRUE(eventually([&] { return registry_->counts().failures > 0; }));
  running.handle.reset();
  EXPECT_TRUE(becomes("b", ModelState::ready));
}

TEST_F(RegistryTest, WhatIsToWaitForARequestIsNotTriedAgain) {
  auto a = model("a", 60, true);
  RegistryOptions options;
  options.retry_failed_after = 20ms;
  make({a}, options);
  Request running = ask("a");
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(registry_->apply({a, model("b", 60)}).ok());
  ASSERT_TRUE(eventually([&] { return registry_->counts().failures > 0; }));
  const auto on_demand = model("b", 60, true);
  ASSERT_TRUE(registry_->apply({a, on_demand}).ok());
  running.handle.reset();
  std::this_thread::sleep_for(100ms);
  EXPECT_EQ(registry_->counts().loads, 1u);
  EXPECT_EQ(state("a"), ModelState::ready);
}

TEST_F(RegistryTest, WhatHasBeenTriedAgainIsNotLoadedForEver) {
  auto a = model("a", 60, true);
  RegistryOptions options;
  options.retry_failed_after = 10ms;
  make({a}, options);
  Request running = ask("a");
  ASSERT_TRUE(becomes("a", ModelState::ready));
  auto b = model("b", 60);
  b.idle_unload = 20ms;
  ASSERT_TRUE(registry_->apply({a, b}).ok());
  ASSERT_TRUE(eventually([&] { return registry_->counts().failures > 0; }));
  running.handle.reset();
  ASSERT_TRUE(eventually([&] { return loader(b).loads() == 1; }));
  ASSERT_TRUE(becomes("b", ModelState::unloaded));
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(loader(b).loads(), 1);
}

TEST_F(RegistryTest, ANameThatPassesToAnAbsentModelLoadsIt) {
  auto a = model("a", 20);
  a.aliases = {"default"};
  auto b = model("b", 20);
  auto c = model("c", 20);
  make({a, b, c});
  for (const char* name : {"a", "b", "c"}) ASSERT_TRUE(becomes(name, ModelState::ready));
  loader(b).keep_asleep(10 * kMiB);
  ASSERT_TRUE(act(&Registry::sleep, "b").ok());
  auto b2 = model("b", 20);
  b2.aliases = {"default"};
  ASSERT_TRUE(registry_->apply({b2, c}).ok());
  EXPECT_TRUE(eventually([&] { return registry_->entry("default")->name == "b" && registry_->list().size() == 2; }));
  // What an operator has unloaded stays so, and the name where it is.
  ASSERT_TRUE(act(&Registry::unload, "c").ok());
  auto c2 = model("c", 20);
  c2.aliases = {"default"};
  ASSERT_TRUE(registry_->apply({c2}).ok());
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(registry_->entry("default")->name, "b");
  EXPECT_EQ(state("c"), ModelState::unloaded);
  EXPECT_TRUE(act(&Registry::load, "c").ok());
  EXPECT_TRUE(eventually([&] { return registry_->entry("default")->name == "c"; }));
}

TEST_F(RegistryTest, WhatRetiresIsNotForgotten) {
  auto a = model("a", 20, true);
  a.aliases = {"default"};
  loader(a).hold();
  make({a});
  Request waiting = ask("default");
  ASSERT_TRUE(eventually([&] { return loader(a).loads() == 1; }));
  auto b = model("b", 20, true);
  b.aliases = {"default"};
  ASSERT_TRUE(registry_->apply({b}).ok());
  std::promise<Status> added;
  registry_->add(model("other", 10), [&](Status status) { added.set_value(std::move(status)); });
  ASSERT_TRUE(added.get_future().get().ok());
  loader(a).let_go();
  ASSERT_TRUE(eventually([&] {
    loader(a).finish_everything();
    return waiting.sink->wait(0ms);
  }));
  waiting.handle.reset();
  EXPECT_TRUE(eventually([&] { return registry_->list().size() == 2; }));
  // Nor is one whose requests have been given up.
  auto c = model("c", 20, true);
  loader(c).hold();
  loader(b).hold();
  ASSERT_TRUE(registry_->apply({b, c}).ok());
  Request blocks = ask("b");
  Request given_up = ask("c");
  ASSERT_TRUE(registry_->apply({b}).ok());
  EXPECT_EQ(registry_->list().size(), 3u);
  given_up.handle.reset();
  EXPECT_TRUE(eventually([&] { return registry_->list().size() == 2; }));
  loader(b).let_go();
  loader(c).let_go();
}

TEST_F(RegistryTest, ARenamedModelIsFoundByBothNames) {
  auto a = model("a", 20);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  const auto found = *registry_->find("a");
  auto b = model("b", 20);
  b.aliases = {"a"};
  loader(b).hold();
  ASSERT_TRUE(registry_->apply({b}).ok());
  // Who brings a model of that name has come too late.
  std::promise<Status> added;
  registry_->add(model("a", 10), [&](Status status) { added.set_value(std::move(status)); });
  EXPECT_EQ(added.get_future().get().error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(registry_->entry("a")->name, "a");
  EXPECT_EQ(registry_->list().back().aliases, std::vector<std::string>{"a"});  // under which clients are told of it
  loader(b).let_go();
  EXPECT_TRUE(eventually([&] { return registry_->entry("a")->name == "b" && registry_->list().size() == 1; }));
  Request late;
  late.handle = found->generate_async({}, late.sink);
  EXPECT_TRUE(eventually([&] {
    loader(b).finish_everything();
    return late.sink->wait(0ms);
  }));
  EXPECT_FALSE(late.sink->error);
}

TEST_F(RegistryTest, ANameThatPassesToAChangedModelWaitsForTheChange) {
  auto a = model("a", 20);
  a.aliases = {"default"};
  auto b = model("b", 20);
  make({a, b});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(becomes("b", ModelState::ready));
  auto changed = model("b", 25);
  changed.aliases = {"default"};
  loader(changed).hold();
  ASSERT_TRUE(registry_->apply({model("a", 20), changed}).ok());
  ASSERT_TRUE(eventually([&] { return loader(changed).loads() == 1; }));
  EXPECT_EQ(registry_->entry("default")->name, "a");
  loader(changed).let_go();
  EXPECT_TRUE(eventually([&] { return registry_->entry("default")->name == "b"; }));
  EXPECT_EQ(registry_->entry("default")->reserved, 25 * kMiB);
}

TEST_F(RegistryTest, RequestsThatFoundAModelWhichGoesAreServed) {
  auto a = model("a", 20, true);
  a.aliases = {"default"};
  loader(a).hold();
  make({a});
  const auto found = *registry_->find("default");
  Request waiting = ask("default");
  ASSERT_TRUE(eventually([&] { return loader(a).loads() == 1; }));
  auto b = model("b", 20, true);
  b.aliases = {"default"};
  ASSERT_TRUE(registry_->apply({b}).ok());
  EXPECT_EQ(registry_->entry("default")->name, "b");
  loader(a).let_go();
  const auto finished = [](FakeLoader& by, const Request& request) {
    return eventually([&] {
      by.finish_everything();
      return request.sink->wait(0ms);
    });
  };
  ASSERT_TRUE(finished(loader(a), waiting));
  EXPECT_FALSE(waiting.sink->error);
  waiting.handle.reset();
  ASSERT_TRUE(eventually([&] { return registry_->list().size() == 1 && reserved() == 0; }));
  // And who comes too late goes where the name leads.
  Request late;
  late.handle = found->generate_async({}, late.sink);
  EXPECT_TRUE(finished(loader(b), late));
  EXPECT_FALSE(late.sink->error);
}

TEST_F(RegistryTest, TheEndRefusesAlsoWhereANameIsKept) {
  auto a = model("a", 20);
  a.aliases = {"default"};
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  auto b = model("b", 20);
  b.aliases = {"default"};
  loader(b).hold();
  ASSERT_TRUE(registry_->apply({b}).ok());
  ASSERT_TRUE(eventually([&] { return loader(b).loads() == 1; }));
  const auto found = *registry_->find("default");
  registry_->end_requests();
  Request request = ask("default");
  EXPECT_TRUE(request.sink->wait());
  loader(b).let_go();
  ASSERT_TRUE(becomes("b", ModelState::unloaded));
  for (const char* name : {"b", "default"}) {
    Request after = ask(name);
    ASSERT_TRUE(after.sink->wait());
    EXPECT_THAT(after.sink->error->message, HasSubstr("shutting down"));
  }
  EXPECT_THAT(act(&Registry::load, "b").error().message, HasSubstr("shutting down"));
  EXPECT_THAT(registry_->apply({model("c", 10)}).error().message, HasSubstr("shutting down"));
  registry_.reset();
  Request late;
  late.handle = found->generate_async({}, late.sink);
  EXPECT_TRUE(late.sink->wait());
}

TEST_F(RegistryTest, WhatIsUnloadedWhileItLoadsSaysSo) {
  auto a = model("a", 40);
  loader(a).hold();
  make({a});
  ASSERT_TRUE(eventually([&] { return loader(a).loads() == 1; }));
  registry_->unload("a", {});
  ASSERT_TRUE(becomes("a", ModelState::unloading));
  Request request = ask("a");
  ASSERT_TRUE(request.sink->wait());
  EXPECT_THAT(request.sink->error->message, HasSubstr("operator"));
  loader(a).let_go();
  EXPECT_TRUE(becomes("a", ModelState::unloaded));
}

TEST_F(RegistryTest, AChangedLimitOfWaitingRequestsCountsAtOnce) {
  auto a = model("a", 40, true);
  a.max_waiting = 1;
  make({a});
  auto changed = model("a", 41, true);
  changed.max_waiting = 2;
  loader(changed).hold();
  ASSERT_TRUE(registry_->apply({changed}).ok());
  Request first = ask("a");
  Request second = ask("a");
  EXPECT_FALSE(second.sink->wait(10ms));
  loader(changed).let_go();
}

// Sleeping, a is wanted again and waits for room; b is wanted as well and takes what a keeps. Room that comes meanwhile
// does not let a load begin while that is given back.
TEST_F(RegistryTest, ALoadWaitsUntilItsLoaderIsReleased) {
  Giver giver;
  auto a = model("a", 40);
  auto d = model("d", 15);
  auto b = model("b", 10, true);
  auto e = model("e", 60);
  e.pin = true;
  e.loader = std::make_shared<FakeLoader>(5 * kMiB, 60 * kMiB);
  make({d, b});
  ASSERT_TRUE(becomes("d", ModelState::ready));
  std::promise<Status> added;
  registry_->add(a, [&](Status status) { added.set_value(std::move(status)); });
  ASSERT_TRUE(added.get_future().get().ok());
  ASSERT_TRUE(becomes("a", ModelState::ready));
  loader(a).keep_asleep(20 * kMiB);
  ASSERT_TRUE(act(&Registry::sleep, "a").ok());
  loader(e).borrow(giver);
  ASSERT_TRUE(registry_->apply({d, b, e}).ok());
  ASSERT_TRUE(becomes("e", ModelState::ready));
  Request in_d = ask("d");
  ASSERT_TRUE(registry_->apply({b, e}).ok());
  Request wake = ask("a");
  std::this_thread::sleep_for(20ms);
  loader(a).hold_release();
  Request wants_b = ask("b");
  std::this_thread::sleep_for(20ms);
  auto less = model("e", 60);
  less.pin = true;
  loader(less).set_limit(10 * kMiB);
  ASSERT_TRUE(registry_->apply({b, less}).ok());
  std::this_thread::sleep_for(20ms);
  loader(a).let_go();
  EXPECT_TRUE(becomes("a", ModelState::ready));
  EXPECT_TRUE(becomes("b", ModelState::ready));
  EXPECT_FALSE(loader(a).abused());
  in_d.handle.reset();
}

// While lists change and loads wait, a request by a name that every list has is taken at every moment.
TEST_F(RegistryTest, ANameOfEveryListAlwaysLeadsSomewhere) {
  log::set_level(log::Level::off);
  std::set<std::string> faults;
  for (int round = 0; round < 100; ++round) {
    const bool pauses = round % 2 == 0;
    budget_ = std::make_shared<MemoryBudget>(100 * kMiB);
    auto a = model("a", 30);
    a.aliases = {"default"};
    auto other = model("other", 40);
    make({a, other});
    ASSERT_TRUE(becomes("a", ModelState::ready));
    ASSERT_TRUE(becomes("other", ModelState::ready));
    // Joined by itself, also where an assertion leaves the test.
    std::jthread poll([&](const std::stop_token& over) {
      while (!over.stop_requested()) {
        const Request request = ask("default");
        {
          std::lock_guard lock(request.sink->mutex);
          if (request.sink->error) faults.insert(request.sink->error->message);
        }
        if (pauses) std::this_thread::sleep_for(50us);  // then nobody uses it, now and then
      }
    });
    Request in_other = ask("other");
    auto waits = model("waits", 65);
    ASSERT_TRUE(registry_->apply({a, waits}).ok());
    ASSERT_TRUE(eventually([&] { return loader(waits).needs() > 0; }));
    Request in_a = ask("a");
    auto b = model("b", 25);
    b.aliases = {"default"};
    ASSERT_TRUE(registry_->apply({model("new", 5), waits, b}).ok());
    in_other.handle.reset();
    in_a.handle.reset();
    ASSERT_TRUE(eventually([&] { return registry_->entry("default")->name == "b"; }));
    auto large = model("large", 90);
    large.aliases = {"default"};
    ASSERT_TRUE(registry_->apply({large}).ok());
    ASSERT_TRUE(becomes("large", ModelState::ready));
    poll.request_stop();
    poll.join();
    registry_.reset();
  }
  EXPECT_TRUE(faults.empty()) << *faults.begin();
}

TEST_F(RegistryTest, NothingIsEvictedInVain) {
  auto a = model("a", 50);
  auto b = model("b", 20, true);
  auto c = model("c", 80, true);
  make({a, b, c});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request using_a = ask("a");
  Request used_b = ask("b");
  ASSERT_TRUE(becomes("b", ModelState::ready));
  used_b.handle.reset();
  Request wants_c = ask("c");
  ASSERT_TRUE(wants_c.sink->wait());
  EXPECT_THAT(wants_c.sink->error->message, HasSubstr("needs 80.0 MiB"));
  EXPECT_EQ(state("b"), ModelState::ready);
  EXPECT_EQ(registry_->counts().evictions, 0u);
  // Nor does a change that can never fit end what serves.
  using_a.handle.reset();
  ASSERT_TRUE(registry_->apply({model("a", 200), b, c}).ok());
  ASSERT_TRUE(eventually([&] { return registry_->counts().failures == 2; }));
  EXPECT_EQ(state("a"), ModelState::ready);
  EXPECT_THAT(registry_->entry("a")->detail, HasSubstr("needs 200.0 MiB"));
  EXPECT_EQ(registry_->counts().unloads, 0u);
}

TEST_F(RegistryTest, WhatAnOperatorUnloadsWhileItsChangeLoadsStaysUnloaded) {
  auto a = model("a", 20);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  auto changed = model("a", 30);
  loader(changed).hold();
  ASSERT_TRUE(registry_->apply({changed}).ok());
  ASSERT_TRUE(eventually([&] { return loader(changed).loads() == 1; }));
  std::promise<Status> unloaded;
  registry_->unload("a", [&](Status status) { unloaded.set_value(std::move(status)); });
  std::this_thread::sleep_for(10ms);
  loader(changed).let_go();
  EXPECT_TRUE(unloaded.get_future().get().ok());
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(state("a"), ModelState::unloaded);
  EXPECT_EQ(reserved(), 0u);
  // Its change is what is loaded then.
  EXPECT_TRUE(act(&Registry::load, "a").ok());
  EXPECT_EQ(reserved(), 30 * kMiB);
}

TEST_F(RegistryTest, LettingGoOfALargeModelHoldsUpNobodyElse) {
  auto a = model("a", 60, true);
  auto b = model("b", 10, true);
  auto c = model("c", 60, true);
  make({a, b, c});
  loader(a).hold_release();
  Request first = ask("a");
  ASSERT_TRUE(becomes("a", ModelState::ready));
  loader(a).service()->finish_all();
  first.handle.reset();
  std::promise<Status> unloaded;
  registry_->unload("a", [&](Status status) { unloaded.set_value(std::move(status)); });
  ASSERT_TRUE(becomes("a", ModelState::unloading));
  Request other = ask("b");
  EXPECT_TRUE(becomes("b", ModelState::ready));
  // Its memory is not free before, and it does not load again meanwhile.
  Request large = ask("c");
  Request again = ask("a");
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(loader(c).loads(), 0);
  EXPECT_EQ(loader(a).loads(), 1);
  EXPECT_EQ(reserved(), 70 * kMiB);
  loader(a).let_go();
  EXPECT_TRUE(unloaded.get_future().get().ok());
  EXPECT_TRUE(becomes("c", ModelState::ready));
  EXPECT_EQ(loader(a).releases(), 1);
  EXPECT_FALSE(loader(a).abused());
}

TEST_F(RegistryTest, LettingGoOfWhatASleepingModelKeepsHoldsUpNobodyElse) {
  auto a = model("a", 60);
  auto b = model("b", 10, true);
  auto c = model("c", 60, true);
  make({a, b, c});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  loader(a).keep_asleep(50 * kMiB);
  ASSERT_TRUE(act(&Registry::sleep, "a").ok());
  loader(a).hold_release();
  std::promise<Status> unloaded;
  registry_->unload("a", [&](Status status) { unloaded.set_value(std::move(status)); });
  ASSERT_TRUE(becomes("a", ModelState::unloading));
  Request other = ask("b");
  EXPECT_TRUE(becomes("b", ModelState::ready));
  Request large = ask("c");
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(loader(c).loads(), 0) << "its memory is not free before";
  EXPECT_EQ(reserved(), 60 * kMiB);
  loader(a).let_go();
  EXPECT_TRUE(unloaded.get_future().get().ok());
  EXPECT_EQ(state("a"), ModelState::unloaded);
  EXPECT_TRUE(becomes("c", ModelState::ready));
  EXPECT_EQ(loader(a).releases(), 1);
  EXPECT_FALSE(loader(a).abused());
}

TEST_F(RegistryTest, LettingGoOfAFailedLoadHoldsUpNoDecision) {
  auto a = model("a", 10, true);
  auto b = model("b", 10);
  make({a, b});
  ASSERT_TRUE(becomes("b", ModelState::ready));
  loader(a).fail_with("broken");
  loader(a).hold_release();
  Request request = ask("a");
  ASSERT_TRUE(eventually([&] { return loader(a).loads() == 1; }));
  EXPECT_TRUE(act(&Registry::unload, "b").ok());
  EXPECT_EQ(reserved(), 10 * kMiB);
  loader(a).let_go();
  ASSERT_TRUE(request.sink->wait());
  EXPECT_THAT(request.sink->error->message, HasSubstr("broken"));
  EXPECT_EQ(reserved(), 0u);
  EXPECT_EQ(loader(a).releases(), 1);
}

TEST_F(RegistryTest, WhatNobodyWaitsForAnyMoreDoesNotWait) {
  auto a = model("a", 10, true);
  auto blocks = model("blocks", 10, true);
  loader(blocks).hold();
  make({a, blocks});
  Request blocking = ask("blocks");
  ASSERT_TRUE(eventually([&] { return loader(blocks).loads() == 1; }));
  Request first = ask("a");
  Request second = ask("a");
  EXPECT_TRUE(registry_->entry("a")->in_use);
  EXPECT_EQ((*registry_->find("a"))->stats().requests_waiting, 2u);
  first.handle.reset();
  EXPECT_EQ((*registry_->find("a"))->stats().requests_waiting, 1u);
  EXPECT_EQ(first.sink.use_count(), 1) << "what it was to be told is kept";
  second.handle.reset();
  EXPECT_FALSE(registry_->entry("a")->in_use);
  EXPECT_EQ((*registry_->find("a"))->stats().requests_waiting, 0u);
  loader(blocks).let_go();
  EXPECT_TRUE(becomes("blocks", ModelState::ready));
  EXPECT_EQ(first.sink->terminals + second.sink->terminals, 0);
}

TEST_F(RegistryTest, AFullWaitingRoomIsOverloaded) {
  auto a = model("a", 10, true);
  loader(a).hold();
  a.max_waiting = 2;
  make({a});
  Request first = ask("a");
  Request second = ask("a");
  Request third = ask("a");
  ASSERT_TRUE(third.sink->wait());
  EXPECT_EQ(third.sink->error->code, ErrorCode::overloaded);
  EXPECT_GT(third.sink->error->retry_after_s, 0);
  EXPECT_EQ(registry_->entry("a")->slot->stats().rejected_loading, 1u);
  first.handle.reset();
  Request fourth = ask("a");
  loader(a).let_go();
  ASSERT_TRUE(becomes("a", ModelState::ready));
  loader(a).service()->finish_all();
  EXPECT_TRUE(second.sink->wait());
  EXPECT_TRUE(fourth.sink->wait());
  EXPECT_FALSE(fourth.sink->error);
}

TEST_F(RegistryTest, ARequestForTokensEndsAtItsDeadlineToo) {
  auto a = model("a", 10, true);
  loader(a).hold();
  make({a});
  const auto deadline = std::chrono::steady_clock::now() + 50ms;
  std::promise<ErrorCode> tokenized;
  std::promise<ErrorCode> detokenized;
  inference::TokenizeRequest text;
  text.deadline = deadline;
  (*registry_->find("a"))->tokenize_async(text, [&](const auto& result) { tokenized.set_value(result.error().code); });
  (*registry_->find("a"))->detokenize_async({{1}, deadline, 0}, [&](const auto& result) {
    detokenized.set_value(result.error().code);
  });
  EXPECT_EQ(tokenized.get_future().get(), ErrorCode::unavailable);
  EXPECT_EQ(detokenized.get_future().get(), ErrorCode::unavailable);
  loader(a).let_go();
}

TEST_F(RegistryTest, AChangeThatIsTakenBackLeavesWhatServes) {
  auto a = model("a", 20);
  auto blocks = model("blocks", 10);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request running = ask("a");
  // Taken back while it waits for another's load,
  loader(blocks).hold();
  auto changed = model("a", 30);
  ASSERT_TRUE(registry_->apply({a, blocks}).ok());
  ASSERT_TRUE(eventually([&] { return loader(blocks).loads() == 1; }));
  ASSERT_TRUE(registry_->apply({changed, blocks}).ok());
  ASSERT_TRUE(registry_->apply({model("a", 20), blocks}).ok());
  loader(blocks).let_go();
  ASSERT_TRUE(becomes("blocks", ModelState::ready));
  // and while it loads.
  loader(changed).hold();
  ASSERT_TRUE(registry_->apply({changed, blocks}).ok());
  ASSERT_TRUE(eventually([&] { return loader(changed).loads() == 1; }));
  ASSERT_TRUE(registry_->apply({model("a", 20), blocks}).ok());
  loader(changed).let_go();
  ASSERT_TRUE(eventually([&] { return reserved() == 30 * kMiB; }));
  EXPECT_EQ(state("a"), ModelState::ready);
  EXPECT_EQ(loader(a).loads(), 1);
  EXPECT_FALSE(loader(a).abused());
  EXPECT_EQ(running.sink->terminals, 0);
  loader(a).service()->finish_all();
  EXPECT_TRUE(running.sink->wait());
  EXPECT_FALSE(running.sink->error);
}

TEST_F(RegistryTest, AReloadCutsOffNoRunningRequest) {
  auto a = model("a", 60);
  auto b = model("b", 10);
  RegistryOptions options;
  options.drain_timeout = 10ms;
  make({a, b}, options);
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(becomes("b", ModelState::ready));
  Request swapped = ask("a");
  Request removed = ask("b");
  auto changed = model("a", 70);
  ASSERT_TRUE(registry_->apply({changed}).ok());
  std::this_thread::sleep_for(60ms);
  EXPECT_EQ(swapped.sink->terminals, 0);
  EXPECT_EQ(removed.sink->terminals, 0);
  loader(b).finish_everything();
  EXPECT_TRUE(removed.sink->wait());
  EXPECT_FALSE(removed.sink->error);
}

TEST_F(RegistryTest, ASwapThatWaitsForTheOldOneHoldsUpNobodyElse) {
  auto a = model("a", 60);
  auto b = model("b", 20, true);
  auto c = model("c", 35, true);
  make({a, b, c});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request running = ask("a");
  auto changed = model("a", 70);
  ASSERT_TRUE(registry_->apply({changed, b, c}).ok());
  ASSERT_TRUE(becomes("a", ModelState::draining));
  // Of the 40 MiB that are free the change waits for 10, which are not given to another.
  Request greedy = ask("c");
  ASSERT_TRUE(greedy.sink->wait());
  ASSERT_TRUE(greedy.sink->error);
  EXPECT_THAT(greedy.sink->error->message, HasSubstr("'c' needs 35.0 MiB"));
  EXPECT_THAT(greedy.sink->error->message, HasSubstr("only 30.0 MiB is free"));
  Request meanwhile = ask("b");
  ASSERT_TRUE(becomes("b", ModelState::ready));
  loader(b).finish_everything();
  meanwhile.handle.reset();
  running.handle.reset();
  ASSERT_TRUE(becomes("a", ModelState::ready));
  EXPECT_EQ(registry_->entry("a")->reserved, 70 * kMiB);
}

TEST_F(RegistryTest, AChangeThatFailsAfterTheOldOneWentBringsItBack) {
  auto a = model("a", 60);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  auto changed = model("a", 70);
  loader(changed).fail_with("broken file");
  ASSERT_TRUE(registry_->apply({changed}).ok());
  ASSERT_TRUE(eventually([&] { return loader(a).loads() == 2; }));
  ASSERT_TRUE(becomes("a", ModelState::ready));
  EXPECT_THAT(registry_->entry("a")->detail, HasSubstr("broken file"));
  EXPECT_EQ(reserved(), 60 * kMiB);
}

TEST_F(RegistryTest, WhoeverWaitsForALoadIsToldWhenItIsCalledOff) {
  auto a = model("a", 10);
  auto b = model("b", 10, true);
  loader(a).hold();
  make({a, b});
  ASSERT_TRUE(eventually([&] { return loader(a).loads() == 1; }));
  // Queued behind a:
  Request waits = ask("b");
  ASSERT_TRUE(becomes("b", ModelState::loading));
  EXPECT_TRUE(act(&Registry::unload, "b").ok());
  ASSERT_TRUE(waits.sink->wait());
  EXPECT_THAT(waits.sink->error->message, HasSubstr("unloaded by an operator"));
  EXPECT_EQ(state("b"), ModelState::unloaded);
  // Removed while it loads:
  std::promise<Status> loaded;
  registry_->load("a", [&](Status status) { loaded.set_value(std::move(status)); });
  ASSERT_TRUE(registry_->apply({b}).ok());
  auto future = loaded.get_future();
  ASSERT_EQ(future.wait_for(5s), std::future_status::ready);
  EXPECT_EQ(future.get().error().code, ErrorCode::not_found);
  loader(a).let_go();
  EXPECT_TRUE(eventually([&] { return reserved() == 0 && loader(a).releases() == 1; }));
}

TEST_F(RegistryTest, UnloadingWhileItLoadsThrowsTheLoadAway) {
  auto a = model("a", 10);
  loader(a).hold();
  make({a});
  ASSERT_TRUE(eventually([&] { return loader(a).loads() == 1; }));
  std::promise<Status> unloaded;
  registry_->unload("a", [&](Status status) { unloaded.set_value(std::move(status)); });
  auto future = unloaded.get_future();
  EXPECT_EQ(future.wait_for(20ms), std::future_status::timeout);
  loader(a).let_go();
  ASSERT_EQ(future.wait_for(5s), std::future_status::ready);
  EXPECT_EQ(state("a"), ModelState::unloaded);
  EXPECT_EQ(reserved(), 0u);
  EXPECT_EQ(registry_->counts().loads, 0u);
}

TEST_F(RegistryTest, ACalledOffLoadEndsEarlyAndMayBeWantedAgain) {
  auto a = model("a", 10);
  loader(a).hold();
  make({a});
  ASSERT_TRUE(eventually([&] { return loader(a).loads() == 1; }));
  std::promise<Status> unloaded;
  std::promise<Status> loaded;
  registry_->unload("a", [&](Status status) { unloaded.set_value(std::move(status)); });
  registry_->load("a", [&](Status status) { loaded.set_value(std::move(status)); });
  EXPECT_FALSE(act(&Registry::sleep, "a").ok());  // comes after the others
  loader(a).report_again();
  loader(a).let_go();
  EXPECT_TRUE(unloaded.get_future().get().ok());
  EXPECT_TRUE(loaded.get_future().get().ok());
  EXPECT_EQ(state("a"), ModelState::ready);
  EXPECT_EQ(loader(a).loads(), 2);
  EXPECT_EQ(registry_->counts().loads, 1u);
  EXPECT_EQ(registry_->counts().failures, 0u);
  EXPECT_TRUE(loader(a).ended_early());
}

TEST_F(RegistryTest, WhatALoaderThrowsFailsItsModelAlone) {
  auto a = model("a", 10);
  auto b = model("b", 10);
  loader(a).throw_something();
  make({a, b});
  ASSERT_TRUE(becomes("a", ModelState::failed));
  EXPECT_EQ(registry_->entry("a")->detail, "thrown by need");
  EXPECT_TRUE(becomes("b", ModelState::ready));
}

TEST_F(RegistryTest, TheModelSleepsAndNotTheOneItReplaced) {
  auto a = model("a", 20);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request old = ask("a");
  auto changed = model("a", 30);
  loader(a).keep_asleep(15 * kMiB);
  loader(changed).keep_asleep(25 * kMiB);
  ASSERT_TRUE(registry_->apply({changed}).ok());
  ASSERT_TRUE(eventually([&] { return registry_->counts().loads == 2; }));
  Request fresh = ask("a");
  std::promise<Status> slept;
  registry_->sleep("a", [&](Status status) { slept.set_value(std::move(status)); });
  ASSERT_TRUE(becomes("a", ModelState::draining));
  old.handle.reset();
  ASSERT_TRUE(eventually([&] { return loader(a).releases() == 1; }));
  EXPECT_EQ(state("a"), ModelState::draining);
  fresh.handle.reset();
  EXPECT_TRUE(slept.get_future().get().ok());
  EXPECT_EQ(state("a"), ModelState::sleeping);
  EXPECT_EQ(reserved(), 25 * kMiB);
  EXPECT_EQ(loader(changed).releases(), 0);
}

TEST_F(RegistryTest, OneEvictionMakesRoomForOne) {
  auto a = model("a", 20, true);
  auto b = model("b", 40, true);
  auto c = model("c", 30, true);
  make({a, b});
  Request old = ask("a");
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request used_b = ask("b");
  ASSERT_TRUE(becomes("b", ModelState::ready));
  used_b.handle.reset();
  auto changed = model("a", 40, true);
  ASSERT_TRUE(registry_->apply({changed, b, c}).ok());
  ASSERT_TRUE(eventually([&] { return registry_->counts().loads == 3; }));
  // 100 = 20 (old, draining) + 40 + 40. The changed one is used least recently but held in its slot by a request.
  Request holds = ask("a");
  Request wants_c = ask("c");
  ASSERT_TRUE(becomes("c", ModelState::ready));
  EXPECT_EQ(registry_->counts().evictions, 1u);
  EXPECT_EQ(state("a"), ModelState::ready);
}

TEST_F(RegistryTest, AModelFromTheStartThatFoundNoRoomIsLoadedByALaterRequest) {
  auto a = model("a", 60);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  Request running = ask("a");
  auto b = model("b", 60);
  ASSERT_TRUE(registry_->apply({a, b}).ok());
  ASSERT_TRUE(eventually([&] { return registry_->counts().failures == 1; }));
  running.handle.reset();
  Request later = ask("b");
  ASSERT_TRUE(becomes("b", ModelState::ready));
}

TEST_F(RegistryTest, AFailedModelIsTriedAgainByALaterRequest) {
  auto a = model("a", 10);
  loader(a).fail_with("a disk that was away");
  RegistryOptions options;
  options.retry_failed_after = 30ms;
  make({a}, options);
  ASSERT_TRUE(becomes("a", ModelState::failed));
  loader(a).fail_with("");
  EXPECT_TRUE(eventually([&] {
    Request request = ask("a");
    return state("a") == ModelState::ready;
  }));
}

TEST_F(RegistryTest, LoadAtStartOrOnDemandMayChangeWithoutLoadingAnew) {
  auto a = model("a", 10);
  auto b = model("b", 10, true);
  make({a, b});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(registry_->apply({model("a", 10, true), model("b", 10)}).ok());
  ASSERT_TRUE(becomes("b", ModelState::ready));
  EXPECT_TRUE(act(&Registry::unload, "a").ok());
  Request request = ask("a");  // on demand now
  ASSERT_TRUE(becomes("a", ModelState::ready));
  EXPECT_EQ(loader(a).loads(), 2);
}

TEST_F(RegistryTest, AddedModelsLiveBesideTheList) {
  auto a = model("a", 10);
  make({a});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  const auto add = [&](const ModelDefinition& definition) {
    std::promise<Status> done;
    registry_->add(definition, [&](Status status) { done.set_value(std::move(status)); });
    const Status accepted = done.get_future().get();
    return accepted.ok() ? act(&Registry::load, definition.name) : accepted;
  };
  auto b = model("b", 20);
  EXPECT_TRUE(add(b).ok());
  EXPECT_TRUE(add(b).ok());  // the same again
  EXPECT_EQ(loader(b).loads(), 1);
  EXPECT_TRUE(registry_->entry("b")->added);
  EXPECT_FALSE(registry_->entry("a")->added);
  EXPECT_EQ(add(model("a", 11)).error().code, ErrorCode::invalid_argument);
  // A reload leaves it alone, and another one of the name replaces it.
  ASSERT_TRUE(registry_->apply({model("a", 10), model("c", 10)}).ok());
  EXPECT_EQ(registry_->list().size(), 3u);
  EXPECT_EQ(state("b"), ModelState::ready);
  EXPECT_TRUE(add(model("b", 30)).ok());
  EXPECT_TRUE(eventually([&] { return registry_->entry("b")->reserved == 30 * kMiB && reserved() == 50 * kMiB; }));
  // It goes when it is removed; what the list has is unloaded only.
  EXPECT_TRUE(act(&Registry::remove, "b").ok());
  EXPECT_EQ(registry_->find("b").error().code, ErrorCode::not_found);
  EXPECT_TRUE(act(&Registry::remove, "a").ok());
  EXPECT_EQ(state("a"), ModelState::unloaded);
  // The list takes a name.
  EXPECT_TRUE(add(model("d", 20)).ok());
  auto e = model("e", 10);
  e.aliases = {"d"};
  ASSERT_TRUE(registry_->apply({e}).ok());
  EXPECT_TRUE(eventually([&] { return registry_->entry("d")->name == "e"; }));
  EXPECT_TRUE(eventually([&] { return registry_->list().size() == 1; }));
}

TEST_F(RegistryTest, EndingAnswersWhoeverWaits) {
  auto a = model("a", 10);
  auto b = model("b", 10, true);
  auto c = model("c", 10);
  make({a, b, c});
  ASSERT_TRUE(becomes("a", ModelState::ready));
  ASSERT_TRUE(becomes("c", ModelState::ready));
  Request running = ask("c");
  loader(b).hold();
  Request waits = ask("b");
  ASSERT_TRUE(eventually([&] { return loader(b).loads() == 1; }));
  std::atomic<int> answers{0};
  registry_->load("b", [&](const Status&) { ++answers; });
  registry_->unload("c", [&](const Status&) { ++answers; });
  std::thread ends([this] { registry_.reset(); });
  loader(b).let_go();
  ends.join();
  EXPECT_EQ(answers, 2);
  EXPECT_EQ(running.sink->terminals, 0);  // its service goes on until it has ended
  loader(c).finish_everything();
  loader(b).finish_everything();
  EXPECT_TRUE(running.sink->wait());
  EXPECT_TRUE(waits.sink->wait());
  running.handle.reset();
  waits.handle.reset();
  EXPECT_EQ(reserved(), 0u);
}

// Any interleaving keeps the budget, ends every request at most once (exactly once unless it was cancelled), answers
// every operator once, and leaves nothing reserved.
TEST_F(RegistryTest, AnyInterleavingKeepsTheBudgetAndEndsEveryRequestOnce) {
  log::set_level(log::Level::off);
  Giver giver;
  for (unsigned seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const auto pick = [&](unsigned n) { return random() % n; };
    RegistryOptions options;
    options.drain_timeout = 20ms;
    options.retry_failed_after = 5ms;
    const auto definitions = [&] {
      std::vector<ModelDefinition> list;
      for (const char* name : {"a", "b", "c", "d"}) {
        if (pick(6) == 0) continue;
        ModelDefinition each = model(name, 20 + pick(3) * 20, pick(2) == 0);
        each.pin = pick(5) == 0;
        if (pick(4) == 0) each.idle_unload = 2ms;
        loader(each).keep_asleep(10 * kMiB);
        if (pick(8) == 0) loader(each).fail_with("broken");
        if (pick(12) == 0) loader(each).throw_something();
        if (pick(3) == 0) loader(each).fetch_first(pick(4) == 0);
        if (pick(8) == 0) loader(each).fail_fetch_with("no such repository");
        if (pick(2) == 0) loader(each).borrow(giver);
        if (pick(4) == 0) loader(each).set_limit((10 + pick(50)) * kMiB);
        if (pick(4) == 0) each.aliases = {std::string("also ") + static_cast<char>('a' + list.size())};
        list.push_back(std::move(each));
      }
      if (list.empty()) list.push_back(model("a", 20));
      list[pick(static_cast<unsigned>(list.size()))].aliases.push_back("always");
      return list;
    };
    make({}, options);
    std::vector<ModelDefinition> current = definitions();
    std::vector<ModelDefinition> all = current;
    ASSERT_TRUE(registry_->apply(current).ok());
    std::atomic<bool> over{false};
    std::atomic<bool> exceeded{false};
    std::atomic<bool> lost{false};
    std::thread watcher([&] {
      while (!over) {
        std::uint64_t sum = 0;
        for (const auto& use : budget_->uses()) sum += use.reserved + use.borrowed;
        if (sum > budget_->total()) exceeded = true;
        const auto found = registry_->find("always");
        if (!found && found.error().code == ErrorCode::not_found) lost = true;
        std::this_thread::yield();
      }
    });
    struct Asked {
      Request request;
      bool cancelled = false;
    };
    std::vector<Asked> asked;
    std::vector<std::shared_ptr<std::atomic<int>>> answers;  // to operators
    for (int step = 0; step < 80; ++step) {
      const std::string name = (pick(4) == 0 ? "also " : "") + std::string(1, static_cast<char>('a' + pick(4)));
      const auto done = [&answers] {
        answers.push_back(std::make_shared<std::atomic<int>>(0));
        return [count = answers.back()](const Status&) { ++*count; };
      };
      switch (pick(11)) {
        case 0:
          registry_->load(name, done());
          break;
        case 1:
          registry_->unload(name, done());
          break;
        case 2:
          registry_->sleep(name, done());
          break;
        case 7: {
          ModelDefinition each = model(name, 20 + pick(2) * 20);
          all.push_back(each);
          if (pick(3) == 0) {
            registry_->remove(name, done());
          } else {
            registry_->add(each, done());
          }
          break;
        }
        case 3:
          if (pick(4) == 0) {
            current = definitions();
            all.insert(all.end(), current.begin(), current.end());
            ASSERT_TRUE(registry_->apply(current).ok());
          }
          break;
        case 4:
          for (const ModelDefinition& each : current)
            if (const auto service = loader(each).service()) service->finish_all();
          break;
        case 5:
          if (!asked.empty()) {
            Asked& one = asked[pick(static_cast<unsigned>(asked.size()))];
            one.request.handle.reset();
            one.cancelled = true;
          }
          break;
        case 8:
          for (const ModelDefinition& each : current)
            if (const auto service = loader(each).service(); service && pick(4) == 0) service->fail("broken down");
          break;
        case 6:
          std::this_thread::sleep_for(std::chrono::microseconds(pick(3000)));
          break;
        default:
          asked.push_back({ask(name, std::chrono::milliseconds(pick(40))), false});
      }
    }
    // Left alone, it comes to rest by itself, with everybody answered.
    for (const ModelDefinition& each : all) loader(each).fetch_first(false);
    const auto rests = [&] {
      for (const ModelDefinition& each : all) loader(each).finish_everything();
      bool ended = std::all_of(answers.begin(), answers.end(), [](const auto& each) { return *each > 0; });
      for (Asked& each : asked) {
        if (!each.request.sink->wait(0ms))
          ended = ended && each.cancelled;
        else
          each.request.handle.reset();
      }
      for (const ModelEntry& each : registry_->list()) {
        ended = ended && each.state != ModelState::loading && each.state != ModelState::draining &&
                each.state != ModelState::unloading && each.waiting == 0;
      }
      return ended;
    };
    EXPECT_TRUE(eventually(rests)) << "seed " << seed;
    over = true;
    watcher.join();
    EXPECT_FALSE(exceeded);
    EXPECT_FALSE(lost) << "seed " << seed;
    registry_.reset();
    for (const auto& each : answers) EXPECT_EQ(*each, 1) << "seed " << seed;
    for (const ModelDefinition& each : all) {
      loader(each).finish_everything();  // and the engines, what runs
      EXPECT_FALSE(loader(each).abused()) << "seed " << seed;
    }
    for (const Asked& each : asked) {
      std::lock_guard lock(each.request.sink->mutex);
      EXPECT_LE(each.request.sink->terminals, 1);
      if (!each.cancelled) {
        EXPECT_EQ(each.request.sink->terminals, 1) << "seed " << seed;
      }
    }
    asked.clear();
    EXPECT_EQ(reserved(), 0u) << "seed " << seed;
    for (const auto& use : budget_->uses()) ADD_FAILURE() << use.owner << " still has " << use.reserved;
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace xgen::registry
