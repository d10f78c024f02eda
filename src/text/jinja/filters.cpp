// Jinja's built-in filters, with transformers' tojson.
#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <unordered_map>

#include "text/jinja/builtins.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/python.h"
#include "text/jinja/unicode.h"

namespace xgen::text::jinja {
namespace {

using I = Interpreter&;
using V = const Value&;
using A = const Arguments&;

// soft_str: strings as they are (Markup too), everything else through str().
Value soft_string(I interpreter, V input) {
  return input.is(Type::string) ? input : make_string(interpreter.budget(), to_str(interpreter.budget(), input));
}

// A filter that is a str method applied to soft_str(input).
template <const char* Method>
Value through_method(I interpreter, V input, A arguments) {
  const Value text = soft_string(interpreter, input);
  return find_method(text, Method)(interpreter, text, arguments);
}
constexpr char kUpper[] = "upper", kLower[] = "lower", kCapitalize[] = "capitalize", kStrip[] = "strip";

void no_arguments(std::string_view filter, A arguments) { const Bound none(filter, {}, arguments); }

// --- attribute paths -----------------------------------------------------------------------------------------------

// jinja2's make_attrgetter: "a.b.0", an int, or none for the item itself.
class AttributeGetter {
 public:
  AttributeGetter(I interpreter, V path, bool lower, Value otherwise = Value::none())
      : interpreter_(interpreter), lower_(lower), otherwise_(std::move(otherwise)) {
    if (path.is(Type::none)) return;
    if (!path.is(Type::string)) {
      parts_.push_back(path);
      return;
    }
    std::string_view rest = path.as_string();
    for (bool more = true; more;) {
      const std::size_t dot = rest.find('.');
      more = dot != std::string_view::npos;
      const std::string_view part = rest.substr(0, dot);
      const bool number = !part.empty() && part.find_first_not_of("0123456789") == std::string_view::npos;
      parts_.push_back(number ? Value(parse_int(part, 10).value_or(0)) : Value(part));
      if (more) rest.remove_prefix(dot + 1);
    }
  }

  Value operator()(Value item) const {
    for (V part : parts_) {
      item = interpreter_.item(item, part);
      if (item.is(Type::undefined) && !otherwise_.is(Type::none)) item = otherwise_;
    }
    if (lower_ && item.is(Type::string)) return make_string(interpreter_.budget(), to_lower(item.as_string()));
    return item;
  }

 private:
  Interpreter& interpreter_;
  bool lower_;
  Value otherwise_;
  std::vector<Value> parts_;
};

// Several paths separated by commas: the list of their values.
class MultiAttributeGetter {
 public:
  MultiAttributeGetter(I interpreter, V paths, bool lower) : interpreter_(interpreter) {
    if (!paths.is(Type::string)) {
      getters_.emplace_back(interpreter, paths, lower);
      return;
    }
    std::string_view rest = paths.as_string();
    for (;;) {
      const std::size_t comma = rest.find(',');
      getters_.emplace_back(interpreter, Value(rest.substr(0, comma)), lower);
      if (comma == std::string_view::npos) return;
      rest.remove_prefix(comma + 1);
    }
  }

  Value operator()(V item) const {
    std::vector<Value> out;
    for (const AttributeGetter& getter : getters_) out.push_back(getter(item));
    return make_list(interpreter_.budget(), std::move(out));
  }

 private:
  Interpreter& interpreter_;
  std::vector<AttributeGetter> getters_;
};

template <class Key>
std::vector<Value> sorted_by(I interpreter, const std::vector<Value>& items, const Key& key_of, bool reverse) {
  std::vector<std::pair<Value, const Value*>> keyed;
  keyed.reserve(items.size());
  for (V item : items) keyed.emplace_back(key_of(item), &item);
  interpreter.budget().charge(items.size() * sizeof(keyed[0]));
  // Python's reverse sort keeps the order of equal items, too.
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? less(interpreter.budget(), b.first, a.first) : less(interpreter.budget(), a.first, b.first);
  });
  std::vector<Value> out;
  out.reserve(items.size());
  for (const auto& [key, item] : keyed) out.push_back(*item);
  return out;
}

// --- lazy results --------------------------------------------------------------------------------------------------

Value make_iterator(I interpreter, std::shared_ptr<IteratorObject> iterator, V source) {
  interpreter.budget().charge(128);
  adopt(*iterator, source);
  return Value(Type::iterator, std::move(iterator));
}

// Items of `source` passed through (or dropped by) a function.
template <class Step>
struct StepIterator : IteratorObject {
  StepIterator(I owner, V source, Step function) : cursor(owner.budget(), source), step(std::move(function)) {}
  bool next(Value& out) override {
    for (Value item; cursor.next(item);)
      if (step(item, out)) return true;
    return false;
  }
  Cursor cursor;
  Step step;
};

template <class Step>
Value step_iterator(I interpreter, V source, Step step) {
  return make_iterator(interpreter, std::make_shared<StepIterator<Step>>(interpreter, source, std::move(step)), source);
}

struct VectorIterator : IteratorObject {
  explicit VectorIterator(std::vector<Value> values) : items(std::move(values)) {
    for (V item : items) adopt(*this, item);
  }
  bool next(Value& out) override {
    if (at >= items.size()) return false;
    out = items[at++];
    return true;
  }
  std::vector<Value> items;
  std::size_t at = 0;
};

