#include "kernels/kernel_table.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "kernels/cpu/tables.h"

namespace xgen::kernels {

namespace {

// Best first.
const KernelTable* const kTables[] = {
#if defined(__x86_64__)
    &cpu::kAmx,
    &cpu::kAvx512,
    &cpu::kAvx2,
#endif
    &cpu::kScalar,
};

#if defined(__x86_64__)
struct Cpuid {
  unsigned a, b, c, d;
};
Cpuid cpuid(unsigned leaf) {
  Cpuid r{leaf, 0, 0, 0};
  __asm__("cpuid" : "+a"(r.a), "=b"(r.b), "+c"(r.c), "=d"(r.d));
  return r;
}

// The tiles' registers are large: Linux lets a process use them that has asked to.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

}  // namespace

std::uint32_t cpu_features() {
  std::uint32_t features = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) features |= kCpuAvx2;  // the operating system's support is part of the answer
  if (__builtin_cpu_supports("fma")) features |= kCpuFma;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx512) features |= kCpuAvx512Vnni;
  // No builtin of GCC 12 knows these: CPUID leaf 1, ECX bit 29; leaf 7, EDX bits 24 (tiles) and 25 (of bytes).
  if ((features & kCpuAvx2) != 0 && (cpuid(1).c >> 29 & 1u) != 0) features |= kCpuF16c;
  if (avx512 && (cpuid(7).d >> 24 & 3u) == 3 && may_use_tiles()) features |= kCpuAmxInt8;
#endif
  return features;
}

std::vector<const KernelTable*> available_kernels() {
  const std::uint32_t features = cpu_features();
  std::vector<const KernelTable*> tables;
  for (const KernelTable* table : kTables) {
    if ((table->required_features & ~features) == 0) tables.push_back(table);
  }
  return tables;
}

Result<const KernelTable*> select_kernels(std::string_view forced) {
  const std::vector<const KernelTable*> tables = available_kernels();
  if (forced.empty()) return tables.front();
  const auto named = [&](const KernelTable* table) { return table->name == forced; };
  if (const auto it = std::find_if(tables.begin(), tables.end(), named); it != tables.end()) return *it;
  const bool known = std::any_of(std::begin(kTables), std::end(kTables), named);
  std::string message = "kernels \"" + std::string(forced) + "\" ";
  message += known ? "need instructions that this CPU lacks" : "are unknown";
  message += "; available:";
  for (const KernelTable* table : tables) message += " " + std::string(table->name);
  return make_error(ErrorCode::invalid_argument, std::move(message));
}

bool is_weight_dtype(DType type) {
  return type == DType::f32 || type == DType::f16 || type == DType::bf16 || is_quantised(type);
}

int attention_tile_positions(int heads, int kv_heads) { return std::max(1, cpu::kAttentionRows / (heads / kv_heads)); }

}  // namespace xgen::kernels
