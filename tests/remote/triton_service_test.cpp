#include "remote/triton_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <future>
#include <iterator>
#include <mutex>
#include <thread>

#include "base/json.h"
#include "remote/answers.h"
#include "remote/triton_request.h"
#include "support/memory_files.h"
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

// One token a character; <s> = 0 is put before a text, </s> = 1.
std::shared_ptr<const text::Tokenizer> tokenizer() {
  json::object vocab{{"<s>", 0}, {"</s>", 1}, {"\u0120", 2}};
  for (char c = 33; c < 127; ++c) vocab[std::string(1, c)] = static_cast<int>(c);
  const auto special = [](int id, const char* content) {
    return json::object{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                        {"rstrip", false}, {"normalized", false}, {"special", true}};
  };
  const json::object file{
      {"version", "1.0"},
      {"added_tokens", json::array{special(0, "<s>"), special(1, "</s>")}},
      {"normalizer", nullptr},
      {"pre_tokenizer", json::parse(R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false})")},
      {"post_processor", json::parse(R"({"type":"TemplateProcessing",
         "single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
         "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
         "special_tokens":{"<s>":{"id":"<s>","ids":[0],"tokens":["<s>"]}}})")},
      {"decoder", json::parse(R"({"type":"ByteLevel"})")},
      {"model", json::object{{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
  auto made = text::Tokenizer::load(
      *test::memory_files("triton", {{"tokenizer.json", json::serialize(file)},
                                     {"tokenizer_config.json", R"({"bos_token":"<s>","eos_token":"</s>"})"}}));
  EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().message);
  return made.ok() ? *made : nullptr;
}

std::shared_ptr<const ModelText> model_text(bool with_template = true) {
  ChatRenderer render;
  if (with_template)
    render = [](const std::vector<Message>& messages, bool add_generation_prompt) -> Result<std::string> {
      std::string out = "<s>";
      for (const Message& each : messages) {
        if (each.role == "odd") return make_error(ErrorCode::invalid_argument, "odd role in secret");
        out += "[" + each.role + "]" + each.content;
      }
      return out + (add_generation_prompt ? "[assistant]" : "");
    };
  return std::make_shared<const ModelText>(tokenizer(), render);
}

std::string event(std::string_view text, std::string_view more = "") {
  return R"(data: {"model_name":"ensemble","model_version":"1","sequence_end":false,"text_output":")" +
         std::string(text) + "\"" + std::string(more) + "}\n\n";
}

// What a deployment says of itself.
constexpr std::string_view kConfig = R"({"name":"ensemble","input":[{"name":"text_input"},{"name":"max_tokens"},
  {"name":"top_k"},{"name":"top_p"},{"name":"temperature"},{"name":"random_seed"},{"name":"min_length"},
  {"name":"stop_words"},{"name":"stream"}],"parameters":{}})";

class TritonServiceTest : public RemoteServiceTest {
 protected:
  // Questions about the server's health are answered from `config`, all else is `each`'s.
  Served serve(std::function<void(RawConnection&, const RawRequest&)> each, EndpointOptions options = quiet(),
               std::string_view path = "", std::shared_ptr<const ModelText> text = model_text()) {
    server = std::make_unique<RawServer>([this, each](RawConnection& connection) {
      for (;;) {
        const RawRequest request = connection.read_request();
        if (request.line.empty()) return;
        if (request.line.starts_with("GET ")) {
          std::lock_guard lock(mutex);
          asked.push_back(request.line);
          if (request.line.find("/config ") != std::string::npos && on_config) return on_config(connection);
          if (request.line.find("/config ") != std::string::npos)
            config.empty() ? connection.answer(R"({"error":"no"})", "400 Bad Request") : connection.answer(config);
          else
            connection.answer(health_body, health_status);
          continue;
        }
        each(connection, request);
      }
    });
    options.name = "ours";
    if (options.model.empty()) options.model = "ensemble";
    options.url = *http::parse_url(server->url(path));
    service = make_triton_service(options, std::move(text), client);
    return Served(*this);
  }
  Served serve_events(std::string events, EndpointOptions options = quiet()) {
    return serve(
        [this, events](RawConnection& connection, const RawRequest& request) {
          if (request.line.find("/generate_stream ") == std::string::npos) return void(connection.answer("{}"));
          {
            std::lock_guard lock(mutex);
            seen = request;
          }
          connection.send(kStreamHead);
          connection.send_chunk(events);
          connection.send(kLast);
        },
        std::move(options));
  }
  // Until the server has told what it has.
  void wait_for_config() {
    for (int i = 0; i < 5000; ++i) {
      {
        std::lock_guard lock(mutex);
        if (!asked.empty() && asked.back().find("/config ") != std::string::npos) break;
      }
      std::this_thread::sleep_for(1ms);
    }
    std::this_thread::sleep_for(50ms);  // it has been sent, and is to be read
  }

