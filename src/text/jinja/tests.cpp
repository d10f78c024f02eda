// Jinja's built-in tests (the words after `is`).
#include <unordered_map>

#include "text/jinja/builtins.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/python.h"
#include "text/jinja/unicode.h"

namespace xgen::text::jinja {
namespace {

// For tests that take no arguments: true, or fails.
bool plain(const Arguments& arguments) {
  const Bound none("test", {}, arguments);
  return true;
}

// value % divisor == wanted, as Python computes it.
bool remainder_is(Interpreter& interpreter, const Value& value, const Value& divisor, std::int64_t wanted) {
  return equal(interpreter.budget(), binary(interpreter.budget(), BinaryOp::mod, value, divisor), Value(wanted));
}

bool is_type(const Value& input, Type type) { return input.is(type); }

bool cased(const std::string& text, bool (*wanted)(char32_t), bool (*unwanted)(char32_t)) {
  bool any = false;
  for (const char32_t c : decode(text)) {
    if (unwanted(c) || is_title(c)) return false;
    any = any || wanted(c);
  }
  return any;
}

template <bool Negated>
bool test_equal(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound bound("eq", {"other"}, arguments, 1);
  return equal(interpreter.budget(), input, *bound[0]) != Negated;
}

bool test_less(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound bound("lt", {"other"}, arguments, 1);
  return ordered(interpreter.budget(), input, *bound[0], "<");
}
bool test_less_equal(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound bound("le", {"other"}, arguments, 1);
  return ordered(interpreter.budget(), input, *bound[0], "<=");
}
bool test_greater(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound bound("gt", {"other"}, arguments, 1);
  return ordered(interpreter.budget(), input, *bound[0], ">");
}
bool test_greater_equal(Interpreter& interpreter, const Value& input, const Arguments& arguments) {
  const Bound bound("ge", {"other"}, arguments, 1);
  return ordered(interpreter.budget(), input, *bound[0], ">=");
}

const std::unordered_map<std::string_view, TestFunction>& table() {
  using I = Interpreter&;
  using V = const Value&;
  using A = const Arguments&;
  static const std::unordered_map<std::string_view, TestFunction> kTests = {
      {"odd", [](I i, V v, A a) { return plain(a) && (remainder_is(i, v, 2, 1)); }},
      {"even", [](I i, V v, A a) { return plain(a) && (remainder_is(i, v, 2, 0)); }},
      {"divisibleby", [](I i, V v, A a) { return remainder_is(i, v, *Bound("divisibleby", {"num"}, a, 1)[0], 0); }},
      {"defined", [](I, V v, A a) { return plain(a) && (!is_type(v, Type::undefined)); }},
      {"undefined", [](I, V v, A a) { return plain(a) && (is_type(v, Type::undefined)); }},
      {"filter", [](I, V v, A a) { return plain(a) && (v.is(Type::string) && find_filter(v.as_string()) != nullptr); }},
      {"test", [](I, V v, A a) { return plain(a) && (v.is(Type::string) && find_test(v.as_string()) != nullptr); }},
      {"none", [](I, V v, A a) { return plain(a) && (is_type(v, Type::none)); }},
      {"boolean", [](I, V v, A a) { return plain(a) && (is_type(v, Type::boolean)); }},
      {"false", [](I, V v, A a) { return plain(a) && v.is(Type::boolean) && !v.as_bool(); }},
      {"true", [](I, V v, A a) { return plain(a) && v.is(Type::boolean) && v.as_bool(); }},
      {"integer", [](I, V v, A a) { return plain(a) && (is_type(v, Type::integer)); }},
      {"float", [](I, V v, A a) { return plain(a) && (is_type(v, Type::real)); }},
      {"lower", [](I i, V v, A a) { return plain(a) && (cased(to_str(i.budget(), v), is_lower, is_upper)); }},
      {"upper", [](I i, V v, A a) { return plain(a) && (cased(to_str(i.budget(), v), is_upper, is_lower)); }},
      {"string", [](I, V v, A a) { return plain(a) && (is_type(v, Type::string)); }},
      {"mapping", [](I, V v, A a) { return plain(a) && (is_type(v, Type::dict)); }},
      {"number", [](I, V v, A a) { return plain(a) && (is_number(v)); }},
      {"sequence",
       [](I, V v, A a) {
         // Anything with a length and __getitem__; jinja2's Undefined has both.
         return plain(a) && !v.is(Type::view) && length(v).has_value();
       }},
      {"iterable", [](I, V v, A a) { return plain(a) && (Cursor::can_iterate(v) || v.is(Type::loop)); }},
      {"callable",
       [](I, V v, A a) {
         // jinja2's Undefined and LoopContext have __call__ too.
         return plain(a) && (v.is(Type::callable) || v.is(Type::undefined) || v.is(Type::loop));
       }},
      {"sameas", [](I, V v, A a) { return identical(v, *Bound("sameas", {"other"}, a, 1)[0]); }},
      {"escaped", [](I, V v, A a) { return plain(a) && (is_markup(v)); }},
      {"in", [](I i, V v, A a) { return contains(i.budget(), *Bound("in", {"seq"}, a, 1)[0], v); }},
      {"==", test_equal<false>},
      {"eq", test_equal<false>},
      {"equalto", test_equal<false>},
      {"!=", test_equal<true>},
      {"ne", test_equal<true>},
      {">", test_greater},
      {"gt", test_greater},
      {"greaterthan", test_greater},
      {">=", test_greater_equal},
      {"ge", test_greater_equal},
      {"<", test_less},
      {"lt", test_less},
      {"lessthan", test_less},
      {"<=", test_less_equal},
      {"le", test_less_equal},
  };
  return kTests;
}

}  // namespace

TestFunction find_test(std::string_view name) {
  const auto it = table().find(name);
  return it == table().end() ? nullptr : it->second;
}

}  // namespace xgen::text::jinja
