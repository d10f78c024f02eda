// Any bytes as a safetensors file: an error or tensors that lie inside the file.
#include <cstddef>
#include <cstdint>
#include <span>

#include "weights/tensor_store.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const xgen::Bytes file(std::as_bytes(std::span(data, size)), nullptr);
  const auto store = xgen::weights::parse_safetensors(file, "fuzz.safetensors");
  if (!store.ok()) {
    if (store.error().message.empty()) __builtin_trap();
    return 0;
  }
  for (const auto& tensor : store->tensors()) {
    const std::byte* begin = tensor.view.data;
    if (begin < file.data() || begin + tensor.view.bytes() > file.data() + file.size()) __builtin_trap();
    if (store->find(tensor.name) == nullptr) __builtin_trap();
  }
  return 0;
}
