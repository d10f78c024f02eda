// The events of a call as OpenAI's answers: one JSON body, or a stream of server-sent events.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "api/requests.h"
#include "base/result.h"
#include "inference/types.h"

namespace xgen::api {

// What every part of one answer repeats.
struct AnswerHead {
  Endpoint endpoint = Endpoint::chat;  // or completions
  std::string id;                      // "chatcmpl-…" or "cmpl-…"
  std::int64_t created = 0;            // Unix seconds
  std::string model;                   // as the client named it
  std::string fingerprint;             // "" = none
  int n = 1;                           // choices per prompt
  bool logprobs = false;
  int top_logprobs = 0;
};

// Bytes, within a factor of two, that an answer of `n` choices grows by with this event: known before they are written.
std::size_t encoded_size(const inference::Event& event, int n);

// Log-probabilities of one choice in the shape of its endpoint.
class LogprobsText {
 public:
  void add(Endpoint endpoint, const inference::TokenLogprob& token, int top_logprobs);
  // Appends the object, and forgets the tokens but not how long their text was.
  void take(Endpoint endpoint, std::string& out);

 private:
  std::string tokens_;  // chat: the content entries; completions: one array each
  std::string logprobs_;
  std::string top_;
  std::string offsets_;
  std::int64_t offset_ = 0;  // characters before the next token
};

// Gathers a whole answer. Choices of prompt p have the indexes p*n to p*n+n-1.
class AnswerBuilder {
 public:
  AnswerBuilder(AnswerHead head, std::size_t prompts);
  // Any event but Failed.
  void add(std::size_t prompt, const inference::Event& event);
  // Once every prompt has finished.
  std::string json();

 private:
  struct Choice {
    std::string text;
    std::string reasoning;
    std::vector<inference::ToolCall> tool_calls;
    LogprobsText logprobs;
    inference::ChoiceFinished end;
  };
  AnswerHead head_;
  std::vector<Choice> choices_;
  inference::Usage usage_;
};

// Writes each event as the SSE events it means: role first (chat), one per delta, the finish reasons.
class StreamEncoder {
 public:
  StreamEncoder(AnswerHead head, std::size_t prompts, bool include_usage);
  // Any event but Failed. Appends nothing for an event that a client does not see.
  void add(std::size_t prompt, const inference::Event& event, std::string& out);
  // The usage, if asked for, and [DONE].
  void finish(std::string& out);

 private:
  void begin_chunk(std::size_t choice, std::string& out) const;
  void end_chunk(std::string& out) const;
  void text_chunk(std::size_t choice, std::string_view text, std::span<const inference::TokenLogprob> logprobs,
                  std::string& out);

  void tool_chunk(std::size_t choice, std::span<const inference::ToolCallDelta> parts, std::string& out) const;

  AnswerHead head_;
  bool include_usage_;
  std::string prefix_;  // the same in every chunk, up to the choice's index
  std::vector<LogprobsText> logprobs_;
  inference::Usage usage_;
};

// An error inside a stream, and its end.
void append_stream_error(const Error& error, std::string& out);

// Joins deltas of the same choice, for a client that reads more slowly than the model writes. The order within every
// choice is kept.
void merge_deltas(std::vector<inference::Event>& events);

struct ModelCard {
  std::string name;
  std::string root;  // the name that an alias stands for
  std::int64_t created = 0;
  int max_model_len = 0;  // 0 = not known
};
std::string model_json(const ModelCard& model);
std::string models_json(std::span<const ModelCard> models);

std::string tokenize_json(const inference::Tokenized& tokenized, int max_model_len, bool with_strings);
std::string detokenize_json(std::string_view text);

}  // namespace xgen::api