Value vector_iterator(I interpreter, std::vector<Value> items, const char* python_type = "generator") {
  interpreter.budget().charge(items.size() * sizeof(Value) + 64);
  auto iterator = std::make_shared<VectorIterator>(std::move(items));
  iterator->python_type = python_type;
  return Value(Type::iterator, std::move(iterator));
}

// Generators look at their input only when they are consumed; those of map, select, reject, selectattr and rejectattr
// then take a false input for an empty one.
template <bool EmptyIfFalse, class Make>
Value lazy(I interpreter, V input, Make make) {
  struct Deferred : IteratorObject {
    Deferred(Value source, Make function) : input(std::move(source)), make(std::move(function)) {}
    bool next(Value& out) override {
      if (!started) {
        started = true;
        if (!EmptyIfFalse || truthy(input)) inner = make(input);
      }
      return inner.is(Type::iterator) && inner.get<IteratorObject>().next(out);
    }
    Value input;
    Make make;
    Value inner;
    bool started = false;
  };
  return make_iterator(interpreter, std::make_shared<Deferred>(input, std::move(make)), input);
}

Arguments without_first(A arguments, std::size_t count) {
  Arguments out;
  if (arguments.positional.size() > count)
    out.positional.assign(arguments.positional.begin() + static_cast<std::ptrdiff_t>(count),
                          arguments.positional.end());
  out.named = arguments.named;
  return out;
}

Value filter_map(I interpreter, V input, A arguments) {
  return lazy<true>(interpreter, input, [&interpreter, arguments](V source) {
    const auto named = [&](std::string_view key) -> const Value* {
      for (const auto& [name, value] : arguments.named)
        if (name == key) return &value;
      return nullptr;
    };
    if (arguments.positional.empty() && named("attribute") != nullptr) {
      for (const auto& [name, value] : arguments.named)
        if (name != "attribute" && name != "default") fail("Unexpected keyword argument '" + name + "'");
      const Value* otherwise = named("default");
      AttributeGetter getter(interpreter, *named("attribute"), false,
                             otherwise != nullptr ? *otherwise : Value::none());
      return step_iterator(interpreter, source, [getter](V item, Value& out) {
        out = getter(item);
        return true;
      });
    }
    if (arguments.positional.empty()) fail("map requires a filter argument");
    return step_iterator(
        interpreter, source,
        [&interpreter, name = arguments.positional[0], rest = without_first(arguments, 1)](V item, Value& out) {
          out = interpreter.call_filter(name, item, rest);
          return true;
        });
  });
}

template <bool Keep, bool Attribute>
Value filter_select(I interpreter, V input, A arguments) {
  return lazy<true>(interpreter, input, [&interpreter, arguments](V source) {
    const std::size_t offset = Attribute ? 1 : 0;
    if (Attribute && arguments.positional.empty()) fail("Missing parameter for attribute name");
    AttributeGetter getter(interpreter, Attribute ? arguments.positional[0] : Value::none(), false);
    const bool has_test = arguments.positional.size() > offset;
    Value name = has_test ? arguments.positional[offset] : Value::none();
    return step_iterator(
        interpreter, source,
        [&interpreter, getter, has_test, name, rest = without_first(arguments, offset + 1)](V item, Value& out) {
          const Value subject = getter(item);
          const bool holds = has_test ? interpreter.call_test(name, subject, rest) : truthy(subject);
          if (holds != Keep) return false;
          out = item;
          return true;
        });
  });
}

Value filter_unique(I interpreter, V input, A arguments) {
  const Bound bound("unique", {"case_sensitive", "attribute"}, arguments);
  AttributeGetter getter(interpreter, bound.get(1, Value::none()), !bound.boolean(0, false));
  auto seen = std::make_shared<DictObject>();
  return step_iterator(interpreter, input, [&interpreter, getter, seen](V item, Value& out) {
    const Value key = getter(item);
    if (seen->find(interpreter.budget(), key) != nullptr) return false;
    interpreter.budget().charge(2 * sizeof(Value));
    seen->set(interpreter.budget(), key, Value::none());
    out = item;
    return true;
  });
}

Value filter_items(I interpreter, V input, A arguments) {
  no_arguments("items", arguments);
  return lazy<false>(interpreter, input, [&interpreter](V source) {
    if (source.is(Type::undefined)) return vector_iterator(interpreter, {});
    if (!source.is(Type::dict)) fail("Can only get item pairs from a mapping.");
    std::vector<Value> out;
    for (const auto& [key, value] : source.get<DictObject>().items)
      out.push_back(make_tuple(interpreter.budget(), {key, value}));
    return vector_iterator(interpreter, std::move(out));
  });
}

Value filter_batch(I interpreter, V input, A arguments) {
  const Bound bound("batch", {"linecount", "fill_with"}, arguments, 1);
  const std::int64_t size = bound.integer(0, 0);
  std::vector<Value> out, row;
  const auto finish = [&] {
    out.push_back(make_list(interpreter.budget(), std::move(row)));
    row.clear();
  };
  Cursor cursor(interpreter.budget(), input);
  for (Value item; cursor.next(item);) {
    if (static_cast<std::int64_t>(row.size()) == size) finish();
    interpreter.budget().charge(sizeof(Value));
    row.push_back(item);
  }
  if (!row.empty()) {
    if (bound.given(1) && !bound[1]->is(Type::none)) {
      if (const auto missing = size - static_cast<std::int64_t>(row.size()); missing > 0) {
        const auto count = static_cast<std::size_t>(missing);
        if (count > interpreter.budget().limits().max_output) fail_limit("batch: the line count is too large");
        interpreter.budget().charge(count * sizeof(Value));
        row.insert(row.end(), count, *bound[1]);
      }
    }
    finish();
  }
  return vector_iterator(interpreter, std::move(out));
}

