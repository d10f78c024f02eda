// The ops that are split over threads: matmul, attention, embedding. Everything else is cheap enough to be called from
// the table directly (or split by rows with WorkerPool::run).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/worker_pool.h"
#include "kernels/kernel_table.h"

namespace xgen::kernels {

// Scratch memory of the split ops, one part per thread, and the activations as the products take them. Make one per
// engine loop and reuse it; not shareable between concurrent calls.
class Workspace {
 public:
  // max_head_dim bounds the attention calls that will use it. `activations`: bytes that quantised_bytes() gives for the
  // different activations of a section, all together; more is had when it is first needed.
  Workspace(int threads, int max_head_dim, std::size_t activations = 0);

  int threads() const { return threads_; }
  std::byte* part(int thread) { return parts_.begin + static_cast<std::size_t>(thread) * part_bytes_; }
  // What a workspace of these sizes takes.
  static std::size_t bytes(int threads, int max_head_dim, std::size_t activations);

  // The products with their activations quantised where the table wants that.
  std::span<const Matmul> prepare(const KernelTable& table, WorkerPool& pool, std::span<const Matmul> ops);

 private:
  // Not initialised, and aligned to cache lines.
  struct Memory {
    std::unique_ptr<std::byte[]> storage;
    std::byte* begin = nullptr;
    std::size_t size = 0;
    void allocate(std::size_t bytes);
  };

  int threads_;
  std::size_t part_bytes_;
  std::vector<Matmul> prepared_;
  Memory parts_;
  Memory activations_;
};

// Runs the products as one parallel section (one barrier): q, k and v together, or gate and up. They must not depend
// on each other. Workspace::threads() >= pool.size().
void matmul(const KernelTable& table, WorkerPool& pool, Workspace& workspace, std::span<const Matmul> ops);
inline void matmul(const KernelTable& table, WorkerPool& pool, Workspace& workspace, const Matmul& op) {
  matmul(table, pool, workspace, std::span<const Matmul>(&op, 1));
}

// out[r] = scale * weight[ids[r]]. Precondition: 0 <= ids[r] < weight.rows().
void embed(const KernelTable& table, WorkerPool& pool, const TensorView& weight, std::span<const std::int32_t> ids,
           float scale, float* out, std::int64_t out_stride);

void attention(const KernelTable& table, WorkerPool& pool, Workspace& workspace, const Attention& op);

// Splits rows [0, m) into chunks of at least `grain` and calls fn(m0, m1) on the pool.
template <class F>
void parallel_rows(WorkerPool& pool, std::int64_t m, std::int64_t grain, F&& fn) {
  const std::int64_t parts = m <= grain ? 1 : (m + grain - 1) / grain;
  if (parts == 1 || pool.size() == 1) {
    if (m > 0) fn(std::int64_t{0}, m);
    return;
  }
  pool.run(static_cast<int>(parts), [&](int part) {
    const std::int64_t begin = part * grain;
    fn(begin, begin + grain < m ? begin + grain : m);
  });
}

}  // namespace xgen::kernels
