// Scheduler: which tokens of which sequences the next step computes. Pure: no device, no clock, no thread.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "engine/block_pool.h"
#include "engine/model_runner.h"
#include "engine/sequence.h"

namespace xgen::engine {

// Where memory for more blocks comes from.
class BlockLender {
 public:
  virtual ~BlockLender() = default;
  // How many of so many blocks may be used from now on.
  virtual int borrow(int blocks) = 0;
};

struct SchedulerOptions {
  int num_blocks = 0;                 // that there can ever be
  int own_blocks = 0;                 // of them there from the start; enough for one sequence of max_model_len; 0: all
  int least_blocks = 0;               // of them never given back; as above; 0: own_blocks
  BlockLender* lender = nullptr;      // of the others
  int block_size = 16;                // tokens
  int max_model_len = 0;              // tokens of prompt + output
  int max_num_seqs = 64;              // running at once
  int max_num_batched_tokens = 512;   // rows of one step; at least max_num_seqs, so that every running sequence moves
  int max_score_rows = 64;            // prompt rows per step whose logits are wanted, > 0
  bool enable_prefix_caching = true;  // between requests; the choices of one request always share their prompt
};

// What a step did to one sequence.
struct Update {
  Sequence* sequence = nullptr;
  const SequenceResult* result = nullptr;  // with error: the caller cancels the request
  int score_begin = 0;                     // position of the token before the first of result->prompt_scores
  bool prompt_done = false;                // this step computed the last of the prompt for the first time
  std::optional<inference::FinishReason> finished;
  bool stopped_by_eos = false;  // with finished == stop: an eos id, else one of the request's stop ids
};

struct SchedulerStats {
  std::uint64_t preemptions = 0;
  std::uint64_t prefix_queries = 0;  // prompt tokens looked up
  std::uint64_t prefix_hits = 0;     // of them found
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // Whether the request can ever run: invalid_argument with the numbers if its prompt and one more token exceed the
  // context or all KV blocks, or its prompt and max_tokens do.
  Status check(const Request& request) const;
  // Precondition: check() passed; request.id is larger than any before; there is something to compute (max_tokens > 0,
  // or prompt_logprobs of a prompt of two tokens or more).
  void submit(Request& request);
  // Ends the request in whatever state; its blocks are free when this returns.
  void cancel(Request& request);
  // Ends one choice (a stop string matched).
  void finish(Sequence& sequence);

  bool has_work() const { return !running_.empty() || !waiting_.empty(); }
  // Gives up to so many borrowed blocks back and adds their ids to `gone`: free and cached ones, and, if they `must` be
  // had, those of the last running sequences, which then wait to be recomputed. Between commit() and plan() only.
  void give_back(int blocks, bool must, std::vector<BlockId>& gone);
  // A request whose deadline is at or before `now`, or null. The caller cancels it.
  Request* expired(double now) const;

  const StepPlan& plan();
  // Takes the result of the last plan. The updates are valid until the next call.
  const std::vector<Update>& commit(const StepResult& result);

  std::size_t num_running() const { return running_.size(); }
  std::size_t num_waiting() const { return waiting_.size(); }
  const BlockPool& pool() const { return pool_; }
  const SchedulerStats& stats() const { return stats_; }
  const SchedulerOptions& options() const { return options_; }
  // The pool's own check, and that its reference counts are those of the running sequences. O(blocks).
  std::string check_integrity() const;

 private:
  struct Sooner {
    bool operator()(const Sequence* a, const Sequence* b) const;
  };
  void add_row_range(Sequence& sequence, int rows);
  int rows_within_budget(const Sequence& sequence) const;
  bool grow(Sequence& sequence, int tokens);
  void borrow(int blocks);
  bool admit(Sequence& sequence);
  void preempt(Sequence& sequence);
  void publish_full_blocks(Sequence& sequence);
  void release_blocks(Sequence& sequence);
  void make_sequence(Request& request);
  std::span<const TokenId> block_tokens(const Sequence& sequence, int block);
  PrefixMark root(const Request& request) const;
  int blocks_for(int tokens) const { return (tokens + options_.block_size - 1) / options_.block_size; }

  SchedulerOptions options_;
  BlockPool pool_;
  std::set<Sequence*, Sooner> waiting_;
  std::vector<Sequence*> running_;  // soonest first
  std::set<std::pair<double, Request*>> deadlines_;
  StepPlan plan_;
  int rows_left_ = 0;
  int score_rows_left_ = 0;
  std::vector<Update> updates_;
  std::vector<TokenId> token_buffer_;  // [block_size]
  std::vector<BlockId> hits_;
  SchedulerStats stats_;
};

}  // namespace xgen::engine
