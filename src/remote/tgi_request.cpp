#include "remote/tgi_request.h"

#include "base/json_text.h"
#include "remote/openai_request.h"

namespace xgen::remote {
namespace {

using inference::GenerateRequest;

bool greedy(const GenerateRequest& request) { return request.sampling.temperature == 0.0F; }

// The values go as OpenAI writes them, but where TGI takes what changes nothing for a fault: it refuses a temperature
// of 0 and a top_p of 1, and samples wherever one of the three is given.
struct Row {
  std::string_view name;
  std::string_view json;
  bool (*says_nothing)(const GenerateRequest& request) = nullptr;
};
constexpr Row kRows[] = {
    {"max_tokens", "max_new_tokens"},
    {"temperature", "temperature", greedy},
    {"top_p", "top_p", [](const GenerateRequest& r) { return greedy(r) || *r.sampling.top_p >= 1; }},
    {"top_k", "top_k", [](const GenerateRequest& r) { return greedy(r) || *r.sampling.top_k <= 0; }},
    {"repetition_penalty", "repetition_penalty"},
    {"frequency_penalty", "frequency_penalty"},
    {"seed", "seed"},
    {"stop", "stop"},
    {"logprobs", "top_n_tokens", [](const GenerateRequest& r) { return *r.logprobs == 0; }},
    {"response_format", "grammar"},
    {"echo", "echo", [](const GenerateRequest&) { return true; }},  // answered on this side
    {"truncate_prompt_tokens", "truncate"},
};

const Row* row_of(std::string_view name) {
  for (const Row& row : kRows)
    if (row.name == name) return &row;
  return nullptr;
}

}  // namespace

std::string_view tgi_name(std::string_view parameter) {
  const Row* row = row_of(parameter);
  return row == nullptr ? std::string_view() : row->json;
}

std::string tgi_inputs_body(std::string_view text) {
  std::string out = "{\"inputs\":";
  append_json_string(out, text);
  return out += '}';
}

Result<std::string> tgi_generate_body(const GenerateRequest& request, std::string_view adapter) {
  const auto* text = std::get_if<std::string>(&request.prompt);
  if (text == nullptr)
    return make_error(ErrorCode::unsupported,
                      "'prompt' must be text: the engine of this model (tgi) takes no token ids", "prompt");
  if (request.prompt_logprobs)
    return make_error(ErrorCode::unsupported,
                      "'echo' with 'logprobs' is not supported by the engine of this model (tgi), which streams "
                      "nothing of the prompt",
                      "echo");
  std::string out = tgi_inputs_body(*text);
  out.back() = ',';
  out += R"("parameters":{"details":true,"do_sample":)";
  out += greedy(request) ? "false" : "true";  // TGI is greedy where nothing is said, but in its chats
  for (SetField& field : set_fields(request)) {
    const Row* row = row_of(field.name);
    if (row == nullptr) return not_supported(field.name, "tgi");
    if (row->says_nothing != nullptr && row->says_nothing(request)) continue;
    if (field.name == "response_format") {
      auto grammar = tgi_grammar(request.response_format);
      if (!grammar) return std::move(grammar).error();
      field.value = *std::move(grammar);
    }
    out.append(",\"").append(row->json).append("\":").append(field.value);
  }
  if (!adapter.empty()) {
    out += ",\"adapter_id\":";
    append_json_string(out, adapter);
  }
  return out += "}}";
}

}  // namespace xgen::remote
