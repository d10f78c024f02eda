#include "model/weight_packer.h"

#include <sys/mman.h>

#include <algorithm>
#include <span>

#include "base/bytes.h"
#include "base/log.h"

namespace xgen::model {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kAtOnce = std::size_t{2} << 20;  // bytes of weights an advance() packs
constexpr std::size_t kPart = std::size_t{128} << 10;  // ... and a thread takes at a time
constexpr std::int64_t kRows = 32;                     // that are packed together
constexpr std::size_t kCacheLine = 64;

std::size_t round_up(std::size_t n, std::size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

WeightPacker::WeightPacker(const kernels::KernelTable& kernels, const std::vector<TensorView>& matrices)
    : kernels_(kernels) {
  for (const TensorView& view : matrices) {
    const auto packed = static_cast<std::size_t>(kernels.packed_bytes(view.dtype, view.rows(), view.cols()));
    if (packed == 0) continue;
    matrices_.push_back({view, bytes_});
    bytes_ += round_up(packed, kCacheLine);
    replaced_ += view.bytes();
  }
}

bool WeightPacker::advance(WorkerPool& pool) {
  if (next_ == matrices_.size()) return false;
  if (arena_ == nullptr) {
    // Address space; pages come when they are written, huge ones where the system has them: one read of all weights
    // touches hundreds of thousands of small ones.
    void* const memory =
        ::mmap(nullptr, bytes_ + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      log::warn("engine",
                "no memory to lay out weights as the kernels read them best: they are read as they are stored",
                {{"bytes", bytes_}});
      next_ = matrices_.size();
      return false;
    }
    arena_ = static_cast<std::byte*>(memory);
    base_ = arena_ + (kHugePage - reinterpret_cast<std::uintptr_t>(arena_) % kHugePage) % kHugePage;
    ::madvise(base_, bytes_, MADV_HUGEPAGE);
  }
  const Matrix& matrix = matrices_[next_];
  const std::int64_t rows = matrix.view.rows();
  const auto rows_of = [&](std::size_t bytes) {
    return std::max<std::int64_t>(1, static_cast<std::int64_t>(bytes / matrix.view.row_bytes()) / kRows) * kRows;
  };
  const std::int64_t end = std::min(rows, next_row_ + rows_of(kAtOnce));
  const std::int64_t grain = rows_of(kPart);
  std::byte* const out = base_ + matrix.offset;
  pool.run(static_cast<int>((end - next_row_ + grain - 1) / grain), [&](int part) {
    const std::int64_t begin = next_row_ + part * grain;
    kernels_.pack(matrix.view, begin, std::min(begin + grain, end), out);
  });
  next_row_ = end;
  if (end < rows) return true;
  ready_.emplace(matrix.view.data, out);
  let_pages_go(std::span(matrix.view.data, matrix.view.bytes()));
  ++next_;
  next_row_ = 0;
  return next_ < matrices_.size();
}

void WeightPacker::clear() {
  ready_.clear();
  if (arena_ != nullptr) ::munmap(arena_, bytes_ + kHugePage);
  arena_ = base_ = nullptr;
  next_ = 0;
  next_row_ = 0;
}

}  // namespace xgen::model
