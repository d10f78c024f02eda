#include "engine/memory_plan.h"

#include <algorithm>
#include <limits>

#include "base/units.h"

namespace xgen::engine {
namespace {

// Of the planned KV cache: this many tokens for each sequence that may run at once.
constexpr std::int64_t kTokensPerSequence = 1024;
// The context that a model should have at least, where nothing is said of it.
constexpr int kModerateContext = 4096;
// For models that do not say how long a context they were made for.
constexpr int kDefaultContext = 4096;
// Logits of scored prompt rows, per step.
constexpr std::int64_t kScoreBytes = std::int64_t{16} << 20;
// BlockPool's own tables, per block (without its tokens).
constexpr std::uint64_t kTableBytesPerBlock = 72;

Error invalid(std::string message, std::string param) {
  return make_error(ErrorCode::invalid_argument, std::move(message), std::move(param));
}

}  // namespace

Result<MemoryPlan> plan_memory(const model::ModelInfo& info,
                               const std::function<std::uint64_t(int, int)>& workspace_bytes,
                               const MemoryOptions& options) {
  if (options.block_size != 16 && options.block_size != 32) {
    return invalid("block_size is " + std::to_string(options.block_size) + "; it may be 16 or 32.", "block_size");
  }
  if (options.max_num_seqs < 1) return invalid("max_num_seqs must be at least 1.", "max_num_seqs");
  if (options.max_num_batched_tokens < 1) {
    return invalid("max_num_batched_tokens must be at least 1.", "max_num_batched_tokens");
  }
  const int model_len = info.max_position > 0 ? info.max_position : kDefaultContext;
  if (options.max_model_len && *options.max_model_len < 2) {
    return invalid("max_model_len must be at least 2: one token of prompt and one of output.", "max_model_len");
  }
  if (options.max_model_len && info.max_position > 0 && *options.max_model_len > info.max_position) {
    return invalid("max_model_len is " + std::to_string(*options.max_model_len) + ", but the model was made for " +
                       std::to_string(info.max_position) + " tokens.",
                   "max_model_len");
  }

  MemoryPlan plan;
  plan.budget = options.budget;
  plan.weights = info.weight_bytes + info.packing_bytes;
  plan.block_size = options.block_size;
  plan.kv_dtype = options.kv_dtype.value_or(info.weight_format == "F32" ? DType::f32 : DType::f16);
  plan.max_num_seqs = options.max_num_seqs;
  plan.max_num_batched_tokens = std::max(options.max_num_batched_tokens, options.max_num_seqs);
  const std::int64_t row_bytes = std::max<std::int64_t>(info.vocab_size, 1) * 4;
  plan.max_score_rows = static_cast<int>(std::clamp<std::int64_t>(kScoreBytes / row_bytes, 8, 256));
  plan.workspace = workspace_bytes(plan.max_num_batched_tokens, plan.max_num_seqs + plan.max_score_rows);

  const std::uint64_t fixed = plan.weights + plan.workspace;
  const std::string fixed_text =
      "weights " + format_bytes(plan.weights) + " and workspace " + format_bytes(plan.workspace);
  const std::string budget_text = "the memory budget is " + format_bytes(options.budget);
  if (options.budget != 0 && fixed >= options.budget) {
    return make_error(ErrorCode::unavailable, "The model does not fit: " + fixed_text + ", but " + budget_text + ".");
  }
  const std::uint64_t left = options.budget == 0 ? std::numeric_limits<std::uint64_t>::max() : options.budget - fixed;
  const std::uint64_t block_bytes =
      std::max<std::uint64_t>(model::KvCache::bytes_per_block(info, plan.kv_dtype, plan.block_size), 1) +
      kTableBytesPerBlock + sizeof(std::int32_t) * static_cast<std::uint64_t>(plan.block_size);
  const auto blocks_for = [&](std::int64_t tokens) {
    return static_cast<std::uint64_t>((tokens + plan.block_size - 1) / plan.block_size);
  };

  const int wanted_len =
      options.max_model_len.value_or(options.least ? std::min(model_len, kModerateContext) : model_len);
  std::uint64_t blocks = 0;
  if (options.kv_cache_bytes) {
    blocks = *options.kv_cache_bytes / block_bytes;
    if (blocks * block_bytes > left) {
      return make_error(ErrorCode::unavailable, "The model does not fit: " + fixed_text + " and kv_cache " +
                                                    format_bytes(*options.kv_cache_bytes) + ", but " + budget_text +
                                                    ".");
    }
  } else {
    const std::int64_t sequences = options.least ? 1 : options.max_num_seqs;
    const std::int64_t tokens =
        std::max<std::int64_t>(wanted_len, sequences * std::min<std::int64_t>(wanted_len, kTokensPerSequence));
    blocks = std::min(blocks_for(tokens), left / block_bytes);
  }
  blocks =
      std::min<std::uint64_t>(blocks, static_cast<std::uint64_t>(std::numeric_limits<int>::max() / plan.block_size));

  const std::uint64_t least = blocks_for(options.max_model_len.value_or(2));
  if (blocks < least) {
    const std::string need = std::to_string(options.max_model_len.value_or(plan.block_size)) +
                             " tokens of KV cache need " + format_bytes(least * block_bytes);
    if (options.kv_cache_bytes) {
      return invalid(
          "kv_cache is too small: " + need + ", but kv_cache is " + format_bytes(*options.kv_cache_bytes) + ".",
          "kv_cache");
    }
    return make_error(ErrorCode::unavailable,
                      "The model does not fit: " + need + " besides " + fixed_text + ", but " + budget_text + ".");
  }
  // More than this many times the planned blocks are of little use, and their tables would not be small any more.
  constexpr std::uint64_t kMostGrowth = 4;
  const std::uint64_t table_bytes =
      kTableBytesPerBlock + sizeof(std::int32_t) * static_cast<std::uint64_t>(plan.block_size);
  std::uint64_t more = 0;
  if (!options.kv_cache_bytes) {
    more = std::min(options.borrowable / block_bytes, (kMostGrowth - 1) * blocks);
    // The tables of blocks that may come later take the place of some that are there, unless a sequence of full length
    // would not fit any more and there is room.
    std::uint64_t given_up = (more * table_bytes + block_bytes - 1) / block_bytes;
    const std::uint64_t whole = blocks_for(wanted_len);
    if (blocks >= whole && blocks - whole < given_up && left / block_bytes >= blocks + given_up)
      given_up = blocks - whole;
    if (blocks >= least + given_up) {
      blocks -= given_up;
    } else {
      more = 0;
    }
  }
  plan.kv_blocks = static_cast<int>(blocks);
  plan.kv_most_blocks = static_cast<int>(std::min<std::uint64_t>(
      blocks + more, static_cast<std::uint64_t>(std::numeric_limits<int>::max() / plan.block_size)));
  plan.kv_tokens = static_cast<std::int64_t>(blocks) * plan.block_size;
  plan.kv_bytes = blocks * block_bytes + more * table_bytes;
  plan.max_model_len = static_cast<int>(std::min<std::int64_t>(wanted_len, plan.kv_tokens));
  plan.total = fixed + plan.kv_bytes;
  return plan;
}

std::string describe(const MemoryPlan& plan) {
  std::string text = "weights " + format_bytes(plan.weights) + " + KV cache " + format_bytes(plan.kv_bytes) + " (" +
                     std::to_string(plan.kv_tokens) + " tokens, " + std::string(dtype_info(plan.kv_dtype).name) +
                     ") + workspace " + format_bytes(plan.workspace) + " = " + format_bytes(plan.total);
  if (plan.budget != 0) text += " of " + format_bytes(plan.budget);
  text += "; max_model_len " + std::to_string(plan.max_model_len) + ", max_num_seqs " +
          std::to_string(plan.max_num_seqs) + ", max_num_batched_tokens " + std::to_string(plan.max_num_batched_tokens);
  return text;
}

}  // namespace xgen::engine
