// Products of bytes with AVX-512's VNNI: eight rows by 32 outputs. Include it once, after avx2_vectors.h.
#pragma once

#include "kernels/cpu/generic.h"

namespace xgen::kernels::cpu {
namespace {

// sum + the products of unsigned with signed bytes, four to a lane
struct Bytes32;
XGEN_AVX I32 dot(I32 sum, Bytes32 u, Bytes32 q);

}  // namespace
}  // namespace xgen::kernels::cpu

#include "kernels/cpu/byte_products.h"

namespace xgen::kernels::cpu {
namespace {

XGEN_AVX I32 dot(I32 sum, Bytes32 u, Bytes32 q) { return {_mm256_dpbusd_epi32(sum.v, u.v, q.v)}; }

XGEN_AVX __m512i repeat_four(const std::int8_t* p) {
  std::int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}

}  // namespace
}  // namespace xgen::kernels::cpu

#include "kernels/cpu/packed_weights.h"

namespace xgen::kernels::cpu {
namespace {

// Not inlined: it needs every vector register. Two vectors of outputs share a broadcast of the activations, which is a
// load: one vector would wait for loads rather than for products.
template <int R, int Block, bool Min, int Offset>
[[gnu::noinline]] void vnni_tile(const ByteTile& t) {
  constexpr int kHalves = 32 / Block;
  constexpr int P = kBytePanel / 16;
  constexpr int kLess = Block == 32 ? kFactLess : kFactHalvesLess;
  constexpr int kMore = Block == 32 ? kFactMore : kFactHalvesMore;
  const std::uint8_t* panel = t.panel;
  const float* scales = t.scales;
  const float* minimums = t.minimums;
  const std::int8_t* q = t.q;
  const float* facts = t.facts;
  for (i64 b = 0; b < t.blocks; ++b) {
    for (int h = 0; h < kHalves; ++h) {
      const float* const less = facts + (kLess + h) * t.plane;
      const float* const more = facts + (kMore + h) * t.plane;
      __m512i part[R][P];
      for (int r = 0; r < R; ++r) {
        const __m512i first =
            Min ? _mm512_setzero_si512()
                : _mm512_slli_epi32(_mm512_castps_si512(_mm512_set1_ps(less[r])), __builtin_ctz(Offset | 1 << 30));
        for (int p = 0; p < P; ++p) part[r][p] = first;
      }
#pragma GCC unroll 8
      for (int four = 0; four < Block / 4; ++four) {
        __m512i w[P];
        for (int p = 0; p < P; ++p) w[p] = _mm512_loadu_si512(panel + p * 64);
        panel += kBytePanel * 4;
        for (int r = 0; r < R; ++r) {
          const __m512i x = repeat_four(q + r * 32 + h * Block + four * 4);
          for (int p = 0; p < P; ++p) {
            part[r][p] = _mm512_dpbusd_epi32(part[r][p], w[p], x);
            __asm__("" : "+v"(part[r][p]));  // here: GCC would make all broadcasts first, and run out of registers
          }
        }
      }
      for (int p = 0; p < P; ++p) {
        const __m512 scale = _mm512_loadu_ps(scales + p * 16);
        const __m512 minimum = Min ? _mm512_loadu_ps(minimums + p * 16) : _mm512_setzero_ps();
        for (int r = 0; r < R; ++r) {
          float* const to = t.sums + r * kBytePanel + p * 16;
          const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(facts[kFactScale * t.plane + r]));
          __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[r][p]), both, _mm512_loadu_ps(to));
          if constexpr (Min) sum = _mm512_fmadd_ps(minimum, _mm512_set1_ps(more[r]), sum);
          _mm512_storeu_ps(to, sum);
        }
      }
      scales += kBytePanel;
      minimums += kBytePanel;
    }
    q += t.group * 32;
    facts += t.group;
  }
}

