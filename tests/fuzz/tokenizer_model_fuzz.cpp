// Any bytes as a tokenizer.model (SentencePiece or tiktoken ranks): refused with a message, or a tokenizer that encodes
// and decodes.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/file_set.h"
#include "tokenizer_check.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = xgen::text::Tokenizer::load(*xgen::embedded_files("fuzz", {{"tokenizer.model", bytes}}));
  if (tokenizer.ok()) xgen::fuzz::check_tokenizer(*tokenizer);
  if (!tokenizer.ok() && tokenizer.error().message.empty()) std::abort();
  return 0;
}
