// StopMatcher: finds the first of several stop strings in text that arrives in pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace xgen::text {

// Holds back only the longest end of the text that may still become a stop string. The first match is the one that ends
// first; of those that end together, the longest. After a match the matcher is done: push() gives nothing more.
// Not thread-safe; one per choice of one request. Aho-Corasick over the strings' bytes: O(1) amortised per byte.
class StopMatcher {
 public:
  struct Output {
    std::string text;                    // safe to send
    std::optional<std::size_t> matched;  // index into the stop strings, when one is complete
  };

  // Empty stop strings never match. The one that matches is no part of the text given out.
  explicit StopMatcher(std::vector<std::string> stop = {});

  Output push(std::string_view text);
  // What was held back, once no text follows.
  std::string flush();

  bool empty() const { return nodes_.size() <= 1; }  // no stop strings: push() passes the text through
  bool done() const { return done_; }

 private:
  struct Node {
    std::vector<std::pair<unsigned char, std::int32_t>> next;  // sorted by byte
    std::int32_t fail = 0;
    std::int32_t depth = 0;
    std::int32_t match = -1;  // longest stop string that ends here
  };
  std::int32_t step(std::int32_t node, unsigned char byte) const;

  std::vector<std::string> stop_;
  std::vector<Node> nodes_;
  std::string held_;
  std::int32_t node_ = 0;
  bool done_ = false;
};

}  // namespace xgen::text
