// What a request's fields are told when they are wrong: short messages that name the field.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace boost::json {
class string;
class value;
}  // namespace boost::json

namespace xgen::api {

// Not as JSON libraries write it, 1.5E0.
std::string number_text(double number);
std::string_view text_of(const boost::json::string& text);
// A value as error messages show it: short, whatever was sent.
std::string show(const boost::json::value& value);
// The name of a field inside another one: no more of a caller's name than an error should repeat.
std::string member(const std::string& of, std::string_view key);

Error invalid(std::string message, std::string param);
Error must_be(std::string param, std::string_view what, const boost::json::value& got);
Error not_supported(std::string param, const boost::json::value& got);

}  // namespace xgen::api
