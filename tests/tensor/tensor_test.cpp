#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace xgen {
namespace {

TEST(DTypes, NamesRoundTrip) {
  for (int i = 0; i <= static_cast<int>(DType::q6_k); ++i) {
    const auto type = static_cast<DType>(i);
    EXPECT_EQ(dtype_from_name(dtype_info(type).name), type);
  }
  EXPECT_EQ(dtype_from_name("bf16"), DType::bf16);
  EXPECT_EQ(dtype_from_name("IQ1_S"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
}

TEST(Views, Sizes) {
  const TensorView q{DType::q4_k, make_shape({3, 5, 512}), nullptr};
  EXPECT_EQ(q.rows(), 15);
  EXPECT_EQ(q.cols(), 512);
  EXPECT_EQ(q.row_bytes(), 288u);
  EXPECT_EQ(q.bytes(), 15u * 288u);
  EXPECT_EQ(to_string(q.shape), "[3, 5, 512]");
  const TensorView scalar{DType::f32, make_shape({}), nullptr};
  EXPECT_EQ(scalar.bytes(), 4u);
  const TensorView empty{DType::f32, make_shape({4, 0}), nullptr};
  EXPECT_EQ(empty.bytes(), 0u);
}

TEST(Halves, EveryValueRoundTrips) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float wide = f16_to_f32(half);
    const int exponent = bits >> 10 & 31;
    const int mantissa = bits & 1023;
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(wide), mantissa != 0);
      EXPECT_EQ(std::isnan(f16_to_f32(f32_to_f16(wide))), mantissa != 0);
      continue;
    }
    const double expected = (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25)) *
                            ((bits & 0x8000) != 0 ? -1 : 1);
    ASSERT_EQ(static_cast<double>(wide), expected);
    ASSERT_EQ(f32_to_f16(wide), half);
    // The middle to the next value rounds to even, just above it rounds up.
    const float next = f16_to_f32(static_cast<std::uint16_t>(bits + 1));
    if (std::isfinite(next) && (bits & 0x7fff) != 0x7fff) {
      const float middle = static_cast<float>((static_cast<double>(wide) + static_cast<double>(next)) / 2);
      ASSERT_EQ(f32_to_f16(middle), static_cast<std::uint16_t>((bits & 1) == 0 ? bits : bits + 1));
      ASSERT_EQ(f32_to_f16(std::nextafter(middle, next)), static_cast<std::uint16_t>(bits + 1));
    }
  }
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(-1e30f), 0xfc00);
}

TEST(Brain, RoundsToEven) {
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0xffffffffu)))));
}

}  // namespace
}  // namespace xgen
