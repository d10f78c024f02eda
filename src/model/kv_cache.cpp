#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <string>
#include <vector>

#include "base/units.h"
#include "model/decoder.h"

namespace xgen::model {
namespace {

// Large planes profit from huge pages; small ones would only waste the rest of the first page of every layer.
constexpr std::size_t kHugePagePlane = std::size_t{32} << 20;

// Of the whole pages within a range.
void advise(std::byte* begin, std::size_t bytes, int advice) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const std::uintptr_t first = (reinterpret_cast<std::uintptr_t>(begin) + page - 1) / page * page;
  const std::uintptr_t last = (reinterpret_cast<std::uintptr_t>(begin) + bytes) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, advice);
}

}  // namespace

std::uint64_t KvCache::bytes_per_block(const ModelInfo& info, DType dtype, int block_size) {
  return std::uint64_t{2} * static_cast<std::uint64_t>(info.num_layers) *
         static_cast<std::uint64_t>(info.num_kv_heads) * static_cast<std::uint64_t>(block_size) *
         static_cast<std::uint64_t>(info.head_dim) * dtype_info(dtype).block_bytes;
}

Result<std::unique_ptr<KvCache>> KvCache::create(const ModelInfo& info, DType dtype, int block_size, int num_blocks,
                                                 int more_blocks) {
  const auto refuse = [](std::string message) {
    return make_error(ErrorCode::invalid_argument, "KV cache: " + std::move(message));
  };
  if (dtype != DType::f32 && dtype != DType::f16 && dtype != DType::bf16) {
    return refuse("type must be F32, F16 or BF16, is " + std::string(dtype_info(dtype).name));
  }
  if (block_size < 1 || block_size > 64 || !std::has_single_bit(static_cast<unsigned>(block_size))) {
    return refuse("block_size must be a power of two up to 64, is " + std::to_string(block_size));
  }
  if (info.num_layers < 1 || info.num_kv_heads < 1 || info.head_dim < 1) return refuse("the model has no shape");
  if (num_blocks < 1) return refuse("num_blocks must be at least 1, is " + std::to_string(num_blocks));

  const std::uint64_t block_bytes = bytes_per_block(info, dtype, block_size);
  std::uint64_t bytes = 0;
  const bool overflow =
      __builtin_mul_overflow(
          block_bytes, static_cast<std::uint64_t>(num_blocks) + static_cast<std::uint64_t>(more_blocks), &bytes) ||
      bytes > static_cast<std::uint64_t>(PTRDIFF_MAX);
  // Not MAP_NORESERVE, but for blocks that are borrowed one by one: where the kernel accounts for memory strictly, the
  // whole cache is charged for now or refused now.
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (more_blocks > 0 ? MAP_NORESERVE : 0);
  void* base = overflow ? MAP_FAILED : ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (base == MAP_FAILED) {
    return make_error(ErrorCode::unavailable, "KV cache: cannot reserve " + std::to_string(num_blocks) + " blocks of " +
                                                  format_bytes(block_bytes));
  }
  std::unique_ptr<KvCache> cache(new KvCache);
  cache->dtype_ = dtype;
  cache->block_size_ = block_size;
  cache->num_blocks_ = num_blocks + more_blocks;
  cache->base_ = static_cast<std::byte*>(base);
  cache->bytes_ = bytes;
  cache->plane_bytes_ = bytes / (2 * static_cast<std::size_t>(info.num_layers));
  // A hint; may be refused. Not for blocks that come and go: a huge page holds many of them.
  const std::size_t own_bytes =
      cache->plane_bytes_ / static_cast<std::size_t>(cache->num_blocks_) * static_cast<std::size_t>(num_blocks);
  for (int layer = 0; own_bytes >= kHugePagePlane && layer < info.num_layers; ++layer) {
    for (std::byte* plane : {cache->keys(layer), cache->values(layer)}) advise(plane, own_bytes, MADV_HUGEPAGE);
  }
  return cache;
}

void KvCache::discard(std::span<const std::int32_t> blocks) {
  const std::size_t block_bytes = plane_bytes_ / static_cast<std::size_t>(num_blocks_);
  std::vector<std::int32_t> sorted(blocks.begin(), blocks.end());
  std::sort(sorted.begin(), sorted.end());
  for (std::size_t i = 0; i < sorted.size();) {
    std::size_t end = i + 1;
    while (end < sorted.size() && sorted[end] == sorted[end - 1] + 1) ++end;
    for (std::byte* plane = base_; plane < base_ + bytes_; plane += plane_bytes_) {
      advise(plane + static_cast<std::size_t>(sorted[i]) * block_bytes, (end - i) * block_bytes, MADV_DONTNEED);
    }
    i = end;
  }
}

KvCache::~KvCache() {
  if (base_) ::munmap(base_, bytes_);
}

std::byte* KvCache::keys(int layer) const { return base_ + 2 * static_cast<std::size_t>(layer) * plane_bytes_; }
std::byte* KvCache::values(int layer) const { return keys(layer) + plane_bytes_; }

}  // namespace xgen::model
