// The vector types of generic.h for AVX2 with FMA and F16C, and what is built on them. Not a header in the usual sense:
// an instruction set's file includes it once, before generic.h, inside `#if defined(__AVX2__)`.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace xgen::kernels::cpu {
namespace {

// A struct, since a template argument may not carry the attributes of __m256.
struct V {
  __m256 v;
};
// Sixteen bytes, once in each half, so that no instruction has to cross the halves.
struct B16 {
  __m256i v;
};

#define XGEN_AVX [[gnu::always_inline]] inline

XGEN_AVX V zero() { return {_mm256_setzero_ps()}; }
XGEN_AVX V set1(float x) { return {_mm256_set1_ps(x)}; }
XGEN_AVX V load(const float* p) { return {_mm256_loadu_ps(p)}; }
XGEN_AVX void store(float* p, V v) { _mm256_storeu_ps(p, v.v); }
XGEN_AVX V add(V a, V b) { return {_mm256_add_ps(a.v, b.v)}; }
XGEN_AVX V sub(V a, V b) { return {_mm256_sub_ps(a.v, b.v)}; }
XGEN_AVX V mul(V a, V b) { return {_mm256_mul_ps(a.v, b.v)}; }
XGEN_AVX V div(V a, V b) { return {_mm256_div_ps(a.v, b.v)}; }
XGEN_AVX V fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
XGEN_AVX V max(V a, V b) { return {_mm256_max_ps(a.v, b.v)}; }
XGEN_AVX V min(V a, V b) { return {_mm256_min_ps(a.v, b.v)}; }
XGEN_AVX V select_less(V a, V b, V yes, V no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
XGEN_AVX V pow2(V n) {
  const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
  return {_mm256_castsi256_ps(bits)};
}
// ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7))
XGEN_AVX float hsum(V v) {
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(v.v), _mm256_extractf128_ps(v.v, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
XGEN_AVX float hmax(V v) {
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(v.v), _mm256_extractf128_ps(v.v, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
}
XGEN_AVX __m128 fold(const float* p) { return _mm_add_ps(_mm_loadu_ps(p), _mm_loadu_ps(p + 4)); }
// Four sums in the order of hsum(), by a 4 x 4 transposition.
XGEN_AVX void hsum4(const float* sums, float* out) {
  __m128 a = fold(sums);
  __m128 b = fold(sums + 8);
  __m128 c = fold(sums + 16);
  __m128 d = fold(sums + 24);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d)));
}

XGEN_AVX float half_to_float(std::uint16_t bits) { return _cvtsh_ss(bits); }
XGEN_AVX V set1_half(const std::byte* p) {
  std::int16_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return {_mm256_cvtph_ps(_mm_set1_epi16(bits))};
}
XGEN_AVX V load_f32(const std::byte* p) { return {_mm256_loadu_ps(reinterpret_cast<const float*>(p))}; }
XGEN_AVX __m128i load_bytes16(const std::byte* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p)); }
XGEN_AVX V load_f16(const std::byte* p) { return {_mm256_cvtph_ps(load_bytes16(p))}; }
XGEN_AVX V load_bf16(const std::byte* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_bytes16(p)), 16))};
}
XGEN_AVX void store_f16(std::uint16_t* p, V v) {
  _mm_storeu_si128(reinterpret_cast<__m128i_u*>(p), _mm256_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT));
}
XGEN_AVX void store_bf16(std::uint16_t* p, V v) {
  const __m256i bits = _mm256_castps_si256(v.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(v.v, v.v, _CMP_UNORD_Q);
  const __m256i chosen =
      _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), is_nan));
  const __m256i high = _mm256_srli_epi32(chosen, 16);
  const __m256i packed = _mm256_packus_epi32(high, high);
  _mm_storeu_si128(reinterpret_cast<__m128i_u*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

XGEN_AVX B16 load16(const std::byte* p) { return {_mm256_broadcastsi128_si256(load_bytes16(p))}; }
template <int Mask>
XGEN_AVX B16 low_bits(B16 v) {
  return {_mm256_and_si256(v.v, _mm256_set1_epi8(Mask))};
}
// Shifts 16-bit lanes: what comes in from a neighbouring byte is not defined.
XGEN_AVX B16 shift_right_lanes(B16 v, int n) { return {_mm256_srl_epi16(v.v, _mm_cvtsi32_si128(n))}; }
template <int N>
XGEN_AVX B16 shift_left(B16 v) {
  return {_mm256_and_si256(_mm256_slli_epi16(v.v, N), _mm256_set1_epi8(static_cast<char>((0xff << N) & 0xff)))};
}
XGEN_AVX B16 subtract(B16 v, std::int8_t n) { return {_mm256_sub_epi8(v.v, _mm256_set1_epi8(n))}; }
XGEN_AVX B16 combine(B16 a, B16 b) { return {_mm256_or_si256(a.v, b.v)}; }
template <int Value>
XGEN_AVX B16 spread_bits(std::uint32_t bits) {
  const __m256i source = _mm256_set1_epi16(static_cast<short>(bits));
  const __m256i bytes = _mm256_shuffle_epi8(
      source, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)));
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
  return {_mm256_and_si256(set, _mm256_set1_epi8(Value))};
}
template <int Value>
XGEN_AVX B16 bit_as(B16 v, int bit) {
  const __m256i mask = _mm256_set1_epi8(static_cast<char>(1u << bit));
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(v.v, mask), mask);
  return {_mm256_and_si256(set, _mm256_set1_epi8(Value))};
}
// Each byte becomes the top byte of a 32-bit lane, which is the signed byte times 2^24.
constexpr float kByteScale = 0x1p-24f;
XGEN_AVX void to_float(B16 v, V& lo, V& hi) {
  constexpr char z = -128;
  const __m256i first = _mm256_setr_epi8(z, z, z, 0, z, z, z, 1, z, z, z, 2, z, z, z, 3,  //
                                         z, z, z, 4, z, z, z, 5, z, z, z, 6, z, z, z, 7);
  const __m256i second = _mm256_setr_epi8(z, z, z, 8, z, z, z, 9, z, z, z, 10, z, z, z, 11,  //
                                          z, z, z, 12, z, z, z, 13, z, z, z, 14, z, z, z, 15);
  lo.v = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(v.v, first));
  hi.v = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(v.v, second));
}

