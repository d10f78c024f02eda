// DecoderRunner: steps of a loaded decoder over its paged KV cache, and sampling from its logits.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "base/file_damage.h"
#include "base/worker_pool.h"
#include "engine/model_runner.h"
#include "engine/sampler.h"
#include "model/decoder.h"

namespace xgen::engine {

class DecoderRunner final : public ModelRunner {
 public:
  // The decoder's workspace is reserved already; it is released with the runner. `pool` is the runner's own, whose
  // threads it may share with others. `files`: those that the weights are in.
  DecoderRunner(std::shared_ptr<model::Decoder> decoder, std::unique_ptr<model::KvCache> cache,
                std::shared_ptr<WorkerPool> pool, std::shared_ptr<const FileDamage> files);
  ~DecoderRunner() override;

  void run(const StepPlan& plan, StepResult& result) override;
  bool improve() override;
  void rest() override { pool_->rest(); }
  Status fault() const override { return files_->status(); }
  void discard(std::span<const BlockId> blocks) override { cache_->discard(blocks); }

 private:
  // One row of logits and what is wanted of it: the next token of an item, or the score of one of its prompt's tokens.
  struct Row {
    std::size_t item = 0;
    int scored_position = -1;  // -1: sample
    std::optional<Error> error;
  };
  void use_logits(const StepPlan& plan, std::span<const float> logits, StepResult& result);
  void use_row(const StepPlan& plan, std::span<const float> logits, Sampler& sampler, Row& row, StepResult& result);

  std::shared_ptr<model::Decoder> decoder_;
  std::unique_ptr<model::KvCache> cache_;
  std::shared_ptr<WorkerPool> pool_;
  std::shared_ptr<const FileDamage> files_;
  std::vector<Sampler> samplers_;  // one per part of a parallel section
  std::vector<std::int32_t> tokens_;
  std::vector<model::SequenceSlice> slices_;
  std::vector<std::int32_t> logit_rows_;
  std::vector<Row> rows_;  // as logit_rows_
};

}  // namespace xgen::engine
