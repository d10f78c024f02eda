#include "remote/openai_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <future>
#include <mutex>
#include <thread>

#include "base/json.h"
#include "remote/answers.h"
#include "support/raw_server.h"

namespace xgen::remote {
namespace {

using namespace std::chrono_literals;
using inference::ChoiceFinished;
using inference::Delta;
using inference::Event;
using inference::Failed;
using inference::Finished;
using inference::GenerateRequest;
using inference::Message;
using inference::Started;
using scripted::RawConnection;
using scripted::RawRequest;
using scripted::RawServer;
using ::testing::HasSubstr;
using ::testing::Not;

std::string chat_chunk(std::string_view delta, std::string_view finish = "null", int index = 0) {
  return R"(data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":)" + std::to_string(index) +
         R"(,"delta":)" + std::string(delta) + R"(,"finish_reason":)" + std::string(finish) + "}]}\n\n";
}
const std::string kUsage = R"(data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,)"
                           R"("prompt_tokens_details":{"cached_tokens":4}}})"
                           "\n\n";
const std::string kDone = "data: [DONE]\n\n";

// A whole short answer.
void answer(RawConnection& connection) {
  connection.send(kStreamHead);
  connection.send_chunk(chat_chunk(R"({"role":"assistant","content":""})"));
  connection.send_chunk(chat_chunk(R"({"content":"Hel"})"));
  connection.send_chunk(chat_chunk(R"({"content":"lo"})"));
  connection.send_chunk(chat_chunk("{}", R"("stop")"));
  connection.send_chunk(kUsage);
  connection.send_chunk(kDone);
  connection.send(kLast);
}

class OpenAiServiceTest : public RemoteServiceTest {
 protected:
  // Starts a server whose connections run `script`, and the service before it.
  Served serve(RawServer::Script script, OpenAiOptions options = {}) {
    server = std::make_unique<RawServer>(std::move(script));
    options.name = "ours";
    options.model = "theirs";
    options.url = *http::parse_url(server->url("/v1"));
    service = make_openai_service(options, client);
    return Served(*this);
  }
  // The same, with one script for each request of a connection.
  Served serve_each(std::function<void(RawConnection&, const RawRequest&)> each, OpenAiOptions options = quiet()) {
    return serve(scripted::each_request(std::move(each)), std::move(options));
  }
  static OpenAiOptions quiet() {
    OpenAiOptions options;
    options.health_interval = 0ms;
    return options;
  }
  static GenerateRequest chat() {
    GenerateRequest request;
    request.request_id = "req-1";
    request.prompt = std::vector<Message>{{"user", "Hi"}};
    return request;
  }
  std::shared_ptr<Sink> ask(GenerateRequest request = chat()) { return RemoteServiceTest::ask(std::move(request)); }
};

TEST_F(OpenAiServiceTest, AStreamBecomesEvents) {
  RawRequest seen;
  const auto served = serve_each([&](RawConnection& connection, const RawRequest& request) {
    seen = request;
    answer(connection);
  });
  const auto sink = ask();
  ASSERT_TRUE(sink->wait_over());
  ASSERT_EQ(sink->events.size(), 5U);
  EXPECT_TRUE(std::holds_alternative<Started>(sink->events[0]));
  EXPECT_EQ(sink->text(), "Hello");
  EXPECT_EQ(sink->all<Delta>()[0].tokens, 1);
  EXPECT_EQ(sink->all<ChoiceFinished>()[0].reason, inference::FinishReason::stop);
  const inference::Usage usage = sink->all<Finished>()[0].usage;
  EXPECT_EQ(usage.prompt_tokens, 9);
  EXPECT_EQ(usage.cached_tokens, 4);
  EXPECT_EQ(usage.completion_tokens, 2);
  EXPECT_EQ(seen.line, "POST /v1/chat/completions HTTP/1.1");
  EXPECT_EQ(seen.headers["content-type"], "application/json");
  EXPECT_EQ(seen.headers["x-request-id"], "req-1");
  EXPECT_FALSE(seen.headers.contains("authorization"));
  EXPECT_EQ(parse_json(seen.body)->at("model"), "theirs");
}

TEST_F(OpenAiServiceTest, CompletionsWithChoicesAndLogprobs) {
  const auto served = serve_each([&](RawConnection& connection, const RawRequest& request) {
    EXPECT_EQ(request.line, "POST /v1/completions HTTP/1.1");
    connection.send(kStreamHead);
    connection.send_chunk(R"(data: {"choices":[{"index":1,"text":"b","finish_reason":null,"logprobs":{"tokens":["b"],)"
                          R"("token_logprobs":[-0.5],"top_logprobs":[{"b":-0.5,"c":-1.5}],"text_offset":[0]}}]})"
                          "\n\n");
    connection.send_chunk(
        R"(data: {"choices":[{"index":0,"text":"a","finish_reason":"length","logprobs":{"tokens":["P","bytes:\\xe2\\x80"],)"
        R"("token_logprobs":[null,-2],"top_logprobs":[null,{}],"text_offset":[0,1]}}]})"
        "\n\n");
    connection.send_chunk(R"(data: {"choices":[{"index":1,"text":"","finish_reason":"stop","stop_reason":"END"}]})"
                          "\n\n" +
                          kUsage + kDone);
    connection.send(kLast);
  });
  GenerateRequest request;
  request.prompt = std::string("P");
  request.n = 2;
  request.logprobs = 1;
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->text(0), "a");
  EXPECT_EQ(sink->text(1), "b");
  const auto deltas = sink->all<Delta>();
  ASSERT_EQ(deltas.size(), 2U);
  ASSERT_EQ(deltas[0].logprobs.size(), 1U);
  EXPECT_EQ(deltas[0].logprobs[0].token, "b");
  EXPECT_FLOAT_EQ(*deltas[0].logprobs[0].logprob, -0.5F);
  ASSERT_EQ(deltas[0].logprobs[0].top.size(), 2U);
  EXPECT_EQ(deltas[0].logprobs[0].top[1].token, "c");
  ASSERT_EQ(deltas[1].logprobs.size(), 2U);
  EXPECT_FALSE(deltas[1].logprobs[0].logprob.has_value());
  EXPECT_EQ(deltas[1].logprobs[1].token, "\xe2\x80");
  const auto ends = sink->all<ChoiceFinished>();
  ASSERT_EQ(ends.size(), 2U);
  EXPECT_EQ(ends[0].choice, 0);
  EXPECT_EQ(ends[0].reason, inference::FinishReason::length);
  EXPECT_EQ(std::get<std::string>(*ends[1].stop_reason), "END");
}

