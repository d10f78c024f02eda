#include "remote/tgi_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "base/json.h"
#include "remote/answers.h"
#include "remote/openai_request.h"
#include "remote/tgi_request.h"
#include "support/raw_server.h"

namespace xgen::remote {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;
using inference::ChoiceFinished;
using inference::Delta;
using inference::Finished;
using inference::FinishReason;
using inference::GenerateRequest;
using inference::Message;
using inference::Started;
using scripted::RawConnection;
using scripted::RawRequest;
using scripted::RawServer;
using ::testing::HasSubstr;

// One token's event, without a blank after the colon, as TGI has it.
std::string token(std::string_view text, std::string_view more = "", bool special = false) {
  return R"(data:{"index":1,"token":{"id":7,"text":")" + std::string(text) + R"(","logprob":-0.5,"special":)" +
         (special ? "true" : "false") + "}" + std::string(more) + "}\n\n";
}
std::string last(std::string_view text, std::string_view reason, bool special = false) {
  return token(text,
               R"(,"generated_text":"whole","details":{"finish_reason":")" + std::string(reason) +
                   R"(","generated_tokens":3,"seed":1,"input_length":5})",
               special);
}

class TgiServiceTest : public RemoteServiceTest {
 protected:
  Served serve(RawServer::Script script, EndpointOptions options = quiet(), std::string_view path = "") {
    server = std::make_unique<RawServer>(std::move(script));
    options.name = "ours";
    options.url = *http::parse_url(server->url(path));
    service = make_tgi_service(options, client);
    return Served(*this);
  }
  Served serve_each(std::function<void(RawConnection&, const RawRequest&)> each, EndpointOptions options = quiet()) {
    return serve(scripted::each_request(std::move(each)), std::move(options));
  }
  // Every request is answered with these events.
  Served serve_events(std::string events) {
    return serve_each([events](RawConnection& connection, const RawRequest&) {
      connection.send(kStreamHead);
      connection.send_chunk(events);
      connection.send(kLast);
    });
  }
};

// ---- What is sent ----

json::value body_of(const GenerateRequest& request, std::string_view adapter = "") {
  const auto text = tgi_generate_body(request, adapter);
  EXPECT_TRUE(text.ok()) << (text.ok() ? "" : text.error().message);
  return text.ok() ? json::parse(*text) : json::value();
}

TEST(TgiRequest, SaysAsLittleAsItCan) {
  EXPECT_EQ(body_of(text_request()),
            json::parse(R"({"inputs":"Once","parameters":{"details":true,"do_sample":true}})"));
  EXPECT_EQ(body_of(text_request(), "org/lora"),
            json::parse(R"({"inputs":"Once","parameters":{"details":true,"do_sample":true,"adapter_id":"org/lora"}})"));
}

TEST(TgiRequest, EveryField) {
  GenerateRequest request = text_request();
  request.sampling = {0.5F, 0.9F, 40, {}, 1.1F, 0, 0.3F, 42, {}};
  request.stop = {12, 0, false, {"\n", "END"}, {}};
  request.logprobs = 4;
  request.echo = true;
  request.response_format = {inference::ResponseFormat::Kind::json_schema, "a", "", R"({"properties":{}})", true};
  request.extensions = {{"truncate_prompt_tokens", "100"}};
  EXPECT_EQ(body_of(request), json::parse(R"({"inputs": "Once", "parameters": {
    "details": true, "do_sample": true, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1,
    "frequency_penalty": 0.3, "seed": 42, "max_new_tokens": 12, "stop": ["\n", "END"], "top_n_tokens": 4,
    "truncate": 100, "grammar": {"type": "json", "value": {"properties": {}}}}})"));
}

// TGI refuses a temperature of 0 and a top_p of 1, and samples where it sees top_p or top_k.
TEST(TgiRequest, WhatChangesNothingIsLeftOut) {
  GenerateRequest request = text_request();
  request.sampling.temperature = 0;
  request.sampling.top_p = 0.9F;
  request.sampling.top_k = 40;
  request.logprobs = 0;
  EXPECT_EQ(body_of(request).at("parameters"), json::parse(R"({"details":true,"do_sample":false})"));
  request.sampling.temperature = 0.7F;
  request.sampling.top_p = 1;
  request.sampling.top_k = -1;
  EXPECT_EQ(body_of(request).at("parameters"), json::parse(R"({"details":true,"do_sample":true,"temperature":0.7})"));
}

