#include <gmock/gmock.h>

#include <sstream>

#include "server/fixture.h"

namespace xgen::server {
namespace {

using namespace std::chrono_literals;
using scripted::Answer;
using scripted::RawClient;
using ::testing::HasSubstr;
using ::testing::Not;

std::string completion(const std::string& prompt, const std::string& more = "") {
  return R"({"model":"scripted","prompt":")" + prompt + "\"" + more + "}";
}

TEST_F(ControllerTest, ADisconnectCancelsWithinOneStep) {
  start();
  for (const char* stream : {"", R"(,"stream":true)"}) {
    const int before = service->cancelled.load();
    {
      RawClient client(http->port());
      client.post("/v1/completions", completion("hold", stream));
      ASSERT_TRUE(eventually([&] { return service->running.load() == 1; }));
      if (*stream != '\0') {
        ASSERT_TRUE(client.read_until("\r\n\r\n"));
      }
    }
    EXPECT_TRUE(eventually([&] { return service->running.load() == 0; }, 2s));
    EXPECT_EQ(service->cancelled.load(), before + 1);
  }
  EXPECT_EQ(post("/v1/completions", completion("say x")).status, 200);
}

TEST_F(ControllerTest, ADisconnectCancelsEveryPromptOfACall) {
  start();
  {
    RawClient client(http->port());
    client.post("/v1/completions", R"({"model":"scripted","prompt":["hold","hold","say x","hold"],"stream":true})");
    ASSERT_TRUE(client.read_until("\"index\":2"));
    ASSERT_TRUE(eventually([&] { return service->running.load() == 3; }));
  }
  EXPECT_TRUE(eventually([&] { return service->running.load() == 0; }, 2s));
}

TEST_F(ControllerTest, AFailedPromptEndsTheOthers) {
  start();
  EXPECT_EQ(post("/v1/completions", R"({"model":"scripted","prompt":["hold","error 7"]})").status, 429);
  EXPECT_TRUE(eventually([&] { return service->running.load() == 0; }, 2s));
}

// A client that stops reading costs bounded memory, and its request ends with the write timeout.
TEST_F(ControllerTest, AStreamThatIsNotReadIsHeldBackAndThenCancelled) {
  start({.version = "1"}, {.write_timeout = 500ms});
  RawClient client(http->port(), 4096);
  client.post("/v1/completions", completion("flood", R"(,"stream":true,"max_tokens":2000000000)"));
  EXPECT_TRUE(eventually([&] { return service->cancelled.load() == 1; }, 20s));
}

TEST_F(ControllerTest, AnEngineThatOutpacesTheServerCostsBoundedMemory) {
  start();
  for (const char* kind : {"burst", "drizzle"}) {
    const Answer answer = post("/v1/completions", completion(kind, R"(,"stream":true)"));
    EXPECT_EQ(answer.status, 500) << kind;
    EXPECT_THAT(answer.body, HasSubstr("faster than the server"));
  }
  EXPECT_EQ(post("/v1/completions", completion("say x")).status, 200);
}

// A slow client gets every byte, in fewer events.
TEST_F(ControllerTest, ASlowReaderLosesNothing) {
  start();
  RawClient client(http->port(), 4096);
  client.post("/v1/completions", completion("flood", R"(,"stream":true,"max_tokens":20000)"));
  ASSERT_TRUE(eventually([&] { return service->tokens.load() > 10'000; }, 20s));
  const Answer answer = client.read_answer();
  ASSERT_TRUE(answer.complete);
  EXPECT_THAT(answer.body.substr(answer.body.size() - 20), HasSubstr("[DONE]"));
  std::size_t said = 0;
  std::size_t events = 0;
  constexpr std::string_view kText = "\"text\":\"";
  for (std::size_t at = 0; (at = answer.body.find(kText, at)) != std::string::npos; ++events) {
    at += kText.size();
    const std::size_t end = answer.body.find('"', at);
    said += end - at;
    at = end;
  }
  EXPECT_EQ(said, 20'000U * 1024);
  EXPECT_LT(events, 19'000U);
}

TEST_F(ControllerTest, ManyStreamsAtOnce) {
  start({.version = "1"}, {.threads = 2});
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 64; ++i) {
    clients.push_back(std::make_unique<RawClient>(http->port()));
    clients.back()->post("/v1/completions",
                         completion("say number " + std::to_string(i) + " of many", R"(,"stream":true)"));
  }
  for (int i = 0; i < 64; ++i) {
    const Answer answer = clients[static_cast<std::size_t>(i)]->read_answer();
    std::string said;
    constexpr std::string_view kText = "\"text\":\"";
    for (std::size_t at = 0; (at = answer.body.find(kText, at)) != std::string::npos;) {
      at += kText.size();
      said += answer.body.substr(at, answer.body.find('"', at) - at);
    }
    EXPECT_EQ(said, "number " + std::to_string(i) + " of many");
    EXPECT_TRUE(answer.body.ends_with("data: [DONE]\n\n"));
  }
}

TEST_F(ControllerTest, TheLifecycleShowsInHealth) {
  start();
  const auto expect = [&](int health, int live, int ready, int startup, int inference) {
    const auto is = [](const Answer& answer, int status) {
      EXPECT_EQ(answer.status, status);
      EXPECT_EQ(answer.headers.contains("retry-after"), status == 503);
    };
    is(get("/health"), health);
    is(get("/health/live"), live);
    is(get("/health/ready"), ready);
    is(get("/health/startup"), startup);
    is(post("/v1/completions", completion("say x")), inference);
  };
  lifecycle.set(Lifecycle::State::starting);
  expect(503, 200, 503, 503, 200);  // a model that is loaded may answer before all are
  EXPECT_THAT(get("/health/startup").body, HasSubstr("\"progress\":0.875"));
  lifecycle.set(Lifecycle::State::ready);
  expect(200, 200, 200, 200, 200);
  lifecycle.set(Lifecycle::State::draining);
  expect(200, 200, 503, 200, 200);
  lifecycle.set(Lifecycle::State::refusing);
  expect(503, 200, 503, 200, 503);
  lifecycle.set(Lifecycle::State::ready);
  service->health_state = inference::Health::State::degraded;
  expect(503, 200, 200, 200, 200);
  service->health_state = inference::Health::State::dead;
  expect(503, 503, 200, 200, 200);
}

TEST_F(ControllerTest, AModelThatFailedToLoadDegradesHealth) {
  start();
  EXPECT_EQ(get("/health").status, 200);
  slow->fail("file \"a\" is missing");
  ASSERT_TRUE(eventually([this] { return registry.entry("slow")->state == registry::ModelState::failed; }));
  EXPECT_EQ(get("/health").status, 503);
  EXPECT_THAT(get("/health").body, HasSubstr(R"("detail":"file \"a\" is missing")"));
}

TEST_F(ControllerTest, UnknownFieldsMayBeLetThrough) {
  start({.version = "1", .reject_unknown_fields = false});
  EXPECT_EQ(post("/v1/completions", completion("say x", R"(,"my_extension":1)")).status, 200);
  // What is known and not offered stays refused.
  EXPECT_EQ(post("/v1/completions", completion("say x", R"(,"guided_json":{})")).status, 400);
}

TEST_F(ControllerTest, RequestsCarryTheirParametersToTheModel) {
  start({.version = "1", .request_timeout = 5s});
  ASSERT_EQ(post("/v1/chat/completions",
                 R"({"model":"scripted","messages":[{"role":"system","content":"be"},
                    {"role":"user","name":"ann","content":[{"type":"text","text":"say a"},{"type":"text","text":"b"}]}],
                    "max_completion_tokens":7,"temperature":0.5,"top_p":0.9,"top_k":4,"min_p":0.1,"n":2,"stop":["x","y"],
                    "seed":-3,"presence_penalty":1,"frequency_penalty":-1,"repetition_penalty":1.5,
                    "logprobs":true,"top_logprobs":3,"logit_bias":{"17":-100},"ignore_eos":true,"min_tokens":2,
                    "stop_token_ids":[8,9],"priority":-4})")
                .status,
            200);
  std::lock_guard lock(service->last_mutex);
  const auto& request = service->last;
  const auto& messages = std::get<std::vector<inference::Message>>(request.prompt);
  ASSERT_EQ(messages.size(), 2U);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].content, "say a\nb");
  EXPECT_EQ(messages[1].name, "ann");
  EXPECT_EQ(request.stop.max_tokens, 7);
  EXPECT_EQ(request.stop.min_tokens, 2);
  EXPECT_TRUE(request.stop.ignore_eos);
  EXPECT_EQ(request.stop.stop, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(request.stop.stop_token_ids, (std::vector<inference::TokenId>{8, 9}));
  EXPECT_FLOAT_EQ(*request.sampling.temperature, 0.5F);
  EXPECT_FLOAT_EQ(*request.sampling.top_p, 0.9F);
  EXPECT_EQ(request.sampling.top_k, 4);
  EXPECT_FLOAT_EQ(*request.sampling.min_p, 0.1F);
  EXPECT_FLOAT_EQ(*request.sampling.repetition_penalty, 1.5F);
  EXPECT_FLOAT_EQ(request.sampling.presence_penalty, 1);
  EXPECT_FLOAT_EQ(request.sampling.frequency_penalty, -1);
  EXPECT_EQ(request.sampling.seed, static_cast<std::uint64_t>(-3));
  ASSERT_EQ(request.sampling.logit_bias.size(), 1U);
  EXPECT_EQ(request.sampling.logit_bias[0], (std::pair<inference::TokenId, float>{17, -100.0F}));
  EXPECT_EQ(request.n, 2);
  EXPECT_EQ(request.logprobs, 3);
  EXPECT_EQ(request.priority, -4);
  EXPECT_FALSE(request.request_id.empty());
  ASSERT_TRUE(request.deadline.has_value());
  EXPECT_LT(*request.deadline, std::chrono::steady_clock::now() + 5s);
}

TEST_F(ControllerTest, RequestsCarryToolsAndFormsToTheModel) {
  using inference::ContentPart;
  start();
  ASSERT_EQ(post("/v1/chat/completions",
                 R"({"model":"able","messages":[{"role":"user","content":[{"type":"text","text":"what?"},
                      {"type":"image_url","image_url":{"url":"data:image/png;base64,AA==","detail":"low"}}]},
                    {"role":"assistant","content":null,"reasoning_content":"hm",
                     "tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}]},
                    {"role":"tool","tool_call_id":"c1","content":"say 4"}],
                    "tools":[{"type":"function","function":{"name":"f","description":"d","strict":true,
                              "parameters":{"type":"object","properties":{}}}}],
                    "tool_choice":{"type":"function","function":{"name":"f"}},"parallel_tool_calls":false,
                    "response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"a":[1,2.5]}}},
                    "reasoning_effort":"low","bad_words":["x"],"skip_special_tokens":true})")
                .status,
            200);
  std::lock_guard lock(able->last_mutex);
  const inference::GenerateRequest& request = able->last;
  const auto& messages = std::get<std::vector<inference::Message>>(request.prompt);
  ASSERT_EQ(messages.size(), 3U);
  EXPECT_TRUE(messages[0].content.empty());
  ASSERT_EQ(messages[0].parts.size(), 2U);
  EXPECT_EQ(messages[0].parts[0].value, "what?");
  EXPECT_EQ(messages[0].parts[1].kind, ContentPart::Kind::image);
  EXPECT_EQ(messages[0].parts[1].value, "data:image/png;base64,AA==");
  EXPECT_EQ(messages[0].parts[1].detail, "low");
  ASSERT_EQ(messages[1].tool_calls.size(), 1U);
  EXPECT_EQ(messages[1].tool_calls[0].id, "c1");
  EXPECT_EQ(messages[1].tool_calls[0].arguments, "{}");
  EXPECT_EQ(messages[1].reasoning, "hm");
  EXPECT_EQ(messages[2].tool_call_id, "c1");
  ASSERT_EQ(request.tools.size(), 1U);
  EXPECT_EQ(request.tools[0].description, "d");
  EXPECT_EQ(request.tools[0].strict, true);
  EXPECT_EQ(request.tools[0].parameters, R"({"type":"object","properties":{}})");
  EXPECT_EQ(request.tool_choice.mode, inference::ToolChoice::Mode::named);
  EXPECT_EQ(request.tool_choice.name, "f");
  EXPECT_EQ(request.parallel_tool_calls, false);
  EXPECT_EQ(request.response_format.kind, inference::ResponseFormat::Kind::json_schema);
  EXPECT_EQ(request.response_format.name, "n");
  EXPECT_EQ(request.response_format.schema, R"({"a":[1,2.5E0]})");
  ASSERT_EQ(request.extensions.size(), 2U);  // what changes nothing is not passed on
  EXPECT_EQ(request.extensions[0].name, "reasoning_effort");
  EXPECT_EQ(request.extensions[1].value, R"(["x"])");
}