Value filter_slice(I interpreter, V input, A arguments) {
  const Bound bound("slice", {"slices", "fill_with"}, arguments, 1);
  const std::int64_t slices = bound.integer(0, 0);
  const std::vector<Value> items = to_vector(interpreter.budget(), input);
  const auto size = static_cast<std::int64_t>(items.size());
  if (slices == 0) fail("integer division or modulo by zero");
  std::vector<Value> out;
  if (slices < 0) return vector_iterator(interpreter, std::move(out));
  if (static_cast<std::size_t>(slices) > interpreter.budget().limits().max_output)
    fail_limit("slice: the number of slices is too large");
  interpreter.budget().charge(static_cast<std::size_t>(slices) * sizeof(Value));
  const std::int64_t per_slice = size / slices, with_extra = size % slices;
  std::int64_t offset = 0;
  for (std::int64_t number = 0; number < slices; ++number) {
    const std::int64_t start = offset + number * per_slice;
    if (number < with_extra) ++offset;
    const std::int64_t end = offset + (number + 1) * per_slice;
    std::vector<Value> part(items.begin() + start, items.begin() + end);
    if (bound.given(1) && !bound[1]->is(Type::none) && number >= with_extra) part.push_back(*bound[1]);
    out.push_back(make_list(interpreter.budget(), std::move(part)));
  }
  return vector_iterator(interpreter, std::move(out));
}

Value filter_reverse(I interpreter, V input, A arguments) {
  no_arguments("reverse", arguments);
  if (input.is(Type::string)) return slice(interpreter.budget(), input, Value::none(), Value::none(), Value(-1));
  if (!Cursor::can_iterate(input)) fail("argument must be iterable");
  std::vector<Value> items = to_vector(interpreter.budget(), input);
  std::reverse(items.begin(), items.end());
  // Only what Python cannot reverse in place becomes a list.
  if (input.is(Type::iterator) || input.is(Type::undefined)) return make_list(interpreter.budget(), std::move(items));
  return vector_iterator(interpreter, std::move(items), input.is(Type::list) ? "list_reverseiterator" : "reversed");
}

// --- sequences to lists and values ---------------------------------------------------------------------------------

Value filter_list(I interpreter, V input, A arguments) {
  no_arguments("list", arguments);
  return make_list(interpreter.budget(), to_vector(interpreter.budget(), input));
}

Value filter_sort(I interpreter, V input, A arguments) {
  const Bound bound("sort", {"reverse", "case_sensitive", "attribute"}, arguments);
  const std::vector<Value> items = to_vector(interpreter.budget(), input);
  const MultiAttributeGetter getter(interpreter, bound.get(2, Value::none()), !bound.boolean(1, false));
  return make_list(interpreter.budget(), sorted_by(interpreter, items, getter, bound.boolean(0, false)));
}

Value filter_dictsort(I interpreter, V input, A arguments) {
  const Bound bound("dictsort", {"case_sensitive", "by", "reverse"}, arguments);
  std::string by = "key";
  if (bound.given(1)) by = to_str(interpreter.budget(), *bound[1]);
  if (by != "key" && by != "value") fail("You can only sort by either \"key\" or \"value\"");
  if (input.is(Type::undefined)) fail_undefined(input);
  if (!input.is(Type::dict)) fail("'" + std::string(type_name(input)) + "' object has no attribute 'items'");
  std::vector<Value> items;
  for (const auto& [key, value] : input.get<DictObject>().items)
    items.push_back(make_tuple(interpreter.budget(), {key, value}));
  const AttributeGetter getter(interpreter, Value(by == "key" ? 0 : 1), !bound.boolean(0, false));
  return make_list(interpreter.budget(), sorted_by(interpreter, items, getter, bound.boolean(2, false)));
}

Value filter_groupby(I interpreter, V input, A arguments) {
  const Bound bound("groupby", {"attribute", "default", "case_sensitive"}, arguments, 1);
  const bool sensitive = bound.boolean(2, false);
  const AttributeGetter key_of(interpreter, *bound[0], !sensitive, bound.get(1, Value::none()));
  const AttributeGetter label_of(interpreter, *bound[0], false, bound.get(1, Value::none()));
  const std::vector<Value> items = sorted_by(interpreter, to_vector(interpreter.budget(), input), key_of, false);
  std::vector<Value> out;
  for (std::size_t i = 0; i < items.size();) {
    const Value key = key_of(items[i]);
    std::vector<Value> members;
    const Value label = label_of(items[i]);
    for (; i < items.size() && equal(interpreter.budget(), key_of(items[i]), key); ++i) members.push_back(items[i]);
    const Value pair = make_tuple(interpreter.budget(), {label, make_list(interpreter.budget(), std::move(members))});
    pair.get<ListObject>().group = true;
    out.push_back(pair);
  }
  return make_list(interpreter.budget(), std::move(out));
}

