// Python's view of text: code points over UTF-8, character classes and full case mapping.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace xgen::text::jinja {

// The code point at byte `at` and the bytes it takes; a bad byte counts as one code point of its own value.
struct CodePoint {
  char32_t value = 0;
  std::size_t size = 0;
};
CodePoint decode_at(std::string_view text, std::size_t at);
void append_utf8(std::string& out, char32_t code_point);
std::vector<char32_t> decode(std::string_view text);
std::string encode(const char32_t* begin, const char32_t* end);

bool is_ascii(std::string_view text);
std::size_t count_code_points(std::string_view text);
// Byte offset of code point `index` (text.size() if there are fewer).
std::size_t byte_offset(std::string_view text, std::size_t index);

bool is_space(char32_t c);       // str.isspace
bool is_line_break(char32_t c);  // where str.splitlines splits (besides \r\n)
bool is_alpha(char32_t c);
bool is_decimal(char32_t c);
bool is_digit(char32_t c);
bool is_numeric(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_title(char32_t c);
bool is_cased(char32_t c);
bool is_printable(char32_t c);
bool is_identifier_start(char32_t c);
bool is_identifier_part(char32_t c);

std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
std::string casefold(std::string_view text);
std::string capitalize(std::string_view text);  // str.capitalize
std::string titlecase(std::string_view text);   // str.title
std::string swapcase(std::string_view text);

std::string_view strip_left(std::string_view text);
std::string_view strip_right(std::string_view text);
inline std::string_view strip(std::string_view text) { return strip_left(strip_right(text)); }

}  // namespace xgen::text::jinja
