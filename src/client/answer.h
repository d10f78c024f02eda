// Answer: one streamed answer of an OpenAI server, out of the bytes of its body as they come.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "http/client.h"
#include "remote/sse.h"

namespace xgen::client {

// How an answer ended.
enum class Fault : std::uint8_t {
  none,
  connect,       // no connection
  timeout,       // the time of the whole call was over
  refused,       // a status other than 200
  cut,           // the connection or the stream ended too early
  stream_error,  // the server said in its stream that it failed
  unreadable,    // not what an OpenAI server answers
  not_sent,      // this client had too many calls under way
  unfinished,    // given up by this client
};
// As reports have it: "refused" and the like.
std::string_view fault_name(Fault fault);

class Answer {
 public:
  // What one event brings; views into it.
  struct Piece {
    std::string_view text;
    std::string_view reasoning;
    bool has_call = false;  // a part of a tool call
  };
  using OnPiece = std::function<void(const Piece&)>;

  // In this order, as a CallListener hears them. `on_piece` is called for events that bring something.
  void head(const http::ResponseHead& head);
  void body(std::string_view bytes, const OnPiece& on_piece);
  // Whether the whole answer has come; else fault() and message().
  bool end(const http::CallEnd& end);

  Fault fault() const { return fault_; }
  int status() const { return status_; }  // of HTTP; 0 before the head
  const std::string& message() const { return message_; }

  // Known once the server has said so.
  struct Usage {
    int prompt_tokens = 0;
    int cached_tokens = 0;
    int completion_tokens = 0;
  };
  bool has_usage() const { return has_usage_; }
  const Usage& usage() const { return usage_; }
  const std::string& finish_reason() const { return finish_reason_; }

 private:
  void event(std::string_view data, const OnPiece& on_piece);
  void fail(Fault fault, std::string message);

  int status_ = 0;
  bool is_stream_ = false;
  remote::SseReader events_{std::size_t{4} << 20};
  std::string other_;  // the beginning of a body that is no stream
  bool done_ = false;  // [DONE]
  bool has_usage_ = false;
  Usage usage_;
  std::string finish_reason_;
  Fault fault_ = Fault::none;
  std::string message_;
};

}  // namespace xgen::client
