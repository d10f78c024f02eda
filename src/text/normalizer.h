// Normalizer: the rewriting of a text before it is cut into words.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/byte_trie.h"
#include "text/regex.h"

namespace xgen::text {

// SentencePiece's compiled character map: a double-array trie from text to its replacement.
class Charsmap {
 public:
  // `blob`: u32 size of the trie in bytes, the trie (u32 units), the replacements (each ends in NUL); little endian.
  // Errors: invalid_argument.
  static Result<Charsmap> parse(std::string_view blob);

  struct Match {
    std::size_t length = 0;  // bytes of text matched; 0 = none
    std::string_view replacement;
  };
  Match longest(std::string_view text) const { return find(text, true); }
  Match shortest(std::string_view text) const { return find(text, false); }

 private:
  Match find(std::string_view text, bool longest) const;
  std::vector<std::uint32_t> units_;
  std::string replacements_;
};

struct NormalizerStep {
  enum class Kind : std::uint8_t {
    nfc,
    nfd,
    nfkc,
    nfkd,
    lowercase,
    strip,
    strip_accents,
    replace,        // pattern -> content
    replace_regex,  // regex -> content
    prepend,        // content, unless the text is empty
    append,
    precompiled,    // charsmap, as Hugging Face applies it: by grapheme
    sentencepiece,  // charsmap and blanks, as SentencePiece's own normalizer applies them
    bert,
    nmt,
    byte_level,
  };
  Kind kind = Kind::nfc;
  std::string pattern, content;
  std::optional<Regex> regex;
  std::shared_ptr<const Charsmap> charsmap;  // may be null for sentencepiece
  bool left = true, right = true;            // strip
  bool clean_text = true, handle_chinese_chars = true, strip_accents = true, lowercase = true;  // bert
  bool add_dummy_prefix = true, remove_extra_whitespaces = true, escape_whitespaces = true;     // sentencepiece
  std::shared_ptr<const ByteTrie> untouched;  // sentencepiece: user-defined pieces, left as they are
};

// Steps in order. Immutable and thread-safe. Errors of apply(): a regular expression's limits.
struct Normalizer {
  std::vector<NormalizerStep> steps;
  Status apply(std::string& text) const;
};

}  // namespace xgen::text