TEST_F(OpenAiServiceTest, ChatLogprobsReasoningAndToolCalls) {
  const auto served = serve_each([&](RawConnection& connection, const RawRequest&) {
    connection.send(kStreamHead);
    connection.send_chunk(chat_chunk(R"({"role":"assistant","reasoning_content":"Hm."})"));
    connection.send_chunk(chat_chunk(R"({"reasoning":" So."})"));
    connection.send_chunk(
        R"(data: {"choices":[{"index":0,"delta":{"content":"é"},"logprobs":{"content":[{"token":"\ufffd","logprob":-1,)"
        R"("bytes":[195],"top_logprobs":[{"token":"x","logprob":-3,"bytes":null}]}]},"finish_reason":null}]})"
        "\n\n");
    connection.send_chunk(chat_chunk(
        R"({"tool_calls":[{"index":0,"id":"call_9","type":"function","function":{"name":"look","arguments":""}}]})"));
    connection.send_chunk(chat_chunk(R"({"tool_calls":[{"index":0,"function":{"arguments":"{\"a\":1}"}}]})"));
    connection.send_chunk(chat_chunk("{}", R"("tool_calls")"));
    connection.send_chunk(R"(data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":7,)"
                          R"("completion_tokens_details":{"reasoning_tokens":3}}})"
                          "\n\n" +
                          kDone);
    connection.send(kLast);
  });
  GenerateRequest request = chat();
  request.tools = {{"look", "", "", std::nullopt}};
  request.logprobs = 1;
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  const auto deltas = sink->all<Delta>();
  ASSERT_EQ(deltas.size(), 5U);
  EXPECT_EQ(deltas[0].reasoning + deltas[1].reasoning, "Hm. So.");
  ASSERT_EQ(deltas[2].logprobs.size(), 1U);
  EXPECT_EQ(deltas[2].logprobs[0].token, "\xc3");
  EXPECT_EQ(deltas[2].logprobs[0].top[0].token, "x");
  EXPECT_EQ(deltas[3].tool_calls[0].id, "call_9");
  EXPECT_EQ(deltas[3].tool_calls[0].name, "look");
  EXPECT_EQ(deltas[4].tool_calls[0].arguments, R"({"a":1})");
  EXPECT_EQ(sink->all<ChoiceFinished>()[0].reason, inference::FinishReason::tool_calls);
  EXPECT_EQ(sink->all<Finished>()[0].usage.reasoning_tokens, 3);
}

