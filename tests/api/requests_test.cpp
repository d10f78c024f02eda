#include "api/requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "api/parameters.h"
#include "base/json.h"

namespace xgen::api {
namespace {

namespace json = boost::json;
using ::testing::HasSubstr;

std::string with(std::string_view name, std::string_view value) {
  return R"({"model":"m","messages":[{"role":"user","content":"x"}],")" + std::string(name) +
         "\":" + std::string(value) + "}";
}

TEST(Parameters, NamesAreUniquePerEndpoint) {
  std::set<std::pair<unsigned, std::string_view>> seen;
  for (const Parameter& row : parameters()) {
    EXPECT_NE(row.endpoints, 0U) << row.name;
    EXPECT_FALSE(row.doc.empty()) << row.name;
    for (const unsigned bit : {1U, 2U, 4U, 8U}) {
      if ((row.endpoints & bit) == 0) continue;
      EXPECT_TRUE(seen.emplace(bit, row.name).second) << row.name;
      EXPECT_EQ(find_parameter(static_cast<Endpoint>(bit), row.name), &row);
    }
    EXPECT_EQ(row.store != nullptr, row.support == Support::works) << row.name;
    if (row.support == Support::refused || row.support == Support::passed) {
      EXPECT_TRUE(parse_json(row.no_op).ok() && parse_json(row.no_op)->is_array()) << row.name;
    }
  }
}

// Every row, tried with null, with what it accepts and with values of other types: an answer that names it, or none.
TEST(Parameters, EveryRowAcceptsNullAndNamesItselfInErrors) {
  const std::vector<json::value> probes{json::value(true),
                                        json::value(-1e300),
                                        json::value("text"),
                                        json::value(1.5),
                                        json::value(-9'000'000'000'000'000'000),
                                        json::array{},
                                        json::object{},
                                        json::array{json::value(nullptr)},
                                        json::array{"a", 1, {}},
                                        json::object{{"a", "b"}},
                                        json::value(UINT64_MAX)};
  for (const Parameter& row : parameters()) {
    Draft draft;
    draft.endpoint = static_cast<Endpoint>(row.endpoints & -row.endpoints);
    EXPECT_TRUE(apply_parameter(row, json::value(nullptr), draft).ok()) << row.name;
    for (const json::value& probe : probes) {
      Draft scratch;
      scratch.endpoint = draft.endpoint;
      const Status status = apply_parameter(row, probe, scratch);
      if (status.ok()) continue;
      EXPECT_TRUE(status.error().param.starts_with(row.name)) << row.name << ": " << status.error().param;
      EXPECT_THAT(status.error().message, HasSubstr(std::string(row.name)));
      EXPECT_LT(status.error().message.size(), 300U);
    }
    if (row.support != Support::refused && row.support != Support::passed) continue;
    const json::value no_op = json::parse(row.no_op);
    for (const json::value& harmless : no_op.as_array()) {
      EXPECT_TRUE(apply_parameter(row, harmless, draft).ok()) << row.name;
    }
    EXPECT_TRUE(draft.extensions.empty()) << row.name;
  }
}

TEST(Parameters, RangesAreInclusiveWhereTheySaySo) {
  for (const auto& [name, value, good] : std::vector<std::tuple<const char*, const char*, bool>>{
           {"temperature", "0", true},
           {"temperature", "2", true},
           {"temperature", "2.0000001", false},
           {"top_p", "0", false},
           {"top_p", "1e-9", true},
           {"top_p", "1", true},
           {"n", "128", true},
           {"n", "129", false},
           {"n", "2.0", true},
           {"seed", "9223372036854775807", true},
           {"seed", "-9223372036854775808", true},
           {"seed", "9223372036854775808", false},
           {"max_tokens", "2147483647", true},
           {"max_tokens", "2147483648", false},
           {"top_k", "-1", true},
           {"logit_bias", R"({"0":100,"5":-100})", true},
           {"logit_bias", R"({"0":100.1})", false},
           {"logit_bias", R"({"2147483648":1})", false},
           {"logit_bias", R"({"1x":1})", false},
           {"stop", R"(["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16"])", true},
           {"priority", "-2147483648", true}}) {
    const auto call = parse_generate(Endpoint::chat, with(name, value));
    EXPECT_EQ(call.ok(), good) << name << " " << value;
    if (!good && !call.ok()) {
      EXPECT_EQ(call.error().param.substr(0, std::string_view(name).size()), name);
    }
  }
}

TEST(ParseGenerate, LeavesUnsetWhatIsNotGiven) {
  const auto call = parse_generate(Endpoint::chat, R"({"model":"m","messages":[{"role":"user","content":"x"}]})");
  ASSERT_TRUE(call.ok());
  const auto& request = call->requests.at(0);
  EXPECT_FALSE(request.stop.max_tokens.has_value());
  EXPECT_FALSE(request.sampling.temperature.has_value());
  EXPECT_FALSE(request.sampling.seed.has_value());
  EXPECT_FALSE(request.logprobs.has_value());
  EXPECT_FALSE(call->stream);
}

TEST(ParseGenerate, OneRequestPerPromptWithTheSameParameters) {
  const auto call = parse_generate(Endpoint::completions,
                                   R"({"model":"m","prompt":["a","b","c"],"stop":["s"],"echo":true,"logprobs":1})");
  ASSERT_TRUE(call.ok());
  ASSERT_EQ(call->requests.size(), 3U);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(std::get<std::string>(call->requests[i].prompt), std::string(1, static_cast<char>('a' + i)));
    EXPECT_EQ(call->requests[i].stop.stop, std::vector<std::string>{"s"});
    EXPECT_EQ(call->requests[i].stop.max_tokens, 16);
    EXPECT_TRUE(call->requests[i].echo);
    EXPECT_TRUE(call->requests[i].prompt_logprobs);
  }
}

