// Calls that go from one model to another: the whole controller over models whose faults a test sets.
#include <gmock/gmock.h>

#include <atomic>

#include "api/errors.h"
#include "server/fixture.h"

namespace xgen::server {
namespace {

using namespace std::chrono_literals;
using scripted::Answer;
using scripted::RawClient;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// Fails every request at the moment and with the code that a test sets.
class Faulty final : public inference::ModelService {
 public:
  enum class When : std::uint8_t { never, at_once, started, after_a_token, second_prompt, at_the_deadline };
  std::atomic<When> when{When::never};
  std::atomic<ErrorCode> code{ErrorCode::unavailable};
  std::string message = "fault of the first";
  std::atomic<int> asked{0};
  std::atomic<int> held{0};  // first prompts, where the second fails
  scripted::ScriptedService inner;

  std::unique_ptr<inference::RequestHandle> generate_async(inference::GenerateRequest request,
                                                           std::shared_ptr<inference::EventSink> sink) override {
    ++asked;
    const When now = when;
    if (now == When::never) return inner.generate_async(std::move(request), std::move(sink));
    if (now == When::at_the_deadline) std::this_thread::sleep_until(*request.deadline);
    if (now != When::at_once) sink->on_event(inference::Started{});
    if (now == When::second_prompt && !request.request_id.ends_with("-1")) {
      struct Handle final : inference::RequestHandle {
        Handle(std::atomic<int>& counter, std::shared_ptr<inference::EventSink> whose)
            : held(counter), sink(std::move(whose)) {
          ++held;
        }
        ~Handle() override { --held; }
        std::atomic<int>& held;
        std::shared_ptr<inference::EventSink> sink;
      };
      return std::make_unique<Handle>(held, std::move(sink));
    }
    if (now == When::after_a_token) sink->on_event(inference::Delta{0, 1, "part", {}});
    Error error = make_error(code, message, "prompt");
    error.retry_after_s = 42;
    sink->on_event(inference::Failed{error});
    return nullptr;
  }
  void tokenize_async(inference::TokenizeRequest, std::function<void(Result<inference::Tokenized>)> done) override {
    done(make_error(code, "fault of the first"));
  }
  void detokenize_async(inference::DetokenizeRequest, std::function<void(Result<std::string>)> done) override {
    done(make_error(code, "fault of the first"));
  }
  inference::Capabilities capabilities() const override { return inner.capabilities(); }
  inference::Health health() const override { return {}; }
  inference::ServiceStats stats() const override { return {}; }
  void close() override {}
};

class FallbackTest : public ControllerTest {
 protected:
  // "first" (alias "one") falls back to "scripted", which takes no tools, and then to "able", which does.
  void start_models(AppOptions options = {.version = "1"}) {
    more_models = {faulty_model("first", {"one"}, first, {"scripted", "able"}), faulty_model("second", {}, second, {})};
    start(std::move(options));
  }
  // As a reload does.
  void set_fallbacks(std::vector<std::string> of_first, std::vector<std::string> of_slow = {}) {
    auto loading = scripted::scripted_model("slow", {}, slow);
    loading.fallbacks = std::move(of_slow);
    ASSERT_TRUE(
        registry
            .apply({faulty_model("first", {"one"}, first, std::move(of_first)), faulty_model("second", {}, second, {}),
                    scripted::scripted_model("scripted", {}, std::make_shared<scripted::ScriptedLoader>(service)),
                    scripted::scripted_model("able", {}, std::make_shared<scripted::ScriptedLoader>(able)),
                    std::move(loading)})
            .ok());
  }
  static registry::ModelDefinition faulty_model(std::string name, std::vector<std::string> aliases,
                                                std::shared_ptr<Faulty> faulty, std::vector<std::string> fallbacks) {
    auto model = scripted::scripted_model(std::move(name), std::move(aliases),
                                          std::make_shared<scripted::ScriptedLoader>(std::move(faulty)));
    model.fallbacks = std::move(fallbacks);
    return model;
  }
  void fail(Faulty::When when, ErrorCode code = ErrorCode::unavailable) {
    first->when = when;
    first->code = code;
  }
  static std::string ask(const std::string& prompt, const std::string& more = "", const std::string& model = "first") {
    return R"({"model":")" + model + R"(","prompt":")" + prompt + "\"" + more + "}";
  }
  Answer complete(const std::string& prompt, const std::string& more = "", const std::string& model = "first") {
    return post("/v1/completions", ask(prompt, more, model));
  }
  std::string counted(const std::string& target) {
    const std::string page = get("/metrics").body;
    const std::string name = "xgen_model_fallbacks_total{model_name=\"first\",target=\"" + target + "\"} ";
    const std::size_t at = page.find(name);
    if (at == std::string::npos) return "none";
    return page.substr(at + name.size(), page.find('\n', at) - at - name.size());
  }

