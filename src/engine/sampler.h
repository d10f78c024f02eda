// Sampler: from one row of logits to the next token and its log-probability.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "engine/model_runner.h"
#include "engine/sequence.h"

namespace xgen::engine {

// Working memory for one row, kept between rows. One per thread.
class Sampler {
 public:
  // The next token of `sequence`. Brings its counts up to date and changes nothing else. The order of operations:
  //   1. logit bias; repetition penalty over prompt and output (positive logits divided, others multiplied: Keskar et
  //      al., "CTRL"), frequency and presence penalty over the output (OpenAI's formula); ids that may not come before
  //      min_tokens are masked. vLLM has the same order;
  //   2. temperature; below 1e-5 the largest logit is taken;
  //   3. min-p, top-k, top-p (Holtzman et al.: the fewest most likely tokens that reach p), each on what is left;
  //   4. one draw from what is left, by Philox(seed, choice, output position).
  // Equal logits are ordered by the lower id. Nothing depends on other rows. Errors: internal where a logit is NaN or
  // infinite; invalid_argument where every token is masked.
  Result<TokenId> sample(std::span<const float> logits, Sequence& sequence);

  // Log-probability of `token` in softmax(logits), and of the `alternatives` most likely tokens.
  // Errors: internal where a logit is NaN or infinite.
  Result<TokenScore> score(std::span<const float> logits, TokenId token, int alternatives);

 private:
  struct Candidate {
    float logit;
    TokenId id;
    float weight;  // exp((logit - max) / temperature)
  };
  static bool better(const Candidate& a, const Candidate& b);
  void select_largest(std::span<const float> logits, std::size_t count);
  void keep_nucleus(float max, float inverse_temperature, float top_p);

  std::vector<float> logits_;          // [vocab], the modified row
  std::vector<Candidate> candidates_;  // what the filters have left
  std::vector<float> weights_;         // [vocab], as Candidate::weight
  std::vector<std::uint16_t> bins_;    // see keep_nucleus
  std::vector<double> bin_sums_;
  std::vector<Candidate> crossing_;
};

}  // namespace xgen::engine