template <bool Largest>
Value filter_extreme(I interpreter, V input, A arguments) {
  const Bound bound(Largest ? "max" : "min", {"case_sensitive", "attribute"}, arguments);
  const AttributeGetter key_of(interpreter, bound.get(1, Value::none()), !bound.boolean(0, false));
  Cursor cursor(interpreter.budget(), input);
  Value best, best_key;
  if (!cursor.next(best)) return undefined_hint("No aggregated item, sequence was empty.");
  best_key = key_of(best);
  for (Value item; cursor.next(item);) {
    Value key = key_of(item);
    const bool better = ordered(interpreter.budget(), key, best_key, Largest ? ">" : "<");
    if (!better) continue;
    best = std::move(item);
    best_key = std::move(key);
  }
  return best;
}

Value filter_sum(I interpreter, V input, A arguments) {
  const Bound bound("sum", {"attribute", "start"}, arguments);
  const AttributeGetter value_of(interpreter, bound.get(0, Value::none()), false);
  Value total = bound.get(1, 0);
  if (total.is(Type::string)) fail("sum() can't sum strings [use ''.join(seq) instead]");
  Cursor cursor(interpreter.budget(), input);
  for (Value item; cursor.next(item);) total = binary(interpreter.budget(), BinaryOp::add, total, value_of(item));
  return total;
}

Value filter_first(I interpreter, V input, A arguments) {
  no_arguments("first", arguments);
  Cursor cursor(interpreter.budget(), input);
  Value out;
  return cursor.next(out) ? out : undefined_hint("No first item, sequence was empty.");
}

Value filter_last(I interpreter, V input, A arguments) {
  no_arguments("last", arguments);
  if (input.is(Type::undefined)) fail("'Undefined' object is not reversible");
  if (!Cursor::can_iterate(input) || input.is(Type::iterator))
    fail("'" + std::string(type_name(input)) + "' object is not reversible");
  if (input.is(Type::string) || input.is(Type::list) || input.is(Type::tuple) || input.is(Type::range)) {
    auto last = subscript(interpreter.budget(), input, Value(-1));
    return last ? *last : undefined_hint("No last item, sequence was empty.");
  }
  const std::vector<Value> items = to_vector(interpreter.budget(), input);
  return items.empty() ? undefined_hint("No last item, sequence was empty.") : items.back();
}

Value filter_length(I interpreter, V input, A arguments) {
  (void)interpreter;
  no_arguments("length", arguments);
  if (const auto size = length(input)) return *size;
  fail("object of type '" + std::string(type_name(input)) + "' has no len()");
}

Value filter_join(I interpreter, V input, A arguments) {
  const Bound bound("join", {"d", "attribute"}, arguments);
  const std::string separator = bound.given(0) ? to_str(interpreter.budget(), *bound[0]) : "";
  const AttributeGetter value_of(interpreter, bound.get(1, Value::none()), false);
  std::string out;
  bool first = true;
  Cursor cursor(interpreter.budget(), input);
  for (Value item; cursor.next(item);) {
    if (!first) {
      out += separator;
      interpreter.budget().charge(separator.size());
    }
    first = false;
    append_str(interpreter.budget(), value_of(item), out);
  }
  return make_string(interpreter.budget(), std::move(out));
}

Value filter_default(I interpreter, V input, A arguments) {
  (void)interpreter;
  const Bound bound("default", {"default_value", "boolean"}, arguments);
  if (input.is(Type::undefined) || (bound.boolean(1, false) && !truthy(input))) return bound.get(0, "");
  return input;
}

Value filter_attr(I interpreter, V input, A arguments) {
  const Bound bound("attr", {"name"}, arguments, 1);
  // Unlike a dot, this never falls back to a dict's entries.
  if (input.is(Type::dict) && find_method(input, bound.text(0)) == nullptr && !is_mutating_method(input, bound.text(0)))
    return undefined_hint("'dict object' has no attribute '" + bound.text(0) + "'");
  return interpreter.attribute(input, bound.text(0));
}

// --- numbers -------------------------------------------------------------------------------------------------------

Value filter_abs(I interpreter, V input, A arguments) {
  no_arguments("abs", arguments);
  if (input.is(Type::real)) return std::abs(input.as_double());
  if (is_integral(input)) return integral(input) < 0 ? negate(input) : Value(integral(input));
  if (input.is(Type::undefined)) fail_undefined(input);
  (void)interpreter;
  fail("bad operand type for abs(): '" + std::string(type_name(input)) + "'");
}

// int(value) of a float; empty for NaN.
std::optional<Value> truncate_real(double value) {
  if (std::isnan(value)) return std::nullopt;
  if (std::isinf(value)) fail("cannot convert float infinity to integer");
  if (!(std::abs(value) < 9.2233720368547748e18)) fail_limit("integer overflow (64-bit integers)");
  return static_cast<std::int64_t>(value);
}

Value filter_int(I interpreter, V input, A arguments) {
  (void)interpreter;
  const Bound bound("int", {"default", "base"}, arguments);
  Value otherwise = bound.get(0, 0);
  if (input.is(Type::undefined)) fail_undefined(input);
  if (is_integral(input)) return integral(input);
  if (input.is(Type::real)) return truncate_real(input.as_double()).value_or(otherwise);
  if (!input.is(Type::string)) return otherwise;
  if (const auto value =
          parse_int(input.as_string(), static_cast<int>(std::clamp<std::int64_t>(bound.integer(1, 10), 0, 99))))
    return *value;
  const auto real = parse_float(input.as_string());
  if (!real || std::isinf(*real)) return otherwise;
  return truncate_real(*real).value_or(otherwise);
}

