// Quantised weights interleaved once, so that few rows read them in one stream and many rows need no transposition: 32
// outputs side by side, four elements of K of each together, as byte_products.h's panels have them. What has fewer than
// 8 bits is folded: elements of several groups of four share a byte.
//
// Panels of 32 outputs follow each other (the last one's missing outputs repeat the last), each the format's units
// along K: first what the unit's scales are multiplied with, F16 [kHalves][32]; then for each block of 32 of K its
// scales, bytes [kScales][32], and its planes, bytes [kPlanes][32][4].
//
// With AVX-512. Include it once, after byte_products.h.
#pragma once

#include "kernels/cpu/byte_products.h"

namespace xgen::kernels::cpu {
namespace {

XGEN_AVX __m512i load_line(const Byte* p) { return _mm512_loadu_si512(p); }
XGEN_AVX __m512 halves_at(const Byte* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p)));
}
XGEN_AVX __m512 unsigned_at(const Byte* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_bytes16(p))); }
XGEN_AVX __m512 signed_at(const Byte* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_bytes16(p))); }

// The scale and the minimum of sixteen outputs.
struct Scale16 {
  __m512 scale;
  __m512 minimum;
};

template <DType>
struct PackedFormat;

// Low bits of an element lie in planes of their own (8: whole bytes), High more in others. `pack` takes a unit apart;
// `scale` gives those of half h of a block (there is one half where 32 elements share a scale) for sixteen outputs
// whose factors and scales lie at `head` and `scales`; both produce the floats of ByteFormat::scales().
template <DType T, int Low, int High, int Halves, int Scales>
struct PackedFormatOf {
  using Bytes = ByteFormat<T>;
  static constexpr int kLow = Low;
  static constexpr int kHigh = High;
  static constexpr int kHalves = Halves;
  static constexpr int kScales = Scales;
  static constexpr int kPlanes = Low + High;  // eight groups of four
  static constexpr i64 kHead = Halves * kBytePanel * 2;
  static constexpr i64 kBlockBytes = (Scales + kPlanes * 4) * kBytePanel;
  static constexpr i64 kUnitBytes = kHead + Bytes::kParts * kBlockBytes;

  static constexpr i64 panel_bytes(i64 k) { return k / (32 * Bytes::kParts) * kUnitBytes; }
};

// A scale in F16 for each block, which the unit begins with.
template <DType T, int Low, int High>
struct PackedBlocks : PackedFormatOf<T, Low, High, 1, 0> {
  XGEN_INLINE static void pack(const Byte* p, Byte* halves, Byte*) { __builtin_memcpy(halves, p, 2); }
  XGEN_INLINE static Scale16 scale(const Byte* head, const Byte*, int) {
    return {halves_at(head), _mm512_setzero_ps()};
  }
};
template <>
struct PackedFormat<DType::q8_0> : PackedBlocks<DType::q8_0, 8, 0> {};
template <>
struct PackedFormat<DType::q4_0> : PackedBlocks<DType::q4_0, 4, 0> {};
template <>
struct PackedFormat<DType::q5_0> : PackedBlocks<DType::q5_0, 4, 1> {};

// ... and a minimum.
template <DType T, int Low, int High>
struct PackedMinBlocks : PackedFormatOf<T, Low, High, 2, 0> {
  XGEN_INLINE static void pack(const Byte* p, Byte* halves, Byte*) { __builtin_memcpy(halves, p, 4); }
  XGEN_INLINE static Scale16 scale(const Byte* head, const Byte*, int) {
    return {halves_at(head), halves_at(head + kBytePanel * 2)};
  }
};
template <>
struct PackedFormat<DType::q4_1> : PackedMinBlocks<DType::q4_1, 4, 0> {};
template <>
struct PackedFormat<DType::q5_1> : PackedMinBlocks<DType::q5_1, 4, 1> {};

// d, dmin; a scale and a minimum for each block.
template <DType T, int Low, int High>
struct PackedSuperBlocks : PackedFormatOf<T, Low, High, 2, 2> {
  XGEN_INLINE static void pack(const Byte* p, Byte* halves, Byte* scales) {
    __builtin_memcpy(halves, p, 4);
    Byte bytes[16];
    q45_scale_bytes(p, bytes);
    for (int s = 0; s < 8; ++s) {
      scales[2 * s] = bytes[s];
      scales[2 * s + 1] = bytes[8 + s];
    }
  }
  XGEN_INLINE static Scale16 scale(const Byte* head, const Byte* scales, int) {
    const __m512 least = _mm512_sub_ps(_mm512_setzero_ps(), halves_at(head + kBytePanel * 2));
    return {_mm512_mul_ps(unsigned_at(scales), halves_at(head)),
            _mm512_mul_ps(unsigned_at(scales + kBytePanel), least)};
  }
};
template <>
struct PackedFormat<DType::q4_k> : PackedSuperBlocks<DType::q4_k, 4, 0> {};
template <>
struct PackedFormat<DType::q5_k> : PackedSuperBlocks<DType::q5_k, 4, 1> {};

