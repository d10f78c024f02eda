#include "base/utf8.h"

namespace xgen {
namespace {

// Looks at the sequence that begins at text[i]. Returns its length if complete and valid; otherwise 0, with `bad` the
// length of the maximal valid prefix (>= 1) and `cut` true if only the end of the text is missing.
std::size_t step(std::string_view text, std::size_t i, std::size_t& bad, bool& cut) {
  const auto byte = [&](std::size_t k) { return static_cast<unsigned char>(text[k]); };
  const unsigned char lead = byte(i);
  bad = 1;
  cut = false;
  if (lead < 0x80) return 1;
  std::size_t length = 0;
  unsigned char low = 0x80, high = 0xBF;  // allowed range of the second byte (Unicode, table 3-7)
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  for (std::size_t k = 1; k < length; ++k) {
    if (i + k >= text.size()) {
      bad = k;
      cut = true;
      return 0;
    }
    const unsigned char next = byte(i + k);
    if (next < low || next > high) {
      bad = k;
      return 0;
    }
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

}  // namespace

std::size_t find_invalid_utf8(std::string_view text) {
  std::size_t bad = 0;
  bool cut = false;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t n = step(text, i, bad, cut);
    if (n == 0) return i;
    i += n;
  }
  return std::string_view::npos;
}

bool is_valid_utf8(std::string_view text) { return find_invalid_utf8(text) == std::string_view::npos; }

std::size_t complete_utf8_prefix(std::string_view text) {
  // Only the last three bytes can belong to an unfinished sequence.
  const std::size_t from = text.size() > 3 ? text.size() - 3 : 0;
  std::size_t bad = 0;
  bool cut = false;
  for (std::size_t i = text.size(); i-- > from;) {
    const auto c = static_cast<unsigned char>(text[i]);
    if ((c & 0xC0) == 0x80) continue;  // a continuation byte: its lead is further left
    if (step(text, i, bad, cut) == 0 && cut && i + bad == text.size()) return i;
    break;
  }
  return text.size();
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size() + 8);
  std::size_t bad = 0;
  bool cut = false;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t n = step(text, i, bad, cut);
    if (n == 0) {
      out += "\xEF\xBF\xBD";
      i += bad;
    } else {
      out.append(text, i, n);
      i += n;
    }
  }
  return out;
}

}  // namespace xgen
