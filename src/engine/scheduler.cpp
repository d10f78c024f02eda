#include "engine/scheduler.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace xgen::engine {

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options),
      pool_(options.num_blocks, options.block_size, options.own_blocks > 0 ? options.own_blocks : options.num_blocks),
      token_buffer_(static_cast<std::size_t>(options.block_size)) {
  if (options_.own_blocks <= 0) options_.own_blocks = options_.num_blocks;
  if (options_.least_blocks <= 0) options_.least_blocks = options_.own_blocks;
  options_.max_num_batched_tokens = std::max(options_.max_num_batched_tokens, options_.max_num_seqs);
}

bool Scheduler::Sooner::operator()(const Sequence* a, const Sequence* b) const {
  const auto key = [](const Sequence* s) { return std::tuple(s->request->priority, s->request->id, s->choice); };
  return key(a) < key(b);
}

Status Scheduler::check(const Request& request) const {
  const auto prompt = static_cast<std::int64_t>(request.prompt.size());
  const std::int64_t kv_tokens = std::int64_t{options_.own_blocks} * options_.block_size;
  const std::int64_t limit = std::min<std::int64_t>(options_.max_model_len, kv_tokens);
  const std::string limit_text =
      kv_tokens < options_.max_model_len
          ? "the KV cache holds " + std::to_string(kv_tokens) + " tokens"
          : "the maximum context length is " + std::to_string(options_.max_model_len) + " tokens";
  if (prompt == 0) return make_error(ErrorCode::invalid_argument, "The prompt has no tokens.", "prompt");
  const int first = request.max_tokens > 0 ? 1 : 0;
  if (prompt + first > limit) {
    return make_error(ErrorCode::invalid_argument,
                      "The prompt has " + std::to_string(prompt) + " tokens, and " + limit_text +
                          (first > 0 ? " (prompt and at least one output token)." : "."),
                      "prompt");
  }
  if (prompt + request.max_tokens > limit) {
    return make_error(ErrorCode::invalid_argument,
                      "The prompt has " + std::to_string(prompt) + " tokens and max_tokens is " +
                          std::to_string(request.max_tokens) + ": together " +
                          std::to_string(prompt + request.max_tokens) + ", but " + limit_text + ".",
                      "max_tokens");
  }
  return {};
}

void Scheduler::submit(Request& request) {
  request.unfinished = request.n;
  if (std::isfinite(request.deadline)) deadlines_.emplace(request.deadline, &request);
  make_sequence(request);
}

void Scheduler::make_sequence(Request& request) {
  auto sequence = std::make_unique<Sequence>();
  sequence->request = &request;
  sequence->choice = static_cast<int>(request.choices.size());
  waiting_.insert(sequence.get());
  request.choices.push_back(std::move(sequence));
}

void Scheduler::cancel(Request& request) {
  for (const auto& sequence : request.choices) finish(*sequence);
  request.unfinished = 0;
  deadlines_.erase({request.deadline, &request});
}

void Scheduler::finish(Sequence& sequence) {
  if (sequence.state == Sequence::State::finished) return;
  if (sequence.state == Sequence::State::waiting) {
    waiting_.erase(&sequence);
  } else {
    running_.erase(std::lower_bound(running_.begin(), running_.end(), &sequence, Sooner{}));
    release_blocks(sequence);
  }
  sequence.state = Sequence::State::finished;
  sequence.counts = {};
  if (--sequence.request->unfinished == 0) deadlines_.erase({sequence.request->deadline, sequence.request});
}

Request* Scheduler::expired(double now) const {
  if (deadlines_.empty() || deadlines_.begin()->first > now) return nullptr;
  return deadlines_.begin()->second;
}