TEST_F(ControllerTest, TheLogLinksRequestsToTraces) {
  start();
  const std::string id = "4bf92f3577b34da6a3ce929d0e0e4736";
  const auto logged = [&](log::Format format, const std::string& trace) {
    log::set_level(log::Level::info);
    log::set_format(format);
    ::testing::internal::CaptureStderr();
    RawClient client(http->port());
    client.send("GET /version HTTP/1.1\r\nHost: t\r\ntraceparent: 00-" + trace + "-00f067aa0ba902b7-01\r\n\r\n");
    EXPECT_EQ(client.read_answer().status, 200);
    log::set_level(log::Level::error);
    log::set_format(log::Format::text);
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_THAT(logged(log::Format::json, id), HasSubstr(R"("message":"request trace_id=)" + id + "\""));
  EXPECT_THAT(logged(log::Format::text, id), HasSubstr(" trace_id=" + id + " "));
  for (const std::string& none : {std::string(32, '0'), std::string(32, 'x'), id + "0"})
    EXPECT_THAT(logged(log::Format::text, none), Not(HasSubstr("trace_id"))) << none;
}

// Whatever is refused, the log says why, and holds nothing of what was asked.
TEST_F(ControllerTest, TheLogTellsTheReasonAndNoPrompt) {
  start();
  const std::pair<const char*, const char*> cases[] = {
      {R"({"model":"scripted","prompt":"error 7"})", R"(status=429 .*reason="scripted failure")"},
      {R"({"model":"scripted","prompt":[[1],"secret"]})", R"(status=400 .*reason="'prompt' must be a string, )"},
      {R"({"model":"scripted","prompt":"x","suffix":"secret"})", R"(status=400 .*reason="'suffix' is not supported)"},
      {R"({"model":"scripted","prompt":"secret","n":0})", R"(status=400 .*reason="'n' must be an integer)"},
      {R"({"model":"scripted","prompt":"break secret"} x)", R"(reason="The body of the request: invalid JSON at)"},
      {R"({"model":"nothing","prompt":"secret"})", R"(status=404 .*reason=".*'nothing')"},
      {R"({"model":"scripted","prompt":"break"})", R"( error http: .*status=500 .*reason="scripted failure in)"},
      {R"({"model":"scripted","prompt":"break","stream":true})", R"(status=500 .*reason="scripted failure in)"},
  };
  for (const auto& [body, want] : cases) {
    log::set_level(log::Level::info);
    ::testing::internal::CaptureStderr();
    const Answer answer = post("/v1/completions", body);
    log::set_level(log::Level::error);
    const std::string lines = ::testing::internal::GetCapturedStderr();
    EXPECT_THAT(lines, ::testing::ContainsRegex(want)) << body;
    EXPECT_THAT(lines, Not(HasSubstr("secret"))) << body;
    EXPECT_THAT(lines, HasSubstr("path=/v1/completions")) << body;
  }
  EXPECT_THAT(post("/v1/completions", cases[1].first).body, HasSubstr("got \\\"secret\\\"")) << "the client may see it";

  log::set_level(log::Level::info);
  ::testing::internal::CaptureStderr();
  {
    RawClient client(http->port());
    client.send("POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 104857600\r\n\r\n");
    client.read_answer();
    RawClient gone(http->port());
    gone.post("/v1/completions", completion("hold"));
    ASSERT_TRUE(eventually([&] { return service->running.load() == 1; }));
  }
  EXPECT_TRUE(eventually([&] { return service->running.load() == 0; }));
  get("/health/live");  // on the server's only thread, which has written its line by then
  log::set_level(log::Level::error);
  const std::string lines = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(lines, ::testing::ContainsRegex("path=/tokenize status=413 .*remote=127.* reason=\".*server.max_body"));
  EXPECT_THAT(lines, ::testing::ContainsRegex("status=499 .*reason=\"the client went away\""));
}

