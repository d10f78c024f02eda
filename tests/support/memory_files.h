// Model files made in memory by tests: a FileSet that owns its contents, and writers of safetensors and GGUF.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/file_set.h"
#include "tensor/tensor.h"

namespace xgen::test {

std::shared_ptr<const FileSet> memory_files(std::string title, std::map<std::string, std::string> files);

struct Tensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::string data;  // row-major, little-endian
};
Tensor f32_tensor(std::string name, Shape shape, const std::vector<float>& values);

std::string write_safetensors(const std::vector<Tensor>& tensors);

// GGUF v3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
using GgufValue = std::variant<std::uint32_t, std::int32_t, float, bool, std::string, std::vector<bool>,
                               std::vector<std::string>, std::vector<float>, std::vector<std::int32_t>>;
std::string write_gguf(const std::vector<std::pair<std::string, GgufValue>>& metadata,
                       const std::vector<Tensor>& tensors);

}  // namespace xgen::test
