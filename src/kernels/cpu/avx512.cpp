// AVX-512 with VNNI (Ice Lake, Zen 4 and later): products of quantised weights in bytes, sixteen outputs a vector; all
// else as with AVX2, with twice the registers.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cpu/tables.h"

#if defined(__AVX512VNNI__)
#include "kernels/cpu/avx2_vectors.h"
#include "kernels/cpu/generic.h"

namespace xgen::kernels::cpu {
namespace {

struct ByteTile;
template <int R, int Block, bool Min>
void byte_tile(const ByteTile& t);

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

// Not inlined: it needs every vector register.
template <int R, int Block, bool Min>
[[gnu::noinline]] void byte_tile(const ByteTile& t) {
  constexpr int kHalves = 32 / Block;
  const std::uint8_t* panel = t.panel;
  const float* scales = t.scales;
  const float* minimums = t.minimums;
  const std::int8_t* q = t.q;
  const float* d = t.d;
  const std::int32_t* less = t.less;
  const float* more = t.more;
  __m512 sum[R];
  for (int r = 0; r < R; ++r) sum[r] = _mm512_loadu_ps(t.sums + r * kBytePanel);
  for (i64 b = 0; b < t.blocks; ++b) {
    for (int h = 0; h < kHalves; ++h) {
      __m512i part[R];
      for (int r = 0; r < R; ++r)
        part[r] = Min ? _mm512_setzero_si512() : _mm512_set1_epi32(less[r * (kByteDepth / Block)]);
#pragma GCC unroll 8
      for (int four = 0; four < Block / 4; ++four) {
        const __m512i w = _mm512_loadu_si512(panel);
        panel += 64;
        for (int r = 0; r < R; ++r)
          part[r] = _mm512_dpbusd_epi32(part[r], w, repeat_four(q + r * kByteDepth + h * Block + four * 4));
      }
      const __m512 scale = _mm512_loadu_ps(scales);
      const __m512 minimum = Min ? _mm512_loadu_ps(minimums) : _mm512_setzero_ps();
      for (int r = 0; r < R; ++r) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(d[r * kByteBlocks]));
        sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[r]), both, sum[r]);
        if constexpr (Min) sum[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(more[r * (kByteDepth / Block)]), sum[r]);
      }
      scales += kBytePanel;
      minimums += kBytePanel;
      ++less;
      ++more;
    }
    q += 32;
    ++d;
  }
  for (int r = 0; r < R; ++r) _mm512_storeu_ps(t.sums + r * kBytePanel, sum[r]);
}

}  // namespace

const KernelTable kAvx512 XGEN_KERNEL_TABLE("avx512", kCpuAvx2 | kCpuFma | kCpuF16c | kCpuAvx512Vnni,
                                            byte_activation_bits, quantise_byte_rows, byte_matmul);

}  // namespace xgen::kernels::cpu
#endif