TEST(TgiRequest, TheRestIsRefusedByName) {
  const auto refused = [](auto change) {
    GenerateRequest request = text_request();
    change(request);
    const auto body = tgi_generate_body(request, "");
    EXPECT_FALSE(body.ok());
    if (body.ok()) return std::string();
    EXPECT_EQ(body.error().code, ErrorCode::unsupported);
    EXPECT_THAT(body.error().message, HasSubstr("'" + body.error().param + "'"));
    EXPECT_THAT(body.error().message, HasSubstr("tgi"));
    return body.error().param;
  };
  EXPECT_EQ(refused([](auto& r) { r.n = 2; }), "n");
  EXPECT_EQ(refused([](auto& r) { r.sampling.min_p = 0.1F; }), "min_p");
  EXPECT_EQ(refused([](auto& r) { r.sampling.presence_penalty = 1; }), "presence_penalty");
  EXPECT_EQ(refused([](auto& r) { r.sampling.logit_bias = {{1, 1}}; }), "logit_bias");
  EXPECT_EQ(refused([](auto& r) { r.stop.min_tokens = 1; }), "min_tokens");
  EXPECT_EQ(refused([](auto& r) { r.stop.ignore_eos = true; }), "ignore_eos");
  EXPECT_EQ(refused([](auto& r) { r.stop.stop_token_ids = {1}; }), "stop_token_ids");
  EXPECT_EQ(refused([](auto& r) { r.priority = 1; }), "priority");
  EXPECT_EQ(refused([](auto& r) { r.prompt = std::vector<inference::TokenId>{1}; }), "prompt");
  EXPECT_EQ(refused([](auto& r) { r.echo = r.prompt_logprobs = true; }), "echo");
  EXPECT_EQ(refused([](auto& r) { r.response_format.kind = inference::ResponseFormat::Kind::json_object; }),
            "response_format");
  EXPECT_EQ(refused([](auto& r) { r.extensions = {{"use_beam_search", "true"}}; }), "use_beam_search");
}

TEST(TgiRequest, Chats) {
  GenerateRequest request = chat_request();
  request.sampling = {0.5F, 1, {}, {}, {}, 0, 0.5F, 7, {}};
  request.tools = {{"look", "", "", std::nullopt}};
  request.logprobs = 2;
  EXPECT_EQ(json::parse(*generate_body(request, "tgi", Dialect::tgi)), json::parse(R"({
    "model": "tgi", "messages": [{"role": "user", "content": "Hi"}], "stream": true,
    "stream_options": {"include_usage": true}, "temperature": 0.5, "frequency_penalty": 0.5, "seed": 7,
    "logprobs": true, "top_logprobs": 2,
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]})"));
  request = chat_request();
  request.response_format = {inference::ResponseFormat::Kind::json_schema, "a", "", R"({"properties":{}})", true};
  EXPECT_EQ(json::parse(*generate_body(request, "tgi", Dialect::tgi)).at("response_format"),
            json::parse(R"({"type":"json","value":{"properties":{}}})"));
  request.response_format.kind = inference::ResponseFormat::Kind::json_object;
  EXPECT_EQ(generate_body(request, "tgi", Dialect::tgi).error().param, "response_format");
  request = chat_request();
  request.sampling.presence_penalty = 1;  // it would become a repetition penalty of 3
  EXPECT_EQ(generate_body(request, "tgi", Dialect::tgi).error().param, "presence_penalty");
  request = chat_request();
  request.n = 2;
  EXPECT_EQ(generate_body(request, "tgi", Dialect::tgi).error().param, "n");
}

