#include "client/requests.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/json.h"

namespace xgen::client {
namespace {

Lengths lengths(const char* text, bool output = false) {
  const auto parsed = parse_lengths(text, output);
  EXPECT_TRUE(parsed.ok()) << text;
  return *parsed;
}

std::string prompt_of(const std::string& body) {
  const auto value = parse_json(body);
  EXPECT_TRUE(value.ok()) << body;
  return std::string(value->at("messages").at(0).at("content").as_string());
}

std::size_t words_of(const std::string& prompt) {
  return 1 + static_cast<std::size_t>(std::count(prompt.begin(), prompt.end(), ' '));
}

TEST(Lengths, AreReadAndWritten) {
  for (const char* text : {"128", "64-256", "sharegpt", "trace"}) EXPECT_EQ(lengths(text).text(), text);
  for (const char* text : {"", "0", "-5", "5-", "-", "9-3", "1.5", "12x", "2000000", "shakespeare"})
    EXPECT_FALSE(parse_lengths(text, false).ok()) << text;
}

TEST(Lengths, UniformOnesReachBothEnds) {
  Random random(1);
  int least = 100, most = 0;
  for (int i = 0; i < 1000; ++i) {
    const int drawn = lengths("3-7").draw(random, 0);
    least = std::min(least, drawn);
    most = std::max(most, drawn);
  }
  EXPECT_EQ(least, 3);
  EXPECT_EQ(most, 7);
}

// What docs/benchmarking.md says of them.
TEST(Lengths, ShareGptsHaveTheirMeansAndBounds) {
  const std::pair<bool, double> cases[] = {{false, 148}, {true, 261}};
  for (const auto& [output, mean] : cases) {
    Random random(5);
    double sum = 0;
    std::vector<int> drawn;
    for (int i = 0; i < 200'000; ++i) drawn.push_back(lengths("sharegpt", output).draw(random, 0));
    for (const int each : drawn) {
      ASSERT_GE(each, 4);
      ASSERT_LE(each, 1024);
      sum += each;
    }
    EXPECT_NEAR(sum / 200'000, mean, mean * 0.02);
  }
}

TEST(Requests, AreMadeOfTheSeedAndTheirNumber) {
  RequestOptions options{.model = "m", .input = lengths("10-90"), .output = lengths("sharegpt", true), .seed = 3};
  const RequestMaker one(options, nullptr), same(options, nullptr);
  options.seed = 4;
  const RequestMaker other(options, nullptr);
  EXPECT_EQ(one.make(17).body, same.make(17).body);
  EXPECT_NE(one.make(17).body, one.make(18).body);
  EXPECT_NE(one.make(17).body, other.make(17).body);
}

TEST(Requests, HaveTheFieldsOfTheProtocol) {
  RequestOptions options{.model = "a \"b\"", .ignore_eos = true, .input = lengths("5"), .output = lengths("7")};
  EXPECT_TRUE(RequestMaker(options, nullptr)
                  .make(0)
                  .body.starts_with(R"({"model":"a \"b\"","messages":[{"role":"user","content":")"));
  const auto chat = parse_json(RequestMaker(options, nullptr).make(0).body);
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(chat->at("max_tokens").as_int64(), 7);
  EXPECT_TRUE(chat->at("stream").as_bool());
  EXPECT_TRUE(chat->at("stream_options").at("include_usage").as_bool());
  EXPECT_TRUE(chat->at("ignore_eos").as_bool());
  options.chat = options.ignore_eos = options.ask_usage = false;
  options.extra = *parse_extra(R"({"max_completion_tokens": 9, "temperature": 0.5, "stop": ["\n"]})");
  const auto completion = parse_json(RequestMaker(options, nullptr).make(0).body);
  ASSERT_TRUE(completion.ok());
  const auto& object = completion->as_object();
  EXPECT_TRUE(object.at("prompt").is_string());
  EXPECT_EQ(object.at("max_completion_tokens").as_int64(), 9);
  EXPECT_EQ(object.at("stop").at(0).as_string(), "\n");
  for (const char* absent : {"max_tokens", "stream_options", "ignore_eos", "messages"})
    EXPECT_FALSE(object.contains(absent)) << absent;
}

TEST(Requests, ExtraFieldsMustBeAnObject) {
  for (const char* text : {"[1]", "3", "{", "temperature=0"}) EXPECT_FALSE(parse_extra(text).ok()) << text;
  EXPECT_TRUE(parse_extra("")->text.empty());
}

TEST(Requests, HaveAsManyWordsAsMakeTheTokens) {
  RequestMaker maker({.model = "m", .input = lengths("100"), .output = lengths("5")}, nullptr);
  EXPECT_EQ(words_of(prompt_of(maker.make(0).body)), 100u);
  maker.set_cost({2, 20, true});  // two tokens a word, and twenty of the template
  EXPECT_EQ(words_of(prompt_of(maker.make(0).body)), 40u);
}

TEST(Requests, ShareSoManyPrefixes) {
  RequestMaker maker({.model = "m", .input = lengths("4"), .output = lengths("5"), .prefixes = 3, .prefix_tokens = 50},
                     nullptr);
  std::map<std::string, int> prefixes;
  std::set<std::string> rests;
  for (std::uint64_t i = 0; i < 300; ++i) {
    const auto made = maker.make(i);
    EXPECT_EQ(made.input, 54);
    const std::string prompt = prompt_of(made.body);
    EXPECT_EQ(words_of(prompt), 54u);
    std::size_t end = 0;
    for (int blank = 0; blank < 50; ++blank) end = prompt.find(' ', end) + 1;
    ++prefixes[prompt.substr(0, end)];
    rests.insert(prompt.substr(end));
  }
  EXPECT_EQ(prefixes.size(), 3u);
  for (const auto& [text, count] : prefixes) EXPECT_GT(count, 60);
  EXPECT_GT(rests.size(), 290u);
}

TEST(Requests, TakeLengthsOfTheSameRowOfATrace) {
  const std::vector<TraceRow> trace{{0, 11, 101}, {1, 12, 102}};
  const RequestMaker maker({.model = "m", .input = lengths("trace"), .output = lengths("trace")}, &trace);
  for (std::uint64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(maker.make(i).input, i % 2 == 0 ? 11 : 12);
    EXPECT_EQ(maker.make(i).output, i % 2 == 0 ? 101 : 102);
  }
}

TEST(Requests, AreShortenedToTheContext) {
  RequestOptions options{.model = "m", .input = lengths("900"), .output = lengths("900"), .max_len = 1024};
  const auto made = RequestMaker(options, nullptr).make(0);
  EXPECT_TRUE(made.shortened);
  EXPECT_LE(made.input + made.output, 1024 - 64);
  EXPECT_GE(made.output, 400);
  options.output = lengths("20");
  EXPECT_FALSE(RequestMaker(options, nullptr).make(0).shortened);
}

TEST(Requests, AreShortenedByNoMoreThanTheContextAsks) {
  RequestOptions options{.model = "m", .input = lengths("10"), .output = lengths("1000"), .max_len = 1024};
  const int room = 1024 - 64;
  auto made = RequestMaker(options, nullptr).make(0);
  EXPECT_TRUE(made.shortened);
  EXPECT_EQ(made.input, 10);
  EXPECT_EQ(made.output, room - 10);
  options.input = lengths("900");
  options.output = lengths("100");
  made = RequestMaker(options, nullptr).make(0);
  EXPECT_EQ(made.output, 100);
  EXPECT_EQ(made.input, room - 100);
  options.prefixes = 1;
  options.prefix_tokens = 400;
  options.input = lengths("10");
  options.output = lengths("1000");
  made = RequestMaker(options, nullptr).make(0);
  EXPECT_EQ(made.input, 410);
  EXPECT_EQ(made.output, room - 410);
}

TEST(Api, TakesUrlsWithAndWithoutV1) {
  for (const char* url : {"http://h:8000", "http://h:8000/", "http://h:8000/v1", "h:8000", "http://h:8000/v1/"}) {
    const auto api = make_api(url, "", "");
    ASSERT_TRUE(api.ok()) << url;
    EXPECT_EQ(api->text(), "http://h:8000/v1");
  }
  EXPECT_EQ(make_api("https://h/api/inference", "", "")->text(), "https://h/api/inference/v1");
  EXPECT_EQ(make_api("h", "", "k")->request("/models").headers.front().second, "Bearer k");
  for (const char* url : {"", "ftp://h", "http://h:99999", "http://h/v1?key=x", "http://"})
    EXPECT_FALSE(make_api(url, "", "").ok()) << url;
  EXPECT_FALSE(make_api("h", "/nonexistent", "").ok());
  EXPECT_FALSE(make_api("h", "", "a\nb").ok());
}

TEST(Api, RefusalsAreUnderstoodInEveryForm) {
  EXPECT_EQ(refusal_text(401, R"({"error":{"message":"bad key","type":"x"}})"), "the server answered 401: bad key");
  EXPECT_EQ(refusal_text(422, R"({"error":"too long"})"), "the server answered 422: too long");
  EXPECT_EQ(refusal_text(404, R"({"detail":"Not Found"})"), "the server answered 404: Not Found");
  EXPECT_EQ(refusal_text(502, "<html>\nbad\x1b gateway"), "the server answered 502: <html> bad  gateway");
  EXPECT_EQ(refusal_text(502,
                         "a\xc2\x9b"
                         "2Jb\xc2\xa0"),
            "the server answered 502: a 2Jb\xc2\xa0")
      << "U+009B is CSI too";
  EXPECT_EQ(refusal_text(500, ""), "the server answered 500");
}

}  // namespace
}  // namespace xgen::client
