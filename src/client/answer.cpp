#include "client/answer.h"

#include <algorithm>
#include <array>

#include "base/json.h"
#include "client/api.h"

namespace xgen::client {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxOther = 64 << 10;

std::string_view text_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  const json::string* text = value == nullptr ? nullptr : value->if_string();
  return text == nullptr ? std::string_view() : std::string_view(text->data(), text->size());
}
const json::object* object_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr ? nullptr : value->if_object();
}
int count_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_int64()) return 0;
  return static_cast<int>(std::clamp<std::int64_t>(value->get_int64(), 0, 1 << 30));
}

}  // namespace

std::string_view fault_name(Fault fault) {
  constexpr std::string_view kNames[] = {"none",         "connect",    "timeout",  "refused",   "cut",
                                         "stream_error", "unreadable", "not_sent", "unfinished"};
  return kNames[static_cast<std::size_t>(fault)];
}

void Answer::fail(Fault fault, std::string message) {
  if (fault_ != Fault::none) return;
  fault_ = fault;
  message_ = std::move(message);
}

void Answer::head(const http::ResponseHead& head) {
  status_ = head.status;
  is_stream_ = status_ == 200 && head.header("content-type").starts_with("text/event-stream");
}

void Answer::body(std::string_view bytes, const OnPiece& on_piece) {
  if (!is_stream_) {
    other_.append(bytes.substr(0, kMaxOther - std::min(kMaxOther, other_.size())));
    return;
  }
  std::string_view data;
  while (fault_ == Fault::none && !done_) {
    switch (events_.next(bytes, data)) {
      case remote::SseReader::Step::need_more:
        return;
      case remote::SseReader::Step::event:
        event(data, on_piece);
        break;
      case remote::SseReader::Step::too_large:
        return fail(Fault::unreadable, "an event of the stream is too large");
    }
  }
}

void Answer::event(std::string_view data, const OnPiece& on_piece) {
  if (data.empty()) return;
  if (data == "[DONE]") {
    done_ = true;
    return;
  }
  // A token's event is parsed without asking for memory.
  std::array<unsigned char, 8 << 10> buffer;
  json::monotonic_resource memory(buffer.data(), buffer.size());
  json::error_code error;
  const json::value value = json::parse(data, error, &memory);
  const json::object* chunk = error ? nullptr : value.if_object();
  if (chunk == nullptr) return fail(Fault::unreadable, "an event of the stream is not a JSON object");
  if (const json::value* problem = chunk->if_contains("error"); problem != nullptr && !problem->is_null())
    return fail(Fault::stream_error, error_message(data));
  if (const json::object* usage = object_at(*chunk, "usage")) {
    has_usage_ = true;
    usage_.prompt_tokens = count_at(*usage, "prompt_tokens");
    usage_.completion_tokens = count_at(*usage, "completion_tokens");
    if (const json::object* details = object_at(*usage, "prompt_tokens_details"))
      usage_.cached_tokens = count_at(*details, "cached_tokens");
  }
  const json::value* choices = chunk->if_contains("choices");
  const json::array* list = choices == nullptr ? nullptr : choices->if_array();
  if (list == nullptr || list->empty()) return;
  const json::object* choice = list->front().if_object();
  if (choice == nullptr) return fail(Fault::unreadable, "a choice of the stream is not an object");
  if (const std::string_view reason = text_at(*choice, "finish_reason"); !reason.empty()) finish_reason_ = reason;
  Piece piece;
  if (const json::object* delta = object_at(*choice, "delta")) {
    piece.text = text_at(*delta, "content");
    piece.reasoning = text_at(*delta, "reasoning_content");
    if (piece.reasoning.empty()) piece.reasoning = text_at(*delta, "reasoning");
    const json::value* calls = delta->if_contains("tool_calls");
    piece.has_call = calls != nullptr && calls->is_array() && !calls->get_array().empty();
  } else {
    piece.text = text_at(*choice, "text");
  }
  if (!piece.text.empty() || !piece.reasoning.empty() || piece.has_call) on_piece(piece);
}

bool Answer::end(const http::CallEnd& end) {
  if (status_ != 0 && status_ != 200) {
    fail(Fault::refused, refusal_text(status_, other_));
  } else if (!end.status) {
    const Error& error = end.status.error();
    const Fault fault = error.code == ErrorCode::timeout && end.phase != http::CallEnd::Phase::connecting
                            ? Fault::timeout
                        : error.code == ErrorCode::cancelled            ? Fault::unfinished
                        : error.code == ErrorCode::overloaded           ? Fault::not_sent
                        : end.phase == http::CallEnd::Phase::connecting ? Fault::connect
                                                                        : Fault::cut;
    fail(fault, error.message);
  } else if (!is_stream_) {
    const std::string said = error_message(other_);
    fail(Fault::unreadable, said.empty() ? "the answer is no event stream" : said);
  } else if (!done_ && finish_reason_.empty()) {
    fail(Fault::cut, "the stream ended without [DONE]");
  }
  return fault_ == Fault::none;
}

}  // namespace xgen::client
