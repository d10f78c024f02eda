// The engine-neutral request and its events. No HTTP, no JSON; token ids are optional, since remote engines tokenise
// for themselves.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/result.h"
#include "base/trace.h"

namespace xgen::inference {

using TokenId = std::int32_t;

// A call of a function that the model asked for.
struct ToolCall {
  std::string id;  // the model's or the server's; the tool's answer names it
  std::string name;
  std::string arguments;  // as the model wrote them: JSON, if it did well
};

struct ContentPart {
  enum class Kind : std::uint8_t { text, image } kind = Kind::text;
  std::string value;   // the text, or the image's URL (http:, https: or data:)
  std::string detail;  // of an image: "low", "high", "auto"; empty = not said
};

struct Message {
  std::string role;     // "system", "user", "assistant", "developer", "tool", …: the template decides what it knows
  std::string content;  // text parts are joined by the caller
  std::string name;     // empty = none
  std::vector<ContentPart> parts;    // instead of `content`, where not all of it is text
  std::vector<ToolCall> tool_calls;  // of an assistant
  std::string tool_call_id;          // of a tool: the call that it answers
  std::string reasoning;             // of an assistant: what it thought before `content`
};

// Exactly one of: text, token ids, or a chat to be rendered by the model's template.
using Prompt = std::variant<std::string, std::vector<TokenId>, std::vector<Message>>;

// How the next token is chosen. Unset fields take the model's own default (generation_config.json), then OpenAI's.
struct Sampling {
  std::optional<float> temperature;         // >= 0; 0 = greedy. Default 1
  std::optional<float> top_p;               // (0, 1]. Default 1
  std::optional<int> top_k;                 // <= 0 = all. Default all
  std::optional<float> min_p;               // [0, 1]. Default 0
  std::optional<float> repetition_penalty;  // > 0, over prompt and output. Default 1
  float presence_penalty = 0;               // over the output
  float frequency_penalty = 0;              // over the output
  std::optional<std::uint64_t> seed;        // unset: drawn per request
  std::vector<std::pair<TokenId, float>> logit_bias;
};

// A function that the model may call.
struct Tool {
  std::string name;
  std::string description;
  std::string parameters;  // JSON Schema as text; empty = none
  std::optional<bool> strict;
};
struct ToolChoice {
  enum class Mode : std::uint8_t { unset, none, automatic, required, named } mode = Mode::unset;
  std::string name;  // of the function, if named
};

// The form that the answer must have.
struct ResponseFormat {
  enum class Kind : std::uint8_t { text, json_object, json_schema } kind = Kind::text;
  // Of json_schema:
  std::string name;
  std::string description;
  std::string schema;  // JSON Schema as text; empty = any JSON
  std::optional<bool> strict;
};

// A parameter that some engines know and the neutral request does not spell out.
struct Extension {
  std::string name;   // as clients write it
  std::string value;  // JSON
};

// When generation ends.
struct StopRules {
  std::optional<int> max_tokens;  // >= 0; unset: up to the context's end. 0 = only the prompt (echo, logprobs)
  int min_tokens = 0;             // neither eos nor stop ids before so many tokens, and no stop string in their text
  bool ignore_eos = false;
  std::vector<std::string> stop;  // the text ends before the first of them
  std::vector<TokenId> stop_token_ids;
};

// Counts the requests' hops from one server to the next.
inline constexpr const char* kHopsHeader = "X-Xgen-Hops";

struct GenerateRequest {
  std::string request_id;
  Prompt prompt;
  Sampling sampling;
  StopRules stop;
  int n = 1;                     // choices; each has its own random stream
  std::optional<int> logprobs;   // per output token: this many alternatives (0 = the chosen one only)
  bool prompt_logprobs = false;  // report the prompt's tokens with log-probabilities (echo)
  bool echo = false;             // Started carries the prompt's text
  int priority = 0;              // smaller is sooner; ties in order of arrival
  std::vector<Tool> tools;
  ToolChoice tool_choice;
  std::optional<bool> parallel_tool_calls;
  ResponseFormat response_format;
  std::vector<Extension> extensions;
  // Where its times are counted from: a wait for the model to load and attempts elsewhere are part of its queueing.
  std::chrono::steady_clock::time_point arrival = std::chrono::steady_clock::now();
  std::optional<std::chrono::steady_clock::time_point> deadline;
  int hops = 0;  // servers like this one that it has come through
  trace::Carrier trace;
};

struct TopLogprob {
  TokenId id = 0;
  std::string token;  // its bytes; may be part of a UTF-8 character
  float logprob = 0;
};

struct TokenLogprob {
  TokenId id = 0;
  std::string token;             // its bytes
  std::optional<float> logprob;  // natural log of the raw model distribution; unset for the prompt's first token
  std::vector<TopLogprob> top;   // best first; the chosen token is appended if it is not among them
};

enum class FinishReason : std::uint8_t { stop, length, abort, tool_calls, content_filter };
std::string_view finish_name(FinishReason reason);  // as OpenAI's API has it

struct Usage {
  int prompt_tokens = 0;
  int cached_tokens = 0;      // of the prompt, found in the prefix cache
  int completion_tokens = 0;  // over all choices
  int reasoning_tokens = 0;   // of them, where the engine counts them
};

// Where the time of a request went, in seconds.
struct Timings {
  double queue = 0;    // arrival to first scheduled
  double prefill = 0;  // first scheduled to first token
  double decode = 0;   // first token to last
};

struct Started {
  Usage usage;                                // of the prompt, where it is known by now
  std::string prompt_text;                    // if echo
  std::vector<TokenLogprob> prompt_logprobs;  // if prompt_logprobs
  Timings timings;                            // until now
};
// A part of one call: name and id come with its first part, the arguments' text in pieces.
struct ToolCallDelta {
  int index = 0;  // of the call within its choice, 0, 1, …
  std::string id;
  std::string name;
  std::string arguments;
};
struct Delta {
  int choice = 0;
  int tokens = 0;    // output tokens that this delta accounts for (text can lag behind: may be 0 or several)
  std::string text;  // whole UTF-8 characters only; never part of a stop string
  std::vector<TokenLogprob> logprobs;
  std::string reasoning;  // what the model thinks before its answer, where the engine tells it apart
  std::vector<ToolCallDelta> tool_calls;
};
struct ChoiceFinished {
  int choice = 0;
  FinishReason reason = FinishReason::stop;
  std::optional<std::variant<std::string, TokenId>> stop_reason;  // the stop string or stop token id that matched
};
// Terminal: every choice is finished.
struct Finished {
  Usage usage;  // all of it, the prompt's too
  Timings timings;
};
// Terminal: nothing more will come.
struct Failed {
  Error error;
};
// Order: Started, then deltas and one ChoiceFinished per choice, then Finished. Failed may come at any time instead.
// Exactly one terminal event (Finished or Failed) is delivered.
using Event = std::variant<Started, Delta, ChoiceFinished, Finished, Failed>;

// Where a request's events go. on_event is called from the engine's thread, or (a refusal) from inside
// generate_async; it must not block and must not call back into the service.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void on_event(Event event) = 0;
};

}  // namespace xgen::inference