struct VnniTiles {
  static constexpr bool kSigned = false;
  template <int Block>
  struct Setup {};
  template <class F>
  static void meet(const ByteTile& t, i64 rows) {
    const auto some = [&]<int R>(GroupSize<R>, i64 r) {
      ByteTile from = t;
      from.q += r * 32;
      from.facts += r;
      from.sums += r * kBytePanel;
      vnni_tile<R, F::kBlock, F::kMin, F::kOffset>(from);
    };
    i64 r = 0;
    for (; r + 8 <= rows; r += 8) some(GroupSize<8>{}, r);
    for (; r + 4 <= rows; r += 4) some(GroupSize<4>{}, r);
    for_groups(rows - r, [&]<int R>(GroupSize<R> size, i64 i) { some(size, r + i); });
  }
};

// m0 begins a group. Tiles::meet<F>(tile, rows) is the instruction set's; Tiles::kSigned says which panels it takes,
// and Tiles::Setup<Block> lives while it is called.
template <class P, class Tiles>
void byte_wide(const Matmul& op, const Rows& w, i64 m0, i64 m1, i64 n0, i64 n1, Byte* scratch) {
  using F = typename P::Bytes;
  auto* sums = reinterpret_cast<float*>(scratch);
  auto* panel = reinterpret_cast<std::uint8_t*>(sums + kByteSums);
  auto* scales = reinterpret_cast<float*>(panel + kBytePanel * kByteDepth);
  float* const minimums = scales + kBytePanel * (kByteDepth / 16);
  [[maybe_unused]] const typename Tiles::template Setup<F::kBlock> setup;
  for (i64 n = n0; n < n1; n += kBytePanel) {
    for (i64 i = 0; i < (m1 - m0) * kBytePanel; i += kLanes) store(sums + i, zero());
    for (i64 k0 = 0; k0 < w.k; k0 += kByteDepth) {
      const i64 depth = min_of(kByteDepth, w.k - k0);
      if (op.packed != nullptr)
        unpack_panel<P, Tiles::kSigned>(op.packed + n / kBytePanel * P::panel_bytes(w.k), k0, depth, panel, scales,
                                        minimums);
      else
        byte_panel<F, Tiles::kSigned>(w, n, n1, k0, depth, panel, scales, minimums);
      for (i64 m = m0; m < m1; m += kByteGroup) {
        const ByteRows x = byte_rows(op.quantised, op.m, w.k, m);
        const std::int8_t* const q = x.q + k0 * x.rows;
        Tiles::template meet<F>({panel, scales, minimums, q, x.facts + k0 / 32 * x.rows, x.plane, x.rows, depth / 32,
                                 sums + (m - m0) * kBytePanel, q + kByteGroup * w.k},
                                min_of(x.rows, m1 - m));
      }
    }
    for (i64 m = m0; m < m1; ++m)
      write_outputs(op, m, n, static_cast<int>(min_of(kBytePanel, n1 - n)), sums + (m - m0) * kBytePanel);
  }
}

int byte_activation_bits(DType type) {
  int bits = 0;
  with_format(type, [&]<class F>(F) { bits = F::plain ? 0 : 8; });
  return bits;
}

// Tiles of few rows and of more.
template <class FewTiles, class Tiles, i64 FewRows>
void byte_matmul(const Matmul& op, i64 m0, i64 m1, i64 n0, i64 n1, Byte* scratch) {
  const Rows w = rows_of(op.weight);
  with_format(op.weight.dtype, [&]<DType T>(Format<T>) {
    if constexpr (Format<T>::plain) {
      matmul(op, m0, m1, n0, n1, scratch);
    } else {
      using F = ByteFormat<T>;
      using P = PackedFormat<T>;
      if (op.packed != nullptr && op.m <= kPackedRows) return packed_few<P>(op, w, m0, m1, n0, n1);
      const auto few = [&]<int M>() { byte_skinny<F, M>(op, w, n0, n1); };
      if (op.packed == nullptr && for_few_rows<true>(op.m, few)) return;
      if (op.m <= FewRows)
        byte_wide<P, FewTiles>(op, w, m0, m1, n0, n1, scratch);
      else
        byte_wide<P, Tiles>(op, w, m0, m1, n0, n1, scratch);
    }
  });
}

}  // namespace
}  // namespace xgen::kernels::cpu
