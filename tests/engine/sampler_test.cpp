#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "engine/exp_row.h"
#include "engine/philox.h"

namespace xgen::engine {
namespace {

// A sequence with a prompt and some output, and the request it belongs to.
struct Case {
  Request request;
  Sequence sequence;
  Case() {
    sequence.request = &request;
    request.prompt = {0};
  }
};

// The definition, in double and with a full sort: the probability of every token.
std::vector<double> reference(const std::vector<float>& logits, const Case& c) {
  const SamplingParams& p = c.request.sampling;
  std::vector<double> x(logits.begin(), logits.end());
  const std::size_t n = x.size();
  std::map<TokenId, int> in_output;
  std::map<TokenId, int> anywhere;
  for (TokenId t : c.sequence.output) ++in_output[t], ++anywhere[t];
  for (TokenId t : c.request.prompt) ++anywhere[t];
  for (const auto& [t, bias] : p.logit_bias) x[static_cast<std::size_t>(t)] += static_cast<double>(bias);
  for (const auto& [t, count] : anywhere) {
    double& v = x[static_cast<std::size_t>(t)];
    v = v > 0 ? v / static_cast<double>(p.repetition_penalty) : v * static_cast<double>(p.repetition_penalty);
  }
  for (const auto& [t, count] : in_output) {
    x[static_cast<std::size_t>(t)] -=
        static_cast<double>(p.frequency_penalty) * count + static_cast<double>(p.presence_penalty);
  }
  if (static_cast<int>(c.sequence.output.size()) < c.request.min_tokens) {
    for (TokenId t : c.request.eos_ids) x[static_cast<std::size_t>(t)] = -INFINITY;
    for (TokenId t : c.request.stop_ids) x[static_cast<std::size_t>(t)] = -INFINITY;
  }
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return x[a] > x[b]; });
  std::vector<double> q(n, 0.0);
  if (p.temperature == 0) {
    q[order[0]] = 1;
    return q;
  }
  const auto normalise = [&q] {
    const double sum = std::accumulate(q.begin(), q.end(), 0.0);
    for (double& v : q) v /= sum;
  };
  for (std::size_t i = 0; i < n; ++i) q[i] = std::exp((x[i] - x[order[0]]) / static_cast<double>(p.temperature));
  for (std::size_t i = 0; i < n; ++i) {
    if (q[i] < static_cast<double>(p.min_p)) q[i] = 0;
  }
  if (p.top_k > 0) {
    for (std::size_t r = static_cast<std::size_t>(p.top_k); r < n; ++r) q[order[r]] = 0;
  }
  normalise();
  if (p.top_p < 1) {
    double sum = 0;
    for (std::size_t r = 0; r < n; ++r) {
      const bool keep = sum < static_cast<double>(p.top_p);
      sum += q[order[r]];
      if (!keep) q[order[r]] = 0;
    }
    normalise();
  }
  return q;
}

std::vector<float> random_logits(std::mt19937& random, std::size_t n, float spread = 3) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> out(n);
  for (float& x : out) x = normal(random);
  return out;
}

// Draws with many seeds and compares the frequencies with the reference. The seeds are fixed, so it passes or fails the
// same way every time; a right sampler exceeds the bound in one case of a million.
void expect_distribution(const std::vector<float>& logits, Case& c, int draws = 20000) {
  const std::vector<double> q = reference(logits, c);
  std::vector<int> count(logits.size());
  Sampler sampler;
  for (int i = 0; i < draws; ++i) {
    c.request.sampling.seed = static_cast<std::uint64_t>(i) * 0x9E3779B97F4A7C15u;
    const Result<TokenId> token = sampler.sample(logits, c.sequence);
    ASSERT_TRUE(token.ok()) << token.error().message;
    ++count[static_cast<std::size_t>(*token)];
  }
  double chi2 = 0;
  int cells = 0;
  double rest_expected = 0;
  int rest = 0;
  for (std::size_t i = 0; i < q.size(); ++i) {
    const double expected = q[i] * draws;
    if (q[i] == 0) {
      ASSERT_EQ(count[i], 0) << "token " << i << " is excluded";
    }
    if (expected < 5) {
      rest_expected += expected;
      rest += count[i];
      continue;
    }
    chi2 += (count[i] - expected) * (count[i] - expected) / expected;
    ++cells;
  }
  if (rest_expected > 5) {
    chi2 += (rest - rest_expected) * (rest - rest_expected) / rest_expected;
    ++cells;
  }
  const double freedom = std::max(cells - 1, 1);
  EXPECT_LT(chi2, freedom + 5 * std::sqrt(2 * freedom) + 15) << "with " << freedom << " degrees of freedom";
}

