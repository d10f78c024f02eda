#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/exp_row.h"
#include "engine/philox.h"

namespace xgen::engine {
namespace {

constexpr float kGreedyBelow = 1e-5f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Eight independent maxima: one chain of compares would wait for each result.
float max_of(std::span<const float> x) {
  constexpr std::size_t kLanes = 8;
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, -kInfinity);
  std::size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    for (std::size_t l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  }
  for (; i < x.size(); ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
  return *std::max_element(lanes, lanes + kLanes);
}

bool all_finite(std::span<const float> x) {
  int bad = 0;
  for (float value : x) bad |= !(std::fabs(value) <= std::numeric_limits<float>::max());
  return bad == 0;
}

TokenId first_of(std::span<const float> x, float value) {
  return static_cast<TokenId>(std::find(x.begin(), x.end(), value) - x.begin());
}

Error not_finite() {
  return make_error(ErrorCode::internal, "The model's output has a value that is not a finite number.");
}

bool has_penalties(const SamplingParams& p) {
  return p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0;
}

void count_tokens(Sequence& s) {
  for (; s.counted < s.num_tokens(); ++s.counted) {
    const bool is_output = s.counted >= s.prompt_size();
    s.counts.try_emplace(s.token(s.counted), 0).first->second += is_output ? 1 : 0;
  }
}

void apply_penalties(const SamplingParams& p, const Sequence& s, std::span<float> x) {
  for (const auto& [id, count] : s.counts) {
    if (static_cast<std::size_t>(id) >= x.size()) continue;
    float& value = x[static_cast<std::size_t>(id)];
    value = value > 0 ? value / p.repetition_penalty : value * p.repetition_penalty;
    value -= p.frequency_penalty * static_cast<float>(count);
    if (count > 0) value -= p.presence_penalty;
  }
}

// The index of an item, drawn in proportion to the items' weights; u in [0, 1). At least one weight is above 0.
template <class Items, class Weight>
std::size_t draw(const Items& items, double u, Weight weight) {
  double total = 0;
  for (const auto& item : items) total += static_cast<double>(weight(item));
  const double target = u * total;
  double sum = 0;
  std::size_t last = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (weight(items[i]) == 0) continue;
    sum += static_cast<double>(weight(items[i]));
    last = i;
    if (sum > target) break;
  }
  return last;
}

}  // namespace

bool Sampler::better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

Result<TokenId> Sampler::sample(std::span<const float> logits, Sequence& sequence) {
  const Request& request = *sequence.request;
  const SamplingParams& params = request.sampling;
  if (!all_finite(logits)) return not_finite();

  const bool mask_stops = static_cast<int>(sequence.output.size()) < request.min_tokens;
  std::span<const float> x = logits;
  if (mask_stops || has_penalties(params) || !params.logit_bias.empty()) {
    logits_.assign(logits.begin(), logits.end());
    const auto at = [this](TokenId id) -> float* {
      return static_cast<std::size_t>(id) < logits_.size() ? &logits_[static_cast<std::size_t>(id)] : nullptr;
    };
    for (const auto& [id, bias] : params.logit_bias) {
      if (float* value = at(id)) *value += bias;
    }
    if (has_penalties(params)) {
      count_tokens(sequence);
      apply_penalties(params, sequence, logits_);
    }
    if (mask_stops) {
      for (const auto* ids : {&request.eos_ids, &request.stop_ids}) {
        for (TokenId id : *ids) {
          if (float* value = at(id)) *value = -kInfinity;
        }
      }
    }
    x = logits_;
  }

  const float max = max_of(x);
  if (max == -kInfinity) {
    return make_error(ErrorCode::invalid_argument,
                      "No token may follow: min_tokens and logit_bias forbid all of them.");
  }
  if (max == kInfinity) return not_finite();
  if (params.temperature < kGreedyBelow) return first_of(x, max);

  const float inverse_temperature = 1 / params.temperature;
  const double u = uniform(params.seed, static_cast<std::uint32_t>(sequence.choice),
                           static_cast<std::uint32_t>(sequence.output.size()));
  const bool top_k = params.top_k > 0 && static_cast<std::size_t>(params.top_k) < x.size();
  if (top_k) {
    // min-p and top-k both keep the best down to some rank, so their order does not matter.
    select_largest(x, static_cast<std::size_t>(params.top_k));
    logits_.resize(candidates_.size());
    for (std::size_t i = 0; i < candidates_.size(); ++i) logits_[i] = candidates_[i].logit;
    weights_.resize(candidates_.size());
    exp_row(logits_, max, inverse_temperature, weights_.data());
    for (std::size_t i = 0; i < candidates_.size(); ++i) candidates_[i].weight = weights_[i];
    while (candidates_.back().weight < params.min_p) candidates_.pop_back();
  } else {
    weights_.resize(x.size());
    exp_row(x, max, inverse_temperature, weights_.data());
    if (params.min_p == 0 && params.top_p == 1) {
      return static_cast<TokenId>(draw(weights_, u, [](float w) { return w; }));
    }
    candidates_.resize(x.size());
    std::size_t kept = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      candidates_[kept] = {x[i], static_cast<TokenId>(i), weights_[i]};
      kept += weights_[i] > 0 && weights_[i] >= params.min_p;
    }
    candidates_.resize(kept);
  }
  if (params.top_p < 1) keep_nucleus(max, inverse_temperature, params.top_p);
  return candidates_[draw(candidates_, u, [](const Candidate& c) { return c.weight; })].id;
}