// d; a signed scale for each half of a block.
template <DType T, int Low, int High>
struct PackedHalfBlocks : PackedFormatOf<T, Low, High, 1, 2> {
  XGEN_INLINE static Scale16 scale(const Byte* head, const Byte* scales, int h) {
    return {_mm512_mul_ps(signed_at(scales + h * kBytePanel), halves_at(head)), _mm512_setzero_ps()};
  }
};
template <>
struct PackedFormat<DType::q6_k> : PackedHalfBlocks<DType::q6_k, 4, 2> {
  XGEN_INLINE static void pack(const Byte* p, Byte* halves, Byte* scales) {
    __builtin_memcpy(halves, p + 208, 2);
    __builtin_memcpy(scales, p + 192, 16);
  }
};
template <>
struct PackedFormat<DType::q3_k> : PackedHalfBlocks<DType::q3_k, 2, 1> {
  XGEN_INLINE static void pack(const Byte* p, Byte* halves, Byte* scales) {
    __builtin_memcpy(halves, p + 108, 2);
    Byte bytes[16];
    q3_scale_bytes(p, bytes);
    for (int s = 0; s < 16; ++s) scales[s] = static_cast<Byte>(static_cast<int>(bytes[s]) - 32);
  }
};

// d, dmin; a scale and a minimum of four bits each for each half of a block.
template <>
struct PackedFormat<DType::q2_k> : PackedFormatOf<DType::q2_k, 2, 0, 2, 2> {
  XGEN_INLINE static void pack(const Byte* p, Byte* halves, Byte* scales) {
    __builtin_memcpy(halves, p + 80, 4);
    __builtin_memcpy(scales, p, 16);
  }
  XGEN_INLINE static Scale16 scale(const Byte* head, const Byte* scales, int h) {
    const __m512i both = _mm512_cvtepu8_epi32(load_bytes16(scales + h * kBytePanel));
    const __m512 least = _mm512_sub_ps(_mm512_setzero_ps(), halves_at(head + kBytePanel * 2));
    return {_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_and_si512(both, _mm512_set1_epi32(15))), halves_at(head)),
            _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(both, 4)), least)};
  }
};

// Group of four number Four of a block, sixteen outputs, as unsigned bytes.
template <class P, int Four>
XGEN_INLINE __m512i packed_four(const Byte* planes) {
  if constexpr (P::kLow == 8) {
    return load_line(planes + Four * kBytePanel * 4);
  } else {
    constexpr int kShare = 8 / P::kLow;  // groups that share a byte
    constexpr int kLowShift = Four / (8 / kShare) * P::kLow;
    const __m512i low = load_line(planes + Four % (8 / kShare) * kBytePanel * 4);
    __m512i v = _mm512_and_si512(_mm512_srli_epi16(low, kLowShift), _mm512_set1_epi8((1 << P::kLow) - 1));
    if constexpr (P::kHigh > 0) {
      constexpr int kHighShift = Four / P::kHigh * P::kHigh;
      const __m512i high = load_line(planes + (P::kLow + Four % P::kHigh) * kBytePanel * 4);
      const __m512i there = kHighShift > P::kLow ? _mm512_srli_epi16(high, kHighShift - P::kLow)
                                                 : _mm512_slli_epi16(high, P::kLow - kHighShift);
      const __m512i mask = _mm512_set1_epi8(static_cast<char>(((1 << P::kHigh) - 1) << P::kLow));
      v = _mm512_ternarylogic_epi64(v, there, mask, 0xf8);  // v | (there & mask)
    }
    return v;
  }
}

