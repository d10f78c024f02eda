// Bytes of HTTP answers: never a crash, and the same answer whether the bytes come at once or one by one.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "http/response_parser.h"

namespace {

using xgen::http::ResponseHead;
using xgen::http::ResponseParser;
using Step = ResponseParser::Step;

constexpr std::size_t kMaxHead = 2048;

void require(bool holds) {
  if (!holds) std::abort();
}

struct Outcome {
  ResponseHead head;
  std::string body;
  Step end = Step::need_more;
  bool keep_alive = false;
};

// `step` bytes more at a time, then the end of the connection.
Outcome parse(std::string_view bytes, std::size_t step, bool head_request) {
  Outcome outcome;
  ResponseParser parser(head_request, kMaxHead);
  for (std::size_t at = 0; at < bytes.size() && outcome.end == Step::need_more; at += step) {
    const std::string part(bytes.substr(at, step));  // gone after this round
    std::string_view input = part;
    std::string_view piece;
    for (;;) {
      const Step what = parser.next(input, piece);
      if (what == Step::head) outcome.head = parser.head();
      if (what == Step::body) {
        require(!piece.empty() && piece.data() >= part.data() &&
                piece.data() + piece.size() <= part.data() + part.size());
        outcome.body += piece;
      }
      if (what == Step::need_more) {
        require(input.empty());
        break;
      }
      if (what == Step::done || what == Step::failed) {
        outcome.end = what;
        break;
      }
    }
  }
  if (outcome.end == Step::need_more) outcome.end = parser.finish();
  require(outcome.end == Step::done || outcome.end == Step::failed);
  require((outcome.end == Step::failed) == !parser.error().empty());
  outcome.keep_alive = parser.keep_alive();
  return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const bool head_request = size > 0 && data[0] == 'h';  // else the byte is the answer's own
  const std::string_view bytes(reinterpret_cast<const char*>(data) + head_request, size - head_request);
  const Outcome whole = parse(bytes, size == 0 ? 1 : size, head_request);
  const Outcome dripped = parse(bytes, 1, head_request);
  require(whole.end == dripped.end && whole.body == dripped.body && whole.head.status == dripped.head.status);
  require(whole.head.headers == dripped.head.headers);
  if (whole.end == Step::done) require(whole.keep_alive == dripped.keep_alive);
  return 0;
}
