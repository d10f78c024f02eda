#include "client/lengths.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

namespace xgen::client {
namespace {

// The means of ShareGPT's conversations are those of figure 11 of "Efficient Memory Management for Large Language Model
// Serving with PagedAttention" (Kwon et al., SOSP 2023). The figure shows long tails but gives no other number: the
// deviation is ours. vLLM's own benchmark leaves out samples beyond such bounds.
constexpr double kShareGptInput = 161.31;
constexpr double kShareGptOutput = 337.99;
constexpr double kShareGptSigma = 1.0;
constexpr int kShareGptLow = 4;
constexpr int kShareGptHigh = 1024;

std::optional<int> length_of(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > kMaxLength) return std::nullopt;
  return value;
}

}  // namespace

int Lengths::draw(Random& random, int of_row) const {
  switch (kind) {
    case Kind::fixed:
      return low;
    case Kind::uniform:
      return low + static_cast<int>(random.below(static_cast<std::uint64_t>(high - low) + 1));
    case Kind::log_normal:
      for (;;) {
        const double drawn = std::round(std::exp(std::log(mean) - sigma * sigma / 2 + sigma * random.normal()));
        if (drawn >= low && drawn <= high) return static_cast<int>(drawn);
      }
    case Kind::trace:
      break;
  }
  return of_row;
}

std::string Lengths::text() const {
  switch (kind) {
    case Kind::fixed:
      return std::to_string(low);
    case Kind::uniform:
      return std::to_string(low) + "-" + std::to_string(high);
    case Kind::log_normal:
      return "sharegpt";
    case Kind::trace:
      break;
  }
  return "trace";
}

Result<Lengths> parse_lengths(std::string_view text, bool output) {
  using Kind = Lengths::Kind;
  if (text == "trace") return Lengths{Kind::trace};
  if (text == "sharegpt")
    return Lengths{Kind::log_normal, kShareGptLow, kShareGptHigh, output ? kShareGptOutput : kShareGptInput,
                   kShareGptSigma};
  const std::size_t dash = text.find('-');
  const auto low = length_of(text.substr(0, dash));
  const auto high = dash == std::string_view::npos ? low : length_of(text.substr(dash + 1));
  if (!low || !high || *low > *high)
    return make_error(ErrorCode::invalid_argument, "'" + std::string(text) + "': expected a number of tokens (1 to " +
                                                       std::to_string(kMaxLength) +
                                                       "), two as in 64-256, sharegpt or trace");
  return Lengths{*low == *high ? Kind::fixed : Kind::uniform, *low, *high};
}

}  // namespace xgen::client
