#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "weights/metadata_builder.h"
#include "weights/tensor_store_builder.h"

namespace xgen::weights {

namespace {

constexpr std::uint64_t kMaxHeader = 100'000'000;  // the reference implementation's limit, in bytes

std::optional<DType> dtype_of(std::string_view name) {
  constexpr std::array<std::pair<std::string_view, DType>, 10> kNames{{{"F32", DType::f32},
                                                                       {"F16", DType::f16},
                                                                       {"BF16", DType::bf16},
                                                                       {"F64", DType::f64},
                                                                       {"I8", DType::i8},
                                                                       {"I16", DType::i16},
                                                                       {"I32", DType::i32},
                                                                       {"I64", DType::i64},
                                                                       {"U8", DType::u8},
                                                                       {"BOOL", DType::boolean}}};
  for (const auto& [text, type] : kNames) {
    if (text == name) return type;
  }
  return std::nullopt;
}

std::string tensor_text(std::string_view source, std::string_view name) {
  return std::string(source) + ": tensor \"" + std::string(name) + "\"";
}

// The shape of one header entry, or an error.
Result<Shape> read_shape(const Metadata& entry, const std::string& tensor) {
  const Metadata dims = entry.get("shape");
  if (dims.numbers() == nullptr) return make_error(ErrorCode::invalid_argument, tensor + " has no valid \"shape\"");
  const NumberArray& numbers = *dims.numbers();
  Shape shape;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const std::int64_t dim = numbers.integer(i);
    if (dim < 0 || numbers.type != DType::i64) {
      return make_error(ErrorCode::invalid_argument, tensor + " has a dimension that is no size");
    }
    if (shape.rank < 4) {
      shape.dims[static_cast<std::size_t>(shape.rank++)] = dim;
      continue;
    }
    // A fifth dimension: the two outermost become one.
    if (__builtin_mul_overflow(shape.dims[0], shape.dims[1], &shape.dims[0])) {
      return make_error(ErrorCode::invalid_argument, tensor + " is too large");
    }
    std::rotate(shape.dims.begin() + 1, shape.dims.begin() + 2, shape.dims.end());
    shape.dims[3] = dim;
  }
  return shape;
}

// Adds the tensors of one file to the builder.
Status read_file(Bytes file, const std::string& source, bool set_metadata, TensorStoreBuilder& builder) {
  const auto invalid = [&](const std::string& why) {
    return make_error(ErrorCode::invalid_argument, source + ": not a valid safetensors file: " + why);
  };
  if (file.size() < 8) return invalid("shorter than its 8-byte length");
  std::uint64_t header_size = 0;
  std::memcpy(&header_size, file.data(), 8);
  if (header_size > file.size() - 8) return invalid("the header does not fit in the file (truncated?)");
  if (header_size > kMaxHeader) return invalid("a header of " + std::to_string(header_size) + " bytes");
  const std::uint64_t data_size = file.size() - 8 - header_size;
  const std::byte* data = file.data() + 8 + header_size;

  Result<Metadata> parsed = parse_json_metadata(file.text().substr(8, header_size), source);
  if (!parsed) return std::move(parsed).error();
  const Metadata header = *parsed;
  if (!header.is_object()) return invalid("the header is no JSON object");

  std::vector<Extent> extents;
  for (std::size_t i = 0; i < header.size(); ++i) {
    const std::string_view name = header.key(i);
    const Metadata entry = header.at(i);
    if (name == "__metadata__") {
      if (set_metadata) builder.set_metadata(entry);
      continue;
    }
    const std::string tensor = tensor_text(source, name);
    if (!entry.is_object()) return make_error(ErrorCode::invalid_argument, tensor + " has no JSON object");
    const Result<std::string_view> type_name = entry.get_string("dtype");
    if (!type_name) return type_name.error();
    const std::optional<DType> type = dtype_of(*type_name);
    if (!type) {
      return make_error(ErrorCode::unsupported, tensor + " has the unsupported type " + std::string(*type_name));
    }
    const Result<Shape> shape = read_shape(entry, tensor);
    if (!shape) return shape.error();
    const Metadata offsets = entry.get("data_offsets");
    if (offsets.numbers() == nullptr || offsets.size() != 2 || offsets.numbers()->type != DType::i64 ||
        offsets.numbers()->integer(0) < 0 || offsets.numbers()->integer(1) < offsets.numbers()->integer(0)) {
      return make_error(ErrorCode::invalid_argument, tensor + " has no valid \"data_offsets\"");
    }
    const auto begin = static_cast<std::uint64_t>(offsets.numbers()->integer(0));
    const auto end = static_cast<std::uint64_t>(offsets.numbers()->integer(1));
    if (end > data_size) return make_error(ErrorCode::invalid_argument, tensor + " ends beyond the file (truncated?)");
    const std::optional<std::uint64_t> bytes = checked_bytes(*type, *shape);
    if (!bytes || *bytes != end - begin) {
      return make_error(ErrorCode::invalid_argument, tensor + " of type " + std::string(*type_name) + " and shape " +
                                                         to_string(*shape) + " does not take " +
                                                         std::to_string(end - begin) + " bytes");
    }
    if (begin != end) extents.push_back({begin, end, name});
    builder.add(name, {*type, *shape, data + begin});
  }
  if (Status status = check_disjoint(std::move(extents), source); !status) return status;
  builder.keep(header);
  builder.keep(std::move(file));
  return {};
}

constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";

// The files that hold the model's tensors, sorted.
Result<std::vector<std::string>> tensor_files(const FileSet& files) {
  if (files.has(kSingle)) return std::vector<std::string>{std::string(kSingle)};
  if (files.has(kIndex)) {
    const Result<Bytes> text = files.open(kIndex);
    if (!text) return text.error();
    const Result<Metadata> index = parse_json_metadata(text->text(), files.describe(kIndex));
    if (!index) return index.error();
    const Metadata map = index->get("weight_map");
    std::set<std::string, std::less<>> names;
    for (std::size_t i = 0; i < map.size() && map.is_object(); ++i) {
      const Result<std::string_view> name = map.at(i).as_string();
      if (!name) return name.error();
      if (names.find(*name) == names.end()) names.emplace(*name);
    }
    if (names.empty()) {
      return make_error(ErrorCode::invalid_argument, files.describe(kIndex) + ": \"weight_map\" names no files");
    }
    return std::vector<std::string>(names.begin(), names.end());
  }
  std::vector<std::string> names;
  for (std::string& name : files.list()) {
    if (name.ends_with(".safetensors")) names.push_back(std::move(name));
  }
  if (names.empty()) return make_error(ErrorCode::not_found, files.describe() + ": no .safetensors file");
  return names;
}

}  // namespace

Result<TensorStore> open_safetensors(const FileSet& files) {
  Result<std::vector<std::string>> names = tensor_files(files);
  if (!names) return std::move(names).error();
  TensorStoreBuilder builder(names->size() == 1 ? files.describe(names->front()) : files.describe());
  for (const std::string& name : *names) {
    Result<Bytes> file = files.open(name);
    if (!file) return std::move(file).error();
    Status status = read_file(std::move(*file), files.describe(name), &name == &names->front(), builder);
    if (!status) return std::move(status).error();
  }
  return builder.finish();
}

Result<TensorStore> parse_safetensors(Bytes file, const std::string& source) {
  TensorStoreBuilder builder(source);
  Status status = read_file(std::move(file), source, true, builder);
  if (!status) return std::move(status).error();
  return builder.finish();
}

}  // namespace xgen::weights
