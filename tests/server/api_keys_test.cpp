#include "server/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <charconv>

#include "server/fixture.h"

namespace xgen::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// printf %s sk-one | sha256sum, and so on
constexpr std::string_view kOne = "456f1612bd25c6c8455039437bf441f43aa3b7d1c0b0047c712d5036dfebef0d";
constexpr std::string_view kTwo = "5e31278545505db1d65bf1dd696e8eaa1edfb00ba455e21c83200c04ef643c91";
constexpr std::string_view kRoot = "8649dc2abf84574467821d2b401f14b2a47bdba971a08fb753f871fe836ce048";

ApiKey key(std::string name, std::string_view sha256, std::vector<Scope> scopes, RateLimits limits = {}) {
  ApiKey key{std::move(name), {}, std::move(scopes), limits};
  for (std::size_t i = 0; i < key.digest.size(); ++i)
    std::from_chars(sha256.data() + 2 * i, sha256.data() + 2 * i + 2, key.digest[i], 16);
  return key;
}

TEST(ApiKeys, AKeyHasItsNameAndScopes) {
  ApiKeys keys;
  EXPECT_EQ(keys.check("Bearer sk-one", Scope::inference).error().code, ErrorCode::unauthenticated);
  keys.set(
      {key("one", kOne, {Scope::inference}), key("root", kRoot, {Scope::inference, Scope::metrics, Scope::admin})});
  for (const auto* header : {"Bearer sk-one", "bearer  sk-one ", "BEARER sk-one"}) {
    const auto caller = keys.check(header, Scope::inference);
    ASSERT_TRUE(caller.ok()) << header;
    EXPECT_EQ(caller->name, "one");
    EXPECT_EQ(caller->limit, nullptr);
  }
  const auto lacking = keys.check("Bearer sk-one", Scope::admin);
  ASSERT_FALSE(lacking.ok());
  EXPECT_EQ(lacking.error().code, ErrorCode::permission_denied);
  EXPECT_THAT(lacking.error().message, HasSubstr("'one' does not allow this: it lacks the scope 'admin'"));
  EXPECT_TRUE(keys.check("Bearer sk-root", Scope::admin).ok());
  EXPECT_TRUE(keys.check("Bearer sk-root", Scope::metrics).ok());
  for (const auto* header :
       {"", "Bearer", "Bearer ", "sk-one", "Basic sk-one", "Bearer sk-on", "Bearer sk-one1", "Bearer SK-ONE"}) {
    const auto refused = keys.check(header, Scope::inference);
    ASSERT_FALSE(refused.ok()) << header;
    EXPECT_EQ(refused.error().code, ErrorCode::unauthenticated);
    EXPECT_THAT(refused.error().message, Not(HasSubstr("sk-")));
  }
}

TEST(ApiKeys, ANewListReplacesTheOldAndKeepsWhatIsUsed) {
  ApiKeys keys;
  keys.set({key("one", kOne, {Scope::inference}, {1, 0}), key("two", kTwo, {Scope::inference}, {1, 0})});
  RateLimit::Left left;
  const auto now = std::chrono::steady_clock::now();
  const auto use = [&](const std::string& secret) {
    return keys.check("Bearer " + secret, Scope::inference)->limit->admit(0, now, left).ok();
  };
  EXPECT_TRUE(use("sk-one"));
  EXPECT_FALSE(use("sk-one"));
  EXPECT_TRUE(use("sk-two")) << "each has its own";
  // The same name with another secret, and another limit.
  keys.set({key("one", kRoot, {Scope::inference}, {1, 0}), key("two", kTwo, {Scope::inference}, {2, 0})});
  EXPECT_FALSE(keys.check("Bearer sk-one", Scope::inference).ok());
  EXPECT_FALSE(use("sk-root"));
  EXPECT_TRUE(use("sk-two"));
}

