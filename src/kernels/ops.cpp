#include "kernels/ops.h"

#include <algorithm>
#include <atomic>

#include "kernels/cpu/tables.h"

namespace xgen::kernels {

namespace {

using i64 = std::int64_t;

constexpr i64 kSkinnyRows = 4;  // up to here a product streams the weights once, as a matrix-vector product does

i64 round_up(i64 n, i64 multiple) { return (n + multiple - 1) / multiple * multiple; }
i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

// How a product is cut into independent items: blocks of rows times blocks of outputs.
struct Tiling {
  i64 m_tile = 0;
  i64 n_tile = 0;
  i64 m_tiles = 0;
  i64 items = 0;
};

Tiling tile(const KernelTable& table, const Matmul& op, int threads) {
  const i64 n = op.weight.rows();
  Tiling t;
  if (op.m <= 0 || n <= 0) return t;
  // Enough items that a thread that is held up does not hold up the others for long.
  const i64 wanted = i64{4} * threads;
  if (op.m <= kSkinnyRows) {
    constexpr i64 kBytes = 256 << 10;
    const i64 row_bytes = std::max<i64>(1, static_cast<i64>(op.weight.row_bytes()));
    t.m_tile = op.m;
    t.n_tile = std::min(std::max<i64>(4, kBytes / row_bytes), ceil_div(n, wanted));
  } else {
    const bool quantised = table.activation_bits(op.weight.dtype) != 0;
    const i64 most_rows = quantised ? cpu::kMatmulRows : cpu::kMatmulRowsPerTile;
    t.m_tile = round_up(ceil_div(op.m, ceil_div(op.m, most_rows)), 48);  // of groups of 3, of 6 and of 16 rows
    const i64 m_tiles = ceil_div(op.m, t.m_tile);
    const i64 most_outputs = quantised ? n : cpu::kMatmulOutputsPerTile;
    t.n_tile = std::clamp<i64>(ceil_div(n, ceil_div(wanted, m_tiles)), 1, most_outputs);
  }
  t.n_tile = round_up(t.n_tile, 32);  // the widest group of outputs of any kernel
  t.m_tiles = ceil_div(op.m, t.m_tile);
  t.items = t.m_tiles * ceil_div(n, t.n_tile);
  return t;
}

// Runs fn(item, thread) for every item on the pool; `thread` counts the parts that run at the same time.
template <class Fn>
void run_items(WorkerPool& pool, i64 items, Fn&& fn) {
  const int parts = static_cast<int>(std::min<i64>(items, pool.size()));
  if (parts <= 1) {
    for (i64 i = 0; i < items; ++i) fn(i, 0);
    return;
  }
  std::atomic<i64> next{0};
  pool.run(parts, [&](int part) {
    for (i64 i = next.fetch_add(1, std::memory_order_relaxed); i < items;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      fn(i, part);
    }
  });
}

}  // namespace

namespace {

std::size_t part_bytes(int max_head_dim) {
  const std::size_t most =
      std::max({cpu::kMatmulScratchBytes, cpu::kMatmulIntegerScratchBytes, cpu::attention_scratch_bytes(max_head_dim)});
  return (most + 4095) / 4096 * 4096 + 64;
}

}  // namespace

void Workspace::Memory::allocate(std::size_t bytes) {
  storage.reset(new std::byte[bytes + 64]);
  begin = storage.get() + (64 - reinterpret_cast<std::uintptr_t>(storage.get()) % 64) % 64;
  size = bytes;
}

Workspace::Workspace(int threads, int max_head_dim, std::size_t activations)
    : threads_(threads), part_bytes_(part_bytes(max_head_dim)) {
  parts_.allocate(part_bytes_ * static_cast<std::size_t>(threads));
  activations_.allocate(activations);
}

std::size_t Workspace::bytes(int threads, int max_head_dim, std::size_t activations) {
  return part_bytes(max_head_dim) * static_cast<std::size_t>(threads) + activations;
}

std::span<const Matmul> Workspace::prepare(const KernelTable& table, WorkerPool& pool, std::span<const Matmul> ops) {
  const auto needed = [&table](const Matmul& op) { return op.m > 0 && table.activation_bits(op.weight.dtype) != 0; };
  const auto bytes_of = [](const Matmul& op) {
    return static_cast<std::size_t>(round_up(quantised_bytes(op.m, op.weight.cols()), 64));
  };
  const auto alike = [](const Matmul& a, const Matmul& b) {
    return a.x == b.x && a.m == b.m && a.x_stride == b.x_stride && a.weight.cols() == b.weight.cols();
  };
  prepared_.clear();
  std::size_t total = 0;
  const Matmul* last = nullptr;
  for (const Matmul& op : ops) {
    if (!needed(op)) continue;
    if (last == nullptr || !alike(*last, op)) total += bytes_of(op);
    last = &op;
  }
  if (last == nullptr) return ops;
  if (total > activations_.size) activations_.allocate(total);
  prepared_.assign(ops.begin(), ops.end());
  std::byte* out = activations_.begin;
  last = nullptr;
  for (Matmul& op : prepared_) {
    if (!needed(op)) continue;
    if (last != nullptr && alike(*last, op)) {
      op.quantised = last->quantised;
      continue;
    }
    const i64 k = op.weight.cols();
    constexpr i64 kFloats = 32 << 10;  // that one thread is done with sooner than others could be told
    parallel_rows(pool, op.m, std::max<i64>(1, kFloats / k),
                  [&](i64 m0, i64 m1) { table.quantise(op.x, op.x_stride, op.m, k, m0, m1, out); });
    op.quantised = out;
    out += bytes_of(op);
    last = &op;
  }
  return prepared_;
}

void matmul(const KernelTable& table, WorkerPool& pool, Workspace& workspace, std::span<const Matmul> given) {
  const std::span<const Matmul> ops = workspace.prepare(table, pool, given);
  i64 items = 0;
  for (const Matmul& op : ops) items += tile(table, op, pool.size()).items;
  run_items(pool, items, [&](i64 item, int thread) {
    for (const Matmul& op : ops) {
      const Tiling t = tile(table, op, pool.size());
      if (item >= t.items) {
        item -= t.items;
        continue;
      }
      // Neighbouring items share weights: they stay in the outer caches.
      const i64 m0 = item % t.m_tiles * t.m_tile;
      const i64 n0 = item / t.m_tiles * t.n_tile;
      table.matmul(op, m0, std::min(m0 + t.m_tile, op.m), n0, std::min(n0 + t.n_tile, op.weight.rows()),
                   workspace.part(thread));
      return;
    }
  });
}

void embed(const KernelTable& table, WorkerPool& pool, const TensorView& weight, std::span<const std::int32_t> ids,
           float scale, float* out, std::int64_t out_stride) {
  parallel_rows(pool, static_cast<i64>(ids.size()), 16, [&](i64 begin, i64 end) {
    for (i64 r = begin; r < end; ++r) {
      float* row = out + r * out_stride;
      table.dequantise_row(weight, ids[static_cast<std::size_t>(r)], row);
      if (scale != 1.0f) table.scale(scale, 1, weight.cols(), row, out_stride);
    }
  });
}

void attention(const KernelTable& table, WorkerPool& pool, Workspace& workspace, const Attention& op) {
  const i64 kv_heads = op.cache.kv_heads;
  const i64 tile_rows = attention_tile_positions(op.heads, op.cache.kv_heads);
  i64 items = 0;
  for (const AttentionSequence& s : op.sequences) items += ceil_div(s.rows, tile_rows) * kv_heads;
  run_items(pool, items, [&](i64 item, int thread) {
    // Later tiles of a prompt see more keys: the long ones go first.
    for (const AttentionSequence& s : op.sequences) {
      const i64 tiles = ceil_div(s.rows, tile_rows);
      if (item >= tiles * kv_heads) {
        item -= tiles * kv_heads;
        continue;
      }
      const i64 row0 = (tiles - 1 - item / kv_heads) * tile_rows;
      table.attention(op, s, static_cast<int>(item % kv_heads), row0, std::min(row0 + tile_rows, s.rows),
                      workspace.part(thread));
      return;
    }
  });
}

}  // namespace xgen::kernels
