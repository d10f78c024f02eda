// printf-style formatting (str % args) and the format-spec mini-language (format(value, spec)).
#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "text/jinja/python.h"
#include "text/jinja/unicode.h"

namespace xgen::text::jinja {
namespace {

constexpr int kMaxWidth = 1 << 20;
constexpr int kMaxPrecision = 1000;

// Digits at `at`, as a bounded number; -1 if there are none.
int read_number(std::string_view text, std::size_t& at, int limit) {
  if (at >= text.size() || text[at] < '0' || text[at] > '9') return -1;
  int out = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    out = out * 10 + (text[at++] - '0');
    if (out > limit) fail_limit("a width or precision in a format is too large");
  }
  return out;
}

std::string format_real(double value, char type, int precision, bool alternate) {
  if (std::isnan(value)) return type == 'F' || type == 'E' || type == 'G' ? "NAN" : "nan";
  if (std::isinf(value)) return type == 'F' || type == 'E' || type == 'G' ? "INF" : "inf";
  std::string format = alternate ? "%#.*" : "%.*";
  format += type;
  std::array<char, 2048> buffer{};
  const int size = std::snprintf(buffer.data(), buffer.size(), format.c_str(), precision, value);
  return std::string(buffer.data(), static_cast<std::size_t>(size));
}

// Magnitude of an integer in the base of 'd', 'b', 'o', 'x' or 'X'.
std::string format_magnitude(std::int64_t value, char type) {
  std::uint64_t rest = value < 0 ? 0 - static_cast<std::uint64_t>(value) : static_cast<std::uint64_t>(value);
  const unsigned base = type == 'b' ? 2 : type == 'o' ? 8 : type == 'x' || type == 'X' ? 16 : 10;
  const std::string_view digits = type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
  std::string out;
  do {
    out.insert(out.begin(), digits[rest % base]);
    rest /= base;
  } while (rest != 0);
  return out;
}

std::string pad(std::string_view text, std::string_view fill, char align, int width) {
  const auto size = static_cast<int>(count_code_points(text));
  if (width <= size) return std::string(text);
  const int missing = width - size;
  const int left = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  std::string out;
  for (int i = 0; i < left; ++i) out += fill;
  out += text;
  for (int i = left; i < missing; ++i) out += fill;
  return out;
}

void group_digits(std::string& digits, char separator, std::size_t every) {
  std::size_t end = 0;
  while (end < digits.size() && std::isxdigit(static_cast<unsigned char>(digits[end])) != 0) ++end;
  for (std::size_t at = end; at > every; at -= every) digits.insert(at - every, 1, separator);
}

std::int64_t int_for_percent(const Value& value, char type) {
  if (is_integral(value)) return integral(value);
  if (value.is(Type::real) && type != 'x' && type != 'X' && type != 'o') {
    const double real = std::trunc(value.as_double());
    if (!(std::abs(real) < 9.2e18)) fail("cannot convert float to integer");
    return static_cast<std::int64_t>(real);
  }
  if (value.is(Type::undefined)) fail_undefined(value);
  fail(std::string("%") + type + " format: a real number is required, not " + std::string(type_name(value)));
}

double real_argument(const Value& value) {
  if (value.is(Type::undefined)) fail_undefined(value);
  if (!is_number(value)) fail("must be real number, not " + std::string(type_name(value)));
  return number(value);
}

struct PercentFlags {
  bool left = false, plus = false, space = false, zero = false, alternate = false;
};

class PercentFormatter {
 public:
  PercentFormatter(Budget& budget, const Value& format, const Value& arguments)
      : budget_(budget), format_(format.as_string()), markup_(is_markup(format)), arguments_(arguments) {}

