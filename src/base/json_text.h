// Writing JSON straight into a string.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace xgen {

// Appends `text` escaped, without quotes. Line breaks and other control characters never come through as they are, and
// invalid UTF-8 is written as U+FFFD.
void append_json_escaped(std::string& out, std::string_view text);

// The same with quotes.
void append_json_string(std::string& out, std::string_view text);
void append_json_int(std::string& out, std::int64_t value);
// Shortest text that reads back as the same float. JSON has no infinities: -inf (a token that cannot be) and NaN are
// written as -9999, as OpenAI does.
void append_json_float(std::string& out, float value);

}  // namespace xgen