// Known answers of the authors' Random123 library (kat_vectors).
TEST(Philox, KnownAnswers) {
  using C = std::array<std::uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (C{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (C{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (C{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(ExpRow, IsExpToWithinItsBound) {
  for (const std::size_t n : {std::size_t{1}, std::size_t{3}, std::size_t{4}, std::size_t{10007}}) {
    std::vector<float> x(n);
    for (std::size_t i = 0; i < n; ++i) x[i] = 3 - 90 * static_cast<float>(i) / static_cast<float>(n);
    x.back() = -INFINITY;
    x.front() = 3;
    std::vector<float> out(n, -1);
    exp_row(x, 3, 0.96f, out.data());
    for (std::size_t i = 0; i < n; ++i) {
      const double z = static_cast<double>((x[i] - 3) * 0.96f);
      if (z < -87.3) {
        EXPECT_EQ(out[i], 0);
      } else {
        EXPECT_NEAR(static_cast<double>(out[i]) / std::exp(z), 1, 3e-7) << z;
      }
    }
    EXPECT_EQ(out[0], 1);
  }
}

TEST(Sampler, GreedyTakesTheLargestAndAmongEqualsTheFirst) {
  Case c;
  c.request.sampling.temperature = 0;
  Sampler sampler;
  const std::vector<float> logits = {1, 5, -2, 5, 4, 5, 0, 0, 0, 5, 1};
  EXPECT_EQ(*sampler.sample(logits, c.sequence), 1);
}

TEST(Sampler, DistributionsMatchTheDefinition) {
  std::mt19937 random(1);
  for (int round = 0; round < 24; ++round) {
    Case c;
    SamplingParams& p = c.request.sampling;
    p.temperature = std::vector{0.3f, 0.7f, 1.0f, 1.8f}[static_cast<std::size_t>(round) % 4];
    if (round % 2 == 1) p.top_p = std::vector{0.2f, 0.5f, 0.9f, 0.99f}[random() % 4];
    if (round % 3 == 1) p.top_k = std::vector{1, 3, 10, 200}[random() % 4];
    if (round % 4 == 2) p.min_p = std::vector{0.02f, 0.1f, 0.4f}[random() % 3];
    if (round % 5 == 3) {
      p.repetition_penalty = 1.3f;
      p.presence_penalty = 0.4f;
      p.frequency_penalty = 0.2f;
      c.request.prompt = {1, 2, 3, 3};
      c.sequence.output = {3, 4, 4, 4, 5};
    }
    if (round % 6 == 4) p.logit_bias = {{0, 2.5f}, {7, -100.f}};
    SCOPED_TRACE("round " + std::to_string(round));
    expect_distribution(random_logits(random, 40), c);
  }
}

TEST(Sampler, FiltersKeepTheSameTokensAsTheDefinitionInALargeVocabulary) {
  std::mt19937 random(2);
  for (int round = 0; round < 8; ++round) {
    Case c;
    c.request.sampling.temperature = round % 2 == 0 ? 1.0f : 0.6f;
    c.request.sampling.top_p = std::vector{0.1f, 0.6f, 0.95f, 0.999f}[static_cast<std::size_t>(round) % 4];
    if (round >= 4) c.request.sampling.top_k = 2000;
    SCOPED_TRACE("round " + std::to_string(round));
    expect_distribution(random_logits(random, 5000, 4), c, 4000);
  }
}

TEST(Sampler, EqualLogitsAreCutByTheLowerId) {
  Case c;
  c.request.sampling.top_k = 3;
  const std::vector<float> logits(100, 1.0f);
  expect_distribution(logits, c, 3000);
  c.request.sampling.top_k = 0;
  c.request.sampling.top_p = 0.045f;  // five of a hundred
  expect_distribution(logits, c, 3000);
}

TEST(Sampler, PenaltiesFollowTheFormulas) {
  Case c;
  SamplingParams& p = c.request.sampling;
  p.temperature = 0;
  c.request.prompt = {0};
  Sampler sampler;
  const std::vector<float> logits = {2.0f, 1.9f, -1.0f};
  EXPECT_EQ(*sampler.sample(logits, c.sequence), 0);
  p.repetition_penalty = 1.1f;  // 2.0 / 1.1 < 1.9; the prompt counts
  EXPECT_EQ(*sampler.sample(logits, c.sequence), 1);
  p.repetition_penalty = 1;
  p.presence_penalty = 0.2f;  // over the output only
  EXPECT_EQ(*sampler.sample(logits, c.sequence), 0);
  c.sequence.output = {0};
  EXPECT_EQ(*sampler.sample(logits, c.sequence), 1);
  p.presence_penalty = 0;
  p.frequency_penalty = 0.04f;
  c.sequence.output = {0, 0};
  EXPECT_EQ(*sampler.sample(logits, c.sequence), 0) << "2 - 2 * 0.04 = 1.92";
  c.sequence.output = {0, 0, 0};
  EXPECT_EQ(*sampler.sample(logits, c.sequence), 1) << "2 - 3 * 0.04 = 1.88";
}

TEST(Sampler, PenaltiesSeeTheBiasedLogits) {
  Case c;
  SamplingParams& p = c.request.sampling;
  p.temperature = 0;
  p.repetition_penalty = 2;
  p.logit_bias = {{0, 2.0f}};
  Sampler sampler;
  // (1 + 2) / 2 = 1.5; the other way round 1 / 2 + 2 = 2.5 would win.
  EXPECT_EQ(*sampler.sample(std::vector<float>{1.0f, 2.0f}, c.sequence), 1);
}

TEST(Sampler, MinTokensMasksEosAndStopIds) {
  Case c;
  c.request.sampling.temperature = 0;
  c.request.eos_ids = {1};
  c.request.stop_ids = {2, 1000};  // an id beyond the logits does no harm
  c.request.min_tokens = 2;
  Sampler sampler;
  const std::vector<float> logits = {0, 9, 8, 1};
  EXPECT_EQ(*sampler.sample(logits, c.sequence), 3);
  c.sequence.output = {3};
  EXPECT_EQ(*sampler.sample(logits, c.sequence), 3);
  c.sequence.output = {3, 3};
  EXPECT_EQ(*sampler.sample(logits, c.sequence), 1);
  c.request.min_tokens = 5;
  const Result<TokenId> none = sampler.sample(std::span(logits).subspan(1, 0), c.sequence);
  EXPECT_FALSE(none.ok());
}

TEST(Sampler, ExtremeTemperatures) {
  Case c;
  Sampler sampler;
  const std::vector<float> logits = {1, 2, 3, 2.5f};
  for (float t : {1e-5f, 1e-3f, 1e-30f}) {
    c.request.sampling.temperature = t;
    EXPECT_EQ(*sampler.sample(logits, c.sequence), 2) << t;
  }
  c.request.sampling.temperature = 1e30f;
  EXPECT_TRUE(sampler.sample(logits, c.sequence).ok());
}

TEST(Sampler, ValuesThatAreNotNumbersAreAnError) {
  Sampler sampler;
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                    -std::numeric_limits<float>::infinity()}) {
    for (std::size_t at : {std::size_t{0}, std::size_t{9}, std::size_t{16}}) {
      std::vector<float> logits(17, 1.0f);
      logits[at] = bad;
      Case c;
      const Result<TokenId> token = sampler.sample(logits, c.sequence);
      ASSERT_FALSE(token.ok());
      EXPECT_EQ(token.error().code, ErrorCode::internal);
      EXPECT_FALSE(sampler.score(logits, 1, 2).ok());
    }
  }
}

TEST(Sampler, ScoresAreLogSoftmaxOfTheRawLogits) {
  std::mt19937 random(3);
  const std::vector<float> logits = random_logits(random, 1000, 5);
  double sum = 0;
  const double max = *std::max_element(logits.begin(), logits.end());
  for (float x : logits) sum += std::exp(static_cast<double>(x) - max);
  Sampler sampler;
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  for (const std::size_t rank : {std::size_t{0}, std::size_t{2}, std::size_t{3}, std::size_t{700}}) {
    const TokenId token = order[rank];
    const Result<TokenScore> score = sampler.score(logits, token, 3);
    ASSERT_TRUE(score.ok());
    const auto expected = [&](TokenId t) {
      return static_cast<double>(logits[static_cast<std::size_t>(t)]) - max - std::log(sum);
    };
    EXPECT_NEAR(static_cast<double>(score->logprob), expected(token), 1e-5);
    ASSERT_EQ(score->top.size(), rank < 3 ? 3u : 4u) << "the chosen one is added if it is not among the best";
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(score->top[i].first, order[i]);
      EXPECT_NEAR(static_cast<double>(score->top[i].second), expected(order[i]), 1e-5);
    }
    if (rank >= 3) {
      EXPECT_EQ(score->top[3], std::pair(token, score->logprob));
    }
  }
  EXPECT_TRUE(sampler.score(logits, 5, 0)->top.empty());
}

TEST(Sampler, SeedChoiceAndPositionDecideAndNothingElse) {
  std::mt19937 random(4);
  const std::vector<float> logits = random_logits(random, 500, 1);
  std::map<std::array<int, 3>, TokenId> drawn;
  Sampler one;
  for (int pass = 0; pass < 2; ++pass) {
    Sampler fresh;
    for (int seed = 0; seed < 5; ++seed) {
      for (int choice = 0; choice < 4; ++choice) {
        for (int position = 0; position < 6; ++position) {
          Case c;
          c.request.sampling.seed = static_cast<std::uint64_t>(seed);
          c.sequence.choice = choice;
          c.sequence.output.assign(static_cast<std::size_t>(position), 7);
          const TokenId token = *(pass == 0 ? one : fresh).sample(logits, c.sequence);
          const auto [it, is_new] = drawn.try_emplace({seed, choice, position}, token);
          EXPECT_EQ(it->second, token);
        }
      }
    }
  }
  std::map<TokenId, int> different;
  for (const auto& [key, token] : drawn) ++different[token];
  EXPECT_GT(different.size(), 60u) << "120 draws from 500 tokens should rarely agree";
}

}  // namespace
}  // namespace xgen::engine
