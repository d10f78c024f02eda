#include "http/response_parser.h"

#include <algorithm>
#include <charconv>

namespace xgen::http {
namespace {

constexpr std::size_t kMaxHeaders = 256;
constexpr std::size_t kMaxChunkLine = 1024;  // bytes of one chunk-size line with its extensions

bool is_token_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// Whether a comma-separated list names `token`.
bool lists(std::string_view list, std::string_view token) {
  while (!list.empty()) {
    const std::size_t comma = std::min(list.find(','), list.size());
    if (equal_ignoring_case(trim(list.substr(0, comma)), token)) return true;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return false;
}

}  // namespace

ResponseParser::Step ResponseParser::fail(std::string why) {
  state_ = State::failed;
  error_ = std::move(why);
  return Step::failed;
}

// A whole line without its end. False if it has not come whole; too long a one is cut, its size counts on.
bool ResponseParser::take_line(std::string_view& input, std::string_view& line) {
  const std::size_t end = input.find('\n');
  const std::size_t taken = end == std::string_view::npos ? input.size() : end + 1;
  head_bytes_ += taken;
  const std::string_view part = input.substr(0, std::min(taken, max_head_bytes_ + 1));
  input.remove_prefix(taken);
  if (end == std::string_view::npos || !line_.empty()) {
    if (line_.size() <= max_head_bytes_) line_ += part;
    if (end == std::string_view::npos) return false;
    kept_line_.swap(line_);
    line_.clear();
    line = kept_line_;
  } else {
    line = part;
  }
  if (line.ends_with('\n')) line.remove_suffix(1);
  if (line.ends_with('\r')) line.remove_suffix(1);
  return true;
}

ResponseParser::Step ResponseParser::on_status_line(std::string_view line) {
  // "HTTP/1.1 200 OK"; the reason may be absent, and some leave out the blank before it too.
  const bool shaped = line.size() >= 12 && line.starts_with("HTTP/1.") && (line[7] == '0' || line[7] == '1') &&
                      line[8] == ' ' && (line.size() == 12 || line[12] == ' ');
  int status = 0;
  if (shaped) std::from_chars(line.data() + 9, line.data() + 12, status);
  if (!shaped || status < 100 || status > 999) return fail("the answer is not HTTP/1.1");
  head_.status = status;
  http_1_1_ = line[7] == '1';
  state_ = State::header_line;
  return Step::need_more;
}

ResponseParser::Step ResponseParser::on_header_line(std::string_view line) {
  if (line.empty()) return on_head_end();
  const std::size_t colon = std::min(line.find(':'), line.size());
  const std::string_view name = line.substr(0, colon);
  if (name.empty() || colon == line.size() || !std::all_of(name.begin(), name.end(), is_token_char))
    return fail("the head of the answer has a malformed line");
  if (head_.headers.size() == kMaxHeaders)
    return fail("the head of the answer has more than " + std::to_string(kMaxHeaders) + " fields");
  const std::string_view value = trim(line.substr(colon + 1));
  if (value.find('\0') != std::string_view::npos || value.find('\r') != std::string_view::npos)
    return fail("the head of the answer has a malformed line");
  if (equal_ignoring_case(name, "content-length")) {
    std::uint64_t length = 0;
    const auto [stop, fault] = std::from_chars(value.data(), value.data() + value.size(), length);
    if (fault != std::errc{} || stop != value.data() + value.size() || (has_length_ && length != length_))
      return fail("the answer has a malformed Content-Length");
    has_length_ = true;
    length_ = length;
  } else if (equal_ignoring_case(name, "transfer-encoding")) {
    if (!equal_ignoring_case(value, "chunked") || chunked_) return fail("the answer has an unknown Transfer-Encoding");
    chunked_ = true;
  } else if (equal_ignoring_case(name, "connection") && lists(value, "close")) {
    keep_alive_ = false;
  }
  head_.headers.emplace_back(name, value);
  return Step::need_more;
}

ResponseParser::Step ResponseParser::on_head_end() {
  if (head_.status < 200) {
    if (head_.status == 101) return fail("the answer switches protocols, which was not asked for");
    head_ = {};
    has_length_ = chunked_ = false;
    state_ = State::status_line;
    return Step::need_more;
  }
  if (!http_1_1_) keep_alive_ = false;
  if (chunked_ && has_length_) keep_alive_ = false;  // a smuggler's mark (RFC 9112 6.3)
  left_ = length_;
  if (head_request_ || head_.status == 204 || head_.status == 304) {
    state_ = State::done;
  } else if (chunked_) {
    state_ = State::chunk_size;
  } else if (has_length_) {
    state_ = left_ == 0 ? State::done : State::counted_body;
  } else {
    state_ = State::body_to_end;
    keep_alive_ = false;
  }
  return Step::head;
}

ResponseParser::Step ResponseParser::on_chunk_size(std::string_view line) {
  const std::string_view digits = trim(line.substr(0, line.find(';')));
  const auto [stop, fault] = std::from_chars(digits.data(), digits.data() + digits.size(), left_, 16);
  if (fault != std::errc{} || stop != digits.data() + digits.size())
    return fail("the body of the answer has a malformed chunk");
  state_ = left_ == 0 ? State::trailer_line : State::chunk_data;
  head_bytes_ = 0;  // trailers have the head's limit for themselves
  return Step::need_more;
}

ResponseParser::Step ResponseParser::next(std::string_view& input, std::string_view& piece) {
  for (;;) {
    switch (state_) {
      case State::done:
        return Step::done;
      case State::failed:
        return Step::failed;
      case State::body_to_end:
      case State::counted_body:
      case State::chunk_data: {
        if (input.empty()) return Step::need_more;
        if (state_ == State::body_to_end) left_ = input.size();
        piece = input.substr(0, static_cast<std::size_t>(std::min<std::uint64_t>(left_, input.size())));
        input.remove_prefix(piece.size());
        left_ -= piece.size();
        if (left_ == 0 && state_ == State::counted_body) state_ = State::done;
        if (left_ == 0 && state_ == State::chunk_data) state_ = State::chunk_end;
        return Step::body;
      }
      default:
        break;
    }
    if (input.empty()) return Step::need_more;
    std::string_view line;
    const bool chunk = state_ == State::chunk_size || state_ == State::chunk_end;
    if (chunk && line_.empty()) head_bytes_ = 0;
    const bool whole = take_line(input, line);
    if (head_bytes_ > (chunk ? kMaxChunkLine : max_head_bytes_))
      return fail(chunk ? "the body of the answer has a malformed chunk"
                        : "the head of the answer is larger than " + std::to_string(max_head_bytes_) + " bytes");
    if (!whole) return Step::need_more;
    Step step = Step::need_more;
    switch (state_) {
      case State::status_line:
        step = on_status_line(line);
        break;
      case State::header_line:
        step = on_header_line(line);
        break;
      case State::chunk_size:
        step = on_chunk_size(line);
        break;
      case State::chunk_end:
        if (!line.empty()) return fail("the body of the answer has a malformed chunk");
        state_ = State::chunk_size;
        break;
      default:  // a trailer: read past
        if (line.empty()) state_ = State::done;
        break;
    }
    if (step != Step::need_more) return step;
  }
}

ResponseParser::Step ResponseParser::finish() {
  switch (state_) {
    case State::done:
    case State::body_to_end:
      state_ = State::done;
      return Step::done;
    case State::failed:
      return Step::failed;
    case State::status_line:
      return fail("the connection was closed without an answer");
    case State::header_line:
      return fail("the connection was closed inside the head of the answer");
    case State::counted_body:
      return fail("the connection was closed after " + std::to_string(length_ - left_) + " of " +
                  std::to_string(length_) + " bytes of the body");
    default:
      return fail("the connection was closed before the end of the body");
  }
}

}  // namespace xgen::http