TEST_F(ControllerTest, TheLogHasNumbersInJson) {
  start();
  log::set_level(log::Level::info);
  log::set_format(log::Format::json);
  ::testing::internal::CaptureStderr();
  post("/v1/completions", completion("tok", R"(,"max_tokens":3)"));
  log::set_level(log::Level::error);
  log::set_format(log::Format::text);
  const auto line = parse(::testing::internal::GetCapturedStderr());
  EXPECT_EQ(line.at("status"), 200);
  EXPECT_EQ(line.at("completion_tokens"), 3);
  EXPECT_EQ(line.at("prompt_tokens"), 1);
  EXPECT_EQ(line.at("finish_reason"), "length");
  for (const char* each : {"cached_tokens", "queue_ms", "prefill_ms", "decode_ms"})
    EXPECT_TRUE(line.at(each).is_number()) << each;
  EXPECT_TRUE(line.at("duration_ms").is_number());
}

TEST_F(ControllerTest, WhatIsAskedAndAnsweredIsLoggedOnlyWhereThatIsWanted) {
  start();
  const std::string chat =
      R"({"model":"scripted","messages":[{"role":"system","content":"be kind"},{"role":"user","content":"say Hello"}]})";
  for (const bool wanted : {false, true}) {
    log::set_level(log::Level::info);
    log::set_content(wanted);
    ::testing::internal::CaptureStderr();
    post("/v1/chat/completions", chat);
    post("/v1/completions", R"({"model":"scripted","prompt":"say ab\ncd","stream":true})");
    post("/v1/completions", R"({"model":"scripted","prompt":[104,105]})");
    log::set_content(false);
    log::set_level(log::Level::error);
    const std::string lines = ::testing::internal::GetCapturedStderr();
    const std::string expected[] = {R"(prompt request_id=.*text="system: be kind\\nuser: say Hello")",
                                    "answer request_id=.*model=scripted text=Hello", R"(text="104 105")",
                                    R"(answer request_id=.*text="ab\\ncd")"};
    for (const std::string& each : expected) {
      if (wanted)
        EXPECT_THAT(lines, ::testing::ContainsRegex(each));
      else
        EXPECT_THAT(lines, Not(::testing::ContainsRegex(each)));
    }
    EXPECT_EQ(lines.find("Hello") != std::string::npos, wanted);
  }
}

