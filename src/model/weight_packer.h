// WeightPacker: a model's quantised matrices laid out anew as the kernels read them best (KernelTable::pack), piece by
// piece while the model serves already: products give the same bits before and after.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "base/worker_pool.h"
#include "kernels/kernel_table.h"
#include "tensor/tensor.h"

namespace xgen::model {

class WeightPacker {
 public:
  // Of `matrices`, those that the kernels read better packed. They outlive it. Nothing is allocated yet.
  WeightPacker(const kernels::KernelTable& kernels, const std::vector<TensorView>& matrices);
  ~WeightPacker() { clear(); }
  WeightPacker(const WeightPacker&) = delete;
  WeightPacker& operator=(const WeightPacker&) = delete;

  // By how much the packed matrices are larger than those that they take the place of.
  std::uint64_t more_bytes() const { return bytes_ > replaced_ ? bytes_ - replaced_ : 0; }
  // Packs a few megabytes more, milliseconds of work, and lets the pages of what is packed go. False: that was all, or
  // there is no memory for it.
  bool advance(WorkerPool& pool);
  // The packed form of a matrix, or null where it has none (yet).
  const std::byte* find(const TensorView& weight) const {
    const auto found = ready_.find(weight.data);
    return found == ready_.end() ? nullptr : found->second;
  }
  // Frees all; advance() begins anew.
  void clear();

 private:
  struct Matrix {
    TensorView view;
    std::size_t offset = 0;  // in the arena
  };

  const kernels::KernelTable& kernels_;
  std::vector<Matrix> matrices_;
  std::size_t bytes_ = 0;
  std::size_t replaced_ = 0;
  std::byte* arena_ = nullptr;
  std::byte* base_ = nullptr;  // in the arena, at a huge page's border
  std::size_t next_ = 0;       // matrix
  std::int64_t next_row_ = 0;  // of it
  std::unordered_map<const std::byte*, const std::byte*> ready_;
};

}  // namespace xgen::model
