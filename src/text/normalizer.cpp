#include "text/normalizer.h"

#include <algorithm>

#include "base/utf8.h"
#include "text/token_model.h"
#include "text/unicode.h"

namespace xgen::text {
namespace {

using Kind = NormalizerStep::Kind;
constexpr std::string_view kMetaspace = "\xE2\x96\x81";

// Rewrites each character by fn(out, c).
template <class F>
void map_chars(std::string& text, F&& fn) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) fn(out, next_code_point(text, i));
  text = std::move(out);
}

void replace_all(std::string& text, std::string_view pattern, std::string_view content) {
  if (pattern.empty()) return;
  std::size_t at = text.find(pattern);
  if (at == std::string::npos) return;
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  std::size_t from = 0;
  for (; at != std::string::npos; at = text.find(pattern, from)) {
    out.append(text, from, at - from).append(content);
    from = at + pattern.size();
  }
  text = std::move(out.append(text, from));
}

void strip(std::string& text, bool left, bool right) {
  std::size_t begin = 0;
  std::size_t end = text.size();
  while (left && begin < end) {
    std::size_t next = begin;
    if (!is_white_space(next_code_point(text, next))) break;
    begin = next;
  }
  while (right && end > begin) {
    std::size_t last = end - 1;
    while (last > begin && (static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
    std::size_t pos = last;
    if (!is_white_space(next_code_point(text, pos))) break;
    end = last;
  }
  text = text.substr(begin, end - begin);
}

void lowercase(std::string& text) {
  map_chars(text, [](std::string& out, char32_t c) { append_lower(out, c); });
}

// BERT's BasicTokenizer, without its splitting.
void bert(std::string& text, const NormalizerStep& step) {
  if (step.clean_text) {
    map_chars(text, [](std::string& out, char32_t c) {
      const bool line = c == '\t' || c == '\n' || c == '\r';
      if (c == 0 || c == 0xFFFD || (!line && is_other(c))) return;
      if (line || is_white_space(c)) {
        out += ' ';
      } else {
        append_utf8(out, c);
      }
    });
  }
  if (step.handle_chinese_chars) {
    map_chars(text, [](std::string& out, char32_t c) {
      if (is_cjk(c)) out += ' ';
      append_utf8(out, c);
      if (is_cjk(c)) out += ' ';
    });
  }
  if (step.strip_accents) {
    text = to_normal_form(text, NormalForm::nfd);
    map_chars(text, [](std::string& out, char32_t c) {
      if (!is_nonspacing_mark(c)) append_utf8(out, c);
    });
  }
  if (step.lowercase) lowercase(text);
}

// Controls that neural translation corpora drop, and what counts as a blank there.
void nmt(std::string& text) {
  map_chars(text, [](std::string& out, char32_t c) {
    if ((c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F) return;
    const bool blank = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
                       c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
    if (blank) {
      out += ' ';
    } else {
      append_utf8(out, c);
    }
  });
}

// The whole of a short grapheme goes by the first entry that begins it; else each character by its own.
void precompiled(std::string& text, const Charsmap& map) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t n = grapheme_length(text, i);
    const std::string_view grapheme = std::string_view(text).substr(i, n);
    i += n;
    if (n < 6) {
      const Charsmap::Match match = map.shortest(grapheme);
      if (match.length > 0) {
        out += match.replacement;
        continue;
      }
    }
    for (std::size_t k = 0; k < n;) {
      const std::size_t length = std::min(utf8_length(grapheme[k]), n - k);
      const std::string_view c = grapheme.substr(k, length);
      const Charsmap::Match match = map.shortest(c);
      out += match.length > 0 ? match.replacement : c;
      k += length;
    }
  }
  text = std::move(out);
}

void sentencepiece(std::string& text, const NormalizerStep& step) {
  const std::string_view blank = step.escape_whitespaces ? kMetaspace : std::string_view(" ");
  std::size_t pos = 0;
  const auto next = [&]() -> std::string_view {
    const std::string_view rest = std::string_view(text).substr(pos);
    if (step.untouched && step.untouched->may_begin(rest[0])) {
      const ByteTrie::Match match = step.untouched->longest(rest, 0);
      if (match.value >= 0) {
        pos += match.end;
        return rest.substr(0, match.end);
      }
    }
    if (step.charsmap) {
      const Charsmap::Match match = step.charsmap->longest(rest);
      if (match.length > 0) {
        pos += match.length;
        return match.replacement;
      }
    }
    const std::size_t n = std::min(utf8_length(rest[0]), rest.size());
    pos += n;
    return rest.substr(0, n);
  };
  if (step.remove_extra_whitespaces) {
    while (pos < text.size()) {
      const std::size_t before = pos;
      if (next() != " ") {
        pos = before;
        break;
      }
    }
  }
  std::string out;
  if (pos < text.size()) {
    out.reserve((text.size() - pos) * 3 / 2 + 8);
    if (step.add_dummy_prefix) out += blank;
    bool after_blank = step.remove_extra_whitespaces;
    while (pos < text.size()) {
      std::string_view piece = next();
      while (after_blank && piece.starts_with(' ')) piece.remove_prefix(1);
      if (piece.empty()) continue;
      for (const char c : piece) {
        if (c == ' ') {
          out += blank;
        } else {
          out += c;
        }
      }
      after_blank = step.remove_extra_whitespaces && piece.ends_with(' ');
    }
    if (step.remove_extra_whitespaces) {
      while (std::string_view(out).ends_with(blank)) out.resize(out.size() - blank.size());
    }
  }
  text = std::move(out);
}

}  // namespace

