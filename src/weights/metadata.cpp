#include "weights/metadata.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "base/json.h"
#include "weights/metadata_builder.h"

namespace xgen::weights {

namespace {

template <class T>
T read_as(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Calls fn with the element's value in its own type.
template <class Fn>
auto visit_number(const NumberArray& a, std::size_t i, Fn&& fn) {
  const std::byte* p = a.data + i * dtype_info(a.type).block_bytes;
  switch (a.type) {
    case DType::u8:
      return fn(read_as<std::uint8_t>(p));
    case DType::i8:
      return fn(read_as<std::int8_t>(p));
    case DType::i16:
      return a.is_unsigned ? fn(read_as<std::uint16_t>(p)) : fn(read_as<std::int16_t>(p));
    case DType::i32:
      return a.is_unsigned ? fn(read_as<std::uint32_t>(p)) : fn(read_as<std::int32_t>(p));
    case DType::i64:
      return a.is_unsigned ? fn(read_as<std::uint64_t>(p)) : fn(read_as<std::int64_t>(p));
    case DType::f64:
      return fn(read_as<double>(p));
    default:
      return fn(read_as<float>(p));
  }
}

// Doubles beyond int64 saturate.
std::int64_t truncate(double value) {
  if (std::isnan(value)) return 0;
  if (value >= 0x1p63) return std::numeric_limits<std::int64_t>::max();
  if (value < -0x1p63) return std::numeric_limits<std::int64_t>::min();
  return static_cast<std::int64_t>(value);
}

constexpr std::int64_t kInt64Max = std::numeric_limits<std::int64_t>::max();

void link(MetadataNode& node, const MetadataTree* tree, const MetadataNode* parent) {
  node.tree = tree;
  node.parent = parent;
  if (auto* array = std::get_if<MetadataNode::Array>(&node.value)) {
    for (MetadataNode& child : *array) link(child, tree, &node);
  } else if (auto* object = std::get_if<MetadataNode::Object>(&node.value)) {
    for (MetadataNode& child : object->values) link(child, tree, &node);
  }
}

// "rope_scaling.factor", "architectures[0]"; empty at the root.
std::string path_of(const MetadataNode* node) {
  if (node == nullptr || node->parent == nullptr) return {};
  std::string path = path_of(node->parent);
  if (const auto* object = std::get_if<MetadataNode::Object>(&node->parent->value)) {
    const auto i = static_cast<std::size_t>(node - object->values.data());
    return (path.empty() ? "" : path + ".") + std::string(object->keys[i]);
  }
  const auto& array = std::get<MetadataNode::Array>(node->parent->value);
  return path + "[" + std::to_string(node - array.data()) + "]";
}

std::string_view kind_name(Metadata::Kind kind) {
  constexpr std::string_view kNames[] = {"null",     "a boolean", "an integer",          "an integer",
                                         "a number", "a string",  "an array of numbers", "an array of strings",
                                         "an array", "an object"};
  return kNames[static_cast<std::size_t>(kind)];
}

class JsonConverter {
 public:
  explicit JsonConverter(MetadataTree& tree) : tree_(tree) {}

  // The parser has bounded the depth.
  MetadataNode convert(const boost::json::value& value) {
    MetadataNode node;
    switch (value.kind()) {
      case boost::json::kind::null:
        break;
      case boost::json::kind::bool_:
        node.value = value.get_bool();
        break;
      case boost::json::kind::int64:
        node.value = value.get_int64();
        break;
      case boost::json::kind::uint64:
        node.value = value.get_uint64();
        break;
      case boost::json::kind::double_:
        node.value = value.get_double();
        break;
      case boost::json::kind::string:
        node.value = keep(value.get_string());
        break;
      case boost::json::kind::array:
        node.value = convert_array(value.get_array());
        break;
      case boost::json::kind::object: {
        MetadataNode::Object object;
        object.keys.reserve(value.get_object().size());
        object.values.reserve(value.get_object().size());
        for (const auto& member : value.get_object()) {
          object.keys.push_back(keep(member.key()));
          object.values.push_back(convert(member.value()));
        }
        node.value = std::move(object);
        break;
      }
    }
    return node;
  }

 private:
  using Value = decltype(MetadataNode::value);

  std::string_view keep(std::string_view text) { return tree_.strings.emplace_back(text); }

  template <class T, class Fn>
  NumberArray pack(const boost::json::array& array, DType type, Fn&& get) {
    std::vector<std::byte>& bytes = tree_.numbers.emplace_back(array.size() * sizeof(T));
    for (std::size_t i = 0; i < array.size(); ++i) {
      const T v = get(array[i]);
      std::memcpy(bytes.data() + i * sizeof(T), &v, sizeof(T));
    }
    return {type, false, bytes.data(), array.size()};
  }

  Value convert_array(const boost::json::array& array) {
    bool strings = true;
    bool integers = true;
    bool numbers = true;
    for (const auto& v : array) {
      strings = strings && v.is_string();
      integers = integers && v.is_int64();
      numbers = numbers && v.is_number();
    }
    if (integers) return pack<std::int64_t>(array, DType::i64, [](const auto& v) { return v.get_int64(); });
    if (numbers) return pack<double>(array, DType::f64, [](const auto& v) { return v.template to_number<double>(); });
    if (strings) {
      MetadataNode::Strings out;
      out.reserve(array.size());
      for (const auto& v : array) out.push_back(keep(v.get_string()));
      return out;
    }
    MetadataNode::Array out;
    out.reserve(array.size());
    for (const auto& v : array) out.push_back(convert(v));
    return out;
  }

  MetadataTree& tree_;
};

}  // namespace

double NumberArray::number(std::size_t i) const {
  return visit_number(*this, i, [](auto v) { return static_cast<double>(v); });
}

std::int64_t NumberArray::integer(std::size_t i) const {
  return visit_number(*this, i, [](auto v) -> std::int64_t {
    if constexpr (std::is_floating_point_v<decltype(v)>) {
      return truncate(static_cast<double>(v));
    } else if constexpr (std::is_same_v<decltype(v), std::uint64_t>) {
      return v > static_cast<std::uint64_t>(kInt64Max) ? kInt64Max : static_cast<std::int64_t>(v);
    } else {
      return v;
    }
  });
}

Metadata MetadataBuilder::finish(std::shared_ptr<MetadataTree> tree) {
  link(tree->root, tree.get(), nullptr);
  const MetadataNode* root = &tree->root;
  return Metadata(std::move(tree), root);
}

Metadata::Metadata() {
  static const Metadata empty = [] {
    auto tree = std::make_shared<MetadataTree>();
    tree->root.value = MetadataNode::Object{};
    return MetadataBuilder::finish(std::move(tree));
  }();
  // While `empty` itself is made, finish() uses the other constructor.
  *this = empty;
}

Metadata::Kind Metadata::kind() const { return static_cast<Kind>(node_->value.index()); }

std::size_t Metadata::size() const {
  switch (kind()) {
    case Kind::numbers:
      return std::get<NumberArray>(node_->value).size();
    case Kind::strings:
      return std::get<MetadataNode::Strings>(node_->value).size();
    case Kind::array:
      return std::get<MetadataNode::Array>(node_->value).size();
    case Kind::object:
      return std::get<MetadataNode::Object>(node_->value).values.size();
    default:
      return 0;
  }
}

std::string_view Metadata::source() const { return node_->tree == nullptr ? std::string_view{} : node_->tree->source; }

std::string_view Metadata::key(std::size_t i) const { return std::get<MetadataNode::Object>(node_->value).keys[i]; }

Metadata Metadata::at(std::size_t i) const {
  if (const auto* object = std::get_if<MetadataNode::Object>(&node_->value)) return {owner_, &object->values[i]};
  return {owner_, &std::get<MetadataNode::Array>(node_->value)[i]};
}

Metadata Metadata::get(std::string_view key) const {
  if (const auto* object = std::get_if<MetadataNode::Object>(&node_->value)) {
    for (std::size_t i = 0; i < object->keys.size(); ++i) {
      if (object->keys[i] == key) return {owner_, &object->values[i]};
    }
  }
  static const MetadataNode null_node;
  return {owner_, &null_node};
}

bool Metadata::has(std::string_view key) const { return !get(key).is_null(); }

namespace {

Error wrong_kind(const MetadataNode* node, Metadata::Kind kind, std::string_view expected) {
  const std::string path = path_of(node);
  std::string message;
  if (node->tree != nullptr && !node->tree->source.empty()) message = node->tree->source + ": ";
  message += path.empty() ? "the value" : "\"" + path + "\"";
  message += " must be " + std::string(expected) + ", but is " + std::string(kind_name(kind));
  return make_error(ErrorCode::invalid_argument, std::move(message), path);
}

}  // namespace

Result<bool> Metadata::as_bool() const {
  if (const bool* v = std::get_if<bool>(&node_->value)) return *v;
  return wrong_kind(node_, kind(), "a boolean");
}

Result<std::int64_t> Metadata::as_int() const {
  if (const auto* v = std::get_if<std::int64_t>(&node_->value)) return *v;
  if (const auto* v = std::get_if<std::uint64_t>(&node_->value)) {
    if (*v <= static_cast<std::uint64_t>(kInt64Max)) return static_cast<std::int64_t>(*v);
  }
  if (const auto* v = std::get_if<double>(&node_->value)) {
    if (std::abs(*v) < 0x1p63 && std::trunc(*v) == *v) return static_cast<std::int64_t>(*v);
  }
  return wrong_kind(node_, kind(), "an integer of at most 63 bits");
}

Result<double> Metadata::as_double() const {
  if (const auto* v = std::get_if<double>(&node_->value)) return *v;
  if (const auto* v = std::get_if<std::int64_t>(&node_->value)) return static_cast<double>(*v);
  if (const auto* v = std::get_if<std::uint64_t>(&node_->value)) return static_cast<double>(*v);
  return wrong_kind(node_, kind(), "a number");
}

Result<std::string_view> Metadata::as_string() const {
  if (const auto* v = std::get_if<std::string_view>(&node_->value)) return *v;
  return wrong_kind(node_, kind(), "a string");
}

Result<std::vector<std::int64_t>> Metadata::as_ints() const {
  std::vector<std::int64_t> out;
  if (const NumberArray* a = numbers()) {
    out.reserve(a->size());
    for (std::size_t i = 0; i < a->size(); ++i) {
      if (a->number(i) != std::trunc(a->number(i))) return wrong_kind(node_, kind(), "an array of integers");
      out.push_back(a->integer(i));
    }
    return out;
  }
  if (kind() == Kind::numbers || kind() == Kind::strings || kind() == Kind::array || kind() == Kind::object ||
      is_null()) {
    return wrong_kind(node_, kind(), "an array of integers");
  }
  Result<std::int64_t> one = as_int();
  if (!one) return std::move(one).error();
  out.push_back(*one);
  return out;
}

Result<std::vector<double>> Metadata::as_doubles() const {
  std::vector<double> out;
  if (const NumberArray* a = numbers()) {
    out.reserve(a->size());
    for (std::size_t i = 0; i < a->size(); ++i) out.push_back(a->number(i));
    return out;
  }
  Result<double> one = as_double();
  if (!one) return wrong_kind(node_, kind(), "an array of numbers");
  out.push_back(*one);
  return out;
}

Result<std::vector<std::string_view>> Metadata::as_strings() const {
  if (const auto* a = strings()) return *a;
  Result<std::string_view> one = as_string();
  if (!one) return wrong_kind(node_, kind(), "an array of strings");
  return std::vector<std::string_view>{*one};
}

const NumberArray* Metadata::numbers() const {
  if (const auto* a = std::get_if<NumberArray>(&node_->value)) return a;
  static const NumberArray empty;
  return kind() == Kind::strings && size() == 0 ? &empty : nullptr;
}

const std::vector<std::string_view>* Metadata::strings() const {
  if (const auto* a = std::get_if<MetadataNode::Strings>(&node_->value)) return a;
  static const std::vector<std::string_view> empty;
  return kind() == Kind::numbers && size() == 0 ? &empty : nullptr;
}

Result<Metadata> Metadata::require(std::string_view key, std::string_view expected) const {
  Metadata value = get(key);
  if (!value.is_null()) return value;
  const std::string path = path_of(node_);
  std::string message = source().empty() ? std::string() : std::string(source()) + ": ";
  message +=
      "\"" + (path.empty() ? "" : path + ".") + std::string(key) + "\" is missing; expected " + std::string(expected);
  return make_error(ErrorCode::invalid_argument, std::move(message), std::string(key));
}

namespace {

template <class T, class Value>
Result<T> read_member(Result<Metadata> value, Value&& read) {
  if (!value) return std::move(value).error();
  return read(*value);
}

}  // namespace

Result<bool> Metadata::get_bool(std::string_view key) const {
  return read_member<bool>(require(key, "a boolean"), [](const Metadata& v) { return v.as_bool(); });
}
Result<std::int64_t> Metadata::get_int(std::string_view key) const {
  return read_member<std::int64_t>(require(key, "an integer"), [](const Metadata& v) { return v.as_int(); });
}
Result<double> Metadata::get_double(std::string_view key) const {
  return read_member<double>(require(key, "a number"), [](const Metadata& v) { return v.as_double(); });
}
Result<std::string_view> Metadata::get_string(std::string_view key) const {
  return read_member<std::string_view>(require(key, "a string"), [](const Metadata& v) { return v.as_string(); });
}

Result<bool> Metadata::get_bool(std::string_view key, bool fallback) const {
  const Metadata value = get(key);
  return value.is_null() ? Result<bool>(fallback) : value.as_bool();
}
Result<std::int64_t> Metadata::get_int(std::string_view key, std::int64_t fallback) const {
  const Metadata value = get(key);
  return value.is_null() ? Result<std::int64_t>(fallback) : value.as_int();
}
Result<double> Metadata::get_double(std::string_view key, double fallback) const {
  const Metadata value = get(key);
  return value.is_null() ? Result<double>(fallback) : value.as_double();
}
Result<std::string_view> Metadata::get_string(std::string_view key, std::string_view fallback) const {
  const Metadata value = get(key);
  return value.is_null() ? Result<std::string_view>(fallback) : value.as_string();
}

Result<Metadata> parse_json_metadata(std::string_view text, std::string source) {
  Result<boost::json::value> json = parse_json(text);
  if (!json) {
    Error error = std::move(json).error();
    error.message = source + ": " + error.message;
    return error;
  }
  auto tree = std::make_shared<MetadataTree>();
  tree->source = std::move(source);
  tree->root = JsonConverter(*tree).convert(*json);
  return MetadataBuilder::finish(std::move(tree));
}

}  // namespace xgen::weights
