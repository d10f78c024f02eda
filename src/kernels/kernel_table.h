// KernelTable: the compute kernels of one instruction set, as plain functions over sub-ranges of the work.
//
// The promise: a result does not depend on the batch. Every output element is computed in one canonical order that is
// a property of the instruction set alone; the number of rows, the tiling and the number of threads never change its
// bits. (Different instruction sets may differ in the last bits.)
//
// Conventions: activations are F32. A "row" is one token's vector; rows are `stride` floats apart and contiguous
// inside. m counts rows. Weights are [n, k] row-major in any DType of tensor.h except integers and f64. Pointers to
// activations need no more than float alignment; weight data needs none. Kernels allocate nothing and trust their
// arguments: whoever calls them (model/) has checked shapes at load time. In-place use (out == in) is allowed where an
// op says so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tensor/tensor.h"

namespace xgen::kernels {

// y[m, n] = x[m, k] . weight[n, k]^T (+ bias[n]) (+ y)
struct Matmul {
  TensorView weight;  // {n, k}
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  float* y = nullptr;
  std::int64_t y_stride = 0;
  std::int64_t m = 0;
  const float* bias = nullptr;        // [n] or null
  bool accumulate = false;            // adds to what y holds (residual), after the bias
  const std::byte* packed = nullptr;  // the weight as KernelTable::pack gives it, or null: the products are the same
  // Set by kernels::matmul() where the table rounds activations: all m rows of x as KernelTable::quantise gives them.
  const std::byte* quantised = nullptr;
};

// RoPE over heads: x is [m][heads][head_dim], the first `rotary_dim` elements of each head are rotated, in place.
struct Rope {
  float* x = nullptr;
  std::int64_t stride = 0;  // floats between rows
  std::int64_t m = 0;
  int heads = 0;
  int head_dim = 0;
  int rotary_dim = 0;        // even, <= head_dim
  bool interleaved = false;  // false: pairs (i, i + rotary_dim/2), "neox"; true: pairs (2i, 2i+1)
  // Tables [m][rotary_dim/2], made for this batch: any scaling or attention factor is already in them.
  const float* cos = nullptr;
  const float* sin = nullptr;
};

enum class GatedActivation : std::uint8_t { silu, gelu_tanh, gelu_erf };

// Paged KV cache of one layer: K and V each are [block][kv_head][block_size][head_dim].
struct KvCache {
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  DType dtype = DType::f32;  // f32, f16 or bf16
  int kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;  // positions per block; a power of two <= 64

  std::size_t block_bytes() const {  // of K or of V
    return static_cast<std::size_t>(kv_heads) * static_cast<std::size_t>(block_size) *
           static_cast<std::size_t>(head_dim) * dtype_info(dtype).block_bytes;
  }
};

// The rows of one sequence in a step: `rows` consecutive positions from `first_pos`, batch rows from `first_row`.
struct AttentionSequence {
  const std::int32_t* blocks = nullptr;  // block table: position p lies in blocks[p / block_size]
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  std::int64_t first_pos = 0;
};

// Causal attention over the paged cache, which already holds the step's own K and V. A query at position p attends to
// keys (p - window, p]; grouped queries: head h reads kv head h / (heads / kv_heads).
// Canonical order: keys in partitions of kAttentionPartition that begin at absolute multiples of it; online softmax
// over the partitions in ascending order.
struct Attention {
  const float* q = nullptr;  // [m][heads][head_dim]
  std::int64_t q_stride = 0;
  float* out = nullptr;  // [m][heads][head_dim]; may not overlap q
  std::int64_t out_stride = 0;
  int heads = 0;
  float scale = 1;
  float softcap = 0;        // > 0: scores become softcap * tanh(score / softcap)
  std::int64_t window = 0;  // > 0: sliding window in positions, the query's own included; 0 = all
  KvCache cache;
  std::span<const AttentionSequence> sequences;
};
inline constexpr int kAttentionPartition = 64;
// Positions of one sequence that one attention tile covers at most.
int attention_tile_positions(int heads, int kv_heads);

struct KernelTable {
  std::string_view name;            // "scalar", "avx2", "avx512", "amx"
  std::uint32_t required_features;  // CpuFeature bits