Value filter_float(I interpreter, V input, A arguments) {
  (void)interpreter;
  const Bound bound("float", {"default"}, arguments);
  if (input.is(Type::undefined)) fail_undefined(input);
  if (is_number(input)) return number(input);
  if (input.is(Type::string))
    if (const auto value = parse_float(input.as_string())) return *value;
  return bound.get(0, 0.0);
}

// Correctly rounded, ties to even in the decimal sense, as Python's round() of a float.
double round_real(double value, std::int64_t digits) {
  if (!std::isfinite(value) || digits > 300) return value;
  if (digits < -308) return std::copysign(0.0, value);
  if (digits < 0) {
    const double unit = std::pow(10.0, static_cast<double>(-digits));
    return std::nearbyint(value / unit) * unit;
  }
  std::array<char, 700> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%.*f", static_cast<int>(digits), value);
  return std::strtod(buffer.data(), nullptr);
}

std::int64_t round_integer(std::int64_t value, std::int64_t digits) {
  if (digits >= 0) return value;
  if (digits < -18) return 0;
  std::int64_t unit = 1;
  for (std::int64_t i = 0; i < -digits; ++i) unit *= 10;
  std::int64_t quotient = value / unit;
  const std::int64_t rest = value % unit, twice = std::abs(rest) * 2;
  if (twice > unit || (twice == unit && quotient % 2 != 0)) quotient += value < 0 ? -1 : 1;
  std::int64_t out = 0;
  if (__builtin_mul_overflow(quotient, unit, &out)) fail_limit("integer overflow (64-bit integers)");
  return out;
}

Value filter_round(I interpreter, V input, A arguments) {
  const Bound bound("round", {"precision", "method"}, arguments);
  const std::string method = bound.given(1) ? to_str(interpreter.budget(), *bound[1]) : "common";
  if (method != "common" && method != "ceil" && method != "floor") fail("method must be common, ceil or floor");
  if (input.is(Type::undefined)) fail_undefined(input);
  if (!is_number(input)) fail("type " + std::string(type_name(input)) + " doesn't define __round__ method");
  const std::int64_t precision = bound.integer(0, 0);
  if (method == "common") {
    if (is_integral(input)) return round_integer(integral(input), precision);
    return round_real(input.as_double(), precision);
  }
  const Value unit = binary(interpreter.budget(), BinaryOp::pow, Value(10), Value(precision));
  const double scaled = number(binary(interpreter.budget(), BinaryOp::mul, input, unit));
  return (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / number(unit);
}

Value filter_filesizeformat(I interpreter, V input, A arguments) {
  const Bound bound("filesizeformat", {"binary"}, arguments);
  const bool binary_units = bound.boolean(0, false);
  double bytes = 0;
  if (is_number(input)) {
    bytes = number(input);
  } else {
    const auto value = parse_float(to_str(interpreter.budget(), input));
    if (!value) fail("could not convert string to float");
    bytes = *value;
  }
  const double base = binary_units ? 1024 : 1000;
  if (bytes == 1) return "1 Byte";
  if (bytes < base) return std::to_string(static_cast<std::int64_t>(bytes)) + " Bytes";
  constexpr std::string_view kLetters = "KMGTPEZY";
  double unit = base;
  std::string prefix;
  for (const char letter : kLetters) {
    unit *= base;
    prefix = binary_units ? std::string(1, letter) + "iB" : std::string(1, letter == 'K' ? 'k' : letter) + "B";
    if (bytes < unit) break;
  }
  std::array<char, 400> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%.1f ", base * bytes / unit);
  return buffer.data() + prefix;
}

// --- text ----------------------------------------------------------------------------------------------------------

Value filter_string(I interpreter, V input, A arguments) {
  no_arguments("string", arguments);
  return soft_string(interpreter, input);
}

Value filter_safe(I interpreter, V input, A arguments) {
  no_arguments("safe", arguments);
  if (is_markup(input)) return input;
  return make_string(interpreter.budget(), to_str(interpreter.budget(), input), true);
}

Value filter_escape(I interpreter, V input, A arguments) {
  no_arguments("escape", arguments);
  return escape(interpreter.budget(), input);
}

Value filter_forceescape(I interpreter, V input, A arguments) {
  no_arguments("forceescape", arguments);
  return make_string(interpreter.budget(), escape_html(to_str(interpreter.budget(), input)), true);
}

Value filter_replace(I interpreter, V input, A arguments) {
  const Bound bound("replace", {"old", "new", "count"}, arguments, 2);
  const Value text = make_string(interpreter.budget(), to_str(interpreter.budget(), input));
  Arguments inner;
  inner.positional.push_back(make_string(interpreter.budget(), to_str(interpreter.budget(), *bound[0])));
  inner.positional.push_back(make_string(interpreter.budget(), to_str(interpreter.budget(), *bound[1])));
  if (bound.given(2) && !bound[2]->is(Type::none)) inner.positional.push_back(*bound[2]);
  return find_method(text, "replace")(interpreter, text, inner);
}

Value filter_title(I interpreter, V input, A arguments) {
  no_arguments("title", arguments);
  const std::string text = to_str(interpreter.budget(), input);
  std::string out, word;
  const auto flush = [&] {
    if (word.empty()) return;
    const std::size_t first = decode_at(word, 0).size;
    out += to_upper(std::string_view(word).substr(0, first)) + to_lower(std::string_view(word).substr(first));
    word.clear();
  };
  bool in_separator = false;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_at(text, at);
    const bool separator =
        c.value == '-' || c.value == '(' || c.value == '{' || c.value == '[' || c.value == '<' || is_space(c.value);
    if (separator != in_separator) flush();
    in_separator = separator;
    word += text.substr(at, c.size);
    at += c.size;
  }
  flush();
  return make_string(interpreter.budget(), std::move(out));
}

