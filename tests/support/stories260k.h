// The stories260K checkpoint (llama2.c's layout) as a Hugging Face model folder: config.json, model.safetensors,
// tokenizer.model, tokenizer_config.json.
#pragma once

#include <map>
#include <string>

#include "base/result.h"

namespace xgen::test {

// File name -> contents. `folder` holds stories260K.bin and tok512.bin. Errors name the file and what is wrong.
Result<std::map<std::string, std::string>> convert_stories260k(const std::string& folder);

}  // namespace xgen::test
