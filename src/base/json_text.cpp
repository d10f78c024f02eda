#include "base/json_text.h"

#include <array>
#include <charconv>
#include <cmath>

#include "base/utf8.h"

namespace xgen {
namespace {

// 0: as it is; 1: needs an escape; 2: outside ASCII; 3: the same, and may begin a control character (U+0080 to U+009F).
constexpr std::array<unsigned char, 256> make_classes() {
  std::array<unsigned char, 256> classes{};
  for (std::size_t i = 0; i < 256; ++i)
    classes[i] = i < 0x20 || i == '"' || i == '\\' || i == 0x7f ? 1 : i == 0xc2 ? 3 : i >= 0x80 ? 2 : 0;
  return classes;
}
constexpr auto kClasses = make_classes();

void append_escape(std::string& out, unsigned char c) {
  switch (c) {
    case '"':
      out += "\\\"";
      break;
    case '\\':
      out += "\\\\";
      break;
    case '\n':
      out += "\\n";
      break;
    case '\r':
      out += "\\r";
      break;
    case '\t':
      out += "\\t";
      break;
    default: {
      constexpr char kHex[] = "0123456789abcdef";
      const char code[] = {'\\', 'u', '0', '0', kHex[c >> 4], kHex[c & 15]};
      out.append(code, sizeof(code));
    }
  }
}

}  // namespace

void append_json_escaped(std::string& out, std::string_view text) {
  std::string fixed;
  for (const char c : text) {
    if (kClasses[static_cast<unsigned char>(c)] < 2) continue;
    if (!is_valid_utf8(text)) {
      fixed = replace_invalid_utf8(text);
      text = fixed;
    }
    break;
  }
  std::size_t begin = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    auto c = static_cast<unsigned char>(text[i]);
    if (kClasses[c] != 1 && kClasses[c] != 3) continue;
    const std::size_t from = i;
    if (kClasses[c] == 3) {
      c = static_cast<unsigned char>(text[i + 1]);  // the text is valid: there is one
      if (c >= 0xa0) continue;
      ++i;
    }
    out.append(text, begin, from - begin);
    append_escape(out, c);
    begin = i + 1;
  }
  out.append(text, begin);
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  append_json_escaped(out, text);
  out += '"';
}

void append_json_int(std::string& out, std::int64_t value) {
  char text[24];
  out.append(text, static_cast<std::size_t>(std::to_chars(text, text + sizeof(text), value).ptr - text));
}

void append_json_float(std::string& out, float value) {
  if (!std::isfinite(value)) value = -9999;
  char text[48];
  out.append(text, static_cast<std::size_t>(std::to_chars(text, text + sizeof(text), value).ptr - text));
}

}  // namespace xgen
