// Request and Sequence: what the engine knows of a request, and of each of its choices.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/block_pool.h"
#include "inference/types.h"

namespace xgen::engine {

using RequestId = std::uint64_t;  // in order of arrival, from 1

// How the next token is chosen; every default resolved. See sampler.h for the order of operations.
struct SamplingParams {
  float temperature = 1;  // 0: greedy
  float top_p = 1;
  int top_k = 0;  // 0: all
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::uint64_t seed = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;  // finite; each id once
  int logprobs = -1;                                  // alternatives to report; -1: no log-probabilities at all
};

struct Sequence;

// The scheduler's view of a request. Whoever submits it keeps it alive and in place until it is finished or cancelled.
struct Request {
  // Set before submitting.
  std::vector<TokenId> prompt;  // not empty; ids inside the vocabulary
  SamplingParams sampling;
  int max_tokens = 1;                                         // per choice; 0: only the prompt
  int min_tokens = 0;                                         // before so many no eos_ids, stop_ids, stop strings
  std::vector<TokenId> eos_ids;                               // end a choice; empty: ignored
  std::vector<TokenId> stop_ids;                              // end a choice
  int n = 1;                                                  // choices
  bool prompt_logprobs = false;                               // score the prompt's tokens
  int priority = 0;                                           // smaller is sooner
  double deadline = std::numeric_limits<double>::infinity();  // on the caller's clock

  // Kept by the scheduler.
  RequestId id = 0;
  std::vector<std::unique_ptr<Sequence>> choices;  // made one after another: see Scheduler
  int unfinished = 0;                              // choices without an end
  int cached_tokens = 0;                           // of the prompt, found in the prefix cache on first admission

  Request() = default;
  virtual ~Request() = default;
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;
};

// One choice of a request: its tokens are the request's prompt, then its own output.
struct Sequence {
  enum class State : std::uint8_t { waiting, running, finished };

  Request* request = nullptr;
  int choice = 0;
  State state = State::waiting;
  std::vector<TokenId> output;
  int num_computed = 0;         // leading tokens whose keys and values are in `blocks`
  std::vector<BlockId> blocks;  // covers at least num_computed tokens
  int num_published = 0;        // leading blocks that are in the prefix cache
  int prompt_scored = 0;        // prompt tokens after the first whose log-probability was reported
  bool admitted = false;        // has run before

  // Sampling state: how often each token is in the output (0: only in the prompt), as far as `counted` tokens.
  std::unordered_map<TokenId, int> counts;
  int counted = 0;

  int prompt_size() const { return static_cast<int>(request->prompt.size()); }
  int num_tokens() const { return prompt_size() + static_cast<int>(output.size()); }
  TokenId token(int position) const {
    return position < prompt_size() ? request->prompt[static_cast<std::size_t>(position)]
                                    : output[static_cast<std::size_t>(position - prompt_size())];
  }
  // Tokens to be computed before anything is sampled. Scoring a prompt does not need its last token's logits.
  int target() const { return request->max_tokens > 0 ? num_tokens() : prompt_size() - 1; }
  int pending() const { return target() - num_computed; }
  // Prompt tokens whose log-probability is to be reported (by choice 0, for all).
  int prompt_scores_wanted() const { return request->prompt_logprobs && choice == 0 ? prompt_size() - 1 : 0; }
};

}  // namespace xgen::engine
