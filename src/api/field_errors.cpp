#include "api/field_errors.h"

#include <utility>

#include "base/json.h"

namespace xgen::api {

namespace json = boost::json;

std::string_view text_of(const json::string& text) { return {text.data(), text.size()}; }

std::string show(const json::value& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list of " + std::to_string(value.as_array().size());
  if (const json::string* text = value.if_string(); text != nullptr && text->size() > 40)
    return "a string of " + std::to_string(text->size()) + " bytes";
  return json::serialize(value);
}

Error invalid(std::string message, std::string param) {
  return make_error(ErrorCode::invalid_argument, std::move(message), std::move(param));
}

Error must_be(std::string param, std::string_view what, const json::value& got) {
  std::string message = "'" + param + "' must be " + std::string(what) + ", got " + show(got);
  return invalid(std::move(message), std::move(param));
}

Error not_supported(std::string param, const json::value& got) {
  std::string message = "'" + param + "' is not supported by this server, got " + show(got);
  return make_error(ErrorCode::unsupported, std::move(message), std::move(param));
}

}  // namespace xgen::api
