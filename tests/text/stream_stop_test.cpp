// StopMatcher, and what StreamDecoder promises besides equality with the one-shot text.
#include <gtest/gtest.h>

#include <random>

#include "text/stop_matcher.h"
#include "text/stream_decoder.h"

namespace xgen::text {
namespace {

TEST(StopMatcher, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher m({"<end>", "\n\n"});
  EXPECT_EQ(m.push("a < b").text, "a < b");
  EXPECT_EQ(m.push(" <e").text, " ");
  EXPECT_EQ(m.push("n").text, "");
  EXPECT_EQ(m.push("x").text, "<enx");
  EXPECT_EQ(m.push("line\n").text, "line");
  EXPECT_EQ(m.flush(), "\n");
}

TEST(StopMatcher, FindsAcrossBorders) {
  StopMatcher m({"stop", "tops"});
  EXPECT_EQ(m.push("we st").text, "we ");
  const auto found = m.push("op here");
  EXPECT_EQ(found.text, "");
  EXPECT_EQ(found.matched, 0u);
  EXPECT_TRUE(m.done());
  EXPECT_EQ(m.push("more").text, "");
  EXPECT_EQ(m.flush(), "");
}

TEST(StopMatcher, TakesTheLongestOfThoseThatEndTogether) {
  StopMatcher m({"ab", "cab"});
  const auto found = m.push("xxcabyy");
  EXPECT_EQ(found.text, "xx");
  EXPECT_EQ(found.matched, 1u);
}

TEST(StopMatcher, NoStopsPassThrough) {
  StopMatcher none;
  EXPECT_EQ(none.push("text").text, "text");
  StopMatcher empty({"", ""});
  EXPECT_TRUE(empty.empty());
  EXPECT_EQ(empty.push("text").text, "text");
}

// Against the obvious algorithm, over all ways to cut a random text.
TEST(StopMatcher, EqualsSearchInTheWholeText) {
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stop;
    for (unsigned i = random() % 4; i > 0; --i) {
      std::string s;
      for (unsigned k = 1 + random() % 5; k > 0; --k) s += static_cast<char>('a' + random() % 2);
      stop.push_back(s);
    }
    std::string text;
    for (unsigned k = random() % 30; k > 0; --k) text += static_cast<char>('a' + random() % 3);
    std::size_t first_end = std::string::npos, length = 0;
    for (std::size_t end = 1; end <= text.size() && first_end == std::string::npos; ++end) {
      for (const std::string& s : stop) {
        if (std::string_view(text).substr(0, end).ends_with(s) && s.size() > length) {
          first_end = end;
          length = s.size();
        }
      }
    }
    StopMatcher m(stop);
    std::string got;
    std::optional<std::size_t> matched;
    for (std::size_t i = 0; i < text.size() && !matched;) {
      const std::size_t n = std::min<std::size_t>(1 + random() % 4, text.size() - i);
      auto out = m.push(std::string_view(text).substr(i, n));
      got += out.text;
      matched = out.matched;
      i += n;
    }
    got += m.flush();
    if (first_end == std::string::npos) {
      EXPECT_FALSE(matched);
      EXPECT_EQ(got, text);
    } else {
      ASSERT_TRUE(matched);
      EXPECT_EQ(stop[*matched].size(), length);
      EXPECT_EQ(got, text.substr(0, first_end - length));
    }
  }
}

// Byte tokens 0..255 as ids 1..256, plus "a" blank-led.
std::shared_ptr<const Tokenizer> byte_tokenizer() {
  std::string json = R"({"model":{"type":"BPE","byte_fallback":true,"unk_token":"<unk>","vocab":{"<unk>":0)";
  for (int b = 0; b < 256; ++b) {
    char name[16];
    std::snprintf(name, sizeof name, "<0x%02X>", b);
    json += ",\"" + std::string(name) + "\":" + std::to_string(b + 1);
  }
  json += R"(,"\u2581a":257},"merges":[]},"added_tokens":[{"id":0,"content":"<unk>","special":true}],
    "decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"\u2581"},"content":" "},
    {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}})";
  auto t = Tokenizer::from_json(json, "bytes");
  EXPECT_TRUE(t.ok()) << (t.ok() ? "" : t.error().message);
  return t.ok() ? *t : nullptr;
}

TEST(StreamDecoder, WaitsForWholeCharacters) {
  StreamDecoder d(byte_tokenizer(), true);
  EXPECT_EQ(d.push(0xEA + 1), "");
  EXPECT_EQ(d.push(0xB0 + 1), "");
  EXPECT_EQ(d.push(0x80 + 1), "\xEA\xB0\x80");
  EXPECT_EQ(d.push('x' + 1), "x");
  EXPECT_EQ(d.flush(), "");
}

TEST(StreamDecoder, InvalidBytesAsPythonReplaces) {
  StreamDecoder d(byte_tokenizer(), true);
  EXPECT_EQ(d.push(0xEA + 1), "");
  EXPECT_EQ(d.push('x' + 1), "\xEF\xBF\xBDx");
  EXPECT_EQ(d.push(0xFF + 1), "\xEF\xBF\xBD");
  EXPECT_EQ(d.push(0xC3 + 1), "");
  EXPECT_EQ(d.flush(), "\xEF\xBF\xBD");
  // As new after flush().
  EXPECT_EQ(d.push(257), "a");
}

TEST(StreamDecoder, PromptDecidesTheFirstBlank) {
  const auto t = byte_tokenizer();
  StreamDecoder alone(t, true), after(t, true);
  const std::vector<TokenId> prompt(1000, 257);
  after.prime(prompt);
  EXPECT_EQ(alone.push(257), "a");
  EXPECT_EQ(after.push(257), " a");
  EXPECT_EQ(t->token_bytes(257), " a");
  EXPECT_EQ(t->token_bytes(0xEA + 1), "\xEA");
  EXPECT_EQ(t->decode(std::vector<TokenId>{0, 257, 100000, -5}, true), "a");
  EXPECT_EQ(t->decode(std::vector<TokenId>{0, 257}, false), "<unk> a");
}

}  // namespace
}  // namespace xgen::text
