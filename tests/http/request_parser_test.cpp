#include "http/request_parser.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "base/json.h"
#include "support/case_bytes.h"

namespace xgen::http {
namespace {

struct Parsed {
  Request request;
  RequestParser::State state{};
  std::string rest;
  int status = 0;
};

// The bytes in two pieces, cut at `cut`, as two reads from a socket would bring them.
Parsed parse(const std::string& bytes, std::size_t cut, std::size_t most = 4096) {
  Parsed parsed;
  RequestParser parser(parsed.request, most, most);
  for (const std::string& piece : {bytes.substr(0, cut), bytes.substr(cut)}) {
    parsed.rest += piece;
    for (std::size_t used = 1; used > 0 && !parsed.rest.empty();) {
      used = parser.feed(parsed.rest);
      parsed.rest.erase(0, used);
    }
  }
  parsed.state = parser.state();
  parsed.status = parser.error_status();
  return parsed;
}

TEST(RequestParser, EveryCutGivesTheSameRequest) {
  const std::string head = "POST /a%2Fb?q=1 HTTP/1.1\r\nHost: t\r\nX-A: 1\r\n";
  const struct {
    std::string bytes;
    std::string body;
  } cases[] = {
      {head + "\r\n", ""},
      {head + "Content-Length: 5\r\n\r\nhello", "hello"},
      {head + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ""},
      {head + "Transfer-Encoding: chunked\r\n\r\n0\r\nX-B: trailer\r\n\r\n", ""},
      {head + "Transfer-Encoding: chunked\r\n\r\n5;x=\"y\"\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
       "hello0123456789"},
  };
  for (const auto& [bytes, body] : cases) {
    for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
      const Parsed parsed = parse(bytes + "NEXT", cut);
      ASSERT_EQ(parsed.state, RequestParser::State::done) << bytes << " cut at " << cut;
      EXPECT_EQ(parsed.request.method, "POST");
      EXPECT_EQ(parsed.request.path, "/a%2Fb");
      EXPECT_EQ(parsed.request.query, "q=1");
      EXPECT_EQ(parsed.request.body, body);
      EXPECT_EQ(parsed.request.header("x-a"), "1");
      EXPECT_EQ(parsed.request.header("x-b"), "");  // a trailer never becomes a header
      EXPECT_EQ(parsed.rest, "NEXT");
    }
  }
}

TEST(RequestParser, ReadsTheFormsOfATarget) {
  for (const auto& [target, path, query] : {std::tuple{"/", "/", ""},
                                            {"/a?b?c", "/a", "b?c"},
                                            {"http://t/a?b", "/a", "b"},
                                            {"HTTPS://T", "/", ""},
                                            {"http://t?b", "/", "b"}}) {
    const Parsed parsed = parse(std::string("GET ") + target + " HTTP/1.1\r\nHost: t\r\n\r\n", 3);
    EXPECT_EQ(parsed.state, RequestParser::State::done) << target;
    EXPECT_EQ(parsed.request.path, path) << target;
    EXPECT_EQ(parsed.request.query, query) << target;
  }
}

// Of two names that a request gives its host, others on the way may have gone by either.
TEST(RequestParser, ATargetNamesTheHostOfTheHeader) {
  for (const char* target : {"http://other/a", "http://t:80/a", "http://t@other/a", "http://@t/a", "http:///a",
                             "ftp://t/a", "x?://t/a", "://t/a", "httpx://t/a"}) {
    for (const char* version : {"1.1", "1.0"}) {
      const Parsed parsed = parse(std::string("GET ") + target + " HTTP/" + version + "\r\nHost: t\r\n\r\n", 3);
      EXPECT_EQ(parsed.status, 400) << target;
    }
  }
  EXPECT_EQ(parse("GET http:///a HTTP/1.1\r\nHost:\r\n\r\n", 3).status, 400);
  EXPECT_EQ(parse("GET http://t/a HTTP/1.0\r\n\r\n", 3).status, 400);
}

// However its bytes come: what is refused at once is refused in two pieces, too.
TEST(RequestParser, NoCutGetsAHostileRequestThrough) {
  std::ifstream file(XGEN_SOURCE_DIR "/tests/cases/http/hostile.json");
  std::stringstream content;
  content << file.rdbuf();
  const auto cases = parse_json(content.str());
  ASSERT_TRUE(cases.ok());
  int raw = 0;
  for (const boost::json::value& item : cases->as_array()) {
    const boost::json::object& request = item.at("request").as_object();
    if (!request.contains("raw")) continue;
    ++raw;
    const std::string bytes =
        scripted::expanded(scripted::bytes_of_characters(std::string(request.at("raw").as_string())), request);
    constexpr std::size_t kMost = 32 << 10;
    const Parsed whole = parse(bytes, 0, kMost);
    for (std::size_t cut = 1; cut < bytes.size(); cut += 1 + bytes.size() / 2000) {
      const Parsed parsed = parse(bytes, cut, kMost);
      ASSERT_EQ(parsed.state, whole.state) << item.at("name") << " cut at " << cut;
      ASSERT_EQ(parsed.status, whole.status) << item.at("name") << " cut at " << cut;
      if (whole.state != RequestParser::State::done) continue;
      ASSERT_TRUE(parsed.request.headers == whole.request.headers) << item.at("name") << " cut at " << cut;
    }
  }
  EXPECT_GT(raw, 50);
}

// A body may hold what would end a head, or fold its lines.
TEST(RequestParser, ABodyIsNoPartOfTheHead) {
  const std::string body = "{\r\n  \"a\":\n\t1}\r\n\r\n";
  const std::string bytes =
      "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
    const Parsed parsed = parse(bytes, cut);
    ASSERT_EQ(parsed.state, RequestParser::State::done) << cut;
    EXPECT_EQ(parsed.request.body, body);
  }
}

// What has been consumed of a head counts in its limit.
TEST(RequestParser, AHeadInManyPiecesIsNoLargerThanInOne) {
  Request request;
  RequestParser parser(request, 4096, 4096);
  std::size_t taken = 0;
  std::string rest = "GET / HTTP/1.1\r\nHost: t\r\nY";
  while (parser.state() == RequestParser::State::head && taken < 100'000) {
    const std::size_t used = parser.feed(rest);
    taken += used;
    rest.erase(0, used);
    rest += ": " + std::string(1000, 'x') + "\r\nY";
  }
  EXPECT_EQ(parser.state(), RequestParser::State::failed);
  EXPECT_EQ(parser.error_status(), 431);
  EXPECT_LE(taken, 4096 + rest.size());
}

TEST(RequestParser, OnlySomeMethodsHaveALargeBody) {
  for (const auto& [method, status] :
       {std::pair{"POST", 0}, {"PUT", 0}, {"GET", 413}, {"HEAD", 413}, {"OPTIONS", 413}, {"X", 413}}) {
    const std::string body(70'000, 'x');
    const std::string line = method + std::string(" / HTTP/1.1\r\nHost: t\r\n");
    EXPECT_EQ(parse(line + "Content-Length: 70000\r\n\r\n" + body, 40, 100'000).status, status) << method;
    EXPECT_EQ(parse(line + "Transfer-Encoding: chunked\r\n\r\n11170\r\n" + body + "\r\n0\r\n\r\n", 40, 100'000).status,
              status)
        << method;
    EXPECT_EQ(parse(line + "Content-Length: 4\r\n\r\nbody", 40).request.body, "body") << method;
  }
}

}  // namespace
}  // namespace xgen::http
