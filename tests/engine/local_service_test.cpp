#include "engine/local_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <cmath>
#include <future>
#include <new>
#include <random>
#include <stdexcept>
#include <thread>

#include "base/log.h"
#include "base/prep_thread.h"
#include "engine/fake_runner.h"
#include "engine/service_fixture.h"
#include "support/memory_files.h"

namespace xgen::engine {
namespace {

using inference::FinishReason;
using inference::Message;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(LocalService, AnswersWithTextUsageAndOneEnd) {
  const auto service = scripted(spell("hello world"));
  const auto seen = answer(*service, ask("Say it"));
  EXPECT_FALSE(seen->error.has_value());
  EXPECT_EQ(seen->text(), "hello world");
  EXPECT_EQ(seen->start.usage.prompt_tokens, 6);
  EXPECT_EQ(seen->usage.prompt_tokens, 6);
  EXPECT_EQ(seen->usage.completion_tokens, 12) << "eos is a generated token";
  EXPECT_EQ(seen->tokens, 12);
  ASSERT_EQ(seen->ends.size(), 1u);
  EXPECT_EQ(seen->ends[0].reason, FinishReason::stop);
  EXPECT_FALSE(seen->ends[0].stop_reason.has_value());
  EXPECT_GE(seen->timings.queue, 0);
  EXPECT_GE(seen->timings.decode, 0);
}

TEST(LocalService, StopsAtMaxTokensAndFillsTheContextWithout) {
  const auto service = scripted(spell(std::string(2000, 'y')));
  auto request = ask("abc");
  request.stop.max_tokens = 5;
  auto seen = answer(*service, request);
  EXPECT_EQ(seen->text(), "yyyyy");
  EXPECT_EQ(seen->ends[0].reason, FinishReason::length);
  request.stop.max_tokens.reset();
  seen = answer(*service, request);
  EXPECT_EQ(seen->text().size(), 512u - 3) << "the rest of the context";
  EXPECT_EQ(seen->ends[0].reason, FinishReason::length);
}

TEST(LocalService, StopStringsEndTheTextBeforeThem) {
  const auto service = scripted(spell("one two three four"));
  auto request = ask("abc");
  request.stop.stop = {"never", "three", "ee"};
  request.logprobs = 0;
  const auto seen = answer(*service, request);
  EXPECT_EQ(seen->text(), "one two ");
  EXPECT_EQ(seen->ends[0].reason, FinishReason::stop);
  EXPECT_EQ(std::get<std::string>(*seen->ends[0].stop_reason), "three");
  EXPECT_EQ(seen->usage.completion_tokens, 13);
  EXPECT_EQ(seen->tokens, 13);
  std::string joined;
  for (const auto& l : seen->logprobs) joined += l.token;
  EXPECT_EQ(joined, "one two ") << "log-probabilities cover the text and nothing of the stop string";
}

TEST(LocalService, StopStringsCountAfterMinTokens) {
  const auto service = scripted(spell("one one one one"));
  auto request = ask("abc");
  request.stop.stop = {"one"};
  request.stop.min_tokens = 7;  // both "one"s end within the first seven tokens
  request.logprobs = 0;
  const auto seen = answer(*service, request);
  EXPECT_EQ(seen->text(), "one one ");
  EXPECT_EQ(seen->logprobs.size(), 8u);
  EXPECT_EQ(std::get<std::string>(*seen->ends[0].stop_reason), "one");
  request.stop.min_tokens = 15;
  EXPECT_EQ(answer(*service, request)->text(), "one one one one");
}

// The second x may still begin "xxy" when the third releases the first.
TEST(LocalService, LogprobsWaitForTheTextOfTheirToken) {
  const auto service = scripted(spell("xxxxy"));
  auto request = ask("abc");
  request.stop.stop = {"xxy"};
  request.logprobs = 0;
  const auto seen = answer(*service, request);
  EXPECT_EQ(seen->text(), "xx");
  EXPECT_EQ(seen->logprobs.size(), 2u);
  EXPECT_EQ(seen->tokens, 5);
}

TEST(LocalService, TextHeldBackForAStopStringComesInTheEnd) {
  const auto service = scripted(spell("one two thr"));
  auto request = ask("abc");
  request.stop.stop = {"three"};
  request.logprobs = 1;
  const auto seen = answer(*service, request);
  EXPECT_EQ(seen->text(), "one two thr");
  EXPECT_EQ(seen->logprobs.size(), 11u) << "without eos";
}

TEST(LocalService, StopTokenIdsAndIgnoreEos) {
  auto service = scripted(spell("abcdef"));
  auto request = ask("abc");
  request.stop.stop_token_ids = {'d'};
  auto seen = answer(*service, request);
  EXPECT_EQ(seen->text(), "abc");
  EXPECT_EQ(std::get<TokenId>(*seen->ends[0].stop_reason), 'd');
  request = ask("abc");
  request.stop.ignore_eos = true;
  request.stop.max_tokens = 10;
  seen = answer(*service, request);
  EXPECT_EQ(seen->text(), "abcdef") << "special tokens have no text";
  EXPECT_EQ(seen->usage.completion_tokens, 10);
  EXPECT_EQ(seen->ends[0].reason, FinishReason::length);
}

// Every delta is whole UTF-8, though a token is one byte.
TEST(LocalService, NeverSendsHalfACharacter) {
  const std::string text = "한국어 and \xF0\x9F\x98\x80!";
  const auto service = scripted(spell(text));
  struct Checker final : inference::EventSink {
    void on_event(inference::Event event) override {
      if (auto* delta = std::get_if<inference::Delta>(&event)) {
        whole &= delta->text.empty() || (static_cast<unsigned char>(delta->text[0]) & 0xC0) != 0x80;
        tokens += delta->tokens;
        joined += delta->text;
      }
      inner.on_event(std::move(event));
    }
    Collector inner;
    bool whole = true;
    int tokens = 0;
    std::string joined;
  };
  auto sink = std::make_shared<Checker>();
  const auto handle = service->generate_async(ask("abc"), sink);
  ASSERT_TRUE(sink->inner.wait());
  EXPECT_TRUE(sink->whole);
  EXPECT_EQ(sink->joined, text);
  EXPECT_EQ(sink->tokens, static_cast<int>(text.size()) + 1);
}

TEST(LocalService, LogprobsBelongToTheirTokens) {
  const auto service = scripted(spell("abc"));
  auto request = ask("x");
  request.logprobs = 2;
  const auto seen = answer(*service, request);
  ASSERT_EQ(seen->logprobs.size(), 3u);
  EXPECT_EQ(seen->logprobs[1].id, 'b');
  EXPECT_EQ(seen->logprobs[1].token, "b");
  EXPECT_FLOAT_EQ(*seen->logprobs[1].logprob, -98.0f / 256);
  ASSERT_EQ(seen->logprobs[1].top.size(), 2u);
  EXPECT_EQ(seen->logprobs[1].top[1].token, "b");
}

TEST(LocalService, EchoAndPromptLogprobs) {
  const auto service = scripted(spell("def"));
  auto request = ask("abc");
  request.echo = true;
  request.prompt_logprobs = true;
  request.logprobs = 1;
  auto seen = answer(*service, request);
  EXPECT_EQ(seen->start.prompt_text, "abc");
  ASSERT_EQ(seen->start.prompt_logprobs.size(), 3u);
  EXPECT_FALSE(seen->start.prompt_logprobs[0].logprob.has_value());
  EXPECT_EQ(seen->start.prompt_logprobs[0].token, "a");
  EXPECT_FLOAT_EQ(*seen->start.prompt_logprobs[2].logprob, -99.0f / 256);
  EXPECT_EQ(seen->text(), "def");

  request.prompt = std::vector<TokenId>{'a', 'b'};
  request.prompt_logprobs = false;
  EXPECT_EQ(answer(*service, request)->start.prompt_text, "ab");
}

TEST(LocalService, NoTokensAtAll) {
  const auto service = scripted(spell("def"));
  for (const char* prompt : {"a", "abcdefghij"}) {
    for (const bool scored : {false, true}) {
      auto request = ask(prompt);
      request.stop.max_tokens = 0;
      request.n = 2;
      request.echo = true;
      request.prompt_logprobs = scored;
      const auto seen = answer(*service, request);
      EXPECT_EQ(seen->start.prompt_text, prompt);
      EXPECT_EQ(seen->start.prompt_logprobs.size(), scored ? std::string(prompt).size() : 0u);
      ASSERT_EQ(seen->ends.size(), 2u);
      EXPECT_EQ(seen->ends[1].reason, FinishReason::length);
      EXPECT_EQ(seen->usage.completion_tokens, 0);
    }
  }
  EXPECT_EQ(service->stats().requests_running, 0u);
}

TEST(LocalService, ChoicesHaveTheirOwnText) {
  const auto service = scripted([](const Sequence& s) -> Result<TokenId> {
    return static_cast<int>(s.output.size()) <= s.choice ? 'a' + s.choice : kEos;
  });
  auto request = ask("abc");
  request.n = 5;
  const auto seen = answer(*service, request);
  EXPECT_EQ(seen->texts, (std::vector<std::string>{"a", "bb", "ccc", "dddd", "eeeee"}));
  EXPECT_EQ(seen->ends.size(), 5u);
  EXPECT_EQ(seen->usage.completion_tokens, 15 + 5);
}

TEST(LocalService, ChoicesThatEndInTheSameStepAreAllDelivered) {
  const auto service = scripted(spell("same"));
  auto request = ask("abc");
  request.n = 6;
  for (int max_tokens : {3, 10}) {
    request.stop.max_tokens = max_tokens;
    const auto seen = answer(*service, request);
    EXPECT_EQ(seen->texts, std::vector<std::string>(6, max_tokens == 3 ? "sam" : "same"));
    EXPECT_EQ(seen->ends.size(), 6u);
    EXPECT_EQ(seen->usage.completion_tokens, 6 * std::min(max_tokens, 5));
  }
}

TEST(LocalService, ChatsGoThroughTheTemplate) {
  std::atomic<int> first{0};
  std::atomic<int> size{0};
  const auto service = scripted([&](const Sequence& s) -> Result<TokenId> {
    first = s.token(0);
    size = s.prompt_size();
    return kEos;
  });
  const auto seen = answer(*service, ask(std::vector<Message>{{"user", "hi", ""}}));
  EXPECT_FALSE(seen->error.has_value());
  EXPECT_EQ(first, kBos) << "special tokens in the rendered text are parsed";
  EXPECT_EQ(size, 1 + 8 + 10);
  const auto refused = answer(*service, ask(std::vector<Message>{{"nobody", "hi", ""}}));
  ASSERT_TRUE(refused->error.has_value());
  EXPECT_EQ(refused->error->code, ErrorCode::invalid_argument);
  EXPECT_EQ(refused->error->param, "messages");
  EXPECT_EQ(answer(*service, ask(std::vector<Message>{}))->error->param, "messages");

  LocalServiceParts parts = parts_with(std::make_unique<ScriptedRunner>(spell("x")));
  parts.render_chat = nullptr;
  const auto plain = make_local_service(std::move(parts));
  EXPECT_FALSE(plain->capabilities().chat);
  EXPECT_EQ(answer(*plain, ask(std::vector<Message>{{"user", "hi", ""}}))->error->param, "messages");
}

TEST(LocalService, RefusesBadRequestsByField) {
  const auto service = scripted(spell("x"));
  struct Bad {
    const char* param;
    std::function<void(inference::GenerateRequest&)> spoil;
  };
  const Bad cases[] = {
      {"temperature", [](auto& r) { r.sampling.temperature = -1.f; }},
      {"temperature", [](auto& r) { r.sampling.temperature = std::nanf(""); }},
      {"top_p", [](auto& r) { r.sampling.top_p = 0.f; }},
      {"top_p", [](auto& r) { r.sampling.top_p = 1.1f; }},
      {"min_p", [](auto& r) { r.sampling.min_p = 2.f; }},
      {"repetition_penalty", [](auto& r) { r.sampling.repetition_penalty = 0.f; }},
      {"presence_penalty", [](auto& r) { r.sampling.presence_penalty = INFINITY; }},
      {"frequency_penalty", [](auto& r) { r.sampling.frequency_penalty = std::nanf(""); }},
      {"logit_bias",
       [](auto& r) {
         r.sampling.logit_bias = {{kByteVocab, 1.f}};
       }},
      {"logit_bias",
       [](auto& r) {
         r.sampling.logit_bias = {{1, INFINITY}};
       }},
      {"n", [](auto& r) { r.n = 0; }},
      {"n", [](auto& r) { r.n = 1 << 30; }},
      {"logprobs", [](auto& r) { r.logprobs = -1; }},
      {"logprobs", [](auto& r) { r.logprobs = 1 << 30; }},
      {"max_tokens", [](auto& r) { r.stop.max_tokens = -1; }},
      {"max_tokens", [](auto& r) { r.stop.max_tokens = 511; }},
      {"max_tokens", [](auto& r) { r.stop.max_tokens = 2147483647; }},
      {"min_tokens", [](auto& r) { r.stop.min_tokens = -1; }},
      {"min_tokens", [](auto& r) { r.stop.min_tokens = 5, r.stop.max_tokens = 4; }},
      {"stop_token_ids", [](auto& r) { r.stop.stop_token_ids = {-1}; }},
      {"prompt", [](auto& r) { r.prompt = std::string(600, 'x'); }},
      {"prompt", [](auto& r) { r.prompt = std::string(512, 'x'); }},
      {"prompt", [](auto& r) { r.prompt = ""; }},
      {"prompt", [](auto& r) { r.prompt = std::vector<TokenId>{}; }},
      {"prompt",
       [](auto& r) {
         r.prompt = std::vector<TokenId>{1, kByteVocab};
       }},
      {"prompt", [](auto& r) { r.prompt = std::vector<TokenId>{-5}; }},
      {"prompt", [](auto& r) { r.prompt = std::string(std::size_t{3} << 20, 'x'); }},
      {"messages",
       [](auto& r) {
         r.prompt = std::vector<Message>{{"user", std::string(600, 'x'), ""}};
       }},
  };
  for (const Bad& bad : cases) {
    auto request = ask("hi");
    bad.spoil(request);
    const auto seen = answer(*service, request);
    ASSERT_TRUE(seen->error.has_value()) << bad.param;
    EXPECT_EQ(seen->error->code, ErrorCode::invalid_argument) << bad.param;
    EXPECT_EQ(seen->error->param, bad.param) << seen->error->message;
    EXPECT_EQ(seen->events, 1);
  }
  EXPECT_EQ(answer(*service, ask("hi"))->text(), "x") << "the next request works";
}

TEST(LocalService, ALargePromptIsPreparedElsewhere) {
  const auto service = scripted(spell("ok"));
  auto large = std::make_shared<Collector>();
  const auto handle = service->generate_async(ask(std::string(std::size_t{1} << 20, 'x')), large);
  EXPECT_EQ(answer(*service, ask("hi"))->text(), "ok");
  ASSERT_TRUE(large->wait());
  ASSERT_TRUE(large->error.has_value());
  EXPECT_EQ(large->error->param, "prompt");
  EXPECT_NE(large->error->message.find("1048576 tokens"), std::string::npos) << large->error->message;
}

TEST(LocalService, ModelDefaultsApplyUnlessTheRequestSaysOtherwise) {
  std::mutex mutex;
  SamplingParams last;
  std::vector<TokenId> eos;
  LocalServiceParts parts = parts_with(std::make_unique<ScriptedRunner>([&](const Sequence& s) -> Result<TokenId> {
    std::lock_guard lock(mutex);
    last = s.request->sampling;
    eos = s.request->eos_ids;
    return 258;
  }));
  parts.defaults.eos_ids = {kEos, 258};
  parts.defaults.temperature = 0.6f;
  parts.defaults.top_k = 20;
  parts.defaults.top_p = 0.9f;
  parts.defaults.min_p = 0.05f;
  parts.defaults.repetition_penalty = 1.1f;
  const auto service = make_local_service(std::move(parts));
  EXPECT_EQ(answer(*service, ask("a"))->ends[0].reason, FinishReason::stop) << "every eos id ends";
  EXPECT_EQ(last.temperature, 0.6f);
  EXPECT_EQ(last.top_k, 20);
  EXPECT_EQ(last.top_p, 0.9f);
  EXPECT_EQ(last.min_p, 0.05f);
  EXPECT_EQ(last.repetition_penalty, 1.1f);
  auto request = ask("a");
  request.sampling.temperature = 0.f;
  request.sampling.top_k = -1;
  request.sampling.top_p = 1.f;
  request.sampling.seed = 77;
  answer(*service, request);
  EXPECT_EQ(last.temperature, 0.f);
  EXPECT_EQ(last.top_k, 0);
  EXPECT_EQ(last.top_p, 1.f);
  EXPECT_EQ(last.seed, 77u);
  answer(*service, ask("a"));
  const std::uint64_t drawn = last.seed;
  answer(*service, ask("a"));
  EXPECT_NE(last.seed, drawn) << "without a seed every request draws its own";
}

TEST(LocalService, TheTokenizersEosEndsBesideTheConfigs) {
  const auto files = test::memory_files("byte tokenizer", {{"tokenizer.json", byte_tokenizer_json()},
                                                           {"tokenizer_config.json", R"({"eos_token": "<end>"})"}});
  for (const TokenId eos : {kEos, TokenId{258}}) {
    LocalServiceParts parts = parts_with(std::make_unique<ScriptedRunner>(
        [eos](const Sequence& s) -> Result<TokenId> { return s.output.size() == 2 ? eos : TokenId{'y'}; }));
    auto tokenizer = text::Tokenizer::load(*files);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
    parts.tokenizer = *tokenizer;
    parts.defaults.eos_ids = {kEos};
    const auto service = make_local_service(std::move(parts));
    const auto seen = answer(*service, ask("a"));
    EXPECT_EQ(seen->text(), "yy");
    EXPECT_EQ(seen->ends[0].reason, FinishReason::stop);
  }
}

// A runner that waits to be let go, step by step.
struct Gate {
  std::mutex mutex;
  std::condition_variable changed;
  int allowed = 0;
  int entered = 0;
  void allow(int steps) {
    std::lock_guard lock(mutex);
    allowed += steps;
    changed.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex);
    ++entered;
    changed.notify_all();
    changed.wait(lock, [this] { return allowed > 0; });
    --allowed;
  }
  void wait_entered(int count) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return entered >= count; });
  }
};

