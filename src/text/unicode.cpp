#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

namespace xgen::text {
namespace {

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

bool in_range(char32_t c, char32_t low, char32_t high) { return c >= low && c <= high; }

}  // namespace

std::size_t utf8_length(char lead) {
  const auto c = static_cast<unsigned char>(lead);
  if (c >= 0xF0) return 4;
  if (c >= 0xE0) return 3;
  if (c >= 0xC0) return 2;
  return 1;
}

char32_t next_code_point(std::string_view text, std::size_t& pos) {
  const auto byte = [&](std::size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[i])); };
  const std::size_t length = utf8_length(text[pos]);
  if (length == 1 || pos + length > text.size()) return byte(pos++);
  char32_t c = byte(pos) & (0xFFu >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) c = (c << 6) | (byte(pos + i) & 0x3F);
  pos += length;
  return c;
}

void append_utf8(std::string& out, char32_t c) {
  utf8proc_uint8_t buffer[4];
  const auto n = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), buffer);
  out.append(reinterpret_cast<const char*>(buffer), static_cast<std::size_t>(n));
}

bool is_white_space(char32_t c) {
  return in_range(c, 9, 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || in_range(c, 0x2000, 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_ascii_punctuation(char32_t c) {
  return in_range(c, '!', '/') || in_range(c, ':', '@') || in_range(c, '[', '`') || in_range(c, '{', '~');
}

bool is_punctuation(char32_t c) {
  const auto k = category(c);
  return k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO;
}

bool is_numeric(char32_t c) {
  const auto k = category(c);
  return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}

bool is_mark(char32_t c) {
  const auto k = category(c);
  return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_MC || k == UTF8PROC_CATEGORY_ME;
}

bool is_nonspacing_mark(char32_t c) { return category(c) == UTF8PROC_CATEGORY_MN; }

bool is_other(char32_t c) {
  const auto k = category(c);
  return k == UTF8PROC_CATEGORY_CC || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_CS ||
         k == UTF8PROC_CATEGORY_CO;
}

bool is_word(char32_t c) {
  const auto k = category(c);
  if (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO) return true;
  if (is_mark(c) || k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_PC) return true;
  // Join_Control, and the circled and squared letters (alphabetic, though of category So).
  return c == 0x200C || c == 0x200D || in_range(c, 0x24B6, 0x24E9) || in_range(c, 0x1F130, 0x1F149) ||
         in_range(c, 0x1F150, 0x1F169) || in_range(c, 0x1F170, 0x1F189);
}

bool is_cjk(char32_t c) {
  return in_range(c, 0x4E00, 0x9FFF) || in_range(c, 0x3400, 0x4DBF) || in_range(c, 0x20000, 0x2A6DF) ||
         in_range(c, 0x2A700, 0x2B73F) || in_range(c, 0x2B740, 0x2B81F) || in_range(c, 0x2B920, 0x2CEAF) ||
         in_range(c, 0xF900, 0xFAFF) || in_range(c, 0x2F800, 0x2FA1F);
}

void append_lower(std::string& out, char32_t c) {
  if (c == 0x130) {
    out += "i\xCC\x87";  // the only character whose lower case is two
    return;
  }
  append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

std::string to_normal_form(std::string_view text, NormalForm form) {
  const bool compose = form == NormalForm::nfc || form == NormalForm::nfkc;
  // Below the first combining mark NFC changes nothing; below U+0080 no form does.
  const unsigned char last_plain = form == NormalForm::nfc ? 0xCB : 0x7F;
  if (std::all_of(text.begin(), text.end(), [&](char c) { return static_cast<unsigned char>(c) <= last_plain; })) {
    return std::string(text);
  }
  int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
  if (form == NormalForm::nfkc || form == NormalForm::nfkd) options |= UTF8PROC_COMPAT;
  std::vector<utf8proc_int32_t> chars;
  chars.reserve(text.size() + 16);
  int boundclass = 0;
  for (std::size_t i = 0; i < text.size();) {
    const auto c = static_cast<utf8proc_int32_t>(next_code_point(text, i));
    utf8proc_int32_t parts[32];  // the longest decomposition has 18
    const auto n = utf8proc_decompose_char(c, parts, 32, static_cast<utf8proc_option_t>(options), &boundclass);
    if (n < 0 || n > 32) {
      chars.push_back(c);
    } else {
      chars.insert(chars.end(), parts, parts + n);
    }
  }
  const auto ccc = [](utf8proc_int32_t c) { return c < 0x300 ? 0 : int{utf8proc_get_property(c)->combining_class}; };
  for (std::size_t i = 0; i < chars.size();) {
    std::size_t end = i;
    while (end < chars.size() && ccc(chars[end]) != 0) ++end;
    if (end - i > 1) {
      std::stable_sort(chars.begin() + static_cast<std::ptrdiff_t>(i), chars.begin() + static_cast<std::ptrdiff_t>(end),
                       [&](auto a, auto b) { return ccc(a) < ccc(b); });
    }
    i = end + 1;
  }
  auto count = static_cast<utf8proc_ssize_t>(chars.size());
  if (compose) {
    const int how = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    const auto n = utf8proc_normalize_utf32(chars.data(), count, static_cast<utf8proc_option_t>(how));
    if (n >= 0) count = n;
  }
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  for (utf8proc_ssize_t i = 0; i < count; ++i)
    append_utf8(out, static_cast<char32_t>(chars[static_cast<std::size_t>(i)]));
  return out;
}

std::size_t grapheme_length(std::string_view text, std::size_t pos) {
  std::size_t i = pos;
  auto left = static_cast<utf8proc_int32_t>(next_code_point(text, i));
  utf8proc_int32_t state = 0;
  while (i < text.size()) {
    std::size_t after = i;
    const auto right = static_cast<utf8proc_int32_t>(next_code_point(text, after));
    if (utf8proc_grapheme_break_stateful(left, right, &state)) break;
    left = right;
    i = after;
  }
  return i - pos;
}

}  // namespace xgen::text
