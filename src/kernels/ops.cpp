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
    t.m_tile = round_up(ceil_div(op.m, ceil_div(op.m, cpu::kMatmulRowsPerTile)), 3);
    const i64 m_tiles = ceil_div(op.m, t.m_tile);
    const int most =
        table.activation_bits(op.weight.dtype) != 0 ? cpu::kMatmulIntegerOutputsPerTile : cpu::kMatmulOutputsPerTile;
    t.n_tile = std::clamp<i64>(ceil_div(n, ceil_div(wanted, m_tiles)), 16, most);
  }
  t.n_tile = round_up(t.n_tile, 16);  // the widest group of outputs of any kernel
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

Workspace::Workspace(int threads, int max_head_dim)
    : threads_(threads),
      part_bytes_((std::max({cpu::kMatmulScratchBytes, cpu::kMatmulIntegerScratchBytes,
                             cpu::attention_scratch_bytes(max_head_dim)}) +
                   4095) /
                      4096 * 4096 +
                  64),
      storage_(new std::byte[bytes() + 64]),
      base_(storage_.get() + (64 - reinterpret_cast<std::uintptr_t>(storage_.get()) % 64) % 64),
      shared_(base_ + part_bytes_ * static_cast<std::size_t>(threads)) {}

std::span<const Matmul> Workspace::prepare(const KernelTable& table, std::span<const Matmul> ops) {
  const auto needed = [&table](const Matmul& op) {
    return op.m > 0 && op.m <= kSkinnyRows && table.activation_bits(op.weight.dtype) != 0;
  };
  if (std::none_of(ops.begin(), ops.end(), needed)) return ops;
  prepared_.assign(ops.begin(), ops.end());
  std::byte* out = shared_;
  const Matmul* last = nullptr;
  for (Matmul& op : prepared_) {
    if (!needed(op)) continue;
    const i64 k = op.weight.cols();
    if (last != nullptr && last->x == op.x && last->m == op.m && last->x_stride == op.x_stride &&
        last->weight.cols() == k) {
      op.quantised = last->quantised;
      continue;
    }
    const i64 bytes = round_up(quantised_bytes(op.m, k), 64);
    if (bytes > shared_ + kSharedBytes - out) continue;
    table.quantise(op.x, op.x_stride, op.m, k, out);
    op.quantised = out;
    out += bytes;
    last = &op;
  }
  return prepared_;
}

void matmul(const KernelTable& table, WorkerPool& pool, Workspace& workspace, std::span<const Matmul> given) {
  const std::span<const Matmul> ops = workspace.prepare(table, given);
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