Value filter_center(I interpreter, V input, A arguments) {
  const Bound bound("center", {"width"}, arguments);
  const Value text = soft_string(interpreter, input);
  Arguments inner;
  inner.positional.push_back(bound.get(0, 80));
  return find_method(text, "center")(interpreter, text, inner);
}

Value filter_trim(I interpreter, V input, A arguments) {
  const Bound bound("trim", {"chars"}, arguments);
  const Value text = soft_string(interpreter, input);
  Arguments inner;
  inner.positional.push_back(bound.get(0, Value::none()));
  return find_method(text, kStrip)(interpreter, text, inner);
}

std::vector<std::string> split_lines(I interpreter, const std::string& text) {
  const Value value = make_string(interpreter.budget(), text);
  const Value lines = find_method(value, "splitlines")(interpreter, value, Arguments());
  std::vector<std::string> out;
  for (V line : items_of(lines)) out.push_back(line.as_string());
  return out;
}

Value filter_indent(I interpreter, V input, A arguments) {
  const Bound bound("indent", {"width", "first", "blank"}, arguments);
  if (!input.is(Type::string)) {
    if (input.is(Type::undefined)) fail_undefined(input);
    fail("unsupported operand type(s) for +=: '" + std::string(type_name(input)) + "' and 'str'");
  }
  std::string indention;
  if (bound.given(0) && bound[0]->is(Type::string)) {
    indention = bound[0]->as_string();
  } else {
    const auto width = static_cast<std::size_t>(std::max<std::int64_t>(bound.integer(0, 4), 0));
    interpreter.budget().charge(width);
    indention.assign(width, ' ');
  }
  const bool blank = bound.boolean(2, false);
  const std::vector<std::string> lines = split_lines(interpreter, input.as_string() + "\n");
  std::string out = bound.boolean(1, false) ? indention : "";
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) {
      out += '\n';
      if (blank || !lines[i].empty()) out += indention;
    }
    out += lines[i];
    interpreter.budget().charge(indention.size() + lines[i].size());
  }
  return make_string(interpreter.budget(), std::move(out), is_markup(input));
}

Value filter_truncate(I interpreter, V input, A arguments) {
  const Bound bound("truncate", {"length", "killwords", "end", "leeway"}, arguments);
  const std::int64_t limit = bound.integer(0, 255);
  const std::string end = bound.given(2) ? bound.text(2) : "...";
  const std::int64_t leeway = bound.given(3) && !bound[3]->is(Type::none) ? bound.integer(3, 5) : 5;
  const auto end_size = static_cast<std::int64_t>(count_code_points(end));
  if (limit < end_size) fail("expected length >= " + std::to_string(end_size) + ", got " + std::to_string(limit));
  if (leeway < 0) fail("expected leeway >= 0, got " + std::to_string(leeway));
  const auto size = length(input);
  if (!size) fail("object of type '" + std::string(type_name(input)) + "' has no len()");
  if (*size <= limit || *size - limit <= leeway) return input;
  if (!input.is(Type::string)) fail("can only truncate text");
  std::string kept =
      input.as_string().substr(0, byte_offset(input.as_string(), static_cast<std::size_t>(limit - end_size)));
  if (!bound.boolean(1, false)) kept = kept.substr(0, kept.rfind(' '));
  return make_string(interpreter.budget(), kept + end, is_markup(input));
}

// \w of Python's re.
bool is_word(char32_t c) { return c == '_' || is_alpha(c) || is_numeric(c); }

Value filter_wordcount(I interpreter, V input, A arguments) {
  no_arguments("wordcount", arguments);
  std::int64_t count = 0;
  bool inside = false;
  for (const char32_t c : decode(to_str(interpreter.budget(), input))) {
    if (is_word(c) && !inside) ++count;
    inside = is_word(c);
  }
  return count;
}

Value filter_format(I interpreter, V input, A arguments) {
  if (!arguments.named.empty() && !arguments.positional.empty())
    fail("can't handle positional and keyword arguments at the same time");
  const Value format = soft_string(interpreter, input);
  const Value values = arguments.named.empty() ? make_tuple(interpreter.budget(), arguments.positional)
                                               : Value::dict({arguments.named.begin(), arguments.named.end()});
  return binary(interpreter.budget(), BinaryOp::mod, format, values);
}

