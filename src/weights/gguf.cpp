#include <algorithm>
#include <cstring>

#include "base/split_name.h"
#include "weights/metadata_builder.h"
#include "weights/tensor_store_builder.h"

namespace xgen::weights {

namespace {

// GGUF's value types.
enum class ValueType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

constexpr std::size_t kMaxName = 65535;  // bytes of a key or tensor name
constexpr int kMaxArrayDepth = 4;

// ggml's tensor types by number; the ones that are not offered keep their names for messages.
struct GgmlType {
  std::string_view name;
  std::optional<DType> type;
};
GgmlType ggml_type(std::uint32_t number) {
  static constexpr std::array<std::string_view, 40> kNames{
      "F32",      "F16",      "Q4_0",    "Q4_1",  "Q4_2",       "Q4_3",       "Q5_0",       "Q5_1",
      "Q8_0",     "Q8_1",     "Q2_K",    "Q3_K",  "Q4_K",       "Q5_K",       "Q6_K",       "Q8_K",
      "IQ2_XXS",  "IQ2_XS",   "IQ3_XXS", "IQ1_S", "IQ4_NL",     "IQ3_S",      "IQ2_S",      "IQ4_XS",
      "I8",       "I16",      "I32",     "I64",   "F64",        "IQ1_M",      "BF16",       "Q4_0_4_4",
      "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",   "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4"};
  if (number >= kNames.size()) return {"unknown", std::nullopt};
  return {kNames[number], dtype_from_name(kNames[number])};
}

// Reads little-endian values; after the first read beyond the end, ok() is false and every read gives zero.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> data) : data_(data) {}

  bool ok() const { return ok_; }
  std::size_t position() const { return position_; }
  std::size_t remaining() const { return data_.size() - position_; }

  template <class T>
  T read() {
    T value{};
    if (const std::byte* p = take(sizeof(T))) std::memcpy(&value, p, sizeof(T));
    return value;
  }
  const std::byte* take(std::size_t size) {
    if (!ok_ || size > remaining()) {
      ok_ = false;
      return nullptr;
    }
    const std::byte* p = data_.data() + position_;
    position_ += size;
    return p;
  }
  std::string_view string(std::size_t limit = std::numeric_limits<std::size_t>::max()) {
    const auto size = read<std::uint64_t>();
    if (size > limit) ok_ = false;
    const std::byte* p = take(static_cast<std::size_t>(std::min<std::uint64_t>(size, data_.size() + 1)));
    return p == nullptr ? std::string_view{} : std::string_view(reinterpret_cast<const char*>(p), size);
  }

 private:
  std::span<const std::byte> data_;
  std::size_t position_ = 0;
  bool ok_ = true;
};

class GgufParser {
 public:
  GgufParser(Bytes file, std::string source) : file_(std::move(file)), source_(std::move(source)), in_(file_.span()) {}

  // Adds the file's tensors to the builder and returns its key/values.
  Result<Metadata> parse(TensorStoreBuilder& builder) {
    if (file_.size() < 24 || std::memcmp(file_.data(), "GGUF", 4) != 0)
      return invalid("it does not begin with \"GGUF\"");
    in_.take(4);
    const auto version = in_.read<std::uint32_t>();
    if ((version & 0xffffu) == 0 && version != 0) {
      return make_error(ErrorCode::unsupported, source_ + ": big-endian GGUF files are not supported");
    }
    if (version != 2 && version != 3) {
      return make_error(ErrorCode::unsupported,
                        source_ + ": GGUF version " + std::to_string(version) + " is not supported");
    }
    const auto tensor_count = in_.read<std::uint64_t>();
    const auto value_count = in_.read<std::uint64_t>();
    Result<Metadata> metadata = read_values(value_count);
    if (!metadata) return metadata;
    if (Status status = read_tensors(tensor_count, *metadata, builder); !status) return std::move(status).error();
    builder.keep(file_);
    return metadata;
  }

 private:
  Error invalid(const std::string& why) const {
    return make_error(ErrorCode::invalid_argument, source_ + ": not a valid GGUF file: " + why);
  }
  Error truncated() const { return invalid("it ends inside its header (truncated?)"); }

