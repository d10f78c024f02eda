#include "text/jinja/python.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "text/jinja/unicode.h"

namespace xgen::text::jinja {
namespace {

constexpr std::int64_t kMaxInt = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kMinInt = std::numeric_limits<std::int64_t>::min();

[[noreturn]] void fail_overflow() { fail_limit("integer overflow (64-bit integers)"); }

[[noreturn]] void fail_operands(std::string_view op, const Value& left, const Value& right) {
  if (left.is(Type::undefined)) fail_undefined(left);
  if (right.is(Type::undefined)) fail_undefined(right);
  fail("unsupported operand type(s) for " + std::string(op) + ": '" + std::string(type_name(left)) + "' and '" +
       std::string(type_name(right)) + "'");
}

bool is_sequence(const Value& value) { return value.is(Type::list) || value.is(Type::tuple); }

// Python compares an int with a float by exact value; ints beyond 2^53 must not be rounded first.
int compare_int_real(std::int64_t integer, double real) {
  if (std::isnan(real)) return 2;
  if (real >= 9223372036854775808.0) return -1;
  if (real < -9223372036854775808.0) return 1;
  const auto whole = static_cast<std::int64_t>(real);
  if (integer != whole) return integer < whole ? -1 : 1;
  const double fraction = real - static_cast<double>(whole);
  return fraction > 0 ? -1 : fraction < 0 ? 1 : 0;
}

// -1, 0, 1; 2 if not ordered (NaN).
int compare_numbers(const Value& left, const Value& right) {
  if (left.is(Type::real) && right.is(Type::real)) {
    const double a = left.as_double(), b = right.as_double();
    return a < b ? -1 : a > b ? 1 : a == b ? 0 : 2;
  }
  if (left.is(Type::real)) {
    const int order = compare_int_real(integral(right), left.as_double());
    return order == 2 ? 2 : -order;
  }
  if (right.is(Type::real)) return compare_int_real(integral(left), right.as_double());
  const std::int64_t a = integral(left), b = integral(right);
  return a < b ? -1 : a > b ? 1 : 0;
}

Value range_item(const RangeObject& range, std::int64_t index) { return range.start + index * range.step; }

std::string_view view_name(const ViewObject& view) {
  switch (view.part) {
    case ViewObject::Part::keys:
      return "dict_keys";
    case ViewObject::Part::values:
      return "dict_values";
    case ViewObject::Part::items:
      break;
  }
  return "dict_items";
}

}  // namespace

std::string_view type_name(const Value& value) {
  switch (value.type()) {
    case Type::missing:
    case Type::undefined:
      return "Undefined";
    case Type::none:
      return "NoneType";
    case Type::boolean:
      return "bool";
    case Type::integer:
      return "int";
    case Type::real:
      return "float";
    case Type::string:
      return is_markup(value) ? "Markup" : "str";
    case Type::list:
      return "list";
    case Type::tuple:
      return value.get<ListObject>().group ? "_GroupTuple" : "tuple";
    case Type::dict:
      return "dict";
    case Type::range:
      return "range";
    case Type::view:
      return view_name(value.get<ViewObject>());
    case Type::iterator:
      return value.get<IteratorObject>().python_type;
    case Type::callable:
      return "function";
    case Type::name_space:
      return "Namespace";
    case Type::loop:
      return "LoopContext";
    case Type::cycler:
      return "Cycler";
  }
  return "object";
}

std::string object_type_repr(const Value& value) {
  if (value.is(Type::none)) return "None";
  if (is_markup(value)) return "markupsafe.Markup object";
  return std::string(type_name(value)) + " object";
}

void fail_undefined(const Value& undefined) {
  fail(undefined.object() ? undefined.get<UndefinedObject>().message() : "an undefined value is used");
}

bool is_integral(const Value& value) { return value.is(Type::integer) || value.is(Type::boolean); }
bool is_number(const Value& value) { return is_integral(value) || value.is(Type::real); }
std::int64_t integral(const Value& value) { return value.is(Type::boolean) ? value.as_bool() : value.as_int(); }
double number(const Value& value) {
  return value.is(Type::real) ? value.as_double() : static_cast<double>(integral(value));
}

bool truthy(const Value& value) {
  switch (value.type()) {
    case Type::missing:
    case Type::undefined:
    case Type::none:
      return false;
    case Type::boolean:
      return value.as_bool();
    case Type::integer:
      return value.as_int() != 0;
    case Type::real:
      return value.as_double() != 0;
    case Type::string:
      return !value.as_string().empty();
    case Type::list:
    case Type::tuple:
    case Type::dict:
    case Type::range:
    case Type::view:
      return length(value).value_or(0) != 0;
    default:
      return true;
  }
}

// --- str and repr --------------------------------------------------------------------------------------------------

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 32> buffer{};
  const auto [end, error] =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::scientific);
  const std::string_view text(buffer.data(), static_cast<std::size_t>(end - buffer.data()));
  const std::size_t e = text.find('e');
  std::string digits;
  const bool negative = text[0] == '-';
  for (const char c : text.substr(0, e))
    if (c != '-' && c != '.') digits.push_back(c);
  int exponent = 0;
  const char* first = text.data() + e + 1 + (text[e + 1] == '+' ? 1 : 0);
  std::from_chars(first, end, exponent);
  std::string out = negative ? "-" : "";
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (digits.size() > 1) out += "." + digits.substr(1);
    const int magnitude = std::abs(exponent);
    out += exponent < 0 ? "e-" : "e+";
    if (magnitude < 10) out += '0';
    out += std::to_string(magnitude);
  } else if (exponent < 0) {
    out += "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  } else {
    const auto point = static_cast<std::size_t>(exponent) + 1;
    if (digits.size() <= point) {
      out += digits + std::string(point - digits.size(), '0') + ".0";
    } else {
      out += digits.substr(0, point) + "." + digits.substr(point);
    }
  }
  return out;
}