// TGI has a message's content or its calls, and reads past what it does not know.
TEST(TgiRequest, Messages) {
  Message image{"user", ""};
  image.name = "ann";
  image.parts = {{inference::ContentPart::Kind::text, "See", ""},
                 {inference::ContentPart::Kind::image, "data:image/png;base64,AA==", "low"}};
  Message called{"assistant", "\n\n"};
  called.reasoning = "Hm.";
  called.tool_calls = {{"a", "look", "{}"}, {"b", "look", "{}"}};
  Message first{"tool", "seen"};
  first.tool_call_id = "a";
  Message second{"tool", ""};
  second.tool_call_id = "b";
  GenerateRequest request;
  request.prompt = std::vector<Message>{image, called, first, second};
  request.tools = {{"look", "", "{}", true}};
  const auto body = generate_body(request, "tgi", Dialect::tgi);
  ASSERT_TRUE(body.ok()) << body.error().message;
  EXPECT_EQ(json::parse(*body).at("messages"), json::parse(R"([
    {"role": "user", "name": "ann", "content": [{"type": "text", "text": "See"},
      {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
    {"role": "assistant", "tool_calls": [
      {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}},
      {"id": "b", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
    {"role": "tool", "content": "seen"}, {"role": "tool", "content": ""}])"));
  EXPECT_EQ(json::parse(*body).at("tools").at(0).at("function"), json::parse(R"({"name":"look","parameters":{}})"));

  const auto refusal = [&](std::vector<Message> messages) {
    request.prompt = std::move(messages);
    const auto refused = generate_body(request, "tgi", Dialect::tgi);
    EXPECT_FALSE(refused.ok());
    if (refused.ok()) return std::string();
    EXPECT_EQ(refused.error().code, ErrorCode::unsupported);
    EXPECT_EQ(refused.error().param, "messages");
    return refused.error().message;
  };
  EXPECT_THAT(refusal({called, second, first}), HasSubstr("another order"));
  called.content = "Let me look.";
  EXPECT_THAT(refusal({called, first, second}), HasSubstr("both content and tool_calls"));
  EXPECT_TRUE(generate_body(request, "m", Dialect::vllm).ok());
}

// ---- Texts ----

TEST_F(TgiServiceTest, AStreamBecomesEvents) {
  RawRequest seen;
  const auto served = serve_each([&](RawConnection& connection, const RawRequest& request) {
    seen = request;
    connection.send(kStreamHead);
    connection.send_chunk(token("Hel"));
    connection.send_chunk(":\n\n" + token("lo"));  // what keeps the connection alive is no event
    connection.send_chunk(last("</s>", "eos_token", true));
    connection.send(kLast);
  });
  GenerateRequest request = text_request();
  request.echo = true;
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->all<Started>().at(0).prompt_text, "Once");
  EXPECT_EQ(sink->text(), "Hello");
  EXPECT_EQ(sink->all<ChoiceFinished>().at(0).reason, FinishReason::stop);
  EXPECT_FALSE(sink->all<ChoiceFinished>().at(0).stop_reason.has_value());
  EXPECT_EQ(sink->all<Finished>().at(0).usage.prompt_tokens, 5);
  EXPECT_EQ(sink->all<Finished>().at(0).usage.completion_tokens, 3);
  EXPECT_EQ(seen.line, "POST /generate_stream HTTP/1.1");
  EXPECT_EQ(seen.headers["x-request-id"], "req-1");
  EXPECT_EQ(json::parse(seen.body).at("inputs"), "Once");
  EXPECT_EQ(service->stats().generation_tokens, 3U);
}

TEST_F(TgiServiceTest, LengthAndLogprobs) {
  const auto served = serve_events(token("a", R"(,"top_tokens":[{"id":9,"text":"b","logprob":-0.1,"special":false}])") +
                                   last("c", "length"));
  GenerateRequest request = text_request();
  request.logprobs = 1;
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->all<ChoiceFinished>().at(0).reason, FinishReason::length);
  const auto logprobs = sink->all<Delta>().at(0).logprobs;
  ASSERT_EQ(logprobs.size(), 1U);
  EXPECT_EQ(logprobs[0].id, 7);
  EXPECT_EQ(logprobs[0].token, "a");
  EXPECT_FLOAT_EQ(*logprobs[0].logprob, -0.5F);
  ASSERT_EQ(logprobs[0].top.size(), 2U);  // the chosen one is not among TGI's
  EXPECT_EQ(logprobs[0].top[0].token, "b");
  EXPECT_EQ(logprobs[0].top[1].token, "a");
}

TEST_F(TgiServiceTest, AStopStringIsNoPartOfTheText) {
  const auto served = serve_events(token("one E") + token("N") + last("D", "stop_sequence"));
  GenerateRequest request = text_request();
  request.stop.stop = {"END"};
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->text(), "one ");
  EXPECT_EQ(std::get<std::string>(*sink->all<ChoiceFinished>().at(0).stop_reason), "END");
  EXPECT_EQ(sink->all<Finished>().at(0).usage.prompt_tokens, 5);
}

TEST_F(TgiServiceTest, WhatMightHaveBecomeAStopStringIsText) {
  const auto served = serve_events(token("one E") + last("N", "length"));
  GenerateRequest request = text_request();
  request.stop.stop = {"END"};
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->text(), "one EN");
  EXPECT_EQ(sink->all<ChoiceFinished>().at(0).reason, FinishReason::length);
}

// TGI sees a stop string only at the end of a token: it is stopped from here, and asked for what it has not told yet.
TEST_F(TgiServiceTest, AStopStringThatTheServerReadsPast) {
  std::atomic<int> closed{-1};
  std::atomic<int> counted{0};
  const auto served = serve([&](RawConnection& connection) {
    const RawRequest request = connection.read_request();
    if (request.line == "POST /tokenize HTTP/1.1") {
      EXPECT_EQ(json::parse(request.body), json::parse(R"({"inputs":"Once"})"));
      ++counted;
      connection.answer(R"([{"id":1,"text":"On","start":0,"stop":2},{"id":2,"text":"ce","start":2,"stop":4}])");
      connection.closed_within(10s);
      return;
    }
    connection.send(kStreamHead);
    connection.send_chunk(token("one. "));
    connection.send_chunk(token("END and more"));
    closed = connection.closed_within(10s) ? 1 : 0;
  });
  GenerateRequest request = text_request();
  request.stop.stop = {"END"};
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  handle.reset();
  EXPECT_EQ(sink->text(), "one. ");
  EXPECT_EQ(sink->all<ChoiceFinished>().at(0).reason, FinishReason::stop);
  EXPECT_EQ(sink->all<Finished>().at(0).usage.prompt_tokens, 2);
  EXPECT_EQ(sink->all<Finished>().at(0).usage.completion_tokens, 2);
  for (int i = 0; i < 2000 && closed.load() < 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(closed.load(), 1);
  EXPECT_EQ(counted.load(), 1);
}

// The server goes on while it only sends what keeps the connection alive.
TEST_F(TgiServiceTest, SignsOfLifeAreNoAnswer) {
  EndpointOptions options = quiet();
  options.first_byte_timeout = options.idle_timeout = 100ms;
  for (const bool begun : {false, true}) {
    std::atomic<bool> closed{false};
    const auto served = serve(
        [&](RawConnection& connection) {
          connection.read_request();
          connection.send(kStreamHead);
          if (begun) connection.send_chunk(token("one"));
          while (!connection.closed_within(20ms)) connection.send_chunk(":\n\n");
          closed = true;
        },
        options);
    const auto begin = std::chrono::steady_clock::now();
    const auto sink = ask();
    EXPECT_EQ(sink->error().code, ErrorCode::unavailable);
    EXPECT_THAT(sink->error().message, HasSubstr("nothing but signs of life for 100 ms"));
    EXPECT_GE(std::chrono::steady_clock::now() - begin, 100ms);
    EXPECT_EQ(sink->text(), begun ? "one" : "");
    handle.reset();
    for (int i = 0; i < 5000 && !closed.load(); ++i) std::this_thread::sleep_for(1ms);
    EXPECT_TRUE(closed.load());
    service->close();
    service.reset();
    server.reset();
  }
}

// Before the rest of a cut answer costs more, it is cancelled; and the count has a time limit of its own and the
// request's.
TEST_F(TgiServiceTest, ACountIsNotWaitedForLongerThanTheRequestMayTake) {
  std::atomic<bool> cancelled{false};
  std::atomic<bool> first{false};
  const auto served = serve([&](RawConnection& connection) {
    const RawRequest request = connection.read_request();
    if (request.line == "POST /tokenize HTTP/1.1") {
      for (int i = 0; i < 5000 && !cancelled.load(); ++i) std::this_thread::sleep_for(1ms);
      first = cancelled.load();
      connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
      while (!connection.closed_within(20ms)) connection.send_chunk(" ");
      return;
    }
    connection.send(kStreamHead);
    connection.send_chunk(token("END and more"));
    cancelled = connection.closed_within(10s);
  });
  GenerateRequest request = text_request();
  request.stop.stop = {"END"};
  request.deadline = std::chrono::steady_clock::now() + 500ms;
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_LT(std::chrono::steady_clock::now(), *request.deadline + 2s);
  EXPECT_EQ(sink->all<Finished>().size(), 1U);
  EXPECT_TRUE(first.load());
}

TEST_F(TgiServiceTest, ACountThatFailsFailsNothing) {
  const auto served = serve([&](RawConnection& connection) {
    const RawRequest request = connection.read_request();
    if (request.line == "POST /tokenize HTTP/1.1") {
      connection.answer("", "500 Internal Server Error");
      return;
    }
    connection.send(kStreamHead);
    connection.send_chunk(token("END and more"));
    connection.closed_within(10s);
  });
  GenerateRequest request = text_request();
  request.stop.stop = {"END"};
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  ASSERT_EQ(sink->all<Finished>().size(), 1U);
  EXPECT_EQ(sink->all<Finished>()[0].usage.prompt_tokens, 0);
}

TEST_F(TgiServiceTest, GivingUpWhileItIsCountedEndsThat) {
  std::atomic<bool> counting{false};
  std::atomic<int> closed{0};
  const auto served = serve([&](RawConnection& connection) {
    const RawRequest request = connection.read_request();
    if (request.line == "POST /tokenize HTTP/1.1") {
      counting = true;
    } else {
      connection.send(kStreamHead);
      connection.send_chunk(token("END and more"));
    }
    closed += connection.closed_within(10s) ? 1 : 0;
  });
  GenerateRequest request = text_request();
  request.stop.stop = {"END"};
  const auto sink = ask(request);
  for (int i = 0; i < 5000 && !counting.load(); ++i) std::this_thread::sleep_for(1ms);
  handle.reset();
  for (int i = 0; i < 5000 && closed.load() < 2; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(closed.load(), 2);
  std::lock_guard lock(sink->mutex);
  EXPECT_FALSE(sink->over());
}

// ---- Chats ----

std::string chat_chunk(std::string_view delta, std::string_view finish = "null") {
  return R"(data:{"object":"chat.completion.chunk","id":"","choices":[{"index":0,"delta":)" + std::string(delta) +
         R"(,"logprobs":null,"finish_reason":)" + std::string(finish) + "}],\"usage\":null}\n\n";
}
const std::string kChatEnd =
    R"(data:{"object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}})"
    "\n\ndata:[DONE]\n\n";

