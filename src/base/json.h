// Parsing JSON text with limits, over Boost.JSON. Include it in .cpp files only: the library's headers are large.
#pragma once

#include <boost/json.hpp>
#include <cstddef>
#include <string_view>

#include "base/result.h"

namespace xgen {

struct JsonLimits {
  std::size_t max_depth = 64;
  std::size_t max_size = std::size_t{256} << 20;  // bytes of text
};

// Strict JSON (RFC 8259), invalid UTF-8 refused. The error message says what is wrong and at which byte, counted from
// 0; the caller adds the file or field.
Result<boost::json::value> parse_json(std::string_view text, const JsonLimits& limits = {});

}  // namespace xgen
