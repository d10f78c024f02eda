// Any bytes as a GGUF file: an error or tensors that lie inside the file, metadata that can be walked, and a vocabulary
// that is refused or that encodes and decodes.
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/load_tokenizer.h"
#include "tokenizer_check.h"
#include "weights/tensor_store.h"

namespace {

using xgen::weights::Metadata;

std::size_t walk(const Metadata& m, int depth) {
  std::size_t work = m.as_ints().ok() + m.as_doubles().ok() + m.as_strings().ok() + m.as_bool().ok() + m.as_int().ok();
  if (depth < 8 && (m.kind() == Metadata::Kind::object || m.kind() == Metadata::Kind::array)) {
    for (std::size_t i = 0; i < m.size() && i < 64; ++i) work += walk(m.at(i), depth + 1);
  }
  return work;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const xgen::Bytes file(std::as_bytes(std::span(data, size)), nullptr);
  const auto store = xgen::weights::parse_gguf(file, "fuzz.gguf");
  if (!store.ok()) {
    if (store.error().message.empty()) __builtin_trap();
    return 0;
  }
  walk(store->metadata(), 0);
  const auto tokenizer = xgen::engine::gguf_tokenizer(store->metadata());
  if (tokenizer.ok()) xgen::fuzz::check_tokenizer(*tokenizer);
  for (const auto& tensor : store->tensors()) {
    const std::byte* begin = tensor.view.data;
    if (begin < file.data() || begin + tensor.view.bytes() > file.data() + file.size()) __builtin_trap();
    if (store->find(tensor.name) == nullptr) __builtin_trap();
  }
  return 0;
}