  std::mutex mutex;  // guards what follows
  std::vector<std::string> asked;
  std::string config;
  std::function<void(RawConnection&)> on_config;
  std::string health_status = "200 OK";
  std::string health_body;
  RawRequest seen;
};

// ---- What is sent ----

json::value body_of(const GenerateRequest& request, const TritonModel& model = {}) {
  const auto text = triton_generate_body(request, {"Once", "id-1", 99}, model);
  EXPECT_TRUE(text.ok()) << (text.ok() ? "" : text.error().message);
  return text.ok() ? json::parse(*text) : json::value();
}

TEST(TritonRequest, HowTokensAreDrawnIsAlwaysSaid) {
  EXPECT_EQ(body_of(text_request()), json::parse(R"({"text_input":"Once","id":"id-1","stream":true,
    "exclude_input_in_output":true,"return_num_input_tokens":true,"return_num_output_tokens":true,
    "max_tokens":1048576,"top_k":0,"top_p":1,"seed":99})"));
}

TEST(TritonRequest, EveryField) {
  GenerateRequest request = text_request();
  request.sampling = {0.5F, 0.9F, 40, {}, 1.1F, 0.2F, 0.3F, 42, {}};
  request.stop = {12, 3, true, {"\n", "END"}, {}};
  request.echo = true;
  request.response_format = {inference::ResponseFormat::Kind::json_schema, "a", "", R"({"properties":{}})", true};
  request.extensions = {{"bad_words", R"(["x"])"}};
  EXPECT_EQ(body_of(request), json::parse(R"({"text_input":"Once","id":"id-1","stream":true,
    "exclude_input_in_output":true,"return_num_input_tokens":true,"return_num_output_tokens":true,
    "max_tokens":12,"temperature":0.5,"top_k":40,"top_p":0.9,"repetition_penalty":1.1,"presence_penalty":0.2,
    "frequency_penalty":0.3,"seed":42,"min_tokens":3,"end_id":-1,"stop_words":["\n","END"],"bad_words":["x"],
    "guided_decoding_guide_type":"json_schema","guided_decoding_guide":"{\"properties\":{}}"})"));
  request = text_request();
  request.response_format.kind = inference::ResponseFormat::Kind::json_object;
  EXPECT_EQ(body_of(request).at("guided_decoding_guide_type"), "json");
  EXPECT_FALSE(body_of(request).as_object().contains("guided_decoding_guide"));
}

TEST(TritonRequest, GreedyIsTheBestToken) {
  GenerateRequest request = text_request();
  request.sampling.temperature = 0;
  request.sampling.top_p = 0.5F;
  request.sampling.top_k = 40;
  const json::object body = body_of(request).as_object();
  EXPECT_EQ(body.at("top_k"), 1);
  EXPECT_FALSE(body.contains("temperature"));
  EXPECT_FALSE(body.contains("top_p"));
  request.sampling.temperature = 1;
  request.sampling.top_k = -1;
  EXPECT_EQ(body_of(request).at("top_k"), 0);
}