TEST_F(OpenAiServiceTest, ConnectionsAreKeptWhenTheHandleGoesAtTheEnd) {
  const auto served = serve_each([&](RawConnection& connection, const RawRequest&) {
    connection.send(kStreamHead);
    connection.send_chunk(chat_chunk(R"({"content":"x"})", R"("stop")") + kUsage + kDone);
    std::this_thread::sleep_for(20ms);  // the end of the body comes after the handle has gone
    connection.send(kLast);
  });
  for (int i = 0; i < 3; ++i) {
    const auto sink = ask();
    ASSERT_TRUE(sink->wait_over());
    EXPECT_EQ(sink->text(), "x");
    handle.reset();
    for (int k = 0; k < 2000 && client.counts().running > 0; ++k) std::this_thread::sleep_for(1ms);
  }
  EXPECT_EQ(server->accepted(), 1);
}

// ---- Refusals ----

struct AnswerCase {
  const char* name;
  std::string status;
  std::string headers;
  std::string body;
  ErrorCode code;
  std::string message;
  std::string param;
  int retry_after_s;
};
void PrintTo(const AnswerCase& each, std::ostream* out) { *out << each.name; }

class OpenAiRefusals : public OpenAiServiceTest, public ::testing::WithParamInterface<AnswerCase> {};

TEST_P(OpenAiRefusals, AreMapped) {
  const AnswerCase& each = GetParam();
  const auto served = serve_each([&](RawConnection& connection, const RawRequest&) {
    connection.answer(each.body, each.status, "Content-Type: application/json\r\n" + each.headers);
  });
  const Error error = ask()->error();
  EXPECT_EQ(error.code, each.code);
  EXPECT_THAT(error.message, HasSubstr(each.message));
  EXPECT_EQ(error.param, each.param);
  EXPECT_EQ(error.retry_after_s, each.retry_after_s);
  EXPECT_EQ(service->stats().finished_error, 1U);
  EXPECT_EQ(service->stats().requests_waiting, 0U);
}

INSTANTIATE_TEST_SUITE_P(
    All, OpenAiRefusals,
    ::testing::Values(
        AnswerCase{"openai_400", "400 Bad Request", "",
                   R"({"error":{"message":"'n' is wrong","type":"invalid_request_error","param":"n","code":null}})",
                   ErrorCode::invalid_argument, "'n' is wrong", "n", 0},
        AnswerCase{"vllm_400", "400 Bad Request", "",
                   R"({"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400})",
                   ErrorCode::invalid_argument, "too long", "", 0},
        AnswerCase{"fastapi_422", "422 Unprocessable Entity", "",
                   R"({"detail":[{"loc":["body","top_p"],"msg":"not a number","type":"x"}]})",
                   ErrorCode::invalid_argument, "not a number", "top_p", 0},
        AnswerCase{"text_400", "400 Bad Request", "", "plain words", ErrorCode::invalid_argument, "plain words", "", 0},
        AnswerCase{"html_404", "404 Not Found", "", "<html>nginx</html>", ErrorCode::invalid_argument,
                   "knows no such model or path; are 'model' and the /v1 of 'urls' right?", "", 0},
        AnswerCase{"vllm_404", "404 Not Found", "",
                   R"({"object":"error","message":"The model `x` does not exist.","type":"NotFoundError","code":404})",
                   ErrorCode::invalid_argument, "It said 404: The model `x` does not exist.", "", 0},
        AnswerCase{"too_large", "413 Payload Too Large", "", R"({"error":{"message":"big"}})", ErrorCode::too_large,
                   "big", "", 0},
        AnswerCase{"unauthorized", "401 Unauthorized", "", R"({"error":{"message":"Incorrect API key: sk-1"}})",
                   ErrorCode::unavailable, "refused our credentials", "", 60},
        AnswerCase{"forbidden", "403 Forbidden", "", "", ErrorCode::unavailable, "refused our credentials", "", 60},
        AnswerCase{"overloaded", "429 Too Many Requests", "Retry-After: 17\r\n", R"({"error":{"message":"slow down"}})",
                   ErrorCode::overloaded, "slow down", "", 17},
        AnswerCase{"unavailable", "503 Service Unavailable", "Retry-After: 5\r\n", "", ErrorCode::unavailable,
                   "is not available", "", 5},
        AnswerCase{"gateway", "502 Bad Gateway", "", "<html>", ErrorCode::unavailable, "is not available", "", 1},
        AnswerCase{"failed", "500 Internal Server Error", "", R"({"error":"CUDA error"})", ErrorCode::internal,
                   "CUDA error", "", 0},
        AnswerCase{"moved", "301 Moved Permanently", "Location: /x\r\n", "", ErrorCode::internal, "status 301", "", 0},
        AnswerCase{"no_stream", "200 OK", "", R"({"choices":[]})", ErrorCode::internal, "without a stream", "", 0}),
    [](const auto& each) { return std::string(each.param.name); });

