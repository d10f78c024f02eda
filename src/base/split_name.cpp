#include "base/split_name.h"

#include <algorithm>

namespace xgen {
namespace {

constexpr std::size_t kDigits = 5;
constexpr std::string_view kOf = "-of-";
constexpr std::size_t kTail = 1 + kDigits + kOf.size() + kDigits;

// Nothing for what is no number.
std::optional<int> number_of(std::string_view digits) {
  int value = 0;
  for (const char c : digits) {
    if (c < '0' || c > '9') return {};
    value = value * 10 + (c - '0');
  }
  return value;
}

std::string five(int number) {
  const std::string digits = std::to_string(number);
  return std::string(kDigits - digits.size(), '0') + digits;
}

}  // namespace

std::optional<SplitName> split_name(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  if (dot == std::string_view::npos || dot <= kTail) return {};
  const std::string_view tail = name.substr(dot - kTail, kTail);
  const auto number = number_of(tail.substr(1, kDigits));
  const auto count = number_of(tail.substr(kTail - kDigits));
  if (tail[0] != '-' || tail.substr(1 + kDigits, kOf.size()) != kOf || !number || !count) return {};
  if (*number < 1 || *number > *count || *count > kMostParts) return {};
  return SplitName{std::string(name.substr(0, dot - kTail)), *number, *count, std::string(name.substr(dot))};
}

std::vector<std::string> all_parts(const std::string& name) {
  const std::optional<SplitName> part = split_name(name);
  if (!part) return {name};
  std::vector<std::string> names;
  for (int i = 1; i <= part->count; ++i)
    names.push_back(part->stem + "-" + five(i) + std::string(kOf) + five(part->count) + part->ending);
  return names;
}

}  // namespace xgen
