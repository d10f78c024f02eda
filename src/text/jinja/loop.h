// The special variable `loop` of a for loop.
#pragma once

#include <memory>
#include <optional>
#include <string_view>

#include "text/jinja/ast.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/object.h"
#include "text/jinja/python.h"

namespace xgen::text::jinja {

struct LoopObject : Object {
  LoopObject(Interpreter& interpreter, Value iterable, int depth);

  bool next(Value& out);
  std::optional<Value> attribute(std::string_view name);
  bool changed(std::vector<Value> value);
  void clear();

  Interpreter& interpreter;
  Value iterable;
  std::optional<Cursor> cursor;
  std::int64_t index0 = -1;
  std::optional<std::int64_t> known_length;
  std::optional<Value> after;  // looked at, but not yet reached
  Value before, current;
  std::optional<Value> last_changed;
  int depth0 = 0;
  // Set for a recursive loop.
  const Node* node = nullptr;
  ActivationPtr closure;

 private:
  std::int64_t count();
  bool peek();
};

}  // namespace xgen::text::jinja
