// RequestParser: one HTTP/1.x request out of bytes (RFC 9110, RFC 9112), strict about everything that two parsers on
// the way could read differently.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "http/server.h"

// Boost's, whose header stays out of this one.
namespace boost::system {
class error_code;
}

namespace xgen::http {

class RequestParser {
 public:
  // Fills `request`, which must outlive the parser.
  RequestParser(Request& request, std::size_t max_header_bytes, std::size_t max_body_bytes);
  ~RequestParser();

  enum class State : unsigned char { head, body, done, failed };

  // Takes the bytes received and not yet consumed; returns how many of them were consumed. Bytes that were not (an
  // unfinished line or head) must be given again, with more behind them.
  std::size_t feed(std::string_view bytes);
  State state() const { return state_; }

  // Once failed: what to answer.
  int error_status() const { return error_status_; }
  const std::string& error_message() const { return error_message_; }

  // Once the head is complete.
  bool keep_alive() const;
  bool http_1_1() const { return http_1_1_; }
  bool expects_continue() const { return expects_continue_; }

 private:
  struct Impl;
  std::size_t feed_head(std::string_view bytes);
  std::size_t feed_body(std::string_view bytes);
  void fail(int status, std::string message);
  void fail(const boost::system::error_code& ec, std::string_view bytes);

  std::unique_ptr<Impl> impl_;
  Request& request_;
  const std::size_t max_header_bytes_;
  const std::size_t max_body_bytes_;
  std::size_t head_bytes_ = 0;  // consumed
  State state_ = State::head;
  bool http_1_1_ = true;
  bool expects_continue_ = false;
  int error_status_ = 0;
  std::string error_message_;
};

}  // namespace xgen::http
