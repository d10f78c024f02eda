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
// Include it once, after generic.h. Beyond the vector types of AVX2 it needs: dot(sum, u, q), and byte_tile().
#pragma once

#include "kernels/cpu/generic.h"

namespace xgen::kernels::cpu {
namespace {

constexpr i64 kBytePanel = 16;   // outputs whose weights lie interleaved: [k / 4][16][4] bytes
constexpr i64 kByteDepth = 512;  // K elements per pass; the stride of quantised rows
constexpr i64 kByteBlocks = kByteDepth / 32;
constexpr int kByteRows = 12;  // rows that meet a panel at once

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

// --- Activations.

// d, the sixteen-wise sums of q, and q.
XGEN_INLINE void quantise_bytes_block(const float* x, std::int8_t* q, float* d, std::int32_t* sums) {
  V v[4];
  *d = scale_block(x, 127.0f, v);
  __m256i i32[4];
  for (int j = 0; j < 4; ++j) i32[j] = _mm256_cvtps_epi32(v[j].v);
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(i32[0], i32[1]), _mm256_packs_epi32(i32[2], i32[3]));
  const __m256i ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(q), ordered);
  const __m256i eights = _mm256_sad_epu8(_mm256_xor_si256(ordered, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
  alignas(32) std::int64_t parts[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(parts), eights);
  sums[0] = static_cast<std::int32_t>(parts[0] + parts[1]) - 16 * 128;
  sums[1] = static_cast<std::int32_t>(parts[2] + parts[3]) - 16 * 128;
}

// q: int8 [m][k]; then d: float [m][k / 32]; then the sums: int32 [m][k / 16]. Fewer bytes than quantised_bytes().
void quantise_byte_rows(const float* x, i64 stride, i64 m, i64 k, Byte* out) {
  auto* q = reinterpret_cast<std::int8_t*>(out);
  auto* d = reinterpret_cast<float*>(out + m * k);
  auto* sums = reinterpret_cast<std::int32_t*>(d + m * (k / 32));
  for (i64 r = 0; r < m; ++r) {
    for (i64 i = 0; i < k; i += 32, sums += 2) quantise_bytes_block(x + r * stride + i, q + r * k + i, d++, sums);
  }
}

// --- Few rows: eight weight rows at a time, straight from the mapped file, meet M activation rows.

XGEN_AVX I32 minus(I32 a, std::int32_t b) { return {_mm256_sub_epi32(a.v, _mm256_set1_epi32(b))}; }

// sum + the block's products, in the canonical order.
template <class F>
XGEN_INLINE V add_block(V sum, I32 products, V scale, V minimum, float d, std::int32_t q_sum) {
  sum = fma(to_float(minus(products, F::kOffset * q_sum)), mul(scale, set1(d)), sum);
  if constexpr (F::kMin) sum = fma(minimum, set1(d * static_cast<float>(q_sum)), sum);
  return sum;
}

template <class F, int M>
void byte_skinny(const Matmul& op, const Rows& w, i64 m0, i64 n0, i64 n1) {
  constexpr int R = 8;
  const auto* q = reinterpret_cast<const std::int8_t*>(op.quantised) + m0 * w.k;
  const auto* d = reinterpret_cast<const float*>(op.quantised + op.m * w.k) + m0 * (w.k / 32);
  const auto* sums =
      reinterpret_cast<const std::int32_t*>(op.quantised + op.m * (w.k + w.k / 32 * 4)) + m0 * (w.k / 16);
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
          const Bytes32 x = load_bytes32(q + i * w.k + b * 32);
          I32 part[R];
          for (int r = 0; r < R; ++r) part[r] = dot(zero_int(), values[r], x);
          const float* const rows_d = d + i * (w.k / 32) + b;
          const std::int32_t* const q_sums = sums + i * (w.k / 16) + 2 * b;
          if constexpr (F::kBlock == 32) {
            const V least = F::kMin ? load(minimum + S * R) : zero();
            sum[i] = add_block<F>(sum[i], lane_sums(part), load(scale + S * R), least, *rows_d, q_sums[0] + q_sums[1]);
          } else {
            I32 half[2];
            half_sums(part, half[0], half[1]);
            for (int h = 0; h < 2; ++h) {
              const V least = F::kMin ? load(minimum + (2 * S + h) * R) : zero();
              sum[i] = add_block<F>(sum[i], half[h], load(scale + (2 * S + h) * R), least, *rows_d, q_sums[h]);
            }
          }
        }
      });
      for (const Byte*& row : p) row += F::kBytes;
    }
    for (int i = 0; i < M; ++i) {
      alignas(32) float out[R];
      store(out, sum[i]);
      write_outputs(op, m0 + i, n, static_cast<int>(min_of(R, n1 - n)), out);
    }
  }
}

