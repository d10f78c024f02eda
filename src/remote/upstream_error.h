// What a remote server's faults mean for the client of this one.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "http/client.h"

namespace boost::json {
class object;
}

namespace xgen::remote {

// Who speaks: for messages that name the model and its server.
struct Upstream {
  std::string model;   // as clients call it
  std::string origin;  // "http://vllm-0:8000"
  std::string secret;  // never in a message, even where the server repeats it

  // "Model 'm': its engine at http://… " + what
  std::string says(std::string_view what) const;
  // Internal: a stream of its that is not what it should be.
  Error unreadable(std::string_view why) const;
  std::string without_secret(std::string text) const;
};

// An answer other than 200, with the body that came of it. 400, 404, 422: invalid_argument with the server's message
// and param; 413: too_large; 401, 403: unavailable, without what the server says; 429: overloaded, 503: unavailable,
// with its Retry-After; 408: timeout; 424 and other 5xx: unavailable or internal.
Error error_of_answer(const http::ResponseHead& head, std::string_view body, const Upstream& upstream);
// An error inside a stream: {"error": {…}} or {"error": "…"}, or {"object": "error", …}. The status is what its code or
// type says. Nothing else of a chunk has these.
bool is_stream_error(const boost::json::object& chunk);
Error error_of_chunk(const boost::json::object& chunk, const Upstream& upstream);
// A call that ended before its answer was complete.
Error error_of_call(const http::CallEnd& end, const Upstream& upstream);

}  // namespace xgen::remote
