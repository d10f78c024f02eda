// Writing JSON straight into a string: what a token costs on its way out.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace xgen::api {

// Appends `text` quoted and escaped. Invalid UTF-8 is written as U+FFFD, so the output is always valid JSON.
void append_json_string(std::string& out, std::string_view text);
void append_json_int(std::string& out, std::int64_t value);
// Shortest text that reads back as the same float. JSON has no infinities: -inf (a token that cannot be) and NaN are
// written as -9999, as OpenAI does.
void append_json_float(std::string& out, float value);

}  // namespace xgen::api