TEST_F(TgiServiceTest, AChat) {
  RawRequest seen;
  const auto served = serve_each([&](RawConnection& connection, const RawRequest& request) {
    seen = request;
    connection.send(kStreamHead);
    connection.send_chunk(chat_chunk(R"({"role":"assistant","content":"Hel"})") +
                          chat_chunk(R"({"role":"assistant","content":"lo.E"})") +
                          chat_chunk(R"({"role":"assistant","content":"ND"})", R"("stop_sequence")") + kChatEnd);
    connection.send(kLast);
  });
  GenerateRequest request = chat_request();
  request.stop.stop = {"END"};
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->text(), "Hello.");
  EXPECT_EQ(std::get<std::string>(*sink->all<ChoiceFinished>().at(0).stop_reason), "END");
  EXPECT_EQ(sink->all<Finished>().at(0).usage.prompt_tokens, 9);
  EXPECT_EQ(seen.line, "POST /v1/chat/completions HTTP/1.1");
  EXPECT_EQ(json::parse(seen.body).at("model"), "tgi");
}

TEST_F(TgiServiceTest, AChatWhoseStopStringTheServerReadsPast) {
  const auto served = serve([&](RawConnection& connection) {
    const RawRequest request = connection.read_request();
    if (request.line == "POST /chat_tokenize HTTP/1.1") {
      EXPECT_EQ(json::parse(request.body).at("messages").at(0).at("content"), "Hi");
      connection.answer(R"({"tokenize_response":[{"id":1,"text":"Hi","start":0,"stop":2}],"templated_text":"Hi"})");
      connection.closed_within(10s);
      return;
    }
    connection.send(kStreamHead);
    connection.send_chunk(chat_chunk(R"({"role":"assistant","content":"so END of it"})"));
    EXPECT_TRUE(connection.closed_within(10s));
  });
  GenerateRequest request = chat_request();
  request.stop.stop = {"END"};
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  handle.reset();
  EXPECT_EQ(sink->text(), "so ");
  EXPECT_EQ(sink->all<Finished>().at(0).usage.prompt_tokens, 1);
}

