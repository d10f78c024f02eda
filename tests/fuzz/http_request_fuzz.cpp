// Bytes of HTTP requests: never a crash, and the same request whether the bytes come at once, in two pieces or one by
// one.
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

// `first` bytes, then `step` more at a time.
Outcome parse(std::string_view bytes, std::size_t first, std::size_t step) {
  Outcome outcome;
  RequestParser parser(outcome.request, kMaxHeader, kMaxBody);
  std::string waiting;
  for (std::size_t at = 0, next = first; at < bytes.size() && parser.state() != RequestParser::State::done &&
                                         parser.state() != RequestParser::State::failed;
       at += next, next = step) {
    waiting += bytes.substr(at, next);
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

// The first two bytes say where the rest is cut in two.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  const std::size_t all = bytes.size() + 1;
  const std::size_t cut = 1 + (std::size_t{data[0]} << 8 | data[1]) % all;
  const Outcome whole = parse(bytes, all, all);
  require(whole.request.body.size() <= kMaxBody && whole.request.headers.size() <= 128);
  if (whole.state == RequestParser::State::failed) require(whole.status >= 400 && whole.status < 600);
  for (const Outcome& pieces : {parse(bytes, 1, 1), parse(bytes, cut, all)}) {
    // A limit may be met by the one and not yet by the other; a request that is accepted is the same request.
    const bool done = whole.state == RequestParser::State::done;
    require(done == (pieces.state == RequestParser::State::done));
    if (!done) continue;
    require(whole.request.method == pieces.request.method && whole.request.path == pieces.request.path);
    require(whole.request.headers == pieces.request.headers && whole.request.body == pieces.request.body);
  }
  return 0;
}
