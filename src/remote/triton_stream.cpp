#include "remote/triton_stream.h"

#include <utility>

#include "remote/event_json.h"

namespace xgen::remote {
namespace {

namespace json = boost::json;
using inference::ChoiceFinished;
using inference::Delta;
using inference::FinishReason;

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD: a character whose bytes are not all there yet

}  // namespace

TritonStream::Wanted::Wanted(const inference::GenerateRequest& request)
    : stop(request.stop.stop),
      max_tokens(request.stop.max_tokens),
      min_tokens(request.stop.min_tokens),
      echo(echo_of(request)) {}

TritonStream::TritonStream(Wanted wanted, bool accumulates, Upstream upstream)
    : upstream_(std::move(upstream)), wanted_(std::move(wanted)), accumulates_(accumulates), matcher_(wanted_.stop) {}

Result<std::string> TritonStream::new_text(std::string_view text) {
  if (!accumulates_) return std::string(text);
  last_text_ = text;
  std::string_view sure = text;
  while (sure.ends_with(kReplacement)) sure.remove_suffix(kReplacement.size());
  if (sure.size() < so_far_.size() && so_far_.starts_with(sure)) return std::string();
  if (!sure.starts_with(so_far_)) return upstream_.unreadable("text that it had sent has changed");
  std::string out(sure.substr(so_far_.size()));
  so_far_ = sure;
  return out;
}

Status TritonStream::take(std::string_view data, const Emit& emit) {
  if (data.empty() || done_) return {};
  const EventJson parsed(data);
  const json::object* event = parsed.object();
  if (event == nullptr) return upstream_.unreadable("an event is not a JSON object");
  if (matched_) {
    // The last event may be empty; anything else goes past the answer's end, an error included.
    if (!text_at(*event, "text_output").empty() || is_stream_error(*event)) done_ = cut_ = true;
    return {};
  }
  if (is_stream_error(*event)) return error_of_chunk(*event, upstream_);
  const json::value* text = event->if_contains("text_output");
  if (text == nullptr || !text->is_string()) return upstream_.unreadable("an event has no text_output");
  if (!std::exchange(started_, true)) {
    inference::Started started;
    started.prompt_text = wanted_.echo;
    if (!emit(std::move(started))) return {};
  }

  if (const int told = count_at(*event, "num_input_tokens"); told > 0) usage_.prompt_tokens = told;
  Delta delta;
  // Without the engine's count an event is taken for a token.
  delta.tokens = event->contains("num_output_tokens") ? count_at(*event, "num_output_tokens") : 1;
  const bool may_stop = usage_.completion_tokens >= wanted_.min_tokens;
  usage_.completion_tokens += delta.tokens;
  auto added = new_text(view(text->get_string()));
  if (!added) return std::move(added).error();
  text::StopMatcher::Output out;
  if (may_stop)
    out = matcher_.push(*added);
  else
    out.text = *std::move(added);
  delta.text = std::move(out.text);
  if (!emit(std::move(delta)) || !out.matched) return {};
  matched_ = true;
  ChoiceFinished finished;
  finished.stop_reason = wanted_.stop[*out.matched];
  emit(std::move(finished));
  return {};
}

Status TritonStream::end(const Emit& emit) {
  if (!started_) return make_error(ErrorCode::unavailable, upstream_.says("broke off its answer: no event came"));
  done_ = true;
  if (matched_) return {};
  Delta rest;
  if (accumulates_ && last_text_.size() > so_far_.size()) {
    text::StopMatcher::Output out = matcher_.push(std::string_view(last_text_).substr(so_far_.size()));
    rest.text = std::move(out.text);
  }
  rest.text += matcher_.flush();
  if (!rest.text.empty() && !emit(std::move(rest))) return {};
  ChoiceFinished finished;
  if (wanted_.max_tokens && usage_.completion_tokens >= *wanted_.max_tokens) finished.reason = FinishReason::length;
  emit(std::move(finished));
  return {};
}

}  // namespace xgen::remote