// TGI's streams of calls end without a finish_reason.
TEST_F(TgiServiceTest, CallsOfTools) {
  const auto call = [](std::string_view name, std::string_view arguments) {
    return chat_chunk(R"({"role":"assistant","tool_calls":[{"index":0,"id":"0","type":"function","function":{"name":)" +
                      std::string(name) + R"(,"arguments":")" + std::string(arguments) + "\"}}]}");
  };
  const auto served = serve_events(call("\"look\"", "{") + call("null", R"( \"at\": 1})") + kChatEnd);
  GenerateRequest request = chat_request();
  request.tools = {{"look", "", "", std::nullopt}};
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  ASSERT_EQ(sink->all<Delta>().size(), 2U);
  EXPECT_EQ(sink->all<Delta>()[0].tool_calls.at(0).name, "look");
  EXPECT_EQ(sink->all<Delta>()[1].tool_calls.at(0).arguments, R"( "at": 1})");
  ASSERT_EQ(sink->all<ChoiceFinished>().size(), 1U);
  EXPECT_EQ(sink->all<ChoiceFinished>()[0].reason, FinishReason::tool_calls);
  EXPECT_EQ(sink->all<Finished>().size(), 1U);
}

// While TGI holds the beginning of a call back, the limit may come: then nothing tells of it but the usage.
TEST_F(TgiServiceTest, ACallThatIsCutBeforeItIsTold) {
  const auto served = serve_events(kChatEnd);
  GenerateRequest request = chat_request();
  request.tools = {{"look", "", "", std::nullopt}};
  request.stop.max_tokens = 4;
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  ASSERT_EQ(sink->all<ChoiceFinished>().size(), 1U);
  EXPECT_EQ(sink->all<ChoiceFinished>()[0].reason, FinishReason::length);
  request.stop.max_tokens = 5;
  EXPECT_EQ(ask(request)->error().code, ErrorCode::unavailable);
}