TEST_F(OpenAiServiceTest, WhatTheDialectDoesNotKnowIsRefusedBeforeAnythingIsSent) {
  OpenAiOptions options = quiet();
  options.dialect = Dialect::openai;
  const auto served = serve_each([](RawConnection& connection, const RawRequest&) { answer(connection); }, options);
  GenerateRequest request = chat();
  request.sampling.top_k = 3;
  const Error error = ask(request)->error();
  EXPECT_EQ(error.code, ErrorCode::unsupported);
  EXPECT_EQ(error.param, "top_k");
  EXPECT_EQ(server->accepted(), 0);
}

TEST_F(OpenAiServiceTest, AServerThatIsNotThere) {
  const auto served = serve([](RawConnection&) {}, quiet());
  server.reset();
  const Error error = ask()->error();
  EXPECT_EQ(error.code, ErrorCode::unavailable);
  EXPECT_THAT(error.message, HasSubstr("Model 'ours'"));
  EXPECT_THAT(error.message, HasSubstr("http://127.0.0.1:"));
  EXPECT_THAT(error.message, HasSubstr("cannot be reached"));
  EXPECT_THAT(error.message, HasSubstr("refused"));
  EXPECT_GE(error.retry_after_s, 1);
}

TEST_F(OpenAiServiceTest, AServerThatDoesNotAnswer) {
  OpenAiOptions options = quiet();
  options.first_byte_timeout = 50ms;
  const auto served = serve([](RawConnection& connection) { connection.closed_within(10s); }, options);
  const Error error = ask()->error();
  EXPECT_EQ(error.code, ErrorCode::unavailable);
  EXPECT_THAT(error.message, HasSubstr("did not answer"));
}

// ---- Faults inside a stream ----

struct StreamCase {
  const char* name;
  std::string events;
  bool last_chunk;
  ErrorCode code;
  std::string message;
};
void PrintTo(const StreamCase& each, std::ostream* out) { *out << each.name; }

class OpenAiStreamFaults : public OpenAiServiceTest, public ::testing::WithParamInterface<StreamCase> {};

TEST_P(OpenAiStreamFaults, EndInOneFailure) {
  const StreamCase& each = GetParam();
  const auto served = serve(
      [&](RawConnection& connection) {
        connection.read_request();
        connection.send(kStreamHead);
        connection.send_chunk(chat_chunk(R"({"content":"x"})"));
        if (!each.events.empty()) connection.send_chunk(each.events);
        if (each.last_chunk) connection.send(kLast);
      },
      quiet());
  const auto sink = ask();
  const Error error = sink->error();
  EXPECT_EQ(error.code, each.code);
  EXPECT_THAT(error.message, HasSubstr(each.message));
  EXPECT_EQ(sink->text(), "x");
  EXPECT_EQ(service->stats().finished_error, 1U);
  EXPECT_EQ(service->stats().requests_running, 0U);
}

INSTANTIATE_TEST_SUITE_P(
    All, OpenAiStreamFaults,
    ::testing::Values(
        StreamCase{"cut", "", false, ErrorCode::unavailable, "broke off its answer"},
        StreamCase{"no_done", chat_chunk("{}", R"("stop")"), true, ErrorCode::unavailable, "no [DONE]"},
        StreamCase{"unfinished", kDone, true, ErrorCode::unavailable, "before every choice was finished"},
        StreamCase{
            "error",
            "data: {\"error\":{\"message\":\"out of memory\",\"type\":\"server_error\",\"code\":null}}\n\n" + kDone,
            true, ErrorCode::internal, "out of memory"},
        StreamCase{"error_with_status", "data: {\"error\":{\"message\":\"busy\",\"type\":\"x\",\"code\":503}}\n\n",
                   true, ErrorCode::unavailable, "busy"},
        StreamCase{"error_of_the_request",
                   "data: {\"object\":\"error\",\"message\":\"bad word\",\"type\":\"BadRequestError\",\"param\":null,"
                   "\"code\":400}\n\n",
                   true, ErrorCode::invalid_argument, "bad word"},
        StreamCase{"error_of_our_own_kind",
                   "data: {\"error\":{\"message\":\"time is over\",\"type\":\"timeout_error\",\"param\":null,\"code\":"
                   "\"request_timeout\"}}\n\n",
                   true, ErrorCode::timeout, "time is over"},
        StreamCase{"error_as_text", "data: {\"error\":\"bang\"}\n\n", true, ErrorCode::internal, "bang"},
        StreamCase{"no_json", "data: {nonsense\n\n", true, ErrorCode::internal, "not a JSON object"},
        StreamCase{"no_object", "data: [1]\n\n", true, ErrorCode::internal, "not a JSON object"},
        StreamCase{"no_choices", "data: {\"id\":1}\n\n", true, ErrorCode::internal, "no choices"},
        StreamCase{"deep", "data: " + std::string(100, '[') + std::string(100, ']') + "\n\n", true, ErrorCode::internal,
                   "not a JSON object"},
        StreamCase{"another_choice", chat_chunk(R"({"content":"y"})", "null", 1), true, ErrorCode::internal,
                   "not asked for"},
        StreamCase{"negative_choice", chat_chunk(R"({"content":"y"})", "null", -1), true, ErrorCode::internal,
                   "not asked for"},
        StreamCase{"endless_event", "data: " + std::string(17 << 20, 'x'), true, ErrorCode::internal, "too large"}),
    [](const auto& each) { return std::string(each.param.name); });

