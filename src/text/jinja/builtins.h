// Filters, tests, methods of Python's types and global functions, by name; and how their arguments are bound.
#pragma once

#include <array>
#include <initializer_list>
#include <string_view>

#include "text/jinja/ast.h"
#include "text/jinja/object.h"

namespace xgen::text::jinja {

using MethodFunction = Value (*)(Interpreter&, const Value& self, const Arguments& arguments);

// nullptr if there is none.
FilterFunction find_filter(std::string_view name);
TestFunction find_test(std::string_view name);
// Methods of str, dict, list, tuple, range, int and float. The sandbox's forbidden ones (list.append…) are not here.
MethodFunction find_method(const Value& self, std::string_view name);
// Whether the sandbox refuses this attribute of a list or dict because calling it would change the object.
bool is_mutating_method(const Value& self, std::string_view name);
// nullptr if there is no such global.
const Value* find_global(std::string_view name);

// str.format with the sandbox's attribute rules.
std::string format_string(Interpreter& interpreter, const Value& format, const Arguments& arguments);

// Arguments matched to parameter names, as a Python call does.
class Bound {
 public:
  // The first `required` of `names` must be given. Names starting with '/' are positional only.
  Bound(std::string_view function, std::initializer_list<std::string_view> names, const Arguments& arguments,
        std::size_t required = 0);
  const Value* operator[](std::size_t index) const { return values_[index]; }
  bool given(std::size_t index) const { return values_[index] != nullptr; }
  Value get(std::size_t index, const Value& otherwise) const {
    return values_[index] != nullptr ? *values_[index] : otherwise;
  }
  // Python's __index__: an int or bool; fails for anything else.
  std::int64_t integer(std::size_t index, std::int64_t otherwise) const;
  bool boolean(std::size_t index, bool otherwise) const;
  // A str; fails for anything else.
  const std::string& text(std::size_t index) const;

 private:
  std::string_view function_;
  std::array<const Value*, 8> values_{};
};

}  // namespace xgen::text::jinja
