// The promise: the bits of a row's logits depend on its sequence's tokens alone.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "golden.h"

namespace xgen::model {
namespace {

Tokens random_tokens(std::mt19937& random, std::size_t n, int vocab) {
  Tokens tokens(n);
  for (auto& t : tokens) t = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(vocab));
  return tokens;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// One sequence of the mix: its tokens, how far it is, and its logits at every position when run alone in one go.
struct Job {
  Tokens tokens;
  std::vector<std::vector<float>> alone;
  Sequence sequence;
};

struct Setting {
  std::string name;
  DType kv = DType::f32;
  bool gguf = false;
};

class Invariance : public testing::TestWithParam<Setting> {};

// Sequences of random lengths come and go in steps that take random chunks of a random choice of them, in random order,
// on pools of 1 to 3 threads and shuffled blocks; every logit asked for must be bit for bit the one computed alone.
TEST_P(Invariance, ChunksNeighboursBlocksAndThreadsDoNotShow) {
  const Setting& setting = GetParam();
  const GoldenCase golden = load_golden(setting.name);
  const auto files = setting.gguf ? gguf_files(gguf_contents(golden)) : hf_files(golden.config, golden.tensors);
  for (const kernels::KernelTable* kernels : kernels::available_kernels()) {
    std::mt19937 random(7);
    const auto decoder = load_decoder(*files, {kernels, 0});
    ASSERT_TRUE(decoder);
    std::vector<Job> jobs(6);
    {
      Runner runner(*decoder, 1, setting.kv, 8);
      for (Job& job : jobs) {
        job.tokens = random_tokens(random, 1 + random() % 150, decoder->info().vocab_size);
        Tokens all(job.tokens.size());
        for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
        job.alone = runner.prefill(job.tokens, all);
      }
    }
    for (int threads = 1; threads <= 3; ++threads) {
      Runner runner(*decoder, threads, setting.kv, 8, 160, random());
      for (Job& job : jobs) job.sequence = {};
      int steps = 0;
      for (bool work = true; work; ++steps) {
        work = false;
        std::shuffle(jobs.begin(), jobs.end(), random);
        std::vector<Runner::Chunk> chunks;
        std::vector<const std::vector<float>*> expected;
        std::size_t budget = 1 + random() % 200;
        for (Job& job : jobs) {
          const auto computed = static_cast<std::size_t>(job.sequence.computed);
          const std::size_t left = job.tokens.size() - computed;
          work = work || left > 0;
          if (left == 0 || budget == 0 || random() % 4 == 0) continue;
          const std::size_t n = std::min({left, budget, std::size_t{1} + random() % (random() % 2 ? 3 : 90)});
          budget -= n;
          Runner::Chunk chunk{&job.sequence, {}, {}};
          for (std::size_t i = 0; i < n; ++i) {
            chunk.tokens.push_back(job.tokens[computed + i]);
            if (random() % 3 != 0) continue;
            chunk.wanted.push_back(static_cast<std::int32_t>(i));
            expected.push_back(&job.alone[computed + i]);
          }
          chunks.push_back(std::move(chunk));
        }
        if (chunks.empty()) continue;
        const auto rows = runner.run(chunks);
        ASSERT_EQ(rows.size(), expected.size());
        for (std::size_t i = 0; i < rows.size(); ++i) {
          ASSERT_TRUE(same_bits(rows[i], *expected[i]))
              << kernels->name << ", " << threads << " threads, step " << steps;
        }
      }
      EXPECT_GT(steps, 3);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Invariance,
                         testing::Values(Setting{"llama3"}, Setting{"llama3", DType::f16}, Setting{"qwen2"},
                                         Setting{"phi3_longrope"}, Setting{"gemma3"}, Setting{"gemma2", DType::bf16},
                                         Setting{"granite"}, Setting{"olmo2"}, Setting{"glm4"}, Setting{"mixtral"},
                                         Setting{"qwen3_moe"}, Setting{"qwen3_moe_sparse", DType::f16, true}),
                         [](const auto& p) {
                           return p.param.name + "_" + std::string(dtype_info(p.param.kv).name) +
                                  (p.param.gguf ? "_gguf" : "");
                         });

// A cache of half the width changes the logits a little, not the model.
TEST(KvCacheType, HalfPrecisionKeysAndValuesStayClose) {
  const GoldenCase golden = load_golden("llama3");
  const auto decoder = load_decoder(*hf_files(golden.config, golden.tensors));
  ASSERT_TRUE(decoder);
  const Tokens last{static_cast<std::int32_t>(golden.prompts[0].tokens.size()) - 1};
  const auto exact = Runner(*decoder).prefill(golden.prompts[0].tokens, last);
  const auto f16 = Runner(*decoder, 1, DType::f16).prefill(golden.prompts[0].tokens, last);
  const auto bf16 = Runner(*decoder, 1, DType::bf16).prefill(golden.prompts[0].tokens, last);
  EXPECT_FALSE(same_bits(f16[0], exact[0]));
  EXPECT_LT(relative_error(f16[0], exact[0].data()), 5e-3);
  EXPECT_LT(relative_error(bf16[0], exact[0].data()), 5e-2);
}

TEST(KvCache, RefusesWhatCannotBe) {
  ModelInfo info;
  info.num_layers = 2;
  info.num_kv_heads = 2;
  info.head_dim = 16;
  EXPECT_EQ(KvCache::bytes_per_block(info, DType::f16, 16), 2U * 2 * 2 * 16 * 16 * 2);
  EXPECT_FALSE(KvCache::create(info, DType::q8_0, 16, 4).ok());
  EXPECT_FALSE(KvCache::create(info, DType::f32, 12, 4).ok());
  EXPECT_FALSE(KvCache::create(info, DType::f32, 128, 4).ok());
  EXPECT_FALSE(KvCache::create(info, DType::f32, 16, 0).ok());
  info.num_layers = 1 << 20;
  info.num_kv_heads = 1 << 16;
  info.head_dim = 1 << 12;
  const auto huge = KvCache::create(info, DType::f32, 64, 1 << 30);
  ASSERT_FALSE(huge.ok());
  EXPECT_EQ(huge.error().code, ErrorCode::unavailable);
}

}  // namespace
}  // namespace xgen::model