TEST(ParseGenerate, UnknownFieldsAreListedWhenTheyAreLetThrough) {
  const std::string body = with("my_own", "1");
  const auto refused = parse_generate(Endpoint::chat, body);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().param, "my_own");
  EXPECT_EQ(refused.error().code, ErrorCode::unsupported);
  const auto relaxed = parse_generate(Endpoint::chat, body, {.reject_unknown = false});
  ASSERT_TRUE(relaxed.ok());
  EXPECT_EQ(relaxed->unknown, std::vector<std::string>{"my_own"});
}

TEST(ParseGenerate, LongNamesAndValuesAreNotEchoed) {
  const auto name = parse_generate(Endpoint::chat, with(std::string(100'000, 'n'), "1"));
  ASSERT_FALSE(name.ok());
  EXPECT_LT(name.error().message.size(), 300U);
  const auto value = parse_generate(Endpoint::chat, with("temperature", "\"" + std::string(100'000, 'v') + "\""));
  ASSERT_FALSE(value.ok());
  EXPECT_LT(value.error().message.size(), 300U);
}

TEST(ParseTokenize, Reads) {
  const auto text = parse_tokenize(R"({"prompt":"a","add_special_tokens":false})");
  ASSERT_TRUE(text.ok());
  EXPECT_FALSE(text->request.add_special_tokens);
  const auto chat = parse_tokenize(R"({"messages":[{"role":"user","content":"a"}],"add_generation_prompt":false})");
  ASSERT_TRUE(chat.ok());
  EXPECT_FALSE(chat->request.add_generation_prompt);
  EXPECT_FALSE(parse_tokenize("{}").ok());
  const auto tokens = parse_detokenize(R"({"tokens":[1,2]})");
  ASSERT_TRUE(tokens.ok());
  EXPECT_EQ(tokens->request.ids, (std::vector<inference::TokenId>{1, 2}));
}

}  // namespace
}  // namespace xgen::api