std::string string_repr(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const bool has_double = text.find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  std::string out(1, quote);
  std::array<char, 16> buffer{};
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_at(text, at);
    if (c.value == static_cast<char32_t>(quote) || c.value == '\\') {
      out += '\\';
      out += static_cast<char>(c.value);
    } else if (c.value == '\n') {
      out += "\\n";
    } else if (c.value == '\r') {
      out += "\\r";
    } else if (c.value == '\t') {
      out += "\\t";
    } else if (is_printable(c.value)) {
      out.append(text.substr(at, c.size));
    } else {
      const char* format = c.value < 0x100 ? "\\x%02x" : c.value < 0x10000 ? "\\u%04x" : "\\U%08x";
      std::snprintf(buffer.data(), buffer.size(), format, static_cast<unsigned>(c.value));
      out += buffer.data();
    }
    at += c.size;
  }
  out += quote;
  return out;
}

namespace {

void append_sequence(Budget& budget, const std::vector<Value>& items, std::string& out) {
  bool first = true;
  for (const Value& item : items) {
    if (!first) out += ", ";
    first = false;
    append_repr(budget, item, out);
  }
}

void append_dict(Budget& budget, const DictObject& dict, std::string& out) {
  out += '{';
  bool first = true;
  for (const auto& [key, value] : dict.items) {
    if (!first) out += ", ";
    first = false;
    append_repr(budget, key, out);
    out += ": ";
    append_repr(budget, value, out);
  }
  out += '}';
}

}  // namespace

void append_repr(Budget& budget, const Value& value, std::string& out) {
  budget.step();
  if (out.size() > budget.limits().max_output) budget.charge(out.size());
  switch (value.type()) {
    case Type::missing:
    case Type::undefined:
      out += "Undefined";
      return;
    case Type::none:
      out += "None";
      return;
    case Type::boolean:
      out += value.as_bool() ? "True" : "False";
      return;
    case Type::integer:
      out += std::to_string(value.as_int());
      return;
    case Type::real:
      out += float_repr(value.as_double());
      return;
    case Type::string: {
      budget.charge(value.as_string().size());
      const bool markup = is_markup(value);
      if (markup) out += "Markup(";
      out += string_repr(value.as_string());
      if (markup) out += ')';
      return;
    }
    case Type::list:
      out += '[';
      append_sequence(budget, items_of(value), out);
      out += ']';
      return;
    case Type::tuple:
      out += '(';
      append_sequence(budget, items_of(value), out);
      out += items_of(value).size() == 1 ? ",)" : ")";
      return;
    case Type::dict:
      append_dict(budget, value.get<DictObject>(), out);
      return;
    case Type::range: {
      const auto& range = value.get<RangeObject>();
      out += "range(" + std::to_string(range.start) + ", " + std::to_string(range.stop);
      if (range.step != 1) out += ", " + std::to_string(range.step);
      out += ')';
      return;
    }
    case Type::view: {
      const auto& view = value.get<ViewObject>();
      out += view_name(view);
      out += "([";
      bool first = true;
      const auto size = view.dict.get<DictObject>().items.size();
      for (std::size_t i = 0; i < size; ++i) {
        if (!first) out += ", ";
        first = false;
        append_repr(budget, view_item(budget, view, i), out);
      }
      out += "])";
      return;
    }
    case Type::callable:
      out += value.get<CallableObject>().repr();
      return;
    case Type::name_space:
      out += "<Namespace ";
      // A namespace can hold itself, so that the depth must be counted here.
      {
        const DepthGuard guard(budget);
        append_dict(budget, value.get<NamespaceObject>().attributes, out);
      }
      out += '>';
      return;
    case Type::iterator:
    case Type::loop:
    case Type::cycler:
      // CPython prints an address here, which no template can depend on.
      out += "<" + std::string(type_name(value)) + " object>";
      return;
  }
}

void append_str(Budget& budget, const Value& value, std::string& out) {
  if (value.is(Type::string)) {
    const std::string& text = value.as_string();
    budget.charge(text.size());
    out += text;
    if (out.size() > budget.limits().max_output) budget.charge(out.size());
  } else if (!value.is(Type::undefined) && !value.is(Type::missing)) {
    append_repr(budget, value, out);
  }
}

std::string to_str(Budget& budget, const Value& value) {
  std::string out;
  append_str(budget, value, out);
  return out;
}

std::string to_repr(Budget& budget, const Value& value) {
  std::string out;
  append_repr(budget, value, out);
  return out;
}

// --- comparison ----------------------------------------------------------------------------------------------------

