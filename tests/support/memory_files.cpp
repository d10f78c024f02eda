#include "support/memory_files.h"

#include <cstring>

namespace xgen::test {
namespace {

class MemoryFiles final : public FileSet {
 public:
  MemoryFiles(std::string title, std::map<std::string, std::string> files) : title_(std::move(title)) {
    for (auto& [name, text] : files) files_[name] = std::make_shared<const std::string>(std::move(text));
  }
  std::vector<std::string> list() const override {
    std::vector<std::string> names;
    for (const auto& entry : files_) names.push_back(entry.first);
    return names;
  }
  bool has(std::string_view name) const override { return files_.contains(std::string(name)); }
  Result<Bytes> open(std::string_view name) const override {
    const auto at = files_.find(std::string(name));
    if (at == files_.end()) return make_error(ErrorCode::not_found, describe(name) + ": no such file");
    return Bytes(std::as_bytes(std::span(*at->second)), at->second);
  }
  std::string describe(std::string_view name) const override {
    return name.empty() ? title_ : title_ + "/" + std::string(name);
  }

 private:
  std::string title_;
  std::map<std::string, std::shared_ptr<const std::string>> files_;
};

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void put_string(std::string& out, const std::string& text) {
  put(out, static_cast<std::uint64_t>(text.size()));
  out += text;
}

// GGUF value types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, gguf_metadata_value_type.
enum : std::uint32_t { kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kString = 8, kArray = 9 };

template <class T>
void put_array(std::string& out, std::uint32_t type, const std::vector<T>& values) {
  put(out, type);
  put(out, static_cast<std::uint64_t>(values.size()));
  for (const T& value : values) {
    if constexpr (std::is_same_v<T, std::string>) {
      put_string(out, value);
    } else {
      put(out, value);
    }
  }
}

void put_value(std::string& out, const GgufValue& value) {
  constexpr std::uint32_t kTypes[] = {kU32, kI32, kF32, kBool, kString, kArray, kArray, kArray, kArray};
  put(out, kTypes[value.index()]);
  if (const auto* u = std::get_if<std::uint32_t>(&value)) put(out, *u);
  if (const auto* i = std::get_if<std::int32_t>(&value)) put(out, *i);
  if (const auto* f = std::get_if<float>(&value)) put(out, *f);
  if (const auto* b = std::get_if<bool>(&value)) put(out, static_cast<std::uint8_t>(*b));
  if (const auto* s = std::get_if<std::string>(&value)) put_string(out, *s);
  if (const auto* flags = std::get_if<std::vector<bool>>(&value)) {
    put_array(out, kBool, std::vector<std::uint8_t>(flags->begin(), flags->end()));
  }
  if (const auto* strings = std::get_if<std::vector<std::string>>(&value)) put_array(out, kString, *strings);
  if (const auto* reals = std::get_if<std::vector<float>>(&value)) put_array(out, kF32, *reals);
  if (const auto* ints = std::get_if<std::vector<std::int32_t>>(&value)) put_array(out, kI32, *ints);
}

std::uint32_t ggml_type(DType type) {
  switch (type) {
    case DType::f32:
      return 0;
    case DType::f16:
      return 1;
    case DType::q4_0:
      return 2;
    case DType::q4_1:
      return 3;
    case DType::q5_0:
      return 6;
    case DType::q5_1:
      return 7;
    case DType::q8_0:
      return 8;
    case DType::q2_k:
      return 10;
    case DType::q3_k:
      return 11;
    case DType::q4_k:
      return 12;
    case DType::q5_k:
      return 13;
    case DType::q6_k:
      return 14;
    case DType::bf16:
      return 30;
    default:
      return 0xFFFF;
  }
}

}  // namespace

std::shared_ptr<const FileSet> memory_files(std::string title, std::map<std::string, std::string> files) {
  return std::make_shared<MemoryFiles>(std::move(title), std::move(files));
}

Tensor f32_tensor(std::string name, Shape shape, const std::vector<float>& values) {
  Tensor tensor{std::move(name), DType::f32, shape, std::string(values.size() * sizeof(float), '\0')};
  std::memcpy(tensor.data.data(), values.data(), tensor.data.size());
  return tensor;
}

std::string write_safetensors(const std::vector<Tensor>& tensors) {
  std::string header = "{\"__metadata__\":{\"format\":\"pt\"}";
  std::size_t offset = 0;
  for (const Tensor& t : tensors) {
    header += ",\"" + t.name + "\":{\"dtype\":\"" + std::string(dtype_info(t.dtype).name) +
              "\",\"shape\":" + to_string(t.shape) + ",\"data_offsets\":[" + std::to_string(offset) + "," +
              std::to_string(offset + t.data.size()) + "]}";
    offset += t.data.size();
  }
  header += "}";
  while (header.size() % 8 != 0) header += ' ';
  std::string out;
  put_string(out, header);
  for (const Tensor& t : tensors) out += t.data;
  return out;
}

std::string write_gguf(const std::vector<std::pair<std::string, GgufValue>>& metadata,
                       const std::vector<Tensor>& tensors) {
  constexpr std::size_t kAlignment = 32;
  const auto pad = [](std::string& out) {
    while (out.size() % kAlignment != 0) out += '\0';
  };
  std::string out = "GGUF";
  put(out, std::uint32_t{3});
  put(out, static_cast<std::uint64_t>(tensors.size()));
  put(out, static_cast<std::uint64_t>(metadata.size()));
  for (const auto& [key, value] : metadata) {
    put_string(out, key);
    put_value(out, value);
  }
  std::string data;
  for (const Tensor& t : tensors) {
    put_string(out, t.name);
    put(out, static_cast<std::uint32_t>(t.shape.rank));
    for (int d = t.shape.rank - 1; d >= 0; --d) put(out, static_cast<std::uint64_t>(t.shape[d]));
    put(out, ggml_type(t.dtype));
    pad(data);
    put(out, static_cast<std::uint64_t>(data.size()));
    data += t.data;
  }
  pad(out);
  return out + data;
}

}  // namespace xgen::test
