// AVX-512 with VNNI (Ice Lake, Zen 4 and later): products of quantised weights in bytes, sixteen outputs a vector; all
// else as with AVX2, with twice the registers.
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/cpu/tables.h"

#if defined(__AVX512VNNI__)
#include "kernels/cpu/avx2_vectors.h"
#include "kernels/cpu/vnni_products.h"

namespace xgen::kernels::cpu {

const KernelTable kAvx512 XGEN_KERNEL_TABLE("avx512", kCpuAvx2 | kCpuFma | kCpuF16c | kCpuAvx512Vnni,
                                            byte_activation_bits, quantise_byte_rows, packed_bytes, pack,
                                            (byte_matmul<VnniTiles, VnniTiles, 0>));

}  // namespace xgen::kernels::cpu
#endif