class GuardedTest : public ControllerTest {
 protected:
  void start_with(std::vector<ApiKey> list, bool gateway = false) {
    AppOptions options{.version = "1.2.3"};
    options.keys = std::make_shared<ApiKeys>();
    options.keys->set(std::move(list));
    options.gateway_operators = gateway;
    options.trusted_proxies = {*IpRange::parse("127.0.0.1")};
    keys = options.keys;
    start(std::move(options));
  }
  scripted::Answer ask(const std::string& method, const std::string& path, const std::string& secret,
                       const std::string& body = {}, const std::string& headers = {}) {
    scripted::RawClient client(http->port());
    client.send(method + " " + path + " HTTP/1.1\r\nHost: test\r\n" + headers +
                (secret.empty() ? "" : "Authorization: Bearer " + secret + "\r\n") +
                "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
    return client.read_answer();
  }
  scripted::Answer complete(const std::string& secret, int max_tokens = 3) {
    return ask("POST", "/v1/completions", secret,
               R"({"model":"scripted","prompt":"say hello","max_tokens":)" + std::to_string(max_tokens) + "}");
  }
  static std::string code(const scripted::Answer& answer) {
    return std::string(parse(answer.body).at("error").at("code").as_string());
  }
  std::shared_ptr<ApiKeys> keys;
};

TEST_F(GuardedTest, EveryRouteAsksForItsScope) {
  start_with(
      {key("one", kOne, {Scope::inference}), key("two", kTwo, {Scope::metrics}), key("root", kRoot, {Scope::admin})});
  for (const std::string& route : route_list()) {
    const std::string method = route.substr(0, route.find(' '));
    std::string path = route.substr(route.find(' ') + 1);
    if (path.ends_with("{id}")) path = path.substr(0, path.size() - 4) + "scripted";
    const bool open =
        path.starts_with("/health") || path == "/" || path == "/version" || path == "/api/management/health";
    const bool inference =
        path.starts_with("/v1/") || path == "/tokenize" || path == "/detokenize" || path.ends_with("/gpus");
    const std::string allowed = inference ? "sk-one" : path == "/metrics" ? "sk-two" : "sk-root";
    const auto without = ask(method, path, "");
    EXPECT_EQ(without.status == 401, !open) << route;
    if (!open) {
      EXPECT_EQ(code(without), "invalid_api_key") << route;
      EXPECT_EQ(without.headers.at("www-authenticate"), "Bearer") << route;
    }
    for (const std::string secret : {"sk-one", "sk-two", "sk-root"}) {
      const auto answer = ask(method, path, secret);
      const bool through = answer.status != 401 && answer.status != 403;
      EXPECT_EQ(through, open || secret == allowed) << route << " with " << secret << ": " << answer.status;
    }
  }
  EXPECT_EQ(complete("sk-one").status, 200);
  // Under the gateway's prefixes as well.
  EXPECT_EQ(ask("GET", "/api/vllm/v1/models", "").status, 401);
  EXPECT_EQ(ask("GET", "/api/inference/admin/models", "sk-one").status, 403);
}

// Before a client is told to send its body, and before a byte of it is kept.
TEST_F(GuardedTest, HeadsAreJudgedBeforeTheirBodies) {
  start_with({key("one", kOne, {Scope::inference}), key("two", kTwo, {Scope::metrics})});
  const std::string one = "Authorization: Bearer sk-one\r\n";
  const auto send_head = [&](const std::string& line, const std::string& headers) {
    scripted::RawClient client(http->port());
    client.send(line + " HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 16000000\r\n" + headers +
                "\r\n");
    return client.read_answer();
  };
  const struct {
    const char* line;
    std::string headers;
    int status;
  } cases[] = {
      {"POST /v1/completions", "", 401},
      {"POST /v1/completions", "Authorization: Bearer sk-guess\r\n", 401},
      {"POST /v1/completions", "Authorization: Bearer sk-two\r\n", 403},
      {"POST /admin/load", one, 403},
      {"POST /nothing", one, 404},
      {"POST /v1/models", one, 405},
      {"GET /health", one, 413},
      {"POST /v1/completions", one + "Content-Encoding: gzip\r\n", 415},
      {"POST /v1/completions", one, 100},
  };
  for (const auto& [line, headers, status] : cases) {
    const auto answer = send_head(line, headers);
    EXPECT_EQ(answer.status, status) << line << headers;
    EXPECT_EQ(answer.headers.contains("x-request-id"), status != 100);
    EXPECT_EQ(answer.headers.contains("www-authenticate"), status == 401);
    EXPECT_EQ(answer.headers.contains("allow"), status == 405);
  }
  lifecycle.set(Lifecycle::State::refusing);
  EXPECT_EQ(send_head("POST /v1/completions", one).status, 503);
}

TEST_F(GuardedTest, AGatewaysMarkStandsForAnAdminKeyWhereItIsTrusted) {
  start_with({key("one", kOne, {Scope::inference})}, true);
  EXPECT_EQ(ask("GET", "/admin/models", "", "", "x-user-admin: true\r\n").status, 200);
  EXPECT_EQ(ask("GET", "/admin/models", "sk-one").status, 403);
  EXPECT_EQ(ask("GET", "/v1/models", "", "", "x-user-admin: true\r\n").status, 401);
}

TEST_F(GuardedTest, HealthTellsStrangersNoNames) {
  start_with({key("two", kTwo, {Scope::metrics})});
  for (const std::string path : {"/health/startup", "/api/inference/health/startup"}) {
    EXPECT_THAT(ask("GET", path, "").body, Not(HasSubstr("scripted")));
    EXPECT_THAT(ask("GET", path, "sk-one").body, Not(HasSubstr("scripted")));
    EXPECT_THAT(ask("GET", path, "sk-two").body, HasSubstr("scripted"));
  }
}

// What is left of a key's rate, as the answers tell.
std::int64_t left(const scripted::Answer& answer, const std::string& what) {
  return std::stoll(answer.headers.at("x-ratelimit-remaining-" + what));
}

TEST_F(GuardedTest, RatesByKey) {
  start_with({key("one", kOne, {Scope::inference}, {3, 0}), key("two", kTwo, {Scope::inference})});
  const std::string tokenize = R"({"model":"scripted","prompt":"x"})";
  EXPECT_EQ(left(complete("sk-one"), "requests"), 2);
  EXPECT_EQ(left(ask("POST", "/tokenize", "sk-one", tokenize), "requests"), 1);
  const auto third = ask("POST", "/v1/completions", "sk-one", R"({"model":"nobody","prompt":"x"})");
  EXPECT_EQ(third.status, 404);
  EXPECT_EQ(left(third, "requests"), 0);
  EXPECT_EQ(third.headers.at("x-ratelimit-limit-requests"), "3");
  EXPECT_FALSE(third.headers.contains("x-ratelimit-limit-tokens"));
  for (const auto& answer : {complete("sk-one"), ask("POST", "/tokenize", "sk-one", tokenize)}) {
    EXPECT_EQ(answer.status, 429);
    EXPECT_EQ(code(answer), "rate_limit_exceeded");
    EXPECT_THAT(answer.body, HasSubstr("The rate of the API key 'one' is used up: more than 3 requests a minute"));
    EXPECT_THAT(std::stoi(answer.headers.at("retry-after")), ::testing::AllOf(::testing::Ge(1), ::testing::Le(20)));
    EXPECT_EQ(left(answer, "requests"), 0);
  }
  EXPECT_EQ(ask("GET", "/v1/models", "sk-one").status, 200) << "what costs nothing is not counted";
  EXPECT_EQ(complete("sk-two").status, 200);
}

// A minute's worth is so much that what comes back during the test hides nothing.
TEST_F(GuardedTest, TokensAreReservedAndSettled) {
  constexpr std::int64_t kMinute = 600'000;  // 10 come back in a millisecond
  start_with({key("one", kOne, {Scope::inference}, {0, kMinute})});
  const auto used = [&](const scripted::Answer& answer) { return kMinute - left(answer, "tokens"); };
  const auto ask_for = [&](const std::string& prompt, std::int64_t tokens, bool stream = false) {
    return ask("POST", "/v1/completions", "sk-one",
               R"({"model":"scripted","prompt":")" + prompt + R"(","max_tokens":)" + std::to_string(tokens) +
                   (stream ? R"(,"stream":true})" : "}"));
  };
  // All of max_tokens is reserved, and put back but for what came.
  EXPECT_NEAR(static_cast<double>(used(ask_for("say hello", 500'000))), 500'003, 3);
  EXPECT_NEAR(static_cast<double>(used(ask_for("say hello", 500'000, true))), 500'003, 100);
  // What fails before it begins costs nothing.
  EXPECT_EQ(ask_for("error 6", 500'000).status, 413);
  EXPECT_NEAR(static_cast<double>(used(ask_for("say hello", 500'000))), 500'003, 200);
  // Two at once do not fit.
  scripted::RawClient held(http->port());
  held.send("POST /v1/completions HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer sk-one\r\nContent-Length: ");
  const std::string body =
      R"({"model":"scripted","prompt":"hold )" + std::string(400'000, 'x') + R"(","max_tokens":450000,"stream":true})";
  held.send(std::to_string(body.size()) + "\r\n\r\n" + body);
  ASSERT_TRUE(eventually([&] { return service->running == 1; }));
  const auto refused = ask_for("say hello", 500'000);
  EXPECT_EQ(refused.status, 429);
  EXPECT_THAT(refused.body, HasSubstr("more than 600000 tokens a minute; this request may take 500003"));
  // A client that leaves pays for its prompt, whether or not there was a token by then; the rest is put back.
  held.close();
  ASSERT_TRUE(eventually([&] { return service->running == 0; }));
  EXPECT_NEAR(static_cast<double>(used(ask_for("say hello", 1))), 100'000, 60'000);
}

// Hidden reasoning, several tokens in an event: the usage counts.
TEST_F(GuardedTest, TokensThatAreNotStreamedArePaid) {
  constexpr std::int64_t kMinute = 600'000;
  start_with({key("one", kOne, {Scope::inference}, {0, kMinute})});
  for (const char* more : {"", R"(,"stream":true)"}) {
    const std::string body = R"({"model":"scripted","prompt":"hidden 250000","max_tokens":1)" + std::string(more) + "}";
    EXPECT_EQ(ask("POST", "/v1/completions", "sk-one", body).status, 200);
  }
  EXPECT_NEAR(static_cast<double>(kMinute - left(complete("sk-one"), "tokens")), 500'000, 60'000);
}

}  // namespace
}  // namespace xgen::server