  Result<Metadata> read_values(std::uint64_t count) {
    // Every pair takes at least a length, a type and one byte: a count that cannot be true must not allocate.
    if (count > in_.remaining() / 13) return invalid(std::to_string(count) + " key/values do not fit");
    auto tree = std::make_shared<MetadataTree>();
    tree->source = source_;
    tree->file = file_.owner();
    MetadataNode::Object object;
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::string_view key = in_.string(kMaxName);
      const auto type = in_.read<std::uint32_t>();
      MetadataNode node;
      if (in_.ok()) {
        if (Status status = read_value(type, 0, node); !status) {
          Error error = std::move(status).error();
          error.message += " (key \"" + std::string(key) + "\")";
          return error;
        }
      }
      if (!in_.ok()) return truncated();
      object.keys.push_back(key);
      object.values.push_back(std::move(node));
    }
    std::vector<std::string_view> sorted = object.keys;
    std::sort(sorted.begin(), sorted.end());
    if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end()); twice != sorted.end()) {
      return invalid("key \"" + std::string(*twice) + "\" is there twice");
    }
    tree->root.value = std::move(object);
    return MetadataBuilder::finish(std::move(tree));
  }

  // Leaves !in_.ok() where the file ends early.
  Status read_value(std::uint32_t type, int depth, MetadataNode& node) {
    switch (static_cast<ValueType>(type)) {
      case ValueType::u8:
        node.value = std::int64_t{in_.read<std::uint8_t>()};
        return {};
      case ValueType::i8:
        node.value = std::int64_t{in_.read<std::int8_t>()};
        return {};
      case ValueType::u16:
        node.value = std::int64_t{in_.read<std::uint16_t>()};
        return {};
      case ValueType::i16:
        node.value = std::int64_t{in_.read<std::int16_t>()};
        return {};
      case ValueType::u32:
        node.value = std::int64_t{in_.read<std::uint32_t>()};
        return {};
      case ValueType::i32:
        node.value = std::int64_t{in_.read<std::int32_t>()};
        return {};
      case ValueType::f32:
        node.value = static_cast<double>(in_.read<float>());
        return {};
      case ValueType::boolean:
        node.value = in_.read<std::uint8_t>() != 0;
        return {};
      case ValueType::string:
        node.value = in_.string();
        return {};
      case ValueType::array:
        return read_array(depth, node);
      case ValueType::u64:
        node.value = in_.read<std::uint64_t>();
        return {};
      case ValueType::i64:
        node.value = in_.read<std::int64_t>();
        return {};
      case ValueType::f64:
        node.value = in_.read<double>();
        return {};
    }
    return invalid("unknown value type " + std::to_string(type));
  }

  Status read_array(int depth, MetadataNode& node) {
    const auto type = in_.read<std::uint32_t>();
    const auto count = in_.read<std::uint64_t>();
    if (!in_.ok()) return {};
    switch (static_cast<ValueType>(type)) {
      case ValueType::u8:
      case ValueType::boolean:
        return read_numbers(DType::u8, true, count, node);
      case ValueType::i8:
        return read_numbers(DType::i8, false, count, node);
      case ValueType::u16:
        return read_numbers(DType::i16, true, count, node);
      case ValueType::i16:
        return read_numbers(DType::i16, false, count, node);
      case ValueType::u32:
        return read_numbers(DType::i32, true, count, node);
      case ValueType::i32:
        return read_numbers(DType::i32, false, count, node);
      case ValueType::f32:
        return read_numbers(DType::f32, false, count, node);
      case ValueType::u64:
        return read_numbers(DType::i64, true, count, node);
      case ValueType::i64:
        return read_numbers(DType::i64, false, count, node);
      case ValueType::f64:
        return read_numbers(DType::f64, false, count, node);
      case ValueType::string: {
        if (count > in_.remaining() / 8)
          return invalid("an array of " + std::to_string(count) + " strings does not fit");
        MetadataNode::Strings strings;
        strings.reserve(count);
        for (std::uint64_t i = 0; i < count && in_.ok(); ++i) strings.push_back(in_.string());
        node.value = std::move(strings);
        return {};
      }
      case ValueType::array: {
        if (depth >= kMaxArrayDepth) return invalid("arrays are nested too deep");
        if (count > in_.remaining() / 12)
          return invalid("an array of " + std::to_string(count) + " arrays does not fit");
        MetadataNode::Array array;
        for (std::uint64_t i = 0; i < count && in_.ok(); ++i) {
          MetadataNode child;
          if (Status status = read_array(depth + 1, child); !status) return status;
          array.push_back(std::move(child));
        }
        node.value = std::move(array);
        return {};
      }
    }
    return invalid("unknown array type " + std::to_string(type));
  }

  Status read_numbers(DType type, bool is_unsigned, std::uint64_t count, MetadataNode& node) {
    const std::size_t size = dtype_info(type).block_bytes;
    if (count > in_.remaining() / size)
      return invalid("an array of " + std::to_string(count) + " numbers does not fit");
    node.value = NumberArray{type, is_unsigned, in_.take(count * size), count};
    return {};
  }

  Status read_tensors(std::uint64_t count, const Metadata& metadata, TensorStoreBuilder& builder) {
    if (count > in_.remaining() / 32) return invalid(std::to_string(count) + " tensors do not fit");
    const Result<std::int64_t> alignment = metadata.get_int("general.alignment", 32);
    if (!alignment) return alignment.error();
    if (*alignment < 1 || *alignment > (1 << 20) || (*alignment & (*alignment - 1)) != 0) {
      return invalid("general.alignment " + std::to_string(*alignment) + " is no power of two");
    }
    const auto align = static_cast<std::uint64_t>(*alignment);

    struct Info {
      std::string_view name;
      DType type;
      Shape shape;
      std::uint64_t offset;
    };
    std::vector<Info> infos;
    infos.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      Info info;
      info.name = in_.string(kMaxName);
      const auto rank = in_.read<std::uint32_t>();
      if (!in_.ok()) return truncated();
      const std::string tensor = "tensor \"" + std::string(info.name) + "\"";
      if (rank < 1 || rank > 4) return invalid(tensor + " has " + std::to_string(rank) + " dimensions");
      info.shape.rank = static_cast<int>(rank);
      for (std::uint32_t d = 0; d < rank; ++d) {
        const auto dim = in_.read<std::uint64_t>();
        if (dim > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
          return invalid(tensor + " has a dimension that is no size");
        }
        info.shape.dims[rank - 1 - d] = static_cast<std::int64_t>(dim);
      }
      const auto number = in_.read<std::uint32_t>();
      info.offset = in_.read<std::uint64_t>();
      if (!in_.ok()) return truncated();
      const GgmlType type = ggml_type(number);
      if (!type.type) {
        return make_error(ErrorCode::unsupported, source_ + ": " + tensor + " has the unsupported type " +
                                                      std::string(type.name) + " (" + std::to_string(number) + ")");
      }
      info.type = *type.type;
      infos.push_back(info);
    }

    const std::uint64_t data_begin = (in_.position() + align - 1) / align * align;
    std::vector<Extent> extents;
    for (const Info& info : infos) {
      const std::string tensor = "tensor \"" + std::string(info.name) + "\"";
      const std::optional<std::uint64_t> bytes = checked_bytes(info.type, info.shape);
      if (!bytes) {
        return invalid(tensor + " has the impossible shape " + to_string(info.shape) + " for type " +
                       std::string(dtype_info(info.type).name));
      }
      if (info.offset % align != 0) return invalid(tensor + " is not aligned to " + std::to_string(align) + " bytes");
      if (data_begin > file_.size() || info.offset > file_.size() - data_begin ||
          *bytes > file_.size() - data_begin - info.offset) {
        return invalid(tensor + " ends beyond the file (truncated?)");
      }
      if (*bytes > 0) extents.push_back({info.offset, info.offset + *bytes, info.name});
      builder.add(info.name, {info.type, info.shape, file_.data() + data_begin + info.offset});
    }
    return check_disjoint(std::move(extents), source_);
  }

  Bytes file_;
  std::string source_;
  Reader in_;
};

