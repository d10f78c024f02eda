// The bodies that are sent to text-generation-inference for prompts that are text; its chats are OpenAI's
// (openai_request.h, Dialect::tgi).
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "inference/types.h"

namespace xgen::remote {

// Of /generate_stream. `adapter`: a LoRA adapter of the server; empty: none. Errors: unsupported, naming the parameter
// that TGI does not have.
Result<std::string> tgi_generate_body(const inference::GenerateRequest& request, std::string_view adapter);
// Of /tokenize.
std::string tgi_inputs_body(std::string_view text);
// What TGI calls a parameter of a text's request; empty if it has none.
std::string_view tgi_name(std::string_view parameter);

}  // namespace xgen::remote