bool identical(const Value& left, const Value& right) {
  if (left.type() != right.type()) return false;
  switch (left.type()) {
    case Type::none:
    case Type::missing:
      return true;
    case Type::boolean:
      return left.as_bool() == right.as_bool();
    case Type::integer:
      return left.as_int() == right.as_int();
    case Type::real:
      return left.as_double() == right.as_double();
    case Type::string:
      return left.object() == right.object() || left.as_string() == right.as_string();
    default:
      return left.object() == right.object();
  }
}

bool equal(Budget& budget, const Value& left, const Value& right) {
  budget.step();
  if (is_number(left) && is_number(right)) return compare_numbers(left, right) == 0;
  if (left.type() != right.type()) return false;
  switch (left.type()) {
    case Type::undefined:
    case Type::missing:
    case Type::none:
      return true;
    case Type::string:
      return left.as_string() == right.as_string();
    case Type::list:
    case Type::tuple: {
      if (left.object() == right.object()) return true;
      const auto &a = items_of(left), &b = items_of(right);
      if (a.size() != b.size()) return false;
      for (std::size_t i = 0; i < a.size(); ++i)
        if (!equal(budget, a[i], b[i])) return false;
      return true;
    }
    case Type::dict: {
      if (left.object() == right.object()) return true;
      const auto &a = left.get<DictObject>(), &b = right.get<DictObject>();
      if (a.items.size() != b.items.size()) return false;
      for (const auto& [key, value] : a.items) {
        const Value* other = b.find(budget, key);
        if (other == nullptr || !equal(budget, value, *other)) return false;
      }
      return true;
    }
    case Type::range: {
      const auto &a = left.get<RangeObject>(), &b = right.get<RangeObject>();
      if (a.size != b.size) return false;
      return a.size == 0 || (a.start == b.start && (a.size == 1 || a.step == b.step));
    }
    default:
      return left.object() == right.object();
  }
}

namespace {

bool holds(int order, std::string_view op) {
  if (order == 2) return false;
  return op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
}

template <class T>
int order_of(const T& left, const T& right) {
  return left < right ? -1 : right < left ? 1 : 0;
}

}  // namespace

bool ordered(Budget& budget, const Value& left, const Value& right, std::string_view op) {
  budget.step();
  if (is_number(left) && is_number(right)) return holds(compare_numbers(left, right), op);
  if (left.is(Type::string) && right.is(Type::string)) return holds(order_of(left.as_string(), right.as_string()), op);
  if (is_sequence(left) && left.type() == right.type()) {
    const auto &a = items_of(left), &b = items_of(right);
    for (std::size_t i = 0; i < a.size() && i < b.size(); ++i)
      if (!equal(budget, a[i], b[i])) return ordered(budget, a[i], b[i], op);
    return holds(order_of(a.size(), b.size()), op);
  }
  if (left.is(Type::undefined)) fail_undefined(left);
  if (right.is(Type::undefined)) fail_undefined(right);
  fail("'" + std::string(op) + "' not supported between instances of '" + std::string(type_name(left)) + "' and '" +
       std::string(type_name(right)) + "'");
}

std::uint64_t hash_of(Budget& budget, const Value& value) {
  budget.step();
  switch (value.type()) {
    case Type::string:
      return std::hash<std::string_view>{}(value.as_string());
    case Type::boolean:
    case Type::integer:
      return std::hash<std::int64_t>{}(integral(value));
    case Type::real: {
      const double real = value.as_double();
      if (real >= -9e18 && real <= 9e18 && real == std::floor(real))
        return std::hash<std::int64_t>{}(static_cast<std::int64_t>(real));
      return std::hash<double>{}(real);
    }
    case Type::tuple: {
      std::uint64_t hash = 0x345678;
      for (const Value& item : items_of(value)) hash = hash * 1000003 ^ hash_of(budget, item);
      return hash;
    }
    case Type::list:
    case Type::dict:
      fail("unhashable type: '" + std::string(type_name(value)) + "'");
    default:
      return std::hash<const void*>{}(value.object().get()) ^ static_cast<std::uint64_t>(value.type());
  }
}

bool contains(Budget& budget, const Value& container, const Value& item) {
  switch (container.type()) {
    case Type::string:
      if (!item.is(Type::string))
        fail("'in <string>' requires string as left operand, not " + std::string(type_name(item)));
      budget.charge(container.as_string().size());
      return container.as_string().find(item.as_string()) != std::string::npos;
    case Type::dict:
      return container.get<DictObject>().find(budget, item) != nullptr;
    case Type::range: {
      const auto& range = container.get<RangeObject>();
      if (!is_number(item)) return false;
      const double wanted = number(item);
      const double index = (wanted - static_cast<double>(range.start)) / static_cast<double>(range.step);
      return index >= 0 && index < static_cast<double>(range.size) && index == std::floor(index);
    }
    case Type::view:
      if (container.get<ViewObject>().part == ViewObject::Part::keys)
        return contains(budget, container.get<ViewObject>().dict, item);
      break;
    default:
      break;
  }
  if (!Cursor::can_iterate(container))
    fail("argument of type '" + std::string(type_name(container)) + "' is not iterable");
  Cursor cursor(budget, container);
  for (Value candidate; cursor.next(candidate);)
    if (equal(budget, candidate, item)) return true;
  return false;
}

// --- arithmetic ----------------------------------------------------------------------------------------------------

