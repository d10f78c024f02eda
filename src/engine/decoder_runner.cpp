#include "engine/decoder_runner.h"

#include <algorithm>
#include <atomic>

namespace xgen::engine {

DecoderRunner::DecoderRunner(std::shared_ptr<model::Decoder> decoder, std::unique_ptr<model::KvCache> cache,
                             std::shared_ptr<WorkerPool> pool, std::shared_ptr<const FileDamage> files)
    : decoder_(std::move(decoder)),
      cache_(std::move(cache)),
      pool_(std::move(pool)),
      files_(std::move(files)),
      samplers_(static_cast<std::size_t>(pool_->size())) {}

DecoderRunner::~DecoderRunner() { decoder_->release(); }

void DecoderRunner::run(const StepPlan& plan, StepResult& result) {
  const WorkerPool::Turn turn(*pool_);
  tokens_.clear();
  slices_.clear();
  logit_rows_.clear();
  rows_.clear();
  result.items.clear();
  result.items.resize(plan.items.size());

  for (std::size_t i = 0; i < plan.items.size(); ++i) {
    const ScheduledSequence& item = plan.items[i];
    const int first_row = static_cast<int>(tokens_.size());
    for (int r = 0; r < item.rows; ++r) tokens_.push_back(item.sequence->token(item.first_position + r));
    slices_.push_back({first_row, item.rows, item.first_position, item.sequence->blocks});
    for (int position = item.score_begin; position < item.score_end; ++position) {
      logit_rows_.push_back(first_row + position - item.first_position);
      rows_.push_back({i, position, {}});
    }
    if (item.sample) {
      logit_rows_.push_back(first_row + item.rows - 1);
      rows_.push_back({i, -1, {}});
    }
    result.items[i].prompt_scores.resize(static_cast<std::size_t>(item.score_end - item.score_begin));
  }
  const model::ForwardBatch batch{tokens_, slices_, logit_rows_};
  const std::span<const float> logits = decoder_->forward(batch, *cache_, *pool_);
  use_logits(plan, logits, result);
}

bool DecoderRunner::improve() {
  const WorkerPool::Turn turn(*pool_);
  return decoder_->improve(*pool_);
}

void DecoderRunner::use_logits(const StepPlan& plan, std::span<const float> logits, StepResult& result) {
  if (rows_.empty()) return;
  const auto vocab = static_cast<std::size_t>(decoder_->info().vocab_size);
  // A part of a parallel section should be worth its start.
  constexpr std::size_t kLogitsPerPart = 16384;
  const std::size_t parts = std::min({samplers_.size(), rows_.size(), rows_.size() * vocab / kLogitsPerPart + 1});
  std::atomic<std::size_t> next{0};
  pool_->run(static_cast<int>(parts), [&](int part) {
    for (std::size_t r = next.fetch_add(1); r < rows_.size(); r = next.fetch_add(1)) {
      use_row(plan, logits.subspan(r * vocab, vocab), samplers_[static_cast<std::size_t>(part)], rows_[r], result);
    }
  });
  for (Row& row : rows_) {
    if (row.error) result.items[row.item].error = std::move(row.error);
  }
}

void DecoderRunner::use_row(const StepPlan& plan, std::span<const float> logits, Sampler& sampler, Row& row,
                            StepResult& result) {
  const ScheduledSequence& item = plan.items[row.item];
  const int alternatives = item.sequence->request->sampling.logprobs;
  SequenceResult& out = result.items[row.item];
  if (row.scored_position >= 0) {
    Result<TokenScore> score =
        sampler.score(logits, item.sequence->token(row.scored_position + 1), std::max(alternatives, 0));
    if (!score.ok()) {
      row.error = std::move(score).error();
      return;
    }
    out.prompt_scores[static_cast<std::size_t>(row.scored_position - item.score_begin)] = std::move(*score);
    return;
  }
  const Result<TokenId> token = sampler.sample(logits, *item.sequence);
  if (!token.ok()) {
    row.error = token.error();
    return;
  }
  out.token = *token;
  if (alternatives < 0) return;
  Result<TokenScore> score = sampler.score(logits, *token, alternatives);
  if (score.ok()) out.score = std::move(*score);
}

}  // namespace xgen::engine
