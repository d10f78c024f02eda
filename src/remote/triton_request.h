// The bodies that are sent to Triton's generate extension, in the names of TensorRT-LLM's ensemble and
// tensorrt_llm_bls models.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "inference/types.h"

namespace xgen::remote {

// What a model's /v2/models/NAME/config says of it.
struct TritonModel {
  std::vector<std::string> inputs;  // by name; empty: not known
  bool accumulates = false;         // text_output is the whole answer so far, not what is new

  bool may_have(std::string_view input) const {
    return inputs.empty() || std::find(inputs.begin(), inputs.end(), input) != inputs.end();
  }
};
// What is absent stays unknown.
TritonModel read_triton_config(std::string_view config);

struct TritonPrompt {
  std::string_view text;
  std::string_view id;     // of the request there, to stop it by
  std::uint64_t seed = 0;  // where the request has none: TensorRT-LLM would take the same each time
};
// Of generate_stream. Errors: unsupported, naming the parameter that the engine, or this deployment of it, does not
// have.
Result<std::string> triton_generate_body(const inference::GenerateRequest& request, const TritonPrompt& prompt,
                                         const TritonModel& model);
// Of generate of the model that computes (tensorrt_llm): ends the request `id`.
std::string triton_stop_body(std::string_view id);

// What each parameter is called there, as Markdown, for docs/remote-engines.md; all others are refused.
std::string triton_fields_markdown();

}  // namespace xgen::remote
