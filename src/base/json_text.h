// Text as the inside of a JSON string.
#pragma once

#include <string>
#include <string_view>

namespace xgen {

// Appends `text` escaped, without quotes. Line breaks and other control characters never come through as they are, and
// invalid UTF-8 is written as U+FFFD.
void append_json_escaped(std::string& out, std::string_view text);

}  // namespace xgen
