#include "engine/memory_plan.h"

#include <gtest/gtest.h>

namespace xgen::engine {
namespace {

model::ModelInfo model_info() {
  model::ModelInfo info;
  info.weight_format = "Q8_0";
  info.vocab_size = 32000;
  info.hidden_size = 1024;
  info.num_layers = 16;
  info.num_kv_heads = 8;
  info.head_dim = 64;
  info.max_position = 8192;
  info.weight_bytes = std::uint64_t{1} << 30;
  return info;
}
std::uint64_t workspace(int rows, int logit_rows) {
  return static_cast<std::uint64_t>(rows) * 65536 + static_cast<std::uint64_t>(logit_rows) * 128000;
}
constexpr std::uint64_t kKvBytesPerToken = 2 * 16 * 8 * 64 * 2;  // K and V, layers, heads, dims, f16

TEST(MemoryPlan, PlansForManySequencesOfMediumLength) {
  const auto plan = plan_memory(model_info(), workspace, {});
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->max_model_len, 8192);
  EXPECT_EQ(plan->kv_tokens, 64 * 1024);
  EXPECT_EQ(plan->kv_dtype, DType::f16);
  EXPECT_GE(plan->kv_bytes, kKvBytesPerToken * 65536);
  EXPECT_LT(plan->kv_bytes, kKvBytesPerToken * 65536 * 101 / 100) << "the tables of the blocks are small";
  EXPECT_EQ(plan->workspace, workspace(512, 64 + plan->max_score_rows));
  EXPECT_EQ(plan->total, plan->weights + plan->kv_bytes + plan->workspace);
  EXPECT_EQ(plan->kv_tokens, std::int64_t{plan->kv_blocks} * plan->block_size);
}

TEST(MemoryPlan, F32WeightsKeepF32Keys) {
  model::ModelInfo info = model_info();
  info.weight_format = "F32";
  EXPECT_EQ(plan_memory(info, workspace, {})->kv_dtype, DType::f32);
  MemoryOptions options;
  options.kv_dtype = DType::bf16;
  EXPECT_EQ(plan_memory(info, workspace, options)->kv_dtype, DType::bf16);
}

TEST(MemoryPlan, TheBudgetDecidesTheContextUnlessItIsSet) {
  MemoryOptions options;
  const auto fixed = plan_memory(model_info(), workspace, options);
  options.budget = fixed->weights + fixed->workspace + kKvBytesPerToken * 4000;
  const auto plan = plan_memory(model_info(), workspace, options);
  ASSERT_TRUE(plan.ok());
  EXPECT_LE(plan->total, options.budget);
  EXPECT_LT(plan->max_model_len, 4000);
  EXPECT_GT(plan->max_model_len, 3900);
  EXPECT_GE(plan->kv_tokens, plan->max_model_len) << "one sequence always fits";
  options.max_model_len = 4096;
  const auto refused = plan_memory(model_info(), workspace, options);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::unavailable);
  EXPECT_NE(refused.error().message.find("4096"), std::string::npos);
  EXPECT_NE(refused.error().message.find("memory budget"), std::string::npos);
  options.budget = fixed->weights;
  EXPECT_EQ(plan_memory(model_info(), workspace, options).error().code, ErrorCode::unavailable);
}

TEST(MemoryPlan, AnExplicitCacheIsKeptTo) {
  MemoryOptions options;
  options.kv_cache_bytes = std::uint64_t{64} << 20;
  auto plan = plan_memory(model_info(), workspace, options);
  ASSERT_TRUE(plan.ok());
  EXPECT_LE(plan->kv_bytes, *options.kv_cache_bytes);
  EXPECT_GT(plan->kv_bytes, *options.kv_cache_bytes * 99 / 100);
  EXPECT_EQ(plan->max_model_len, plan->kv_tokens) << "less than the model was made for";
  options.max_model_len = 4096;
  EXPECT_EQ(plan_memory(model_info(), workspace, options).error().param, "kv_cache");
  options.max_model_len = 1024;
  EXPECT_EQ(plan_memory(model_info(), workspace, options)->max_model_len, 1024);
  options.kv_cache_bytes = 1000;
  options.max_model_len.reset();
  EXPECT_EQ(plan_memory(model_info(), workspace, options).error().param, "kv_cache");
  options.kv_cache_bytes = std::uint64_t{1} << 40;
  options.budget = std::uint64_t{8} << 30;
  EXPECT_EQ(plan_memory(model_info(), workspace, options).error().code, ErrorCode::unavailable);
}

TEST(MemoryPlan, SettingsThatCannotBe) {
  const auto param = [](auto change) {
    MemoryOptions options;
    change(options);
    const auto plan = plan_memory(model_info(), workspace, options);
    return plan.ok() ? std::string("no error") : plan.error().param;
  };
  EXPECT_EQ(param([](MemoryOptions& o) { o.max_model_len = 8193; }), "max_model_len");
  EXPECT_EQ(param([](MemoryOptions& o) { o.max_model_len = 1; }), "max_model_len");
  EXPECT_EQ(param([](MemoryOptions& o) { o.max_num_seqs = 0; }), "max_num_seqs");
  EXPECT_EQ(param([](MemoryOptions& o) { o.max_num_batched_tokens = 0; }), "max_num_batched_tokens");
  EXPECT_EQ(param([](MemoryOptions& o) { o.block_size = 24; }), "block_size");
  MemoryOptions many;
  many.max_num_seqs = 1000;
  EXPECT_EQ(plan_memory(model_info(), workspace, many)->max_num_batched_tokens, 1000);
}

TEST(MemoryPlan, DescribesItselfWithTheNumbers) {
  MemoryOptions options;
  options.budget = std::uint64_t{16} << 30;
  const std::string text = describe(*plan_memory(model_info(), workspace, options));
  for (const char* part : {"1.0 GiB", "65536 tokens", "F16", "16.0 GiB", "max_model_len 8192"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  }
}

}  // namespace
}  // namespace xgen::engine
