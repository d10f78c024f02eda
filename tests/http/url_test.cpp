#include "http/url.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace xgen::http {
namespace {

using ::testing::HasSubstr;

TEST(Url, Parts) {
  const Url url = *parse_url("https://Example.COM:8443/a/b?c=d#fragment");
  EXPECT_TRUE(url.tls);
  EXPECT_EQ(url.host, "example.com");
  EXPECT_EQ(url.port, 8443);
  EXPECT_EQ(url.target, "/a/b?c=d");
  EXPECT_EQ(url.authority(), "example.com:8443");
  EXPECT_EQ(url.origin(), "https://example.com:8443");
  EXPECT_EQ(url.text(), "https://example.com:8443/a/b?c=d");
}

TEST(Url, Defaults) {
  EXPECT_EQ(parse_url("HTTP://host")->port, 80);
  EXPECT_EQ(parse_url("https://host")->port, 443);
  EXPECT_EQ(parse_url("http://host")->target, "/");
  EXPECT_EQ(parse_url("http://host?x")->target, "/?x");
  EXPECT_EQ(parse_url("https://host:443/")->authority(), "host");
  EXPECT_EQ(parse_url("https://host:80/")->authority(), "host:80");
}

TEST(Url, AddressesOfIpv6) {
  const Url url = *parse_url("http://[::1]:8000/v1");
  EXPECT_EQ(url.host, "::1");
  EXPECT_EQ(url.port, 8000);
  EXPECT_EQ(url.authority(), "[::1]:8000");
}

TEST(Url, Faults) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "http://"},
      {"host/path", "http://"},
      {"ftp://host", "http://"},
      {"http://", "host is missing"},
      {"http:///path", "host is missing"},
      {"http://user:secret@host/", "header"},
      {"http://host:0/", "port"},
      {"http://host:65536/", "port"},
      {"http://host:/", "port"},
      {"http://host:80x/", "port"},
      {"http://[::1/", "']'"},
      {"http://[nonsense]/", "IPv6"},
      {"http://[::1]x/", "':'"},
      {"http://ho st/", "blank"},
      {"http://host/a\nb", "blank"},
      {"http://ho%73t/", "host name"},
  };
  for (const auto& [text, message] : cases) {
    const auto url = parse_url(text);
    ASSERT_FALSE(url.ok()) << text;
    EXPECT_EQ(url.error().code, ErrorCode::invalid_argument);
    EXPECT_THAT(url.error().message, HasSubstr(message)) << text;
    EXPECT_THAT(url.error().message, ::testing::Not(HasSubstr("secret")));
  }
  EXPECT_FALSE(parse_url("http://host/" + std::string(20000, 'x')).ok());
}

TEST(Url, Joined) {
  const Url base = *parse_url("https://hub:8443/models/a?x=1");
  const std::pair<const char*, const char*> cases[] = {
      {"http://cdn/file", "http://cdn/file"},    {"//cdn/file", "https://cdn/file"},
      {"/other?y", "https://hub:8443/other?y"},  {"b", "https://hub:8443/models/b"},
      {"?y=2", "https://hub:8443/models/a?y=2"},
  };
  for (const auto& [reference, joined] : cases) EXPECT_EQ(join_url(base, reference)->text(), joined) << reference;
  EXPECT_FALSE(join_url(base, "ftp://cdn/file").ok());
}

}  // namespace
}  // namespace xgen::http