namespace {

Value add_integers(std::int64_t a, std::int64_t b) {
  std::int64_t out = 0;
  if (__builtin_add_overflow(a, b, &out)) fail_overflow();
  return out;
}

Value subtract_integers(std::int64_t a, std::int64_t b) {
  std::int64_t out = 0;
  if (__builtin_sub_overflow(a, b, &out)) fail_overflow();
  return out;
}

Value multiply_integers(std::int64_t a, std::int64_t b) {
  std::int64_t out = 0;
  if (__builtin_mul_overflow(a, b, &out)) fail_overflow();
  return out;
}

std::int64_t floor_divide(std::int64_t a, std::int64_t b) {
  if (b == 0) fail("integer division or modulo by zero");
  if (a == kMinInt && b == -1) fail_overflow();
  const std::int64_t quotient = a / b;
  return (a % b != 0 && (a < 0) != (b < 0)) ? quotient - 1 : quotient;
}

std::int64_t modulo(std::int64_t a, std::int64_t b) {
  if (b == 0) fail("integer modulo by zero");
  if (b == -1) return 0;
  const std::int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

double real_modulo(double a, double b) {
  if (b == 0) fail("float modulo");
  double rest = std::fmod(a, b);
  if (rest != 0) {
    if ((b < 0) != (rest < 0)) rest += b;
  } else {
    rest = std::copysign(0.0, b);
  }
  return rest;
}

double real_floor_divide(double a, double b) {
  if (b == 0) fail("float floor division by zero");
  const double rest = real_modulo(a, b);
  const double quotient = (a - rest) / b;
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double whole = std::floor(quotient);
  return quotient - whole > 0.5 ? whole + 1 : whole;
}

Value power(const Value& left, const Value& right) {
  if (is_integral(left) && is_integral(right) && integral(right) >= 0) {
    std::int64_t base = integral(left), exponent = integral(right), out = 1;
    if (base == 0 || base == 1) return exponent == 0 ? std::int64_t{1} : base;
    if (base == -1) return exponent % 2 == 0 ? std::int64_t{1} : std::int64_t{-1};
    while (exponent > 0) {
      if ((exponent & 1) != 0 && __builtin_mul_overflow(out, base, &out)) fail_overflow();
      exponent >>= 1;
      if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) fail_overflow();
    }
    return out;
  }
  const double a = number(left), b = number(right);
  if (a == 0 && b < 0) fail("0.0 cannot be raised to a negative power");
  const double out = std::pow(a, b);
  if (a < 0 && std::isfinite(b) && b != std::floor(b)) fail("complex numbers are not supported");
  if (std::isinf(out) && std::isfinite(a) && std::isfinite(b)) fail("(34, 'Numerical result out of range')");
  return out;
}

Value repeat(Budget& budget, const Value& sequence, std::int64_t count) {
  const auto times = static_cast<std::size_t>(std::max<std::int64_t>(count, 0));
  if (sequence.is(Type::string)) {
    const std::string& text = sequence.as_string();
    if (text.empty() || times == 0) return make_string(budget, "", is_markup(sequence));
    if (times > budget.limits().max_output / text.size()) budget.charge(budget.limits().max_output + 1);
    budget.charge(text.size() * times);
    std::string out;
    out.reserve(text.size() * times);
    for (std::size_t i = 0; i < times; ++i) out += text;
    return make_string(budget, std::move(out), is_markup(sequence));
  }
  const auto& items = items_of(sequence);
  std::vector<Value> out;
  if (!items.empty() && times > 0) {
    if (times > budget.limits().max_output / sizeof(Value) / items.size())
      budget.charge(budget.limits().max_output + 1);
    budget.charge(items.size() * times * sizeof(Value));
    out.reserve(items.size() * times);
    for (std::size_t i = 0; i < times; ++i) out.insert(out.end(), items.begin(), items.end());
  }
  return sequence.is(Type::list) ? make_list(budget, std::move(out)) : make_tuple(budget, std::move(out));
}

Value add(Budget& budget, const Value& left, const Value& right) {
  if (left.is(Type::string) && right.is(Type::string)) {
    const bool markup = is_markup(left) || is_markup(right);
    std::string out = markup && !is_markup(left) ? escape_html(left.as_string()) : left.as_string();
    budget.charge(out.size() + right.as_string().size());
    out += markup && !is_markup(right) ? escape_html(right.as_string()) : right.as_string();
    return make_string(budget, std::move(out), markup);
  }
  if (is_sequence(left) && left.type() == right.type()) {
    const auto &a = items_of(left), &b = items_of(right);
    budget.charge((a.size() + b.size()) * sizeof(Value));
    std::vector<Value> out;
    out.reserve(a.size() + b.size());
    out.insert(out.end(), a.begin(), a.end());
    out.insert(out.end(), b.begin(), b.end());
    return left.is(Type::list) ? make_list(budget, std::move(out)) : make_tuple(budget, std::move(out));
  }
  if (left.is(Type::undefined)) fail_undefined(left);
  if (right.is(Type::undefined)) fail_undefined(right);
  if (left.is(Type::string)) fail("can only concatenate str (not \"" + std::string(type_name(right)) + "\") to str");
  if (is_sequence(left))
    fail("can only concatenate " + std::string(type_name(left)) + " (not \"" + std::string(type_name(right)) +
         "\") to " + std::string(type_name(left)));
  fail_operands("+", left, right);
}

constexpr std::string_view op_name(BinaryOp op) {
  switch (op) {
    case BinaryOp::add:
      return "+";
    case BinaryOp::sub:
      return "-";
    case BinaryOp::mul:
      return "*";
    case BinaryOp::div:
      return "/";
    case BinaryOp::floor_div:
      return "//";
    case BinaryOp::mod:
      return "%";
    case BinaryOp::pow:
      break;
  }
  return "** or pow()";
}

Value binary_numbers(BinaryOp op, const Value& left, const Value& right) {
  const bool whole = is_integral(left) && is_integral(right);
  switch (op) {
    case BinaryOp::add:
      return whole ? add_integers(integral(left), integral(right)) : Value(number(left) + number(right));
    case BinaryOp::sub:
      return whole ? subtract_integers(integral(left), integral(right)) : Value(number(left) - number(right));
    case BinaryOp::mul:
      return whole ? multiply_integers(integral(left), integral(right)) : Value(number(left) * number(right));
    case BinaryOp::div:
      if (number(right) == 0) fail(whole ? "division by zero" : "float division by zero");
      return number(left) / number(right);
    case BinaryOp::floor_div:
      return whole ? Value(floor_divide(integral(left), integral(right)))
                   : Value(real_floor_divide(number(left), number(right)));
    case BinaryOp::mod:
      return whole ? Value(modulo(integral(left), integral(right))) : Value(real_modulo(number(left), number(right)));
    case BinaryOp::pow:
      break;
  }
  return power(left, right);
}

}  // namespace

