// TensorStore: the named tensors of a model, as views over its mapped files. Nothing is copied or converted.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/file_set.h"
#include "base/result.h"
#include "tensor/tensor.h"
#include "weights/metadata.h"

namespace xgen::weights {

struct NamedTensor {
  std::string_view name;  // into the mapped file, or storage of the store
  TensorView view;
};

// Immutable; copies share the mappings, and views live as long as any copy.
class TensorStore {
 public:
  TensorStore() = default;

  // All tensors, by name (byte order).
  std::span<const NamedTensor> tensors() const;
  // Null where there is no such tensor.
  const TensorView* find(std::string_view name) const;
  // not_found names the tensor and the files.
  Result<TensorView> get(std::string_view name) const;
  // GGUF: the key/values of the (first) file. Safetensors: the "__metadata__" strings of the first file, or empty.
  const Metadata& metadata() const;
  // Bytes of all tensors.
  std::size_t bytes() const;
  std::string_view source() const;  // for messages

 private:
  friend class TensorStoreBuilder;
  struct State;
  std::shared_ptr<const State> state_;
};

// Opens "model.safetensors", or the shards named by "model.safetensors.index.json", or else all *.safetensors of the
// set. (https://github.com/huggingface/safetensors#format.) Dimensions are outermost first; more than
// four are folded into the outermost.
// Errors: not_found where there is no such file; invalid_argument naming file and reason where one is malformed
// (truncated, overlapping, sizes that do not match shapes, duplicate names, unknown dtype).
Result<TensorStore> open_safetensors(const FileSet& files);

// Opens the only .gguf file of the set, or all parts "NAME-00001-of-0000N.gguf" of a split one; versions 2 and 3,
// little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). ggml's innermost-first dimensions are
// reversed. A tensor of a type that is not offered is an `unsupported` error naming tensor and type.
Result<TensorStore> open_gguf(const FileSet& files);

// One GGUF file in memory, as open_gguf reads it.
Result<TensorStore> parse_gguf(Bytes file, std::string source);
// One safetensors file in memory.
Result<TensorStore> parse_safetensors(Bytes file, const std::string& source);

}  // namespace xgen::weights