// Weight rows [n0, n1) as panels; n0 begins one.
template <class P>
void pack_rows32(const Rows& w, i64 n0, i64 n1, Byte* out) {
  using F = typename P::Bytes;
  alignas(64) std::uint8_t bytes[256 * kBytePanel];
  alignas(32) float unused[2][kBytePanel * 16];
  for (i64 n = n0; n < n1; n += kBytePanel) {
    Byte* to = out + n / kBytePanel * P::panel_bytes(w.k);
    for (i64 k0 = 0; k0 < w.k; k0 += 32 * F::kParts, to += P::kUnitBytes) {
      byte_panel<F, false>(w, n, n1, k0, 32 * F::kParts, bytes, unused[0], unused[1]);
      for (i64 r = 0; r < kBytePanel; ++r) {
        Byte halves[4];
        Byte scales[16];
        P::pack(w.row(min_of(n + r, n1 - 1)) + k0 / (32 * F::kParts) * F::kBytes, halves, scales);
        for (int h = 0; h < P::kHalves; ++h) __builtin_memcpy(to + (h * kBytePanel + r) * 2, halves + h * 2, 2);
        for (int s = 0; s < F::kParts; ++s) {
          for (int i = 0; i < P::kScales; ++i)
            to[P::kHead + s * P::kBlockBytes + i * kBytePanel + r] = scales[s * P::kScales + i];
        }
      }
      for (int s = 0; s < F::kParts; ++s) {
        Byte* const planes = to + P::kHead + s * P::kBlockBytes + P::kScales * kBytePanel;
        const std::uint8_t* const block = bytes + s * 32 * kBytePanel;
        const auto fold = [&](int bits, int shift, Byte* plane) {  // of every element
          const int share = 8 / bits;
          for (int f = 0; f < 8 / share; ++f) {
            for (i64 i = 0; i < kBytePanel * 4; ++i) {
              unsigned sum = 0;
              for (int j = 0; j < share; ++j)
                sum |= (block[(f + j * (8 / share)) * kBytePanel * 4 + i] >> shift & ((1u << bits) - 1)) << (j * bits);
              plane[f * kBytePanel * 4 + i] = static_cast<Byte>(sum);
            }
          }
        };
        if constexpr (P::kLow == 8)
          __builtin_memcpy(planes, block, 32 * kBytePanel);
        else
          fold(P::kLow, 0, planes);
        if constexpr (P::kHigh > 0) fold(P::kHigh, P::kLow, planes + P::kLow * kBytePanel * 4);
      }
    }
  }
}

// What byte_panel() gives, of packed weights.
template <class P, bool Signed>
XGEN_INLINE void unpack_panel(const Byte* panel, i64 k0, i64 depth, std::uint8_t* bytes, float* scales,
                              float* minimums) {
  using F = typename P::Bytes;
  const Byte* unit = panel + k0 / (32 * F::kParts) * P::kUnitBytes;
  for (i64 k = 0; k < depth; k += 32 * F::kParts, unit += P::kUnitBytes) {
    for (int s = 0; s < F::kParts; ++s) {
      const Byte* const block = unit + P::kHead + s * P::kBlockBytes;
      for (int p = 0; p < 2; ++p) {
        for (int h = 0; h < 32 / F::kBlock; ++h) {
          const Scale16 values = P::scale(unit + p * 32, block + p * 16, h);
          _mm512_storeu_ps(scales + p * 16, values.scale);
          if constexpr (F::kMin) _mm512_storeu_ps(minimums + p * 16, values.minimum);
          scales += kBytePanel;
          minimums += kBytePanel;
        }
        scales -= kBytePanel * (32 / F::kBlock);
        minimums -= kBytePanel * (32 / F::kBlock);
        unroll<8>([&]<int Four>() {
          __m512i v = packed_four<P, Four>(block + P::kScales * kBytePanel + p * 64);
          if constexpr (Signed) v = _mm512_sub_epi8(v, _mm512_set1_epi8(static_cast<char>(F::kOffset)));
          _mm512_storeu_si512(bytes + Four * kBytePanel * 4 + p * 64, v);
        });
      }
      scales += kBytePanel * (32 / F::kBlock);
      minimums += kBytePanel * (32 / F::kBlock);
      bytes += 32 * kBytePanel;
    }
  }
}