// The algorithm. There is no prefill phase and no decode phase: each step lets num_computed catch up with the tokens of
// the sequences, under one budget of rows; the row of a sequence's newest token gives its next one.
//   1. Sequences that need one row get it, soonest first (priority, then arrival). Where one needs a further block
//      and none is left, the last running sequence gives all of its blocks back and waits to be recomputed.
//   2. Running sequences that need more rows (prompts, recomputation) get what is left of the budget, soonest first.
//   3. Waiting sequences are admitted, soonest first, while there are seats, rows and blocks for all of their tokens.
//      None is passed over, so none starves. Blocks found in the prefix cache are shared and not computed again.
// Only growth in 1. can run out of blocks, and the soonest sequence never loses its own: it fits by check(), so every
// step makes progress. The cost depends on running sequences and on what is admitted, not on how many wait.
// The further choices of a request begin to wait when the first has computed the prompt; they find it in the prefix
// cache and compute less than one block of it again.
const StepPlan& Scheduler::plan() {
  plan_.items.clear();
  plan_.rows = 0;
  rows_left_ = options_.max_num_batched_tokens;
  score_rows_left_ = options_.max_score_rows;
  const std::uint64_t preemptions_before = stats_.preemptions;

  const auto is_decode = [](const Sequence& s) { return s.pending() == 1 && s.num_computed >= s.prompt_size() - 1; };
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (!is_decode(sequence)) continue;
    while (sequence.state == Sequence::State::running && !grow(sequence, sequence.num_computed + 1)) {
      preempt(*running_.back());
    }
    if (sequence.state == Sequence::State::running) add_row_range(sequence, 1);
  }
  for (Sequence* sequence : running_) {
    if (!is_decode(*sequence)) add_row_range(*sequence, rows_within_budget(*sequence));
  }
  if (stats_.preemptions == preemptions_before) {
    while (rows_left_ > 0 && !waiting_.empty() && running_.size() < static_cast<std::size_t>(options_.max_num_seqs)) {
      Sequence& sequence = **waiting_.begin();
      if (!admit(sequence)) break;
      add_row_range(sequence, rows_within_budget(sequence));
    }
  }
  return plan_;
}

// Rows of a sequence that the step's budgets allow.
int Scheduler::rows_within_budget(const Sequence& sequence) const {
  int rows = std::min(sequence.pending(), rows_left_);
  // Rows before prompt_scored are computed again after a preemption, and need no logits.
  const int first_scored = std::max(sequence.num_computed, sequence.prompt_scored);
  if (first_scored + score_rows_left_ < sequence.prompt_scores_wanted()) {
    rows = std::min(rows, first_scored + score_rows_left_ - sequence.num_computed);
  }
  return rows;
}

void Scheduler::add_row_range(Sequence& sequence, int rows) {
  if (rows <= 0) return;
  ScheduledSequence item;
  item.sequence = &sequence;
  item.first_position = sequence.num_computed;
  item.rows = rows;
  item.sample = rows == sequence.pending() && sequence.request->max_tokens > 0;
  item.score_begin = std::max(sequence.num_computed, sequence.prompt_scored);
  item.score_end = std::max(item.score_begin, std::min(sequence.num_computed + rows, sequence.prompt_scores_wanted()));
  plan_.items.push_back(item);
  plan_.rows += rows;
  rows_left_ -= rows;
  score_rows_left_ -= item.score_end - item.score_begin;
}

void Scheduler::borrow(int blocks) {
  // A few at a time: each loan is counted.
  constexpr int kLoan = 16;
  if (options_.lender == nullptr || pool_.absent() == 0) return;
  pool_.grow(options_.lender->borrow(std::min(pool_.absent(), std::max(blocks, kLoan))));
}

void Scheduler::give_back(int blocks, bool must, std::vector<BlockId>& gone) {
  const int present = pool_.num_blocks() - pool_.absent();
  const std::size_t wanted =
      gone.size() + static_cast<std::size_t>(std::clamp(blocks, 0, present - options_.least_blocks));
  const auto missing = [&] { return static_cast<int>(wanted - gone.size()); };
  pool_.shrink(missing(), gone);
  while (must && missing() > 0 && !running_.empty()) {
    preempt(*running_.back());
    pool_.shrink(missing(), gone);
  }
}