// --- Many rows.

// Elements [k0, k0 + depth) of weight rows n..n+15, rows past n_end repeated; scales and minimums as
// [depth / kBlock][16].
template <class F>
XGEN_INLINE void byte_panel(const Rows& w, i64 n, i64 n_end, i64 k0, i64 depth, std::uint8_t* panel, float* scales,
                            float* minimums) {
  const i64 units = depth / (32 * F::kParts);
  for (int half = 0; half < 2; ++half) {
    const Byte* p[8];
    for (int r = 0; r < 8; ++r) p[r] = w.row(min_of(n + 8 * half + r, n_end - 1)) + k0 / (32 * F::kParts) * F::kBytes;
    for (i64 unit = 0; unit < units; ++unit) {
      const i64 first = unit * F::kScales * kBytePanel + 8 * half;
      for (int r = 0; r < 8; ++r) F::scales(p[r], kBytePanel, scales + first + r, minimums + first + r);
      unroll<F::kParts>([&]<int S>() {
        I32 rows[8];
        for (int r = 0; r < 8; ++r) rows[r].v = F::template values<S>(p[r]).v;
        transpose(rows);
        for (int four = 0; four < 8; ++four)
          _mm256_storeu_si256(
              reinterpret_cast<__m256i_u*>(panel + ((unit * F::kParts + S) * 8 + four) * 64 + half * 32), rows[four].v);
      });
      for (const Byte*& row : p) row += F::kBytes;
    }
  }
}

// Quantised rows for a pass over K: q [rows][kByteDepth], d [rows][kByteBlocks]; and for each block of a format what
// its offset takes away, or what its minimum is multiplied with.
struct ByteTile {
  const std::uint8_t* panel;
  const float* scales;
  const float* minimums;
  const std::int8_t* q;
  const float* d;
  const std::int32_t* less;  // [rows][kByteDepth / kBlock]: -kOffset * sum of q; not with minimums
  const float* more;         // the same: d * sum of q; only with minimums
  i64 blocks;                // of 32
  float* sums;               // [rows][16]
};

static_assert(kMatmulRowsPerTile * (kByteDepth + kByteBlocks * 4 + kByteDepth / 16 * 4) +
                  kBytePanel * (kByteDepth + 2 * (kByteDepth / 16) * 4) +
                  kMatmulRowsPerTile * i64{kMatmulIntegerOutputsPerTile} * 4 <=
              i64{kMatmulIntegerScratchBytes});