Value binary(Budget& budget, BinaryOp op, const Value& left, const Value& right) {
  if (is_number(left) && is_number(right)) return binary_numbers(op, left, right);
  if (op == BinaryOp::add) return add(budget, left, right);
  if (op == BinaryOp::mul) {
    const auto repeatable = [](const Value& value) { return value.is(Type::string) || is_sequence(value); };
    if (repeatable(left) && is_integral(right)) return repeat(budget, left, integral(right));
    if (repeatable(right) && is_integral(left)) return repeat(budget, right, integral(left));
  }
  if (op == BinaryOp::mod && left.is(Type::string)) {
    const bool markup = is_markup(left);
    return make_string(budget, percent_format(budget, left, right), markup);
  }
  fail_operands(op_name(op), left, right);
}

Value negate(const Value& value) {
  if (value.is(Type::real)) return -value.as_double();
  if (is_integral(value)) return subtract_integers(0, integral(value));
  if (value.is(Type::undefined)) fail_undefined(value);
  fail("bad operand type for unary -: '" + std::string(type_name(value)) + "'");
}

Value plus(const Value& value) {
  if (value.is(Type::real)) return value;
  if (is_integral(value)) return integral(value);
  if (value.is(Type::undefined)) fail_undefined(value);
  fail("bad operand type for unary +: '" + std::string(type_name(value)) + "'");
}

// --- sequences -----------------------------------------------------------------------------------------------------

std::optional<std::int64_t> length(const Value& value) {
  switch (value.type()) {
    case Type::undefined:
      return 0;
    case Type::string:
      return static_cast<std::int64_t>(count_code_points(value.as_string()));
    case Type::list:
    case Type::tuple:
      return static_cast<std::int64_t>(items_of(value).size());
    case Type::dict:
      return static_cast<std::int64_t>(value.get<DictObject>().items.size());
    case Type::range:
      return value.get<RangeObject>().size;
    case Type::view:
      return length(value.get<ViewObject>().dict);
    default:
      return std::nullopt;
  }
}

Value range_value(std::int64_t start, std::int64_t stop, std::int64_t step) {
  auto object = std::make_shared<RangeObject>();
  object->start = start;
  object->stop = stop;
  object->step = step;
  // Counted in 128 bits: the distance of two 64-bit integers may not fit into one.
  __extension__ using Wide = __int128;
  const Wide distance = step > 0 ? Wide{stop} - start : Wide{start} - stop;
  const Wide stride = step > 0 ? Wide{step} : -Wide{step};
  const Wide size = distance <= 0 ? 0 : (distance + stride - 1) / stride;
  object->size = size > kMaxInt ? kMaxInt : static_cast<std::int64_t>(size);
  return Value(Type::range, std::move(object));
}

Value view_item(Budget& budget, const ViewObject& view, std::size_t index) {
  const auto& [key, value] = view.dict.get<DictObject>().items[index];
  switch (view.part) {
    case ViewObject::Part::keys:
      return key;
    case ViewObject::Part::values:
      return value;
    case ViewObject::Part::items:
      break;
  }
  return make_tuple(budget, {key, value});
}

