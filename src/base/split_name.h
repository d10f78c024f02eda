// Names of models whose file is split into parts: "NAME-00001-of-00003.gguf", as llama.cpp's gguf-split and the Hub's
// safetensors shards have them.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace xgen {

struct SplitName {
  std::string stem;    // "NAME", with the folders before it
  int number = 0;      // 1 to count
  int count = 0;       // at most kMostParts
  std::string ending;  // ".gguf"
};
inline constexpr int kMostParts = 1000;

// Nothing for a name that is no part's.
std::optional<SplitName> split_name(std::string_view name);

// The names of all parts in order, where `name` is one of them; else `name` alone.
std::vector<std::string> all_parts(const std::string& name);

}  // namespace xgen