  const std::shared_ptr<Faulty> first = std::make_shared<Faulty>();
  const std::shared_ptr<Faulty> second = std::make_shared<Faulty>();
};

TEST_F(FallbackTest, AModelThatAnswersIsLeftAlone) {
  start_models();
  const Answer answer = complete("say x");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(parse(answer.body).at("model"), "first");
  EXPECT_EQ(parse(complete("say x", "", "one").body).at("model"), "one");
  EXPECT_FALSE(answer.headers.contains("x-xgen-model"));
  EXPECT_EQ(counted("scripted"), "0");
}

TEST_F(FallbackTest, AnotherModelAnswersUnderItsOwnName) {
  start_models();
  int times = 0;
  for (const auto when : {Faulty::When::at_once, Faulty::When::started}) {
    for (const ErrorCode code : {ErrorCode::unavailable, ErrorCode::overloaded, ErrorCode::internal}) {
      fail(when, code);
      Answer answer = complete("say hello", "", times == 0 ? "one" : "first");
      EXPECT_EQ(answer.status, 200) << answer.body;
      EXPECT_EQ(parse(answer.body).at("model"), "scripted");
      EXPECT_EQ(parse(answer.body).at("choices").at(0).at("text"), "hello");
      EXPECT_EQ(answer.headers["x-xgen-model"], "scripted");
      answer = complete("say hello", R"(,"stream":true)");
      EXPECT_EQ(answer.status, 200);
      EXPECT_EQ(answer.headers["x-xgen-model"], "scripted");
      EXPECT_THAT(answer.body, AllOf(HasSubstr(R"("model":"scripted")"), Not(HasSubstr(R"("model":"first")")),
                                     HasSubstr("[DONE]"), Not(HasSubstr("error"))));
      times += 2;
    }
  }
  EXPECT_EQ(counted("scripted"), std::to_string(times));
  EXPECT_EQ(counted("able"), "0");
  const Answer chat = post("/v1/chat/completions",
                           R"({"model":"first","stream":true,"messages":[{"role":"user","content":"say hi"}]})");
  std::size_t roles = 0;
  for (std::size_t at = 0; (at = chat.body.find("\"role\":\"assistant\"", at)) != std::string::npos; ++at) ++roles;
  EXPECT_EQ(roles, 1u) << chat.body;  // the answer does not begin twice
}

TEST_F(FallbackTest, WhatTheClientGotWrongStaysWrong) {
  start_models();
  for (const ErrorCode code : {ErrorCode::invalid_argument, ErrorCode::unsupported, ErrorCode::not_found,
                               ErrorCode::too_large, ErrorCode::timeout}) {
    fail(Faulty::When::at_once, code);
    EXPECT_EQ(complete("say x").status, api::error_kind(code).status);
  }
  EXPECT_EQ(complete("say x", "", "nobody").status, 404);
  EXPECT_EQ(complete("say x", R"(,"n":0)").status, 400);
  EXPECT_EQ(counted("scripted"), "0");
  EXPECT_EQ(service->tokens.load(), 0u);
}

TEST_F(FallbackTest, AfterItsFirstTokenNoOtherModelGoesOn) {
  start_models();
  fail(Faulty::When::after_a_token);
  EXPECT_EQ(complete("say x").status, 503);
  const Answer answer = complete("say x", R"(,"stream":true)");
  EXPECT_EQ(answer.status, 200);
  EXPECT_THAT(answer.body, AllOf(HasSubstr("part"), HasSubstr("fault of the first"), HasSubstr(R"("model":"first")")));
  EXPECT_EQ(counted("scripted"), "0");
}

TEST_F(FallbackTest, AModelThatIsNotThereYetIsStoodInFor) {
  start_models();
  EXPECT_EQ(complete("say x", "", "slow").status, 503);
  set_fallbacks({}, {"scripted"});
  const Answer answer = complete("say x", "", "slow");
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(parse(answer.body).at("model"), "scripted");
}

// The next of the list, as if that model were not there; in the end the first model's own fault counts.
TEST_F(FallbackTest, WhatAFallbackDoesNotOfferItDoesNotHave) {
  start_models();
  fail(Faulty::When::started, ErrorCode::overloaded);
  const std::string tools = R"(,"tools":[{"type":"function","function":{"name":"f","parameters":{}}}])";
  const auto chat = [&] {
    return post("/v1/chat/completions",
                R"({"model":"first","messages":[{"role":"user","content":"call"}])" + tools + "}");
  };
  Answer answer = chat();
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(parse(answer.body).at("model"), "able");
  EXPECT_EQ(counted("scripted"), "1");
  EXPECT_EQ(counted("able"), "1");
  set_fallbacks({"scripted"});
  answer = chat();
  EXPECT_EQ(answer.status, 429);
  EXPECT_EQ(answer.headers["retry-after"], "42");
  EXPECT_THAT(answer.body, HasSubstr("fault of the first"));
  // So it is where the reload has taken them away, or they are not there either.
  set_fallbacks({"gone", "slow"});
  EXPECT_EQ(complete("say x").status, 429);
  EXPECT_EQ(complete("say x", R"(,"stream":true)").status, 429);
  // A fallback's own failure is not the client's: neither at once nor in the middle of a stream that has not begun.
  set_fallbacks({"scripted"});
  answer = complete("error 0", R"(,"stream":true)");
  EXPECT_EQ(answer.status, 429);
  EXPECT_THAT(answer.body, Not(HasSubstr("scripted failure")));
}

TEST_F(FallbackTest, AllPromptsOfACallGoTogether) {
  start_models();
  fail(Faulty::When::second_prompt);
  for (const char* stream : {"", R"(,"stream":true)"}) {
    const Answer answer =
        post("/v1/completions", R"({"model":"first","prompt":["say a","say b"])" + std::string(stream) + "}");
    EXPECT_EQ(answer.status, 200) << answer.body;
    EXPECT_THAT(answer.body, AllOf(HasSubstr(R"("text":"a")"), HasSubstr(R"("text":"b")")));
    EXPECT_THAT(answer.body, Not(HasSubstr(R"("model":"first")")));
  }
  // What was under way is cancelled at once.
  {
    RawClient client(http->port());
    client.post("/v1/completions", R"({"model":"first","prompt":["hold","say b"],"stream":true})");
    ASSERT_TRUE(client.read_until(R"("text":"b")"));
    EXPECT_TRUE(eventually([&] { return service->running.load() == 1; }));
    EXPECT_EQ(first->held.load(), 0);
  }
  EXPECT_EQ(first->asked.load(), 6);
  EXPECT_EQ(counted("scripted"), "3");
}

TEST_F(FallbackTest, ADisconnectCancelsTheFallback) {
  start_models();
  fail(Faulty::When::started);
  {
    RawClient client(http->port());
    client.post("/v1/completions", ask("hold"));
    ASSERT_TRUE(eventually([&] { return service->running.load() == 1; }));
  }
  EXPECT_TRUE(eventually([&] { return service->running.load() == 0; }, 2s));
}

TEST_F(FallbackTest, TheTimeLimitIsTheRequestsOwn) {
  start_models({.version = "1", .request_timeout = 100ms});
  fail(Faulty::When::at_the_deadline);
  EXPECT_EQ(complete("say x").status, 503);
  EXPECT_EQ(counted("scripted"), "0");
  // A fallback has what is left of it.
  set_fallbacks({"second", "scripted"});
  fail(Faulty::When::at_once);
  second->when = Faulty::When::at_the_deadline;
  second->code = ErrorCode::timeout;
  EXPECT_EQ(complete("say x").status, 408);
  second->code = ErrorCode::invalid_argument;
  EXPECT_EQ(complete("say x").status, 503);
  EXPECT_EQ(counted("second"), "2");
  EXPECT_EQ(counted("scripted"), "0");
}

TEST_F(FallbackTest, TokenizingStaysWithTheModel) {
  start_models();
  EXPECT_EQ(post("/tokenize", R"({"model":"first","prompt":"x"})").status, 503);
}

TEST_F(FallbackTest, TheLogTellsWhyAndOperatorsSeeTheList) {
  start_models();
  fail(Faulty::When::at_once);
  first->message += " " + std::string(300, '.') + " secret";  // as an engine that quotes the request
  log::set_level(log::Level::warn);
  ::testing::internal::CaptureStderr();
  complete("say secret", "", "one");
  log::set_level(log::Level::error);
  const std::string lines = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(lines,
              ::testing::ContainsRegex("warn +server: .*model=first target=scripted request_id=.* reason=\"fault of"));
  EXPECT_THAT(lines, Not(HasSubstr("secret")));
  // Where nobody can, the line of the request names the model whose error it is.
  set_fallbacks({"second"});
  second->when = Faulty::When::at_once;
  log::set_level(log::Level::info);
  ::testing::internal::CaptureStderr();
  complete("say it", "", "first");
  log::set_level(log::Level::error);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), ::testing::ContainsRegex("status=503 .* model=first "));
  set_fallbacks({"scripted", "able"});
  RawClient client(http->port());
  client.send("GET /admin/models HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_EQ(parse(client.read_answer().body).at("models").at(0).at("fallbacks"), parse(R"(["scripted","able"])"));
}

}  // namespace
}  // namespace xgen::server
