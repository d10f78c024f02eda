// A deterministic stand-in for a model: the next token is a hash of the whole prefix, read back through the block table
// as attention would read keys and values. A wrong, stale or wrongly shared block shows as a wrong token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model_runner.h"
#include "engine/scheduler.h"

namespace xgen::engine {

inline std::uint64_t mix(std::uint64_t h, std::uint64_t x) {
  h = (h ^ x) * 0x9E3779B97F4A7C15u;
  return h ^ (h >> 29);
}

inline TokenId fake_token(std::uint64_t hash, int choice, int vocab) {
  return static_cast<TokenId>(mix(hash, static_cast<std::uint64_t>(choice) + 1000) % static_cast<std::uint64_t>(vocab));
}
inline float fake_logprob(std::uint64_t hash) { return -static_cast<float>(hash % 100000) / 1000; }

// What the fake model's keys and values hold for a token, and the hash of a prefix of them.
inline std::uint64_t fake_value(TokenId token, int position) {
  return mix(static_cast<std::uint64_t>(token) + 1, static_cast<std::uint64_t>(position));
}
inline std::uint64_t fake_hash(std::span<const TokenId> prefix) {
  std::uint64_t h = 0;
  for (std::size_t i = 0; i < prefix.size(); ++i) h = mix(h, fake_value(prefix[i], static_cast<int>(i)));
  return h;
}

class FakeRunner final : public ModelRunner {
 public:
  FakeRunner(int num_blocks, int block_size, int vocab)
      : block_size_(block_size), vocab_(vocab), memory_(static_cast<std::size_t>(num_blocks * block_size)) {}

  void run(const StepPlan& plan, StepResult& result) override {
    result.items.clear();
    result.items.resize(plan.items.size());
    // All rows are written before any is read, as in a batched forward pass.
    for (const ScheduledSequence& item : plan.items) {
      for (int p = item.first_position; p < item.first_position + item.rows; ++p) {
        slot(*item.sequence, p) = fake_value(item.sequence->token(p), p);
        ++rows_computed;
      }
    }
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
      const ScheduledSequence& item = plan.items[i];
      Sequence& s = *item.sequence;
      for (int p = item.score_begin; p < item.score_end; ++p) {
        result.items[i].prompt_scores.push_back({s.token(p + 1), fake_logprob(hash_of(s, p)), {}});
      }
      if (!item.sample) continue;
      const std::uint64_t h = hash_of(s, item.first_position + item.rows - 1);
      result.items[i].token = fake_token(h, s.choice, vocab_);
      if (s.request->sampling.logprobs >= 0)
        result.items[i].score = TokenScore{result.items[i].token, fake_logprob(h), {}};
      if (fail_on_token >= 0 && result.items[i].token == fail_on_token) {
        result.items[i].error = make_error(ErrorCode::internal, "NaN");
      }
    }
  }

  void discard(std::span<const BlockId> blocks) override {
    for (BlockId block : blocks) {
      for (int i = 0; i < block_size_; ++i) memory_.at(static_cast<std::size_t>(block * block_size_ + i)) = 0;
    }
  }

  std::int64_t rows_computed = 0;
  TokenId fail_on_token = -1;

 private:
  std::uint64_t& slot(const Sequence& s, int position) {
    const BlockId block = s.blocks.at(static_cast<std::size_t>(position / block_size_));
    return memory_.at(static_cast<std::size_t>(block * block_size_ + position % block_size_));
  }
  std::uint64_t hash_of(const Sequence& s, int last) {
    std::uint64_t h = 0;
    for (int p = 0; p <= last; ++p) h = mix(h, slot(s, p));
    return h;
  }

  int block_size_;
  int vocab_;
  std::vector<std::uint64_t> memory_;
};

}  // namespace xgen::engine