Value filter_striptags(I interpreter, V input, A arguments) {
  no_arguments("striptags", arguments);
  const std::string text = to_str(interpreter.budget(), input);
  std::string kept;
  std::size_t at = 0;
  for (std::size_t tag = 0; (tag = text.find('<', at)) != std::string::npos;) {
    const bool comment = text.compare(tag, 4, "<!--") == 0;
    const std::size_t end = comment ? text.find("-->", tag + 4) : text.find('>', tag);
    if (end == std::string::npos) break;
    kept += text.substr(at, tag - at);
    at = end + (comment ? 3 : 1);
  }
  kept += text.substr(at);
  std::string out;
  const Value value = make_string(interpreter.budget(), std::move(kept));
  const Value words = find_method(value, "split")(interpreter, value, Arguments());
  for (V word : items_of(words)) out += (out.empty() ? "" : " ") + word.as_string();
  // The entities that escaping makes; others are left as they are.
  static constexpr std::pair<std::string_view, char> kEntities[] = {{"&lt;", '<'},   {"&gt;", '>'},  {"&amp;", '&'},
                                                                    {"&quot;", '"'}, {"&#34;", '"'}, {"&#39;", '\''}};
  std::string unescaped;
  for (std::size_t i = 0; i < out.size();) {
    const auto* entity = std::find_if(std::begin(kEntities), std::end(kEntities), [&](const auto& candidate) {
      return out.compare(i, candidate.first.size(), candidate.first) == 0;
    });
    if (entity != std::end(kEntities)) {
      unescaped += entity->second;
      i += entity->first.size();
    } else {
      unescaped += out[i++];
    }
  }
  return make_string(interpreter.budget(), std::move(unescaped));
}

// urllib.parse.quote with "/" kept.
std::string url_quote(const std::string& text, bool query) {
  std::string out;
  std::array<char, 8> buffer{};
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80 && (std::isalnum(byte) != 0 || std::string_view("_.-~").find(c) != std::string_view::npos ||
                        (c == '/' && !query))) {
      out += c;
    } else if (c == ' ' && query) {
      out += '+';
    } else {
      std::snprintf(buffer.data(), buffer.size(), "%%%02X", static_cast<unsigned>(byte));
      out += buffer.data();
    }
  }
  return out;
}

Value filter_urlencode(I interpreter, V input, A arguments) {
  no_arguments("urlencode", arguments);
  Budget& budget = interpreter.budget();
  if (input.is(Type::string) || !Cursor::can_iterate(input))
    return make_string(budget, url_quote(to_str(budget, input), false));
  std::vector<Value> pairs;
  if (input.is(Type::dict)) {
    for (const auto& [key, value] : input.get<DictObject>().items) pairs.push_back(make_tuple(budget, {key, value}));
  } else {
    pairs = to_vector(budget, input);
  }
  std::string out;
  for (V pair : pairs) {
    const std::vector<Value> parts = to_vector(budget, pair);
    if (parts.size() != 2) fail("not enough values to unpack (expected 2)");
    if (!out.empty()) out += '&';
    out += url_quote(to_str(budget, parts[0]), true) + "=" + url_quote(to_str(budget, parts[1]), true);
    budget.charge(out.size() / 64);
  }
  return make_string(budget, std::move(out));
}

Value filter_xmlattr(I interpreter, V input, A arguments) {
  const Bound bound("xmlattr", {"autospace"}, arguments);
  Budget& budget = interpreter.budget();
  if (!input.is(Type::dict)) fail("'" + std::string(type_name(input)) + "' object has no attribute 'items'");
  std::string out;
  for (const auto& [key, value] : input.get<DictObject>().items) {
    if (value.is(Type::none) || value.is(Type::undefined)) continue;
    const std::string name = to_str(budget, key);
    if (name.find_first_of(" \t\n\r\f\v/>=") != std::string::npos)
      fail("Invalid character in attribute name: " + string_repr(name));
    if (!out.empty()) out += ' ';
    out += escape_html(name) + "=\"" + escape(budget, value).as_string() + "\"";
  }
  if (bound.boolean(0, true) && !out.empty()) out.insert(0, 1, ' ');
  return make_string(budget, std::move(out));
}

