#include "api/answer.h"

#include <algorithm>
#include <map>
#include <utility>

#include "api/errors.h"
#include "api/json_writer.h"
#include "base/utf8.h"

namespace xgen::api {
namespace {

using inference::ChoiceFinished;
using inference::Delta;
using inference::Event;
using inference::Started;
using inference::TokenLogprob;
using inference::ToolCall;
using inference::ToolCallDelta;
using inference::Usage;

constexpr int kMaxAnsweredCalls = 1024;  // of one choice

void append_finish(std::string& out, const ChoiceFinished& end) {
  out += "\"finish_reason\":\"";
  out += inference::finish_name(end.reason);
  out += "\",\"stop_reason\":";
  if (!end.stop_reason)
    out += "null";
  else if (const auto* text = std::get_if<std::string>(&*end.stop_reason))
    append_json_string(out, *text);
  else
    append_json_int(out, std::get<inference::TokenId>(*end.stop_reason));
}

void append_usage(std::string& out, const Usage& usage) {
  out += "{\"prompt_tokens\":";
  append_json_int(out, usage.prompt_tokens);
  out += ",\"completion_tokens\":";
  append_json_int(out, usage.completion_tokens);
  out += ",\"total_tokens\":";
  append_json_int(out, std::int64_t{usage.prompt_tokens} + usage.completion_tokens);
  out += ",\"prompt_tokens_details\":{\"cached_tokens\":";
  append_json_int(out, usage.cached_tokens);
  out += '}';
  if (usage.reasoning_tokens > 0) {
    out += ",\"completion_tokens_details\":{\"reasoning_tokens\":";
    append_json_int(out, usage.reasoning_tokens);
    out += '}';
  }
  out += '}';
}

void add_usage(Usage& total, const Usage& one) {
  total.prompt_tokens += one.prompt_tokens;
  total.cached_tokens += one.cached_tokens;
  total.completion_tokens += one.completion_tokens;
  total.reasoning_tokens += one.reasoning_tokens;
}

// Puts a part of a call to the parts before it.
void add_part(std::vector<ToolCall>& calls, const ToolCallDelta& part) {
  if (part.index < 0 || part.index >= kMaxAnsweredCalls) return;
  const auto index = static_cast<std::size_t>(part.index);
  if (calls.size() <= index) calls.resize(index + 1);
  ToolCall& call = calls[index];
  if (call.id.empty()) call.id = part.id;
  if (call.name.empty()) call.name = part.name;
  call.arguments += part.arguments;
}

void append_function(std::string& out, std::string_view name, std::string_view arguments) {
  out += "\"function\":{";
  if (!name.empty()) {
    out += "\"name\":";
    append_json_string(out, name);
    out += ',';
  }
  out += "\"arguments\":";
  append_json_string(out, arguments);
  out += '}';
}

// {"id":…,"object":…,"created":…,"model":…,"system_fingerprint":…,"choices":[
void append_head(std::string& out, const AnswerHead& head, std::string_view object) {
  out += "{\"id\":";
  append_json_string(out, head.id);
  out += ",\"object\":\"";
  out += object;
  out += "\",\"created\":";
  append_json_int(out, head.created);
  out += ",\"model\":";
  append_json_string(out, head.model);
  out += ",\"system_fingerprint\":";
  if (head.fingerprint.empty())
    out += "null";
  else
    append_json_string(out, head.fingerprint);
  out += ",\"choices\":[";
}

// The chat shape has the exact bytes in a field of their own.
void append_chat_token(std::string& out, std::string_view token, float logprob) {
  out += "{\"token\":";
  append_json_string(out, token);
  out += ",\"logprob\":";
  append_json_float(out, logprob);
  out += ",\"bytes\":[";
  for (std::size_t i = 0; i < token.size(); ++i) {
    if (i > 0) out += ',';
    append_json_int(out, static_cast<unsigned char>(token[i]));
  }
  out += ']';
}

// The completions shape has none: as with OpenAI, a token that is not text by itself is written "bytes:\xe2\x80".
std::string completion_token(std::string_view token) {
  if (is_valid_utf8(token)) return std::string(token);
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "bytes:";
  for (const char c : token) {
    const auto byte = static_cast<unsigned char>(c);
    out += "\\x";
    out += kHex[byte >> 4];
    out += kHex[byte & 15];
  }
  return out;
}

// Characters that begin in `text`, so that the offsets of tokens count characters even where a token ends inside one.
std::int64_t character_count(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

constexpr std::string_view kSseBegin = "data: ";
constexpr std::string_view kSseEnd = "\n\n";
constexpr std::string_view kDone = "data: [DONE]\n\n";

}  // namespace

std::size_t encoded_size(const Event& event, int n) {
  constexpr std::size_t kPerToken = 20;  // of names, numbers and punctuation
  const auto size = [](const std::string& text, const std::vector<TokenLogprob>& logprobs) {
    std::size_t bytes = text.size();
    for (const TokenLogprob& token : logprobs) {
      bytes += kPerToken + token.token.size();
      for (const auto& candidate : token.top) bytes += kPerToken + candidate.token.size();
    }
    return bytes;
  };
  if (const auto* started = std::get_if<Started>(&event))
    return static_cast<std::size_t>(n) * size(started->prompt_text, started->prompt_logprobs);
  if (const auto* delta = std::get_if<Delta>(&event)) {
    std::size_t bytes = size(delta->text, delta->logprobs) + delta->reasoning.size();
    for (const auto& call : delta->tool_calls)
      bytes += kPerToken + call.id.size() + call.name.size() + call.arguments.size();
    return bytes;
  }
  return 0;
}

void LogprobsText::add(Endpoint endpoint, const TokenLogprob& token, int top_logprobs) {
  const auto comma = [](std::string& out) {
    if (!out.empty()) out += ',';
  };
  if (endpoint == Endpoint::chat) {
    comma(tokens_);
    append_chat_token(tokens_, token.token, token.logprob.value_or(0));
    tokens_ += ",\"top_logprobs\":[";
    const std::size_t count = std::min(token.top.size(), static_cast<std::size_t>(top_logprobs));
    for (std::size_t i = 0; i < count; ++i) {
      if (i > 0) tokens_ += ',';
      append_chat_token(tokens_, token.top[i].token, token.top[i].logprob);
      tokens_ += '}';
    }
    tokens_ += "]}";
    return;
  }
  comma(tokens_);
  append_json_string(tokens_, completion_token(token.token));
  comma(logprobs_);
  comma(top_);
  if (!token.logprob) {  // the first token of a prompt
    logprobs_ += "null";
    top_ += "null";
  } else {
    append_json_float(logprobs_, *token.logprob);
    top_ += '{';
    std::vector<std::string> written;  // two tokens may have the same text: the likelier one stays
    for (const auto& candidate : token.top) {
      std::string text = completion_token(candidate.token);
      if (std::find(written.begin(), written.end(), text) != written.end()) continue;
      if (!written.empty()) top_ += ',';
      append_json_string(top_, text);
      top_ += ':';
      append_json_float(top_, candidate.logprob);
      written.push_back(std::move(text));
    }
    top_ += '}';
  }
  comma(offsets_);
  append_json_int(offsets_, offset_);
  offset_ += character_count(token.token);
}

void LogprobsText::take(Endpoint endpoint, std::string& out) {
  if (endpoint == Endpoint::chat) {
    out += "{\"content\":[";
    out += tokens_;
    out += "],\"refusal\":null}";
  } else {
    out += "{\"tokens\":[";
    out += tokens_;
    out += "],\"token_logprobs\":[";
    out += logprobs_;
    out += "],\"top_logprobs\":[";
    out += top_;
    out += "],\"text_offset\":[";
    out += offsets_;
    out += "]}";
  }
  for (std::string* text : {&tokens_, &logprobs_, &top_, &offsets_}) text->clear();
}

// ---- AnswerBuilder ----

AnswerBuilder::AnswerBuilder(AnswerHead head, std::size_t prompts)
    : head_(std::move(head)), choices_(prompts * static_cast<std::size_t>(head_.n)) {}

void AnswerBuilder::add(std::size_t prompt, const Event& event) {
  const std::size_t first = prompt * static_cast<std::size_t>(head_.n);
  const auto choice_at = [&](int choice) -> Choice& { return choices_.at(first + static_cast<std::size_t>(choice)); };
  if (const auto* started = std::get_if<Started>(&event)) {
    Choice& choice = choice_at(0);
    choice.text = started->prompt_text;
    for (const auto& token : started->prompt_logprobs) choice.logprobs.add(head_.endpoint, token, head_.top_logprobs);
    for (int i = 1; i < head_.n; ++i) choice_at(i) = choice;
  } else if (const auto* delta = std::get_if<Delta>(&event)) {
    Choice& choice = choice_at(delta->choice);
    choice.text += delta->text;
    choice.reasoning += delta->reasoning;
    for (const auto& part : delta->tool_calls) add_part(choice.tool_calls, part);
    for (const auto& token : delta->logprobs) choice.logprobs.add(head_.endpoint, token, head_.top_logprobs);
  } else if (const auto* end = std::get_if<ChoiceFinished>(&event)) {
    choice_at(end->choice).end = *end;
  } else if (const auto* finished = std::get_if<inference::Finished>(&event)) {
    add_usage(usage_, finished->usage);
  }
}

namespace {

void append_message_end(std::string& out, const std::string& reasoning, const std::vector<ToolCall>& calls) {
  out += ",\"refusal\":null";
  if (!reasoning.empty()) {
    out += ",\"reasoning_content\":";
    append_json_string(out, reasoning);
  }
  if (!calls.empty()) {
    out += ",\"tool_calls\":[";
    for (std::size_t i = 0; i < calls.size(); ++i) {
      out += i > 0 ? ",{\"id\":" : "{\"id\":";
      append_json_string(out, calls[i].id);
      out += ",\"type\":\"function\",";
      append_function(out, calls[i].name, calls[i].arguments);
      out += '}';
    }
    out += ']';
  }
  out += '}';
}

}  // namespace

std::string AnswerBuilder::json() {
  const bool chat = head_.endpoint == Endpoint::chat;
  std::string out;
  std::size_t size = 512;
  for (const Choice& choice : choices_) {
    size += choice.text.size() + choice.reasoning.size() + 192;
    for (const ToolCall& call : choice.tool_calls) size += call.arguments.size() + 128;
  }
  out.reserve(size);
  append_head(out, head_, chat ? "chat.completion" : "text_completion");
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    if (i > 0) out += ',';
    out += "{\"index\":";
    append_json_int(out, static_cast<std::int64_t>(i));
    out += chat ? ",\"message\":{\"role\":\"assistant\",\"content\":" : ",\"text\":";
    if (chat && choice.text.empty() && !choice.tool_calls.empty())
      out += "null";
    else
      append_json_string(out, choice.text);
    if (chat) append_message_end(out, choice.reasoning, choice.tool_calls);
    out += ",\"logprobs\":";
    if (head_.logprobs)
      choice.logprobs.take(head_.endpoint, out);
    else
      out += "null";
    out += ',';
    append_finish(out, choice.end);
    out += '}';
  }
  out += "],\"usage\":";
  append_usage(out, usage_);
  out += '}';
  return out;
}

// ---- StreamEncoder ----

StreamEncoder::StreamEncoder(AnswerHead head, std::size_t prompts, bool include_usage)
    : head_(std::move(head)), include_usage_(include_usage), prefix_(kSseBegin) {
  append_head(prefix_, head_, head_.endpoint == Endpoint::chat ? "chat.completion.chunk" : "text_completion");
  prefix_ += "{\"index\":";
  if (head_.logprobs) logprobs_.resize(prompts * static_cast<std::size_t>(head_.n));
}

void StreamEncoder::begin_chunk(std::size_t choice, std::string& out) const {
  out += prefix_;
  append_json_int(out, static_cast<std::int64_t>(choice));
}

void StreamEncoder::end_chunk(std::string& out) const {
  out += include_usage_ ? "}],\"usage\":null}" : "}]}";
  out += kSseEnd;
}

void StreamEncoder::text_chunk(std::size_t choice, std::string_view text, std::span<const TokenLogprob> logprobs,
                               std::string& out) {
  const bool chat = head_.endpoint == Endpoint::chat;
  begin_chunk(choice, out);
  out += chat ? ",\"delta\":{\"content\":" : ",\"text\":";
  append_json_string(out, text);
  out += chat ? "},\"logprobs\":" : ",\"logprobs\":";
  if (head_.logprobs) {
    for (const auto& token : logprobs) logprobs_[choice].add(head_.endpoint, token, head_.top_logprobs);
    logprobs_[choice].take(head_.endpoint, out);
  } else {
    out += "null";
  }
  out += ",\"finish_reason\":null";
  end_chunk(out);
}

void StreamEncoder::tool_chunk(std::size_t choice, std::span<const ToolCallDelta> parts, std::string& out) const {
  begin_chunk(choice, out);
  out += ",\"delta\":{\"tool_calls\":[";
  bool first = true;
  for (const ToolCallDelta& part : parts) {
    out += std::exchange(first, false) ? "{\"index\":" : ",{\"index\":";
    append_json_int(out, part.index);
    if (!part.id.empty()) {
      out += ",\"id\":";
      append_json_string(out, part.id);
      out += ",\"type\":\"function\"";
    }
    out += ',';
    append_function(out, part.name, part.arguments);
    out += '}';
  }
  out += "]},\"logprobs\":null,\"finish_reason\":null";
  end_chunk(out);
}

void StreamEncoder::add(std::size_t prompt, const Event& event, std::string& out) {
  const std::size_t first = prompt * static_cast<std::size_t>(head_.n);
  if (const auto* started = std::get_if<Started>(&event)) {
    for (std::size_t choice = first; choice < first + static_cast<std::size_t>(head_.n); ++choice) {
      if (head_.endpoint == Endpoint::chat) {
        begin_chunk(choice, out);
        out += ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null";
        end_chunk(out);
      }
      if (!started->prompt_text.empty() || !started->prompt_logprobs.empty())
        text_chunk(choice, started->prompt_text, started->prompt_logprobs, out);
    }
  } else if (const auto* delta = std::get_if<Delta>(&event)) {
    const std::size_t choice = first + static_cast<std::size_t>(delta->choice);
    if (!delta->reasoning.empty()) {
      begin_chunk(choice, out);
      out += ",\"delta\":{\"reasoning_content\":";
      append_json_string(out, delta->reasoning);
      out += "},\"logprobs\":null,\"finish_reason\":null";
      end_chunk(out);
    }
    if (!delta->tool_calls.empty()) tool_chunk(choice, delta->tool_calls, out);
    if (!delta->text.empty() || !delta->logprobs.empty()) text_chunk(choice, delta->text, delta->logprobs, out);
  } else if (const auto* end = std::get_if<ChoiceFinished>(&event)) {
    begin_chunk(first + static_cast<std::size_t>(end->choice), out);
    out += head_.endpoint == Endpoint::chat ? ",\"delta\":{},\"logprobs\":null," : ",\"text\":\"\",\"logprobs\":null,";
    append_finish(out, *end);
    end_chunk(out);
  } else if (const auto* finished = std::get_if<inference::Finished>(&event)) {
    add_usage(usage_, finished->usage);
  }
}

void StreamEncoder::finish(std::string& out) {
  if (include_usage_) {
    out += kSseBegin;
    append_head(out, head_, head_.endpoint == Endpoint::chat ? "chat.completion.chunk" : "text_completion");
    out += "],\"usage\":";
    append_usage(out, usage_);
    out += '}';
    out += kSseEnd;
  }
  out += kDone;
}

void append_stream_error(const Error& error, std::string& out) {
  out += kSseBegin;
  out += error_json(error);
  out += kSseEnd;
  out += kDone;
}

namespace {

void merge_parts(std::vector<ToolCallDelta>& into, std::vector<ToolCallDelta> parts) {
  for (ToolCallDelta& part : parts) {
    // A part that names its call begins one.
    if (!into.empty() && into.back().index == part.index && part.id.empty() && part.name.empty())
      into.back().arguments += part.arguments;
    else
      into.push_back(std::move(part));
  }
}

}  // namespace

void merge_deltas(std::vector<Event>& events) {
  std::map<int, std::size_t> last;  // choice -> its delta among the kept events
  std::size_t kept = 0;
  for (std::size_t i = 0; i < events.size(); ++i) {
    if (auto* delta = std::get_if<Delta>(&events[i])) {
      const auto [at, is_new] = last.try_emplace(delta->choice, kept);
      if (!is_new) {
        auto& target = std::get<Delta>(events[at->second]);
        target.tokens += delta->tokens;
        target.text += delta->text;
        target.reasoning += delta->reasoning;
        merge_parts(target.tool_calls, std::move(delta->tool_calls));
        std::move(delta->logprobs.begin(), delta->logprobs.end(), std::back_inserter(target.logprobs));
        continue;
      }
    }
    if (kept != i) events[kept] = std::move(events[i]);
    ++kept;
  }
  events.resize(kept);
}

// ---- models, tokens ----

namespace {

// A model's context; 0: its engine does not tell.
void append_length(std::string& out, int max_model_len) {
  if (max_model_len > 0)
    append_json_int(out, max_model_len);
  else
    out += "null";
}

}  // namespace

std::string model_json(const ModelCard& model) {
  std::string out = "{\"id\":";
  append_json_string(out, model.name);
  out += ",\"object\":\"model\",\"created\":";
  append_json_int(out, model.created);
  out += ",\"owned_by\":\"xgen\",\"root\":";
  append_json_string(out, model.root);
  out += ",\"parent\":null,\"max_model_len\":";
  append_length(out, model.max_model_len);
  out += '}';
  return out;
}

std::string models_json(std::span<const ModelCard> models) {
  std::string out = R"({"object":"list","data":[)";
  for (std::size_t i = 0; i < models.size(); ++i) {
    if (i > 0) out += ',';
    out += model_json(models[i]);
  }
  out += "]}";
  return out;
}

std::string tokenize_json(const inference::Tokenized& tokenized, int max_model_len, bool with_strings) {
  std::string out = "{\"count\":";
  append_json_int(out, static_cast<std::int64_t>(tokenized.ids.size()));
  out += ",\"max_model_len\":";
  append_length(out, max_model_len);
  out += ",\"tokens\":[";
  for (std::size_t i = 0; i < tokenized.ids.size(); ++i) {
    if (i > 0) out += ',';
    append_json_int(out, tokenized.ids[i]);
  }
  out += "],\"token_strs\":";
  if (with_strings && tokenized.tokens.size() == tokenized.ids.size()) {
    out += '[';
    for (std::size_t i = 0; i < tokenized.tokens.size(); ++i) {
      if (i > 0) out += ',';
      append_json_string(out, tokenized.tokens[i]);
    }
    out += ']';
  } else {
    out += "null";
  }
  out += '}';
  return out;
}

std::string detokenize_json(std::string_view text) {
  std::string out = "{\"prompt\":";
  append_json_string(out, text);
  out += '}';
  return out;
}

}  // namespace xgen::api