  std::string run() {
    std::string out;
    for (std::size_t at = 0; at < format_.size();) {
      if (format_[at] != '%') {
        const std::size_t next = std::min(format_.find('%', at), format_.size());
        out += format_.substr(at, next - at);
        at = next;
        continue;
      }
      ++at;
      convert(at, out);
      budget_.charge(16);
      if (out.size() > budget_.limits().max_output) budget_.charge(out.size());
    }
    const bool mapping = arguments_.is(Type::dict) || arguments_.is(Type::list);
    const std::size_t given = arguments_.is(Type::tuple) ? items_of(arguments_).size() : 1;
    if (used_ < given && !mapping && !keyed_) fail("not all arguments converted during string formatting");
    return out;
  }

 private:
  Value next_argument() {
    if (arguments_.is(Type::tuple)) {
      const auto& items = items_of(arguments_);
      if (used_ >= items.size()) fail("not enough arguments for format string");
      return items[used_++];
    }
    if (used_++ > 0) fail("not enough arguments for format string");
    return arguments_;
  }

  int star_or_number(std::size_t& at, int limit) {
    if (at < format_.size() && format_[at] == '*') {
      ++at;
      const Value width = next_argument();
      if (!width.is(Type::integer)) fail("* wants int");
      if (width.as_int() > limit || width.as_int() < -limit) fail_limit("a width in a format is too large");
      return static_cast<int>(width.as_int());
    }
    return read_number(format_, at, limit);
  }

  void convert(std::size_t& at, std::string& out) {
    Value keyed;
    bool has_key = false;
    if (at < format_.size() && format_[at] == '(') {
      if (!arguments_.is(Type::dict)) fail("format requires a mapping");
      int depth = 1;
      const std::size_t begin = ++at;
      for (; at < format_.size(); ++at) {
        if (format_[at] == '(') ++depth;
        if (format_[at] == ')' && --depth == 0) break;
      }
      if (at >= format_.size()) fail("incomplete format key");
      const auto key = format_.substr(begin, at - begin);
      ++at;
      const Value* found = arguments_.get<DictObject>().find(key);
      if (found == nullptr) fail(string_repr(key));
      keyed = *found;
      has_key = keyed_ = true;
    }
    PercentFlags flags;
    for (; at < format_.size(); ++at) {
      const char c = format_[at];
      if (c == '-')
        flags.left = true;
      else if (c == '+')
        flags.plus = true;
      else if (c == ' ')
        flags.space = true;
      else if (c == '0')
        flags.zero = true;
      else if (c == '#')
        flags.alternate = true;
      else
        break;
    }
    int width = star_or_number(at, kMaxWidth);
    if (width < -1) {
      flags.left = true;
      width = -width;
    }
    int precision = -1;
    if (at < format_.size() && format_[at] == '.') {
      ++at;
      precision = std::max(star_or_number(at, kMaxWidth), 0);
    }
    while (at < format_.size() && (format_[at] == 'l' || format_[at] == 'h' || format_[at] == 'L')) ++at;
    if (at >= format_.size()) fail("incomplete format");
    const char type = format_[at++];
    if (type == '%') {
      out += '%';
      return;
    }
    const Value value = has_key ? keyed : next_argument();
    emit(type, flags, width, precision, value, out);
  }