// R rows of a group, from row r0 of it on, meet a packed panel: out[r][32].
template <class P, int R>
[[gnu::noinline]] void packed_tile(const Byte* panel, i64 units, const ByteRows& x, i64 r0, float* out) {
  using F = typename P::Bytes;
  constexpr int kHalves = 32 / F::kBlock;
  constexpr int kLess = F::kBlock == 32 ? kFactLess : kFactHalvesLess;
  constexpr int kMore = F::kBlock == 32 ? kFactMore : kFactHalvesMore;
  const std::int8_t* q = x.q + r0 * 32;
  const float* facts = x.facts + r0;
  const Byte* unit = panel;
  __m512 sum[R][2];
  unroll<R>([&]<int r>() { sum[r][0] = sum[r][1] = _mm512_setzero_ps(); });
  for (i64 u = 0; u < units; ++u, unit += P::kUnitBytes) {
    for (int s = 0; s < F::kParts; ++s) {
      const Byte* const block = unit + P::kHead + s * P::kBlockBytes;
      for (i64 line = 0; line < P::kBlockBytes; line += 64) __builtin_prefetch(block + 4096 + line, 0, 3);
      unroll<kHalves>([&]<int h>() {
        __m512i part[R][2];
        unroll<R>([&]<int r>() {
          const float* const less = facts + (kLess + h) * x.plane;
          part[r][0] = part[r][1] = F::kMin ? _mm512_setzero_si512()
                                            : _mm512_slli_epi32(_mm512_castps_si512(_mm512_set1_ps(less[r])),
                                                                __builtin_ctz(F::kOffset | 1 << 30));
        });
        unroll<F::kBlock / 4>([&]<int four>() {
          constexpr int kFour = h * (F::kBlock / 4) + four;
          __m512i w[2];
          for (int p = 0; p < 2; ++p) w[p] = packed_four<P, kFour>(block + P::kScales * kBytePanel + p * 64);
          unroll<R>([&]<int r>() {
            const __m512i four_of_row = repeat_four(q + r * 32 + kFour * 4);
            for (int p = 0; p < 2; ++p) {
              part[r][p] = _mm512_dpbusd_epi32(part[r][p], w[p], four_of_row);
              __asm__("" : "+v"(part[r][p]));
            }
          });
        });
        for (int p = 0; p < 2; ++p) {
          const Scale16 scales = P::scale(unit + p * 32, block + p * 16, h);
          unroll<R>([&]<int r>() {
            const __m512 both = _mm512_mul_ps(scales.scale, _mm512_set1_ps(facts[kFactScale * x.plane + r]));
            sum[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[r][p]), both, sum[r][p]);
            if constexpr (F::kMin) {
              const float* const more = facts + (kMore + h) * x.plane;
              sum[r][p] = _mm512_fmadd_ps(scales.minimum, _mm512_set1_ps(more[r]), sum[r][p]);
            }
          });
        }
      });
      q += x.rows * 32;
      facts += x.rows;
    }
  }
  unroll<R>([&]<int r>() {
    for (int p = 0; p < 2; ++p) _mm512_storeu_ps(out + r * kBytePanel + p * 16, sum[r][p]);
  });
}

constexpr i64 kPackedRows = 8;  // that read packed weights as they are

// m0 begins a group.
template <class P>
void packed_few(const Matmul& op, const Rows& w, i64 m0, i64 m1, i64 n0, i64 n1) {
  const i64 units = w.k / (32 * P::Bytes::kParts);
  alignas(64) float out[kPackedRows * kBytePanel];
  const ByteRows x = byte_rows(op.quantised, op.m, w.k, m0);
  for (i64 n = n0; n < n1; n += kBytePanel) {
    const Byte* const panel = op.packed + n / kBytePanel * P::panel_bytes(w.k);
    const auto meet = [&]<int R>(GroupSize<R>, i64 r) { packed_tile<P, R>(panel, units, x, r, out + r * kBytePanel); };
    i64 r = 0;
    for (; r + 4 <= m1 - m0; r += 4) meet(GroupSize<4>{}, r);
    for_groups(m1 - m0 - r, [&]<int R>(GroupSize<R> size, i64 i) { meet(size, r + i); });
    for (i64 m = m0; m < m1; ++m)
      write_outputs(op, m, n, static_cast<int>(min_of(kBytePanel, n1 - n)), out + (m - m0) * kBytePanel);
  }
}

i64 packed_bytes(DType type, i64 n, i64 k) {
  i64 bytes = 0;
  with_format(type, [&]<DType T>(Format<T>) {
    if constexpr (!Format<T>::plain) bytes = (n + kBytePanel - 1) / kBytePanel * PackedFormat<T>::panel_bytes(k);
  });
  return bytes;
}

void pack(const TensorView& weight, i64 n0, i64 n1, Byte* out) {
  const Rows w = rows_of(weight);
  with_format(weight.dtype, [&]<DType T>(Format<T>) {
    if constexpr (!Format<T>::plain) pack_rows32<PackedFormat<T>>(w, n0, n1, out);
  });
}

}  // namespace
}  // namespace xgen::kernels::cpu
