// The tokenizer of a model's files, whether it comes in files of its own or inside a GGUF.
#pragma once

#include <memory>

#include "base/file_set.h"
#include "base/result.h"
#include "text/tokenizer.h"
#include "weights/metadata.h"

namespace xgen::engine {

// Tokenizer files win over a GGUF's own vocabulary. Errors name the file and the place in it.
Result<std::shared_ptr<const text::Tokenizer>> load_tokenizer(const FileSet& files);

// From the tokenizer.* keys of a GGUF's metadata. Errors name the key.
Result<std::shared_ptr<const text::Tokenizer>> gguf_tokenizer(const weights::Metadata& metadata);

}  // namespace xgen::engine