  void emit(char type, const PercentFlags& flags, int width, int precision, const Value& value, std::string& out) {
    std::string body, sign;
    bool numeric = true;
    switch (type) {
      case 's':
      case 'r':
      case 'a': {
        numeric = false;
        body = type == 's' ? to_str(budget_, value) : to_repr(budget_, value);
        if (markup_ && !is_markup(value)) body = escape_html(body);
        if (precision >= 0) body = body.substr(0, byte_offset(body, static_cast<std::size_t>(precision)));
        break;
      }
      case 'c':
        numeric = false;
        if (value.is(Type::string) && count_code_points(value.as_string()) == 1) {
          body = value.as_string();
        } else if (is_integral(value) && integral(value) >= 0 && integral(value) < 0x110000 &&
                   (integral(value) < 0xd800 || integral(value) > 0xdfff)) {
          append_utf8(body, static_cast<char32_t>(integral(value)));
        } else {
          fail("%c requires int or char");
        }
        break;
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o': {
        const std::int64_t whole = int_for_percent(value, type);
        body = format_magnitude(whole, type);
        if (precision > kMaxPrecision) fail_limit("a precision in a format is too large");
        if (static_cast<int>(body.size()) < precision)
          body.insert(0, static_cast<std::size_t>(precision) - body.size(), '0');
        sign = whole < 0 ? "-" : flags.plus ? "+" : flags.space ? " " : "";
        if (flags.alternate && (type == 'x' || type == 'X' || type == 'o')) sign += std::string("0") + type;
        break;
      }
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G': {
        if (precision > kMaxPrecision) fail_limit("a precision in a format is too large");
        const double real = real_argument(value);
        body = format_real(std::abs(real), type, precision < 0 ? 6 : precision, flags.alternate);
        sign = std::signbit(real) && !std::isnan(real) ? "-" : flags.plus ? "+" : flags.space ? " " : "";
        break;
      }
      default:
        fail(std::string("unsupported format character '") + type + "'");
    }
    if (width > 0) budget_.charge(static_cast<std::size_t>(width));
    if (numeric && flags.zero && !flags.left) {
      const int digits = width - static_cast<int>(sign.size());
      out += sign + pad(body, "0", '>', digits);
    } else {
      out += pad(sign + body, " ", flags.left ? '<' : '>', width);
    }
  }

  Budget& budget_;
  std::string_view format_;
  bool markup_;
  const Value& arguments_;
  std::size_t used_ = 0;
  bool keyed_ = false;
};

struct Spec {
  std::string fill = " ";
  char align = 0;
  char sign = '-';
  bool alternate = false;
  bool zero = false;
  int width = 0;
  char grouping = 0;
  int precision = -1;
  char type = 0;
};

Spec parse_spec(std::string_view text) {
  Spec spec;
  std::size_t at = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '=' || c == '^'; };
  const std::size_t first = text.empty() ? 0 : decode_at(text, 0).size;
  if (first > 0 && first < text.size() && is_align(text[first])) {
    spec.fill = text.substr(0, first);
    spec.align = text[first];
    at = first + 1;
  } else if (!text.empty() && is_align(text[0])) {
    spec.align = text[0];
    at = 1;
  }
  const auto take = [&](std::string_view choices) -> char {
    if (at < text.size() && choices.find(text[at]) != std::string_view::npos) return text[at++];
    return 0;
  };
  if (const char sign = take("+- ")) spec.sign = sign;
  if (take("#") != 0) spec.alternate = true;
  if (take("0") != 0) {
    spec.zero = true;
    if (spec.align == 0) {
      spec.fill = "0";
      spec.align = '=';
    }
  }
  spec.width = std::max(read_number(text, at, kMaxWidth), 0);
  spec.grouping = take(",_");
  if (take(".") != 0) {
    spec.precision = read_number(text, at, kMaxWidth);
    if (spec.precision < 0) fail("Format specifier missing precision");
  }
  if (at < text.size()) spec.type = text[at++];
  if (at < text.size()) fail("Invalid format specifier");
  return spec;
}

[[noreturn]] void fail_code(char type, const Value& value) {
  fail(std::string("Unknown format code '") + type + "' for object of type '" + std::string(type_name(value)) + "'");
}

std::string finish_number(Spec spec, bool negative, std::string_view prefix, std::string digits, std::size_t group) {
  std::string sign = negative ? "-" : spec.sign == '-' ? "" : std::string(1, spec.sign);
  sign += prefix;
  if (spec.grouping != 0) group_digits(digits, spec.grouping, group);
  if (spec.align == 0) spec.align = '>';
  if (spec.align != '=') return pad(sign + digits, spec.fill, spec.align, spec.width);
  int width = spec.width - static_cast<int>(sign.size());
  if (spec.grouping != 0 && spec.fill == "0") {
    // The zeros that fill the width are grouped as well.
    std::size_t end = 0;
    while (end < digits.size() && digits[end] != '.' && digits[end] != 'e' && digits[end] != '%') ++end;
    std::string whole = digits.substr(0, end);
    while (static_cast<int>(whole.size() + digits.size() - end) < width) {
      const bool full = whole.size() % (group + 1) == group;
      whole.insert(0, full ? std::string("0") + spec.grouping : std::string("0"));
    }
    digits = whole + digits.substr(end);
    width = 0;
  }
  return sign + pad(digits, spec.fill, '>', width);
}