// Triton passes over what is no input of the model.
TEST(TritonRequest, WhatADeploymentDoesNotHave) {
  const TritonModel model = read_triton_config(kConfig);
  EXPECT_FALSE(model.accumulates);
  GenerateRequest request = text_request();
  request.stop.min_tokens = 3;
  EXPECT_EQ(body_of(request, model), json::parse(R"({"text_input":"Once","id":"id-1","stream":true,
    "max_tokens":1048576,"top_k":0,"top_p":1,"random_seed":99,"min_length":3})"));
  request.sampling.frequency_penalty = 1;
  EXPECT_EQ(triton_generate_body(request, {"Once", "id-1", 99}, model).error().param, "frequency_penalty");
  EXPECT_TRUE(read_triton_config(R"({"parameters":{"accumulate_tokens":{"string_value":"True"}}})").accumulates);
  EXPECT_FALSE(read_triton_config(R"({"parameters":{"accumulate_tokens":{"string_value":"${x}"}}})").accumulates);
  EXPECT_TRUE(read_triton_config("<html>").inputs.empty());
}

TEST(TritonRequest, TheRestIsRefusedByName) {
  const auto refused = [](auto change) {
    GenerateRequest request = text_request();
    change(request);
    const auto body = triton_generate_body(request, {"Once", "id-1", 99}, {});
    EXPECT_FALSE(body.ok());
    if (body.ok()) return std::string();
    EXPECT_EQ(body.error().code, ErrorCode::unsupported);
    EXPECT_THAT(body.error().message, HasSubstr("'" + body.error().param + "'"));
    EXPECT_THAT(body.error().message, HasSubstr("triton"));
    return body.error().param;
  };
  EXPECT_EQ(refused([](auto& r) { r.n = 2; }), "n");
  EXPECT_EQ(refused([](auto& r) { r.sampling.min_p = 0.1F; }), "min_p");
  EXPECT_EQ(refused([](auto& r) { r.sampling.logit_bias = {{1, 1}}; }), "logit_bias");
  EXPECT_EQ(refused([](auto& r) { r.stop.stop_token_ids = {1}; }), "stop_token_ids");
  EXPECT_EQ(refused([](auto& r) { r.stop.max_tokens = 0; }), "max_tokens");
  EXPECT_EQ(refused([](auto& r) { r.priority = 1; }), "priority");
  EXPECT_EQ(refused([](auto& r) { r.logprobs = 1; }), "logprobs");
  EXPECT_EQ(refused([](auto& r) { r.extensions = {{"use_beam_search", "true"}}; }), "use_beam_search");
}

TEST(TritonRequest, TheTableOfTheDocumentIsCurrent) {
  std::ifstream file(XGEN_SOURCE_DIR "/docs/remote-engines.md");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  EXPECT_NE(text.find("\n" + triton_fields_markdown() + "\n"), std::string::npos)
      << "docs/remote-engines.md should hold:\n\n"
      << triton_fields_markdown();
}

// ---- Answers ----

TEST_F(TritonServiceTest, AStreamBecomesEventsAndEndsWithItsBody) {
  const auto served = serve_events(event("Hel", R"(,"output_log_probs":[0.0])") + event("lo") + event(""));
  GenerateRequest request = text_request("Once upon");
  request.echo = true;
  request.stop.max_tokens = 4;
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->all<Started>().at(0).prompt_text, "Once upon");
  EXPECT_EQ(sink->text(), "Hello");
  ASSERT_EQ(sink->all<ChoiceFinished>().size(), 1U);
  EXPECT_EQ(sink->all<ChoiceFinished>()[0].reason, FinishReason::stop);
  ASSERT_EQ(sink->all<Finished>().size(), 1U);
  EXPECT_EQ(sink->all<Finished>()[0].usage.prompt_tokens, 10);  // <s> and nine characters
  EXPECT_EQ(sink->all<Finished>()[0].usage.completion_tokens, 3);
  std::lock_guard lock(mutex);
  EXPECT_EQ(seen.line, "POST /v2/models/ensemble/generate_stream HTTP/1.1");
  EXPECT_EQ(seen.headers["x-request-id"], "req-1");
  EXPECT_EQ(json::parse(seen.body).at("text_input"), "Once upon");
  EXPECT_EQ(service->stats().generation_tokens, 3U);
}