// The `count` best of `logits`, best first.
void Sampler::select_largest(std::span<const float> logits, std::size_t count) {
  constexpr std::size_t kLargestHeap = 1024;
  candidates_.clear();
  if (count == 0) return;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] == -kInfinity) continue;
    const Candidate c{logits[i], static_cast<TokenId>(i), 0};
    if (count > kLargestHeap) {
      candidates_.push_back(c);
    } else if (candidates_.size() < count) {
      candidates_.push_back(c);
      std::push_heap(candidates_.begin(), candidates_.end(), better);
    } else if (c.logit > candidates_.front().logit) {  // the worst of the heap; equals have a lower id already
      std::pop_heap(candidates_.begin(), candidates_.end(), better);
      candidates_.back() = c;
      std::push_heap(candidates_.begin(), candidates_.end(), better);
    }
  }
  if (candidates_.size() > count) {
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(count), candidates_.end(),
                     better);
    candidates_.resize(count);
  }
  std::sort(candidates_.begin(), candidates_.end(), better);
}

// Keeps the best candidates until their weights reach top_p of the sum. The border is found without sorting all of
// them: weights are summed by bins of the logit (narrow ones of 1/64), and only the bin where the sum is reached is
// sorted.
void Sampler::keep_nucleus(float max, float inverse_temperature, float top_p) {
  constexpr int kBins = 4096;
  bin_sums_.assign(kBins, 0.0);
  bins_.resize(candidates_.size());
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    const float depth = (max - candidates_[i].logit) * inverse_temperature * 64;
    bins_[i] = static_cast<std::uint16_t>(depth < kBins - 1 ? static_cast<int>(depth) : kBins - 1);
    bin_sums_[bins_[i]] += static_cast<double>(candidates_[i].weight);
  }
  double total = 0;
  for (double sum : bin_sums_) total += sum;
  const double wanted = total * static_cast<double>(top_p);
  double reached = 0;
  int border = 0;
  while (border < kBins - 1 && reached + bin_sums_[static_cast<std::size_t>(border)] < wanted) {
    reached += bin_sums_[static_cast<std::size_t>(border++)];
  }

  crossing_.clear();
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    if (bins_[i] == border) crossing_.push_back(candidates_[i]);
  }
  std::sort(crossing_.begin(), crossing_.end(), better);
  std::size_t taken = 0;
  while (taken < crossing_.size() && (reached < wanted || (border == 0 && taken == 0))) {
    reached += static_cast<double>(crossing_[taken++].weight);
  }

  std::size_t kept = 0;
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    const bool keep =
        bins_[i] < border || (bins_[i] == border && taken > 0 && !better(crossing_[taken - 1], candidates_[i]));
    if (keep) candidates_[kept++] = candidates_[i];
  }
  candidates_.resize(kept);
}

Result<TokenScore> Sampler::score(std::span<const float> logits, TokenId token, int alternatives) {
  if (!all_finite(logits)) return not_finite();
  const float max = max_of(logits);
  weights_.resize(logits.size());
  exp_row(logits, max, 1, weights_.data());
  const double log_sum = std::log(sum_row(weights_));
  const auto logprob = [&](float x) {
    return static_cast<float>(static_cast<double>(x) - static_cast<double>(max) - log_sum);
  };
  TokenScore score;
  score.token = token;
  score.logprob = logprob(logits[static_cast<std::size_t>(token)]);
  if (alternatives > 0) {
    select_largest(logits, static_cast<std::size_t>(alternatives));
    bool listed = false;
    for (const Candidate& c : candidates_) {
      score.top.emplace_back(c.id, logprob(c.logit));
      listed |= c.id == token;
    }
    if (!listed) score.top.emplace_back(token, score.logprob);
  }
  return score;
}

}  // namespace xgen::engine
