#include "api/parameters.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>

#include "api/chat_body.h"
#include "api/field_errors.h"
#include "base/json.h"

namespace xgen::api {
namespace {

namespace json = boost::json;
using inference::Prompt;
using inference::TokenId;

constexpr unsigned kCompletions = static_cast<unsigned>(Endpoint::completions);
constexpr unsigned kChat = static_cast<unsigned>(Endpoint::chat);
constexpr unsigned kTokenize = static_cast<unsigned>(Endpoint::tokenize);
constexpr unsigned kDetokenize = static_cast<unsigned>(Endpoint::detokenize);
constexpr unsigned kGenerate = kCompletions | kChat;
constexpr unsigned kAll = kGenerate | kTokenize | kDetokenize;

constexpr double kIntMax = std::numeric_limits<std::int32_t>::max();
constexpr double kIntMin = std::numeric_limits<std::int32_t>::min();

std::string format_bound(double bound) {
  return bound == std::trunc(bound) && std::abs(bound) < 1e18 ? std::to_string(static_cast<std::int64_t>(bound))
                                                              : number_text(bound);
}

// "a number > 0 and <= 1": the words of error messages and of the reference page.
std::string expectation(const Parameter& parameter) {
  switch (parameter.kind) {
    case Kind::boolean:
      return "a boolean";
    case Kind::string:
      return "a string";
    case Kind::structure:
      return std::string(parameter.shape);
    case Kind::integer:
    case Kind::number:
      break;
  }
  std::string text = parameter.kind == Kind::integer ? "an integer" : "a number";
  const bool any = parameter.kind == Kind::integer && parameter.max > 9e18;
  if (any) return text;
  text += parameter.above_min ? " > " : " >= ";
  text += format_bound(parameter.min);
  if (parameter.max != kIntMax) text += " and <= " + format_bound(parameter.max);
  return text;
}

// JSON does not tell 1 from 1.0, so a whole number in either form is an integer.
std::optional<std::int64_t> integer_of(const json::value& value) {
  if (value.is_int64()) return value.get_int64();
  if (value.is_double()) {
    const double number = value.get_double();
    if (std::abs(number) <= 9007199254740992.0 && number == std::trunc(number))
      return static_cast<std::int64_t>(number);
  }
  return std::nullopt;
}
int as_int(const json::value& value) { return static_cast<int>(*integer_of(value)); }
double as_number(const json::value& value) {
  if (value.is_int64()) return static_cast<double>(value.get_int64());
  if (value.is_uint64()) return static_cast<double>(value.get_uint64());
  return value.get_double();
}
float as_float(const json::value& value) { return static_cast<float>(as_number(value)); }

std::optional<TokenId> token_of(const json::value& value) {
  const auto id = integer_of(value);
  if (!id || *id < 0 || *id > std::numeric_limits<TokenId>::max()) return std::nullopt;
  return static_cast<TokenId>(*id);
}

std::optional<std::vector<TokenId>> tokens_of(const json::array& list) {
  std::vector<TokenId> ids;
  ids.reserve(list.size());
  for (const json::value& item : list) {
    const auto id = token_of(item);
    if (!id) return std::nullopt;
    ids.push_back(*id);
  }
  return ids;
}

constexpr std::string_view kPromptShape =
    "a string, a list of strings, a list of token ids or a list of lists of token ids";

Status store_prompt(const json::value& value, Draft& draft) {
  if (const json::string* text = value.if_string()) {
    draft.prompts.emplace_back(std::string(text_of(*text)));
    return {};
  }
  const json::array* list = value.if_array();
  if (draft.endpoint == Endpoint::tokenize) return must_be("prompt", "a string", value);
  if (list == nullptr) return must_be("prompt", kPromptShape, value);
  if (list->empty()) return invalid("'prompt' must not be an empty list", "prompt");
  if (list->front().is_number()) {
    auto ids = tokens_of(*list);
    if (!ids) return invalid("'prompt' must hold token ids >= 0 only", "prompt");
    draft.prompts.emplace_back(std::move(*ids));
    return {};
  }
  if (list->size() > kMaxPrompts)
    return invalid(
        "'prompt' may hold at most " + std::to_string(kMaxPrompts) + " prompts, got " + std::to_string(list->size()),
        "prompt");
  for (const json::value& item : *list) {
    if (const json::string* text = item.if_string(); text != nullptr && list->front().is_string()) {
      draft.prompts.emplace_back(std::string(text_of(*text)));
    } else if (const json::array* inner = item.if_array(); inner != nullptr && list->front().is_array()) {
      auto ids = tokens_of(*inner);
      if (!ids || ids->empty())
        return invalid("'prompt' must hold lists of token ids >= 0 that are not empty", "prompt");
      draft.prompts.emplace_back(std::move(*ids));
    } else {
      return must_be("prompt", kPromptShape, item);
    }
  }
  return {};
}

Status store_stop(const json::value& value, Draft& draft) {
  const auto add = [&](const json::value& item) -> Status {
    const json::string* text = item.if_string();
    if (text == nullptr) return must_be("stop", "a string or a list of up to 16 strings", item);
    if (text->empty()) return invalid("'stop' must not hold an empty string", "stop");
    if (text->size() > kMaxStopBytes)
      return invalid("'stop' strings may have at most " + std::to_string(kMaxStopBytes) + " bytes", "stop");
    draft.stop.stop.emplace_back(text_of(*text));
    return {};
  };
  const json::array* list = value.if_array();
  if (list == nullptr) return add(value);
  if (list->size() > kMaxStops)
    return invalid(
        "'stop' may hold at most " + std::to_string(kMaxStops) + " strings, got " + std::to_string(list->size()),
        "stop");
  for (const json::value& item : *list)
    if (Status status = add(item); !status.ok()) return status;
  return {};
}

Status store_stop_token_ids(const json::value& value, Draft& draft) {
  const json::array* list = value.if_array();
  auto ids = list != nullptr && list->size() <= kMaxStopTokens ? tokens_of(*list) : std::nullopt;
  if (!ids) return must_be("stop_token_ids", "a list of up to 256 token ids >= 0", value);
  draft.stop.stop_token_ids = std::move(*ids);
  return {};
}

Status store_logit_bias(const json::value& value, Draft& draft) {
  const json::object* object = value.if_object();
  if (object == nullptr) return must_be("logit_bias", "an object of token ids to numbers >= -100 and <= 100", value);
  if (object->size() > kMaxLogitBias)
    return invalid("'logit_bias' may hold at most " + std::to_string(kMaxLogitBias) + " tokens, got " +
                       std::to_string(object->size()),
                   "logit_bias");
  for (const auto& [key, bias] : *object) {
    TokenId id = -1;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() || id < 0)
      return invalid("'logit_bias' must have token ids >= 0 as keys", "logit_bias");
    if (!bias.is_number() || std::abs(as_number(bias)) > 100)
      return must_be("logit_bias." + std::to_string(id), "a number >= -100 and <= 100", bias);
    draft.sampling.logit_bias.emplace_back(id, as_float(bias));
  }
  return {};
}

Status store_stream_options(const json::value& value, Draft& draft) {
  const json::object* object = value.if_object();
  if (object == nullptr) return must_be("stream_options", "an object", value);
  draft.stream_options = true;
  for (const auto& [key, field] : *object) {
    if (field.is_null()) continue;
    const std::string name = member("stream_options", {key.data(), key.size()});
    if (!field.is_bool() && (key == "include_usage" || key == "continuous_usage_stats" || key == "include_obfuscation"))
      return must_be(name, "a boolean", field);
    if (key == "include_usage") {
      draft.include_usage = field.get_bool();
    } else if (key == "include_obfuscation") {
      // Padding against eavesdroppers who measure chunks: nothing a client could miss.
    } else if (!field.is_bool() || field.get_bool()) {
      return not_supported(name, field);
    }
  }
  return {};
}

Status store_tokens(const json::value& value, Draft& draft) {
  const json::array* list = value.if_array();
  auto ids = list != nullptr ? tokens_of(*list) : std::nullopt;
  if (!ids) return must_be("tokens", "a list of token ids >= 0", value);
  draft.tokens = std::move(*ids);
  return {};
}

#define XGEN_STORE(statement)                            \
  [](const json::value& value, Draft& draft) -> Status { \
    statement;                                           \
    return {};                                           \
  }

constexpr Parameter no_effect(std::string_view name, unsigned endpoints, std::string_view doc) {
  return {.name = name, .endpoints = endpoints, .support = Support::no_effect, .doc = doc};
}
constexpr Parameter passed(std::string_view name, unsigned endpoints, std::string_view no_op, std::string_view doc) {
  return {.name = name, .endpoints = endpoints, .support = Support::passed, .no_op = no_op, .doc = doc};
}
constexpr Parameter refused(std::string_view name, unsigned endpoints, std::string_view no_op, std::string_view doc) {
  return {.name = name, .endpoints = endpoints, .support = Support::refused, .no_op = no_op, .doc = doc};
}

constexpr Parameter kParameters[] = {
    // ---- what works ----
    {.name = "model",
     .endpoints = kAll,
     .kind = Kind::string,
     .default_value = "",
     .doc = "Name or alias of a served model. May be left out of /tokenize and /detokenize where one model is served.",
     .store = XGEN_STORE(draft.model = text_of(value.get_string()))},
    {.name = "prompt",
     .endpoints = kCompletions | kTokenize,
     .shape = kPromptShape,
     .doc = "What to continue; several prompts give several groups of choices. /tokenize takes a string.",
     .store = store_prompt},
    {.name = "messages",
     .endpoints = kChat | kTokenize,
     .shape = "a list of messages {role, content, name, tool_calls, tool_call_id, reasoning_content}",
     .doc =
         "The chat so far. Content is a string, a list of parts (text, image_url), or (assistant) null. What a model "
         "cannot read (images, calls of tools) is refused by name.",
     .store = store_messages},
    {.name = "max_tokens",
     .endpoints = kCompletions,
     .kind = Kind::integer,
     .min = 0,
     .max = kIntMax,
     .default_value = "16",
     .doc = "Tokens to generate at most, per choice. 0 only reads the prompt (echo, logprobs).",
     .store = XGEN_STORE(draft.stop.max_tokens = as_int(value))},
    {.name = "max_tokens",
     .endpoints = kChat,
     .kind = Kind::integer,
     .min = 1,
     .max = kIntMax,
     .default_value = "to the end of the context",
     .doc = "The older name of max_completion_tokens.",
     .store = XGEN_STORE(draft.stop.max_tokens = as_int(value))},
    {.name = "max_completion_tokens",
     .endpoints = kChat,
     .kind = Kind::integer,
     .min = 1,
     .max = kIntMax,
     .default_value = "to the end of the context",
     .doc = "Tokens to generate at most, per choice.",
     .store = XGEN_STORE(draft.max_completion_tokens = as_int(value))},
    {.name = "temperature",
     .endpoints = kGenerate,
     .kind = Kind::number,
     .min = 0,
     .max = 2,
     .default_value = "the model's, or 1",
     .doc = "0 always takes the likeliest token.",
     .store = XGEN_STORE(draft.sampling.temperature = as_float(value))},
    {.name = "top_p",
     .endpoints = kGenerate,
     .kind = Kind::number,
     .min = 0,
     .max = 1,
     .above_min = true,
     .default_value = "the model's, or 1",
     .doc = "Keeps the likeliest tokens that together have this probability.",
     .store = XGEN_STORE(draft.sampling.top_p = as_float(value))},
    {.name = "top_k",
     .endpoints = kGenerate,
     .kind = Kind::integer,
     .min = -1,
     .max = kIntMax,
     .default_value = "the model's, or all",
     .doc = "Keeps this many of the likeliest tokens; 0 or -1 keeps all.",
     .store = XGEN_STORE(draft.sampling.top_k = as_int(value))},
    {.name = "min_p",
     .endpoints = kGenerate,
     .kind = Kind::number,
     .min = 0,
     .max = 1,
     .default_value = "the model's, or 0",
     .doc = "Drops tokens less likely than this share of the likeliest one.",
     .store = XGEN_STORE(draft.sampling.min_p = as_float(value))},
    {.name = "n",
     .endpoints = kGenerate,
     .kind = Kind::integer,
     .min = 1,
     .max = 128,
     .default_value = "1",
     .doc = "Choices per prompt.",
     .store = XGEN_STORE(draft.n = as_int(value))},
    {.name = "stop",
     .endpoints = kGenerate,
     .shape = "a string or a list of up to 16 strings",
     .default_value = "none",
     .doc = "The text ends before the first of these.",
     .store = store_stop},
    {.name = "stop_token_ids",
     .endpoints = kGenerate,
     .shape = "a list of up to 256 token ids >= 0",
     .default_value = "none",
     .doc = "Generation ends with any of these tokens.",
     .store = store_stop_token_ids},
    {.name = "ignore_eos",
     .endpoints = kGenerate,
     .kind = Kind::boolean,
     .default_value = "false",
     .doc = "Goes on after the model's own end token.",
     .store = XGEN_STORE(draft.stop.ignore_eos = value.get_bool())},
    {.name = "min_tokens",
     .endpoints = kGenerate,
     .kind = Kind::integer,
     .min = 0,
     .max = kIntMax,
     .default_value = "0",
     .doc = "Neither the end token nor a stop token comes before this many tokens, and stop strings count only after "
            "them.",
     .store = XGEN_STORE(draft.stop.min_tokens = as_int(value))},
    {.name = "seed",
     .endpoints = kGenerate,
     .kind = Kind::integer,
     .min = -9.3e18,
     .max = 9.3e18,
     .default_value = "drawn per request",
     .doc = "The same seed gives the same tokens, whatever else the server is doing.",
     .store = XGEN_STORE(draft.sampling.seed = static_cast<std::uint64_t>(*integer_of(value)))},
    {.name = "presence_penalty",
     .endpoints = kGenerate,
     .kind = Kind::number,
     .min = -2,
     .max = 2,
     .default_value = "0",
     .doc = "Lowers the score of every token that the output has.",
     .store = XGEN_STORE(draft.sampling.presence_penalty = as_float(value))},
    {.name = "frequency_penalty",
     .endpoints = kGenerate,
     .kind = Kind::number,
     .min = -2,
     .max = 2,
     .default_value = "0",
     .doc = "Lowers the score of a token by each time the output has it.",
     .store = XGEN_STORE(draft.sampling.frequency_penalty = as_float(value))},
    {.name = "repetition_penalty",
     .endpoints = kGenerate,
     .kind = Kind::number,
     .min = 0,
     .max = 100,
     .above_min = true,
     .default_value = "the model's, or 1",
     .doc = "Divides (positive) or multiplies (negative) the scores of tokens in prompt and output.",
     .store = XGEN_STORE(draft.sampling.repetition_penalty = as_float(value))},
    {.name = "logit_bias",
     .endpoints = kGenerate,
     .shape = "an object of token ids to numbers >= -100 and <= 100",
     .default_value = "none",
     .doc = "Added to the scores of up to 1024 tokens.",
     .store = store_logit_bias},
    {.name = "logprobs",
     .endpoints = kCompletions,
     .kind = Kind::integer,
     .min = 0,
     .max = 20,
     .default_value = "none",
     .doc = "Log-probabilities of the chosen token and of this many others.",
     .store = XGEN_STORE(draft.logprobs = as_int(value))},
    {.name = "logprobs",
     .endpoints = kChat,
     .kind = Kind::boolean,
     .default_value = "false",
     .doc = "Log-probabilities of the chosen tokens.",
     .store = XGEN_STORE(draft.chat_logprobs = value.get_bool())},
    {.name = "top_logprobs",
     .endpoints = kChat,
     .kind = Kind::integer,
     .min = 0,
     .max = 20,
     .default_value = "0",
     .doc = "Also of this many of the likeliest tokens; needs logprobs.",
     .store = XGEN_STORE(draft.top_logprobs = as_int(value))},
    {.name = "echo",
     .endpoints = kCompletions,
     .kind = Kind::boolean,
     .default_value = "false",
     .doc = "The answer begins with the prompt.",
     .store = XGEN_STORE(draft.echo = value.get_bool())},
    {.name = "stream",
     .endpoints = kGenerate,
     .kind = Kind::boolean,
     .default_value = "false",
     .doc = "Answer by server-sent events, one per piece of text.",
     .store = XGEN_STORE(draft.stream = value.get_bool())},
    {.name = "stream_options",
     .endpoints = kGenerate,
     .shape = "an object",
     .default_value = "none",
     .doc = "include_usage: a last chunk tells the token counts. Needs stream.",
     .store = store_stream_options},
    {.name = "priority",
     .endpoints = kGenerate,
     .kind = Kind::integer,
     .min = kIntMin,
     .max = kIntMax,
     .default_value = "0",
     .doc = "Smaller is served sooner.",
     .store = XGEN_STORE(draft.priority = as_int(value))},
    {.name = "best_of",
     .endpoints = kCompletions,
     .kind = Kind::integer,
     .min = 1,
     .max = 128,
     .default_value = "n",
     .doc = "Only the value of n: choosing among more candidates is not offered.",
     .store = XGEN_STORE(draft.best_of = as_int(value))},
    {.name = "add_special_tokens",
     .endpoints = kTokenize,
     .kind = Kind::boolean,
     .default_value = "true for a prompt, false for messages",
     .doc = "Adds the tokens that begin (or end) a text.",
     .store = XGEN_STORE(draft.add_special_tokens = value.get_bool())},
    {.name = "add_generation_prompt",
     .endpoints = kTokenize,
     .kind = Kind::boolean,
     .default_value = "true",
     .doc = "Ends the chat with the beginning of the assistant's answer.",
     .store = XGEN_STORE(draft.add_generation_prompt = value.get_bool())},
    {.name = "return_token_strs",
     .endpoints = kTokenize,
     .kind = Kind::boolean,
     .default_value = "false",
     .doc = "Also the text of each token.",
     .store = XGEN_STORE(draft.return_token_strs = value.get_bool())},
    {.name = "tokens",
     .endpoints = kDetokenize,
     .shape = "a list of token ids >= 0",
     .doc = "What to turn into text.",
     .store = store_tokens},

    // ---- what works where the engine has it; another refuses it by name ----
    {.name = "tools",
     .endpoints = kChat,
     .shape = "a list of functions",
     .default_value = "none",
     .doc = "Functions that the model may call. Models of remote engines only so far.",
     .store = store_tools},
    {.name = "tool_choice",
     .endpoints = kChat,
     .shape = "none, auto, required or a function of tools",
     .default_value = "auto with tools",
     .doc = "Whether and which of them.",
     .store = store_tool_choice},
    {.name = "parallel_tool_calls",
     .endpoints = kChat,
     .kind = Kind::boolean,
     .default_value = "the engine's",
     .doc = "More than one call in an answer.",
     .store = XGEN_STORE(draft.parallel_tool_calls = value.get_bool())},
    {.name = "response_format",
     .endpoints = kGenerate,
     .shape = "an object with type text, json_object or json_schema",
     .default_value = "text",
     .doc = "The form that the answer must have. Models of remote engines only so far.",
     .store = store_response_format},

    // ---- accepted, without effect ----
    no_effect("user", kGenerate, "A name for the end user."),
    no_effect("metadata", kGenerate, "Labels of stored answers."),
    no_effect("store", kGenerate, "Nothing is ever stored."),
    no_effect("safety_identifier", kGenerate, "A name for the end user."),
    no_effect("prompt_cache_key", kGenerate, "Prefixes are found again without it."),
    no_effect("prompt_cache_retention", kGenerate, "Cached prefixes stay as long as there is room."),
    no_effect("include_reasoning", kChat, "Reasoning is not told from the answer's text."),

    // ---- for engines that know them ----
    passed("reasoning_effort", kChat, "[]", "How long to reason."),
    passed("verbosity", kChat, R"(["medium"])", "How long to answer."),
    passed("prediction", kChat, "[]", "Expected output."),
    passed("suffix", kCompletions, R"([""])", "Text after the gap to fill."),
    passed("use_beam_search", kGenerate, "[false]", "Beam search."),
    passed("length_penalty", kGenerate, "[1]", "Of beam search."),
    passed("early_stopping", kGenerate, "[false]", "Of beam search."),
    passed("include_stop_str_in_output", kGenerate, "[false]", "Keeps the stop string."),
    passed("skip_special_tokens", kGenerate, "[true]", "Special tokens are left out of the text."),
    passed("spaces_between_special_tokens", kGenerate, "[true]", "Form of special tokens in the text."),
    passed("truncate_prompt_tokens", kGenerate, "[]", "Keeps the end of a long prompt."),
    passed("allowed_token_ids", kGenerate, "[]", "The only tokens to choose from."),
    passed("bad_words", kGenerate, "[[]]", "Words that must not come."),
    passed("add_special_tokens", kCompletions, "[true]", "The prompt begins with the model's first token."),
    passed("add_special_tokens", kChat, "[false]", "The template writes its own."),
    passed("add_generation_prompt", kChat, "[true]", "The chat ends with the beginning of the answer."),
    passed("continue_final_message", kChat, "[false]", "Goes on with the last message."),
    passed("documents", kChat, "[[]]", "For templates that quote documents."),
    passed("chat_template", kChat, "[]", "A template other than the model's."),
    passed("chat_template_kwargs", kChat, "[{}]", "Values for the template."),
    passed("mm_processor_kwargs", kChat, "[{}]", "Values for image processing."),
    passed("media_io_kwargs", kChat, "[{}]", "Values for media loading."),
    passed("structured_outputs", kGenerate, "[]", "Answers of a given form."),
    passed("guided_json", kGenerate, "[]", "The older form of structured_outputs."),
    passed("guided_regex", kGenerate, "[]", "The older form of structured_outputs."),
    passed("guided_choice", kGenerate, "[]", "The older form of structured_outputs."),
    passed("guided_grammar", kGenerate, "[]", "The older form of structured_outputs."),
    passed("guided_decoding_backend", kGenerate, "[]", "Part of guided decoding."),
    passed("guided_whitespace_pattern", kGenerate, "[]", "Part of guided decoding."),
    passed("structural_tag", kGenerate, "[]", "Answers of a given form in parts."),
    passed("cache_salt", kGenerate, "[]", "Keeps cached prefixes apart."),
    passed("vllm_xargs", kGenerate, "[{}]", "Values for extensions of vLLM."),
    passed("thinking_token_budget", kChat, "[]", "Tokens for reasoning."),
    passed("repetition_detection", kGenerate, "[]", "Ends answers that repeat themselves."),

    // ---- refused by name until they work ----
    refused("service_tier", kGenerate, R"(["auto","default"])", "There is one tier."),
    refused("tools", kTokenize, "[[]]", "Functions the model may call."),
    refused("functions", kChat, "[[]]", "The older form of tools."),
    refused("function_call", kChat, R"(["none","auto"])", "The older form of tool_choice."),
    refused("modalities", kChat, R"([["text"],[]])", "Kinds of output."),
    refused("audio", kChat, "[]", "Form of audio output."),
    refused("web_search_options", kChat, "[]", "Search on the way."),
    refused("moderation", kChat, "[]", "Moderation of the answer."),
    refused("prompt_cache_options", kChat, "[{}]", "Control of the prefix cache."),
    refused("echo", kChat, "[false]", "The answer begins with the last message."),
    refused("prompt_logprobs", kGenerate, "[]", "Use echo with logprobs."),
    refused("continue_final_message", kTokenize, "[false]", "Goes on with the last message."),
    refused("chat_template", kTokenize, "[]", "A template other than the model's."),
    refused("chat_template_kwargs", kTokenize, "[{}]", "Values for the template."),
    refused("mm_processor_kwargs", kTokenize, "[{}]", "Values for image processing."),
    refused("request_id", kGenerate, "[]", "Send the header x-request-id."),
    refused("logits_processors", kGenerate, "[[]]", "Code that changes scores."),
    refused("return_tokens_as_token_ids", kGenerate, "[false]", "Token ids in log-probabilities."),
    refused("return_token_ids", kGenerate, "[false]", "Token ids beside the text."),
    refused("kv_transfer_params", kGenerate, "[]", "Prefill on another machine."),
    refused("prompt_embeds", kCompletions, "[]", "Embeddings in place of a prompt."),
};

#undef XGEN_STORE

using Index = std::map<std::string_view, const Parameter*>;

const Index& index_of(Endpoint endpoint) {
  static const auto indexes = [] {
    std::array<Index, 9> made;
    for (const unsigned bit : {kCompletions, kChat, kTokenize, kDetokenize})
      for (const Parameter& parameter : kParameters)
        if ((parameter.endpoints & bit) != 0) made[bit].emplace(parameter.name, &parameter);
    return made;
  }();
  return indexes[static_cast<std::size_t>(endpoint)];
}

bool is_no_op(const Parameter& parameter, const json::value& value) {
  const json::value no_op = json::parse(parameter.no_op);
  const json::array& harmless = no_op.as_array();
  return std::any_of(harmless.begin(), harmless.end(), [&](const json::value& each) {
    return each == value || (each.is_number() && value.is_number() && as_number(each) == as_number(value));
  });
}

}  // namespace

