// SseReader: the events of a text/event-stream out of bytes as they come (WHATWG HTML, 9.2.6).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace xgen::remote {

class SseReader {
 public:
  explicit SseReader(std::size_t max_event_bytes) : max_event_bytes_(max_event_bytes) {}

  enum class Step : unsigned char { need_more, event, too_large };
  // Consumes from the front of `input` up to the end of one event; `data` is its data, valid until the next call. With
  // or without a blank after "data:"; comments and other fields are read past.
  Step next(std::string_view& input, std::string_view& data);

 private:
  bool take_line(std::string_view& input, std::string_view& line);

  const std::size_t max_event_bytes_;
  std::string line_;   // the part of a line that has come
  std::string whole_;  // a line that came in parts, while it is looked at
  std::string data_;   // of the event so far, where it is not inside one line of the input
  bool has_data_ = false;
  std::string_view inside_;  // the event's only data line so far, still inside the input
};

}  // namespace xgen::remote
