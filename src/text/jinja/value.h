// The values a Jinja template computes with: Python's None, bool, int (64 bit), float, str, list, tuple and dict, and
// the engine's own objects (namespaces, macros, iterators). Lists and dicts never change once built, so values may be
// shared between threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace xgen::text::jinja {

enum class Type : std::uint8_t {
  missing,  // internal: a variable that was never assigned
  undefined,
  none,
  boolean,
  integer,
  real,
  string,
  list,
  tuple,
  dict,
  range,
  view,      // dict.keys(), dict.values(), dict.items()
  iterator,  // a lazy filter's result; can be consumed once
  callable,  // functions, macros, bound methods
  name_space,
  loop,
  cycler,
};

// What a value's heap part derives from; see object.h.
struct Object {
  Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  virtual ~Object() = default;
  std::uint32_t depth = 1;  // nesting of containers below and including this one
};

class Value {
 public:
  Value() : type_(Type::undefined) {}
  Value(bool value) : type_(Type::boolean) { scalar_.boolean = value; }          // NOLINT: implicit on purpose
  Value(int value) : type_(Type::integer) { scalar_.integer = value; }           // NOLINT
  Value(std::int64_t value) : type_(Type::integer) { scalar_.integer = value; }  // NOLINT
  Value(double value) : type_(Type::real) { scalar_.real = value; }              // NOLINT
  Value(std::string text);                                                       // NOLINT
  Value(std::string_view text) : Value(std::string(text)) {}                     // NOLINT
  Value(const char* text) : Value(std::string(text)) {}                          // NOLINT
  Value(Type type, std::shared_ptr<Object> object) : type_(type), object_(std::move(object)) {}

  static Value none() { return Value(Type::none, nullptr); }
  static Value missing() { return Value(Type::missing, nullptr); }
  static Value list(std::vector<Value> items);
  static Value tuple(std::vector<Value> items);
  // Later duplicates of a key replace the value but keep the first one's place, as in Python.
  static Value dict(std::vector<std::pair<std::string, Value>> items);

  Type type() const { return type_; }
  bool is(Type type) const { return type_ == type; }

  // Preconditions: the type named.
  bool as_bool() const { return scalar_.boolean; }
  std::int64_t as_int() const { return scalar_.integer; }
  double as_double() const { return scalar_.real; }
  const std::string& as_string() const;

  // The heap part as T. Precondition: the type's own object type.
  template <class T>
  T& get() const {
    return static_cast<T&>(*object_);
  }
  const std::shared_ptr<Object>& object() const { return object_; }

 private:
  Type type_;
  union {
    bool boolean;
    std::int64_t integer;
    double real;
  } scalar_ = {.integer = 0};
  std::shared_ptr<Object> object_;
};

// A JSON text as a value; the order of keys is kept. Errors: not valid JSON, or nested too deeply.
Result<Value> from_json(std::string_view text);

}  // namespace xgen::text::jinja