std::optional<Value> subscript(Budget& budget, const Value& container, const Value& argument) {
  if (container.is(Type::undefined)) fail_undefined(container);
  if (container.is(Type::dict)) {
    if (argument.is(Type::list) || argument.is(Type::dict)) return std::nullopt;
    if (const Value* found = container.get<DictObject>().find(budget, argument)) return *found;
    return std::nullopt;
  }
  if (!is_integral(argument)) return std::nullopt;
  std::int64_t index = integral(argument);
  const auto resolve = [&](std::int64_t size) {
    if (index < 0) index += size;
    return index >= 0 && index < size;
  };
  switch (container.type()) {
    case Type::list:
    case Type::tuple: {
      const auto& items = items_of(container);
      if (!resolve(static_cast<std::int64_t>(items.size()))) return std::nullopt;
      return items[static_cast<std::size_t>(index)];
    }
    case Type::range:
      if (!resolve(container.get<RangeObject>().size)) return std::nullopt;
      return range_item(container.get<RangeObject>(), index);
    case Type::string: {
      const std::string& text = container.as_string();
      if (is_ascii(text)) {
        budget.step(1 + text.size() / 32);
        if (!resolve(static_cast<std::int64_t>(text.size()))) return std::nullopt;
        return make_string(budget, text.substr(static_cast<std::size_t>(index), 1), is_markup(container));
      }
      budget.charge(text.size());
      if (!resolve(static_cast<std::int64_t>(count_code_points(text)))) return std::nullopt;
      const std::size_t at = byte_offset(text, static_cast<std::size_t>(index));
      return make_string(budget, text.substr(at, decode_at(text, at).size), is_markup(container));
    }
    default:
      return std::nullopt;
  }
}

namespace {

std::optional<std::int64_t> slice_bound(const Value& value) {
  if (value.is(Type::none)) return std::nullopt;
  if (!is_integral(value)) {
    fail("slice indices must be integers or None or have an __index__ method");
  }
  return integral(value);
}

// The indices a Python slice selects: first, step and count (PySlice_AdjustIndices).
struct SliceRange {
  std::int64_t start = 0, step = 1, count = 0;
};

SliceRange adjust_slice(std::int64_t size, const Value& start, const Value& stop, const Value& step) {
  SliceRange out;
  out.step = slice_bound(step).value_or(1);
  if (out.step == 0) fail("slice step cannot be zero");
  if (out.step == kMinInt) out.step = -kMaxInt;
  const bool backward = out.step < 0;
  const auto clamp = [&](std::int64_t bound) {
    if (bound < 0) {
      bound += size;
      if (bound < 0) bound = backward ? -1 : 0;
    } else if (bound >= size) {
      bound = backward ? size - 1 : size;
    }
    return bound;
  };
  const auto first = slice_bound(start), last = slice_bound(stop);
  out.start = first ? clamp(*first) : (backward ? size - 1 : 0);
  const std::int64_t end = last ? clamp(*last) : (backward ? -1 : size);
  if (backward && end < out.start) out.count = (out.start - end - 1) / -out.step + 1;
  if (!backward && out.start < end) out.count = (end - out.start - 1) / out.step + 1;
  return out;
}

}  // namespace

Value slice(Budget& budget, const Value& container, const Value& start, const Value& stop, const Value& step) {
  const bool sliceable = container.is(Type::string) || is_sequence(container) || container.is(Type::range);
  if (!sliceable) {
    if (container.is(Type::undefined)) fail_undefined(container);
    if (container.is(Type::dict)) fail("unhashable type: 'slice'");
    fail("'" + std::string(type_name(container)) + "' object is not subscriptable");
  }
  if (container.is(Type::string)) {
    const std::string& text = container.as_string();
    budget.charge(text.size());
    if (is_ascii(text)) {
      const SliceRange range = adjust_slice(static_cast<std::int64_t>(text.size()), start, stop, step);
      if (range.step == 1)
        return make_string(budget,
                           text.substr(static_cast<std::size_t>(range.start), static_cast<std::size_t>(range.count)),
                           is_markup(container));
      std::string out;
      for (std::int64_t i = 0; i < range.count; ++i)
        out += text[static_cast<std::size_t>(range.start + i * range.step)];
      return make_string(budget, std::move(out), is_markup(container));
    }
    const std::vector<char32_t> points = decode(text);
    const SliceRange range = adjust_slice(static_cast<std::int64_t>(points.size()), start, stop, step);
    std::string out;
    for (std::int64_t i = 0; i < range.count; ++i)
      append_utf8(out, points[static_cast<std::size_t>(range.start + i * range.step)]);
    return make_string(budget, std::move(out), is_markup(container));
  }
  if (container.is(Type::range)) {
    const auto& range = container.get<RangeObject>();
    const SliceRange part = adjust_slice(range.size, start, stop, step);
    const std::int64_t first = range.start + part.start * range.step;
    std::int64_t stride = 0, span = 0, last = 0;
    if (__builtin_mul_overflow(range.step, part.step, &stride) || __builtin_mul_overflow(stride, part.count, &span) ||
        __builtin_add_overflow(first, span, &last))
      fail_overflow();
    return range_value(first, last, stride);
  }
  const auto& items = items_of(container);
  const SliceRange range = adjust_slice(static_cast<std::int64_t>(items.size()), start, stop, step);
  std::vector<Value> out;
  budget.charge(static_cast<std::size_t>(range.count) * sizeof(Value));
  out.reserve(static_cast<std::size_t>(range.count));
  for (std::int64_t i = 0; i < range.count; ++i)
    out.push_back(items[static_cast<std::size_t>(range.start + i * range.step)]);
  return container.is(Type::list) ? make_list(budget, std::move(out)) : make_tuple(budget, std::move(out));
}

