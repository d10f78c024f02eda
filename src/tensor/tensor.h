// DType, Shape and TensorView: what a tensor is and where it lies. No arithmetic here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace xgen {

// Element formats. The Qx_y formats are GGUF block formats: a row is a sequence of blocks (ggml's published layouts).
enum class DType : std::uint8_t {
  f32,
  f16,
  bf16,
  f64,
  i8,
  i16,
  i32,
  i64,
  u8,
  boolean,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
};

struct DTypeInfo {
  std::string_view name;      // "F32", "Q8_0"
  std::uint32_t block;        // elements per block (1 for plain types)
  std::uint32_t block_bytes;  // bytes per block
};
const DTypeInfo& dtype_info(DType type);
std::optional<DType> dtype_from_name(std::string_view name);

inline bool is_quantised(DType type) { return dtype_info(type).block > 1; }

// Up to 4 dimensions, outermost first (row-major): a matrix of n rows of k elements is {n, k}.
struct Shape {
  std::array<std::int64_t, 4> dims{};
  int rank = 0;

  std::int64_t operator[](int i) const { return dims[static_cast<std::size_t>(i)]; }
  std::int64_t elements() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dims[static_cast<std::size_t>(i)];
    return n;
  }
  bool operator==(const Shape&) const = default;
};
Shape make_shape(std::initializer_list<std::int64_t> dims);
std::string to_string(const Shape& shape);  // "[896, 4864]"

// A tensor somebody else owns: contiguous, row-major. The innermost dimension is a multiple of the block size.
struct TensorView {
  DType dtype = DType::f32;
  Shape shape;
  const std::byte* data = nullptr;

  std::int64_t rows() const {
    std::int64_t n = 1;
    for (int i = 0; i + 1 < shape.rank; ++i) n *= shape[i];
    return n;
  }
  std::int64_t cols() const { return shape.rank == 0 ? 1 : shape[shape.rank - 1]; }
  std::size_t row_bytes() const {
    const DTypeInfo& info = dtype_info(dtype);
    return static_cast<std::size_t>(cols()) / info.block * info.block_bytes;
  }
  std::size_t bytes() const { return row_bytes() * static_cast<std::size_t>(rows()); }
};

// IEEE half and bfloat16 conversions (round to nearest even; NaN stays NaN).
float f16_to_f32(std::uint16_t bits);
std::uint16_t f32_to_f16(float value);
inline float bf16_to_f32(std::uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
}
std::uint16_t f32_to_bf16(float value);

}  // namespace xgen
