#include "api/answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "api/errors.h"
#include "api/json_writer.h"
#include "base/json.h"

namespace xgen::api {
namespace {

namespace json = boost::json;
using inference::Delta;
using inference::Event;
using inference::TokenLogprob;

json::value parse(const std::string& text) {
  auto value = parse_json(text);
  EXPECT_TRUE(value.ok()) << text;
  return value.ok() ? std::move(value).value() : json::value{};
}

TEST(JsonWriter, StringsReadBackAsTheyWere) {
  std::string all;
  for (int c = 0; c < 128; ++c) all += static_cast<char>(c);
  for (const std::string& text : {std::string(), all, std::string("é漢😀"), std::string("\x7f"),
                                  std::string("\u007f\u0080\u009b\u009f\u00a0\u00bf")}) {
    std::string out;
    append_json_string(out, text);
    EXPECT_EQ(parse(out).as_string(), json::string_view(text.data(), text.size()));
  }
  std::string out;
  append_json_string(out, "a\xff\xe2\x82z");
  EXPECT_EQ(parse(out).as_string(), "a\xef\xbf\xbd\xef\xbf\xbdz");
  out.clear();
  append_json_string(out, "a\xc2");
  EXPECT_EQ(parse(out).as_string(), "a\xef\xbf\xbd");
}

TEST(JsonWriter, FloatsAreAlwaysJson) {
  for (const float value : {0.0F, -0.25F, 1e-30F, -1e30F, 3.4e38F, -0.10536052F}) {
    std::string out;
    append_json_float(out, value);
    EXPECT_EQ(static_cast<float>(parse(out).to_number<double>()), value) << out;
  }
  for (const float value : {-std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::string out;
    append_json_float(out, value);
    EXPECT_EQ(out, "-9999");
  }
}

TEST(Errors, EveryCodeHasAStatus) {
  for (int code = 0; code <= static_cast<int>(ErrorCode::unavailable); ++code)
    EXPECT_EQ(error_kind(static_cast<ErrorCode>(code)).code, static_cast<ErrorCode>(code));
  EXPECT_EQ(error_kind(ErrorCode::overloaded).status, 429);
  for (const int status : {400, 404, 408, 413, 431, 500, 503, 505})
    EXPECT_EQ(error_kind_of_status(status).status, status);
  EXPECT_EQ(error_kind("not_found").status, 404);
  EXPECT_EQ(error_kind("method_not_allowed").status, 405);
  const auto value = parse(error_json(make_error(ErrorCode::invalid_argument, "a \"b\"", "p")));
  EXPECT_EQ(value.at("error").at("message").as_string(), "a \"b\"");
  EXPECT_EQ(value.at("error").at("param").as_string(), "p");
  EXPECT_TRUE(value.at("error").at("code").is_null());
  Error quoting = make_error(ErrorCode::unsupported, "'p' must be a number");
  quoting.received = ", got \"x\"";
  EXPECT_EQ(parse(error_json(quoting)).at("error").at("message").as_string(), "'p' must be a number, got \"x\"");
}

// A token may be part of a character: its text is replaced, its bytes are exact.
TEST(Answers, TokensThatAreNotText) {
  const TokenLogprob half{7, "\xed\x95", -1.0F, {{7, "\xed\x95", -1.0F}, {8, "\xed\x96", -2.0F}, {9, "a", -3.0F}}};
  const TokenLogprob rest{8, "\x9c!", -0.5F, {}};
  for (const Endpoint endpoint : {Endpoint::chat, Endpoint::completions}) {
    AnswerBuilder builder({.endpoint = endpoint, .id = "i", .model = "m", .logprobs = true, .top_logprobs = 2}, 1);
    builder.add(0, Delta{0, 2, "한!", {half, rest}});
    const json::value logprobs = parse(builder.json()).at("choices").at(0).at("logprobs");
    if (endpoint == Endpoint::chat) {
      const json::value& token = logprobs.at("content").at(0);
      EXPECT_EQ(token.at("token").as_string(), "\xef\xbf\xbd");
      EXPECT_EQ(token.at("bytes"), (json::array{0xed, 0x95}));
      EXPECT_EQ(token.at("top_logprobs").as_array().size(), 2U);
    } else {
      EXPECT_EQ(logprobs.at("tokens").at(0).as_string(), "bytes:\\xed\\x95");
      EXPECT_EQ(logprobs.at("top_logprobs").at(0).as_object().size(), 3U);
      EXPECT_EQ(logprobs.at("text_offset"), (json::array{0, 1}));
    }
  }
}

TEST(Answers, TokensOfTheSameTextAppearOnce) {
  AnswerBuilder builder({.endpoint = Endpoint::completions, .logprobs = true}, 1);
  builder.add(0, Delta{0, 1, "a", {TokenLogprob{1, "a", -1.0F, {{1, "a", -1.0F}, {2, "a", -2.0F}}}}});
  const json::value top = parse(builder.json()).at("choices").at(0).at("logprobs").at("top_logprobs").at(0);
  EXPECT_EQ(top, (json::object{{"a", -1}}));
}

TEST(Answers, ImpossibleTokensHaveAFiniteLogprob) {
  AnswerBuilder builder({.endpoint = Endpoint::chat, .logprobs = true}, 1);
  builder.add(0, Delta{0, 1, "a", {TokenLogprob{1, "a", -std::numeric_limits<float>::infinity(), {}}}});
  EXPECT_EQ(parse(builder.json()).at("choices").at(0).at("logprobs").at("content").at(0).at("logprob"), -9999);
}

TEST(Streams, HoldBackWhatIsNoText) {
  StreamEncoder encoder({.endpoint = Endpoint::completions, .id = "i", .model = "m"}, 1, false);
  std::string out;
  encoder.add(0, Delta{0, 1, "", {}}, out);
  EXPECT_EQ(out, "");
  encoder.add(0, Delta{0, 1, "x", {}}, out);
  EXPECT_EQ(
      out, R"(data: {"id":"i","object":"text_completion","created":0,"model":"m","system_fingerprint":null,"choices":[)"
           R"({"index":0,"text":"x","logprobs":null,"finish_reason":null}]})"
           "\n\n");
}

TEST(Streams, OffsetsGoOnFromChunkToChunk) {
  StreamEncoder encoder({.endpoint = Endpoint::completions, .n = 2, .logprobs = true}, 1, false);
  std::string out;
  for (const char* text : {"한글", "ab"}) {
    out.clear();
    encoder.add(0, Delta{1, 1, text, {TokenLogprob{1, text, -1.0F, {}}}}, out);
  }
  const json::value chunk = parse(out.substr(6));
  EXPECT_EQ(chunk.at("choices").at(0).at("index"), 1);
  EXPECT_EQ(chunk.at("choices").at(0).at("logprobs").at("text_offset"), (json::array{2}));
}

TEST(MergeDeltas, KeepsTheOrderWithinEachChoice) {
  std::vector<Event> events;
  events.emplace_back(inference::Started{});
  events.emplace_back(Delta{0, 1, "a", {TokenLogprob{1, "a", {}, {}}}});
  events.emplace_back(Delta{1, 1, "x", {}});
  events.emplace_back(Delta{0, 2, "b", {TokenLogprob{2, "b", {}, {}}}});
  events.emplace_back(inference::ChoiceFinished{0});
  events.emplace_back(Delta{1, 1, "y", {}});
  merge_deltas(events);
  ASSERT_EQ(events.size(), 4U);
  EXPECT_TRUE(std::holds_alternative<inference::Started>(events[0]));
  EXPECT_EQ(std::get<Delta>(events[1]).text, "ab");
  EXPECT_EQ(std::get<Delta>(events[1]).tokens, 3);
  EXPECT_EQ(std::get<Delta>(events[1]).logprobs.size(), 2U);
  EXPECT_EQ(std::get<Delta>(events[2]).text, "xy");
  EXPECT_EQ(std::get<inference::ChoiceFinished>(events[3]).choice, 0);
}

TEST(MergeDeltas, JoinsThePartsOfCalls) {
  const auto delta = [](std::string reasoning, std::vector<inference::ToolCallDelta> parts) {
    Delta made{0, 1, {}, {}};
    made.reasoning = std::move(reasoning);
    made.tool_calls = std::move(parts);
    return made;
  };
  std::vector<Event> events;
  events.emplace_back(delta("a", {}));
  events.emplace_back(delta("b", {{0, "x", "f", "{"}}));
  events.emplace_back(delta("", {{0, "", "", "}"}, {1, "y", "g", ""}}));
  events.emplace_back(delta("", {{1, "", "", "1"}}));
  events.emplace_back(delta("", {{1, "", "", "2"}}));
  merge_deltas(events);
  ASSERT_EQ(events.size(), 1U);
  const auto& merged = std::get<Delta>(events[0]);
  EXPECT_EQ(merged.reasoning, "ab");
  ASSERT_EQ(merged.tool_calls.size(), 2U);
  EXPECT_EQ(merged.tool_calls[0].arguments, "{}");
  EXPECT_EQ(merged.tool_calls[1].name, "g");
  EXPECT_EQ(merged.tool_calls[1].arguments, "12");
}

TEST(Models, ListsThem) {
  const std::vector<ModelCard> cards{{"a/b", "a/b", 5, 4096}, {"alias", "a/b", 5, 0}};
  const json::value value = parse(models_json(cards));
  EXPECT_EQ(value.at("data").at(0).at("id").as_string(), "a/b");
  EXPECT_EQ(value.at("data").at(0).at("max_model_len"), 4096);
  EXPECT_EQ(value.at("data").at(1).at("root").as_string(), "a/b");
  EXPECT_TRUE(value.at("data").at(1).at("max_model_len").is_null());
}

}  // namespace
}  // namespace xgen::api
