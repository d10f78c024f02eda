// Chat templates: Jinja as Hugging Face `transformers` sets it up (ImmutableSandboxedEnvironment, trim_blocks,
// lstrip_blocks, loopcontrols, the generation tag, raise_exception, strftime_now, tojson). Text is equal byte for byte
// to what transformers renders. Not offered: integers beyond 64 bits, other templates (include, import, extends),
// scoped blocks, autoescape, and the lipsum, pprint, random and urlize helpers; object addresses are not printed.
#pragma once

#include <ctime>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "text/jinja/error.h"
#include "text/jinja/value.h"

namespace xgen::text {

struct RenderSettings {
  jinja::Limits limits;
  std::function<std::tm()> local_time;  // answers strftime_now; unset: the system's local time
};

// Parsed once; immutable, so that any number of threads may render it at the same time.
class ChatTemplate {
 public:
  // `source`: UTF-8. Errors (invalid_argument): a syntax error with its line, or a limit met.
  static Result<ChatTemplate> parse(std::string_view source, const jinja::Limits& limits = {});

  // `context`: a dict of the template's variables. Errors: invalid_argument, param "messages"; the message is the
  // template's own if it called raise_exception, else what Python would say, after "chat template, line N: ". A limit
  // met is too_large.
  Result<std::string> render(const jinja::Value& context, const RenderSettings& settings = {}) const;

 private:
  struct State;
  explicit ChatTemplate(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

struct ChatMessage {
  std::string role;
  std::string content;
  std::string name;               // empty = none
  std::string reasoning_content;  // empty = none
};

struct RenderOptions {
  bool add_generation_prompt = true;
  std::string bos_token;  // empty = the tokenizer has none, and the template sees no such variable
  std::string eos_token;
  std::vector<std::pair<std::string, std::string>> special_tokens;  // others by their name, e.g. "pad_token"
  std::vector<std::pair<std::string, jinja::Value>> extra;          // chat_template_kwargs; they win over the above
  RenderSettings settings;
};

// The context that transformers' apply_chat_template builds, rendered. Errors as ChatTemplate::render; also
// invalid_argument, param "messages", for text that is not UTF-8.
Result<std::string> render_chat(const ChatTemplate& chat_template, std::span<const ChatMessage> messages,
                                const RenderOptions& options);

}  // namespace xgen::text