TEST_F(OpenAiServiceTest, AnErrorAsTheFirstEventComesBeforeStarted) {
  const auto served = serve_each([](RawConnection& connection, const RawRequest&) {
    connection.send(kStreamHead);
    connection.send_chunk("data: {\"error\":{\"message\":\"no\",\"code\":400}}\n\n");
    connection.send(kLast);
  });
  const auto sink = ask();
  EXPECT_EQ(sink->error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(sink->events.size(), 1U);
}

TEST_F(OpenAiServiceTest, AStalledStreamFails) {
  OpenAiOptions options = quiet();
  options.idle_timeout = 50ms;
  const auto served = serve(
      [](RawConnection& connection) {
        connection.read_request();
        connection.send(kStreamHead);
        connection.send_chunk(chat_chunk(R"({"content":"x"})"));
        connection.closed_within(10s);
      },
      options);
  const Error error = ask()->error();
  EXPECT_EQ(error.code, ErrorCode::unavailable);
  EXPECT_THAT(error.message, HasSubstr("idle_timeout"));
}

TEST_F(OpenAiServiceTest, TheRequestsDeadlineIsATimeout) {
  const auto served = serve([](RawConnection& connection) { connection.closed_within(10s); }, quiet());
  GenerateRequest request = chat();
  request.deadline = std::chrono::steady_clock::now() + 50ms;
  const Error error = ask(request)->error();
  EXPECT_EQ(error.code, ErrorCode::timeout);
  EXPECT_THAT(error.message, HasSubstr("time limit"));
}

TEST_F(OpenAiServiceTest, SoItIsForTokens) {
  const auto served = serve([](RawConnection& connection) { connection.closed_within(10s); }, quiet());
  inference::TokenizeRequest text;
  text.prompt = "x";
  text.deadline = std::chrono::steady_clock::now() + 50ms;
  std::promise<Error> tokenized;
  service->tokenize_async(text, [&](const auto& result) { tokenized.set_value(result.error()); });
  EXPECT_EQ(tokenized.get_future().get().code, ErrorCode::timeout);
}

TEST_F(OpenAiServiceTest, WithoutUsageTheStreamIsCounted) {
  const auto served = serve_each([](RawConnection& connection, const RawRequest&) {
    connection.send(kStreamHead);
    connection.send_chunk(chat_chunk(R"({"content":"x"})") + chat_chunk(R"({"content":"y"})", R"("length")") + kDone);
    connection.send(kLast);
  });
  const auto sink = ask();
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->all<Finished>()[0].usage.completion_tokens, 2);
}

// Tokens that are not streamed, or several in a chunk.
TEST_F(OpenAiServiceTest, TheServersUsageIsWhatCounts) {
  const auto served = serve_each([](RawConnection& connection, const RawRequest&) {
    connection.send(kStreamHead);
    connection.send_chunk(chat_chunk(R"({"content":"a b c"})", R"("stop")") +
                          "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":500}}\n\n" +
                          kDone);
    connection.send(kLast);
  });
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(ask()->wait_over());
  EXPECT_EQ(service->stats().generation_tokens, 1000U);
  EXPECT_EQ(service->stats().request_generation_tokens.sum(), 1000);
}

TEST_F(OpenAiServiceTest, AnEchoedPromptIsNoAnswer) {
  const auto served = serve_each([](RawConnection& connection, const RawRequest&) {
    connection.send(kStreamHead);
    connection.send_chunk(
        R"(data: {"choices":[{"index":0,"text":"abcd","finish_reason":"length","logprobs":{"tokens":["a","b","c","d"],)"
        R"("token_logprobs":[null,-1,-1,-2],"top_logprobs":[null,{},{},{}],"text_offset":[0,1,2,3]}}]})"
        "\n\n"
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n" +
        kDone);
    connection.send(kLast);
  });
  GenerateRequest request;
  request.prompt = std::string("abc");
  request.echo = request.prompt_logprobs = true;
  request.logprobs = 0;
  ASSERT_TRUE(ask(request)->wait_over());
  EXPECT_EQ(service->stats().generation_tokens, 1U);
}

