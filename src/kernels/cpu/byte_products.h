// Products of quantised weights with activations that are rounded to 8 bits, 32 at a time: x = q d with d = max |x| /
// 127. For instruction sets that multiply unsigned by signed bytes and add four products at a time to a 32-bit lane
// (VNNI).
//
// Canonical order of a dot product over K: a weight is (u - offset) scale, or u scale + minimum, with an unsigned byte
// u and one scale (and minimum) for a block of 32 or 16. The sum of a block's products of integers is exact in 32 bits
// (at most 32 * 255 * 127 < 2^20); rounded to F32 it is multiplied by the product of the two scales and added to the
// sum of the blocks before it, with one rounding. A minimum times d times the sum of the block's q is added next, with
// another. Since the integer sums are exact, any order inside a block gives the same bits.
//
// Include it once, after generic.h. Beyond the vector types of AVX2 it needs dot(sum, u, q).
#pragma once

#include "kernels/cpu/generic.h"

namespace xgen::kernels::cpu {
namespace {

constexpr i64 kBytePanel = 32;   // outputs whose weights lie interleaved: [k / 4][32][4] bytes
constexpr i64 kByteDepth = 512;  // K elements per pass
constexpr i64 kByteGroup = 16;   // rows whose activations lie side by side

// 32 unsigned or signed bytes.
struct Bytes32 {
  __m256i v;
};
XGEN_AVX Bytes32 load_bytes32(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i_u*>(p))}; }
XGEN_AVX Bytes32 join(B16 lo, B16 hi) { return {_mm256_blend_epi32(lo.v, hi.v, 0xf0)}; }

// --- Formats. values<S>() gives the elements [32 S, 32 S + 32) of a unit as unsigned bytes; scales() writes the scale
// (and the minimum) of each block of the unit, `stride` floats apart.

template <DType>
struct ByteFormat;

// to[0], to[stride], … = from[i] * factor
XGEN_INLINE void scatter(const float* from, int count, float factor, float* to, i64 stride) {
  for (int i = 0; i < count; ++i) to[i * stride] = from[i] * factor;
}

template <DType T, int Block, int Offset, bool Min = false>
struct ByteFormatOf {
  static constexpr int kBytes = Format<T>::kBytes;
  static constexpr int kParts = Format<T>::kParts;
  static constexpr int kBlock = Block;    // elements with one scale
  static constexpr int kOffset = Offset;  // of the unsigned bytes
  static constexpr bool kMin = Min;
  static constexpr int kScales = 32 * kParts / Block;  // of a unit

  XGEN_INLINE static void scales(const Byte* p, i64 stride, float* scale, float* minimum) {
    if constexpr (kParts == 1) {  // halves that the unit begins with
      *scale = read_half(p);
      if constexpr (Min) *minimum = read_half(p + 2);
    } else {
      // generic.h's units have made floats of them, times 2^24 for its way to make floats of bytes.
      const typename Format<T>::Unit unit(p);
      scatter(unit.scale, kScales, 1.0f / kByteScale, scale, stride);
      if constexpr (requires { unit.minimum; })
        scatter(unit.minimum, kScales, 1, minimum, stride);
      else if constexpr (Min)
        scatter(unit.scale + kScales, kScales, 1, minimum, stride);
    }
  }
};