bool Cursor::can_iterate(const Value& value) {
  switch (value.type()) {
    case Type::undefined:
    case Type::string:
    case Type::list:
    case Type::tuple:
    case Type::dict:
    case Type::range:
    case Type::view:
    case Type::iterator:
      return true;
    default:
      return false;
  }
}

Cursor::Cursor(Budget& budget, Value iterable) : budget_(budget), iterable_(std::move(iterable)) {
  if (!can_iterate(iterable_)) fail("'" + std::string(type_name(iterable_)) + "' object is not iterable");
}

bool Cursor::next(Value& out) {
  budget_.step();
  switch (iterable_.type()) {
    case Type::list:
    case Type::tuple: {
      const auto& items = items_of(iterable_);
      if (at_ >= items.size()) return false;
      out = items[at_++];
      return true;
    }
    case Type::dict: {
      const auto& items = iterable_.get<DictObject>().items;
      if (at_ >= items.size()) return false;
      out = items[at_++].first;
      return true;
    }
    case Type::view: {
      const auto& view = iterable_.get<ViewObject>();
      if (at_ >= view.dict.get<DictObject>().items.size()) return false;
      out = view_item(budget_, view, at_++);
      return true;
    }
    case Type::range: {
      const auto& range = iterable_.get<RangeObject>();
      if (at_ >= static_cast<std::size_t>(range.size)) return false;
      out = range_item(range, static_cast<std::int64_t>(at_++));
      return true;
    }
    case Type::string: {
      const std::string& text = iterable_.as_string();
      if (at_ >= text.size()) return false;
      const std::size_t size = decode_at(text, at_).size;
      out = make_string(budget_, text.substr(at_, size));
      at_ += size;
      return true;
    }
    case Type::iterator: {
      const DepthGuard guard(budget_);
      return iterable_.get<IteratorObject>().next(out);
    }
    default:
      return false;
  }
}

std::vector<Value> to_vector(Budget& budget, const Value& iterable) {
  std::vector<Value> out;
  if (is_sequence(iterable)) {
    budget.charge(items_of(iterable).size() * sizeof(Value));
    return items_of(iterable);
  }
  Cursor cursor(budget, iterable);
  for (Value item; cursor.next(item);) {
    budget.charge(sizeof(Value));
    out.push_back(std::move(item));
  }
  return out;
}

// --- numbers from text ---------------------------------------------------------------------------------------------

namespace {

// Removes the underscores Python allows between digits; empty if one stands anywhere else.
std::optional<std::string> without_underscores(std::string_view text) {
  std::string out;
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; };
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
    } else if (i == 0 || i + 1 == text.size() || !is_word(text[i - 1]) || !is_word(text[i + 1])) {
      return std::nullopt;
    }
  }
  return out;
}

}  // namespace

std::optional<std::int64_t> parse_int(std::string_view text, int base) {
  auto digits = without_underscores(strip(text));
  if (!digits || digits->empty()) return std::nullopt;
  bool negative = false;
  std::string_view rest = *digits;
  if (rest[0] == '+' || rest[0] == '-') {
    negative = rest[0] == '-';
    rest.remove_prefix(1);
  }
  const auto has_prefix = [&](char letter) {
    return rest.size() > 1 && rest[0] == '0' && (rest[1] == letter || rest[1] == letter - 'a' + 'A');
  };
  const int prefix_base = has_prefix('x') ? 16 : has_prefix('o') ? 8 : has_prefix('b') ? 2 : 0;
  if (prefix_base != 0 && (base == prefix_base || base == 0)) {
    rest.remove_prefix(2);
    base = prefix_base;
  } else if (base == 0) {
    if (rest.size() > 1 && rest[0] == '0' && rest.find_first_not_of('0') != std::string_view::npos) return std::nullopt;
    base = 10;
  }
  if (base < 2 || base > 36 || rest.empty() || rest[0] == '-') return std::nullopt;
  std::uint64_t magnitude = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), magnitude, base);
  if (end != rest.data() + rest.size()) return std::nullopt;
  const std::uint64_t limit = static_cast<std::uint64_t>(kMaxInt) + (negative ? 1 : 0);
  if (error == std::errc::result_out_of_range || magnitude > limit) fail_overflow();
  if (error != std::errc()) return std::nullopt;
  return negative ? static_cast<std::int64_t>(-magnitude) : static_cast<std::int64_t>(magnitude);
}

std::optional<double> parse_float(std::string_view text) {
  auto digits = without_underscores(strip(text));
  if (!digits || digits->empty()) return std::nullopt;
  std::string_view rest = *digits;
  const bool negative = rest[0] == '-';
  if (rest[0] == '+' || rest[0] == '-') rest.remove_prefix(1);
  const std::string lower = to_lower(rest);
  double out = 0;
  if (lower == "inf" || lower == "infinity") {
    out = std::numeric_limits<double>::infinity();
  } else if (lower == "nan") {
    out = std::numeric_limits<double>::quiet_NaN();
  } else {
    if (rest.empty() || (std::isdigit(static_cast<unsigned char>(rest[0])) == 0 && rest[0] != '.')) return std::nullopt;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), out);
    if (end != rest.data() + rest.size()) return std::nullopt;
    if (error == std::errc::result_out_of_range)
      out = std::strtod(std::string(rest).c_str(), nullptr);
    else if (error != std::errc())
      return std::nullopt;
  }
  return negative ? -out : out;
}