class GatedRunner final : public ModelRunner {
 public:
  GatedRunner(std::shared_ptr<Gate> gate, ScriptedRunner::Next next)
      : gate_(std::move(gate)), inner_(std::move(next)) {}
  void run(const StepPlan& plan, StepResult& result) override {
    gate_->pass();
    inner_.run(plan, result);
  }

 private:
  std::shared_ptr<Gate> gate_;
  ScriptedRunner inner_;
};

TEST(LocalService, AFullQueueIsOverloadedWithAHint) {
  auto gate = std::make_shared<Gate>();
  LocalServiceParts parts = parts_with(std::make_unique<GatedRunner>(gate, spell("x")));
  parts.max_waiting = 3;
  parts.scheduler.max_num_seqs = 1;
  const auto service = make_local_service(std::move(parts));
  std::vector<std::shared_ptr<Collector>> sinks;
  std::vector<std::unique_ptr<inference::RequestHandle>> handles;
  const auto submit = [&] {
    sinks.push_back(std::make_shared<Collector>());
    handles.push_back(service->generate_async(ask("a"), sinks.back()));
  };
  submit();
  gate->wait_entered(1);  // the first runs
  for (int i = 0; i < 3; ++i) submit();
  EXPECT_EQ(sinks[3]->count(), 0);
  submit();
  ASSERT_TRUE(sinks[4]->done()) << "refused at once";
  EXPECT_EQ(sinks[4]->error->code, ErrorCode::overloaded);
  EXPECT_GE(sinks[4]->error->retry_after_s, 1);
  EXPECT_EQ(service->stats().rejected_queue_full, 1u);
  handles[2].reset();  // one gives its place up
  gate->allow(1000);
  for (int i : {0, 1, 3}) {
    ASSERT_TRUE(sinks[static_cast<std::size_t>(i)]->wait());
    EXPECT_EQ(sinks[static_cast<std::size_t>(i)]->text(), "x");
  }
  EXPECT_EQ(sinks[2]->count(), 0) << "cancelled before it began";
  for (int i = 0; i < 10; ++i) EXPECT_EQ(answer(*service, ask("a"))->text(), "x") << "the places are free again";
  EXPECT_EQ(service->stats().rejected_queue_full, 1u);
}