template <>
struct ByteFormat<DType::q8_0> : ByteFormatOf<DType::q8_0, 32, 128> {
  template <int>
  XGEN_INLINE static Bytes32 values(const Byte* p) {
    return {_mm256_xor_si256(load_bytes32(p + 2).v, _mm256_set1_epi8(-128))};
  }
};
template <>
struct ByteFormat<DType::q4_0> : ByteFormatOf<DType::q4_0, 32, 8> {
  template <int>
  XGEN_INLINE static Bytes32 values(const Byte* p) {
    const B16 q = load16(p + 2);
    return join(nibble(q, 0), nibble(q, 1));
  }
};
template <>
struct ByteFormat<DType::q5_0> : ByteFormatOf<DType::q5_0, 32, 16> {
  template <int>
  XGEN_INLINE static Bytes32 values(const Byte* p) {
    const auto high = read<std::uint32_t>(p + 2);
    const B16 q = load16(p + 6);
    return join(five_bits(q, 0, high), five_bits(q, 1, high));
  }
};
template <>
struct ByteFormat<DType::q4_1> : ByteFormatOf<DType::q4_1, 32, 0, true> {
  template <int>
  XGEN_INLINE static Bytes32 values(const Byte* p) {
    const B16 q = load16(p + 4);
    return join(nibble(q, 0), nibble(q, 1));
  }
};
template <>
struct ByteFormat<DType::q5_1> : ByteFormatOf<DType::q5_1, 32, 0, true> {
  template <int>
  XGEN_INLINE static Bytes32 values(const Byte* p) {
    const auto high = read<std::uint32_t>(p + 4);
    const B16 q = load16(p + 8);
    return join(five_bits(q, 0, high), five_bits(q, 1, high));
  }
};
template <>
struct ByteFormat<DType::q2_k> : ByteFormatOf<DType::q2_k, 16, 0, true> {
  template <int S>
  XGEN_INLINE static Bytes32 values(const Byte* p) {
    const Byte* q = p + 16 + S / 4 * 32;
    return join(two_bits(load16(q), S % 4), two_bits(load16(q + 16), S % 4));
  }
};
template <>
struct ByteFormat<DType::q3_k> : ByteFormatOf<DType::q3_k, 16, 4> {
  template <int S>
  XGEN_INLINE static Bytes32 values(const Byte* p) {
    const Byte* q = p + 32 + S / 4 * 32;
    return join(combine(two_bits(load16(q), S % 4), bit_as<4>(load16(p), S)),
                combine(two_bits(load16(q + 16), S % 4), bit_as<4>(load16(p + 16), S)));
  }
};
template <>
struct ByteFormat<DType::q4_k> : ByteFormatOf<DType::q4_k, 32, 0, true> {
  template <int S>
  XGEN_INLINE static Bytes32 values(const Byte* p) {
    const Byte* q = p + 16 + S / 2 * 32;
    return join(nibble(load16(q), S % 2), nibble(load16(q + 16), S % 2));
  }
};
template <>
struct ByteFormat<DType::q5_k> : ByteFormatOf<DType::q5_k, 32, 0, true> {
  template <int S>
  XGEN_INLINE static Bytes32 values(const Byte* p) {
    const Byte* q = p + 48 + S / 2 * 32;
    return join(combine(nibble(load16(q), S % 2), bit_as<16>(load16(p + 16), S)),
                combine(nibble(load16(q + 16), S % 2), bit_as<16>(load16(p + 32), S)));
  }
};
template <>
struct ByteFormat<DType::q6_k> : ByteFormatOf<DType::q6_k, 16, 32> {
  template <int S>
  XGEN_INLINE static Bytes32 values(const Byte* p) {
    const Byte* ql = p + S / 4 * 64 + S % 2 * 32;
    const Byte* qh = p + 128 + S / 4 * 32;
    return join(combine(nibble(load16(ql), S % 4 / 2), shift_left<4>(two_bits(load16(qh), S % 4))),
                combine(nibble(load16(ql + 16), S % 4 / 2), shift_left<4>(two_bits(load16(qh + 16), S % 4))));
  }
};

// --- Activations. Rows lie in groups of kByteGroup, of which the last may have fewer, block by block of 32:
//   q: int8 [group][k / 32][rows of the group][32]
//   facts: 32-bit words [kFacts][group][k / 32][rows of the group]
// Fewer bytes than quantised_bytes().

// The words of a block: floats, and integers where it says so.
enum Fact {
  kFactScale,       // d
  kFactLess,        // int: -(the sum of q)
  kFactMore,        // d * the sum of q
  kFactHalvesLess,  // two: the same of the block's halves of 16
  kFactHalvesMore = kFactHalvesLess + 2,
  kFacts = kFactHalvesMore + 2,
};

// A group of rows; begins with block 0.
struct ByteRows {
  const std::int8_t* q;
  const float* facts;
  i64 plane;  // words of a fact
  i64 rows;
};
XGEN_INLINE ByteRows byte_rows(const Byte* quantised, i64 m, i64 k, i64 row) {
  const i64 first = row / kByteGroup * kByteGroup;
  const auto* facts = reinterpret_cast<const float*>(quantised + m * k);
  return {reinterpret_cast<const std::int8_t*>(quantised) + first * k, facts + first * (k / 32), m * (k / 32),
          min_of(kByteGroup, m - first)};
}

