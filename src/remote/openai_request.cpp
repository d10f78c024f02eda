#include "remote/openai_request.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>

#include "base/json_text.h"
#include "remote/tgi_request.h"

namespace xgen::remote {
namespace {

using inference::ContentPart;
using inference::GenerateRequest;
using inference::Message;
using inference::Prompt;
using inference::ResponseFormat;
using inference::ToolChoice;

constexpr unsigned bit(Dialect dialect) { return static_cast<unsigned>(dialect); }
constexpr unsigned kOpenai = bit(Dialect::openai);
constexpr unsigned kVllm = bit(Dialect::vllm);
constexpr unsigned kSglang = bit(Dialect::sglang);
constexpr unsigned kTrtllm = bit(Dialect::trtllm);
constexpr unsigned kLlamacpp = bit(Dialect::llamacpp);
constexpr unsigned kXgen = bit(Dialect::xgen);  // in every row: it refuses by itself
constexpr unsigned kTgi = bit(Dialect::tgi);
constexpr unsigned kAll = kOpenai | kVllm | kSglang | kTrtllm | kLlamacpp | kXgen;
constexpr unsigned kEngines = kAll & ~kOpenai;

constexpr unsigned kChat = 1;
constexpr unsigned kCompletions = 2;
constexpr unsigned kBoth = kChat | kCompletions;

bool is_chat(const Prompt& prompt) { return std::holds_alternative<std::vector<Message>>(prompt); }

void append_number(std::string& out, std::uint64_t value) {
  char text[24];
  out.append(text, static_cast<std::size_t>(std::to_chars(text, text + sizeof(text), value).ptr - text));
}

// Appends the elements of a list between brackets.
template <class List, class Append>
void append_list(std::string& out, const List& list, Append append) {
  out += '[';
  bool first = true;
  for (const auto& each : list) {
    if (!first) out += ',';
    first = false;
    append(each);
  }
  out += ']';
}
void append_ids(std::string& out, const std::vector<inference::TokenId>& ids) {
  append_list(out, ids, [&](inference::TokenId id) { append_json_int(out, id); });
}
void append_member(std::string& out, std::string_view name, std::string_view text) {
  out.append(",\"").append(name).append("\":");
  append_json_string(out, text);
}

// ---- Messages ----

void append_content(std::string& out, const Message& message, Dialect dialect) {
  if (message.parts.empty()) {
    if (message.content.empty() && !message.tool_calls.empty())
      out += "null";
    else
      append_json_string(out, message.content);
    return;
  }
  append_list(out, message.parts, [&](const ContentPart& part) {
    if (part.kind == ContentPart::Kind::text) {
      out += R"({"type":"text","text":)";
      append_json_string(out, part.value);
    } else {
      out += R"({"type":"image_url","image_url":{"url":)";
      append_json_string(out, part.value);
      if (!part.detail.empty() && dialect != Dialect::tgi) append_member(out, "detail", part.detail);
      out += '}';
    }
    out += '}';
  });
}

void append_tool_calls(std::string& out, const Message& message) {
  out += ",\"tool_calls\":";
  append_list(out, message.tool_calls, [&](const inference::ToolCall& call) {
    out += "{\"id\":";
    append_json_string(out, call.id);
    out += R"(,"type":"function","function":{"name":)";
    append_json_string(out, call.name);
    append_member(out, "arguments", call.arguments);
    out += "}}";
  });
}

// TGI has a message's content or its calls, and passes over in silence what else one has. OpenAI refuses it.
void append_messages(std::string& out, const std::vector<Message>& messages, Dialect dialect) {
  const bool tgi = dialect == Dialect::tgi;
  append_list(out, messages, [&](const Message& message) {
    out += "{\"role\":";
    append_json_string(out, message.role);
    if (!tgi || message.tool_calls.empty()) {
      out += ",\"content\":";
      append_content(out, message, dialect);
    }
    if (!message.name.empty()) append_member(out, "name", message.name);
    if (!message.tool_call_id.empty() && !tgi) append_member(out, "tool_call_id", message.tool_call_id);
    if (!message.reasoning.empty() && !tgi && dialect != Dialect::openai)
      append_member(out, "reasoning_content", message.reasoning);
    if (!message.tool_calls.empty()) append_tool_calls(out, message);
    out += '}';
  });
}

bool says_something(const Message& message) {
  return !message.parts.empty() || message.content.find_first_not_of(" \t\r\n") != std::string::npos;
}

// What is lost on the way to TGI and matters. Without the ids of its calls, their results are told apart by their order
// alone.
std::optional<Error> lost_on_tgi(const std::vector<Message>& messages) {
  const auto refuse = [](std::string_view what) {
    return make_error(ErrorCode::unsupported,
                      "'messages' " + std::string(what) + ", which the engine of this model (tgi) cannot be told",
                      "messages");
  };
  std::vector<std::string_view> calls;  // of the last message with any, whose results are still to come
  for (const Message& message : messages) {
    if (!message.tool_calls.empty()) {
      if (says_something(message)) return refuse("has one with both content and tool_calls");
      calls.clear();
      for (const inference::ToolCall& call : message.tool_calls) calls.push_back(call.id);
    } else if (const auto call = std::find(calls.begin(), calls.end(), message.tool_call_id); call != calls.end()) {
      if (call != calls.begin()) return refuse("has results of tools in another order than their calls");
      calls.erase(call);
    }
  }
  return std::nullopt;
}

// ---- The table ----

// Appends the value; false, with nothing appended, if the request leaves it at its default.
using Append = bool (*)(const GenerateRequest& request, std::string& out);

struct Field {
  std::string_view name;  // as clients write it: what a refusal names
  unsigned endpoints;
  unsigned dialects;
  Append append;
};

bool append_float(std::string& out, float value) {
  append_json_float(out, value);
  return true;
}
bool append_int(std::string& out, std::int64_t value) {
  append_json_int(out, value);
  return true;
}
bool append_text(std::string& out, std::string_view text) {
  out += text;
  return true;
}

void append_tool(std::string& out, const inference::Tool& tool, std::string_view default_parameters = {}) {
  out += R"({"type":"function","function":{"name":)";
  append_json_string(out, tool.name);
  if (!tool.description.empty()) append_member(out, "description", tool.description);
  const std::string_view parameters = tool.parameters.empty() ? default_parameters : tool.parameters;
  if (!parameters.empty()) out.append(",\"parameters\":").append(parameters);
  if (tool.strict) out.append(",\"strict\":").append(*tool.strict ? "true" : "false");
  out += "}}";
}

bool append_tools(const GenerateRequest& request, std::string& out) {
  if (request.tools.empty()) return false;
  append_list(out, request.tools, [&](const inference::Tool& tool) { append_tool(out, tool); });
  return true;
}

bool append_tool_choice(const GenerateRequest& request, std::string& out) {
  switch (request.tool_choice.mode) {
    case ToolChoice::Mode::unset:
      return false;
    case ToolChoice::Mode::none:
      return append_text(out, "\"none\"");
    case ToolChoice::Mode::automatic:
      return append_text(out, "\"auto\"");
    case ToolChoice::Mode::required:
      return append_text(out, "\"required\"");
    case ToolChoice::Mode::named:
      break;
  }
  out += R"({"type":"function","function":{"name":)";
  append_json_string(out, request.tool_choice.name);
  return append_text(out, "}}");
}

bool append_response_format(const GenerateRequest& request, std::string& out) {
  const ResponseFormat& format = request.response_format;
  if (format.kind == ResponseFormat::Kind::text) return false;
  if (format.kind == ResponseFormat::Kind::json_object) return append_text(out, R"({"type":"json_object"})");
  out += R"({"type":"json_schema","json_schema":{"name":)";
  append_json_string(out, format.name);
  if (!format.description.empty()) append_member(out, "description", format.description);
  if (!format.schema.empty()) out.append(",\"schema\":").append(format.schema);
  if (format.strict) out.append(",\"strict\":").append(*format.strict ? "true" : "false");
  return append_text(out, "}}");
}

#define XGEN_FIELD(statement) [](const GenerateRequest& request, std::string& out) -> bool { statement; }
#define XGEN_SET(optional, append) XGEN_FIELD(return (optional) ? append(out, *(optional)) : false)

constexpr Field kFields[] = {
    {"max_tokens", kBoth, kAll | kTgi, XGEN_SET(request.stop.max_tokens, append_int)},
    {"temperature", kBoth, kAll | kTgi, XGEN_SET(request.sampling.temperature, append_float)},
    {"top_p", kBoth, kAll | kTgi, XGEN_SET(request.sampling.top_p, append_float)},
    {"top_k", kBoth, kEngines, XGEN_SET(request.sampling.top_k, append_int)},
    {"min_p", kBoth, kEngines, XGEN_SET(request.sampling.min_p, append_float)},
    {"repetition_penalty", kBoth, kEngines, XGEN_SET(request.sampling.repetition_penalty, append_float)},
    {"presence_penalty", kBoth, kAll,
     XGEN_FIELD(return request.sampling.presence_penalty != 0 && append_float(out, request.sampling.presence_penalty))},
    {"frequency_penalty", kBoth, kAll | kTgi,
     XGEN_FIELD(return request.sampling.frequency_penalty != 0 &&
                       append_float(out, request.sampling.frequency_penalty))},
    {"seed", kBoth, kAll | kTgi, XGEN_FIELD({
       if (request.sampling.seed) append_number(out, *request.sampling.seed);
       return request.sampling.seed.has_value();
     })},
    {"logit_bias", kBoth, kAll, XGEN_FIELD({
       if (request.sampling.logit_bias.empty()) return false;
       char comma = '{';
       for (const auto& [id, bias] : request.sampling.logit_bias) {
         out += comma;
         comma = ',';
         append_json_string(out, std::to_string(id));
         out += ':';
         append_json_float(out, bias);
       }
       return append_text(out, "}");
     })},
    {"n", kBoth, kAll, XGEN_FIELD(return request.n != 1 && append_int(out, request.n))},
    {"stop", kBoth, kAll | kTgi, XGEN_FIELD({
       if (request.stop.stop.empty()) return false;
       append_list(out, request.stop.stop, [&](const std::string& text) { append_json_string(out, text); });
       return true;
     })},
    {"stop_token_ids", kBoth, kVllm | kSglang | kTrtllm | kXgen, XGEN_FIELD({
       if (request.stop.stop_token_ids.empty()) return false;
       append_ids(out, request.stop.stop_token_ids);
       return true;
     })},
    {"min_tokens", kBoth, kVllm | kSglang | kTrtllm | kXgen,
     XGEN_FIELD(return request.stop.min_tokens != 0 && append_int(out, request.stop.min_tokens))},
    {"ignore_eos", kBoth, kEngines, XGEN_FIELD(return request.stop.ignore_eos && append_text(out, "true"))},
    {"logprobs", kChat, kAll | kTgi, XGEN_FIELD(return request.logprobs && append_text(out, "true"))},
    {"top_logprobs", kChat, kAll | kTgi,
     XGEN_FIELD(return request.logprobs.value_or(0) > 0 && append_int(out, *request.logprobs))},
    {"logprobs", kCompletions, kAll, XGEN_SET(request.logprobs, append_int)},
    {"echo", kCompletions, kAll & ~kLlamacpp, XGEN_FIELD(return request.echo && append_text(out, "true"))},
    // Elsewhere a number means something else, or the opposite.
    {"priority", kBoth, kVllm | kXgen, XGEN_FIELD(return request.priority != 0 && append_int(out, request.priority))},
    {"tools", kChat, kAll | kTgi, append_tools},
    {"tool_choice", kChat, kAll | kTgi, append_tool_choice},
    {"parallel_tool_calls", kChat, kOpenai | kVllm | kLlamacpp | kXgen,
     XGEN_FIELD(return request.parallel_tool_calls &&
                       append_text(out, *request.parallel_tool_calls ? "true" : "false"))},
    {"response_format", kChat, kAll | kTgi, append_response_format},
    {"response_format", kCompletions, kVllm | kSglang | kTrtllm | kXgen, append_response_format},
};

// Where TGI wants another form of the value.
struct OtherForm {
  std::string_view name;
  Append append;
};
constexpr OtherForm kTgiForms[] = {
    // It refuses 1, and samples wherever it is given.
    {"top_p", XGEN_FIELD({
       const float top_p = request.sampling.top_p.value_or(1);
       return top_p < 1 && request.sampling.temperature != 0.0F && append_float(out, top_p);
     })},
    {"tools", XGEN_FIELD({
       if (request.tools.empty()) return false;
       append_list(out, request.tools, [&](inference::Tool tool) {
         tool.strict.reset();                                             // it always is
         append_tool(out, tool, R"({"type":"object","properties":{}})");  // it cannot do without
       });
       return true;
     })},
    {"response_format", XGEN_FIELD({
       if (request.response_format.kind == ResponseFormat::Kind::text) return false;
       const auto grammar = tgi_grammar(request.response_format);
       return grammar.ok() && append_text(out, *grammar);
     })},
};

#undef XGEN_SET
#undef XGEN_FIELD

Append form(const Field& field, Dialect dialect) {
  if (dialect == Dialect::tgi)
    for (const OtherForm& other : kTgiForms)
      if (other.name == field.name) return other.append;
  return field.append;
}

// What the neutral request does not spell out goes on as it came, to those who know it.
struct ExtensionRow {
  std::string_view name;
  unsigned dialects;
};
constexpr ExtensionRow kExtensions[] = {
    {"reasoning_effort", kAll},
    {"verbosity", kOpenai | kXgen},
    {"prediction", kOpenai | kXgen},
    {"suffix", kOpenai | kXgen},
    {"use_beam_search", kVllm | kTrtllm | kXgen},
    {"length_penalty", kVllm | kTrtllm | kXgen},
    {"early_stopping", kTrtllm | kXgen},
    {"include_stop_str_in_output", kVllm | kSglang | kTrtllm | kXgen},
    {"skip_special_tokens", kVllm | kSglang | kTrtllm | kXgen},
    {"spaces_between_special_tokens", kVllm | kTrtllm | kXgen},
    {"truncate_prompt_tokens", kVllm | kTrtllm | kXgen},
    {"add_special_tokens", kVllm | kTrtllm | kXgen},
    {"add_generation_prompt", kVllm | kTrtllm | kLlamacpp | kXgen},
    {"continue_final_message", kVllm | kSglang | kXgen},
    {"documents", kVllm | kTrtllm | kXgen},
    {"chat_template", kVllm | kTrtllm | kXgen},
    {"chat_template_kwargs", kVllm | kSglang | kTrtllm | kLlamacpp | kXgen},
    {"mm_processor_kwargs", kVllm | kTrtllm | kXgen},
    {"cache_salt", kVllm | kSglang | kTrtllm | kXgen},
    {"thinking_token_budget", kVllm | kTrtllm | kXgen},
};
constexpr unsigned kOtherExtensions = kVllm | kXgen;

// Where a dialect calls a field by another name.
struct OtherName {
  std::string_view name;
  unsigned endpoints;
  Dialect dialect;
  std::string_view json;
};
constexpr OtherName kOtherNames[] = {
    {"max_tokens", kChat, Dialect::openai, "max_completion_tokens"},
    {"repetition_penalty", kBoth, Dialect::llamacpp, "repeat_penalty"},
    {"include_stop_str_in_output", kBoth, Dialect::sglang, "no_stop_trim"},
};

std::string_view json_name(std::string_view name, unsigned endpoint, Dialect dialect) {
  for (const OtherName& other : kOtherNames)
    if (other.dialect == dialect && (other.endpoints & endpoint) != 0 && other.name == name) return other.json;
  return name;
}

bool knows(unsigned dialects, Dialect dialect) { return dialect == Dialect::unknown || (dialects & bit(dialect)) != 0; }

Error not_known(std::string_view field, Dialect dialect) { return not_supported(field, dialect_name(dialect)); }

std::string begin_body(std::string_view model) {
  std::string out = "{\"model\":";
  append_json_string(out, model);
  return out;
}

unsigned extension_dialects(std::string_view name) {
  for (const ExtensionRow& row : kExtensions)
    if (row.name == name) return row.dialects;
  return kOtherExtensions;
}

}  // namespace

Error not_supported(std::string_view field, std::string_view engine) {
  return make_error(
      ErrorCode::unsupported,
      "'" + std::string(field) + "' is not supported by the engine of this model (" + std::string(engine) + ")",
      std::string(field));
}

Result<std::string> tgi_grammar(const ResponseFormat& format) {
  if (format.kind != ResponseFormat::Kind::json_schema || format.schema.empty())
    return make_error(ErrorCode::unsupported,
                      "'response_format' needs a schema with the engine of this model (tgi): only json_schema works",
                      "response_format");
  return R"({"type":"json","value":)" + format.schema + "}";
}

std::vector<SetField> set_fields(const GenerateRequest& request) {
  const unsigned endpoint = is_chat(request.prompt) ? kChat : kCompletions;
  std::vector<SetField> out;
  std::string value;
  for (const Field& field : kFields) {
    if ((field.endpoints & endpoint) == 0 || !field.append(request, value)) continue;
    out.push_back({field.name, std::move(value)});
    value.clear();
  }
  for (const inference::Extension& extension : request.extensions) out.push_back({extension.name, extension.value});
  return out;
}

std::vector<std::string_view> field_names() {
  std::vector<std::string_view> out;
  for (const Field& field : kFields)
    if (std::find(out.begin(), out.end(), field.name) == out.end()) out.push_back(field.name);
  for (const ExtensionRow& extension : kExtensions) out.push_back(extension.name);
  return out;
}

std::string_view generate_path(const GenerateRequest& request) {
  return is_chat(request.prompt) ? "/chat/completions" : "/completions";
}

Result<std::string> generate_body(const GenerateRequest& request, std::string_view model, Dialect dialect) {
  std::string out = begin_body(model);
  const unsigned endpoint = is_chat(request.prompt) ? kChat : kCompletions;
  if (dialect == Dialect::tgi && request.response_format.kind != ResponseFormat::Kind::text)
    if (auto grammar = tgi_grammar(request.response_format); !grammar) return std::move(grammar).error();
  if (const auto* messages = std::get_if<std::vector<Message>>(&request.prompt)) {
    if (dialect == Dialect::tgi)
      if (auto lost = lost_on_tgi(*messages)) return *std::move(lost);
    out += ",\"messages\":";
    append_messages(out, *messages, dialect);
  } else if (const auto* text = std::get_if<std::string>(&request.prompt)) {
    append_member(out, "prompt", *text);
  } else {
    out += ",\"prompt\":";
    append_ids(out, std::get<std::vector<inference::TokenId>>(request.prompt));
  }
  out += R"(,"stream":true,"stream_options":{"include_usage":true})";
  for (const Field& field : kFields) {
    if ((field.endpoints & endpoint) == 0) continue;
    const std::size_t before = out.size();
    out.append(",\"").append(json_name(field.name, endpoint, dialect)).append("\":");
    if (!form(field, dialect)(request, out))
      out.resize(before);
    else if (!knows(field.dialects, dialect))
      return not_known(field.name, dialect);
  }
  for (const inference::Extension& extension : request.extensions) {
    if (!knows(extension_dialects(extension.name), dialect)) return not_known(extension.name, dialect);
    out.append(",\"").append(json_name(extension.name, endpoint, dialect)).append("\":").append(extension.value);
  }
  out += '}';
  return out;
}

Result<std::string> tokenize_body(const inference::TokenizeRequest& request, std::string_view model, Dialect dialect) {
  const auto* messages = std::get_if<std::vector<Message>>(&request.prompt);
  if (!knows(kVllm | kSglang | kXgen, dialect)) return not_known("/tokenize", dialect);
  if (messages != nullptr && !knows(kVllm | kXgen, dialect)) return not_known("messages", dialect);
  std::string out = begin_body(model);
  if (messages != nullptr) {
    out += ",\"messages\":";
    append_messages(out, *messages, dialect);
    out.append(",\"add_generation_prompt\":").append(request.add_generation_prompt ? "true" : "false");
  } else if (const auto* text = std::get_if<std::string>(&request.prompt)) {
    append_member(out, "prompt", *text);
    out.append(",\"add_special_tokens\":").append(request.add_special_tokens ? "true" : "false");
  } else {
    return make_error(ErrorCode::unsupported, "a remote engine cannot tokenize token ids", "prompt");
  }
  if (knows(kVllm | kXgen, dialect)) out += ",\"return_token_strs\":true";
  out += '}';
  return out;
}

Result<std::string> detokenize_body(const std::vector<inference::TokenId>& ids, std::string_view model,
                                    Dialect dialect) {
  if (!knows(kVllm | kSglang | kXgen, dialect)) return not_known("/detokenize", dialect);
  std::string out = begin_body(model);
  out += ",\"tokens\":";
  append_ids(out, ids);
  out += '}';
  return out;
}

std::string fields_markdown() {
  constexpr Dialect kColumns[] = {Dialect::openai,   Dialect::vllm, Dialect::sglang, Dialect::trtllm,
                                  Dialect::llamacpp, Dialect::xgen, Dialect::tgi};
  std::string out = "| field |";
  std::string rule = "| --- |";
  const auto column = [&](std::string_view title) {
    out.append(" ").append(title).append(" |");
    rule += " --- |";
  };
  for (const Dialect dialect : kColumns) column(dialect == Dialect::tgi ? "tgi (chat)" : dialect_name(dialect));
  column("tgi (completions)");
  out += "\n" + rule + "\n";
  const auto cell = [&](std::string_view name, std::string_view other) {
    if (other.empty())
      out += " refused |";
    else if (other != name)
      out.append(" `").append(other).append("` |");
    else
      out += " yes |";
  };
  const auto row = [&](std::string_view name, unsigned endpoints, unsigned dialects) {
    out.append("| `").append(name).append("`");
    if (endpoints != kBoth) out += endpoints == kChat ? " (chat)" : " (completions)";
    out += " |";
    for (const Dialect dialect : kColumns) {
      if (dialect == Dialect::tgi && endpoints == kCompletions)
        out += " |";
      else
        cell(name, knows(dialects, dialect) ? json_name(name, endpoints, dialect) : std::string_view());
    }
    if (endpoints == kChat)
      out += " |";
    else
      cell(name, tgi_name(name));
    out += "\n";
  };
  for (const Field& field : kFields) row(field.name, field.endpoints, field.dialects);
  for (const ExtensionRow& extension : kExtensions) row(extension.name, kBoth, extension.dialects);
  row("every other parameter that is passed on", kBoth, kOtherExtensions);
  return out;
}

}  // namespace xgen::remote
