#include "remote/sse.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace xgen::remote {
namespace {

// All events of a stream that comes in parts.
std::vector<std::string> events(const std::vector<std::string>& parts, std::size_t limit = 1 << 20) {
  SseReader reader(limit);
  std::vector<std::string> out;
  for (const std::string& part : parts) {
    const std::string copy = part;  // gone after this round, as a read buffer is
    std::string_view input = copy;
    std::string_view data;
    for (;;) {
      const auto step = reader.next(input, data);
      if (step == SseReader::Step::too_large) {
        out.emplace_back("too large");
        return out;
      }
      if (step == SseReader::Step::need_more) break;
      out.emplace_back(data);
    }
  }
  return out;
}

const std::string kStream =
    ": a comment\n\ndata: {\"a\":1}\n\nevent: chunk\r\nid: 7\r\ndata:no blank\r\n\r\n"
    "data: first\ndata: second\ndata:\n\ndatabase: no\n\nretry: 10\ndata: [DONE]\n\n";
const std::vector<std::string> kEvents = {"{\"a\":1}", "no blank", "first\nsecond\n", "[DONE]"};

TEST(Sse, Whole) { EXPECT_EQ(events({kStream}), kEvents); }

TEST(Sse, CutAnywhere) {
  for (std::size_t a = 0; a <= kStream.size(); ++a)
    for (std::size_t b = a; b <= kStream.size(); b += 7)
      ASSERT_EQ(events({kStream.substr(0, a), kStream.substr(a, b - a), kStream.substr(b)}), kEvents) << a << " " << b;
}

TEST(Sse, ByteByByte) {
  std::vector<std::string> bytes;
  for (const char c : kStream) bytes.emplace_back(1, c);
  EXPECT_EQ(events(bytes), kEvents);
}

TEST(Sse, AnEventWithoutItsEndIsNotOne) { EXPECT_TRUE(events({"data: half\n"}).empty()); }

TEST(Sse, TooLarge) {
  EXPECT_EQ(events({"data: " + std::string(200, 'x') + "\n\n"}, 100).back(), "too large");
  EXPECT_EQ(events({"data: " + std::string(60, 'x'), std::string(60, 'x')}, 100).back(), "too large");
  std::string lines;
  for (int i = 0; i < 10; ++i) lines += "data: " + std::string(20, 'x') + "\n";
  EXPECT_EQ(events({lines}, 100).back(), "too large");
}

}  // namespace
}  // namespace xgen::remote