bool Scheduler::grow(Sequence& sequence, int tokens) {
  const auto wanted = static_cast<std::size_t>(blocks_for(tokens));
  while (sequence.blocks.size() < wanted) {
    if (!pool_.has_free()) borrow(1);
    const BlockId block = pool_.allocate();
    if (block == kNoBlock) return false;
    sequence.blocks.push_back(block);
  }
  return true;
}

bool Scheduler::admit(Sequence& sequence) {
  const Request& request = *sequence.request;
  hits_.clear();
  int cached_hits = 0;  // hits that wait in the free list: taking them leaves fewer blocks to allocate
  const bool looked_up = sequence.prompt_scored >= sequence.prompt_scores_wanted();
  if (looked_up) {
    PrefixMark before = root(request);
    // At least one token is computed, for its logits.
    while ((static_cast<int>(hits_.size()) + 1) * options_.block_size < sequence.target()) {
      const BlockId block = pool_.find(before, block_tokens(sequence, static_cast<int>(hits_.size())));
      if (block == kNoBlock) break;
      hits_.push_back(block);
      cached_hits += pool_.ref_count(block) == 0;
      before = pool_.mark(block);
    }
  }
  const int hits = static_cast<int>(hits_.size());
  const int needed = blocks_for(sequence.target()) - hits;
  // One block for each running sequence is left alone, so that admitting does not lead to preempting at once.
  const int least = needed + cached_hits + static_cast<int>(running_.size());
  if (least > pool_.available()) borrow(least - pool_.available());
  if (least > pool_.available()) return false;

  waiting_.erase(&sequence);
  for (BlockId block : hits_) pool_.share(block);
  sequence.blocks.assign(hits_.begin(), hits_.end());
  sequence.num_published = hits;
  sequence.num_computed = hits * options_.block_size;
  grow(sequence, sequence.target());
  sequence.state = Sequence::State::running;
  running_.insert(std::lower_bound(running_.begin(), running_.end(), &sequence, Sooner{}), &sequence);
  if (!sequence.admitted && sequence.choice == 0) {
    sequence.request->cached_tokens = sequence.num_computed;
    if (looked_up && options_.enable_prefix_caching) stats_.prefix_queries += request.prompt.size();
    stats_.prefix_hits += static_cast<std::uint64_t>(sequence.num_computed);
  }
  sequence.admitted = true;
  return true;
}

void Scheduler::preempt(Sequence& sequence) {
  ++stats_.preemptions;
  running_.erase(std::lower_bound(running_.begin(), running_.end(), &sequence, Sooner{}));
  release_blocks(sequence);
  sequence.state = Sequence::State::waiting;
  waiting_.insert(&sequence);
}

const std::vector<Update>& Scheduler::commit(const StepResult& result) {
  assert(result.items.size() == plan_.items.size());
  updates_.clear();
  for (std::size_t i = 0; i < plan_.items.size(); ++i) {
    const ScheduledSequence& item = plan_.items[i];
    Sequence& sequence = *item.sequence;
    Request& request = *sequence.request;
    Update update;
    update.sequence = &sequence;
    update.result = &result.items[i];
    update.score_begin = item.score_begin;
    if (update.result->error) {
      updates_.push_back(update);
      continue;
    }
    sequence.num_computed += item.rows;
    sequence.prompt_scored = std::max(sequence.prompt_scored, item.score_end);
    publish_full_blocks(sequence);
    update.prompt_done = sequence.pending() == 0 && sequence.output.empty();
    if (item.sample) {
      const TokenId token = update.result->token;
      sequence.output.push_back(token);
      const auto contains = [token](const std::vector<TokenId>& ids) {
        return std::find(ids.begin(), ids.end(), token) != ids.end();
      };
      update.stopped_by_eos = contains(request.eos_ids);
      if (update.stopped_by_eos || contains(request.stop_ids)) {
        update.finished = inference::FinishReason::stop;
      } else if (static_cast<int>(sequence.output.size()) >= request.max_tokens) {
        update.finished = inference::FinishReason::length;
      }
    } else if (update.prompt_done) {
      update.finished = inference::FinishReason::length;  // max_tokens is 0
    }
    // An update that has nothing to tell is left out.
    if (!item.sample && !update.prompt_done && item.score_begin == item.score_end) continue;
    updates_.push_back(update);
    if (update.prompt_done && sequence.choice == 0 && request.max_tokens > 0) {
      while (static_cast<int>(request.choices.size()) < request.n) make_sequence(request);
    }
    if (update.finished) finish(sequence);
  }
  plan_.items.clear();
  return updates_;
}

