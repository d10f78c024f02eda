#include "remote/openai_stream.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/json.h"

namespace xgen::remote {
namespace {

namespace json = boost::json;
using inference::ChoiceFinished;
using inference::Delta;
using inference::FinishReason;
using inference::TokenLogprob;

constexpr std::size_t kParseBuffer = 8 << 10;  // bytes on the stack: enough for a token's chunk
constexpr std::size_t kMaxDepth = 32;

std::string_view view(const json::string& text) { return {text.data(), text.size()}; }
std::string_view text_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  const json::string* text = value == nullptr ? nullptr : value->if_string();
  return text == nullptr ? std::string_view() : view(*text);
}
const json::object* object_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr ? nullptr : value->if_object();
}
const json::array* array_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr ? nullptr : value->if_array();
}
int count_of(const json::value& value) {
  return value.is_int64() ? static_cast<int>(std::clamp<std::int64_t>(value.get_int64(), 0, 1 << 30)) : 0;
}
int count_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr ? 0 : count_of(*value);
}
std::optional<float> number_of(const json::value& value) {
  if (value.is_double()) return static_cast<float>(value.get_double());
  if (value.is_int64()) return static_cast<float>(value.get_int64());
  return std::nullopt;
}

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
std::optional<float> logprob_of(const json::object& entry) {
  const json::value* value = entry.if_contains("logprob");
  return value == nullptr ? std::nullopt : number_of(*value);
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

Error OpenAiStream::unreadable(std::string_view why) const {
  return make_error(ErrorCode::internal, upstream_.says("sent a stream that cannot be read: " + std::string(why)));
}

Status OpenAiStream::take(std::string_view data, const Emit& emit) {
  if (data.empty() || done_) return {};
  if (data == "[DONE]") {
    done_ = true;
    return {};
  }
  std::array<unsigned char, kParseBuffer> buffer;
  json::monotonic_resource memory(buffer.data(), buffer.size());
  json::parse_options options;
  options.max_depth = kMaxDepth;
  json::error_code fault;
  const json::value parsed = json::parse(data, fault, &memory, options);
  const json::object* chunk = fault ? nullptr : parsed.if_object();
  if (chunk == nullptr) return unreadable("an event is not a JSON object");
  if (is_stream_error(*chunk)) return error_of_chunk(*chunk, upstream_);
  if (const json::object* usage = object_at(*chunk, "usage")) {
    read_usage(*usage, usage_);
    has_usage_ = true;
  }
  const json::array* choices = array_at(*chunk, "choices");
  if (choices == nullptr) return unreadable("an event has no choices");
  if (!std::exchange(started_, true) && !emit(inference::Started{})) return {};
  for (const json::value& each : *choices) {
    const json::object* choice = each.if_object();
    if (choice == nullptr) return unreadable("a choice is not an object");
    const json::value* index = choice->if_contains("index");
    Delta delta;
    delta.choice = index == nullptr ? 0 : (index->is_int64() ? static_cast<int>(index->get_int64()) : -1);
    if (delta.choice < 0 || static_cast<std::size_t>(delta.choice) >= finished_.size())
      return unreadable("it has a choice that was not asked for");
    const auto at = static_cast<std::size_t>(delta.choice);
    read_delta(*choice, delta);
    if (!has_usage_) usage_.completion_tokens += delta.tokens;
    if (delta.tokens > 0 && !finished_[at] && !emit(std::move(delta))) return {};
    const std::string_view reason = text_at(*choice, "finish_reason");
    if (reason.empty() || finished_[at]) continue;
    finished_[at] = true;
    ChoiceFinished end{static_cast<int>(at), finish_reason(reason), std::nullopt};
    const json::value* why = choice->if_contains("stop_reason");
    if (const json::value* matched = choice->if_contains("matched_stop"); matched != nullptr && matched->is_string())
      why = matched;  // SGLang; a number may be the end of the text
    if (why != nullptr && why->is_string())
      end.stop_reason = std::string(view(why->get_string()));
    else if (why != nullptr && why->is_int64())
      end.stop_reason = static_cast<inference::TokenId>(why->get_int64());
    if (!emit(std::move(end))) return {};
  }
  return {};
}

Status OpenAiStream::check_end() const {
  if (std::find(finished_.begin(), finished_.end(), false) == finished_.end()) return {};
  return make_error(ErrorCode::unavailable, upstream_.says("ended its answer before every choice was finished"));
}

}  // namespace xgen::remote