std::span<const Parameter> parameters() { return kParameters; }

const Parameter* find_parameter(Endpoint endpoint, std::string_view name) {
  const Index& index = index_of(endpoint);
  const auto found = index.find(name);
  return found == index.end() ? nullptr : found->second;
}

Status apply_parameter(const Parameter& parameter, const json::value& value, Draft& draft) {
  // Clients send null for what they leave unset.
  if (value.is_null() || parameter.support == Support::no_effect) return {};
  if (parameter.support == Support::refused || parameter.support == Support::passed) {
    if (is_no_op(parameter, value)) return {};
    if (parameter.support == Support::refused) return not_supported(std::string(parameter.name), value);
    draft.extensions.push_back({std::string(parameter.name), json::serialize(value)});
    return {};
  }
  bool good = true;
  switch (parameter.kind) {
    case Kind::boolean:
      good = value.is_bool();
      break;
    case Kind::string:
      good = value.is_string();
      break;
    case Kind::integer: {
      const auto number = integer_of(value);
      good = number && static_cast<double>(*number) >= parameter.min && static_cast<double>(*number) <= parameter.max;
      break;
    }
    case Kind::number: {
      good = value.is_number();
      if (!good) break;
      const double number = as_number(value);
      good = (parameter.above_min ? number > parameter.min : number >= parameter.min) && number <= parameter.max;
      break;
    }
    case Kind::structure:
      break;
  }
  if (!good) return must_be(std::string(parameter.name), expectation(parameter), value);
  return parameter.store(value, draft);
}