Value filter_tojson(I interpreter, V input, A arguments) {
  const Bound bound("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}, arguments);
  JsonStyle style;
  style.ensure_ascii = bound.boolean(0, false);
  style.sort_keys = bound.boolean(3, false);
  if (bound.given(1) && !bound[1]->is(Type::none)) {
    if (bound[1]->is(Type::string)) {
      style.indent = bound[1]->as_string();
    } else {
      const auto width = static_cast<std::size_t>(std::max<std::int64_t>(bound.integer(1, 0), 0));
      interpreter.budget().charge(width);
      style.indent = std::string(width, ' ');
    }
    style.item_separator = ",";
  }
  if (bound.given(2) && !bound[2]->is(Type::none)) {
    const std::vector<Value> separators = to_vector(interpreter.budget(), *bound[2]);
    if (separators.size() != 2 || !separators[0].is(Type::string) || !separators[1].is(Type::string))
      fail("separators must be a pair of strings");
    style.item_separator = separators[0].as_string();
    style.key_separator = separators[1].as_string();
  }
  return make_string(interpreter.budget(), to_json(interpreter.budget(), input, style));
}

Value filter_wordwrap(I interpreter, V input, A arguments);

const std::unordered_map<std::string_view, FilterFunction>& table() {
  static const std::unordered_map<std::string_view, FilterFunction> kFilters = {
      {"abs", filter_abs},
      {"attr", filter_attr},
      {"batch", filter_batch},
      {"capitalize", through_method<kCapitalize>},
      {"center", filter_center},
      {"count", filter_length},
      {"d", filter_default},
      {"default", filter_default},
      {"dictsort", filter_dictsort},
      {"e", filter_escape},
      {"escape", filter_escape},
      {"filesizeformat", filter_filesizeformat},
      {"first", filter_first},
      {"float", filter_float},
      {"forceescape", filter_forceescape},
      {"format", filter_format},
      {"groupby", filter_groupby},
      {"indent", filter_indent},
      {"int", filter_int},
      {"items", filter_items},
      {"join", filter_join},
      {"last", filter_last},
      {"length", filter_length},
      {"list", filter_list},
      {"lower", through_method<kLower>},
      {"map", filter_map},
      {"max", filter_extreme<true>},
      {"min", filter_extreme<false>},
      {"reject", filter_select<false, false>},
      {"rejectattr", filter_select<false, true>},
      {"replace", filter_replace},
      {"reverse", filter_reverse},
      {"round", filter_round},
      {"safe", filter_safe},
      {"select", filter_select<true, false>},
      {"selectattr", filter_select<true, true>},
      {"slice", filter_slice},
      {"sort", filter_sort},
      {"string", filter_string},
      {"striptags", filter_striptags},
      {"sum", filter_sum},
      {"title", filter_title},
      {"tojson", filter_tojson},
      {"trim", filter_trim},
      {"truncate", filter_truncate},
      {"unique", filter_unique},
      {"upper", through_method<kUpper>},
      {"urlencode", filter_urlencode},
      {"wordcount", filter_wordcount},
      {"wordwrap", filter_wordwrap},
      {"xmlattr", filter_xmlattr},
  };
  return kFilters;
}

// textwrap.wrap with whitespace kept inside lines: words are filled greedily into lines of `width` code points.
Value filter_wordwrap(I interpreter, V input, A arguments) {
  const Bound bound("wordwrap", {"width", "break_long_words", "wrapstring", "break_on_hyphens"}, arguments);
  const std::int64_t width = bound.integer(0, 79);
  if (width <= 0) fail("invalid width " + std::to_string(width) + " (must be > 0)");
  const bool break_long = bound.boolean(1, true), hyphens = bound.boolean(3, true);
  const std::string separator = bound.given(2) && !bound[2]->is(Type::none) ? bound.text(2) : "\n";
  if (!input.is(Type::string)) fail("wordwrap needs a string");
  const auto limit = static_cast<std::size_t>(width);
  std::vector<std::string> out;
  for (const std::string& paragraph : split_lines(interpreter, input.as_string())) {
    // Chunks: runs of spaces, and words (which may also end after a hyphen between letters).
    std::vector<std::vector<char32_t>> chunks;
    const std::vector<char32_t> points = decode(paragraph);
    const auto is_blank = [](char32_t c) { return c == ' ' || (c >= 0x09 && c <= 0x0d); };
    for (std::size_t i = 0; i < points.size(); ++i) {
      bool split = chunks.empty() || is_blank(points[i]) != is_blank(points[i - 1]);
      if (!split && hyphens && points[i - 1] == '-' && i >= 3 && is_word(points[i - 2]) && is_word(points[i - 3]) &&
          is_word(points[i]))
        split = true;
      if (split) chunks.emplace_back();
      chunks.back().push_back(points[i]);
    }
    std::vector<std::string> lines;
    for (std::size_t next = 0; next < chunks.size();) {
      std::vector<char32_t> line;
      if (is_blank(chunks[next][0]) && !lines.empty()) ++next;
      bool last_blank = false;
      std::size_t before_last = 0;
      while (next < chunks.size() && line.size() + chunks[next].size() <= limit) {
        before_last = line.size();
        last_blank = is_blank(chunks[next][0]);
        line.insert(line.end(), chunks[next].begin(), chunks[next].end());
        ++next;
      }
      if (next < chunks.size() && chunks[next].size() > limit) {
        std::vector<char32_t>& chunk = chunks[next];
        if (break_long) {
          const std::size_t room = std::max<std::size_t>(limit - line.size(), line.empty() ? 1 : 0);
          if (room > 0) {
            line.insert(line.end(), chunk.begin(), chunk.begin() + static_cast<std::ptrdiff_t>(room));
            chunk.erase(chunk.begin(), chunk.begin() + static_cast<std::ptrdiff_t>(room));
            interpreter.budget().charge(chunk.size());
            last_blank = false;
          }
        } else if (line.empty()) {
          line = chunk;
          ++next;
        }
      }
      if (last_blank) line.resize(before_last);
      if (!line.empty()) lines.push_back(encode(line.data(), line.data() + line.size()));
    }
    std::string joined;
    for (std::size_t i = 0; i < lines.size(); ++i) joined += (i > 0 ? separator : "") + lines[i];
    out.push_back(std::move(joined));
  }
  std::string joined;
  for (std::size_t i = 0; i < out.size(); ++i) joined += (i > 0 ? separator : "") + out[i];
  return make_string(interpreter.budget(), std::move(joined));
}

}  // namespace

FilterFunction find_filter(std::string_view name) {
  const auto it = table().find(name);
  return it == table().end() ? nullptr : it->second;
}

}  // namespace xgen::text::jinja
