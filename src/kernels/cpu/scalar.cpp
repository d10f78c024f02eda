// The portable kernels: eight floats as a compiler vector, which becomes whatever the baseline instruction set has.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cpu/tables.h"

namespace xgen::kernels::cpu {
namespace {

using V = float __attribute__((vector_size(32)));
using Vi = std::int32_t __attribute__((vector_size(32)));
using B16 = std::int8_t __attribute__((vector_size(16)));
using U16 = std::uint8_t __attribute__((vector_size(16)));

template <class T>
inline T load_as(const void* p) {
  T v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline V zero() { return V{}; }
inline V set1(float x) { return V{x, x, x, x, x, x, x, x}; }
inline V load(const float* p) { return load_as<V>(p); }
inline void store(float* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
inline V add(V a, V b) { return a + b; }
inline V sub(V a, V b) { return a - b; }
inline V mul(V a, V b) { return a * b; }
inline V div(V a, V b) { return a / b; }
inline V fma(V a, V b, V c) { return a * b + c; }  // rounded twice: no fused instruction at the baseline
inline V select(Vi mask, V a, V b) {
  return __builtin_bit_cast(V, (mask & __builtin_bit_cast(Vi, a)) | (~mask & __builtin_bit_cast(Vi, b)));
}
inline V select_less(V a, V b, V yes, V no) { return select(a < b, yes, no); }
// As maxps and minps: the second operand where either is NaN.
inline V max(V a, V b) { return select(a > b, a, b); }
inline V min(V a, V b) { return select(a < b, a, b); }
inline V pow2(V n) { return __builtin_bit_cast(V, (__builtin_convertvector(n, Vi) + 127) << 23); }
inline float hsum(V v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
inline float hmax(V v) {
  float best = v[0];
  for (int i = 1; i < 8; ++i) best = v[i] > best ? v[i] : best;
  return best;
}
inline void hsum4(const float* sums, float* out) {
  for (int i = 0; i < 4; ++i) out[i] = hsum(load(sums + i * 8));
}

constexpr float kByteScale = 1;
inline float half_to_float(std::uint16_t bits) { return f16_to_f32(bits); }
inline V set1_half(const std::byte* p) { return set1(f16_to_f32(load_as<std::uint16_t>(p))); }
inline V load_f32(const std::byte* p) { return load_as<V>(p); }
inline V load_f16(const std::byte* p) {
  V v;
  for (int i = 0; i < 8; ++i) v[i] = f16_to_f32(load_as<std::uint16_t>(p + 2 * i));
  return v;
}
inline V load_bf16(const std::byte* p) {
  V v;
  for (int i = 0; i < 8; ++i) v[i] = bf16_to_f32(load_as<std::uint16_t>(p + 2 * i));
  return v;
}
inline void store_f16(std::uint16_t* p, V v) {
  for (int i = 0; i < 8; ++i) p[i] = f32_to_f16(v[i]);
}
inline void store_bf16(std::uint16_t* p, V v) {
  for (int i = 0; i < 8; ++i) p[i] = f32_to_bf16(v[i]);
}

inline B16 load16(const std::byte* p) { return load_as<B16>(p); }
template <int Mask>
inline B16 low_bits(B16 v) {
  return v & static_cast<std::int8_t>(Mask);
}
// Shifts bytes or wider lanes: what comes in from a neighbouring byte is not defined.
inline B16 shift_right_lanes(B16 v, int n) {
  return __builtin_bit_cast(B16, __builtin_bit_cast(U16, v) >> static_cast<std::uint8_t>(n));
}
template <int N>
inline B16 shift_left(B16 v) {
  return __builtin_bit_cast(B16, __builtin_bit_cast(U16, v) << N);
}
inline B16 subtract(B16 v, std::int8_t n) { return v - n; }
inline B16 combine(B16 a, B16 b) { return a | b; }
// Value where bit i of `bits` is set, else 0, in byte i.
template <int Value>
inline B16 spread_bits(std::uint32_t bits) {
  B16 v{};
  for (int i = 0; i < 16; ++i) v[i] = static_cast<std::int8_t>((bits >> i & 1u) * Value);
  return v;
}
// Value where bit `bit` of a byte is set, else 0.
template <int Value>
inline B16 bit_as(B16 v, int bit) {
  return __builtin_bit_cast(
      B16, (__builtin_bit_cast(U16, v) >> static_cast<std::uint8_t>(bit) & 1) * static_cast<std::uint8_t>(Value));
}
inline void to_float(B16 v, V& lo, V& hi) {
  for (int i = 0; i < 8; ++i) {
    lo[i] = static_cast<float>(v[i]);
    hi[i] = static_cast<float>(v[i + 8]);
  }
}

// For the integer products: eight 32-bit lanes, or sixteen of 16 bits.
using I16 = std::int16_t __attribute__((vector_size(32)));
struct I32 {
  Vi v;
};
inline I32 zero_int() { return {Vi{}}; }
inline I32 load_int16(const std::int16_t* p) { return {load_as<Vi>(p)}; }
inline void store_int(std::int16_t* p, I32 v) { __builtin_memcpy(p, &v.v, sizeof v.v); }
// The two 16-bit numbers at p in every 32-bit lane.
inline I32 repeat_pair(const std::int16_t* p) { return {Vi{} + load_as<std::int32_t>(p)}; }
inline I32 widen(B16 v) { return {__builtin_bit_cast(Vi, __builtin_convertvector(v, I16))}; }
// sum + the products of neighbouring 16-bit lanes, added in pairs
inline I32 multiply_add(I32 sum, I32 a, I32 b) {
  const Vi low = (a.v << 16 >> 16) * (b.v << 16 >> 16);
  return {sum.v + low + (a.v >> 16) * (b.v >> 16)};
}
inline void pin(I32&) {}
inline V to_float(I32 v) { return __builtin_convertvector(v.v, V); }
// Rounds to nearest even; the values are in [-32768, 32767].
inline void store_int16(std::int16_t* p, V lo, V hi) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  for (int i = 0; i < 8; ++i) {
    p[i] = static_cast<std::int16_t>((lo[i] + kRound) - kRound);
    p[i + 8] = static_cast<std::int16_t>((hi[i] + kRound) - kRound);
  }
}
// The half at each of eight places.
inline V load_halves(const std::byte* const (&p)[8]) {
  V v;
  for (int i = 0; i < 8; ++i) v[i] = f16_to_f32(load_as<std::uint16_t>(p[i]));
  return v;
}
// Lane i of the result is the sum of the lanes of v[i].
inline I32 lane_sums(const I32 (&v)[8]) {
  I32 sums;
  for (int i = 0; i < 8; ++i) {
    std::int32_t sum = 0;
    for (int j = 0; j < 8; ++j) sum += v[i].v[j];
    sums.v[i] = sum;
  }
  return sums;
}
// An 8 x 8 matrix of 32-bit lanes, in place.
inline void transpose(I32 (&v)[8]) {
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < i; ++j) {
      const std::int32_t a = v[i].v[j];
      v[i].v[j] = v[j].v[i];
      v[j].v[i] = a;
    }
  }
}

}  // namespace
}  // namespace xgen::kernels::cpu

#include "kernels/cpu/generic.h"

namespace xgen::kernels::cpu {

const KernelTable kScalar XGEN_KERNEL_TABLE("scalar", 0, activation_bits, quantise_rows, not_packed, nullptr, matmul);

}  // namespace xgen::kernels::cpu