TEST_F(TgiServiceTest, AChatWithoutAFinishIsNoWholeOne) {
  const auto served = serve_events(chat_chunk(R"({"role":"assistant","content":"x"})") + kChatEnd);
  EXPECT_EQ(ask(chat_request())->error().code, ErrorCode::unavailable);
}

// ---- Faults ----

struct FaultCase {
  const char* name;
  bool chat;
  std::string events;
  bool last_chunk;
  ErrorCode code;
  std::string message;
};
void PrintTo(const FaultCase& each, std::ostream* out) { *out << each.name; }

class TgiFaults : public TgiServiceTest, public ::testing::WithParamInterface<FaultCase> {};

TEST_P(TgiFaults, EndInOneFailure) {
  const FaultCase& each = GetParam();
  const auto served = serve([&](RawConnection& connection) {
    connection.read_request();
    connection.send(kStreamHead);
    if (!each.events.empty()) connection.send_chunk(each.events);
    if (each.last_chunk) connection.send(kLast);
  });
  const auto sink = ask(each.chat ? chat_request() : text_request());
  const Error error = sink->error();
  EXPECT_EQ(error.code, each.code);
  EXPECT_THAT(error.message, HasSubstr(each.message));
  EXPECT_EQ(sink->all<ChoiceFinished>().size(), 0U);
  EXPECT_EQ(service->stats().finished_error, 1U);
}

