#include "text/jinja/value.h"

#include <limits>

#include "base/json.h"
#include "text/jinja/object.h"
#include "text/jinja/python.h"

namespace xgen::text::jinja {
namespace {

constexpr std::size_t kIndexFrom = 8;

std::uint64_t hash_text(std::string_view text) { return std::hash<std::string_view>{}(text); }

Value from_boost(const boost::json::value& json) {
  switch (json.kind()) {
    case boost::json::kind::null:
      return Value::none();
    case boost::json::kind::bool_:
      return json.get_bool();
    case boost::json::kind::int64:
      return json.get_int64();
    case boost::json::kind::uint64:
      return static_cast<double>(json.get_uint64());
    case boost::json::kind::double_:
      return json.get_double();
    case boost::json::kind::string:
      return std::string(json.get_string());
    case boost::json::kind::array: {
      std::vector<Value> items;
      items.reserve(json.get_array().size());
      for (const auto& item : json.get_array()) items.push_back(from_boost(item));
      return Value::list(std::move(items));
    }
    case boost::json::kind::object: {
      std::vector<std::pair<std::string, Value>> items;
      items.reserve(json.get_object().size());
      for (const auto& item : json.get_object()) items.emplace_back(item.key(), from_boost(item.value()));
      return Value::dict(std::move(items));
    }
  }
  return Value::none();
}

}  // namespace

Value::Value(std::string text) : type_(Type::string), object_(std::make_shared<StringObject>(std::move(text), false)) {}

const std::string& Value::as_string() const { return get<StringObject>().text; }

Value Value::list(std::vector<Value> items) {
  auto object = std::make_shared<ListObject>();
  for (const Value& item : items) adopt(*object, item);
  object->items = std::move(items);
  return Value(Type::list, std::move(object));
}

Value Value::tuple(std::vector<Value> items) {
  const Value list = Value::list(std::move(items));
  return Value(Type::tuple, list.object());
}

Value Value::dict(std::vector<std::pair<std::string, Value>> items) {
  auto object = std::make_shared<DictObject>();
  object->items.reserve(items.size());
  for (auto& item : items) {
    adopt(*object, item.second);
    object->set(std::move(item.first), std::move(item.second));
  }
  return Value(Type::dict, std::move(object));
}

Result<Value> from_json(std::string_view text) {
  auto json = parse_json(text);
  if (!json.ok()) return json.error();
  try {
    return from_boost(*json);
  } catch (const TemplateError& error) {
    return make_error(ErrorCode::invalid_argument, error.message);
  }
}

// --- objects -------------------------------------------------------------------------------------------------------

std::optional<std::size_t> DictObject::locate(std::string_view key) const {
  if (items.size() <= kIndexFrom) {
    for (std::size_t i = 0; i < items.size(); ++i)
      if (items[i].first.is(Type::string) && items[i].first.as_string() == key) return i;
    return std::nullopt;
  }
  const auto [begin, end] = index_.equal_range(hash_text(key));
  for (auto it = begin; it != end; ++it) {
    const Value& candidate = items[it->second].first;
    if (candidate.is(Type::string) && candidate.as_string() == key) return it->second;
  }
  return std::nullopt;
}

std::optional<std::size_t> DictObject::locate(Budget& budget, const Value& key) const {
  if (key.is(Type::string)) return locate(key.as_string());
  const std::uint64_t hash = hash_of(budget, key);
  if (items.size() <= kIndexFrom) {
    for (std::size_t i = 0; i < items.size(); ++i)
      if (equal(budget, items[i].first, key)) return i;
    return std::nullopt;
  }
  const auto [begin, end] = index_.equal_range(hash);
  for (auto it = begin; it != end; ++it)
    if (equal(budget, items[it->second].first, key)) return it->second;
  return std::nullopt;
}

const Value* DictObject::find(std::string_view key) const {
  const auto at = locate(key);
  return at ? &items[*at].second : nullptr;
}

const Value* DictObject::find(Budget& budget, const Value& key) const {
  const auto at = locate(budget, key);
  return at ? &items[*at].second : nullptr;
}

void DictObject::append(std::uint64_t hash, Value key, Value value) {
  items.emplace_back(std::move(key), std::move(value));
  if (items.size() <= kIndexFrom) return;
  if (!index_.empty()) {
    index_.emplace(hash, static_cast<std::uint32_t>(items.size() - 1));
    return;
  }
  Limits limits;
  limits.max_steps = std::numeric_limits<std::uint64_t>::max();
  Budget unlimited(limits);
  for (std::size_t i = 0; i < items.size(); ++i)
    index_.emplace(hash_of(unlimited, items[i].first), static_cast<std::uint32_t>(i));
}

void DictObject::set(Budget& budget, Value key, Value value) {
  const std::uint64_t hash = hash_of(budget, key);
  if (const auto at = locate(budget, key))
    items[*at].second = std::move(value);
  else
    append(hash, std::move(key), std::move(value));
}

void DictObject::set(std::string key, Value value) {
  if (const auto at = locate(std::string_view(key))) {
    items[*at].second = std::move(value);
    return;
  }
  const std::uint64_t hash = hash_text(key);
  append(hash, Value(std::move(key)), std::move(value));
}

std::string UndefinedObject::message() const {
  if (!hint.empty()) return hint;
  if (owner_type.empty()) return "'" + name + "' is undefined";
  if (!name_is_string) return owner_type + " has no element " + name;
  return "'" + owner_type + "' has no attribute '" + name + "'";
}

Value make_string(Budget& budget, std::string text, bool markup) {
  budget.charge(text.size() + 32);
  return Value(Type::string, std::make_shared<StringObject>(std::move(text), markup));
}

Value make_list(Budget& budget, std::vector<Value> items) {
  budget.charge(items.size() * sizeof(Value) + 32);
  return Value::list(std::move(items));
}

Value make_tuple(Budget& budget, std::vector<Value> items) {
  budget.charge(items.size() * sizeof(Value) + 32);
  return Value::tuple(std::move(items));
}

Value undefined_hint(std::string hint) {
  auto object = std::make_shared<UndefinedObject>();
  object->hint = std::move(hint);
  return Value(Type::undefined, std::move(object));
}

Value undefined_name(std::string_view name) {
  auto object = std::make_shared<UndefinedObject>();
  object->name = name;
  return Value(Type::undefined, std::move(object));
}

std::uint32_t depth_of(const Value& value) { return value.object() ? value.object()->depth : 0; }

void adopt(Object& object, const Value& child) {
  const std::uint32_t depth = depth_of(child) + 1;
  if (depth > kMaxValueDepth) fail_limit("a value is nested too deeply");
  if (depth > object.depth) object.depth = depth;
}

}  // namespace xgen::text::jinja
