// MemoryPlan: how much memory a model will take, decided before any of it is allocated.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "base/result.h"
#include "model/decoder.h"
#include "tensor/tensor.h"

namespace xgen::engine {

struct MemoryOptions {
  std::optional<int> max_model_len;  // tokens; unset: what the model and the memory allow
  int max_num_seqs = 64;
  int max_num_batched_tokens = 512;             // raised to max_num_seqs
  std::optional<std::uint64_t> kv_cache_bytes;  // unset: for max_num_seqs sequences of medium length
  std::optional<DType> kv_dtype;                // f32, f16 or bf16; unset: f32 for F32 weights, otherwise f16 (three
                                                // more bits of precision than bf16 at the same size)
  int block_size = 16;                          // 16 or 32 tokens
  bool least = false;                           // no more KV cache than one sequence needs, of moderate length at least
  std::uint64_t borrowable = 0;                 // bytes that might be lent for more KV cache later
  std::uint64_t budget = 0;                     // bytes for everything below; 0: no limit
};

struct MemoryPlan {
  std::uint64_t weights = 0;    // bytes, as are the others; mapped, not copied, where the kernels allow
  std::uint64_t kv_bytes = 0;   // keys and values, and the tables of their blocks
  std::uint64_t workspace = 0;  // activations and logits of the largest step
  std::uint64_t total = 0;
  std::uint64_t budget = 0;  // 0: no limit
  DType kv_dtype = DType::f16;
  int block_size = 0;  // tokens
  int kv_blocks = 0;
  int kv_most_blocks = 0;      // with what can be borrowed: their tables are in kv_bytes, their memory is not
  std::int64_t kv_tokens = 0;  // at least max_model_len: one sequence always fits
  int max_model_len = 0;
  int max_num_seqs = 0;
  int max_num_batched_tokens = 0;
  int max_score_rows = 0;  // prompt rows per step whose logits are wanted
};

// `workspace_bytes(max_rows, max_logit_rows)` as Decoder::workspace_bytes.
// Errors: invalid_argument naming the setting where settings contradict the model or each other; unavailable with the
// numbers where the budget is too small.
Result<MemoryPlan> plan_memory(const model::ModelInfo& info,
                               const std::function<std::uint64_t(int, int)>& workspace_bytes,
                               const MemoryOptions& options);

// "weights 1.2 GiB + KV cache 2.0 GiB (65536 tokens, F16) + workspace 40 MiB = 3.2 GiB of 6.4 GiB; ..."
std::string describe(const MemoryPlan& plan);

}  // namespace xgen::engine
