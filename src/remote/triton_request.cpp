#include "remote/triton_request.h"

#include "base/json.h"
#include "base/json_text.h"
#include "remote/event_json.h"
#include "remote/openai_request.h"

namespace xgen::remote {
namespace {

using inference::GenerateRequest;
using inference::ResponseFormat;

// Lowered to the context's rest by the engine, which cannot do without a number.
constexpr int kMostTokens = 1 << 20;

// The values go as OpenAI writes them, but where the body's writer below says otherwise.
struct Row {
  std::string_view name;
  std::string_view json;
  std::string_view older;  // what deployments of earlier versions call it
};
constexpr Row kRows[] = {
    {"max_tokens", "max_tokens", ""},
    {"temperature", "temperature", ""},
    {"top_p", "top_p", ""},
    {"top_k", "top_k", ""},
    {"repetition_penalty", "repetition_penalty", ""},
    {"presence_penalty", "presence_penalty", ""},
    {"frequency_penalty", "frequency_penalty", ""},
    {"seed", "seed", "random_seed"},
    {"stop", "stop_words", ""},
    {"bad_words", "bad_words", ""},
    {"min_tokens", "min_tokens", "min_length"},
    {"ignore_eos", "end_id", ""},
    {"response_format", "guided_decoding_guide_type", ""},
};

const Row* row_of(std::string_view name) {
  for (const Row& row : kRows)
    if (row.name == name) return &row;
  return nullptr;
}

// Empty: the model has no such input, and Triton would pass over it in silence.
std::string_view name_there(const Row& row, const TritonModel& model) {
  if (model.may_have(row.json)) return row.json;
  return !row.older.empty() && model.may_have(row.older) ? row.older : std::string_view();
}

// How tokens are drawn is always said, as the engine's own defaults are greedy.
void append_drawing(std::string& out, const GenerateRequest& request) {
  const inference::Sampling& sampling = request.sampling;
  if (sampling.temperature == 0.0F) {
    out += ",\"top_k\":1";
    return;
  }
  if (sampling.temperature) {
    out += ",\"temperature\":";
    append_json_float(out, *sampling.temperature);
  }
  out += ",\"top_k\":";
  append_json_int(out, std::max(0, sampling.top_k.value_or(0)));
  out += ",\"top_p\":";
  append_json_float(out, sampling.top_p.value_or(1));
}

void append_guide(std::string& out, const ResponseFormat& format) {
  const bool schema = format.kind == ResponseFormat::Kind::json_schema && !format.schema.empty();
  out += schema ? "\"json_schema\",\"guided_decoding_guide\":" : "\"json\"";
  if (schema) append_json_string(out, format.schema);
}

bool says_yes(std::string_view text) {
  for (const std::string_view yes : {"true", "True", "TRUE", "1", "t", "y", "yes"})
    if (text == yes) return true;
  return false;
}

}  // namespace

TritonModel read_triton_config(std::string_view config) {
  TritonModel model;
  const auto parsed = parse_json(config);
  const boost::json::object* object = parsed ? parsed->if_object() : nullptr;
  if (object == nullptr) return model;
  if (const boost::json::array* inputs = array_at(*object, "input"))
    for (const boost::json::value& each : *inputs)
      if (const boost::json::object* input = each.if_object())
        if (const std::string_view name = text_at(*input, "name"); !name.empty()) model.inputs.emplace_back(name);
  const boost::json::object* parameters = object_at(*object, "parameters");
  const boost::json::object* accumulate = parameters == nullptr ? nullptr : object_at(*parameters, "accumulate_tokens");
  model.accumulates = accumulate != nullptr && says_yes(text_at(*accumulate, "string_value"));
  return model;
}

Result<std::string> triton_generate_body(const GenerateRequest& request, const TritonPrompt& prompt,
                                         const TritonModel& model) {
  if (request.stop.max_tokens == 0)
    return make_error(ErrorCode::unsupported, "'max_tokens' must be at least 1 with the engine of this model (triton)",
                      "max_tokens");
  std::string out = "{\"text_input\":";
  append_json_string(out, prompt.text);
  out += ",\"id\":";
  append_json_string(out, prompt.id);
  out += ",\"stream\":true";
  for (const std::string_view flag : {"exclude_input_in_output", "return_num_input_tokens", "return_num_output_tokens"})
    if (model.may_have(flag)) out.append(",\"").append(flag).append("\":true");
  if (!request.stop.max_tokens) {
    out += ",\"max_tokens\":";
    append_json_int(out, kMostTokens);
  }
  append_drawing(out, request);
  if (!request.sampling.seed)
    if (const std::string_view name = name_there(*row_of("seed"), model); !name.empty())
      out.append(",\"").append(name).append("\":").append(std::to_string(prompt.seed));
  for (const SetField& field : set_fields(request)) {
    if (field.name == "echo") continue;  // answered on this side
    const Row* row = row_of(field.name);
    const std::string_view name = row == nullptr ? std::string_view() : name_there(*row, model);
    if (name.empty()) return not_supported(field.name, "triton");
    if (field.name == "temperature" || field.name == "top_p" || field.name == "top_k") continue;  // above
    out.append(",\"").append(name).append("\":");
    if (field.name == "ignore_eos")
      out += "-1";
    else if (field.name == "response_format")
      append_guide(out, request.response_format);
    else
      out += field.value;
  }
  return out += '}';
}

std::string triton_stop_body(std::string_view id) {
  std::string out = "{\"id\":";
  append_json_string(out, id);
  return out += R"(,"stop":true,"input_ids":[0],"input_lengths":[0],"request_output_len":[0]})";
}

std::string triton_fields_markdown() {
  std::string out = "| field | Triton's input | in earlier versions |\n| --- | --- | --- |\n";
  for (const Row& row : kRows) {
    out.append("| `").append(row.name).append("` | `").append(row.json).append("` |");
    out += row.older.empty() ? std::string(" |\n") : " `" + std::string(row.older) + "` |\n";
  }
  return out;
}

}  // namespace xgen::remote