INSTANTIATE_TEST_SUITE_P(
    All, TgiFaults,
    ::testing::Values(
        FaultCase{"cut", false, token("x"), false, ErrorCode::unavailable, "broke off its answer"},
        FaultCase{"no_whole_text", false, token("x"), true, ErrorCode::unavailable, "no generated_text"},
        FaultCase{"nothing", false, "", true, ErrorCode::unavailable, "no generated_text"},
        FaultCase{"validation", false,
                  "data:{\"error\":\"Input validation error: `top_p` must be…\",\"error_type\":\"validation\"}\n\n",
                  true, ErrorCode::invalid_argument, "Input validation error: `top_p` must be…"},
        FaultCase{"overloaded", false, "data:{\"error\":\"Model is overloaded\",\"error_type\":\"overloaded\"}\n\n",
                  true, ErrorCode::overloaded, "Model is overloaded"},
        FaultCase{"generation", false,
                  token("x") + "data:{\"error\":\"Request failed during generation: CUDA error\",\"error_type\":"
                               "\"generation\"}\n\n",
                  true, ErrorCode::internal, "failed: Request failed during generation: CUDA error"},
        FaultCase{"incomplete", false,
                  "data:{\"error\":\"Incomplete generation\",\"error_type\":\"incomplete_generation\"}\n\n", true,
                  ErrorCode::internal, "Incomplete generation"},
        FaultCase{"no_token", false, "data:{\"index\":1}\n\n", true, ErrorCode::internal, "an event has no token"},
        FaultCase{"no_json", false, "data:<html>\n\n", true, ErrorCode::internal, "not a JSON object"},
        FaultCase{"chat_validation", true,
                  "data:{\"error\":{\"message\":\"Input validation error: x\",\"http_status_code\":422}}\n\ndata:"
                  "[DONE]\n\n",
                  true, ErrorCode::invalid_argument, "Input validation error: x"},
        FaultCase{"chat_overloaded", true,
                  "data:{\"error\":{\"message\":\"Model is overloaded\",\"http_status_code\":422}}\n\n", true,
                  ErrorCode::overloaded, "overloaded"},
        FaultCase{"chat_generation", true,
                  "data:{\"error\":{\"message\":\"Request failed during generation: x\",\"http_status_code\":422}}\n\n",
                  true, ErrorCode::internal, "Request failed during generation"}),
    [](const auto& each) { return std::string(each.param.name); });

TEST_F(TgiServiceTest, RefusalsWithAStatus) {
  std::string status;
  std::string body;
  const auto served =
      serve_each([&](RawConnection& connection, const RawRequest&) { connection.answer(body, status); });
  const auto error = [&](std::string_view now, std::string_view text) {
    status = now;
    body = text;
    return ask(chat_request())->error();
  };
  Error fault = error("422 Unprocessable Entity", R"({"error":"Template error: x","error_type":"template_error"})");
  EXPECT_EQ(fault.code, ErrorCode::invalid_argument);
  EXPECT_EQ(fault.message, "Template error: x");
  fault = error("422 Unprocessable Entity", "Failed to deserialize the JSON body into the target type");
  EXPECT_EQ(fault.code, ErrorCode::invalid_argument);
  EXPECT_THAT(fault.message, HasSubstr("Failed to deserialize"));
  fault = error("424 Failed Dependency", R"({"error":"Request failed during generation","error_type":"generation"})");
  EXPECT_EQ(fault.code, ErrorCode::internal);
  EXPECT_THAT(fault.message, HasSubstr("failed: Request failed during generation"));
  fault = error("429 Too Many Requests", R"({"error":"Model is overloaded","error_type":"overloaded"})");
  EXPECT_EQ(fault.code, ErrorCode::overloaded);
  EXPECT_GE(fault.retry_after_s, 1);
  fault =
      error("500 Internal Server Error", R"({"error":"Incomplete generation","error_type":"incomplete_generation"})");
  EXPECT_EQ(fault.code, ErrorCode::internal);
  EXPECT_THAT(fault.message, HasSubstr("Incomplete generation"));
}

