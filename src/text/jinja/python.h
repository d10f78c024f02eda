// Python's operations on values: str, repr, truth, comparison, arithmetic, iteration, slicing and text formatting.
// Where Python would raise, these throw TemplateError with CPython's message.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/object.h"
#include "text/jinja/value.h"

namespace xgen::text::jinja {

// "str", "int", "NoneType", "list"…
std::string_view type_name(const Value& value);
// The owner part of jinja2's message about a missing attribute: "dict object", "None".
std::string object_type_repr(const Value& value);
[[noreturn]] void fail_undefined(const Value& undefined);

bool is_number(const Value& value);    // int, float or bool
bool is_integral(const Value& value);  // int or bool
std::int64_t integral(const Value& value);
double number(const Value& value);

bool truthy(const Value& value);
std::string float_repr(double value);
void append_str(Budget& budget, const Value& value, std::string& out);
void append_repr(Budget& budget, const Value& value, std::string& out);
std::string to_str(Budget& budget, const Value& value);
std::string to_repr(Budget& budget, const Value& value);
std::string string_repr(std::string_view text);

bool equal(Budget& budget, const Value& left, const Value& right);
// left `op` right for "<", "<=", ">" or ">=".
bool ordered(Budget& budget, const Value& left, const Value& right, std::string_view op);
inline bool less(Budget& budget, const Value& left, const Value& right) { return ordered(budget, left, right, "<"); }
bool identical(const Value& left, const Value& right);
std::uint64_t hash_of(Budget& budget, const Value& value);
bool contains(Budget& budget, const Value& container, const Value& item);

enum class BinaryOp : std::uint8_t { add, sub, mul, div, floor_div, mod, pow };
Value binary(Budget& budget, BinaryOp op, const Value& left, const Value& right);
Value negate(const Value& value);
Value plus(const Value& value);

// len(); empty if the type has none.
std::optional<std::int64_t> length(const Value& value);
// container[argument] without Jinja's fallback to attributes; empty where Python raises TypeError or LookupError.
std::optional<Value> subscript(Budget& budget, const Value& container, const Value& argument);
Value slice(Budget& budget, const Value& container, const Value& start, const Value& stop, const Value& step);

// Walks an iterable. The value is kept alive by the cursor.
class Cursor {
 public:
  Cursor(Budget& budget, Value iterable);  // fails if it cannot be iterated
  bool next(Value& out);
  static bool can_iterate(const Value& value);

 private:
  Budget& budget_;
  Value iterable_;
  std::size_t at_ = 0;
};
std::vector<Value> to_vector(Budget& budget, const Value& iterable);
Value view_item(Budget& budget, const ViewObject& view, std::size_t index);
Value range_value(std::int64_t start, std::int64_t stop, std::int64_t step);

// value % arguments for a string.
std::string percent_format(Budget& budget, const Value& format, const Value& arguments);
// format(value, spec)
std::string format_value(Budget& budget, const Value& value, std::string_view spec);
// json.dumps
struct JsonStyle {
  bool ensure_ascii = false;
  std::optional<std::string> indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
std::string to_json(Budget& budget, const Value& value, const JsonStyle& style);

std::string escape_html(std::string_view text);
// markupsafe.escape: Markup stays as it is.
Value escape(Budget& budget, const Value& value);

std::optional<std::int64_t> parse_int(std::string_view text, int base);
std::optional<double> parse_float(std::string_view text);

}  // namespace xgen::text::jinja
