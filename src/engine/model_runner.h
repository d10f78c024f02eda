// ModelRunner: computes one step of the scheduler's plan. Tests put a fake in its place.
#pragma once

#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/result.h"
#include "engine/sequence.h"

namespace xgen::engine {

// One sequence's part of a step: its tokens at positions [first_position, first_position + rows).
struct ScheduledSequence {
  Sequence* sequence = nullptr;
  int first_position = 0;
  int rows = 0;
  bool sample = false;  // the last row's logits choose the next token
  // The logits of the rows at positions [score_begin, score_end) score the prompt's tokens one further on.
  int score_begin = 0;
  int score_end = 0;
};

struct StepPlan {
  std::vector<ScheduledSequence> items;
  int rows = 0;  // over all items
};

// Natural logs of the raw model distribution: without penalties, bias, temperature or filters.
struct TokenScore {
  TokenId token = 0;
  float logprob = 0;
  std::vector<std::pair<TokenId, float>> top;  // best first, equals by lower id; ends with `token` if not among them
};

struct SequenceResult {
  TokenId token = -1;                     // if sampled
  std::optional<TokenScore> score;        // of `token`, if wanted
  std::vector<TokenScore> prompt_scores;  // [score_end - score_begin]
  std::optional<Error> error;             // this request cannot go on
};

struct StepResult {
  std::vector<SequenceResult> items;  // as in the plan
};

class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  // Computes keys and values of every row, and what the plan asks of their logits. May change a sequence's sampling
  // state and nothing else of it.
  virtual void run(const StepPlan& plan, StepResult& result) = 0;
  // Does a piece of what makes later steps faster, milliseconds of work. False: there is no more to do.
  virtual bool improve() { return false; }
  // No step follows soon.
  virtual void rest() {}
  // Why nothing that run() has computed last can be believed, nor anything further: the model's files or its device
  // failed. Asked after each step, before its result is used.
  virtual Status fault() const { return {}; }
  // The blocks hold nothing any more: their memory goes back to the system until they are written again.
  virtual void discard(std::span<const BlockId> blocks) { static_cast<void>(blocks); }
};

}  // namespace xgen::engine