// Bodies of this size are parsed beside the server thread.
// One thread reads them all, one after the other: those whose clients have gone hold up nobody.
TEST_F(ControllerTest, LargeBodiesWhoseClientsHaveGoneAreNotRead) {
  start();
  std::string lists = R"({"model":"scripted","prompt":"say x","y":[)";
  for (int i = 0; i < 2'000'000; ++i) lists += "[],";
  lists += "1]}";
  const auto seconds = [&](const std::string& body) {
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_GT(post("/v1/completions", body).status, 0);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  const double one = seconds(lists);
  for (int i = 0; i < 15; ++i) {
    RawClient client(http->port());
    ASSERT_TRUE(client.post("/v1/completions", lists));
  }
  EXPECT_LT(seconds(completion("say x") + std::string(100'000, ' ')), 3 * one);
}

TEST_F(ControllerTest, LargeBodiesAreAnsweredLikeOthers) {
  start();
  const std::string filler(200'000, ' ');
  EXPECT_EQ(parse(post("/v1/completions", completion("say Hello") + filler).body).at("choices").at(0).at("text"),
            "Hello");
  const Answer stream =
      post("/v1/chat/completions",
           R"({"model":"scripted","stream":true,"messages":[{"role":"user","content":"say Hello"}]})" + filler);
  EXPECT_EQ(stream.status, 200);
  EXPECT_THAT(stream.body, HasSubstr("data: [DONE]"));
  EXPECT_THAT(post("/tokenize", R"({"model":"scripted","prompt":"ab"})" + filler).body, HasSubstr("[97,98]"));
  EXPECT_THAT(post("/detokenize", R"({"model":"scripted","tokens":[104,105]})" + filler).body, HasSubstr("hi"));
  EXPECT_EQ(post("/v1/completions", "{" + filler).status, 400);
  EXPECT_EQ(post("/v1/completions", R"({"model":"nobody","prompt":"x"})" + filler).status, 404);
  // In order on one connection, with one that is small in between.
  RawClient client(http->port());
  const auto body = [&](const std::string& text, const std::string& more) {
    const std::string all = completion("say " + text) + more;
    return "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: " + std::to_string(all.size()) + "\r\n\r\n" +
           all;
  };
  client.send(body("one", filler) + body("two", "") + body("three", filler));
  for (const char* each : {"one", "two", "three"}) EXPECT_THAT(client.read_answer().body, HasSubstr(each));
}

TEST_F(ControllerTest, WhoLeavesWhileItsBodyIsReadIsForgotten) {
  start();
  const std::string large = completion("hold") + std::string(8'000'000, ' ');
  for (int i = 0; i < 20; ++i) {
    RawClient client(http->port());
    client.post("/v1/completions", large);
  }
  EXPECT_TRUE(eventually(
      [&] { return get("/metrics").body.find(R"(route="/v1/completions",status="499"} 20)") != std::string::npos; }));
  EXPECT_EQ(service->running.load(), 0);
  EXPECT_EQ(post("/v1/completions", completion("say x")).status, 200);
}

TEST_F(ControllerTest, TheLogsLevelIsSetAtRunTime) {
  start();
  const auto ask = [&](const std::string& method, const std::string& body) {
    RawClient client(http->port());
    client.send(method + " /admin/log-level HTTP/1.1\r\nHost: localhost\r\nContent-Length: " +
                std::to_string(body.size()) + "\r\n\r\n" + body);
    return client.read_answer();
  };
  log::set_level(log::Level::warn);
  EXPECT_EQ(ask("GET", "").body, R"({"level":"warn"})");
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(ask("PUT", R"({"level":"debug"})").body, R"({"level":"debug"})");
  get("/health/live");
  EXPECT_EQ(ask("PUT", R"({"level":"error"})").status, 200);
  get("/v1/models");
  const std::string lines = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(log::level(), log::Level::error);
  EXPECT_THAT(lines, HasSubstr("the log's level is set level=debug"));
  EXPECT_THAT(lines, HasSubstr("path=/health/live"));
  EXPECT_THAT(lines, Not(HasSubstr("path=/v1/models")));
  for (const char* body : {R"({"level":"loud"})", R"({"level":3})", R"({"model":"debug"})", "{}", "[]"}) {
    const Answer answer = ask("PUT", body);
    EXPECT_EQ(answer.status, 400) << body;
    EXPECT_THAT(answer.body, HasSubstr("level")) << body;
  }
  EXPECT_EQ(log::level(), log::Level::error);
}

TEST_F(ControllerTest, AnswersAreCountedByRouteAndStatus) {
  start();
  EXPECT_THAT(get("/metrics").body, Not(HasSubstr("xgen_http_responses_total{")));
  post("/v1/completions", completion("say x"));
  post("/api/vllm/v1/completions", completion("say x", R"(,"stream":true)"));
  post("/v1/completions", "{");
  get("/v1/completions");
  get("/v1/models/scripted");
  get("/v1/models/org/slashed?x=1");
  get("/v1/models/nothing");
  for (const char* path : {"/nowhere", "/v2", "/v1/completions/x"}) get(path);
  RawClient large(http->port());
  large.send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 104857600\r\n\r\n");
  large.read_answer();
  RawClient garbage(http->port());
  garbage.send("garbage\r\n\r\n");
  garbage.read_answer();
  std::vector<std::string> lines;
  std::istringstream page(get("/metrics").body);
  for (std::string line; std::getline(page, line);)
    if (line.starts_with("xgen_http_responses_total{")) lines.push_back(line.substr(line.find('{')));
  EXPECT_THAT(lines, ::testing::UnorderedElementsAre(
                         R"({route="/v1/completions",status="200"} 2)", R"({route="/v1/completions",status="400"} 1)",
                         R"({route="/v1/completions",status="405"} 1)", R"({route="/v1/completions",status="413"} 1)",
                         R"({route="/v1/models/{id}",status="200"} 2)", R"({route="/v1/models/{id}",status="404"} 1)",
                         R"({route="/metrics",status="200"} 1)", R"({route="none",status="404"} 3)",
                         R"({route="none",status="400"} 1)"));
}

TEST_F(ControllerTest, ARequestsTimeIsFromItsHead) {
  start();
  const std::string body = R"({"model":"scripted","prompt":"say x"})";
  RawClient slow_sender(http->port());
  slow_sender.send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: " + std::to_string(body.size()) +
                   "\r\n\r\n");
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  slow_sender.send(body);
  EXPECT_EQ(slow_sender.read_answer().status, 200);
  RawClient garbage(http->port());
  garbage.send("garbage\r\n\r\n");
  garbage.read_answer();
  ASSERT_TRUE(
      eventually([&] { return get("/metrics").body.find(R"({route="none",status="400"} 1)") != std::string::npos; }));
  const std::string page = get("/metrics").body;
  EXPECT_THAT(page, HasSubstr(R"(xgen_http_request_duration_seconds_bucket{route="/v1/completions",le="0.25"} 0)"));
  EXPECT_THAT(page, HasSubstr(R"(xgen_http_request_duration_seconds_count{route="/v1/completions"} 1)"));
  EXPECT_THAT(page, Not(HasSubstr(R"(xgen_http_request_duration_seconds_count{route="none"})")))
      << "what never had a head took no time";
}

TEST_F(ControllerTest, TheLogCountsTheTokensOfBrokenAnswers) {
  start();
  for (const char* stream : {"", R"(,"stream":true)"}) {
    log::set_level(log::Level::info);
    ::testing::internal::CaptureStderr();
    post("/v1/completions", completion("break", stream));
    post("/v1/completions", completion("tok", std::string(R"(,"n":2,"max_tokens":3)") + stream));
    log::set_level(log::Level::error);
    const std::string lines = ::testing::internal::GetCapturedStderr();
    EXPECT_THAT(lines, ::testing::ContainsRegex(
                           "status=500 .*model=scripted completion_tokens=1 queue_ms=.*decode_ms=[0-9.]+ reason="));
    EXPECT_THAT(lines, ::testing::ContainsRegex("status=200 .*completion_tokens=6 .*finish_reason=length\n"));
  }
}

TEST_F(ControllerTest, TheLogCountsTokensThatAreNotStreamed) {
  start();
  for (const char* stream : {"", R"(,"stream":true)"}) {
    log::set_level(log::Level::info);
    ::testing::internal::CaptureStderr();
    post("/v1/completions",
         R"({"model":"scripted","prompt":["hidden 50","hidden 7","say x"])" + std::string(stream) + "}");
    log::set_level(log::Level::error);
    EXPECT_THAT(::testing::internal::GetCapturedStderr(),
                ::testing::ContainsRegex("status=200 .*completion_tokens=60 .*finish_reason=stop\n"));
  }
}

TEST_F(ControllerTest, PipelinedCallsAreAnsweredInOrder) {
  start();
  RawClient client(http->port());
  for (int i = 0; i < 20; ++i) client.post("/v1/completions", completion("say " + std::to_string(i)));
  for (int i = 0; i < 20; ++i)
    EXPECT_THAT(client.read_answer().body, HasSubstr("\"text\":\"" + std::to_string(i) + "\"")) << i;
}

TEST_F(ControllerTest, DrainingFinishesStreams) {
  start();
  RawClient client(http->port());
  client.post("/v1/completions", completion("flood", R"(,"stream":true,"max_tokens":3000)"));
  ASSERT_TRUE(client.read_until("data: "));
  lifecycle.set(Lifecycle::State::refusing);
  std::thread drainer([&] { EXPECT_TRUE(http->drain(20s)); });
  const Answer answer = client.read_answer();
  EXPECT_TRUE(answer.complete);
  EXPECT_TRUE(answer.body.ends_with("data: [DONE]\n\n"));
  drainer.join();
}

TEST_F(ControllerTest, TheReferenceCoversEveryRoute) {
  const std::string page = reference_markdown();
  for (const std::string& route : route_list()) {
    const std::size_t blank = route.find(' ');
    EXPECT_THAT(page, HasSubstr("| " + route.substr(0, blank) + " | `" + route.substr(blank + 1) + "` |"));
  }
  for (const char* name : {"temperature", "tools", "user", "429"}) EXPECT_THAT(page, HasSubstr(name));
  // What can be answered, and nothing else.
  for (const char* row :
       {"| 404 | invalid_request_error | not_found |", "| 405 |", "| 415 |", "| 431 |", "| 505 |",
        "| 401 | authentication_error | invalid_api_key |", "| 403 | permission_error | permission_denied |"})
    EXPECT_THAT(page, HasSubstr(row));
  EXPECT_THAT(page, Not(HasSubstr("| 499 |")));
}

}  // namespace
}  // namespace xgen::server