template <class F>
void byte_wide(const Matmul& op, const Rows& w, i64 m0, i64 m1, i64 n0, i64 n1, Byte* scratch) {
  constexpr i64 kScaled = kByteDepth / F::kBlock;  // blocks of the format in a pass
  auto* sums = reinterpret_cast<float*>(scratch);
  auto* panel = reinterpret_cast<std::uint8_t*>(sums + i64{kMatmulRowsPerTile} * kMatmulIntegerOutputsPerTile);
  auto* q = reinterpret_cast<std::int8_t*>(panel + kBytePanel * kByteDepth);
  auto* d = reinterpret_cast<float*>(q + kMatmulRowsPerTile * kByteDepth);
  auto* less = reinterpret_cast<std::int32_t*>(d + kMatmulRowsPerTile * kByteBlocks);
  auto* more = reinterpret_cast<float*>(less);
  auto* scales = reinterpret_cast<float*>(less + kMatmulRowsPerTile * (kByteDepth / 16));
  float* const minimums = scales + kBytePanel * (kByteDepth / 16);
  for (i64 mc = m0; mc < m1; mc += kMatmulRowsPerTile) {
    const i64 rows = min_of(kMatmulRowsPerTile, m1 - mc);
    for (i64 nc = n0; nc < n1; nc += kMatmulIntegerOutputsPerTile) {
      const i64 n_end = min_of(nc + kMatmulIntegerOutputsPerTile, n1);
      for (i64 k0 = 0; k0 < w.k; k0 += kByteDepth) {
        const i64 depth = min_of(kByteDepth, w.k - k0);
        const i64 blocks = depth / 32;
        for (i64 r = 0; r < rows; ++r) {
          for (i64 b = 0; b < blocks; ++b) {
            std::int32_t q_sums[2];
            float& scale = d[r * kByteBlocks + b];
            quantise_bytes_block(op.x + (mc + r) * op.x_stride + k0 + b * 32, q + r * kByteDepth + b * 32, &scale,
                                 q_sums);
            if constexpr (F::kBlock == 32) q_sums[0] += q_sums[1];
            for (int h = 0; h < 32 / F::kBlock; ++h) {
              const i64 at = r * kScaled + b * (32 / F::kBlock) + h;
              if constexpr (F::kMin)
                more[at] = scale * static_cast<float>(q_sums[h]);
              else
                less[at] = -F::kOffset * q_sums[h];
            }
          }
        }
        for (i64 n = nc; n < n_end; n += kBytePanel) {
          byte_panel<F>(w, n, n_end, k0, depth, panel, scales, minimums);
          float* tile = sums + (n - nc) * rows;
          if (k0 == 0) {
            for (i64 i = 0; i < rows * kBytePanel; i += kLanes) store(tile + i, zero());
          }
          const auto meet = [&]<int R>(GroupSize<R>, i64 r) {
            byte_tile<R, F::kBlock, F::kMin>({panel, scales, minimums, q + r * kByteDepth, d + r * kByteBlocks,
                                              less + r * kScaled, more + r * kScaled, blocks, tile + r * kBytePanel});
          };
          i64 r = 0;
          for (; r + kByteRows <= rows; r += kByteRows) meet(GroupSize<kByteRows>{}, r);
          for (; r + 4 <= rows; r += 4) meet(GroupSize<4>{}, r);
          for_groups(rows - r, [&]<int R>(GroupSize<R> size, i64 i) { meet(size, r + i); });
        }
      }
      for (i64 n = nc; n < n_end; n += kBytePanel) {
        for (i64 r = 0; r < rows; ++r) {
          write_outputs(op, mc + r, n, static_cast<int>(min_of(kBytePanel, n_end - n)),
                        sums + (n - nc) * rows + r * kBytePanel);
        }
      }
    }
  }
}

int byte_activation_bits(DType type) {
  int bits = 0;
  with_format(type, [&]<class F>(F) { bits = F::plain ? 0 : 8; });
  return bits;
}

void byte_matmul(const Matmul& op, i64 m0, i64 m1, i64 n0, i64 n1, Byte* scratch) {
  const Rows w = rows_of(op.weight);
  const i64 rows = m1 - m0;
  with_format(op.weight.dtype, [&]<DType T>(Format<T>) {
    if constexpr (Format<T>::plain) {
      matmul(op, m0, m1, n0, n1, scratch);
    } else {
      using F = ByteFormat<T>;
      const auto few = [&]<int M>() { byte_skinny<F, M>(op, w, m0, n0, n1); };
      if (op.quantised != nullptr && for_few_rows<true>(rows, few)) return;
      byte_wide<F>(op, w, m0, m1, n0, n1, scratch);
    }
  });
}

}  // namespace
}  // namespace xgen::kernels::cpu