std::string limits_markdown() {
  struct Limit {
    std::string_view what;
    std::string most;
  };
  const Limit limits[] = {
      {"bytes of the body", "`server.max_body`"},
      {"bytes of the head", "`server.max_headers`"},
      {"prompts of /v1/completions", std::to_string(kMaxPrompts)},
      {"choices of all prompts together (prompts times `n`)", std::to_string(kMaxChoices)},
      {"messages of a chat", std::to_string(kMaxMessages)},
      {"parts of one message's content", std::to_string(kMaxParts)},
      {"bytes of a message's role or name", std::to_string(kMaxNameBytes)},
      {"functions in `tools`", std::to_string(kMaxTools)},
      {"`tool_calls` of one message", std::to_string(kMaxToolCalls)},
      {"bytes of a function's name", std::to_string(kMaxFunctionName)},
      {"strings in `stop`", std::to_string(kMaxStops)},
      {"bytes of one of them", std::to_string(kMaxStopBytes)},
      {"ids in `stop_token_ids`", std::to_string(kMaxStopTokens)},
      {"tokens in `logit_bias`", std::to_string(kMaxLogitBias)},
      {"levels of nesting in the JSON", std::to_string(kMaxJsonDepth)},
      {"tokens of a prompt and its answer together", "`max_model_len`"},
      {"time until the answer is complete", "`server.request_timeout`"},
  };
  std::string out = "| of one request | at most |\n| --- | --- |\n";
  for (const Limit& limit : limits) out.append("| ").append(limit.what).append(" | ").append(limit.most).append(" |\n");
  return out;
}