TEST_F(TritonServiceTest, TheServersCountsWin) {
  const auto served = serve_events(event("a b", R"(,"num_input_tokens":7,"num_output_tokens":2)") +
                                   event(" c d", R"(,"num_input_tokens":7,"num_output_tokens":3)"));
  GenerateRequest request = text_request();
  request.stop.max_tokens = 5;
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->all<Finished>().at(0).usage.prompt_tokens, 7);
  EXPECT_EQ(sink->all<Finished>().at(0).usage.completion_tokens, 5);
  EXPECT_EQ(sink->all<ChoiceFinished>().at(0).reason, FinishReason::length);
}

TEST_F(TritonServiceTest, ALongPromptIsCountedAsWell) {
  const auto served = serve_events(event("x"));
  const auto sink = ask(text_request(std::string(20'000, 'a')));
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->all<Finished>().at(0).usage.prompt_tokens, 20'001);
}

// The template writes the bos token, and so does the server.
TEST_F(TritonServiceTest, AChatIsRenderedHere) {
  const auto served = serve_events(event("ok"));
  const auto sink = ask(chat_request());
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->text(), "ok");
  EXPECT_EQ(sink->all<Finished>().at(0).usage.prompt_tokens, 20);
  std::lock_guard lock(mutex);
  EXPECT_EQ(json::parse(seen.body).at("text_input"), "[user]Hi[assistant]");
}

TEST_F(TritonServiceTest, WhatCannotBeRendered) {
  const auto served = serve_events(event("ok"));
  GenerateRequest request = chat_request();
  std::get<std::vector<Message>>(request.prompt)[0].role = "odd";
  Error error = ask(request)->error();
  EXPECT_EQ(error.code, ErrorCode::invalid_argument);
  EXPECT_EQ(error.param, "messages");
  EXPECT_EQ(error.message.find("secret"), std::string::npos);  // the log shows the message
  EXPECT_THAT(error.received, HasSubstr("odd role"));
  request = chat_request();
  request.tools = {{"look", "", "", std::nullopt}};
  EXPECT_EQ(ask(request)->error().param, "tools");
  request = chat_request();
  std::get<std::vector<Message>>(request.prompt)[0].parts = {{inference::ContentPart::Kind::image, "http://x", ""}};
  EXPECT_EQ(ask(request)->error().param, "messages[0].content[0]");
  request = text_request();
  request.prompt = std::vector<inference::TokenId>{65};
  EXPECT_EQ(ask(request)->error().param, "prompt");
  EXPECT_EQ(service->stats().generation_tokens, 0U);
}

TEST_F(TritonServiceTest, WithoutATemplateThereAreNoChats) {
  const auto served =
      serve([](RawConnection&, const RawRequest&) { ADD_FAILURE() << "it was asked"; }, quiet(), "", model_text(false));
  EXPECT_FALSE(service->capabilities().chat);
  const Error error = ask(chat_request())->error();
  EXPECT_EQ(error.code, ErrorCode::unsupported);
  EXPECT_EQ(error.param, "messages");
}

// The engine leaves a stop string in its text.
TEST_F(TritonServiceTest, AStopStringIsNoPartOfTheText) {
  const auto served = serve_events(event("one E") + event("N") + event("D") + event("", R"(,"num_input_tokens":5)"));
  GenerateRequest request = text_request();
  request.stop.stop = {"END"};
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->text(), "one ");
  ASSERT_EQ(sink->all<ChoiceFinished>().size(), 1U);
  EXPECT_EQ(std::get<std::string>(*sink->all<ChoiceFinished>()[0].stop_reason), "END");
  EXPECT_EQ(sink->all<Finished>().size(), 1U);
  std::lock_guard lock(mutex);
  EXPECT_EQ(json::parse(seen.body).at("stop_words"), json::array{"END"});
}

TEST_F(TritonServiceTest, BeforeMinTokensAStopStringIsText) {
  const auto served = serve_events(event("END") + event(" and END") + event(" more"));
  GenerateRequest request = text_request();
  request.stop.stop = {"END"};
  request.stop.min_tokens = 1;
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->text(), "END and ");
}

TEST_F(TritonServiceTest, WhatMightHaveBecomeAStopStringIsText) {
  const auto served = serve_events(event("one E") + event("N"));
  GenerateRequest request = text_request();
  request.stop.stop = {"END"};
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->text(), "one EN");
  EXPECT_FALSE(sink->all<ChoiceFinished>().at(0).stop_reason.has_value());
}

