// ByteTrie: finds which of many strings begin at a place of a text.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>
#include <vector>

#include "text/vocab.h"

namespace xgen::text {

// The edges lie in one open-addressing table, so building costs one probe per byte and no allocation per node.
class ByteTrie {
 public:
  ByteTrie() : values_(1, -1) {}

  // `value` >= 0. A second value for a string replaces the first. Empty strings are ignored.
  void insert(std::string_view text, std::int32_t value) {
    if (text.empty()) return;
    leads_[static_cast<unsigned char>(text[0]) >> 6] |= std::uint64_t{1} << (static_cast<unsigned char>(text[0]) & 63);
    std::int32_t node = 0;
    for (const char c : text) {
      if (values_.size() * 2 >= edges_.size()) grow();
      Edge& edge = edges_[slot(key(node, c))];
      if (edge.child == 0) {
        edge = {key(node, c), static_cast<std::int32_t>(values_.size())};
        values_.push_back(-1);
      }
      node = edge.child;
    }
    values_[static_cast<std::size_t>(node)] = value;
  }
  void reserve(std::size_t nodes) {
    values_.reserve(nodes);
    while (edges_.size() < nodes * 2) grow();
  }

  bool empty() const { return values_.size() == 1; }
  bool may_begin(char lead) const {
    const auto c = static_cast<unsigned char>(lead);
    return (leads_[c >> 6] >> (c & 63)) & 1;
  }

  // Calls found(end, value) for every string that begins at text[begin], shortest first.
  template <class F>
  void for_each_prefix(std::string_view text, std::size_t begin, F&& found) const {
    if (edges_.empty()) return;
    std::int32_t node = 0;
    for (std::size_t i = begin; i < text.size();) {
      const Edge& edge = edges_[slot(key(node, text[i]))];
      if (edge.child == 0) return;
      node = edge.child;
      ++i;
      const std::int32_t value = values_[static_cast<std::size_t>(node)];
      if (value >= 0) found(i, value);
    }
  }

  struct Match {
    std::size_t end = 0;
    std::int32_t value = -1;  // -1 = none
  };
  Match longest(std::string_view text, std::size_t begin) const {
    Match match;
    for_each_prefix(text, begin, [&](std::size_t end, std::int32_t value) { match = {end, value}; });
    return match;
  }

 private:
  struct Edge {
    std::uint64_t key = 0;
    std::int32_t child = 0;  // 0 = unused slot (the root is nobody's child)
  };
  static std::uint64_t key(std::int32_t node, char byte) {
    return (static_cast<std::uint64_t>(node) << 8) | static_cast<unsigned char>(byte);
  }
  std::size_t slot(std::uint64_t k) const {
    const std::size_t mask = edges_.size() - 1;
    std::uint64_t h = k * 0x9E3779B97F4A7C15ull;
    h ^= h >> 32;
    std::size_t i = h & mask;
    while (edges_[i].child != 0 && edges_[i].key != k) i = (i + 1) & mask;
    return i;
  }
  void grow() {
    std::vector<Edge> old(edges_.empty() ? 64 : edges_.size() * 2);
    old.swap(edges_);
    for (const Edge& edge : old) {
      if (edge.child != 0) edges_[slot(edge.key)] = edge;
    }
  }

  std::uint64_t leads_[4] = {};
  std::vector<Edge> edges_;
  std::vector<std::int32_t> values_;  // per node: -1 = no string ends here
};

}  // namespace xgen::text
