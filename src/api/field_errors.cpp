#include "api/field_errors.h"

#include <charconv>
#include <utility>

#include "base/json.h"

namespace xgen::api {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxNameShown = 128;  // bytes

// What was sent may be a part of a prompt.
Error with_received(Error error, const json::value& got) {
  error.received = ", got " + show(got);
  return error;
}

}  // namespace

std::string number_text(double number) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), number).ptr};
}

std::string_view text_of(const json::string& text) { return {text.data(), text.size()}; }

std::string show(const json::value& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list of " + std::to_string(value.as_array().size());
  if (value.is_double()) return number_text(value.get_double());
  if (const json::string* text = value.if_string(); text != nullptr && text->size() > 40)
    return "a string of " + std::to_string(text->size()) + " bytes";
  return json::serialize(value);
}

std::string member(const std::string& of, std::string_view key) {
  return of + "." + std::string(key.substr(0, kMaxNameShown));
}

Error invalid(std::string message, std::string param) {
  return make_error(ErrorCode::invalid_argument, std::move(message), std::move(param));
}

Error must_be(std::string param, std::string_view what, const json::value& got) {
  std::string message = "'" + param + "' must be " + std::string(what);
  return with_received(invalid(std::move(message), std::move(param)), got);
}

Error not_supported(std::string param, const json::value& got) {
  std::string message = "'" + param + "' is not supported by this server";
  return with_received(make_error(ErrorCode::unsupported, std::move(message), std::move(param)), got);
}

}  // namespace xgen::api
