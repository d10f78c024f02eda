#include "remote/sse.h"

#include <algorithm>

namespace xgen::remote {

// A whole line without its end ("\n", "\r\n"). A lone "\r" as an end is not known to any server.
bool SseReader::take_line(std::string_view& input, std::string_view& line) {
  const std::size_t end = input.find('\n');
  const std::string_view part = input.substr(0, end);
  input.remove_prefix(end == std::string_view::npos ? input.size() : end + 1);
  if (end == std::string_view::npos || !line_.empty()) {
    line_ += part;
    if (end == std::string_view::npos) return false;
    whole_.swap(line_);
    line_.clear();
    line = whole_;
  } else {
    line = part;
  }
  if (line.ends_with('\r')) line.remove_suffix(1);
  return true;
}

SseReader::Step SseReader::next(std::string_view& input, std::string_view& data) {
  for (;;) {
    std::string_view line;
    const bool came_in_parts = !line_.empty();
    const bool whole = take_line(input, line);
    if (line_.size() + data_.size() > max_event_bytes_ || line.size() > max_event_bytes_) return Step::too_large;
    if (!whole) {
      // What lies inside the input is kept: the input may go.
      if (!inside_.empty()) data_ = inside_;
      inside_ = {};
      return Step::need_more;
    }
    if (line.empty()) {
      if (!has_data_) continue;
      has_data_ = false;
      if (inside_.empty()) {
        whole_.swap(data_);
        data_.clear();
        data = whole_;
      } else {
        data = inside_;
        inside_ = {};
      }
      return Step::event;
    }
    if (!line.starts_with("data")) continue;
    line.remove_prefix(4);
    if (!line.empty() && line.front() != ':') continue;  // a field whose name goes on
    line.remove_prefix(std::min<std::size_t>(1, line.size()));
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (!has_data_ && !came_in_parts) {
      inside_ = line;
    } else {
      if (!inside_.empty()) data_ = inside_;
      inside_ = {};
      if (has_data_) data_ += '\n';
      data_ += line;
    }
    has_data_ = true;
  }
}

}  // namespace xgen::remote
