#include "server/proxies.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/admin.h"

namespace xgen::server {
namespace {

using ::testing::HasSubstr;

http::Request request(std::string remote, http::Headers headers = {}) {
  http::Request made;
  made.remote = std::move(remote);
  made.headers = std::move(headers);
  return made;
}

Proxies proxies(std::initializer_list<const char*> ranges) {
  Proxies made;
  for (const char* each : ranges) made.push_back(*IpRange::parse(each));
  return made;
}

struct Case {
  const char* name;
  const char* remote;
  http::Headers headers;
  std::string client;  // for the log
  bool here;           // counts as on this machine
};

class ProxiesTest : public ::testing::TestWithParam<Case> {};

// 10.0.0.0/8 and this machine are trusted.
TEST_P(ProxiesTest, TellTheClient) {
  const Case& one = GetParam();
  const auto trusted = proxies({"10.0.0.0/8", "127.0.0.1", "::1"});
  EXPECT_EQ(client_address(request(one.remote, one.headers), trusted), one.client);
  EXPECT_EQ(is_from_here(request(one.remote, one.headers), trusted), one.here);
}

INSTANTIATE_TEST_SUITE_P(
    Headers, ProxiesTest,
    ::testing::Values(
        Case{"Direct", "127.0.0.1:4711", {}, "127.0.0.1:4711", true},
        Case{"DirectIpv6", "[::1]:4711", {}, "[::1]:4711", true},
        Case{"FromElsewhere", "192.0.2.1:4711", {}, "192.0.2.1:4711", false},
        Case{"NotTrusted", "192.0.2.1:4711", {{"X-Forwarded-For", "127.0.0.1"}}, "192.0.2.1:4711", false},
        Case{"Trusted", "10.0.0.1:4711", {{"X-Forwarded-For", "192.0.2.9"}}, "192.0.2.9", false},
        Case{"ThroughTwo", "10.0.0.1:4711", {{"X-Forwarded-For", "192.0.2.9, 10.0.0.2"}}, "192.0.2.9", false},
        Case{"OverTwoLines",
             "10.0.0.1:4711",
             {{"X-Forwarded-For", "192.0.2.9"}, {"x-forwarded-for", "10.0.0.2"}},
             "192.0.2.9",
             false},
        Case{"TheClientsOwnWordIsNotTaken",
             "10.0.0.1:4711",
             {{"X-Forwarded-For", "127.0.0.1, 192.0.2.9"}},
             "192.0.2.9",
             false},
        Case{"AProxyElsewhereMeansItsOwnMachine",
             "10.0.0.1:4711",
             {{"X-Forwarded-For", "127.0.0.1"}},
             "127.0.0.1",
             false},
        Case{"AProxyHere", "127.0.0.1:4711", {{"X-Forwarded-For", "192.0.2.9"}}, "192.0.2.9", false},
        Case{"AProxyHereForAClientHere", "127.0.0.1:4711", {{"X-Forwarded-For", "127.0.0.1"}}, "127.0.0.1", true},
        Case{"Forwarded", "10.0.0.1:1", {{"Forwarded", "for=192.0.2.9;proto=https, for=10.0.0.2"}}, "192.0.2.9", false},
        Case{"ForwardedIpv6",
             "10.0.0.1:1",
             {{"Forwarded", R"(proto=http;For="[2001:db8::9]:4711";by=10.0.0.1)"}},
             "2001:db8::9",
             false},
        Case{"ForwardedSeparatorsInQuotes",
             "10.0.0.1:1",
             {{"Forwarded", R"(host="a,b;for=127.0.0.1";for=192.0.2.9)"}},
             "192.0.2.9",
             false},
        Case{"ForwardedHidden", "127.0.0.1:1", {{"Forwarded", "for=_hidden"}}, "127.0.0.1:1", false},
        Case{
            "ForwardedTwiceInOne", "127.0.0.1:1", {{"Forwarded", "for=127.0.0.1;for=192.0.2.9"}}, "127.0.0.1:1", false},
        Case{"BothAlike",
             "10.0.0.1:1",
             {{"Forwarded", "for=192.0.2.9"}, {"X-Forwarded-For", "192.0.2.9"}},
             "192.0.2.9",
             false},
        Case{"BothUnlike",
             "127.0.0.1:1",
             {{"Forwarded", "for=127.0.0.1"}, {"X-Forwarded-For", "192.0.2.9"}},
             "127.0.0.1:1",
             false},
        Case{"Unreadable", "127.0.0.1:1", {{"X-Forwarded-For", "127.0.0.1, nonsense"}}, "127.0.0.1:1", false},
        Case{"AClientsOpenQuote", "10.0.0.1:1", {{"X-Forwarded-For", "\", 192.0.2.9"}}, "192.0.2.9", false},
        Case{"ForwardedAClientsOpenQuote",
             "10.0.0.1:1",
             {{"Forwarded", R"(for="127.0.0.1, for=192.0.2.9;by="[::1]:80", for=10.0.0.2)"}},
             "192.0.2.9",
             false},
        Case{"ForwardedAnEscapedQuote",
             "10.0.0.1:1",
             {{"Forwarded", R"(for=127.0.0.1, host="a\",b";for=192.0.2.9)"}},
             "192.0.2.9",
             false},
        Case{"Empty", "127.0.0.1:1", {{"X-Forwarded-For", ""}}, "127.0.0.1:1", false},
        Case{"OnlyVia", "127.0.0.1:1", {{"Via", "1.1 proxy"}}, "127.0.0.1:1", false},
        Case{"OnlyAUser", "127.0.0.1:1", {{"x-user-id", "7"}, {"x-user-admin", "false"}}, "127.0.0.1:1", false},
        Case{"OnlyXRealIp", "127.0.0.1:1", {{"X-Real-IP", "127.0.0.1"}}, "127.0.0.1:1", false}),
    [](const auto& each) { return each.param.name; });

TEST(Proxies, WithoutAnyNoHeaderMakesAnOperator) {
  for (const char* host : {"localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000"})
    EXPECT_TRUE(check_operator(request("[::1]:1", {{"Host", host}}), {}).ok()) << host;
  const struct {
    const char* remote;
    http::Headers headers;
    const char* reason;
  } cases[] = {
      {"192.0.2.1:1", {}, "the request came from elsewhere"},
      {"[::1f]:1", {}, "the request came from elsewhere"},
      {"127.0.0.1:1", {{"X-Forwarded-For", "127.0.0.1"}}, "the header X-Forwarded-For) that server.trusted_proxies"},
      {"127.0.0.1:1", {{"forwarded", "for=127.0.0.1"}}, "the header forwarded) that server.trusted_proxies"},
      {"127.0.0.1:1", {{"X-Forwarded-Host", "a"}}, "the header X-Forwarded-Host) that server.trusted_proxies"},
      {"127.0.0.1:1", {{"x-real-ip", "127.0.0.1"}}, "the header x-real-ip) that server.trusted_proxies"},
      {"127.0.0.1:1", {{"Via", "1.1 nginx"}}, "the header Via) that server.trusted_proxies"},
      {"127.0.0.1:1", {{"x-user-id", "7"}}, "the header x-user-id) that server.trusted_proxies"},
      {"127.0.0.1:1", {{"X-User-Name", "bob"}}, "the header X-User-Name) that server.trusted_proxies"},
      {"127.0.0.1:1", {}, "the Host header names another"},
      {"127.0.0.1:1", {{"Host", ""}}, "the Host header names another"},
      {"127.0.0.1:1", {{"Host", "[::1]evil"}}, "the Host header names another"},
      {"127.0.0.1:1", {{"Host", "localhost:evil"}}, "the Host header names another"},
      {"127.0.0.1:1", {{"Host", "localhost@evil.example:80"}}, "the Host header names another"},
      {"127.0.0.1:1", {{"Host", "127.0.0.1:"}}, "the Host header names another"},
      {"127.0.0.1:1", {{"Host", "127.evil.example"}}, "the Host header names another"},
      {"127.0.0.1:1", {{"Host", "localhost.evil.example"}}, "the Host header names another"},
      {"127.0.0.1:1", {{"Host", "localhost"}, {"Origin", "https://evil.example"}}, "the Origin header"},
      {"127.0.0.1:1", {{"Host", "localhost"}, {"Origin", "null"}}, "the Origin header"},
  };
  for (const auto& [remote, headers, reason] : cases) {
    const Status status = check_operator(request(remote, headers), {});
    ASSERT_FALSE(status.ok()) << reason;
    EXPECT_EQ(status.error().code, ErrorCode::permission_denied);
    EXPECT_THAT(status.error().message, HasSubstr(reason));
  }
}

TEST(Proxies, AHeaderThatStandsTwiceHasNoValue) {
  EXPECT_EQ(only_value(request("", {{"X-User-Admin", "true"}}), "x-user-admin"), "true");
  EXPECT_EQ(only_value(request("", {{"x-user-admin", "true"}, {"X-User-Admin", "false"}}), "x-user-admin"), "");
  EXPECT_EQ(only_value(request(""), "x-user-admin"), "");
}

}  // namespace
}  // namespace xgen::server