// repr digits with an exponent where format() without a type uses it, at most `precision` significant digits.
std::string format_general(double value, int precision, char type) {
  return format_real(value, type, precision == 0 ? 1 : precision, false);
}

}  // namespace

std::string percent_format(Budget& budget, const Value& format, const Value& arguments) {
  budget.charge(format.as_string().size());
  return PercentFormatter(budget, format, arguments).run();
}

std::string format_value(Budget& budget, const Value& value, std::string_view text) {
  if (text.empty()) return to_str(budget, value);
  const Spec spec = parse_spec(text);
  budget.charge(static_cast<std::size_t>(spec.width) * spec.fill.size());
  if (value.is(Type::string)) {
    if (spec.type != 0 && spec.type != 's') fail_code(spec.type, value);
    if (spec.sign != '-') fail("Sign not allowed in string format specifier");
    if (spec.grouping != 0) fail("Cannot specify ',' with 's'.");
    if (spec.align == '=' && !spec.zero) fail("'=' alignment not allowed in string format specifier");
    std::string_view body = value.as_string();
    if (spec.precision >= 0) body = body.substr(0, byte_offset(body, static_cast<std::size_t>(spec.precision)));
    return pad(body, spec.fill, spec.align == 0 || spec.align == '=' ? '<' : spec.align, spec.width);
  }
  if (!is_number(value)) {
    if (value.is(Type::undefined)) fail_undefined(value);
    fail("unsupported format string passed to " + std::string(type_name(value)) + ".__format__");
  }
  if (spec.precision > kMaxPrecision) fail_limit("a precision in a format is too large");
  const char type = spec.type;
  const bool whole_type = type == 0 || type == 'd' || type == 'b' || type == 'o' || type == 'x' || type == 'X' ||
                          type == 'n' || type == 'c';
  if (is_integral(value) && whole_type) {
    if (spec.precision >= 0) fail("Precision not allowed in integer format specifier");
    const std::int64_t whole = integral(value);
    if (type == 'c') {
      if (whole < 0 || whole > 0x10ffff || (whole >= 0xd800 && whole < 0xe000)) fail("%c arg not in range(0x110000)");
      std::string body;
      append_utf8(body, static_cast<char32_t>(whole));
      return pad(body, spec.fill, spec.align == 0 ? '<' : spec.align, spec.width);
    }
    const bool decimal = type == 0 || type == 'd' || type == 'n';
    const std::string prefix = spec.alternate && !decimal ? std::string("0") + type : "";
    return finish_number(spec, whole < 0, prefix, format_magnitude(whole, decimal ? 'd' : type), decimal ? 3 : 4);
  }
  if (type != 0 && std::string_view("eEfFgGn%").find(type) == std::string_view::npos) fail_code(type, value);
  double real = number(value);
  const bool negative = std::signbit(real) && !std::isnan(real);
  real = std::abs(real);
  std::string digits;
  if (type == 0 && spec.precision < 0) {
    digits = float_repr(real);
  } else if (type == 0) {
    digits = format_general(real, spec.precision, 'g');
    if (digits.find_first_of(".en") == std::string::npos) {
      digits += ".0";
    }
  } else if (type == '%') {
    digits = format_real(real * 100, 'f', spec.precision < 0 ? 6 : spec.precision, spec.alternate) + "%";
  } else {
    const char real_type = type == 'n' ? 'g' : type;
    digits = format_real(real, real_type, spec.precision < 0 ? 6 : spec.precision, spec.alternate);
  }
  return finish_number(spec, negative, "", std::move(digits), 3);
}

}  // namespace xgen::text::jinja
