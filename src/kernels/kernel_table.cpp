#include "kernels/kernel_table.h"

#include <algorithm>
#include <string>

#include "kernels/cpu/tables.h"

namespace xgen::kernels {

namespace {

// Best first; what stands after the first that runs is taken only where it is named. The 8 bits of avx512 are still to
// be compared with other engines' before they are anybody's default.
const KernelTable* const kTables[] = {
#if defined(__x86_64__)
    &cpu::kAvx2,
    &cpu::kAvx512,
#endif
    &cpu::kScalar,
};

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
  // No builtin of GCC 12 knows F16C: CPUID leaf 1, ECX bit 29.
  unsigned a = 1;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if ((features & kCpuAvx2) != 0 && (c >> 29 & 1u) != 0) features |= kCpuF16c;
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