TEST_F(TgiServiceTest, DestroyingTheHandleClosesTheConnection) {
  std::atomic<int> closed{-1};
  const auto served = serve([&](RawConnection& connection) {
    connection.read_request();
    connection.send(kStreamHead);
    connection.send_chunk(token("x"));
    closed = connection.closed_within(10s) ? 1 : 0;
  });
  const auto sink = ask();
  ASSERT_TRUE(sink->wait_events(2));
  handle.reset();
  for (int i = 0; i < 5000 && closed.load() < 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(closed.load(), 1);
  EXPECT_EQ(service->stats().finished_abort, 1U);
}

// ---- Tokens, health ----

TEST_F(TgiServiceTest, Tokens) {
  const auto served = serve_each([](RawConnection& connection, const RawRequest& request) {
    if (request.line == "POST /chat_tokenize HTTP/1.1")
      connection.answer(R"({"tokenize_response":[{"id":4,"text":"<s>","start":0,"stop":0}],"templated_text":"x"})");
    else if (json::parse(request.body).at("inputs") == "é")
      connection.answer(R"([{"id":5,"text":"\ufffd","start":0,"stop":1}])");
    else
      connection.answer(R"([{"id":5,"text":"a","start":0,"stop":1},{"id":6,"text":"b","start":1,"stop":2}])");
  });
  const auto tokenize = [&](inference::TokenizeRequest request) {
    std::promise<Result<inference::Tokenized>> done;
    service->tokenize_async(std::move(request), [&](auto result) { done.set_value(std::move(result)); });
    return done.get_future().get();
  };
  auto tokens = tokenize({std::string("ab")});
  ASSERT_TRUE(tokens.ok()) << tokens.error().message;
  EXPECT_EQ(tokens->ids, (std::vector<inference::TokenId>{5, 6}));
  EXPECT_EQ(tokens->tokens, (std::vector<std::string>{"a", "b"}));
  tokens = tokenize({std::string("é")});
  ASSERT_TRUE(tokens.ok());
  EXPECT_TRUE(tokens->tokens.empty());  // they cannot be trusted
  tokens = tokenize({std::vector<Message>{{"user", "Hi"}}});
  ASSERT_TRUE(tokens.ok()) << tokens.error().message;
  EXPECT_EQ(tokens->ids, (std::vector<inference::TokenId>{4}));
  EXPECT_EQ(tokenize({std::string("ab"), false}).error().param, "add_special_tokens");
  std::promise<Result<std::string>> text;
  service->detokenize_async({{1}}, [&](auto result) { text.set_value(std::move(result)); });
  EXPECT_EQ(text.get_future().get().error().code, ErrorCode::unsupported);
}

TEST_F(TgiServiceTest, HealthAndContext) {
  std::atomic<bool> well{true};
  EndpointOptions options;
  options.health_interval = 10ms;
  const auto served = serve_each(
      [&](RawConnection& connection, const RawRequest& request) {
        if (request.line.starts_with("GET /info "))
          connection.answer(R"({"model_id":"org/m","max_input_tokens":1000,"max_total_tokens":2048})");
        else if (well)
          connection.answer("");
        else
          connection.answer(R"({"error":"unhealthy","error_type":"healthcheck"})", "503 Service Unavailable");
      },
      options);
  const auto wait_for = [](auto ready) {
    for (int i = 0; i < 5000 && !ready(); ++i) std::this_thread::sleep_for(1ms);
    return ready();
  };
  EXPECT_TRUE(wait_for([&] { return service->capabilities().max_model_len == 2048; }));
  EXPECT_EQ(service->health().state, inference::Health::State::ready);
  well = false;
  EXPECT_TRUE(wait_for([&] { return service->health().state == inference::Health::State::degraded; }));
  EXPECT_THAT(service->health().detail, HasSubstr("unhealthy"));
  well = true;
  EXPECT_TRUE(wait_for([&] { return service->health().state == inference::Health::State::ready; }));
}

TEST_F(TgiServiceTest, TheUrlMayEndWithV1) {
  RawRequest seen;
  const auto served = serve(
      [&](RawConnection& connection) {
        seen = connection.read_request();
        connection.send(kStreamHead);
        connection.send_chunk(last("x", "length"));
        connection.send(kLast);
      },
      quiet(), "/models/m/v1");
  ASSERT_TRUE(ask()->wait_over());
  EXPECT_EQ(seen.line, "POST /models/m/generate_stream HTTP/1.1");
}

}  // namespace
}  // namespace xgen::remote
