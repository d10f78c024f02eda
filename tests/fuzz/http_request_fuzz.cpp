// Bytes of HTTP requests: never a crash, and the same request whether the bytes come at once or one by one.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "http/request_parser.h"

namespace {

using xgen::http::Request;
using xgen::http::RequestParser;

constexpr std::size_t kMaxHeader = 2048;
constexpr std::size_t kMaxBody = 4096;

void require(bool holds) {
  if (!holds) std::abort();
}

struct Outcome {
  Request request;
  RequestParser::State state = RequestParser::State::head;
  int status = 0;
};

// `step` bytes more at a time.
Outcome parse(std::string_view bytes, std::size_t step) {
  Outcome outcome;
  RequestParser parser(outcome.request, kMaxHeader, kMaxBody);
  std::string waiting;
  for (std::size_t at = 0; at < bytes.size() && parser.state() != RequestParser::State::done &&
                           parser.state() != RequestParser::State::failed;
       at += step) {
    waiting += bytes.substr(at, step);
    // Bytes behind a consumed part may be more of the same request.
    for (std::size_t used = 1; used > 0 && !waiting.empty();) {
      used = parser.feed(waiting);
      require(used <= waiting.size());
      waiting.erase(0, used);
    }
  }
  outcome.state = parser.state();
  outcome.status = parser.error_status();
  return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const Outcome whole = parse(bytes, size == 0 ? 1 : size);
  const Outcome dripped = parse(bytes, 1);
  require(whole.request.body.size() <= kMaxBody && whole.request.headers.size() <= 128);
  if (whole.state == RequestParser::State::failed) require(whole.status >= 400 && whole.status < 600);
  // A limit may be met by the one and not yet by the other; a request that is accepted is the same request.
  if (whole.state == RequestParser::State::done && dripped.state == RequestParser::State::done) {
    require(whole.request.method == dripped.request.method && whole.request.path == dripped.request.path);
    require(whole.request.headers == dripped.request.headers && whole.request.body == dripped.request.body);
  }
  require((whole.state == RequestParser::State::done) == (dripped.state == RequestParser::State::done));
  return 0;
}