// A prompt without output is over as soon as the engine takes it; its cancellation may arrive with it.
TEST(LocalService, ARequestThatIsOverWhenItsCancellationComesGivesItsPlaceUpOnce) {
  auto gate = std::make_shared<Gate>();
  LocalServiceParts parts = parts_with(std::make_unique<GatedRunner>(gate, spell("x")));
  parts.max_waiting = 2;
  parts.scheduler.max_num_seqs = 1;
  const auto service = make_local_service(std::move(parts));
  const auto running = std::make_shared<Collector>();
  const auto running_handle = service->generate_async(ask("a"), running);
  gate->wait_entered(1);
  for (int i = 0; i < 2; ++i) {
    auto request = ask("a");
    request.stop.max_tokens = 0;
    service->generate_async(request, std::make_shared<Collector>()).reset();
  }
  gate->allow(2);  // "x" and eos
  ASSERT_TRUE(running->wait());

  std::vector<std::shared_ptr<Collector>> sinks;
  std::vector<std::unique_ptr<inference::RequestHandle>> handles;
  for (int i = 0; i < 4; ++i) {
    sinks.push_back(std::make_shared<Collector>());
    handles.push_back(service->generate_async(ask("a"), sinks.back()));
    if (i == 0) gate->wait_entered(3);
  }
  EXPECT_FALSE(sinks[2]->done());
  ASSERT_TRUE(sinks[3]->done()) << "one runs and two wait: a fourth is one too many";
  EXPECT_EQ(sinks[3]->error->code, ErrorCode::overloaded);
  gate->allow(1000);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(sinks[static_cast<std::size_t>(i)]->wait());
}