void quantise_byte_rows(const float* x, i64 stride, i64 m, i64 k, i64 m0, i64 m1, Byte* out) {
  for (i64 row = m0; row < m1; ++row) {
    const ByteRows group = byte_rows(out, m, k, row);
    auto* q = const_cast<std::int8_t*>(group.q) + row % kByteGroup * 32;
    auto* facts = const_cast<float*>(group.facts) + row % kByteGroup;
    for (i64 i = 0; i < k; i += 32, q += group.rows * 32, facts += group.rows) {
      V v[4];
      const float d = scale_block(x + row * stride + i, 127.0f, v);
      __m256i i32[4];
      for (int j = 0; j < 4; ++j) i32[j] = _mm256_cvtps_epi32(v[j].v);
      const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(i32[0], i32[1]), _mm256_packs_epi32(i32[2], i32[3]));
      const __m256i ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
      _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(q), ordered);
      const __m256i eights = _mm256_sad_epu8(_mm256_xor_si256(ordered, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
      alignas(32) std::int64_t parts[4];
      _mm256_store_si256(reinterpret_cast<__m256i*>(parts), eights);
      const std::int32_t halves[2] = {static_cast<std::int32_t>(parts[0] + parts[1]) - 16 * 128,
                                      static_cast<std::int32_t>(parts[2] + parts[3]) - 16 * 128};
      const auto put = [&](int fact, float value) { facts[fact * group.plane] = value; };
      const auto put_sum = [&](int less, int more, std::int32_t sum) {
        put(less, __builtin_bit_cast(float, -sum));
        put(more, d * static_cast<float>(sum));
      };
      put(kFactScale, d);
      put_sum(kFactLess, kFactMore, halves[0] + halves[1]);
      for (int h = 0; h < 2; ++h) put_sum(kFactHalvesLess + h, kFactHalvesMore + h, halves[h]);
    }
  }
}

// --- Few rows: eight weight rows at a time, straight from the mapped file, meet M activation rows.

// sum + the block's products, in the canonical order. `less` and `more` are the facts of the same elements.
template <class F>
XGEN_INLINE V add_block(V sum, I32 products, V scale, V minimum, float d, float less, float more) {
  const __m256i offset = _mm256_set1_epi32(__builtin_bit_cast(std::int32_t, less) * F::kOffset);
  sum = fma(to_float(I32{_mm256_add_epi32(products.v, offset)}), mul(scale, set1(d)), sum);
  if constexpr (F::kMin) sum = fma(minimum, set1(more), sum);
  return sum;
}

// op.m == M
template <class F, int M>
void byte_skinny(const Matmul& op, const Rows& w, i64 n0, i64 n1) {
  constexpr int R = 8;
  const ByteRows x = byte_rows(op.quantised, M, w.k, 0);
  for (i64 n = n0; n < n1; n += R) {
    const Byte* p[R];
    for (int r = 0; r < R; ++r) p[r] = w.row(min_of(n + r, n1 - 1));
    V sum[M];
    for (V& s : sum) s = zero();
    for (i64 unit = 0; unit < w.k / (32 * F::kParts); ++unit) {
      // The rows after these: hardware does not look ahead across the many short streams.
      for (int r = 0; r < R; ++r) {
        for (i64 line = 0; line < F::kBytes; line += 64) __builtin_prefetch(p[r] + R * w.row_bytes + line, 0, 2);
      }
      alignas(32) float scale[F::kScales * R];
      alignas(32) float minimum[F::kScales * R];
      for (int r = 0; r < R; ++r) F::scales(p[r], R, scale + r, minimum + r);
      unroll<F::kParts>([&]<int S>() {
        Bytes32 values[R];
        for (int r = 0; r < R; ++r) values[r] = F::template values<S>(p[r]);
        const i64 b = unit * F::kParts + S;
        for (int i = 0; i < M; ++i) {
          const Bytes32 q = load_bytes32(x.q + (b * M + i) * 32);
          const float* const facts = x.facts + b * M + i;
          const float d = facts[kFactScale * x.plane];
          I32 part[R];
          for (int r = 0; r < R; ++r) part[r] = dot(zero_int(), values[r], q);
          if constexpr (F::kBlock == 32) {
            const V least = F::kMin ? load(minimum + S * R) : zero();
            sum[i] = add_block<F>(sum[i], lane_sums(part), load(scale + S * R), least, d, facts[kFactLess * x.plane],
                                  facts[kFactMore * x.plane]);
          } else {
            I32 half[2];
            half_sums(part, half[0], half[1]);
            for (int h = 0; h < 2; ++h) {
              const V least = F::kMin ? load(minimum + (2 * S + h) * R) : zero();
              sum[i] = add_block<F>(sum[i], half[h], load(scale + (2 * S + h) * R), least, d,
                                    facts[(kFactHalvesLess + h) * x.plane], facts[(kFactHalvesMore + h) * x.plane]);
            }
          }
        }
      });
      for (const Byte*& row : p) row += F::kBytes;
    }
    for (int i = 0; i < M; ++i) {
      alignas(32) float out[R];
      store(out, sum[i]);
      write_outputs(op, i, n, static_cast<int>(min_of(R, n1 - n)), out);
    }
  }
}

