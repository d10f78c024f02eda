// ResponseParser: one HTTP/1.x answer out of bytes as they come (RFC 9112). Body bytes are passed on at once, however
// the bytes are cut: nothing of a stream waits for what follows it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "http/client.h"

namespace xgen::http {

class ResponseParser {
 public:
  // `head_request`: the answer to HEAD, which has no body whatever its head says.
  ResponseParser(bool head_request, std::size_t max_head_bytes)
      : head_request_(head_request), max_head_bytes_(max_head_bytes) {}

  enum class Step : std::uint8_t {
    need_more,  // all input is consumed
    head,       // head() is complete; interim answers (1xx) are read past
    body,       // `piece` is the next part of the body, inside the input
    done,       // the answer is complete; what is left of the input is not part of it
    failed,     // error()
  };
  // Consumes from the front of `input`.
  Step next(std::string_view& input, std::string_view& piece);
  // The connection has ended: done if that is how this answer ends, else failed.
  Step finish();

  ResponseHead& head() { return head_; }
  const std::string& error() const { return error_; }
  // Once done: whether the connection may carry another request.
  bool keep_alive() const { return keep_alive_; }

 private:
  enum class State : std::uint8_t {
    status_line,
    header_line,
    counted_body,  // Content-Length
    chunk_size,
    chunk_data,
    chunk_end,
    trailer_line,
    body_to_end,  // ends with the connection
    done,
    failed
  };

  bool take_line(std::string_view& input, std::string_view& line);
  Step fail(std::string why);
  Step on_status_line(std::string_view line);
  Step on_header_line(std::string_view line);
  Step on_head_end();
  Step on_chunk_size(std::string_view line);

  const bool head_request_;
  const std::size_t max_head_bytes_;
  State state_ = State::status_line;
  ResponseHead head_;
  std::string line_;            // the part of a line that has come
  std::string kept_line_;       // a line that came in parts, while it is looked at
  std::size_t head_bytes_ = 0;  // of all heads and trailers of this answer
  std::uint64_t left_ = 0;      // of the counted body or chunk
  std::uint64_t length_ = 0;    // Content-Length
  bool has_length_ = false;
  bool chunked_ = false;
  bool http_1_1_ = true;
  bool keep_alive_ = true;
  std::string error_;
};

}  // namespace xgen::http