std::string parameters_markdown() {
  const auto endpoints_of = [](unsigned bits) {
    std::string text;
    const auto add = [&](unsigned bit, std::string_view name) {
      if ((bits & bit) == 0) return;
      if (!text.empty()) text += ", ";
      text += name;
    };
    add(kChat, "chat");
    add(kCompletions, "completions");
    add(kTokenize, "tokenize");
    add(kDetokenize, "detokenize");
    return text;
  };
  std::string out =
      "### Parameters that work\n\n| name | endpoints | value | default | meaning |\n| --- | --- | --- | --- | --- |\n";
  const auto rows = [&](Support support) {
    for (const Parameter& row : kParameters) {
      if (row.support != support) continue;
      out += "| `" + std::string(row.name) + "` | " + endpoints_of(row.endpoints) + " | ";
      if (support == Support::works)
        out += expectation(row) + " | " + std::string(row.default_value) + " | ";
      else if (support == Support::refused || support == Support::passed)
        out +=
            "null" +
            (row.no_op == "[]" ? std::string() : ", `" + std::string(row.no_op.substr(1, row.no_op.size() - 2)) + "`") +
            " | ";
      out += std::string(row.doc) + " |\n";
    }
  };
  rows(Support::works);
  out += "\n### Parameters accepted without effect\n\n| name | endpoints | meaning |\n| --- | --- | --- |\n";
  rows(Support::no_effect);
  out +=
      "\n### Parameters passed on\n\nModels of another engine get them, if it knows them (remote-engines.md); the "
      "native "
      "engine refuses them by name. The accepted values change nothing, with any engine.\n\n| name | endpoints | "
      "accepted "
      "values | meaning |\n| --- | --- | --- | --- |\n";
  rows(Support::passed);
  out +=
      "\n### Parameters refused by name\n\nOnly the values that change nothing are accepted; any other is answered "
      "with 400.\n\n| name | endpoints | accepted values | meaning |\n| --- | --- | --- | --- |\n";
  rows(Support::refused);
  return out;
}

}  // namespace xgen::api
