#include "remote/openai_stream.h"

#include <algorithm>
#include <utility>

#include "remote/event_json.h"

namespace xgen::remote {
namespace {

namespace json = boost::json;
using inference::ChoiceFinished;
using inference::Delta;
using inference::FinishReason;
using inference::TokenLogprob;

FinishReason finish_reason(std::string_view word) {
  if (word == "length") return FinishReason::length;
  if (word == "tool_calls" || word == "function_call") return FinishReason::tool_calls;
  if (word == "content_filter") return FinishReason::content_filter;
  if (word == "abort") return FinishReason::abort;
  return FinishReason::stop;
}

// ---- Log-probabilities ----

// A token that is no text by itself is written "bytes:\xe2\x80".
std::string token_bytes(std::string_view text) {
  if (!text.starts_with("bytes:\\x")) return std::string(text);
  std::string out;
  for (std::size_t at = 6; at + 4 <= text.size() && text.substr(at, 2) == "\\x"; at += 4) {
    const auto digit = [](char c) { return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10; };
    out += static_cast<char>(digit(text[at + 2]) * 16 + digit(text[at + 3]));
  }
  return out;
}
std::string token_of(const json::object& entry) {
  const json::array* bytes = array_at(entry, "bytes");
  if (bytes == nullptr) return token_bytes(text_at(entry, "token"));
  std::string out;
  for (const json::value& byte : *bytes) out += static_cast<char>(count_of(byte));
  return out;
}

// {"content": [{"token", "logprob", "bytes", "top_logprobs": […]}]}
void read_chat_logprobs(const json::array& content, std::vector<TokenLogprob>& out) {
  for (const json::value& each : content) {
    const json::object* entry = each.if_object();
    if (entry == nullptr) continue;
    TokenLogprob token{0, token_of(*entry), logprob_of(*entry), {}};
    if (const json::array* top = array_at(*entry, "top_logprobs"))
      for (const json::value& other : *top)
        if (const json::object* candidate = other.if_object())
          token.top.push_back({0, token_of(*candidate), logprob_of(*candidate).value_or(0)});
    out.push_back(std::move(token));
  }
}

// {"tokens": […], "token_logprobs": […], "top_logprobs": [{token: logprob}]}
void read_completion_logprobs(const json::object& logprobs, std::vector<TokenLogprob>& out) {
  const json::array* tokens = array_at(logprobs, "tokens");
  const json::array* numbers = array_at(logprobs, "token_logprobs");
  const json::array* tops = array_at(logprobs, "top_logprobs");
  if (tokens == nullptr) return;
  for (std::size_t i = 0; i < tokens->size(); ++i) {
    const json::string* text = (*tokens)[i].if_string();
    TokenLogprob token;
    if (text != nullptr) token.token = token_bytes(view(*text));
    if (numbers != nullptr && i < numbers->size()) token.logprob = number_of((*numbers)[i]);
    const json::object* top = tops != nullptr && i < tops->size() ? (*tops)[i].if_object() : nullptr;
    if (top != nullptr)
      for (const auto& candidate : *top)
        token.top.push_back({0, token_bytes({candidate.key().data(), candidate.key().size()}),
                             number_of(candidate.value()).value_or(0)});
    out.push_back(std::move(token));
  }
}

void read_logprobs(const json::object& choice, std::vector<TokenLogprob>& out) {
  const json::object* logprobs = object_at(choice, "logprobs");
  if (logprobs == nullptr) return;
  if (const json::array* content = array_at(*logprobs, "content"))
    read_chat_logprobs(*content, out);
  else
    read_completion_logprobs(*logprobs, out);
}

// ---- Deltas ----

void read_tool_calls(const json::array& calls, std::vector<inference::ToolCallDelta>& out) {
  for (const json::value& each : calls) {
    const json::object* call = each.if_object();
    if (call == nullptr) continue;
    inference::ToolCallDelta part;
    part.index = count_at(*call, "index");
    part.id = text_at(*call, "id");
    if (const json::object* function = object_at(*call, "function")) {
      part.name = text_at(*function, "name");
      part.arguments = text_at(*function, "arguments");
    }
    out.push_back(std::move(part));
  }
}

void read_delta(const json::object& choice, Delta& delta) {
  if (const json::object* part = object_at(choice, "delta")) {
    delta.text = text_at(*part, "content");
    if (delta.text.empty()) delta.text = text_at(*part, "refusal");
    delta.reasoning = text_at(*part, "reasoning_content");
    if (delta.reasoning.empty()) delta.reasoning = text_at(*part, "reasoning");
    if (const json::array* calls = array_at(*part, "tool_calls")) read_tool_calls(*calls, delta.tool_calls);
  } else {
    delta.text = text_at(choice, "text");
  }
  read_logprobs(choice, delta.logprobs);
  if (!delta.logprobs.empty())
    delta.tokens = static_cast<int>(delta.logprobs.size());
  else if (!delta.text.empty() || !delta.reasoning.empty() || !delta.tool_calls.empty())
    delta.tokens = 1;
}

void read_usage(const json::object& from, inference::Usage& usage) {
  usage.prompt_tokens = count_at(from, "prompt_tokens");
  usage.completion_tokens = count_at(from, "completion_tokens");
  if (const json::object* details = object_at(from, "prompt_tokens_details"))
    usage.cached_tokens = count_at(*details, "cached_tokens");
  if (const json::object* details = object_at(from, "completion_tokens_details"))
    usage.reasoning_tokens = count_at(*details, "reasoning_tokens");
  else
    usage.reasoning_tokens = count_at(from, "reasoning_tokens");  // SGLang
}

}  // namespace

OpenAiStream::OpenAiStream(int n, Upstream upstream, OpenAiStreamQuirks quirks)
    : upstream_(std::move(upstream)), quirks_(std::move(quirks)) {
  choices_.resize(static_cast<std::size_t>(n));
  for (Choice& choice : choices_) choice.stop = text::StopMatcher(quirks_.stop);
}

bool OpenAiStream::all_finished() const {
  return std::all_of(choices_.begin(), choices_.end(), [](const Choice& choice) { return choice.finished; });
}

Status OpenAiStream::take(std::string_view data, const Emit& emit) {
  if (data.empty() || done_) return {};
  if (data == "[DONE]") {
    if (quirks_.calls_end_without_word && !finish_without_word(emit)) return {};
    if (!all_finished())
      return make_error(ErrorCode::unavailable, upstream_.says("ended its answer before every choice was finished"));
    done_ = true;
    return {};
  }
  const EventJson parsed(data);
  const json::object* chunk = parsed.object();
  if (chunk == nullptr) return upstream_.unreadable("an event is not a JSON object");
  if (is_stream_error(*chunk)) return error_of_chunk(*chunk, upstream_);
  if (const json::object* usage = object_at(*chunk, "usage")) {
    read_usage(*usage, usage_);
    has_usage_ = true;
  }
  const json::array* choices = array_at(*chunk, "choices");
  if (choices == nullptr) return upstream_.unreadable("an event has no choices");
  if (!std::exchange(started_, true) && !emit(inference::Started{})) return {};
  bool heard = true;
  for (const json::value& each : *choices) {
    if (Status status = take_choice(each, emit, heard); !status) return status;
    if (!heard) return {};
  }
  if (cut_ && all_finished()) done_ = true;
  return {};
}

// `heard`: false once nothing more is wanted.
Status OpenAiStream::take_choice(const json::value& value, const Emit& emit, bool& heard) {
  const json::object* part = value.if_object();
  if (part == nullptr) return upstream_.unreadable("a choice is not an object");
  const json::value* index = part->if_contains("index");
  Delta delta;
  delta.choice = index == nullptr ? 0 : (index->is_int64() ? static_cast<int>(index->get_int64()) : -1);
  if (delta.choice < 0 || static_cast<std::size_t>(delta.choice) >= choices_.size())
    return upstream_.unreadable("it has a choice that was not asked for");
  Choice& choice = choices_[static_cast<std::size_t>(delta.choice)];
  read_delta(*part, delta);
  if (!has_usage_) usage_.completion_tokens += delta.tokens;
  if (choice.finished) return {};
  const std::string_view reason = text_at(*part, "finish_reason");
  ChoiceFinished end{delta.choice, finish_reason(reason), std::nullopt};
  choice.called |= !delta.tool_calls.empty();
  bool matched = false;
  if (!choice.stop.empty()) {
    text::StopMatcher::Output out = choice.stop.push(delta.text);
    matched = out.matched.has_value();
    delta.text = std::move(out.text);
    if (matched)
      end = {delta.choice, FinishReason::stop, quirks_.stop[*out.matched]};
    else if (!reason.empty())
      delta.text += choice.stop.flush();
  }
  if (delta.tokens > 0 || !delta.text.empty()) heard = emit(std::move(delta));
  if (!heard || (reason.empty() && !matched)) return {};
  choice.finished = true;
  if (matched) {
    cut_ |= reason.empty();
  } else {
    if (quirks_.calls_end_without_word && choice.called && end.reason == FinishReason::stop)
      end.reason = FinishReason::tool_calls;
    const json::value* why = part->if_contains("stop_reason");
    if (const json::value* found = part->if_contains("matched_stop"); found != nullptr && found->is_string())
      why = found;  // SGLang; a number may be the end of the text
    if (why != nullptr && why->is_string())
      end.stop_reason = std::string(view(why->get_string()));
    else if (why != nullptr && why->is_int64())
      end.stop_reason = static_cast<inference::TokenId>(why->get_int64());
  }
  heard = emit(std::move(end));
  return {};
}

// Finishes what has called tools, or would have; false once nothing more is wanted.
bool OpenAiStream::finish_without_word(const Emit& emit) {
  const bool full = has_usage_ && quirks_.max_tokens && usage_.completion_tokens >= *quirks_.max_tokens;
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    if (choice.finished || !(choice.called || full)) continue;
    choice.finished = true;
    Delta rest;
    rest.choice = static_cast<int>(i);
    rest.text = choice.stop.flush();
    if (!rest.text.empty() && !emit(std::move(rest))) return false;
    const FinishReason reason = choice.called ? FinishReason::tool_calls : FinishReason::length;
    if (!emit(ChoiceFinished{static_cast<int>(i), reason, std::nullopt})) return false;
  }
  return true;
}

Status OpenAiStream::end(const Emit& /*emit*/) {
  return make_error(ErrorCode::unavailable, upstream_.says("broke off its answer: no [DONE]"));
}

}  // namespace xgen::remote
