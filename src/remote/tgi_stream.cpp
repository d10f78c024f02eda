#include "remote/tgi_stream.h"

#include <utility>

#include "remote/event_json.h"

namespace xgen::remote {
namespace {

namespace json = boost::json;
using inference::Delta;
using inference::FinishReason;

inference::TokenId id_of(const json::object& token) {
  const json::value* id = token.if_contains("id");
  return id != nullptr && id->is_int64() ? static_cast<inference::TokenId>(id->get_int64()) : 0;
}

inference::TokenLogprob logprob(const json::object& token, const json::array* top) {
  inference::TokenLogprob out{id_of(token), std::string(text_at(token, "text")), logprob_of(token), {}};
  if (top == nullptr || top->empty()) return out;
  bool chosen = false;
  for (const json::value& each : *top)
    if (const json::object* other = each.if_object()) {
      out.top.push_back({id_of(*other), std::string(text_at(*other, "text")), logprob_of(*other).value_or(0)});
      chosen |= out.top.back().id == out.id;
    }
  if (!chosen) out.top.push_back({out.id, out.token, out.logprob.value_or(0)});
  return out;
}

}  // namespace

TgiStream::Wanted::Wanted(const inference::GenerateRequest& request)
    : stop(request.stop.stop), logprobs(request.logprobs.has_value()), echo(echo_of(request)) {}

TgiStream::TgiStream(Wanted wanted, Upstream upstream)
    : upstream_(std::move(upstream)), wanted_(std::move(wanted)), matcher_(wanted_.stop) {}

Status TgiStream::take(std::string_view data, const Emit& emit) {
  if (data.empty() || done_) return {};
  const EventJson parsed(data);
  const json::object* event = parsed.object();
  if (event == nullptr) return upstream_.unreadable("an event is not a JSON object");
  if (is_stream_error(*event)) return error_of_chunk(*event, upstream_);
  const json::object* token = object_at(*event, "token");
  if (token == nullptr) return upstream_.unreadable("an event has no token");
  if (!std::exchange(started_, true)) {
    inference::Started started;
    started.prompt_text = wanted_.echo;
    if (!emit(std::move(started))) return {};
  }

  const json::value* special = token->if_contains("special");
  const bool is_text = special == nullptr || !special->is_bool() || !special->get_bool();
  const json::value* whole = event->if_contains("generated_text");
  const bool last = whole != nullptr && whole->is_string();
  ++usage_.completion_tokens;
  Delta delta;
  delta.tokens = 1;
  text::StopMatcher::Output out;
  if (is_text) {
    out = matcher_.push(text_at(*token, "text"));
    if (wanted_.logprobs) delta.logprobs.push_back(logprob(*token, array_at(*event, "top_tokens")));
  }
  delta.text = std::move(out.text);
  if (last && !out.matched) delta.text += matcher_.flush();
  if (!emit(std::move(delta))) return {};
  if (!last && !out.matched) return {};

  inference::ChoiceFinished end;
  const json::object* details = last ? object_at(*event, "details") : nullptr;
  if (details != nullptr) {
    if (text_at(*details, "finish_reason") == "length") end.reason = FinishReason::length;
    usage_.prompt_tokens = count_at(*details, "input_length");
    if (const int generated = count_at(*details, "generated_tokens"); generated > 0)
      usage_.completion_tokens = generated;
  }
  if (out.matched) {
    end.reason = FinishReason::stop;
    end.stop_reason = wanted_.stop[*out.matched];
    cut_ = !last;
  }
  done_ = true;
  emit(std::move(end));
  return {};
}

Status TgiStream::end(const Emit& /*emit*/) {
  return make_error(ErrorCode::unavailable, upstream_.says("broke off its answer: no generated_text"));
}

}  // namespace xgen::remote