// The files of the only GGUF model of the set, in order.
Result<std::vector<std::string>> gguf_files(const FileSet& files) {
  std::vector<std::string> names;
  for (std::string& name : files.list()) {
    if (name.ends_with(".gguf")) names.push_back(std::move(name));
  }
  if (names.empty()) return make_error(ErrorCode::not_found, files.describe() + ": no .gguf file");
  const std::optional<SplitName> first = split_name(names.front());
  if (names.size() == 1 && (!first || first->count == 1)) return names;
  for (const std::string& name : names) {
    const std::optional<SplitName> part = split_name(name);
    if (!first || !part || part->stem != first->stem || part->count != first->count) {
      return make_error(ErrorCode::invalid_argument, files.describe() + ": several GGUF models (" + names.front() +
                                                         ", " + names.back() + "…): name the file of one");
    }
  }
  // Sorted names of one model with distinct numbers 1..count: all are there if there are as many.
  if (names.size() != static_cast<std::size_t>(first->count)) {
    return make_error(ErrorCode::not_found, files.describe() + ": only " + std::to_string(names.size()) + " of " +
                                                std::to_string(first->count) + " parts of " + first->stem +
                                                " are there");
  }
  return names;
}

}  // namespace

Result<TensorStore> open_gguf(const FileSet& files) {
  Result<std::vector<std::string>> names = gguf_files(files);
  if (!names) return std::move(names).error();
  TensorStoreBuilder builder(files.describe(names->front()));
  for (std::size_t i = 0; i < names->size(); ++i) {
    const std::string source = files.describe((*names)[i]);
    Result<Bytes> file = files.open((*names)[i]);
    if (!file) return std::move(file).error();
    Result<Metadata> metadata = GgufParser(std::move(*file), source).parse(builder);
    if (!metadata) return std::move(metadata).error();
    // Parts say what they are, so that files of two models under similar names are not mixed.
    const Result<std::int64_t> count = metadata->get_int("split.count", static_cast<std::int64_t>(names->size()));
    const Result<std::int64_t> number = metadata->get_int("split.no", static_cast<std::int64_t>(i));
    if (!count || !number) return (count ? number : count).error();
    if (names->size() > 1 &&
        (*count != static_cast<std::int64_t>(names->size()) || *number != static_cast<std::int64_t>(i))) {
      return make_error(ErrorCode::invalid_argument, source + ": says it is part " + std::to_string(*number + 1) +
                                                         " of " + std::to_string(*count) + ", unlike its name");
    }
    if (i == 0) builder.set_metadata(*metadata);
    builder.keep(std::move(*metadata));
  }
  return builder.finish();
}

Result<TensorStore> parse_gguf(Bytes file, std::string source) {
  TensorStoreBuilder builder(source);
  Result<Metadata> metadata = GgufParser(std::move(file), std::move(source)).parse(builder);
  if (!metadata) return std::move(metadata).error();
  builder.set_metadata(*metadata);
  return builder.finish();
}

}  // namespace xgen::weights