// --- Many rows.

// Elements [k0, k0 + depth) of weight rows n..n+31, rows past n_end repeated; scales and minimums as
// [depth / kBlock][32]. Signed: the bytes less their offset.
template <class F, bool Signed>
XGEN_INLINE void byte_panel(const Rows& w, i64 n, i64 n_end, i64 k0, i64 depth, std::uint8_t* panel, float* scales,
                            float* minimums) {
  const i64 units = depth / (32 * F::kParts);
  for (i64 eight = 0; eight < kBytePanel; eight += 8) {
    const Byte* p[8];
    for (int r = 0; r < 8; ++r) {
      p[r] = w.row(min_of(n + eight + r, n_end - 1)) + k0 / (32 * F::kParts) * F::kBytes;
      // The elements after these: hardware does not look ahead across so many short streams.
      const Byte* const next =
          k0 + depth < w.k ? p[r] + units * F::kBytes : w.row(min_of(n + kBytePanel + eight + r, n_end - 1));
      for (i64 line = 0; line < units * F::kBytes + 63; line += 64) __builtin_prefetch(next + line, 0, 2);
    }
    for (i64 unit = 0; unit < units; ++unit) {
      const i64 first = unit * F::kScales * kBytePanel + eight;
      for (int r = 0; r < 8; ++r) F::scales(p[r], kBytePanel, scales + first + r, minimums + first + r);
      unroll<F::kParts>([&]<int S>() {
        I32 rows[8];
        for (int r = 0; r < 8; ++r) {
          rows[r].v = F::template values<S>(p[r]).v;
          if constexpr (Signed) rows[r].v = _mm256_sub_epi8(rows[r].v, _mm256_set1_epi8(static_cast<char>(F::kOffset)));
        }
        transpose(rows);
        for (int four = 0; four < 8; ++four)
          _mm256_storeu_si256(
              reinterpret_cast<__m256i_u*>(panel + (((unit * F::kParts + S) * 8 + four) * kBytePanel + eight) * 4),
              rows[four].v);
      });
      for (const Byte*& row : p) row += F::kBytes;
    }
  }
}

// Rows of a group meet a panel: sums[row][32] += their products over `blocks` blocks.
struct ByteTile {
  const std::uint8_t* panel;
  const float* scales;
  const float* minimums;
  const std::int8_t* q;  // of the first block and row
  const float* facts;
  i64 plane;
  i64 group;  // rows of the group
  i64 blocks;
  float* sums;
  const std::int8_t* next;  // q of the group after it, or past the last one
};

constexpr i64 kByteSums = i64{kMatmulRows + kByteGroup} * kBytePanel;  // tiles may write past the last row
static_assert(kBytePanel * (kByteDepth + 2 * (kByteDepth / 16) * 4) + kByteSums * 4 <= i64{kMatmulIntegerScratchBytes});

}  // namespace
}  // namespace xgen::kernels::cpu