// ---- Cancellation and closing ----

TEST_F(OpenAiServiceTest, DestroyingTheHandleClosesTheConnection) {
  for (const bool streaming : {false, true}) {
    std::atomic<int> closed{-1};
    std::atomic<bool> arrived{false};
    const auto served = serve(
        [&](RawConnection& connection) {
          connection.read_request();
          if (streaming) {
            connection.send(kStreamHead);
            connection.send_chunk(chat_chunk(R"({"content":"x"})"));
          }
          arrived = true;
          closed = connection.closed_within(10s) ? 1 : 0;
        },
        quiet());
    const auto sink = ask();
    while (!arrived.load()) std::this_thread::sleep_for(1ms);
    if (streaming) {
      ASSERT_TRUE(sink->wait_events(2));
    }
    handle.reset();
    for (int i = 0; i < 2000 && closed.load() < 0; ++i) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(closed.load(), 1);
    EXPECT_EQ(service->stats().finished_abort, 1U);
    EXPECT_EQ(service->stats().requests_running + service->stats().requests_waiting, 0U);
    std::lock_guard lock(sink->mutex);
    EXPECT_FALSE(sink->over());
  }
}

TEST_F(OpenAiServiceTest, CloseFailsWhatRunsAndRefusesWhatComes) {
  const auto served = serve([](RawConnection& connection) { connection.closed_within(10s); }, quiet());
  const auto sink = ask();
  service->close();
  EXPECT_EQ(sink->error().code, ErrorCode::unavailable);
  EXPECT_THAT(sink->error().message, HasSubstr("not running any more"));
  const auto kept = std::move(handle);
  EXPECT_EQ(ask()->error().code, ErrorCode::unavailable);
  EXPECT_EQ(service->health().state, inference::Health::State::dead);
}

TEST_F(OpenAiServiceTest, AHandleMayOutliveTheService) {
  const auto served = serve([](RawConnection& connection) { connection.closed_within(10s); }, quiet());
  const auto sink = ask();
  service.reset();
  EXPECT_EQ(sink->error().code, ErrorCode::unavailable);
  handle.reset();
}

// The handle may live on for long: the request goes to another server, and is held with all its attempts.
TEST_F(OpenAiServiceTest, WhatFailsHereIsNotLeftRunningThere) {
  for (const char* sent : {": ping\n\n", "data: {nonsense\n\n"}) {
    std::atomic<int> closed{-1};
    OpenAiOptions options = quiet();
    options.first_byte_timeout = 50ms;
    const auto served = serve(
        [&](RawConnection& connection) {
          connection.read_request();
          connection.send(kStreamHead);
          for (int i = 0; i < 1000 && closed.load() < 0; ++i) {
            connection.send_chunk(sent);
            if (connection.closed_within(10ms)) closed = 1;
          }
        },
        options);
    const auto sink = ask();
    sink->error();
    for (int i = 0; i < 5000 && closed.load() < 0; ++i) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(closed.load(), 1) << sent;
    for (int i = 0; i < 5000 && client.counts().running > 0; ++i) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(client.counts().running, 0U);
    handle.reset();
  }
}

TEST_F(OpenAiServiceTest, CancelledAtRandomMomentsNothingLeaks) {
  const auto served = serve_each([](RawConnection& connection, const RawRequest&) {
    connection.send(kStreamHead);
    for (int i = 0; i < 30; ++i) connection.send_chunk(chat_chunk(R"({"content":"x"})"));
    connection.send_chunk(chat_chunk("{}", R"("stop")") + kUsage + kDone);
    connection.send(kLast);
  });
  for (int i = 0; i < 200; ++i) {
    const auto sink = ask();
    std::this_thread::sleep_for(std::chrono::microseconds(i * 5));
    handle.reset();
  }
  for (int k = 0; k < 2000 && client.counts().running > 0; ++k) std::this_thread::sleep_for(1ms);
  const auto stats = service->stats();
  EXPECT_EQ(stats.requests_running + stats.requests_waiting, 0U);
  EXPECT_EQ(stats.finished_error, 0U);
  const auto sink = ask();
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->text(), std::string(30, 'x'));
}

TEST_F(OpenAiServiceTest, MoreRequestsThanItMayHaveAreRefused) {
  OpenAiOptions options = quiet();
  options.max_requests = 1;
  const auto served = serve([](RawConnection& connection) { connection.closed_within(10s); }, options);
  const auto first = ask();
  const auto kept = std::move(handle);
  const Error error = ask()->error();
  EXPECT_EQ(error.code, ErrorCode::overloaded);
  EXPECT_GE(error.retry_after_s, 1);
  EXPECT_EQ(service->stats().rejected_queue_full, 1U);
}