// It is stopped from here: its connection is closed, and the engine told by the request's id.
TEST_F(TritonServiceTest, AStopStringThatTheServerReadsPast) {
  std::atomic<int> closed{-1};
  std::promise<std::string> stopped;
  std::string id;
  const auto served = serve([&](RawConnection& connection, const RawRequest& request) {
    if (request.line == "POST /v2/models/tensorrt_llm/generate HTTP/1.1") {
      stopped.set_value(request.body);
      connection.answer("{}");
      return;
    }
    id = json::parse(request.body).at("id").as_string();
    connection.send(kStreamHead);
    connection.send_chunk(event("so END"));
    connection.send_chunk(event(" of it"));
    closed = connection.closed_within(10s) ? 1 : 0;
  });
  GenerateRequest request = text_request();
  request.stop.stop = {"END"};
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  handle.reset();
  EXPECT_EQ(sink->text(), "so ");
  EXPECT_EQ(sink->all<Finished>().size(), 1U);
  auto body = stopped.get_future();
  ASSERT_EQ(body.wait_for(10s), std::future_status::ready);
  const json::value stop = json::parse(body.get());
  EXPECT_FALSE(id.empty());
  EXPECT_EQ(stop.at("id"), json::value(id));
  EXPECT_EQ(stop.at("stop"), true);
  for (int i = 0; i < 5000 && closed.load() < 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(closed.load(), 1);
}

// The server notices a closed connection late, if it has not begun to answer.
TEST_F(TritonServiceTest, GivingUpClosesTheConnectionAndStopsTheEngine) {
  std::atomic<int> closed{-1};
  std::atomic<bool> arrived{false};
  std::promise<std::string> stopped;
  const auto served = serve([&](RawConnection& connection, const RawRequest& request) {
    if (request.line == "POST /v2/models/tensorrt_llm/generate HTTP/1.1") {
      stopped.set_value(request.body);
      connection.answer(R"({"error":"unknown model"})", "400 Bad Request");  // changes nothing
      return;
    }
    arrived = true;
    closed = connection.closed_within(10s) ? 1 : 0;
  });
  const auto sink = ask();
  for (int i = 0; i < 5000 && !arrived.load(); ++i) std::this_thread::sleep_for(1ms);
  handle.reset();
  auto body = stopped.get_future();
  ASSERT_EQ(body.wait_for(10s), std::future_status::ready);
  for (int i = 0; i < 5000 && closed.load() < 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(closed.load(), 1);
  EXPECT_EQ(service->stats().finished_abort, 1U);
  std::lock_guard lock(sink->mutex);
  EXPECT_TRUE(sink->events.empty());
}

TEST_F(TritonServiceTest, ClosingStopsTheEngine) {
  std::atomic<bool> arrived{false};
  std::promise<std::string> stopped;
  std::string id;
  const auto served = serve([&](RawConnection& connection, const RawRequest& request) {
    if (request.line == "POST /v2/models/tensorrt_llm/generate HTTP/1.1") {
      stopped.set_value(request.body);
      connection.answer("{}");
      return;
    }
    id = json::parse(request.body).at("id").as_string();
    arrived = true;
    connection.closed_within(10s);
  });
  const auto sink = ask();
  for (int i = 0; i < 5000 && !arrived.load(); ++i) std::this_thread::sleep_for(1ms);
  service->close();
  EXPECT_THAT(sink->error().message, HasSubstr("not running any more"));
  auto body = stopped.get_future();
  ASSERT_EQ(body.wait_for(10s), std::future_status::ready);
  EXPECT_EQ(json::parse(body.get()).at("id"), json::value(id));
}

TEST_F(TritonServiceTest, IdsAreItsOwnAndSeedsDiffer) {
  std::vector<std::string> ids;
  std::vector<json::value> seeds;
  const auto served = serve_events(event("x"));
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(ask()->wait_over());  // with the same id of the client
    std::lock_guard lock(mutex);
    const json::value body = json::parse(seen.body);
    ids.emplace_back(body.at("id").as_string());
    seeds.push_back(body.at("seed"));
  }
  EXPECT_NE(ids[0], ids[1]);
  EXPECT_NE(seeds[0], seeds[1]);
}

TEST_F(TritonServiceTest, TextThatAccumulates) {
  config = R"({"input":[],"parameters":{"accumulate_tokens":{"string_value":"true"}}})";
  const auto served = serve_events(event("Zw") + event("Zw\xEF\xBF\xBD") + event("Zw\xC3\xB6") + event("Zw\xC3\xB6lf") +
                                   event("Zw\xC3\xB6lf\xEF\xBF\xBD"));
  const auto sink = ask();
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->text(), "Zw\xC3\xB6lf\xEF\xBF\xBD");
  EXPECT_EQ(sink->all<Finished>().at(0).usage.completion_tokens, 5);
  EXPECT_EQ(sink->all<Delta>().at(1).text, "");  // the character was not whole
}

