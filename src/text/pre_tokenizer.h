// PreTokenizer: cuts a normalized text into the words that the model sees one by one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/regex.h"

namespace xgen::text {

// What becomes of a delimiter that a split finds.
enum class SplitBehaviour : std::uint8_t { removed, isolated, merged_with_previous, merged_with_next, contiguous };

enum class PrependScheme : std::uint8_t { always, never, first };

struct PreTokenizerStep {
  enum class Kind : std::uint8_t {
    byte_level,  // GPT-2's: optional prefix space, optional regex, then bytes as printable characters
    split_regex,
    split_string,  // pattern
    whitespace,    // blanks removed
    bert,          // blanks removed, punctuation on its own
    metaspace,
    punctuation,
    digits,
    unicode_scripts,
    fixed_length,  // every `length` characters
  };
  Kind kind = Kind::split_regex;
  SplitBehaviour behaviour = SplitBehaviour::isolated;
  bool invert = false;                            // the matches are the words, the rest the delimiters
  std::string pattern;                            // split_string; metaspace's replacement
  std::optional<Regex> regex;                     // split_regex; byte_level with use_regex; unicode_scripts
  bool add_prefix_space = false;                  // byte_level
  bool map_bytes = true;                          // byte_level: false where the model takes raw bytes
  PrependScheme prepend = PrependScheme::always;  // metaspace
  bool split = true;                              // metaspace
  bool individual = false;                        // digits
  std::size_t length = 0;                         // fixed_length, >= 1
};

// The words of one text: spans of `text`, which the steps may rewrite.
struct Words {
  std::string text;
  std::vector<Span> spans;
  // Working memory
  std::string spare_text;
  std::vector<Span> spare_spans, matches;
};

// Steps in order. Immutable and thread-safe.
struct PreTokenizer {
  std::vector<PreTokenizerStep> steps;
  // Reads words.text and fills words.spans (none of them empty). at_start: the text is the beginning of the whole
  // input. Errors: a regular expression's limits.
  Status apply(Words& words, bool at_start) const;
};

// GPT-2's word pattern, which "ByteLevel" implies.
Result<Regex> gpt2_regex();
// Runs of one Unicode script each, with the blanks inside and after them; Hiragana and Katakana count as Han.
Result<Regex> script_runs_regex();

}  // namespace xgen::text
