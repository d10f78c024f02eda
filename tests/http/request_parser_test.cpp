#include "http/request_parser.h"

#include <gtest/gtest.h>

namespace xgen::http {
namespace {

struct Parsed {
  Request request;
  RequestParser::State state{};
  std::string rest;
};

// The bytes in two pieces, cut at `cut`, as two reads from a socket would bring them.
Parsed parse(const std::string& bytes, std::size_t cut) {
  Parsed parsed;
  RequestParser parser(parsed.request, 4096, 4096);
  for (const std::string& piece : {bytes.substr(0, cut), bytes.substr(cut)}) {
    parsed.rest += piece;
    for (std::size_t used = 1; used > 0 && !parsed.rest.empty();) {
      used = parser.feed(parsed.rest);
      parsed.rest.erase(0, used);
    }
  }
  parsed.state = parser.state();
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
                                            {"http://host:1/a?b", "/a", "b"},
                                            {"http://host", "/", ""},
                                            {"http://host?b", "/", "b"}}) {
    const Parsed parsed = parse(std::string("GET ") + target + " HTTP/1.1\r\nHost: t\r\n\r\n", 3);
    EXPECT_EQ(parsed.state, RequestParser::State::done) << target;
    EXPECT_EQ(parsed.request.path, path) << target;
    EXPECT_EQ(parsed.request.query, query) << target;
  }
}

}  // namespace
}  // namespace xgen::http
