// AMX (Sapphire Rapids and later): the products of many rows with quantised weights, in tiles of 16 rows by 16 outputs;
// all else as avx512.cpp's, bit for bit.
//
// A block's sum of products is one instruction for 256 outputs, but its scales are still vectors' work: a tile is
// stored, read back, converted and added to F32 sums, which takes about as long as the tile did. So one block's tile is
// computed while the one before it is scaled. Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2,
// TDPBSSD.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cpu/tables.h"

#if defined(__AVX512VNNI__)
#include "kernels/cpu/avx2_vectors.h"
#include "kernels/cpu/vnni_products.h"

namespace xgen::kernels::cpu {
namespace {

// Tile registers. GCC's own functions do not tell it that they read memory.
template <int T>
XGEN_AVX void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
}
template <int T>
XGEN_AVX void tile_load(const void* p, std::int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T>
XGEN_AVX void tile_store(void* p, std::int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(T) : "memory");
}
// sums += the products of rows of signed bytes with columns of signed bytes
template <int Sums, int Rows, int Columns>
XGEN_AVX void tile_dot() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Rows), "i"(Columns));
}

// Tiles 0 and 1: sums [16 rows][16 outputs]; 2 and 3: q [16 rows][Block]; 4 and 5: weights [Block / 4][16 outputs][4].
template <int Block>
struct AmxSetup {
  AmxSetup() {
    alignas(64) std::uint8_t config[64] = {1};  // palette; then, from 16, bytes a row (16 bits each); from 48, rows
    const auto set = [&](int tile, int rows, int row_bytes) {
      config[16 + 2 * tile] = static_cast<std::uint8_t>(row_bytes);
      config[48 + tile] = static_cast<std::uint8_t>(rows);
    };
    for (int i = 0; i < 2; ++i) {
      set(i, 16, 64);
      set(2 + i, 16, Block);
      set(4 + i, Block / 4, 64);
    }
    __asm__ volatile("ldtilecfg (%0)" : : "r"(config) : "memory");
  }
  ~AmxSetup() { __asm__ volatile("tilerelease"); }  // or every switch between threads would save the tiles
  AmxSetup(const AmxSetup&) = delete;
  AmxSetup& operator=(const AmxSetup&) = delete;
};

// Sixteen rows are multiplied and R of them scaled. Those past the last row are read as well: they are of the next
// blocks, or past the activations, and nobody reads their sums.
template <int R, int Block, bool Min>
[[gnu::noinline]] void amx_tile(const ByteTile& t) {
  constexpr int kHalves = 32 / Block;
  constexpr int kMore = Block == 32 ? kFactMore : kFactHalvesMore;
  constexpr i64 kColumn = Block / 4 * kBytePanel * 4;  // bytes of a block's weights
  const i64 blocks = t.blocks * kHalves;
  alignas(64) std::int32_t products[2][16 * 16];
  for (int column = 0; column < kBytePanel / 16; ++column) {
    const std::uint8_t* const panel = t.panel + column * 64;
    __m512 sum[R];
    unroll<R>([&]<int r>()
                  __attribute__((always_inline)) { sum[r] = _mm512_loadu_ps(t.sums + r * kBytePanel + column * 16); });
    const auto multiply = [&]<int I>(std::integral_constant<int, I>, i64 b) __attribute__((always_inline)) {
      tile_zero<I>();
      tile_load<2 + I>(t.q + b / kHalves * t.group * 32 + b % kHalves * Block, 32);
      tile_load<4 + I>(panel + b * kColumn, kBytePanel * 4);
      tile_dot<I, 2 + I, 4 + I>();
    };
    const auto scale = [&](int buffer, i64 b) __attribute__((always_inline)) {
      if (column > 0) {
        for (int line = 0; line < Block / 4; ++line) __builtin_prefetch(t.next + b * 16 * Block + line * 64, 0, 3);
      }
      const float* const facts = t.facts + b / kHalves * t.group;
      const float* const more = facts + (kMore + b % kHalves) * t.plane;
      const __m512 scales = _mm512_loadu_ps(t.scales + b * kBytePanel + column * 16);
      const __m512 minimums = Min ? _mm512_loadu_ps(t.minimums + b * kBytePanel + column * 16) : _mm512_setzero_ps();
      unroll<R>([&]<int r>() __attribute__((always_inline)) {
        const __m512 both = _mm512_mul_ps(scales, _mm512_set1_ps(facts[kFactScale * t.plane + r]));
        sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(products[buffer] + r * 16)), both, sum[r]);
        if constexpr (Min) sum[r] = _mm512_fmadd_ps(minimums, _mm512_set1_ps(more[r]), sum[r]);
      });
    };
    constexpr std::integral_constant<int, 0> first;
    constexpr std::integral_constant<int, 1> second;
    multiply(first, 0);
    tile_store<0>(products[0], 64);
    i64 b = 1;
    for (; b + 1 < blocks; b += 2) {
      multiply(second, b);
      scale(0, b - 1);
      tile_store<1>(products[1], 64);
      multiply(first, b + 1);
      scale(1, b);
      tile_store<0>(products[0], 64);
    }
    if (b < blocks) {
      multiply(second, b);
      tile_store<1>(products[1], 64);
      scale(0, b - 1);
      scale(1, b);
    } else {
      scale(0, b - 1);
    }
    unroll<R>([&]<int r>()
                  __attribute__((always_inline)) { _mm512_storeu_ps(t.sums + r * kBytePanel + column * 16, sum[r]); });
  }
}

struct AmxTiles {
  static constexpr bool kSigned = true;
  template <int Block>
  using Setup = AmxSetup<Block>;
  template <class F>
  static void meet(const ByteTile& t, i64 rows) {
    if (rows > 12) return amx_tile<16, F::kBlock, F::kMin>(t);
    if (rows > 8) return amx_tile<12, F::kBlock, F::kMin>(t);
    if (rows > 4) return amx_tile<8, F::kBlock, F::kMin>(t);
    amx_tile<4, F::kBlock, F::kMin>(t);
  }
};

constexpr i64 kTooFewRows = 8;  // for a tile of 16 to be faster than vectors

}  // namespace

const KernelTable kAmx XGEN_KERNEL_TABLE("amx", kCpuAvx2 | kCpuFma | kCpuF16c | kCpuAvx512Vnni | kCpuAmxInt8,
                                         byte_activation_bits, quantise_byte_rows, packed_bytes, pack,
                                         (byte_matmul<VnniTiles, AmxTiles, kTooFewRows>));

}  // namespace xgen::kernels::cpu
#endif
