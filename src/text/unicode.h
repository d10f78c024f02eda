// Code points, their classes and the normal forms, over utf8proc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace xgen::text {

// Reads the code point at text[pos] and moves pos past it. Precondition: pos < text.size(), valid UTF-8 (on other bytes
// the value is meaningless, but pos still grows and stays within the text).
char32_t next_code_point(std::string_view text, std::size_t& pos);
// Length of the UTF-8 sequence that `lead` begins; 1 for bytes that begin none.
std::size_t utf8_length(char lead);
void append_utf8(std::string& out, char32_t c);

bool is_white_space(char32_t c);  // property White_Space
bool is_punctuation(char32_t c);  // category P*
bool is_ascii_punctuation(char32_t c);
bool is_numeric(char32_t c);          // category N*
bool is_mark(char32_t c);             // category M*
bool is_nonspacing_mark(char32_t c);  // category Mn
bool is_other(char32_t c);            // category Cc, Cf, Cs or Co: controls, but not the unassigned
bool is_word(char32_t c);             // Unicode's \w: alphabetic, mark, decimal number, connector punctuation
bool is_cjk(char32_t c);              // the ideograph blocks that BERT sets apart
void append_lower(std::string& out, char32_t c);  // full lower case mapping without context

enum class NormalForm : std::uint8_t { nfc, nfd, nfkc, nfkd };
// Linear in the text (runs of combining marks are sorted, not bubbled). Precondition: valid UTF-8.
std::string to_normal_form(std::string_view text, NormalForm form);

// Length in bytes of the first extended grapheme cluster of text[pos..]. Precondition: pos < text.size().
std::size_t grapheme_length(std::string_view text, std::size_t pos);

}  // namespace xgen::text