  // To how many bits the products with weights of this dtype round the activations, with a scale for each 32: 16 (a
  // relative error of about 1e-5 of the largest of the 32) or 8 (4e-3); 0: they do not.
  int (*activation_bits)(DType type);
  // Rows [m0, m1) of m rows of k floats, k a multiple of 32, as those products take them: integers and their scales, in
  // a layout of the table's own. `out` takes quantised_bytes() for all m.
  void (*quantise)(const float* x, std::int64_t x_stride, std::int64_t m, std::int64_t k, std::int64_t m0,
                   std::int64_t m1, std::byte* out);

  // Bytes of an {n, k} weight that is packed: laid out anew so that products read it in one stream. 0: this table reads
  // weights of this dtype as they are.
  std::int64_t (*packed_bytes)(DType type, std::int64_t n, std::int64_t k);
  // Packs rows [n0, n1) of a weight whose packed form begins at `out`; n0 is a multiple of 32, as is n1 or it is the
  // end.
  void (*pack)(const TensorView& weight, std::int64_t n0, std::int64_t n1, std::byte* out);

  // --- Matrix products; call them through kernels::matmul() in ops.h, which splits the work.
  // Rows [m0, m1) x outputs [n0, n1); m0 is a multiple of 16 and n0 of 4. `scratch`: Workspace::part().
  void (*matmul)(const Matmul& op, std::int64_t m0, std::int64_t m1, std::int64_t n0, std::int64_t n1,
                 std::byte* scratch);
  // out[0, k) = row `row` of a weight matrix, exactly as the products see it.
  void (*dequantise_row)(const TensorView& weight, std::int64_t row, float* out);

  // --- Row-wise ops. All may work in place.
  // out = x / sqrt(mean(x^2) + eps) * weight; weight null = 1. For per-head norm (qk-norm) call it with the heads as
  // rows: m = rows * heads, stride = head_dim where heads are contiguous.
  void (*rms_norm)(const float* x, std::int64_t x_stride, const float* weight, float eps, std::int64_t m,
                   std::int64_t n, float* out, std::int64_t out_stride);
  void (*rope)(const Rope& op, std::int64_t m0, std::int64_t m1);
  // out = activation(gate) * up; up null = activation alone (out = act(gate)).
  void (*gated)(GatedActivation activation, const float* gate, std::int64_t gate_stride, const float* up,
                std::int64_t up_stride, std::int64_t m, std::int64_t n, float* out, std::int64_t out_stride);
  void (*add)(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t m,
              std::int64_t n, float* out, std::int64_t out_stride);
  void (*scale)(float factor, std::int64_t m, std::int64_t n, float* x, std::int64_t stride);  // x *= factor
  void (*softcap)(float cap, std::int64_t m, std::int64_t n, float* x, std::int64_t stride);  // x = cap * tanh(x / cap)

  // --- Over one row of n logits.
  float (*max)(const float* x, std::int64_t n);                          // NaN ignored; -inf if n = 0
  void (*exp)(const float* x, float shift, std::int64_t n, float* out);  // out = exp(x - shift)

  // --- Paged attention; call it through kernels::attention() in ops.h.
  // Rows [row0, row1) of `sequence` (counted from its first row, at most attention_tile_positions) for one kv head.
  void (*attention)(const Attention& op, const AttentionSequence& sequence, int kv_head, std::int64_t row0,
                    std::int64_t row1, std::byte* scratch);
  // Stores rows [m][kv_heads][head_dim] of K and V: row r goes to slots[r] = block * block_size + offset; < 0 skips it.
  void (*kv_write)(const KvCache& cache, const float* k, std::int64_t k_stride, const float* v, std::int64_t v_stride,
                   const std::int64_t* slots, std::int64_t m);
};

// Bits of `required_features`.
enum CpuFeature : std::uint32_t { kCpuAvx2 = 1, kCpuFma = 2, kCpuF16c = 4, kCpuAvx512Vnni = 8, kCpuAmxInt8 = 16 };
std::uint32_t cpu_features();

// The tables that this CPU can run, best first; never empty ("scalar" runs everywhere).
std::vector<const KernelTable*> available_kernels();
// The best table, or the one named `forced`. Errors: invalid_argument for an unknown name or one this CPU cannot run.
Result<const KernelTable*> select_kernels(std::string_view forced = {});

// With what kernels may read past the rows.
constexpr std::int64_t quantised_bytes(std::int64_t m, std::int64_t k) { return m * (k * 2 + k / 32 * 4) + 512; }

// May this dtype be a matmul weight / embedding table?
bool is_weight_dtype(DType type);

}  // namespace xgen::kernels
