// Fields: reading the members of a JSON object, with errors that name the place. For .cpp files of this room.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace xgen::text {

// A view of one object; the document must outlive it. A member that is null counts as absent. Readers that take a
// default leave `out` alone where the member is absent; string() and object() require theirs.
class Fields {
 public:
  Fields() = default;
  Fields(const boost::json::object& object, std::string where) : object_(&object), where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  const boost::json::object& raw() const { return *object_; }

  const boost::json::value* find(std::string_view key) const {
    const boost::json::value* v = object_->if_contains(boost::json::string_view(key.data(), key.size()));
    return v == nullptr || v->is_null() ? nullptr : v;
  }
  bool has(std::string_view key) const { return find(key) != nullptr; }

  Error error(const std::string& what) const {
    return make_error(ErrorCode::invalid_argument, where_.empty() ? what : where_ + ": " + what);
  }
  Error unsupported(std::string_view key, std::string_view value) const {
    return make_error(ErrorCode::unsupported, path(key) + " '" + std::string(value.substr(0, 100)) + "' is not known");
  }

  Status string(std::string_view key, std::string& out) const {
    if (!has(key)) return missing(key);
    return optional_string(key, out);
  }
  Status optional_string(std::string_view key, std::string& out) const {
    const boost::json::value* v = find(key);
    if (v == nullptr) return {};
    if (!v->is_string()) return wrong(key, "a string");
    out.assign(v->get_string().data(), v->get_string().size());
    return {};
  }
  Status boolean(std::string_view key, bool& out) const {
    const boost::json::value* v = find(key);
    if (v == nullptr) return {};
    if (!v->is_bool()) return wrong(key, "true or false");
    out = v->get_bool();
    return {};
  }
  Status integer(std::string_view key, std::int64_t& out) const {
    const boost::json::value* v = find(key);
    if (v == nullptr) return {};
    if (!v->is_int64()) return wrong(key, "an integer");
    out = v->get_int64();
    return {};
  }
  Status number(std::string_view key, double& out) const {
    const boost::json::value* v = find(key);
    if (v == nullptr) return {};
    if (!v->is_number()) return wrong(key, "a number");
    out = v->to_number<double>();
    return {};
  }
  Status integers(std::string_view key, std::vector<std::int64_t>& out) const {
    const boost::json::value* v = find(key);
    if (v == nullptr) return missing(key);
    if (!v->is_array()) return wrong(key, "a list of integers");
    for (const boost::json::value& item : v->get_array()) {
      if (!item.is_int64()) return wrong(key, "a list of integers");
      out.push_back(item.get_int64());
    }
    return {};
  }
  Status object(std::string_view key, Fields& out) const {
    const boost::json::value* v = find(key);
    if (v == nullptr) return missing(key);
    if (!v->is_object()) return wrong(key, "an object");
    out = Fields(v->get_object(), path(key));
    return {};
  }
  Status objects(std::string_view key, std::vector<Fields>& out) const {
    const boost::json::value* v = find(key);
    if (v == nullptr) return missing(key);
    if (!v->is_array()) return wrong(key, "a list");
    std::size_t i = 0;
    for (const boost::json::value& item : v->get_array()) {
      const std::string place = path(key) + "[" + std::to_string(i++) + "]";
      if (!item.is_object()) return make_error(ErrorCode::invalid_argument, place + " must be an object");
      out.emplace_back(item.get_object(), place);
    }
    return {};
  }

 private:
  std::string path(std::string_view key) const {
    return where_.empty() ? std::string(key) : where_ + "." + std::string(key);
  }
  Error missing(std::string_view key) const {
    return make_error(ErrorCode::invalid_argument, path(key) + " is missing");
  }
  Error wrong(std::string_view key, std::string_view what) const {
    return make_error(ErrorCode::invalid_argument, path(key) + " must be " + std::string(what));
  }

  const boost::json::object* object_ = nullptr;
  std::string where_;
};

}  // namespace xgen::text