// ---- Credentials ----

TEST_F(OpenAiServiceTest, TheKeyIsSentReadAgainAndNeverTold) {
  const std::string file = (std::filesystem::temp_directory_path() / ("key-" + std::to_string(::getpid()))).string();
  std::ofstream(file) << "sk-first\n";
  std::mutex mutex;
  std::vector<std::string> keys;
  OpenAiOptions options = quiet();
  options.api_key_file = file;
  options.headers = {{"X-Team", "blue"}};
  const auto served = serve_each(
      [&](RawConnection& connection, const RawRequest& request) {
        {
          std::lock_guard lock(mutex);
          keys.push_back(request.headers.at("authorization"));
          EXPECT_EQ(request.headers.at("x-team"), "blue");
        }
        connection.answer(
            R"({"error":{"message":"the key )" + request.headers.at("authorization").substr(7) + R"( has no quota"}})",
            "400 Bad Request");
      },
      options);
  Error error = ask()->error();
  EXPECT_THAT(error.message, HasSubstr("the key *** has no quota"));
  std::ofstream(file) << "sk-second-and-longer";
  error = ask()->error();
  EXPECT_THAT(error.message, Not(HasSubstr("sk-")));
  {
    std::lock_guard lock(mutex);
    EXPECT_EQ(keys, (std::vector<std::string>{"Bearer sk-first", "Bearer sk-second-and-longer"}));
  }
  for (const char* bad : {"", "two lines\nof it", "with\x01control"}) {
    std::ofstream(file) << bad;
    error = ask()->error();
    EXPECT_EQ(error.code, ErrorCode::unavailable);
    EXPECT_THAT(error.message, HasSubstr(file));
  }
  std::filesystem::remove(file);
  error = ask()->error();
  EXPECT_EQ(error.code, ErrorCode::unavailable);
  EXPECT_THAT(error.message, HasSubstr(file));
}

// ---- Tokens, health, counts ----

TEST_F(OpenAiServiceTest, TokenizeAndDetokenize) {
  const auto served = serve_each([](RawConnection& connection, const RawRequest& request) {
    if (request.line.starts_with("POST /tokenize "))
      connection.answer(R"({"count":2,"max_model_len":100,"tokens":[5,6],"token_strs":["a","b"]})");
    else if (request.line.starts_with("POST /detokenize "))
      connection.answer(R"({"prompt":"ab"})");
  });
  std::promise<Result<inference::Tokenized>> tokenized;
  service->tokenize_async({std::string("ab")},
                          [&](Result<inference::Tokenized> r) { tokenized.set_value(std::move(r)); });
  const auto tokens = tokenized.get_future().get();
  ASSERT_TRUE(tokens.ok()) << tokens.error().message;
  EXPECT_EQ(tokens->ids, (std::vector<inference::TokenId>{5, 6}));
  EXPECT_EQ(tokens->tokens, (std::vector<std::string>{"a", "b"}));
  std::promise<Result<std::string>> detokenized;
  service->detokenize_async({{5, 6}}, [&](Result<std::string> r) { detokenized.set_value(std::move(r)); });
  const auto text = detokenized.get_future().get();
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "ab");
}

TEST_F(OpenAiServiceTest, TokenizeFaults) {
  std::atomic<int> round{0};
  const auto served = serve_each([&](RawConnection& connection, const RawRequest&) {
    switch (round.fetch_add(1)) {
      case 0:
        connection.answer("no", "404 Not Found");
        break;
      case 1:
        connection.answer(R"({"error":{"message":"bad prompt","param":"prompt"}})", "400 Bad Request");
        break;
      case 2:
        connection.answer("[]");
        break;
      case 3:
        connection.answer(R"({"tokens":["a"]})");
        break;
      default:
        connection.close();
    }
  });
  const auto tokenize = [&] {
    std::promise<Result<inference::Tokenized>> done;
    service->tokenize_async({std::string("ab")}, [&](Result<inference::Tokenized> r) { done.set_value(std::move(r)); });
    return done.get_future().get().error();
  };
  EXPECT_EQ(tokenize().code, ErrorCode::unsupported);
  EXPECT_EQ(tokenize().message, "bad prompt");
  EXPECT_EQ(tokenize().code, ErrorCode::internal);
  EXPECT_EQ(tokenize().code, ErrorCode::internal);
  EXPECT_EQ(tokenize().code, ErrorCode::unavailable);
}

