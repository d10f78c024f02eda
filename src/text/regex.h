// Regex: the regular expressions of tokenizer files, over PCRE2 (UTF, Unicode properties, JIT).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace xgen::text {

struct Span {
  std::size_t begin = 0, end = 0;  // bytes
};

// Whose rules the pattern was written for; it is translated to PCRE2's.
enum class RegexFlavour : std::uint8_t {
  oniguruma,  // Hugging Face's "Regex": ^ and $ at every line, {n,m}+ is not possessive
  rust,       // regex / fancy-regex (tiktoken, llama.cpp's lists): $ only at the very end, {n,m}+ is possessive
};

// Immutable and thread-safe.
class Regex {
 public:
  // Errors: invalid_argument with the pattern and PCRE2's reason.
  static Result<Regex> compile(std::string_view pattern, RegexFlavour flavour);

  // Appends all matches, left to right, empty ones included. Precondition: `text` is valid UTF-8. Errors: too_large
  // where the matcher's limits are reached (a pattern that backtracks without end).
  Status find_all(std::string_view text, std::vector<Span>& matches) const;

 private:
  std::shared_ptr<void> code_;
};

}  // namespace xgen::text
