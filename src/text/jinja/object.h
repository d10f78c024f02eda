// The heap parts of values. Internal to the room.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/jinja/error.h"
#include "text/jinja/value.h"

namespace xgen::text::jinja {

class Interpreter;

struct StringObject : Object {
  StringObject(std::string value, bool safe) : text(std::move(value)), markup(safe) {}
  std::string text;     // UTF-8
  bool markup = false;  // markupsafe.Markup: joining it with a plain string escapes that string
};

// Lists and tuples.
struct ListObject : Object {
  std::vector<Value> items;
  bool group = false;  // a groupby pair: .grouper and .list
};

// Insertion-ordered; indexed by hash once it is more than a handful of keys.
struct DictObject : Object {
  std::vector<std::pair<Value, Value>> items;

  const Value* find(std::string_view key) const;
  const Value* find(Budget& budget, const Value& key) const;  // the key must be hashable
  void set(Budget& budget, Value key, Value value);
  void set(std::string key, Value value);

 private:
  std::optional<std::size_t> locate(std::string_view key) const;
  std::optional<std::size_t> locate(Budget& budget, const Value& key) const;
  void append(std::uint64_t hash, Value key, Value value);
  std::unordered_multimap<std::uint64_t, std::uint32_t> index_;
};

struct RangeObject : Object {
  std::int64_t start = 0, stop = 0, step = 1, size = 0;
};

struct ViewObject : Object {
  enum class Part : std::uint8_t { keys, values, items };
  Value dict;
  Part part = Part::keys;
};

struct IteratorObject : Object {
  virtual bool next(Value& out) = 0;  // false at the end
  const char* python_type = "generator";
};

// Arguments of a call, filter or test.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct CallableObject : Object {
  virtual Value call(Interpreter& interpreter, Arguments& arguments) = 0;
  virtual std::string repr() const = 0;
  virtual const Value* attribute(std::string_view name) const {
    (void)name;
    return nullptr;
  }
};

struct NamespaceObject : Object {
  DictObject attributes;
};

struct CyclerObject : Object {
  std::vector<Value> items;
  std::size_t position = 0;
};

// Why a value is undefined; using it for more than printing or testing raises this.
struct UndefinedObject : Object {
  std::string hint;        // the whole message; if empty it is made of the following
  std::string name;        // the variable, attribute or key
  std::string owner_type;  // "dict object"; empty for a variable
  bool name_is_string = true;
  std::string message() const;
};

Value make_string(Budget& budget, std::string text, bool markup = false);
Value make_list(Budget& budget, std::vector<Value> items);
Value make_tuple(Budget& budget, std::vector<Value> items);
Value undefined_hint(std::string hint);
Value undefined_name(std::string_view name);

inline bool is_markup(const Value& value) { return value.is(Type::string) && value.get<StringObject>().markup; }
inline const std::vector<Value>& items_of(const Value& value) { return value.get<ListObject>().items; }

std::uint32_t depth_of(const Value& value);
// Raises `object.depth` to hold `child`; fails when it gets too deep.
void adopt(Object& object, const Value& child);

}  // namespace xgen::text::jinja
