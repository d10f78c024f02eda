// Metadata: what a model's files say about it (config.json, generation_config.json, *.index.json, GGUF key/values) as
// one read-only tree of values. This is the only reader of model JSON.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "tensor/tensor.h"

namespace xgen::weights {

// Packed little-endian numbers as they lie in the file (any alignment).
struct NumberArray {
  DType type =
      DType::f32;  // u8 (also for GGUF's bool), i8, i16, i32, i64, f32, f64; unsigned 16/32/64: see is_unsigned
  bool is_unsigned = false;
  const std::byte* data = nullptr;
  std::size_t count = 0;

  std::size_t size() const { return count; }
  double number(std::size_t i) const;         // Precondition: i < size().
  std::int64_t integer(std::size_t i) const;  // Truncates floats, saturating; NaN is 0.
};

struct MetadataNode;

// A cheap handle: copies share the tree, and every view it gives out (strings, arrays) lives as long as any handle.
class Metadata {
 public:
  Metadata();  // an empty object of no file

  enum class Kind : std::uint8_t {
    null,
    boolean,
    integer,
    unsigned_integer,
    real,
    string,
    numbers,
    strings,
    array,
    object
  };
  Kind kind() const;
  bool is_null() const { return kind() == Kind::null; }
  bool is_object() const { return kind() == Kind::object; }
  // Arrays of any kind: their length; objects: number of members; otherwise 0.
  std::size_t size() const;
  // What the tree was read from, for messages.
  std::string_view source() const;

  // Members of an object in file order, elements of an array. An array of numbers or strings only is kept packed:
  // use numbers() / strings() below. Precondition: i < size(), kind() is object or array.
  std::string_view key(std::size_t i) const;
  Metadata at(std::size_t i) const;
  // Has this object a member `key` that is not null? (JSON null means "not set" everywhere here.)
  bool has(std::string_view key) const;
  // The member, or a null value.
  Metadata get(std::string_view key) const;

  // The value itself, when it is of that kind. Integers convert to double, and doubles with an integral value to
  // integers; strings and booleans never convert. Errors (invalid_argument) name source, key path and expected kind.
  Result<bool> as_bool() const;
  Result<std::int64_t> as_int() const;
  Result<double> as_double() const;
  Result<std::string_view> as_string() const;
  // A lone number or string counts as an array of one.
  Result<std::vector<std::int64_t>> as_ints() const;
  Result<std::vector<double>> as_doubles() const;
  Result<std::vector<std::string_view>> as_strings() const;
  // Zero copy forms for large arrays: null where the value is of another kind (an empty array is both).
  const NumberArray* numbers() const;
  const std::vector<std::string_view>* strings() const;

  // Required members of an object.
  Result<bool> get_bool(std::string_view key) const;
  Result<std::int64_t> get_int(std::string_view key) const;
  Result<double> get_double(std::string_view key) const;
  Result<std::string_view> get_string(std::string_view key) const;
  // Optional members: the fallback where absent or null; an error where present with another type.
  Result<bool> get_bool(std::string_view key, bool fallback) const;
  Result<std::int64_t> get_int(std::string_view key, std::int64_t fallback) const;
  Result<double> get_double(std::string_view key, double fallback) const;
  Result<std::string_view> get_string(std::string_view key, std::string_view fallback) const;

 private:
  friend class MetadataBuilder;
  Metadata(std::shared_ptr<const void> owner, const MetadataNode* node) : owner_(std::move(owner)), node_(node) {}
  Result<Metadata> require(std::string_view key, std::string_view expected) const;

  std::shared_ptr<const void> owner_;
  const MetadataNode* node_ = nullptr;
};

// Parses JSON text. `source` names it in messages. Errors: invalid_argument with the byte of the fault.
Result<Metadata> parse_json_metadata(std::string_view text, std::string source);

}  // namespace xgen::weights
