// The data of one event of a stream as JSON, and looking things up in it. For .cpp files: Boost.JSON is large.
#pragma once

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

namespace xgen::remote {

// Parsed into memory of its own where it is as small as a token's event.
class EventJson {
 public:
  explicit EventJson(std::string_view data)
      : memory_(buffer_.data(), buffer_.size()), value_(read(data, boost::json::storage_ptr(&memory_))) {}
  EventJson(const EventJson&) = delete;
  EventJson& operator=(const EventJson&) = delete;
  // Null if it is none.
  const boost::json::object* object() const { return value_.if_object(); }

 private:
  static boost::json::value read(std::string_view data, boost::json::storage_ptr memory) {
    boost::json::parse_options options;
    options.max_depth = kMaxDepth;
    boost::json::error_code fault;
    boost::json::value value = boost::json::parse(data, fault, std::move(memory), options);
    if (fault) value = nullptr;
    return value;
  }

  static constexpr std::size_t kBuffer = 8 << 10;  // bytes
  static constexpr std::size_t kMaxDepth = 32;
  std::array<unsigned char, kBuffer> buffer_;
  boost::json::monotonic_resource memory_;
  const boost::json::value value_;
};

// What is absent or of another type is empty, null or 0.
inline std::string_view view(const boost::json::string& text) { return {text.data(), text.size()}; }
inline std::string_view text_at(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = object.if_contains(key);
  const boost::json::string* text = value == nullptr ? nullptr : value->if_string();
  return text == nullptr ? std::string_view() : view(*text);
}
inline const boost::json::object* object_at(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = object.if_contains(key);
  return value == nullptr ? nullptr : value->if_object();
}
inline const boost::json::array* array_at(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = object.if_contains(key);
  return value == nullptr ? nullptr : value->if_array();
}
inline int count_of(const boost::json::value& value) {
  return value.is_int64() ? static_cast<int>(std::clamp<std::int64_t>(value.get_int64(), 0, 1 << 30)) : 0;
}
inline int count_at(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = object.if_contains(key);
  return value == nullptr ? 0 : count_of(*value);
}
inline std::optional<float> number_of(const boost::json::value& value) {
  if (value.is_double()) return static_cast<float>(value.get_double());
  if (value.is_int64()) return static_cast<float>(value.get_int64());
  return std::nullopt;
}
inline std::optional<float> logprob_of(const boost::json::object& token) {
  const boost::json::value* value = token.if_contains("logprob");
  return value == nullptr ? std::nullopt : number_of(*value);
}

}  // namespace xgen::remote