TEST(LocalService, DroppingTheHandleFreesTheBlocksWithinOneStep) {
  auto gate = std::make_shared<Gate>();
  const auto service =
      make_local_service(parts_with(std::make_unique<GatedRunner>(gate, spell(std::string(5000, 'z')))));
  auto sink = std::make_shared<Collector>();
  auto handle = service->generate_async(ask("abc"), sink);
  gate->allow(3);
  ASSERT_TRUE(sink->wait_for_events(4));  // Started and three deltas
  EXPECT_GT(service->stats().kv_cache_usage, 0);
  handle.reset();
  gate->allow(1);  // the step that is under way
  for (int i = 0; i < 6000 && service->stats().finished_abort == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(service->stats().finished_abort, 1u);
  EXPECT_EQ(service->stats().kv_cache_usage, 0);
  EXPECT_EQ(sink->count(), 4);
  EXPECT_EQ(sink.use_count(), 1) << "the engine has let go of the sink";
}

TEST(LocalService, EveryChoiceOfACancelledRequestCounts) {
  auto gate = std::make_shared<Gate>();
  const auto service =
      make_local_service(parts_with(std::make_unique<GatedRunner>(gate, spell(std::string(5000, 'z')))));
  auto request = ask("abc");
  request.n = 4;
  auto sink = std::make_shared<Collector>();
  auto handle = service->generate_async(request, sink);
  gate->wait_entered(1);
  handle.reset();
  gate->allow(1);
  for (int i = 0; i < 6000 && service->stats().finished_abort == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(service->stats().finished_abort, 4u);
}

TEST(LocalService, DeadlinesFailTheRequestAsTimeout) {
  auto gate = std::make_shared<Gate>();
  const auto service =
      make_local_service(parts_with(std::make_unique<GatedRunner>(gate, spell(std::string(5000, 'z')))));
  auto request = ask("abc");
  request.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
  auto sink = std::make_shared<Collector>();
  const auto handle = service->generate_async(request, sink);
  gate->wait_entered(1);
  std::this_thread::sleep_until(*request.deadline);
  gate->allow(2);
  ASSERT_TRUE(sink->wait());
  ASSERT_TRUE(sink->error.has_value());
  EXPECT_EQ(sink->error->code, ErrorCode::timeout);
  EXPECT_EQ(service->stats().kv_cache_usage, 0);
  request = ask("abc");
  request.deadline = std::chrono::steady_clock::now() - std::chrono::seconds(1);
  EXPECT_EQ(answer(*service, request)->error->code, ErrorCode::timeout) << "too late before it begins";
}

TEST(LocalService, AModelErrorFailsOneRequest) {
  const auto service = scripted([](const Sequence& s) -> Result<TokenId> {
    if (s.token(0) == '!' && s.output.size() == 2) return make_error(ErrorCode::internal, "not a number");
    return s.output.size() < 10 ? 'k' : kEos;
  });
  auto bad = std::make_shared<Collector>();
  auto good = std::make_shared<Collector>();
  auto request = ask("!bad");
  request.n = 3;
  const auto one = service->generate_async(request, bad);
  const auto two = service->generate_async(ask("good"), good);
  ASSERT_TRUE(bad->wait());
  ASSERT_TRUE(good->wait());
  ASSERT_TRUE(bad->error.has_value());
  EXPECT_EQ(bad->error->code, ErrorCode::internal);
  EXPECT_EQ(good->text(), "kkkkkkkkkk");
  EXPECT_EQ(service->stats().finished_error, 3u) << "one per choice";
}

TEST(LocalService, ARunnerThatThrowsFailsTheModelAndNotTheProcess) {
  struct Thrower final : ModelRunner {
    void run(const StepPlan&, StepResult&) override { throw std::runtime_error("device lost"); }
  };
  const auto service = make_local_service(parts_with(std::make_unique<Thrower>()));
  auto seen = answer(*service, ask("a"));
  ASSERT_TRUE(seen->error.has_value());
  EXPECT_EQ(seen->error->code, ErrorCode::unavailable);
  for (int i = 0; i < 6000 && service->health().state != inference::Health::State::dead; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(service->health().state, inference::Health::State::dead);
  EXPECT_EQ(answer(*service, ask("a"))->error->code, ErrorCode::unavailable);
}

// An engine that borrows, with a budget whose rest somebody else wants.
struct Borrower {
  explicit Borrower(std::unique_ptr<ModelRunner> runner, int own = 8, int least = 0) {
    account = *budget.reserve("model", static_cast<std::uint64_t>(own) * 100, std::chrono::milliseconds(0));
    LocalServiceParts parts = parts_with(std::move(runner));
    parts.scheduler.num_blocks = 40;
    parts.scheduler.own_blocks = own;
    parts.scheduler.least_blocks = least;
    parts.scheduler.block_size = 16;
    parts.scheduler.max_model_len = 128;
    parts.account = account;
    parts.block_bytes = 100;
    service = make_local_service(std::move(parts));
  }
  MemoryBudget budget{4000};
  std::shared_ptr<MemoryBudget::Account> account;
  std::shared_ptr<inference::ModelService> service;
};

TEST(LocalService, AFailedEngineKeepsNothingThatIsBorrowed) {
  struct Runner final : ModelRunner {
    Runner(Gate& at, std::atomic<std::uint64_t>& watched, std::atomic<MemoryBudget::Account*>& owner)
        : gate(at), most(watched), account(owner) {}
    void run(const StepPlan& plan, StepResult& result) override {
      gate.pass();
      most = account.load()->borrowed();
      if (most > 0 && ++steps > 3) throw std::runtime_error("device lost");
      good.run(plan, result);
    }
    Gate& gate;
    std::atomic<std::uint64_t>& most;
    std::atomic<MemoryBudget::Account*>& account;
    int steps = 0;
    ScriptedRunner good{spell(std::string(90, 'q'))};
  };
  std::atomic<std::uint64_t> borrowed{0};
  std::atomic<MemoryBudget::Account*> account{nullptr};
  Gate gate;
  Borrower b(std::make_unique<Runner>(gate, borrowed, account));
  account = b.account.get();
  std::vector<std::shared_ptr<Collector>> sinks;
  std::vector<std::unique_ptr<inference::RequestHandle>> handles;
  for (int i = 0; i < 8; ++i) {
    sinks.push_back(std::make_shared<Collector>());
    handles.push_back(b.service->generate_async(ask(std::string(40, static_cast<char>('a' + i))), sinks.back()));
  }
  gate.allow(1000000);
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->wait());
    ASSERT_TRUE(sink->error.has_value());
  }
  EXPECT_GT(borrowed, 0u);
  const auto all = b.budget.reserve("other", 3200, std::chrono::seconds(10));
  EXPECT_TRUE(all.ok()) << all.error().message;
}

TEST(LocalService, GivesBackWhatIsWantedOnceHoweverOftenItIsAskedFor) {
  auto gate = std::make_shared<Gate>();
  Borrower b(std::make_unique<GatedRunner>(gate, spell(std::string(60, 'q'))));
  gate->allow(1000000);
  std::vector<std::shared_ptr<Collector>> sinks;
  std::vector<std::unique_ptr<inference::RequestHandle>> handles;
  for (int i = 0; i < 6; ++i) {
    sinks.push_back(std::make_shared<Collector>());
    handles.push_back(b.service->generate_async(ask(std::string(40, static_cast<char>('a' + i))), sinks.back()));
  }
  for (const auto& sink : sinks) ASSERT_TRUE(sink->wait());
  const std::uint64_t borrowed = b.account->borrowed();
  ASSERT_GE(borrowed, 1600u);
  // It is in the middle of a step while somebody asks ten times for what is cached.
  int entered = 0;
  {
    std::lock_guard lock(gate->mutex);
    gate->allowed = 0;
    entered = gate->entered;
  }
  auto sink = std::make_shared<Collector>();
  const auto handle = b.service->generate_async(ask("x"), sink);
  gate->wait_entered(entered + 1);
  const auto other = *b.budget.reserve("other", b.budget.unreserved() - borrowed, std::chrono::milliseconds(0));
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(other->borrow(200));
  gate->allow(1000000);
  ASSERT_TRUE(sink->wait());
  bool given = false;
  for (int i = 0; i < 5000 && !given; ++i) {
    given = other->borrow(200);
    if (!given) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_TRUE(given);
  EXPECT_GE(b.account->borrowed(), borrowed - 400);
}

// A model whose share has become smaller.
TEST(LocalService, GivesBackWhatWasItsOwnWhenItIsLent) {
  Borrower b(std::make_unique<ScriptedRunner>(spell(std::string(60, 'q'))), 38, 8);
  const auto one = [&](char letter) {
    auto sink = std::make_shared<Collector>();
    const auto handle = b.service->generate_async(ask(std::string(40, letter)), sink);
    return sink->wait() && !sink->error;
  };
  for (char letter = 'a'; letter < 'f'; ++letter) EXPECT_TRUE(one(letter));
  EXPECT_FALSE(b.budget.reserve("other", 2000, std::chrono::milliseconds(0)).ok());
  b.account->lend(0);
  EXPECT_EQ(b.account->reserved(), 800u);
  const auto other = b.budget.reserve("other", 3100, std::chrono::seconds(10));
  ASSERT_TRUE(other.ok()) << other.error().message;
  EXPECT_LE(b.account->borrowed(), 100u);
  // What is left is enough for any one request.
  for (int i = 0; i < 5000 && b.service->stats().kv_blocks > 9; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_GE(b.service->stats().kv_blocks, 8u);
  EXPECT_LE(b.service->stats().kv_blocks, 9u) << "only what has memory";
  EXPECT_TRUE(one('x'));
}

TEST(LocalService, NothingOfAStepThatWentWrongIsSent) {
  struct Faulty final : ModelRunner {
    ScriptedRunner inner{spell(std::string(400, 'q'))};
    int steps = 0;
    void run(const StepPlan& plan, StepResult& result) override {
      ++steps;
      inner.run(plan, result);
    }
    Status fault() const override {
      if (steps < 4) return {};
      return make_error(ErrorCode::unavailable, "weights.gguf is gone");
    }
  };
  const auto service = make_local_service(parts_with(std::make_unique<Faulty>()));
  std::promise<Error> failed;
  service->on_failure([&failed](Error error) { failed.set_value(std::move(error)); });
  const auto seen = answer(*service, ask("a"));
  EXPECT_EQ(seen->text(), "qqq");
  ASSERT_TRUE(seen->error.has_value());
  EXPECT_EQ(seen->error->code, ErrorCode::unavailable);
  EXPECT_THAT(seen->error->message, HasSubstr("weights.gguf is gone"));
  EXPECT_GT(seen->error->retry_after_s, 0);
  EXPECT_EQ(failed.get_future().get().message, "weights.gguf is gone");
  std::string late;
  service->on_failure([&late](const Error& error) { late = error.message; });
  EXPECT_EQ(late, "weights.gguf is gone") << "who asks afterwards hears it at once";
}

TEST(LocalService, AServiceThatIsClosedHasNotFailed) {
  bool failed = false;
  {
    const auto service = scripted(spell("x"));
    service->on_failure([&failed](const Error&) { failed = true; });
    answer(*service, ask("a"));
    service->close();
  }
  EXPECT_FALSE(failed);
}

TEST(LocalService, EndingTheServiceEndsEveryRequestOnce) {
  auto gate = std::make_shared<Gate>();
  auto service = make_local_service(parts_with(std::make_unique<GatedRunner>(gate, spell(std::string(400, 'q')))));
  std::vector<std::shared_ptr<Collector>> sinks;
  std::vector<std::unique_ptr<inference::RequestHandle>> handles;
  for (int i = 0; i < 20; ++i) {
    sinks.push_back(std::make_shared<Collector>());
    handles.push_back(service->generate_async(ask("abc"), sinks.back()));
  }
  gate->allow(5);
  ASSERT_TRUE(sinks[0]->wait_for_events(2));
  for (int i = 0; i < 3; ++i) {  // these are long enough to be prepared elsewhere
    sinks.push_back(std::make_shared<Collector>());
    handles.push_back(service->generate_async(ask(std::string(1000000, 'x')), sinks.back()));
  }
  gate->allow(100000);
  service.reset();
  for (const auto& sink : sinks) {
    EXPECT_TRUE(sink->done());
    if (sink->error && sink->error->param.empty()) {  // a long prompt may also have been found too long already
      EXPECT_EQ(sink->error->code, ErrorCode::unavailable);
    }
  }
  handles.clear();  // handles may outlive the service
}

TEST(LocalService, TokenizesAndDetokenizes) {
  const auto service = scripted(spell("x"));
  Result<inference::Tokenized> tokens = inference::Tokenized{};
  service->tokenize_async({"h\xC3\xA9", true, true}, [&](Result<inference::Tokenized> r) { tokens = std::move(r); });
  ASSERT_TRUE(tokens.ok());
  EXPECT_EQ(tokens->ids, (std::vector<TokenId>{'h', 0xC3, 0xA9}));
  EXPECT_EQ(tokens->tokens, (std::vector<std::string>{"h", "\xC3", "\xA9"}));
  service->tokenize_async({std::vector<Message>{{"user", "a", ""}}, true, false},
                          [&](Result<inference::Tokenized> r) { tokens = std::move(r); });
  ASSERT_TRUE(tokens.ok());
  EXPECT_EQ(tokens->ids.size(), 1u + 7);
  Result<std::string> text = std::string();
  service->detokenize_async({{'h', 0xC3, 0xA9, kEos}}, [&](Result<std::string> r) { text = std::move(r); });
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "h\xC3\xA9</s>");
  service->detokenize_async({{kByteVocab}}, [&](Result<std::string> r) { text = std::move(r); });
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().param, "tokens");

  std::mutex mutex;
  std::condition_variable arrived;
  std::size_t count = 0;
  service->tokenize_async({std::string(100000, 'x'), true, true}, [&](Result<inference::Tokenized> r) {
    std::lock_guard lock(mutex);
    count = r.ok() ? r->ids.size() : 1;
    arrived.notify_all();
  });
  std::unique_lock lock(mutex);
  ASSERT_TRUE(arrived.wait_for(lock, std::chrono::seconds(60), [&] { return count > 0; }));
  EXPECT_EQ(count, 100000u);
}

TEST(LocalService, LooksAtTheLengthBeforeItDecodes) {
  const auto service = scripted(spell("x"));
  Result<std::string> text = std::string();
  service->detokenize_async({std::vector<TokenId>(512, 'x')}, [&](Result<std::string> r) { text = std::move(r); });
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(text->size(), 512u);
  service->detokenize_async({std::vector<TokenId>(513, 'x')}, [&](Result<std::string> r) { text = std::move(r); });
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(text.error().param, "tokens");
  EXPECT_THAT(text.error().message, ::testing::AllOf(HasSubstr("513"), HasSubstr("512")));

  auto request = ask(std::vector<TokenId>(600, 'x'));
  request.echo = true;
  const auto seen = answer(*service, request);
  ASSERT_TRUE(seen->error);
  EXPECT_EQ(seen->error->param, "prompt");
  EXPECT_THAT(seen->error->message, HasSubstr("600 tokens"));
}

TEST(LocalService, DecodesManyIdsOnAThreadOfItsOwn) {
  auto parts = parts_with(std::make_unique<ScriptedRunner>(spell("x")));
  parts.scheduler.max_model_len = 8192;
  parts.scheduler.num_blocks = 512;
  const auto service = make_local_service(std::move(parts));
  const std::vector<TokenId> ids(5000, 'x');
  std::promise<std::pair<std::thread::id, std::string>> done;
  service->detokenize_async({ids}, [&](Result<std::string> r) {
    done.set_value({std::this_thread::get_id(), r.ok() ? *r : ""});
  });
  const auto [thread, text] = done.get_future().get();
  EXPECT_NE(thread, std::this_thread::get_id());
  EXPECT_EQ(text, std::string(5000, 'x'));
  auto request = ask(ids);
  request.echo = true;
  EXPECT_EQ(answer(*service, request)->start.prompt_text, text);
}

// For want of memory, say; the prompt may be prepared on the caller's thread or, if it is long, on one of the service.
TEST(LocalService, WhatIsThrownWhileAPromptIsPreparedFailsItsRequest) {
  log::set_level(log::Level::off);
  auto parts = parts_with(std::make_unique<ScriptedRunner>(spell("x")));
  parts.render_chat = [](const std::vector<inference::Message>&, bool) -> Result<std::string> {
    throw std::bad_alloc();
  };
  const auto service = make_local_service(std::move(parts));
  for (const std::size_t length : {10, 100'000}) {
    const std::vector<Message> chat{{"user", std::string(length, 'x'), ""}};
    const auto seen = answer(*service, ask(chat));
    ASSERT_TRUE(seen->error) << length;
    EXPECT_EQ(seen->error->code, ErrorCode::internal);
    std::promise<Result<inference::Tokenized>> done;
    service->tokenize_async({chat, true, true}, [&](Result<inference::Tokenized> r) { done.set_value(std::move(r)); });
    EXPECT_EQ(done.get_future().get().error().code, ErrorCode::internal);
  }
  EXPECT_FALSE(answer(*service, ask("a"))->error);
  log::set_level(log::Level::info);
}

// A template may raise what it read: that is for the client, not for the log.
TEST(LocalService, WhatATemplateSaysIsKeptApart) {
  LocalServiceParts parts = parts_with(std::make_unique<ScriptedRunner>(spell("x")));
  parts.render_chat = [](const std::vector<inference::Message>& messages, bool) -> Result<std::string> {
    return make_error(ErrorCode::invalid_argument, "no word of " + messages.front().content);
  };
  const auto service = make_local_service(std::move(parts));
  const auto seen = answer(*service, ask(std::vector<Message>{{"user", "secret", ""}}));
  ASSERT_TRUE(seen->error);
  EXPECT_EQ(seen->error->param, "messages");
  EXPECT_EQ(seen->error->message, "The chat template cannot render these messages");
  EXPECT_EQ(seen->error->received, ": no word of secret");
}

TEST(LocalService, TooManyLongPromptsAreRefusedAndCounted) {
  std::promise<void> go;
  LocalServiceParts parts = parts_with(std::make_unique<ScriptedRunner>(spell("x")));
  parts.render_chat = [gone = go.get_future().share()](const std::vector<Message>&, bool) -> Result<std::string> {
    gone.wait();
    return std::string("x");
  };
  const auto service = make_local_service(std::move(parts));
  std::vector<std::shared_ptr<Collector>> sinks;
  std::vector<std::unique_ptr<inference::RequestHandle>> handles;
  std::uint64_t refused = 0;
  for (int i = 0; i < 80; ++i) {
    sinks.push_back(std::make_shared<Collector>());
    handles.push_back(
        service->generate_async(ask(std::vector<Message>{{"user", std::string(9000, 'a')}}), sinks.back()));
    refused += sinks.back()->done();
  }
  EXPECT_GE(refused, 10u);
  EXPECT_EQ(sinks.back()->error->code, ErrorCode::overloaded);
  EXPECT_EQ(service->stats().rejected_long_prompts, refused);
  go.set_value();
  EXPECT_TRUE(sinks.front()->wait());
  EXPECT_EQ(sinks.front()->text(), "x");
}

TEST(PrepThread, OutlivesWhatItsWorkThrows) {
  log::set_level(log::Level::off);
  std::promise<void> done;
  {
    PrepThread thread(4);
    EXPECT_TRUE(thread.post([] { throw std::runtime_error("thrown by work"); }));
    EXPECT_TRUE(thread.post([&] { done.set_value(); }));
    done.get_future().get();
  }
  log::set_level(log::Level::info);
}

TEST(LocalService, CountsWhatItDoes) {
  const auto service = scripted(spell("four"));
  auto request = ask(std::string(40, 'p'));
  request.n = 2;
  answer(*service, request);
  auto seen = answer(*service, request);
  EXPECT_EQ(seen->usage.cached_tokens, 32);
  const inference::ServiceStats stats = service->stats();
  EXPECT_EQ(stats.prompt_tokens, 80u);
  EXPECT_EQ(stats.prompt_tokens_cached, 32u);
  EXPECT_EQ(stats.generation_tokens, 20u);
  EXPECT_EQ(stats.finished_stop, 4u);
  EXPECT_EQ(stats.requests_running, 0u);
  EXPECT_EQ(stats.requests_waiting, 0u);
  EXPECT_EQ(stats.kv_blocks, 64u);
  EXPECT_EQ(stats.kv_cache_usage, 0);
  const auto total = [](const inference::Histogram& h) {
    std::uint64_t n = 0;
    for (std::uint64_t c : h.counts()) n += c;
    return n;
  };
  EXPECT_EQ(total(stats.e2e_latency), 2u);
  EXPECT_EQ(total(stats.time_to_first_token), 2u);
  EXPECT_EQ(total(stats.inter_token_latency), 16u);
  // vLLM's dashboards read ours by its bounds.
  EXPECT_THAT(stats.iteration_tokens.bounds(),
              ElementsAre(1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384));
  EXPECT_THAT(stats.request_n.bounds(), ElementsAre(1, 2, 5, 10, 20));
}

TEST(LocalService, ARequestIsCountedWhenItEnds) {
  const auto gate = std::make_shared<Gate>();
  const auto service = make_local_service(parts_with(std::make_unique<GatedRunner>(gate, spell("x"))));
  inference::GenerateRequest request = ask("abc");
  request.arrival -= std::chrono::seconds(30);  // it has waited elsewhere
  const auto seen = std::make_shared<Collector>();
  const auto handle = service->generate_async(std::move(request), seen);
  gate->wait_entered(1);
  for (const auto each : {&inference::ServiceStats::request_prompt_tokens, &inference::ServiceStats::request_max_tokens,
                          &inference::ServiceStats::request_n})
    EXPECT_EQ((service->stats().*each).sum(), 0);
  gate->allow(1000);
  ASSERT_TRUE(seen->wait());
  const inference::ServiceStats stats = service->stats();
  EXPECT_EQ(stats.request_prompt_tokens.sum(), seen->usage.prompt_tokens);
  EXPECT_EQ(stats.request_n.sum(), 1);
  EXPECT_GT(stats.request_max_tokens.sum(), 0);
  // And its wait elsewhere is part of its queueing.
  EXPECT_GE(seen->timings.queue, 30);
  EXPECT_LT(seen->timings.prefill + seen->timings.decode, 30);
  EXPECT_GE(stats.queue_time.sum(), 30);
  EXPECT_GE(stats.time_to_first_token.sum(), 30);
  EXPECT_GE(stats.e2e_latency.sum(), 30);
}

TEST(LocalService, IdleCostsNoProcessorTime) {
  const auto service = scripted(spell("x"));
  answer(*service, ask("a"));
  const auto usage = [] {
    rusage u{};
    getrusage(RUSAGE_SELF, &u);
    return u;
  };
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const rusage before = usage();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  const rusage after = usage();
  // A thread that spins would take half a second, one that polls would fall asleep again and again. The bounds leave
  // room for what a sanitizer's own thread does.
  EXPECT_LT(seconds(after.ru_utime) - seconds(before.ru_utime) + seconds(after.ru_stime) - seconds(before.ru_stime),
            0.1);
  EXPECT_LT(after.ru_nvcsw - before.ru_nvcsw, 25);
  EXPECT_EQ(service->health().seconds_since_step, 0);
  EXPECT_EQ(service->health().state, inference::Health::State::ready);
}

TEST(LocalService, HealthTellsHowLongAStepRuns) {
  auto gate = std::make_shared<Gate>();
  const auto service = make_local_service(parts_with(std::make_unique<GatedRunner>(gate, spell("x"))));
  auto sink = std::make_shared<Collector>();
  const auto handle = service->generate_async(ask("a"), sink);
  gate->wait_entered(1);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_GE(service->health().seconds_since_step, 0.015);
  gate->allow(100);
  ASSERT_TRUE(sink->wait());
}

// Threads submit, read, cancel and look at the counts all at once; meant for the thread sanitizer as well.
TEST(LocalService, ManyThreadsAtOnce) {
  LocalServiceParts parts = parts_with(std::make_unique<FakeRunner>(64, 16, 256));
  parts.max_waiting = 40;
  const auto service = make_local_service(std::move(parts));
  std::atomic<int> finished{0};
  std::atomic<int> dropped{0};
  std::atomic<int> refused{0};
  const auto client = [&](unsigned seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < 150; ++i) {
      auto request = ask(std::string(1 + random() % 60, static_cast<char>('a' + random() % 2)));
      request.stop.max_tokens = static_cast<int>(1 + random() % 12);
      request.n = static_cast<int>(1 + random() % 3);
      if (random() % 4 == 0) request.logprobs = 1;
      if (random() % 4 == 0) request.stop.stop = {"a", "qq"};
      auto sink = std::make_shared<Collector>();
      auto handle = service->generate_async(request, sink);
      if (random() % 5 == 0) {
        handle.reset();
        ++dropped;
        continue;
      }
      ASSERT_TRUE(sink->wait());
      ++(sink->error ? refused : finished);
      if (i % 16 == 0) service->stats(), service->health();
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 4; ++i) threads.emplace_back(client, i);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(finished + dropped + refused, 600);
  EXPECT_GT(finished, 300);
  for (int i = 0; i < 6000 && service->stats().requests_running + service->stats().requests_waiting > 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(service->stats().kv_cache_usage, 0);
}

}  // namespace
}  // namespace xgen::engine
