// Which listener answers what, web pages of other origins, and whose headers count.
#include <gmock/gmock.h>

#include "server/fixture.h"

namespace xgen::server {
namespace {

using scripted::Answer;
using scripted::RawClient;
using ::testing::HasSubstr;
using ::testing::Not;

class ListenersTest : public ControllerTest {
 protected:
  Answer send(const std::string& line, const std::string& headers, std::uint16_t port, const std::string& body = "") {
    RawClient client(port);
    client.send(line + " HTTP/1.1\r\nHost: localhost\r\n" + headers +
                (body.empty() ? "" : "Content-Length: " + std::to_string(body.size()) + "\r\n") + "\r\n" + body);
    return client.read_answer();
  }
  Answer ask(const std::string& line, const std::string& headers = "", const std::string& body = "") {
    return send(line, headers, http->port(), body);
  }
  static std::string header(const Answer& answer, const std::string& name) {
    const auto found = answer.headers.find(name);
    return found == answer.headers.end() ? "" : found->second;
  }
};

TEST_F(ListenersTest, OperatorsMayHaveOneOfTheirOwn) {
  start();
  // The fixture's listener answers everything; these two share the work.
  http::ServerOptions options;
  options.host = "127.0.0.1";
  options.port = 0;
  auto clients =
      http::Server::bind(options, app->handler(Serves::clients), app->error_page(), app->head_check(Serves::clients));
  auto operators = http::Server::bind(options, app->handler(Serves::operators), app->error_page(),
                                      app->head_check(Serves::operators));
  ASSERT_TRUE(clients.ok() && operators.ok());
  (*clients)->start();
  (*operators)->start();
  const struct {
    const char* line;
    int for_clients;
    int for_operators;
  } cases[] = {
      {"GET /admin/models", 404, 200},
      {"GET /metrics", 404, 200},
      {"GET /api/inference/metrics", 404, 200},
      {"GET /api/vllm/admin/models", 404, 200},
      {"GET /api/management/status", 404, 200},
      {"GET /api/management/gpus", 404, 200},
      {"GET /api/inference/loading-status", 404, 200},
      {"POST /admin/load", 404, 400},
      {"POST /api/management/load", 404, 400},
      {"PUT /admin/models", 404, 405},
      {"GET /v1/models", 200, 404},
      {"POST /v1/completions", 400, 404},
      {"POST /tokenize", 400, 404},
      {"GET /health", 200, 200},
      {"GET /health/ready", 200, 200},
      {"GET /health/live", 200, 200},
      {"GET /api/management/health", 200, 200},
      {"GET /version", 200, 200},
  };
  for (const auto& [line, for_clients, for_operators] : cases) {
    EXPECT_EQ(send(line, "", (*clients)->port()).status, for_clients) << line;
    EXPECT_EQ(send(line, "", (*operators)->port()).status, for_operators) << line;
  }
  EXPECT_THAT(send("GET /", "", (*clients)->port()).body, Not(HasSubstr("/metrics")));
  EXPECT_THAT(send("GET /", "", (*operators)->port()).body, HasSubstr("GET /metrics"));
  EXPECT_THAT(send("GET /", "", (*operators)->port()).body, Not(HasSubstr("/v1/completions")));
  EXPECT_EQ(get("/metrics").status, 200);
  EXPECT_EQ(get("/v1/models").status, 200);
}

TEST_F(ListenersTest, AGatewaysMarkCountsFromTrustedProxiesAlone) {
  for (const char* range : {"127.0.0.0/8", "10.0.0.0/8"}) {
    if (app) {
      http.reset();
      app.reset();
    }
    AppOptions options{.version = "1.2.3"};
    options.gateway_operators = true;
    options.trusted_proxies = {*IpRange::parse(range)};
    app = std::make_unique<App>(options, registry, lifecycle);
    http = *http::Server::bind({.host = "127.0.0.1", .port = 0}, app->handler(), app->error_page(), app->head_check());
    http->start();
    const bool trusted = std::string_view(range) == "127.0.0.0/8";
    const std::string elsewhere = "X-Forwarded-For: 192.0.2.9\r\n";
    EXPECT_EQ(ask("GET /admin/models", elsewhere + "x-user-admin: true\r\n").status, trusted ? 200 : 403);
    EXPECT_EQ(ask("GET /admin/models", elsewhere).status, 403);
    EXPECT_EQ(ask("GET /admin/models", elsewhere + "x-user-admin: false\r\n").status, 403);
    // What the client has sent, and what the gateway has added.
    EXPECT_EQ(ask("GET /admin/models", elsewhere + "x-user-admin: true\r\nx-user-admin: false\r\n").status, 403);
    // A gateway on this machine that says who its user is and not where.
    const std::string user = "x-user-id: 7\r\nx-user-name: bob\r\n";
    EXPECT_EQ(ask("PUT /admin/log-level", user + "x-user-admin: false\r\n", R"({"level":"error"})").status, 403);
    EXPECT_EQ(ask("GET /admin/models", user + "x-user-admin: true\r\n").status, trusted ? 200 : 403);
    EXPECT_EQ(ask("GET /admin/models").status, 200);  // on this machine, through nothing
  }
}

TEST_F(ListenersTest, TheLogTellsTheClientAndTheUser) {
  AppOptions options{.version = "1.2.3"};
  options.trusted_proxies = {*IpRange::parse("127.0.0.1")};
  start(options);
  log::set_level(log::Level::info);
  ::testing::internal::CaptureStderr();
  ask("GET /version", "X-Forwarded-For: 192.0.2.9\r\nx-user-id: 17\r\n");
  ask("GET /version");
  http.reset();
  const std::string lines = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(lines, HasSubstr(" remote=192.0.2.9 user_id=17"));
  EXPECT_THAT(lines, HasSubstr(" remote=127.0.0.1:"));
}

TEST_F(ListenersTest, WithoutProxiesTheirHeadersAreNobodys) {
  start();
  log::set_level(log::Level::info);
  ::testing::internal::CaptureStderr();
  ask("GET /version", "X-Forwarded-For: 192.0.2.9\r\nx-user-id: 17\r\n");
  http.reset();
  const std::string lines = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(lines, HasSubstr(" remote=127.0.0.1:"));
  EXPECT_THAT(lines, Not(HasSubstr("user_id")));
  EXPECT_THAT(lines, Not(HasSubstr("192.0.2.9")));
}

TEST_F(ListenersTest, PagesOfOtherOriginsHearNothingByDefault) {
  start();
  const Answer answer = ask("GET /v1/models", "Origin: https://app.example.com\r\n");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(header(answer, "access-control-allow-origin"), "");
  EXPECT_EQ(header(answer, "vary"), "");
  const Answer preflight =
      ask("OPTIONS /v1/chat/completions", "Origin: https://app.example.com\r\nAccess-Control-Request-Method: POST\r\n");
  EXPECT_EQ(preflight.status, 405);
  EXPECT_EQ(header(preflight, "access-control-allow-origin"), "");
}

TEST_F(ListenersTest, PagesOfListedOriginsMayAsk) {
  AppOptions options{.version = "1.2.3"};
  options.cors_origins = {"https://app.example.com", "http://localhost:3000"};
  options.keys = std::make_shared<ApiKeys>();  // nobody's: preflights carry none
  start(options, {.max_body_bytes = 2000});
  const std::string origin = "Origin: https://app.example.com\r\n";
  const std::string question =
      "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: "
      "authorization,content-type,x-stainless-os\r\n";
  const Answer preflight = ask("OPTIONS /api/inference/v1/chat/completions", origin + question);
  EXPECT_EQ(preflight.status, 204);
  EXPECT_EQ(header(preflight, "access-control-allow-origin"), "https://app.example.com");
  EXPECT_EQ(header(preflight, "access-control-allow-methods"), "POST");
  EXPECT_EQ(header(preflight, "access-control-allow-headers"), "authorization,content-type,x-stainless-os");
  EXPECT_EQ(header(preflight, "access-control-max-age"), "600");
  EXPECT_THAT(header(preflight, "vary"), HasSubstr("Origin"));
  EXPECT_EQ(header(preflight, "access-control-allow-credentials"), "");
  EXPECT_FALSE(preflight.headers.contains("content-length"));
  // A page hears why it was refused, of the server's own refusals as well.
  for (const Answer& answer : {ask("GET /v1/models", origin), ask("GET /version", origin),
                               ask("POST /v1/completions", origin, std::string(3000, 'x'))}) {
    EXPECT_EQ(header(answer, "access-control-allow-origin"), "https://app.example.com") << answer.status;
    EXPECT_EQ(header(answer, "vary"), "Origin");
    EXPECT_THAT(header(answer, "access-control-expose-headers"), HasSubstr("x-request-id"));
  }
  // Others do not, and what is cached for one is not another's.
  for (const char* other : {"https://evil.example", "https://app.example.com.evil.example", "null",
                            "http://app.example.com", "https://app.example.com:444"}) {
    const Answer answer = ask("GET /version", "Origin: " + std::string(other) + "\r\n");
    EXPECT_EQ(header(answer, "access-control-allow-origin"), "") << other;
    EXPECT_EQ(header(answer, "vary"), "Origin");
    EXPECT_EQ(header(ask("OPTIONS /v1/models", "Origin: " + std::string(other) + "\r\n" + question),
                     "access-control-allow-origin"),
              "");
  }
  EXPECT_EQ(header(ask("GET /version"), "vary"), "Origin");
  // Nobody's page is an operator.
  EXPECT_EQ(ask("OPTIONS /admin/models", origin + question).status, 404);
  EXPECT_EQ(header(ask("GET /metrics", origin), "access-control-allow-origin"), "");
  // A list of names that are none is not repeated.
  EXPECT_EQ(header(ask("OPTIONS /v1/models",
                       origin + "Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: a\"b<c>\r\n"),
                   "access-control-allow-headers"),
            "");
}

TEST_F(ListenersTest, EveryPageMayAskWithoutCredentials) {
  AppOptions options{.version = "1.2.3"};
  options.cors_origins = {"*"};
  start(options);
  const Answer stream = ask("POST /v1/completions", "Origin: https://any.example\r\n",
                            R"({"model":"scripted","prompt":"say Hello","stream":true})");
  EXPECT_EQ(stream.status, 200);
  EXPECT_EQ(header(stream, "access-control-allow-origin"), "*");
  EXPECT_EQ(header(stream, "access-control-allow-credentials"), "");
  EXPECT_EQ(header(stream, "vary"), "");
  EXPECT_EQ(header(ask("GET /version"), "access-control-allow-origin"), "");
}

}  // namespace
}  // namespace xgen::server
