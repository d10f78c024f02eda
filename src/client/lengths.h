// Lengths: how many tokens the prompts have and how many are asked for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "client/random.h"
#include "client/trace.h"

namespace xgen::client {

struct Lengths {
  enum class Kind : std::uint8_t { fixed, uniform, log_normal, trace } kind = Kind::fixed;
  int low = 1;       // fixed: the length; uniform and log_normal: the bounds
  int high = 1;      // inclusive
  double mean = 0;   // log_normal, before the bounds
  double sigma = 0;  // of the logarithm

  // One length; `of_row` is what the trace has.
  int draw(Random& random, int of_row) const;
  // As it was written.
  std::string text() const;
};

inline constexpr int kMaxLength = 1'000'000;  // tokens

// "128", "64-256" (each as often), "sharegpt", "trace". Which parameters sharegpt has depends on `output`. Errors:
// invalid_argument, without the flag's name.
Result<Lengths> parse_lengths(std::string_view text, bool output);

}  // namespace xgen::client
