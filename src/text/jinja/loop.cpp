#include "text/jinja/loop.h"

namespace xgen::text::jinja {

LoopObject::LoopObject(Interpreter& owner, Value items, int level)
    : interpreter(owner), iterable(std::move(items)), depth0(level) {
  cursor.emplace(interpreter.budget(), iterable);
  adopt(*this, iterable);
}

bool LoopObject::next(Value& out) {
  if (after) {
    out = std::move(*after);
    after.reset();
  } else if (!cursor->next(out)) {
    return false;
  }
  ++index0;
  before = std::move(current);
  current = out;
  return true;
}

bool LoopObject::peek() {
  if (after) return true;
  Value value;
  if (!cursor || !cursor->next(value)) return false;
  after = std::move(value);
  return true;
}

std::int64_t LoopObject::count() {
  if (known_length) return *known_length;
  known_length = length(iterable);
  if (!known_length) {
    std::vector<Value> rest;
    for (Value value; cursor->next(value);) {
      interpreter.budget().charge(sizeof(Value));
      rest.push_back(std::move(value));
    }
    known_length = static_cast<std::int64_t>(rest.size()) + index0 + 1 + (after ? 1 : 0);
    cursor.emplace(interpreter.budget(), make_list(interpreter.budget(), std::move(rest)));
  }
  return *known_length;
}

std::optional<Value> LoopObject::attribute(std::string_view name) {
  if (name == "index") return index0 + 1;
  if (name == "index0") return index0;
  if (name == "first") return index0 == 0;
  if (name == "last") return !peek();
  if (name == "length") return count();
  if (name == "revindex") return count() - index0;
  if (name == "revindex0") return count() - index0 - 1;
  if (name == "depth") return depth0 + 1;
  if (name == "depth0") return depth0;
  if (name == "previtem") return index0 == 0 ? undefined_hint("there is no previous item") : before;
  if (name == "nextitem") return peek() ? *after : undefined_hint("there is no next item");
  return std::nullopt;
}

bool LoopObject::changed(std::vector<Value> value) {
  Value now = make_tuple(interpreter.budget(), std::move(value));
  if (last_changed && equal(interpreter.budget(), *last_changed, now)) return false;
  last_changed = std::move(now);
  return true;
}

void LoopObject::clear() {
  cursor.reset();
  after.reset();
  last_changed.reset();
  closure.reset();
  iterable = before = current = Value();
}

}  // namespace xgen::text::jinja