void Scheduler::publish_full_blocks(Sequence& sequence) {
  while ((sequence.num_published + 1) * options_.block_size <= sequence.num_computed) {
    const int i = sequence.num_published++;
    BlockId& block = sequence.blocks[static_cast<std::size_t>(i)];
    const PrefixMark before =
        i == 0 ? root(*sequence.request) : pool_.mark(sequence.blocks[static_cast<std::size_t>(i - 1)]);
    const BlockId same = pool_.publish(block, before, block_tokens(sequence, i));
    if (same == block) continue;
    // Another sequence has computed the same tokens: one copy is enough. Each prefix then has one block, and a block is
    // held as long as any that continues it.
    pool_.share(same);
    pool_.release(block);
    block = same;
  }
}

void Scheduler::release_blocks(Sequence& sequence) {
  for (auto block = sequence.blocks.rbegin(); block != sequence.blocks.rend(); ++block) pool_.release(*block);
  sequence.blocks = {};
  sequence.num_published = 0;
  sequence.num_computed = 0;
}

std::span<const TokenId> Scheduler::block_tokens(const Sequence& sequence, int block) {
  const int begin = block * options_.block_size;
  if (begin + options_.block_size <= sequence.prompt_size()) {
    return std::span(sequence.request->prompt)
        .subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(options_.block_size));
  }
  for (int i = 0; i < options_.block_size; ++i) token_buffer_[static_cast<std::size_t>(i)] = sequence.token(begin + i);
  return token_buffer_;
}

PrefixMark Scheduler::root(const Request& request) const {
  return options_.enable_prefix_caching ? kSharedRoot : request.id;
}

std::string Scheduler::check_integrity() const {
  if (std::string fault = pool_.check_integrity(); !fault.empty()) return fault;
  std::vector<int> refs(static_cast<std::size_t>(pool_.num_blocks()));
  for (const Sequence* sequence : running_) {
    if (sequence->state != Sequence::State::running) return "a sequence in the running list is not running";
    if (static_cast<int>(sequence->blocks.size()) < blocks_for(sequence->num_computed)) {
      return "a sequence has fewer blocks than computed tokens";
    }
    for (BlockId block : sequence->blocks) ++refs[static_cast<std::size_t>(block)];
  }
  for (const Sequence* sequence : waiting_) {
    if (sequence->state != Sequence::State::waiting || !sequence->blocks.empty())
      return "a waiting sequence has blocks";
  }
  for (BlockId block = 0; block < pool_.num_blocks(); ++block) {
    if (pool_.ref_count(block) != refs[static_cast<std::size_t>(block)]) {
      return "block " + std::to_string(block) + " is referenced " + std::to_string(pool_.ref_count(block)) +
             " times, but sequences hold it " + std::to_string(refs[static_cast<std::size_t>(block)]) + " times";
    }
  }
  if (!std::is_sorted(running_.begin(), running_.end(), Sooner{})) return "the running list is out of order";
  return {};
}

}  // namespace xgen::engine
