// How the readers in this room build a Metadata tree. Not for other rooms.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "weights/metadata.h"

namespace xgen::weights {

struct MetadataTree;

struct MetadataNode {
  using Strings = std::vector<std::string_view>;
  using Array = std::vector<MetadataNode>;
  struct Object {
    std::vector<std::string_view> keys;
    std::vector<MetadataNode> values;
  };
  // In the order of Metadata::Kind.
  std::variant<std::monostate, bool, std::int64_t, std::uint64_t, double, std::string_view, NumberArray, Strings, Array,
               Object>
      value;
  const MetadataTree* tree = nullptr;
  const MetadataNode* parent = nullptr;  // null at the root
};

// Owns what the nodes point to, or keeps its owner alive.
struct MetadataTree {
  std::string source;
  std::shared_ptr<const void> file;            // the mapping that views point into
  std::deque<std::string> strings;             // unescaped JSON strings; a deque never moves them
  std::deque<std::vector<std::byte>> numbers;  // packed JSON arrays
  MetadataNode root;
};

class MetadataBuilder {
 public:
  // Sets the links between the nodes and returns the root's handle. The tree must not change any more.
  static Metadata finish(std::shared_ptr<MetadataTree> tree);
};

}  // namespace xgen::weights
