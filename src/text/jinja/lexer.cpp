#include "text/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <utility>

#include "text/jinja/error.h"
#include "text/jinja/python.h"
#include "text/jinja/unicode.h"

namespace xgen::text::jinja {
namespace {

// \r\n and \r become \n, and one newline at the very end is dropped (keep_trailing_newline is off).
std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

int count_newlines(std::string_view text) { return static_cast<int>(std::count(text.begin(), text.end(), '\n')); }

bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)), text_(source_) {}

  std::vector<Token> run() {
    while (at_ < text_.size()) root();
    push(TokenType::end, "");
    return std::move(tokens_);
  }

 private:
  struct Close {
    std::size_t begin = 0;  // of the closing tag
    std::size_t end = 0;    // after it and what it trims
    bool found = false;
  };

  void push(TokenType type, std::string text) { tokens_.push_back({type, line_, std::move(text), Value()}); }

  bool starts(std::size_t at, std::string_view what) const { return text_.substr(at, what.size()) == what; }

  std::size_t skip_space(std::size_t at) const {
    while (at < text_.size()) {
      const CodePoint c = decode_at(text_, at);
      if (!is_space(c.value)) break;
      at += c.size;
    }
    return at;
  }

  void advance(std::size_t to) {
    line_ += count_newlines(text_.substr(at_, to - at_));
    if (to > at_) line_starting_ = text_[to - 1] == '\n';
    at_ = to;
  }

  // A tag's end at `at`: "+%}", "-%}" with the whitespace after it, or "%}" with one newline after it (if `trim`).
  Close closing(std::size_t at, std::string_view mark, bool plus, bool trim) const {
    if (plus && text_[at] == '+' && starts(at + 1, mark)) return {at, at + 1 + mark.size(), true};
    if (text_[at] == '-' && starts(at + 1, mark)) return {at, skip_space(at + 1 + mark.size()), true};
    if (starts(at, mark)) {
      std::size_t end = at + mark.size();
      if (trim && end < text_.size() && text_[end] == '\n') ++end;
      return {at, end, true};
    }
    return {};
  }

  // Template data before a tag: `sign` is the tag's '-' or '+' (0 if none).
  void data(std::string_view text, char sign, bool lstrip) {
    std::string_view kept = text;
    if (sign == '-') {
      kept = strip_right(text);
    } else if (sign != '+' && lstrip) {
      const std::size_t newline = text.rfind('\n');
      const std::size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
      if ((begin > 0 || line_starting_) && begin < text.size() && strip_left(text.substr(begin)).empty())
        kept = text.substr(0, begin);
    }
    if (!kept.empty()) push(TokenType::data, std::string(kept));
    advance(at_ + text.size());
  }

  static char sign_at(std::string_view text, std::size_t at) {
    return at < text.size() && (text[at] == '-' || text[at] == '+') ? text[at] : '\0';
  }

  // The end of a "{% raw %}" tag that begins at `at`, or npos.
  std::size_t raw_begin(std::size_t at) const {
    std::size_t i = at + 2;
    if (sign_at(text_, i) != 0) ++i;
    i = skip_space(i);
    if (!starts(i, "raw")) return std::string_view::npos;
    i = skip_space(i + 3);
    if (starts(i, "-%}")) return skip_space(i + 3);
    if (starts(i, "%}")) return i + 2;
    return std::string_view::npos;
  }

  void root() {
    std::size_t tag = at_;
    for (;; ++tag) {
      tag = text_.find('{', tag);
      if (tag == std::string_view::npos || tag + 1 >= text_.size()) {
        push(TokenType::data, std::string(text_.substr(at_)));
        advance(text_.size());
        return;
      }
      const char kind = text_[tag + 1];
      if (kind == '{' || kind == '%' || kind == '#') break;
    }
    const char kind = text_[tag + 1];
    const char sign = sign_at(text_, tag + 2);
    data(text_.substr(at_, tag - at_), sign, kind != '{');
    if (kind == '%') {
      if (const std::size_t end = raw_begin(tag); end != std::string_view::npos) {
        advance(end);
        raw();
        return;
      }
    }
    const std::size_t body = tag + 2 + (sign != 0 ? 1 : 0);
    if (kind == '#') {
      advance(body);
      comment();
    } else {
      push(kind == '{' ? TokenType::variable_begin : TokenType::block_begin, "");
      advance(body);
      expression(kind == '{');
    }
  }

  void comment() {
    for (std::size_t i = at_; i < text_.size(); ++i) {
      const Close close = closing(i, "#}", true, true);
      if (!close.found) continue;
      advance(close.end);
      return;
    }
    fail_syntax("Missing end of comment tag", line_);
  }

  void raw() {
    for (std::size_t tag = text_.find("{%", at_); tag != std::string_view::npos; tag = text_.find("{%", tag + 1)) {
      std::size_t i = tag + 2;
      const char sign = sign_at(text_, i);
      if (sign != 0) ++i;
      i = skip_space(i);
      if (!starts(i, "endraw")) continue;
      i = skip_space(i + 6);
      if (i >= text_.size()) break;
      const Close close = closing(i, "%}", true, true);
      if (!close.found) continue;
      data(text_.substr(at_, tag - at_), sign, true);
      advance(close.end);
      return;
    }
    fail_syntax("Missing end of raw directive", line_);
  }

  void expression(bool variable) {
    std::string balance;
    while (at_ < text_.size()) {
      if (balance.empty()) {
        const Close close = variable ? closing(at_, "}}", false, false) : closing(at_, "%}", true, true);
        if (close.found) {
          push(variable ? TokenType::variable_end : TokenType::block_end, "");
          advance(close.end);
          return;
        }
      }
      if (const std::size_t space = skip_space(at_); space != at_) {
        advance(space);
        continue;
      }
      if (real() || integer() || name() || string()) continue;
      op(balance);
    }
  }

  // digits separated by single underscores: (\d+_)*\d+
  std::size_t digits(std::size_t at) const {
    if (at >= text_.size() || !is_ascii_digit(text_[at])) return at;
    while (at < text_.size() &&
           (is_ascii_digit(text_[at]) || (text_[at] == '_' && at + 1 < text_.size() && is_ascii_digit(text_[at + 1]))))
      ++at;
    return at;
  }

  bool real() {
    if (at_ > 0 && text_[at_ - 1] == '.') return false;
    const std::size_t whole = digits(at_);
    if (whole == at_) return false;
    std::size_t end = whole;
    if (end < text_.size() && text_[end] == '.') {
      const std::size_t fraction = digits(end + 1);
      if (fraction > end + 1) end = fraction;
    }
    if (end < text_.size() && (text_[end] == 'e' || text_[end] == 'E')) {
      std::size_t exponent = end + 1;
      if (exponent < text_.size() && (text_[exponent] == '+' || text_[exponent] == '-')) ++exponent;
      const std::size_t last = digits(exponent);
      if (last > exponent) end = last;
    }
    if (end == whole) return false;
    const auto value = parse_float(text_.substr(at_, end - at_));
    push(TokenType::real, std::string(text_.substr(at_, end - at_)));
    tokens_.back().value = *value;
    advance(end);
    return true;
  }

  bool integer() {
    if (!is_ascii_digit(text_[at_])) return false;
    std::size_t end = at_ + 1;
    int base = 10;
    const auto is_base_digit = [&base](char c) {
      if (base == 16) return std::isxdigit(static_cast<unsigned char>(c)) != 0;
      return c >= '0' && c < '0' + base;
    };
    const auto run = [&](std::size_t at) {
      while (at < text_.size()) {
        const std::size_t next = text_[at] == '_' ? at + 1 : at;
        if (next >= text_.size() || !is_base_digit(text_[next])) break;
        at = next + 1;
      }
      return at;
    };
    if (text_[at_] == '0') {
      const char letter = end < text_.size() ? static_cast<char>(text_[end] | 0x20) : '\0';
      base = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 1;
      if (base > 1) {
        const std::size_t last = run(end + 1);
        if (last == end + 1) {
          base = 1;
        } else {
          end = last;
        }
      }
      if (base == 1) end = run(end);  // zeros only
    } else {
      end = run(end);
    }
    push(TokenType::integer, std::string(text_.substr(at_, end - at_)));
    try {
      tokens_.back().value = parse_int(tokens_.back().text, 0).value_or(0);
    } catch (const TemplateError& error) {
      fail_syntax(error.message, line_);
    }
    advance(end);
    return true;
  }

  bool name() {
    std::size_t end = at_;
    while (end < text_.size()) {
      const CodePoint c = decode_at(text_, end);
      if (!(end == at_ ? is_identifier_start(c.value) : is_identifier_part(c.value))) break;
      end += c.size;
    }
    if (end == at_) return false;
    push(TokenType::name, std::string(text_.substr(at_, end - at_)));
    advance(end);
    return true;
  }

  bool string() {
    const char quote = text_[at_];
    if (quote != '\'' && quote != '"') return false;
    std::size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != quote) end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) return false;
    push(TokenType::string, unescape(text_.substr(at_ + 1, end - at_ - 1)));
    advance(end + 1);
    return true;
  }

  [[noreturn]] void bad_escape() const { fail_syntax("malformed escape sequence in a string", line_); }

  char32_t hex(std::string_view body, std::size_t& at, std::size_t count) const {
    char32_t value = 0;
    for (std::size_t i = 0; i < count; ++i, ++at) {
      if (at >= body.size() || std::isxdigit(static_cast<unsigned char>(body[at])) == 0) bad_escape();
      const char c = body[at];
      value = value * 16 + static_cast<char32_t>(is_ascii_digit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    if (value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) bad_escape();
    return value;
  }

  // Python's unicode-escape over ASCII with backslashreplace.
  std::string unescape(std::string_view body) const {
    std::string out;
    out.reserve(body.size());
    for (std::size_t at = 0; at < body.size();) {
      if (body[at] != '\\') {
        out += body[at++];
        continue;
      }
      ++at;
      if (at >= body.size()) bad_escape();
      const char c = body[at];
      if (static_cast<unsigned char>(c) >= 0x80) {
        // The character itself becomes an escape first, whose backslash this one then quotes.
        const CodePoint point = decode_at(body, at);
        std::array<char, 16> buffer{};
        const char* format = point.value < 0x100 ? "\\x%02x" : point.value < 0x10000 ? "\\u%04x" : "\\U%08x";
        std::snprintf(buffer.data(), buffer.size(), format, static_cast<unsigned>(point.value));
        out += buffer.data();
        at += point.size;
        continue;
      }
      ++at;
      constexpr std::string_view kFrom = "\\'\"abfnrtv", kTo = "\\'\"\a\b\f\n\r\t\v";
      if (const std::size_t simple = kFrom.find(c); simple != std::string_view::npos) {
        out += kTo[simple];
      } else if (c == '\n') {
        continue;
      } else if (c >= '0' && c <= '7') {
        char32_t value = static_cast<char32_t>(c - '0');
        for (int i = 0; i < 2 && at < body.size() && body[at] >= '0' && body[at] <= '7'; ++i)
          value = value * 8 + static_cast<char32_t>(body[at++] - '0');
        append_utf8(out, value);
      } else if (c == 'x' || c == 'u' || c == 'U') {
        append_utf8(out, hex(body, at, c == 'x' ? 2 : c == 'u' ? 4 : 8));
      } else if (c == 'N') {
        fail_syntax("\\N{...} in a string is not supported", line_);
      } else {
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  void op(std::string& balance) {
    constexpr std::array<std::string_view, 6> kLong = {"//", "**", "==", "!=", ">=", "<="};
    constexpr std::string_view kShort = "+-/*%~[](){}><=.:|,;";
    std::string_view found;
    for (const std::string_view candidate : kLong)
      if (starts(at_, candidate)) found = candidate;
    if (found.empty() && kShort.find(text_[at_]) != std::string_view::npos) found = text_.substr(at_, 1);
    if (found.empty()) {
      const CodePoint c = decode_at(text_, at_);
      fail_syntax("unexpected char " + string_repr(text_.substr(at_, c.size)), line_);
    }
    if (found == "{") balance += '}';
    if (found == "(") balance += ')';
    if (found == "[") balance += ']';
    if (found == "}" || found == ")" || found == "]") {
      if (balance.empty()) fail_syntax("unexpected '" + std::string(found) + "'", line_);
      if (balance.back() != found[0])
        fail_syntax("unexpected '" + std::string(found) + "', expected '" + balance.back() + "'", line_);
      balance.pop_back();
    }
    push(TokenType::op, std::string(found));
    advance(at_ + found.size());
  }

  std::string source_;
  std::string_view text_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

std::string describe(const Token& token) {
  switch (token.type) {
    case TokenType::data:
      return "template data / text";
    case TokenType::variable_begin:
      return "begin of print statement";
    case TokenType::variable_end:
      return "end of print statement";
    case TokenType::block_begin:
      return "begin of statement block";
    case TokenType::block_end:
      return "end of statement block";
    case TokenType::name:
    case TokenType::op:
      return token.text;
    case TokenType::string:
      return "string";
    case TokenType::integer:
      return "integer";
    case TokenType::real:
      return "float";
    case TokenType::end:
      break;
  }
  return "end of template";
}

}  // namespace xgen::text::jinja