// --- HTML and JSON -------------------------------------------------------------------------------------------------

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

Value escape(Budget& budget, const Value& value) {
  if (is_markup(value)) return value;
  return make_string(budget, escape_html(to_str(budget, value)), true);
}

namespace {

class JsonWriter {
 public:
  JsonWriter(Budget& budget, const JsonStyle& style) : budget_(budget), style_(style) {}

  void write(const Value& value, std::size_t level) {
    budget_.step();
    if (out_.size() > budget_.limits().max_output) budget_.charge(out_.size());
    switch (value.type()) {
      case Type::none:
        out_ += "null";
        return;
      case Type::boolean:
        out_ += value.as_bool() ? "true" : "false";
        return;
      case Type::integer:
        out_ += std::to_string(value.as_int());
        return;
      case Type::real:
        out_ += real(value.as_double());
        return;
      case Type::string:
        write_string(value.as_string());
        return;
      case Type::list:
      case Type::tuple:
        write_array(items_of(value), level);
        return;
      case Type::dict:
        write_object(value.get<DictObject>(), level);
        return;
      default:
        fail("Object of type " + std::string(type_name(value)) + " is not JSON serializable");
    }
  }

  std::string take() { return std::move(out_); }

 private:
  static std::string real(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    return float_repr(value);
  }

  void newline(std::size_t level) {
    if (!style_.indent) return;
    budget_.charge(level * style_.indent->size());
    out_ += '\n';
    for (std::size_t i = 0; i < level; ++i) out_ += *style_.indent;
  }

  void write_array(const std::vector<Value>& items, std::size_t level) {
    if (items.empty()) {
      out_ += "[]";
      return;
    }
    out_ += '[';
    bool first = true;
    for (const Value& item : items) {
      if (!first) out_ += style_.item_separator;
      first = false;
      newline(level + 1);
      write(item, level + 1);
    }
    newline(level);
    out_ += ']';
  }

  void write_object(const DictObject& dict, std::size_t level) {
    if (dict.items.empty()) {
      out_ += "{}";
      return;
    }
    std::vector<const std::pair<Value, Value>*> items;
    items.reserve(dict.items.size());
    for (const auto& item : dict.items) items.push_back(&item);
    if (style_.sort_keys)
      std::stable_sort(items.begin(), items.end(),
                       [this](const auto* a, const auto* b) { return less(budget_, a->first, b->first); });
    out_ += '{';
    bool first = true;
    for (const auto* item : items) {
      if (!first) out_ += style_.item_separator;
      first = false;
      newline(level + 1);
      write_key(item->first);
      out_ += style_.key_separator;
      write(item->second, level + 1);
    }
    newline(level);
    out_ += '}';
  }

  void write_key(const Value& key) {
    switch (key.type()) {
      case Type::string:
        write_string(key.as_string());
        return;
      case Type::none:
        out_ += "\"null\"";
        return;
      case Type::boolean:
        out_ += key.as_bool() ? "\"true\"" : "\"false\"";
        return;
      case Type::integer:
        out_ += '"' + std::to_string(key.as_int()) + '"';
        return;
      case Type::real:
        out_ += '"' + real(key.as_double()) + '"';
        return;
      default:
        fail("keys must be str, int, float, bool or None, not " + std::string(type_name(key)));
    }
  }

  void append_unit(unsigned unit) {
    std::array<char, 8> buffer{};
    std::snprintf(buffer.data(), buffer.size(), "\\u%04x", unit & 0xffffU);
    out_ += buffer.data();
  }

  void write_string(const std::string& text) {
    budget_.charge(text.size());
    out_ += '"';
    for (std::size_t at = 0; at < text.size();) {
      const char c = text[at];
      if (static_cast<unsigned char>(c) >= 0x80) {
        const CodePoint point = decode_at(text, at);
        if (!style_.ensure_ascii) {
          out_.append(text, at, point.size);
        } else if (point.value < 0x10000) {
          append_unit(point.value);
        } else {
          append_unit(0xd800U + ((point.value - 0x10000U) >> 10));
          append_unit(0xdc00U + ((point.value - 0x10000U) & 0x3ffU));
        }
        at += point.size;
        continue;
      }
      ++at;
      switch (c) {
        case '"':
          out_ += "\\\"";
          break;
        case '\\':
          out_ += "\\\\";
          break;
        case '\n':
          out_ += "\\n";
          break;
        case '\r':
          out_ += "\\r";
          break;
        case '\t':
          out_ += "\\t";
          break;
        case '\b':
          out_ += "\\b";
          break;
        case '\f':
          out_ += "\\f";
          break;
        default:
          if (static_cast<unsigned char>(c) < 0x20 || (c == 0x7f && style_.ensure_ascii))
            append_unit(static_cast<unsigned char>(c));
          else
            out_ += c;
      }
    }
    out_ += '"';
  }

  Budget& budget_;
  const JsonStyle& style_;
  std::string out_;
};

}  // namespace

std::string to_json(Budget& budget, const Value& value, const JsonStyle& style) {
  JsonWriter writer(budget, style);
  writer.write(value, 0);
  return writer.take();
}

}  // namespace xgen::text::jinja
