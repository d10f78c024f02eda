#include "text/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace xgen::text {

StopMatcher::StopMatcher(std::vector<std::string> stop) : stop_(std::move(stop)), nodes_(1) {
  for (std::size_t i = 0; i < stop_.size(); ++i) {
    if (stop_[i].empty()) continue;
    std::int32_t node = 0;
    for (const char c : stop_[i]) {
      const auto byte = static_cast<unsigned char>(c);
      auto& next = nodes_[static_cast<std::size_t>(node)].next;
      auto it =
          std::lower_bound(next.begin(), next.end(), byte, [](const auto& e, unsigned char b) { return e.first < b; });
      if (it == next.end() || it->first != byte) {
        const auto fresh = static_cast<std::int32_t>(nodes_.size());
        next.insert(it, {byte, fresh});
        Node child;
        child.depth = nodes_[static_cast<std::size_t>(node)].depth + 1;
        nodes_.push_back(std::move(child));
        node = fresh;
      } else {
        node = it->second;
      }
    }
    Node& end = nodes_[static_cast<std::size_t>(node)];
    if (end.match < 0) end.match = static_cast<std::int32_t>(i);
  }
  // Failure links, breadth first: a node's link is shallower, hence done before it.
  std::vector<std::int32_t> queue{0};
  for (std::size_t head = 0; head < queue.size(); ++head) {
    const std::int32_t node = queue[head];
    for (const auto& [byte, child] : nodes_[static_cast<std::size_t>(node)].next) {
      Node& c = nodes_[static_cast<std::size_t>(child)];
      c.fail = node == 0 ? 0 : step(nodes_[static_cast<std::size_t>(node)].fail, byte);
      if (c.match < 0) c.match = nodes_[static_cast<std::size_t>(c.fail)].match;
      queue.push_back(child);
    }
  }
}

std::int32_t StopMatcher::step(std::int32_t node, unsigned char byte) const {
  for (;;) {
    const Node& n = nodes_[static_cast<std::size_t>(node)];
    const auto it = std::lower_bound(n.next.begin(), n.next.end(), byte,
                                     [](const auto& e, unsigned char b) { return e.first < b; });
    if (it != n.next.end() && it->first == byte) return it->second;
    if (node == 0) return 0;
    node = n.fail;
  }
}

StopMatcher::Output StopMatcher::push(std::string_view text) {
  if (done_) return {};
  if (empty()) return {std::string(text), std::nullopt};
  const std::size_t before = held_.size();
  held_ += text;
  for (std::size_t i = 0; i < text.size(); ++i) {
    node_ = step(node_, static_cast<unsigned char>(text[i]));
    const std::int32_t match = nodes_[static_cast<std::size_t>(node_)].match;
    if (match < 0) continue;
    done_ = true;
    const std::size_t end = before + i + 1;
    const std::size_t length = stop_[static_cast<std::size_t>(match)].size();
    held_.resize(end - length);
    return {std::move(held_), static_cast<std::size_t>(match)};
  }
  const auto depth = static_cast<std::size_t>(nodes_[static_cast<std::size_t>(node_)].depth);
  // Stop strings are whole characters, so what is held back begins at a character's first byte.
  Output out{held_.substr(0, held_.size() - depth), std::nullopt};
  held_.erase(0, held_.size() - depth);
  return out;
}

std::string StopMatcher::flush() {
  node_ = 0;
  return done_ ? std::string() : std::exchange(held_, {});
}

}  // namespace xgen::text
