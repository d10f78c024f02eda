// AVX2 with FMA and F16C (x86-64-v3).
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cpu/tables.h"

#if defined(__AVX2__)
#include "kernels/cpu/avx2_vectors.h"
#include "kernels/cpu/generic.h"

namespace xgen::kernels::cpu {

const KernelTable kAvx2 XGEN_KERNEL_TABLE("avx2", kCpuAvx2 | kCpuFma | kCpuF16c, activation_bits, quantise_rows,
                                          not_packed, nullptr, matmul);

}  // namespace xgen::kernels::cpu
#endif