Result<Charsmap> Charsmap::parse(std::string_view blob) {
  const auto word = [&](std::size_t i) {
    std::uint32_t value = 0;
    for (std::size_t k = 0; k < 4; ++k) {
      value |= static_cast<std::uint32_t>(static_cast<unsigned char>(blob[i + k])) << (8 * k);
    }
    return value;
  };
  if (blob.size() < 4) return make_error(ErrorCode::invalid_argument, "precompiled_charsmap is cut short");
  const std::size_t trie = word(0);
  if (trie % 4 != 0 || trie > blob.size() - 4) {
    return make_error(ErrorCode::invalid_argument,
                      "precompiled_charsmap: a trie of " + std::to_string(trie) + " bytes does not fit");
  }
  Charsmap map;
  map.units_.resize(trie / 4);
  for (std::size_t i = 0; i < map.units_.size(); ++i) map.units_[i] = word(4 + 4 * i);
  map.replacements_ = blob.substr(4 + trie);
  if (!is_valid_utf8(map.replacements_)) {
    return make_error(ErrorCode::invalid_argument, "precompiled_charsmap: the replacements are not UTF-8");
  }
  return map;
}

// Layout of a unit (Darts-clone): bits 0-7 label with bit 31, bit 8 has_leaf, bits 10-30 offset, bit 9 offset << 8.
Charsmap::Match Charsmap::find(std::string_view text, bool longest) const {
  Match best;
  if (units_.empty()) return best;
  const auto offset = [](std::uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  std::size_t node = offset(units_[0]);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c == 0) break;
    node ^= c;
    if (node >= units_.size()) break;
    const std::uint32_t unit = units_[node];
    if ((unit & 0x800000FFu) != c) break;
    node ^= offset(unit);
    if (node >= units_.size()) break;
    if ((unit >> 8) & 1) {
      const std::size_t at = units_[node] & 0x7FFFFFFFu;
      if (at > replacements_.size()) break;
      const std::string_view rest = std::string_view(replacements_).substr(at);
      const std::string_view replacement = rest.substr(0, rest.find('\0'));
      // An offset into the middle of a character would make invalid text.
      if (!replacement.empty() && (static_cast<unsigned char>(replacement[0]) & 0xC0) == 0x80) break;
      best = {i + 1, replacement};
      if (!longest) break;
    }
  }
  // A match that ends inside a character is none, whatever the file says.
  if (best.length < text.size() && best.length > 0 && (static_cast<unsigned char>(text[best.length]) & 0xC0) == 0x80) {
    return {};
  }
  return best;
}

Status Normalizer::apply(std::string& text) const {
  for (const NormalizerStep& step : steps) {
    if (text.empty()) return {};
    switch (step.kind) {
      case Kind::nfc:
        text = to_normal_form(text, NormalForm::nfc);
        break;
      case Kind::nfd:
        text = to_normal_form(text, NormalForm::nfd);
        break;
      case Kind::nfkc:
        text = to_normal_form(text, NormalForm::nfkc);
        break;
      case Kind::nfkd:
        text = to_normal_form(text, NormalForm::nfkd);
        break;
      case Kind::lowercase:
        lowercase(text);
        break;
      case Kind::strip:
        strip(text, step.left, step.right);
        break;
      case Kind::strip_accents:
        map_chars(text, [](std::string& out, char32_t c) {
          if (!is_mark(c)) append_utf8(out, c);
        });
        break;
      case Kind::replace:
        replace_all(text, step.pattern, step.content);
        break;
      case Kind::replace_regex: {
        std::vector<Span> matches;
        if (Status s = step.regex->find_all(text, matches); !s) return s;
        std::string out;
        std::size_t from = 0;
        for (const Span& m : matches) {
          out.append(text, from, m.begin - from).append(step.content);
          from = m.end;
        }
        text = std::move(out.append(text, from));
        break;
      }
      case Kind::prepend:
        text.insert(0, step.content);
        break;
      case Kind::append:
        text += step.content;
        break;
      case Kind::precompiled:
        precompiled(text, *step.charsmap);
        break;
      case Kind::sentencepiece:
        sentencepiece(text, step);
        break;
      case Kind::bert:
        bert(text, step);
        break;
      case Kind::nmt:
        nmt(text);
        break;
      case Kind::byte_level: {
        std::string out;
        append_byte_level(out, text);
        text = std::move(out);
        break;
      }
    }
  }
  return {};
}

}  // namespace xgen::text
