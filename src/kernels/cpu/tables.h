// The kernel tables of the CPU's instruction sets, and the sizes of the scratch memory they need.
#pragma once

#include <cstddef>

#include "kernels/kernel_table.h"

namespace xgen::kernels::cpu {

extern const KernelTable kScalar;
extern const KernelTable kAvx2;
extern const KernelTable kAvx512;
extern const KernelTable kAmx;

inline constexpr int kMatmulRowsPerTile = 120;     // activation rows that stay packed in L2
inline constexpr int kMatmulOutputsPerTile = 128;  // outputs whose partial sums are kept per pass
inline constexpr int kMatmulPackedFloats = kMatmulRowsPerTile * 512;
inline constexpr int kMatmulMaxDepth = 1024;  // K elements per pass
// Products with quantised activations: rows that meet a panel of interleaved weights, a multiple of 16 (groups of rows)
// and of 6 (rows of a tile).
inline constexpr int kMatmulRows = 528;
inline constexpr int kMatmulIntegerDepth = 512;  // K elements per pass
inline constexpr int kMatmulIntegerPanel = 16;   // outputs whose weights are interleaved
inline constexpr int kAttentionRows = 48;        // query rows (positions x grouped heads) per pass

inline constexpr std::size_t kMatmulScratchBytes =
    sizeof(float) * (static_cast<std::size_t>(kMatmulPackedFloats) + 4 * kMatmulMaxDepth +
                     std::size_t{8} * kMatmulRowsPerTile * kMatmulOutputsPerTile);

// A panel of at most 32 outputs, of 16 bits or with two floats for each 16 weights; and its sums.
inline constexpr std::size_t kMatmulIntegerScratchBytes =
    std::size_t{kMatmulIntegerDepth} * 32 * 3 / 2 + sizeof(float) * (kMatmulRows + 16) * 32;

constexpr std::size_t attention_scratch_bytes(int head_dim) {
  const std::size_t padded = (static_cast<std::size_t>(head_dim) + 7) / 8 * 8;
  return sizeof(float) * ((2 * kAttentionRows + 2 * kAttentionPartition) * padded +
                          kAttentionRows * (kAttentionPartition + 2) + std::size_t{64});
}

}  // namespace xgen::kernels::cpu