// For the integer products: eight 32-bit lanes, or sixteen of 16 bits.
struct I32 {
  __m256i v;
};
XGEN_AVX I32 zero_int() { return {_mm256_setzero_si256()}; }
XGEN_AVX I32 load_int16(const std::int16_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p))}; }
XGEN_AVX void store_int(std::int16_t* p, I32 v) { _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(p), v.v); }
// The two 16-bit numbers at p in every 32-bit lane.
XGEN_AVX I32 repeat_pair(const std::int16_t* p) {
  std::int32_t both;
  __builtin_memcpy(&both, p, sizeof both);
  return {_mm256_set1_epi32(both)};
}
XGEN_AVX I32 widen(B16 v) { return {_mm256_cvtepi8_epi16(_mm256_castsi256_si128(v.v))}; }
// sum + the products of neighbouring 16-bit lanes, added in pairs
XGEN_AVX I32 multiply_add(I32 sum, I32 a, I32 b) { return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(a.v, b.v))}; }
// Ends a computation here: GCC would put all products before all sums, and run out of registers.
XGEN_AVX void pin(I32& v) { __asm__("" : "+x"(v.v)); }
XGEN_AVX V to_float(I32 v) { return {_mm256_cvtepi32_ps(v.v)}; }
// Rounds to nearest; the values are in [-32768, 32767].
XGEN_AVX void store_int16(std::int16_t* p, V lo, V hi) {
  const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(lo.v), _mm256_cvtps_epi32(hi.v));
  store_int(p, {_mm256_permute4x64_epi64(packed, 0xd8)});
}
// The half at each of eight places.
XGEN_AVX V load_halves(const std::byte* const (&p)[8]) {
  short bits[8];
  for (int i = 0; i < 8; ++i) __builtin_memcpy(bits + i, p[i], 2);
  return {_mm256_cvtph_ps(_mm_setr_epi16(bits[0], bits[1], bits[2], bits[3], bits[4], bits[5], bits[6], bits[7]))};
}
// Lane i of lo and hi: the sums of the lower and of the upper four lanes of v[i].
XGEN_AVX void half_sums(const I32 (&v)[8], I32& lo, I32& hi) {
  __m256i four[2];
  for (int i = 0; i < 2; ++i) {
    __m256i two[2];
    for (int j = 0; j < 2; ++j) {
      const __m256i a = v[4 * i + 2 * j].v;
      const __m256i b = v[4 * i + 2 * j + 1].v;
      two[j] = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    }
    four[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(two[0], two[1]), _mm256_unpackhi_epi64(two[0], two[1]));
  }
  lo.v = _mm256_permute2x128_si256(four[0], four[1], 0x20);
  hi.v = _mm256_permute2x128_si256(four[0], four[1], 0x31);
}
// Lane i of the result is the sum of the lanes of v[i].
XGEN_AVX I32 lane_sums(const I32 (&v)[8]) {
  I32 lo;
  I32 hi;
  half_sums(v, lo, hi);
  return {_mm256_add_epi32(lo.v, hi.v)};
}
// An 8 x 8 matrix of 32-bit lanes, in place.
XGEN_AVX void transpose(I32 (&v)[8]) {
  __m256i two[8];
  __m256i four[8];
  for (int i = 0; i < 4; ++i) {
    two[2 * i] = _mm256_unpacklo_epi32(v[2 * i].v, v[2 * i + 1].v);
    two[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i].v, v[2 * i + 1].v);
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      four[4 * i + 2 * j] = _mm256_unpacklo_epi64(two[4 * i + j], two[4 * i + 2 + j]);
      four[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(two[4 * i + j], two[4 * i + 2 + j]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    v[i].v = _mm256_permute2x128_si256(four[i], four[4 + i], 0x20);
    v[4 + i].v = _mm256_permute2x128_si256(four[i], four[4 + i], 0x31);
  }
}

}  // namespace
}  // namespace xgen::kernels::cpu
