// Decoder: a loaded decoder-only language model, and its one forward pass over a batch of paged sequences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file_set.h"
#include "base/result.h"
#include "base/worker_pool.h"
#include "tensor/tensor.h"

namespace xgen::weights {
class Metadata;
}
namespace xgen::kernels {
struct KernelTable;
}

namespace xgen::model {

// Facts about a loaded model that engine and users need; the forward's own facts stay inside.
struct ModelInfo {
  std::string architecture;     // "qwen3", "llama", …: the ArchSpec row's name
  std::string weight_format;    // the commonest format by bytes: "Q8_0", "BF16"
  std::int32_t vocab_size = 0;  // rows of the logits
  std::int32_t hidden_size = 0;
  std::int32_t num_layers = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t max_position = 0;  // tokens the model was made for
  std::uint64_t weight_bytes = 0;
  std::uint64_t packing_bytes = 0;  // that improve() will add to them
};

// Sampling defaults and end tokens that the model's own files state.
struct GenerationDefaults {
  std::vector<std::int32_t> eos_ids;  // every id that ends a generation
  float temperature = -1;             // < 0: not stated (same for the others)
  float top_p = -1;
  int top_k = -1;
  float min_p = -1;
  float repetition_penalty = -1;
};

// Keys and values of every layer in blocks of `block_size` tokens. One allocation, reserved at once; pages are touched
// as blocks are first used.
class KvCache {
 public:
  static std::uint64_t bytes_per_block(const ModelInfo& info, DType dtype, int block_size);
  // dtype: f32, f16 or bf16. Error unavailable with the numbers if the memory cannot be had.
  // `more_blocks` follow, whose memory is not reserved: whoever writes them has seen to it.
  static Result<std::unique_ptr<KvCache>> create(const ModelInfo& info, DType dtype, int block_size, int num_blocks,
                                                 int more_blocks = 0);
  ~KvCache();

  DType dtype() const { return dtype_; }
  int block_size() const { return block_size_; }
  int num_blocks() const { return num_blocks_; }
  // [num_blocks, num_kv_heads, block_size, head_dim] of `dtype`.
  // Gives the memory of blocks back to the system, as far as whole pages go; they read as zeros then.
  void discard(std::span<const std::int32_t> blocks);
  std::byte* keys(int layer) const;
  std::byte* values(int layer) const;

 private:
  KvCache() = default;
  DType dtype_ = DType::f32;
  int block_size_ = 0;
  int num_blocks_ = 0;
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
  std::size_t plane_bytes_ = 0;  // one layer's keys (or values)
};

// One sequence's share of a batch: rows [first_row, first_row + rows) are its tokens at positions
// [first_position, first_position + rows). Keys and values of earlier positions are in its blocks already.
struct SequenceSlice {
  int first_row = 0;
  int rows = 0;
  int first_position = 0;
  std::span<const std::int32_t> blocks;  // block table; covers first_position + rows tokens
};

struct ForwardBatch {
  std::span<const std::int32_t> tokens;      // [rows]
  std::span<const SequenceSlice> sequences;  // in row order, covering all rows
  std::span<const std::int32_t> logit_rows;  // rows whose logits are wanted, ascending
};

struct LoadOptions {
  const kernels::KernelTable* kernels = nullptr;  // null: the best for this machine
  // The longest sequence that will be served; 0: max_position. It decides between LongRoPE's two sets of factors once
  // and for all sequences: choosing by each sequence's own length would make cached keys depend on what comes later.
  int max_context = 0;
};

// Immutable after loading but for its workspace: one forward at a time per Decoder.
class Decoder {
 public:
  // Reads config.json + safetensors, or GGUF. Nothing is copied that the kernels can use in place.
  // Errors name the file and the key or tensor.
  static Result<std::unique_ptr<Decoder>> load(const FileSet& files, const LoadOptions& options = {});
  virtual ~Decoder() = default;

  virtual const ModelInfo& info() const = 0;
  virtual const GenerationDefaults& generation_defaults() const = 0;
  // config.json, or the GGUF's key/values (which also hold its tokenizer).
  virtual const weights::Metadata& metadata() const = 0;
  virtual bool is_gguf() const = 0;

  // Brings the weights into memory, so that the first pass does not wait for them. `progress`: 0-1; what it throws ends
  // it.
  virtual void prefetch(const std::function<void(double)>& progress) const = 0;

  // Bytes of workspace for batches of up to `max_rows` rows and `max_logit_rows` logit rows.
  virtual std::uint64_t workspace_bytes(int max_rows, int max_logit_rows, int threads) const = 0;
  // Allocates it; must be called before forward().
  virtual Status reserve(int max_rows, int max_logit_rows, int threads) = 0;
  // Frees it, and what improve() has made.
  virtual void release() = 0;

  // Does a piece of what makes later passes faster, milliseconds of work; their bits stay the same. False: there is no
  // more to do. Not during a forward().
  virtual bool improve(WorkerPool& pool) = 0;

  // Runs the batch, writes K/V of every row into `cache`, and returns logits [logit_rows, vocab_size] in the
  // workspace, valid until the next call. The bits of a row's logits depend on its sequence's tokens alone: not on
  // the other sequences, on the chunking, on the blocks' numbers, nor on the pool's size.
  virtual std::span<const float> forward(const ForwardBatch& batch, KvCache& cache, WorkerPool& pool) = 0;
};

}  // namespace xgen::model
