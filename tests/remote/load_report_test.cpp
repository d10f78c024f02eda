#include "remote/load_report.h"

#include <gtest/gtest.h>

namespace xgen::remote {
namespace {

TEST(LoadReport, ReadsVllmsPage) {
  const auto load = read_load(
      "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
      "# TYPE vllm:num_requests_running gauge\n"
      "vllm:num_requests_running{engine=\"0\",model_name=\"meta-llama/Llama-3.1-8B\"} 3.0\n"
      "vllm:num_requests_waiting{engine=\"0\",model_name=\"meta-llama/Llama-3.1-8B\"} 12.0\n"
      "vllm:cache_config_info{block_size=\"16\",cache_dtype=\"auto\",num_gpu_blocks=\"27000\"} 1.0\n"
      "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"meta-llama/Llama-3.1-8B\"} 0.5\n",
      "meta-llama/Llama-3.1-8B");
  ASSERT_TRUE(load.has_value());
  EXPECT_EQ(load->running, 3);
  EXPECT_EQ(load->waiting, 12);
  EXPECT_EQ(load->kv_tokens, 16 * 27000);
}

TEST(LoadReport, TellsModelsApartAndAddsUpEngines) {
  constexpr const char* kPage =
      "vllm:num_requests_running{model_name=\"a\",engine=\"0\"} 1\n"
      "vllm:num_requests_running{model_name=\"a\",engine=\"1\"} 2 1700000000000\n"
      "vllm:num_requests_running{model_name=\"b\",engine=\"0\"} 7\n"
      "vllm:num_requests_waiting{model_name=\"b\",engine=\"0\"} 9\n"
      "vllm:cache_config_info{model_name=\"a\",engine=\"0\",block_size=\"32\",num_gpu_blocks=\"100\"} 1\n"
      "vllm:cache_config_info{model_name=\"b\",engine=\"0\",block_size=\"32\",num_gpu_blocks=\"5\"} 1\n";
  const auto a = read_load(kPage, "a");
  ASSERT_TRUE(a.has_value());
  EXPECT_EQ(a->running, 3);
  EXPECT_EQ(a->waiting, 0);
  EXPECT_EQ(a->kv_tokens, 3200);
  const auto other = read_load(kPage, "an alias");  // under another name there: all of it
  ASSERT_TRUE(other.has_value());
  EXPECT_EQ(other->running, 10);
}

TEST(LoadReport, ForeignAndBrokenPages) {
  EXPECT_FALSE(read_load("", "a").has_value());
  EXPECT_FALSE(read_load("<html>not found</html>", "a").has_value());
  EXPECT_FALSE(read_load("llamacpp:requests_processing 1\n", "a").has_value());
  EXPECT_FALSE(read_load("vllm:num_requests_running{model_name=\"a\"} NaN\n", "a").has_value());
  EXPECT_FALSE(read_load("vllm:num_requests_running{model_name=\"a\"\n", "a").has_value());
  EXPECT_FALSE(read_load("vllm:num_requests_running{model_name=\"a\"} -1\n", "a").has_value());
  const auto bare = read_load("vllm:num_requests_running 4\nvllm:num_requests_waiting", "a");
  ASSERT_TRUE(bare.has_value());
  EXPECT_EQ(bare->running, 4);
}

}  // namespace
}  // namespace xgen::remote
