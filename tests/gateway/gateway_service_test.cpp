#include "gateway/gateway_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "inference/failover.h"
#include "support/scripted_service.h"

namespace xgen::gateway {
namespace {

using namespace std::chrono_literals;
using namespace inference;
using scripted::ScriptedService;
using ::testing::HasSubstr;

// Gathers the events of one request.
class Gathered final : public EventSink {
  template <class Fn>
  auto locked(Fn fn) {
    std::lock_guard lock(mutex_);
    return fn();
  }

 public:
  void on_event(Event event) override {
    {
      std::lock_guard lock(mutex_);
      if (const auto* delta = std::get_if<Delta>(&event)) text_ += delta->text;
      if (std::holds_alternative<Started>(event)) ++started_;
      if (auto* failed = std::get_if<Failed>(&event)) error_ = failed->error;
      if (std::holds_alternative<Finished>(event) || std::holds_alternative<Failed>(event)) ++ends_;
      ++events_;
    }
    changed_.notify_all();
  }
  bool wait(std::chrono::milliseconds patience = 5s) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, patience, [this] { return ends_ > 0; });
  }
  bool wait_for_text(std::chrono::milliseconds patience = 5s) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, patience, [this] { return !text_.empty(); });
  }
  std::string text() {
    return locked([this] { return text_; });
  }
  std::optional<Error> error() {
    return locked([this] { return error_; });
  }
  int started() {
    return locked([this] { return started_; });
  }
  int ends() {
    return locked([this] { return ends_; });
  }
  int events() {
    return locked([this] { return events_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string text_;
  std::optional<Error> error_;
  int started_ = 0, ends_ = 0, events_ = 0;
};

GenerateRequest ask(std::string text) {
  GenerateRequest request;
  request.prompt = std::move(text);
  request.stop.max_tokens = 3;
  return request;
}

// A replica whose faults a test sets.
class Replica final : public ModelService {
 public:
  explicit Replica(std::string name) : name_(std::move(name)) {}

  std::atomic<int> asked{0};
  std::atomic<int> fault{-1};            // an ErrorCode: every request fails with it
  std::atomic<bool> after_start{false};  // not before it has started, and from another thread
  std::atomic<bool> hangs{false};        // takes requests and says nothing
  std::atomic<bool> dead{false};
  std::atomic<int> closed{0};

  std::unique_ptr<RequestHandle> generate_async(GenerateRequest request, std::shared_ptr<EventSink> sink) override {
    ++asked;
    if (hangs) return std::make_unique<RequestHandle>();
    if (fault >= 0) {
      Error error = make_error(static_cast<ErrorCode>(fault.load()), "fault of " + name_);
      if (!after_start) {
        sink->on_event(Failed{error});
        return nullptr;
      }
      std::lock_guard lock(mutex_);
      threads_.emplace_back([sink, error] {
        sink->on_event(Started{});
        sink->on_event(Failed{error});
      });
      return std::make_unique<RequestHandle>();
    }
    return inner_.generate_async(std::move(request), std::move(sink));
  }
  void tokenize_async(TokenizeRequest request, std::function<void(Result<Tokenized>)> done) override {
    ++asked;
    if (fault >= 0) return done(make_error(static_cast<ErrorCode>(fault.load()), "fault of " + name_));
    inner_.tokenize_async(std::move(request), std::move(done));
  }
  void detokenize_async(DetokenizeRequest request, std::function<void(Result<std::string>)> done) override {
    inner_.detokenize_async(std::move(request), std::move(done));
  }
  Capabilities capabilities() const override { return inner_.capabilities(); }
  Health health() const override {
    return {dead ? Health::State::dead : Health::State::ready, 0, dead ? "not there" : ""};
  }
  ServiceStats stats() const override {
    ServiceStats stats;
    stats.generation_tokens = 10;
    stats.requests_running = static_cast<std::uint64_t>(std::max(0, inner_.running.load()));
    return stats;
  }
  void close() override { ++closed; }
  ~Replica() override {
    for (std::thread& each : threads_) each.join();
  }

  ScriptedService& inner() { return inner_; }

 private:
  const std::string name_;
  ScriptedService inner_;
  std::mutex mutex_;
  std::vector<std::thread> threads_;
};

class GatewayTest : public ::testing::Test {
 protected:
  void SetUp() override { log::set_level(log::Level::error); }
  void start(std::vector<std::string> names, GatewayOptions options = {}) {
    options.model = "m";
    options.refresh_interval = 0ms;
    gateway = std::make_unique<GatewayService>(
        options, [this](const std::string& name) { return made(name); }, names);
  }
  std::shared_ptr<Replica> made(const std::string& name) {
    auto& replica = replicas[name];
    if (replica == nullptr) replica = std::make_shared<Replica>(name);
    return replica;
  }
  std::shared_ptr<Gathered> send(const std::string& text) {
    auto sink = std::make_shared<Gathered>();
    handles.push_back(gateway->generate_async(ask(text), sink));
    return sink;
  }
  // Every request fails everywhere.
  void set_fault(ErrorCode code) {
    for (auto& [name, replica] : replicas) replica->fault = static_cast<int>(code);
  }
  void heal() {
    for (auto& [name, replica] : replicas) replica->fault = -1;
  }
  int in_flight() {
    int sum = 0;
    for (const auto& each : gateway->replicas()) sum += each.in_flight;
    return sum;
  }

  std::map<std::string, std::shared_ptr<Replica>> replicas;
  std::unique_ptr<GatewayService> gateway;
  std::vector<std::unique_ptr<RequestHandle>> handles;
};

TEST_F(GatewayTest, SpreadsRequestsAndPassesTheirEventsOn) {
  start({"a", "b", "c"});
  std::vector<std::shared_ptr<Gathered>> sinks;
  for (int i = 0; i < 30; ++i) sinks.push_back(send("say x" + std::to_string(i)));
  for (int i = 0; i < 30; ++i) {
    ASSERT_TRUE(sinks[i]->wait());
    EXPECT_EQ(sinks[i]->text(), "x" + std::to_string(i));
    EXPECT_EQ(sinks[i]->started(), 1);
  }
  for (const auto& [name, replica] : replicas) EXPECT_GT(replica->asked, 0) << name;
  EXPECT_EQ(in_flight(), 0);
}

TEST_F(GatewayTest, AFaultyReplicaCostsNoRequest) {
  for (const bool after_start : {false, true}) {
    for (const ErrorCode code : {ErrorCode::unavailable, ErrorCode::internal, ErrorCode::overloaded}) {
      replicas.clear();
      start({"a", "b", "c"});
      replicas["a"]->after_start = after_start;
      replicas["a"]->fault = static_cast<int>(code);
      std::vector<std::shared_ptr<Gathered>> sinks;
      for (int i = 0; i < 30; ++i) sinks.push_back(send("say yes"));
      for (const auto& sink : sinks) {
        ASSERT_TRUE(sink->wait());
        EXPECT_FALSE(sink->error().has_value()) << sink->error()->message;
        EXPECT_EQ(sink->text(), "yes");
        EXPECT_EQ(sink->started(), 1) << "of the attempt that answered";
        EXPECT_EQ(sink->ends(), 1);
      }
      EXPECT_GE(replicas["a"]->asked, 1);
      if (code != ErrorCode::overloaded && !after_start) {
        EXPECT_EQ(replicas["a"]->asked, 5) << "then its circuit is open";
        EXPECT_EQ(gateway->health().state, Health::State::ready);
        EXPECT_EQ(gateway->health().detail, "a fails");
      }
      EXPECT_EQ(in_flight(), 0);
      handles.clear();
    }
  }
}

TEST_F(GatewayTest, TheLogSaysWhoseRequestAReplicaFailed) {
  start({"a"});
  set_fault(ErrorCode::internal);
  log::set_level(log::Level::warn);
  ::testing::internal::CaptureStderr();
  GenerateRequest request = ask("say yes");
  request.request_id = "abc";
  request.trace.context = trace::child_of({});
  const std::string trace_id = request.trace.context.trace_id;
  auto sink = std::make_shared<Gathered>();
  const auto handle = gateway->generate_async(std::move(request), sink);
  ASSERT_TRUE(sink->wait());
  const std::string lines = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(lines, ::testing::HasSubstr("a replica failed a request trace_id=" + trace_id + " "));
  EXPECT_THAT(lines, ::testing::HasSubstr("request_id=abc"));
}

TEST_F(GatewayTest, AFaultOfTheRequestIsNotTriedElsewhere) {
  start({"a", "b"});
  set_fault(ErrorCode::invalid_argument);
  const auto sink = send("say x");
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(sink->error()->code, ErrorCode::invalid_argument);
  EXPECT_EQ(replicas["a"]->asked + replicas["b"]->asked, 1);
}

TEST_F(GatewayTest, NothingIsTriedAgainOnceATokenHasCome) {
  start({"a", "b"});
  const auto sink = send("break");
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(sink->text(), "part");
  EXPECT_THAT(sink->error()->message, HasSubstr("in the middle"));
  EXPECT_EQ(sink->ends(), 1);
  EXPECT_EQ(replicas["a"]->asked + replicas["b"]->asked, 1);
}

TEST_F(GatewayTest, AttemptsAreLimitedAndTheLastErrorIsTold) {
  start({"a", "b", "c", "d", "e"});
  set_fault(ErrorCode::unavailable);
  const auto sink = send("say x");
  ASSERT_TRUE(sink->wait());
  EXPECT_THAT(sink->error()->message, HasSubstr("fault of"));
  int asked = 0;
  for (auto& [name, replica] : replicas) asked += replica->asked;
  EXPECT_EQ(asked, 3);
}

TEST_F(GatewayTest, WithoutAnyReplicaTheRequestSaysWhenToTryAgain) {
  start({"a", "b"});
  for (auto& [name, replica] : replicas) replica->dead = true;
  const auto sink = send("say x");
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(sink->error()->code, ErrorCode::unavailable);
  EXPECT_GT(sink->error()->retry_after_s, 0);
  EXPECT_THAT(sink->error()->message, HasSubstr("'m'"));
  EXPECT_EQ(gateway->health().state, Health::State::degraded);
  EXPECT_THAT(gateway->health().detail, HasSubstr("a is not ready"));
  replicas["b"]->dead = false;
  const auto again = send("say x");
  ASSERT_TRUE(again->wait());
  EXPECT_EQ(again->text(), "x");
}

// The only replica is back, and the request that tries it runs on and on.
TEST_F(GatewayTest, AProbeHoldsOthersOffOnlyUntilItsFirstToken) {
  GatewayOptions options;
  options.balancer.open_time = 500ms;
  start({"a"}, options);
  set_fault(ErrorCode::unavailable);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(send("say x")->wait());
  EXPECT_EQ(gateway->health().state, Health::State::degraded);
  heal();
  std::this_thread::sleep_for(510ms);
  EXPECT_EQ(gateway->health().state, Health::State::ready);
  send("hold");  // without a token
  const auto refused = send("say x");
  ASSERT_TRUE(refused->error().has_value());
  EXPECT_EQ(refused->error()->code, ErrorCode::unavailable);
  EXPECT_GE(refused->error()->retry_after_s, 1);
  EXPECT_EQ(gateway->health().state, Health::State::degraded);
  EXPECT_TRUE(gateway->replicas()[0].open);
  // There is no other: the next one goes there though the first is silent still.
  std::this_thread::sleep_for(510ms);
  GenerateRequest endless = ask("clock");
  endless.stop.max_tokens = 1'000'000'000;
  const auto stream = std::make_shared<Gathered>();
  handles.push_back(gateway->generate_async(std::move(endless), stream));
  ASSERT_TRUE(stream->wait_for_text());
  EXPECT_EQ(gateway->health().state, Health::State::ready);
  const auto sink = send("say x");
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(sink->text(), "x");
  EXPECT_EQ(stream->ends(), 0);
}

TEST_F(GatewayTest, APromptThatFailsEverywhereLeavesTheReplicasIn) {
  start({"a", "b", "c"});
  set_fault(ErrorCode::internal);
  for (int i = 0; i < 12; ++i) ASSERT_TRUE(send("say poison")->wait());
  heal();
  const auto sink = send("say x");
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(sink->text(), "x");
  EXPECT_EQ(gateway->health().detail, "");
}

TEST_F(GatewayTest, AReplicaThatAnswersNobodyGoesOut) {
  GatewayOptions options;
  options.balancer.policy = Policy::round_robin;
  options.balancer.patience = 0ms;
  for (const bool clients_leave : {false, true}) {
    replicas.clear();
    start({"a", "b"}, options);
    replicas["a"]->hangs = clients_leave;
    if (!clients_leave) replicas["a"]->fault = static_cast<int>(ErrorCode::timeout);
    while (replicas["a"]->asked < 5) {
      const int before = replicas["b"]->asked;
      const auto sink = send("say x");
      if (replicas["b"]->asked > before) {
        ASSERT_TRUE(sink->wait());
      }
      handles.clear();
    }
    EXPECT_EQ(gateway->health().detail, "a fails");
  }
}

TEST_F(GatewayTest, ARefusalSaysNothingOfTheReplica) {
  for (const ErrorCode code : {ErrorCode::unsupported, ErrorCode::invalid_argument}) {
    replicas.clear();
    start({"a"});
    for (int i = 0; i < 4; ++i) {
      set_fault(ErrorCode::unavailable);
      send("say x");
      set_fault(code);
      send("say x");
    }
    EXPECT_EQ(gateway->health().detail, "");
    set_fault(ErrorCode::unavailable);
    send("say x");
    EXPECT_EQ(gateway->health().detail, "a fails") << "the fifth in a row";
  }
}

TEST_F(GatewayTest, CancellingReachesTheReplica) {
  start({"a", "b"});
  const auto sink = send("hold");
  for (int i = 0; i < 1000 && replicas["a"]->inner().running + replicas["b"]->inner().running == 0; ++i)
    std::this_thread::sleep_for(1ms);
  EXPECT_EQ(in_flight(), 1);
  handles.clear();
  EXPECT_EQ(in_flight(), 0);
  for (int i = 0; i < 5000 && replicas["a"]->inner().cancelled + replicas["b"]->inner().cancelled == 0; ++i)
    std::this_thread::sleep_for(1ms);
  EXPECT_EQ(replicas["a"]->inner().cancelled + replicas["b"]->inner().cancelled, 1);
  EXPECT_EQ(sink->events(), 0) << "its start was held back";
}

TEST_F(GatewayTest, ConversationsStayWithTheirReplica) {
  start({"a", "b", "c"});
  const std::string talk = "say " + std::string(3000, 'x');
  ASSERT_TRUE(send(talk)->wait());
  std::string home;
  for (auto& [name, replica] : replicas)
    if (replica->asked == 1) home = name;
  for (int turn = 1; turn < 8; ++turn) ASSERT_TRUE(send(talk + std::string(500 * turn, 'y'))->wait());
  EXPECT_EQ(replicas[home]->asked, 8);
}

TEST_F(GatewayTest, ReplicasComeAndGo) {
  start({"a"});
  const auto running = send("hold");
  gateway->set_replicas({"b"});
  const auto sink = send("say x");
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(replicas["b"]->asked, 1);
  EXPECT_EQ(running->ends(), 0) << "runs on";
  EXPECT_EQ(gateway->stats().generation_tokens, 20u) << "what has gone is still counted";
  gateway->set_replicas({});
  const auto none = send("say x");
  ASSERT_TRUE(none->wait());
  EXPECT_TRUE(none->error().has_value());
}

// Nothing looks at it any more, such as a health check with our key at an address that may be somebody else's by now.
TEST_F(GatewayTest, AReplicaWithoutRequestsLeavesAtOnce) {
  start({"a"});
  const std::weak_ptr<Replica> a = replicas["a"];
  replicas.clear();
  gateway->set_replicas({});
  EXPECT_TRUE(a.expired());
}

// Its last requests are still counted, and when it has gone for good it stays counted.
TEST_F(GatewayTest, AReplicaThatLeavesIsCountedToTheEnd) {
  start({"a"});
  const auto running = send("hold");
  gateway->set_replicas({});
  const std::weak_ptr<Replica> a = replicas["a"];
  replicas.clear();
  EXPECT_EQ(gateway->stats().requests_running, 1u);
  EXPECT_FALSE(a.expired()) << "while its request runs";
  handles.clear();
  gateway->health();  // or whatever comes next
  EXPECT_TRUE(a.expired());
  EXPECT_EQ(gateway->stats().requests_running, 0u);
  EXPECT_EQ(gateway->stats().generation_tokens, 10u);
}

TEST_F(GatewayTest, ARequestOfAReplicaThatLeftDoesNotCountAtTheNextOfItsName) {
  start({"a"});
  send("hold");
  gateway->set_replicas({});
  replicas.clear();
  gateway->set_replicas({"a"});
  send("hold");
  EXPECT_EQ(in_flight(), 1);
  handles.erase(handles.begin());
  EXPECT_EQ(in_flight(), 1);
  handles.clear();
  EXPECT_EQ(in_flight(), 0);
}

// A chat must not be refused for what is not known yet.
TEST_F(GatewayTest, WithoutAnyKnownReplicaAChatMayBePossible) {
  start({});
  EXPECT_TRUE(gateway->capabilities().chat);
  EXPECT_EQ(gateway->health().state, Health::State::degraded);
  EXPECT_EQ(gateway->health().detail, "no replica is known: none is listed");
  const auto sink = send("say x");
  ASSERT_TRUE(sink->wait());
  EXPECT_EQ(sink->error()->code, ErrorCode::unavailable);
  EXPECT_EQ(sink->error()->message, "No replica of the model 'm' is known: none is listed.");
  EXPECT_GT(sink->error()->retry_after_s, 0);
}

TEST_F(GatewayTest, NothingJoinsAfterTheEnd) {
  start({"a"});
  gateway->close();
  EXPECT_EQ(replicas["a"]->closed, 1);
  gateway->set_replicas({"a", "b"});
  EXPECT_EQ(replicas.count("b"), 0u);
}

TEST_F(GatewayTest, TokensAreAskedOfOneReplicaAndThenAnother) {
  start({"a", "b", "c"});
  replicas["a"]->fault = static_cast<int>(ErrorCode::unavailable);
  for (int i = 0; i < 10; ++i) {
    std::optional<Result<Tokenized>> answer;
    gateway->tokenize_async({std::string("ab")}, [&](Result<Tokenized> result) { answer = std::move(result); });
    ASSERT_TRUE(answer.has_value() && answer->ok());
    EXPECT_EQ((*answer)->ids.size(), 2u);
  }
  std::optional<Result<std::string>> text;
  gateway->detokenize_async({{104, 105}}, [&](Result<std::string> result) { text = std::move(result); });
  EXPECT_EQ(text->value(), "hi");
  EXPECT_EQ(in_flight(), 0);
}

TEST_F(GatewayTest, WhenAllHaveFailedToGiveTokensTheLastErrorIsTold) {
  start({"a", "b"});
  set_fault(ErrorCode::unavailable);
  std::optional<Result<Tokenized>> answer;
  gateway->tokenize_async({std::string("ab")}, [&](Result<Tokenized> result) { answer = std::move(result); });
  ASSERT_TRUE(answer.has_value() && !answer->ok());
  EXPECT_THAT(answer->error().message, HasSubstr("fault of"));
}

// Requests that are sent, cancelled and failed at once end exactly once each, and nothing stays counted.
TEST_F(GatewayTest, ManyRequestsOfAllKindsAtOnce) {
  start({"a", "b", "c"}, {.max_attempts = 2});
  replicas["b"]->after_start = true;
  std::atomic<bool> stop{false};
  std::thread weather([&] {
    for (int i = 0; !stop; ++i) {
      replicas["a"]->fault = i % 3 == 0 ? static_cast<int>(ErrorCode::unavailable) : -1;
      replicas["b"]->fault = i % 4 == 0 ? static_cast<int>(ErrorCode::internal) : -1;
      if (i % 50 == 0) gateway->set_replicas({"a", "b", i % 100 == 0 ? "c" : "d"});
      std::this_thread::sleep_for(100us);
    }
  });
  std::vector<std::thread> clients;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      for (int i = 0; i < 150; ++i) {
        auto sink = std::make_shared<Gathered>();
        auto handle = gateway->generate_async(ask(i % 5 == 0 ? "break" : "say hello"), sink);
        if ((i + c) % 7 == 0) {
          handle.reset();
          EXPECT_LE(sink->ends(), 1);
          continue;
        }
        ASSERT_TRUE(sink->wait());
        EXPECT_EQ(sink->ends(), 1);
      }
    });
  }
  for (std::thread& each : clients) each.join();
  stop = true;
  weather.join();
  EXPECT_EQ(in_flight(), 0);
}

}  // namespace
}  // namespace xgen::gateway