TEST_F(TritonServiceTest, TextThatAccumulatesUpToAStopString) {
  config = R"({"input":[],"parameters":{"accumulate_tokens":{"string_value":"true"}}})";
  const auto served = serve_events(event("one E") + event("one EN") + event("one END"));
  GenerateRequest request = text_request();
  request.stop.stop = {"END"};
  const auto sink = ask(request);
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->text(), "one ");
}

TEST_F(TritonServiceTest, TextThatWasSentDoesNotChange) {
  config = R"({"input":[],"parameters":{"accumulate_tokens":{"string_value":"true"}}})";
  const auto served = serve_events(event("one") + event("two three"));
  const Error error = ask()->error();
  EXPECT_EQ(error.code, ErrorCode::internal);
  EXPECT_THAT(error.message, HasSubstr("has changed"));
}

TEST_F(TritonServiceTest, WhatTheDeploymentLacksIsRefused) {
  config = kConfig;
  const auto served = serve_events(event("x"));
  wait_for_config();
  GenerateRequest request = text_request();
  request.sampling.presence_penalty = 1;
  EXPECT_EQ(ask(request)->error().param, "presence_penalty");
  ASSERT_TRUE(ask()->wait_over());
  std::lock_guard lock(mutex);
  EXPECT_TRUE(json::parse(seen.body).as_object().contains("random_seed"));
}

// The look at its health does not get as far as that.
TEST_F(TritonServiceTest, WhatTheModelIsLikeIsAskedBeforeTheFirstRequest) {
  config = R"({"input":[],"parameters":{"accumulate_tokens":{"string_value":"true"}}})";
  health_status = "503 Service Unavailable";
  const auto served = serve_events(event("one") + event("one two"));
  for (int i = 0; i < 2; ++i) {
    const auto sink = ask();
    ASSERT_TRUE(sink->wait_over());
    EXPECT_EQ(sink->text(), "one two");
  }
  std::lock_guard lock(mutex);
  EXPECT_EQ(std::count_if(asked.begin(), asked.end(),
                          [](const std::string& line) { return line.find("/config ") != std::string::npos; }),
            1);
}

TEST_F(TritonServiceTest, ADeploymentThatDoesNotTellIsTakenAsItComes) {
  health_status = "503 Service Unavailable";
  const auto served = serve_events(event("one") + event("one two"));
  const auto sink = ask();
  ASSERT_TRUE(sink->wait_over());
  EXPECT_EQ(sink->text(), "oneone two");
}

TEST_F(TritonServiceTest, AServerThatIsNotThere) {
  config = kConfig;
  const auto served = serve_events(event("x"));
  server.reset();
  const Error error = ask()->error();
  EXPECT_EQ(error.code, ErrorCode::unavailable);
  EXPECT_THAT(error.message, HasSubstr("'ours'"));
}

