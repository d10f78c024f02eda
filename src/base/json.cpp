#include "base/json.h"

#include <memory>
#include <string>

#include "base/utf8.h"

namespace xgen {

Result<boost::json::value> parse_json(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_size) {
    return make_error(ErrorCode::too_large, "JSON text of " + std::to_string(text.size()) +
                                                " bytes is over the limit of " + std::to_string(limits.max_size));
  }
  boost::json::parse_options options;
  options.max_depth = limits.max_depth;
  // A monotonic resource makes many small strings cheap; the value keeps it alive.
  boost::json::stream_parser parser(boost::json::make_shared_resource<boost::json::monotonic_resource>(), options);
  boost::system::error_code error;
  std::size_t used = parser.write_some(text.data(), text.size(), error);
  if (!error && used < text.size()) {
    const std::size_t rest = text.find_first_not_of(" \t\r\n", used);
    if (rest != std::string_view::npos) {
      return make_error(ErrorCode::invalid_argument, "invalid JSON at byte " + std::to_string(rest) + ": extra data");
    }
  }
  if (!error) parser.finish(error);
  if (error) {
    // The library calls it a syntax error, wherever in the sequence it noticed.
    if (const std::size_t bad = find_invalid_utf8(text); bad <= used)
      return make_error(ErrorCode::invalid_argument, "not valid UTF-8 at byte " + std::to_string(bad));
    std::string reason = error.message();
    if (error == boost::json::error::too_deep)
      reason = "nested deeper than " + std::to_string(limits.max_depth) + " levels";
    return make_error(ErrorCode::invalid_argument, "invalid JSON at byte " + std::to_string(used) + ": " + reason);
  }
  return parser.release();
}

}  // namespace xgen
