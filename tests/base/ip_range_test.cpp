#include "base/ip_range.h"

#include <gtest/gtest.h>

namespace xgen {
namespace {

TEST(IpAddress, IsReadInEveryForm) {
  for (const auto& [text, expected] : {std::pair{"10.0.0.1", "10.0.0.1"},
                                       {"10.0.0.1:8000", "10.0.0.1"},
                                       {"::1", "::1"},
                                       {"[::1]", "::1"},
                                       {"[2001:DB8::2]:443", "2001:db8::2"},
                                       {"2001:db8::2", "2001:db8::2"},
                                       {"::ffff:10.0.0.1", "10.0.0.1"}}) {
    const auto address = IpAddress::parse_endpoint(text);
    ASSERT_TRUE(address) << text;
    EXPECT_EQ(address->text(), expected);
  }
  for (const char* text :
       {"", "unknown", "10.0.0", "10.0.0.256", "010.0.0.1", "10.0.0.1:", "10.0.0.1:99999", "1:2", "[::1", "[::1]:x",
        "[]", "localhost", "10.0.0.1 ", "0x7f.0.0.1", "2130706433", "::1%lo", "_hidden"})
    EXPECT_FALSE(IpAddress::parse_endpoint(text)) << text;
  EXPECT_FALSE(IpAddress::parse(std::string_view("127.0.0.1\0", 10)));
}

TEST(IpAddress, KnowsThisMachine) {
  for (const char* text : {"127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"})
    EXPECT_TRUE(IpAddress::parse(text)->is_loopback()) << text;
  for (const char* text : {"128.0.0.1", "0.0.0.0", "::", "::2", "::1:0", "10.127.0.1", "::127.0.0.1"})
    EXPECT_FALSE(IpAddress::parse(text)->is_loopback()) << text;
}

TEST(IpRange, HoldsWhatBeginsAlike) {
  const struct {
    const char* range;
    const char* inside;
    const char* outside;
  } cases[] = {
      {"10.0.0.0/8", "10.255.0.1", "11.0.0.1"},
      {"10.1.2.3", "10.1.2.3", "10.1.2.4"},
      {"192.168.4.0/22", "192.168.7.9", "192.168.8.0"},
      {"0.0.0.0/0", "8.8.8.8", "2001:db8::1"},
      {"fd00::/8", "fdff::1", "fe00::1"},
      {"::/0", "2001:db8::1", nullptr},
      {"::1", "::1", "127.0.0.1"},
      {"10.0.0.0/31", "10.0.0.1", "10.0.0.2"},
  };
  for (const auto& [range, inside, outside] : cases) {
    const auto parsed = IpRange::parse(range);
    ASSERT_TRUE(parsed) << range;
    EXPECT_TRUE(parsed->contains(*IpAddress::parse(inside))) << range;
    EXPECT_TRUE(outside == nullptr || !parsed->contains(*IpAddress::parse(outside))) << range;
  }
  EXPECT_TRUE(IpRange::parse("10.0.0.0/8")->contains(*IpAddress::parse("::ffff:10.0.0.1")));
  for (const char* text : {"10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "10.0.0.0/8x", "::/129", "host/8", "", "/8"})
    EXPECT_FALSE(IpRange::parse(text)) << text;
}

}  // namespace
}  // namespace xgen