TEST_F(TritonServiceTest, GivingUpWhileTheModelIsAskedOf) {
  health_status = "503 Service Unavailable";
  std::atomic<int> asking{0};
  std::atomic<int> closed{0};
  on_config = [&](RawConnection& connection) {
    ++asking;
    closed += connection.closed_within(10s) ? 1 : 0;
  };
  const auto served = serve_events(event("x"));
  const auto sink = ask();
  for (int i = 0; i < 5000 && asking.load() == 0; ++i) std::this_thread::sleep_for(1ms);
  handle.reset();
  for (int i = 0; i < 2000 && closed.load() == 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(closed.load(), 1);
  const auto ended = ask();
  for (int i = 0; i < 5000 && asking.load() == 1; ++i) std::this_thread::sleep_for(1ms);
  service->close();  // ends what is waiting
  EXPECT_EQ(ended->error().code, ErrorCode::unavailable);
  std::lock_guard lock(sink->mutex);
  EXPECT_TRUE(sink->events.empty());
}

// ---- Faults ----

struct FaultCase {
  const char* name;
  std::string events;
  bool last_chunk;
  ErrorCode code;
  std::string message;
};
void PrintTo(const FaultCase& each, std::ostream* out) { *out << each.name; }

class TritonFaults : public TritonServiceTest, public ::testing::WithParamInterface<FaultCase> {};

TEST_P(TritonFaults, EndInOneFailure) {
  const FaultCase& each = GetParam();
  const auto served = serve([&](RawConnection& connection, const RawRequest&) {
    connection.send(kStreamHead);
    if (!each.events.empty()) connection.send_chunk(each.events);
    if (each.last_chunk) connection.send(kLast);
    connection.close();
  });
  const auto sink = ask();
  const Error error = sink->error();
  EXPECT_EQ(error.code, each.code);
  EXPECT_THAT(error.message, HasSubstr(each.message));
  EXPECT_EQ(sink->all<ChoiceFinished>().size(), 0U);
  EXPECT_EQ(service->stats().finished_error, 1U);
}

INSTANTIATE_TEST_SUITE_P(
    All, TritonFaults,
    ::testing::Values(
        FaultCase{"cut", event("x"), false, ErrorCode::unavailable, "broke off its answer"},
        FaultCase{"nothing", "", true, ErrorCode::unavailable, "no event came"},
        FaultCase{"error", "data: {\"error\":\"CUDA error\"}\n\n", true, ErrorCode::internal, "failed: CUDA error"},
        FaultCase{"error_without_a_blank", "data:{\"error\":\"CUDA error\"}\n\n", true, ErrorCode::internal,
                  "failed: CUDA error"},
        FaultCase{"error_after_text", event("x") + "data: {\"error\":\"CUDA error\"}\n\n", true, ErrorCode::internal,
                  "failed: CUDA error"},
        FaultCase{"too_long",
                  "data: {\"error\":\"Prompt length (9) exceeds maximum input length (8). Set log level\"}\n\n", true,
                  ErrorCode::invalid_argument, "Prompt length (9) exceeds"},
        FaultCase{"no_text", "data: {\"model_name\":\"m\"}\n\n", true, ErrorCode::internal,
                  "an event has no text_output"},
        FaultCase{"beams", "data: {\"text_output\":[\"a\",\"b\"]}\n\n", true, ErrorCode::internal,
                  "an event has no text_output"},
        FaultCase{"no_json", "data: <html>\n\n", true, ErrorCode::internal, "not a JSON object"}),
    [](const auto& each) { return std::string(each.param.name); });

TEST_F(TritonServiceTest, RefusalsWithAStatus) {
  std::string status;
  std::string body;
  std::string type = "application/json";
  const auto served = serve([&](RawConnection& connection, const RawRequest&) {
    connection.answer(body, status, "Content-Type: " + type + "\r\n");
  });
  const auto error = [&](std::string_view now, std::string_view text) {
    status = now;
    body = text;
    return ask(chat_request())->error();
  };
  Error fault = error("400 Bad Request", R"({"error":"unexpected shape for input 'top_k'"})");
  EXPECT_EQ(fault.code, ErrorCode::invalid_argument);
  EXPECT_THAT(fault.message, HasSubstr("unexpected shape"));
  fault = error("503 Service Unavailable", R"({"error":"Server is stopping, exiting"})");
  EXPECT_EQ(fault.code, ErrorCode::unavailable);
  fault = error("500 Internal Server Error", R"({"error":"Prompt length (9) exceeds maximum input length (8)."})");
  EXPECT_EQ(fault.code, ErrorCode::invalid_argument);
  fault = error("200 OK", R"({"text_output":"x"})");
  EXPECT_THAT(fault.message, HasSubstr("without a stream"));
  // A first event that is an error has a status, and the form of an event.
  type = "text/event-stream; charset=utf-8";
  fault = error("500 Internal Server Error", "data: {\"error\":\"CUDA error\"}\n\n");
  EXPECT_EQ(fault.code, ErrorCode::internal);
  EXPECT_THAT(fault.message, HasSubstr("failed: CUDA error"));
}

// ---- Tokens, health ----

TEST_F(TritonServiceTest, TokensAreMadeHere) {
  const auto served = serve_events(event("x"));
  const auto tokenize = [&](inference::TokenizeRequest request) {
    std::promise<Result<inference::Tokenized>> done;
    service->tokenize_async(std::move(request), [&](auto result) { done.set_value(std::move(result)); });
    return done.get_future().get();
  };
  auto tokens = tokenize({std::string("ab")});
  ASSERT_TRUE(tokens.ok()) << tokens.error().message;
  EXPECT_EQ(tokens->ids, (std::vector<inference::TokenId>{0, 'a', 'b'}));
  EXPECT_EQ(tokens->tokens[1], "a");
  EXPECT_EQ(tokenize({std::string("ab"), false})->ids, (std::vector<inference::TokenId>{'a', 'b'}));
  EXPECT_EQ(tokenize({std::string(20'000, 'a'), false})->ids.size(), 20'000U);
  tokens = tokenize({std::vector<Message>{{"u", "x"}}, true, false});
  ASSERT_TRUE(tokens.ok()) << tokens.error().message;
  EXPECT_EQ(tokens->ids, (std::vector<inference::TokenId>{0, '[', 'u', ']', 'x'}));
  const auto detokenize = [&](std::vector<inference::TokenId> ids) {
    std::promise<Result<std::string>> done;
    service->detokenize_async({std::move(ids)}, [&](auto result) { done.set_value(std::move(result)); });
    return done.get_future().get();
  };
  EXPECT_EQ(*detokenize({0, 'a', 2, 'b'}), "<s>a b");
  EXPECT_EQ(detokenize(std::vector<inference::TokenId>(5'000, 'a'))->size(), 5'000U);
  EXPECT_EQ(detokenize({1'000}).error().param, "tokens");
}

TEST_F(TritonServiceTest, Health) {
  EndpointOptions options;
  options.health_interval = 10ms;
  config = kConfig;
  const auto served = serve([](RawConnection&, const RawRequest&) {}, options);
  const auto wait_for = [](auto ready) {
    for (int i = 0; i < 5000 && !ready(); ++i) std::this_thread::sleep_for(1ms);
    return ready();
  };
  wait_for_config();
  EXPECT_EQ(service->health().state, inference::Health::State::ready);
  {
    std::lock_guard lock(mutex);
    EXPECT_EQ(asked.at(0), "GET /v2/health/ready HTTP/1.1");
    EXPECT_EQ(asked.at(1), "GET /v2/models/ensemble/ready HTTP/1.1");
    EXPECT_EQ(asked.at(2), "GET /v2/models/ensemble/config HTTP/1.1");
    health_status = "400 Bad Request";
    health_body = R"({"error":"Request for unknown model"})";
  }
  EXPECT_TRUE(wait_for([&] { return service->health().state == inference::Health::State::degraded; }));
  EXPECT_THAT(service->health().detail, HasSubstr("unknown model"));
  {
    std::lock_guard lock(mutex);
    health_status = "200 OK";
    health_body.clear();
  }
  EXPECT_TRUE(wait_for([&] { return service->health().state == inference::Health::State::ready; }));
}

TEST_F(TritonServiceTest, TheUrlMayEndWithV2AndNamesAreEscaped) {
  EndpointOptions options = quiet();
  options.model = "org/m m";
  std::promise<std::string> line;
  const auto served = serve(
      [&](RawConnection& connection, const RawRequest& request) {
        line.set_value(request.line);
        connection.answer("{}");
      },
      options, "/triton/v2");
  ask()->error();
  EXPECT_EQ(line.get_future().get(), "POST /triton/v2/models/org%2Fm%20m/generate_stream HTTP/1.1");
}

}  // namespace
}  // namespace xgen::remote