TEST_F(OpenAiServiceTest, TheServersListTellsHealthContextAndDialect) {
  std::atomic<int> mode{0};
  OpenAiOptions options;
  options.health_interval = 10ms;
  const auto served = serve_each(
      [&](RawConnection& connection, const RawRequest& request) {
        EXPECT_TRUE(request.line.starts_with("GET /v1/models ")) << request.line;
        switch (mode.load()) {
          case 0:
            connection.answer(
                R"({"object":"list","data":[{"id":"other"},{"id":"theirs","owned_by":"llamacpp","max_model_len":4096}]})");
            break;
          case 1:
            connection.answer(R"({"object":"list","data":[{"id":"other"}]})");
            break;
          case 2:
            connection.answer("", "503 Service Unavailable");
            break;
          default:
            connection.answer("", "404 Not Found");  // has no list: it is there all the same
        }
      },
      options);
  const auto wait_state = [&](inference::Health::State state) {
    for (int i = 0; i < 2000 && service->health().state != state; ++i) std::this_thread::sleep_for(2ms);
    EXPECT_EQ(service->health().state, state);
    return service->health().detail;
  };
  for (int i = 0; i < 2000 && service->capabilities().max_model_len == 0; ++i) std::this_thread::sleep_for(2ms);
  EXPECT_EQ(service->capabilities().max_model_len, 4096);
  EXPECT_EQ(service->health().state, inference::Health::State::ready);
  GenerateRequest request = chat();
  request.stop.min_tokens = 3;
  EXPECT_EQ(ask(request)->error().param, "min_tokens");  // llama-server has no such thing
  mode = 1;
  EXPECT_THAT(wait_state(inference::Health::State::degraded), HasSubstr("does not serve 'theirs', but other"));
  mode = 3;
  wait_state(inference::Health::State::ready);
  mode = 2;
  EXPECT_THAT(wait_state(inference::Health::State::degraded), HasSubstr("not available"));
}

// A key's file may be gone for a moment, while a Secret is replaced.
TEST_F(OpenAiServiceTest, TheLoadIsReadAgainWhenTheKeyIsBack) {
  const std::string file = (std::filesystem::temp_directory_path() / ("load-" + std::to_string(::getpid()))).string();
  std::ofstream(file) << "sk-first";
  OpenAiOptions options = quiet();
  options.api_key_file = file;
  options.load_interval = 5ms;
  const auto served = serve_each(
      [](RawConnection& connection, const RawRequest& request) {
        EXPECT_EQ(request.line, "GET /metrics HTTP/1.1");
        connection.answer(
            "vllm:num_requests_running{model_name=\"theirs\"} 3\n"
            "vllm:num_requests_waiting{model_name=\"theirs\"} 4\n");
      },
      options);
  const auto wait_waiting = [&](double waiting) {
    for (int i = 0; i < 5000 && service->load().waiting != waiting; ++i) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(service->load().waiting, waiting);
  };
  wait_waiting(4);
  std::filesystem::remove(file);
  wait_waiting(0);  // what it was is not known to be still so
  std::ofstream(file) << "sk-second";
  wait_waiting(4);
  std::filesystem::remove(file);
}

TEST_F(OpenAiServiceTest, RequestsAreCounted) {
  const auto served = serve_each([](RawConnection& connection, const RawRequest&) { answer(connection); });
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(ask()->wait_over());
  const inference::ServiceStats stats = service->stats();
  EXPECT_EQ(stats.requests_running, 0U);
  EXPECT_EQ(stats.requests_waiting, 0U);
  EXPECT_EQ(stats.finished_stop, 2U);
  EXPECT_EQ(stats.prompt_tokens, 18U);
  EXPECT_EQ(stats.prompt_tokens_cached, 8U);
  EXPECT_EQ(stats.generation_tokens, 4U);
  EXPECT_GT(stats.time_to_first_token.sum(), 0);
  EXPECT_EQ(stats.request_prompt_tokens.sum(), 18);
  EXPECT_EQ(stats.request_generation_tokens.sum(), 4);
  EXPECT_EQ(stats.request_n.sum(), 2);
}

TEST_F(OpenAiServiceTest, AWaitElsewhereIsPartOfTheQueueing) {
  const auto served = serve_each([](RawConnection& connection, const RawRequest&) { answer(connection); });
  GenerateRequest request = chat();
  request.arrival -= 30s;
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  const inference::Timings timings = sink->all<Finished>()[0].timings;
  EXPECT_GE(timings.queue, 30);
  EXPECT_LT(timings.prefill + timings.decode, 30);
  const inference::ServiceStats stats = service->stats();
  EXPECT_GE(stats.queue_time.sum(), 30);
  EXPECT_GE(stats.time_to_first_token.sum(), 30);
  EXPECT_LT(stats.prefill_time.sum(), 30);
}

}  // namespace
}  // namespace xgen::remote
