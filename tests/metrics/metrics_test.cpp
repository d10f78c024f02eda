#include "metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <thread>

namespace xgen::metrics {
namespace {

using ::testing::HasSubstr;

TEST(Metrics, SamplesCarryLabelsAndValues) {
  ModelSample model;
  model.name = "a\"b";
  model.stats.prompt_tokens = 12;
  model.stats.finished_stop = 3;
  model.stats.time_to_first_token.observe(0.005);
  model.stats.time_to_first_token.observe(0.03);
  model.stats.time_to_first_token.observe(1e9);
  const std::string text = render({&model, 1}, {});
  EXPECT_THAT(text, HasSubstr("vllm:prompt_tokens_total{engine=\"0\",model_name=\"a\\\"b\"} 12\n"));
  EXPECT_THAT(text,
              HasSubstr("vllm:request_success_total{engine=\"0\",model_name=\"a\\\"b\",finished_reason=\"stop\"} 3\n"));
  // Buckets are cumulative and include their upper bound.
  EXPECT_THAT(text, HasSubstr(",le=\"0.001\"} 0\n"));
  EXPECT_THAT(
      text, HasSubstr("vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"a\\\"b\",le=\"0.005\"} 1\n"));
  EXPECT_THAT(text,
              HasSubstr("vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"a\\\"b\",le=\"0.04\"} 2\n"));
  EXPECT_THAT(text,
              HasSubstr("vllm:time_to_first_token_seconds_bucket{engine=\"0\",model_name=\"a\\\"b\",le=\"+Inf\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"a\\\"b\"} 3\n"));
}

TEST(Metrics, AnswersHaveRouteAndStatus) {
  ProcessSample process;
  process.http_responses = {{"/v1/models/{id}", 200, 7}, {"none", 0, 1}};
  const std::string text = render({}, process);
  EXPECT_THAT(text, HasSubstr("# TYPE xgen_http_responses_total counter\n"
                              "xgen_http_responses_total{route=\"/v1/models/{id}\",status=\"200\"} 7\n"
                              "xgen_http_responses_total{route=\"none\",status=\"other\"} 1\n"));
  EXPECT_THAT(reference_markdown(), HasSubstr("`xgen_http_responses_total`"));
}

TEST(Metrics, DurationsOfRoutes) {
  ProcessSample process;
  inference::Histogram seconds(inference::kHttpBuckets);
  seconds.observe(0.02);
  seconds.observe(400);
  process.http_durations = {{"/v1/models/{id}", seconds}};
  process.version = "1.2";
  process.kernels = "avx2";
  const std::string text = render({}, process);
  EXPECT_THAT(text, HasSubstr("# TYPE xgen_http_request_duration_seconds histogram\n"));
  EXPECT_THAT(text, HasSubstr("_bucket{route=\"/v1/models/{id}\",le=\"0.01\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("_bucket{route=\"/v1/models/{id}\",le=\"0.025\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("_bucket{route=\"/v1/models/{id}\",le=\"+Inf\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("xgen_http_request_duration_seconds_sum{route=\"/v1/models/{id}\"} 400.02\n"));
  EXPECT_THAT(text, HasSubstr("xgen_build_info{version=\"1.2\",kernels=\"avx2\"} 1\n"));
}

TEST(Metrics, FactsOfTheKvCache) {
  ModelSample models[2];
  models[0].name = "a";
  models[0].stats.kv_block_size = 16;
  models[0].stats.kv_blocks = 100;
  models[0].stats.kv_dtype = "F16";
  models[0].stats.prefix_caching = true;
  models[1].name = "far";
  const std::string text = render(models, {});
  EXPECT_THAT(text, HasSubstr("vllm:cache_config_info{engine=\"0\",model_name=\"a\",block_size=\"16\",num_gpu_blocks="
                              "\"100\",cache_dtype=\"f16\",enable_prefix_caching=\"True\"} 1\n"));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("cache_config_info{engine=\"0\",model_name=\"far\"")));
}

TEST(Metrics, LoadsAndReplicas) {
  RegisteredModel models[2];
  models[0].name = "a";
  models[0].loads = 1;
  models[0].fetch_seconds = 3;
  models[0].load_seconds = 0.5;
  models[0].replicas = {{.name = "http://r:1",
                         .healthy = true,
                         .open = true,
                         .in_flight = 2,
                         .sent = 9,
                         .failures = 3,
                         .ejections = 1,
                         .chunks = 40,
                         .matched_chunks = 30}};
  models[1].name = "never";
  const std::string text = render_registry(models, {});
  for (const char* each : {"xgen_model_load_seconds{model_name=\"a\",phase=\"fetch\"} 3\n",
                           "xgen_model_load_seconds{model_name=\"a\",phase=\"wait\"} 0\n",
                           "xgen_model_load_seconds{model_name=\"a\",phase=\"load\"} 0.5\n",
                           "xgen_replica_up{model_name=\"a\",replica=\"http://r:1\"} 1\n",
                           "xgen_replica_circuit_open{model_name=\"a\",replica=\"http://r:1\"} 1\n",
                           "xgen_replica_requests_in_flight{model_name=\"a\",replica=\"http://r:1\"} 2\n",
                           "xgen_replica_requests_total{model_name=\"a\",replica=\"http://r:1\"} 9\n",
                           "xgen_replica_failures_total{model_name=\"a\",replica=\"http://r:1\"} 3\n",
                           "xgen_replica_ejections_total{model_name=\"a\",replica=\"http://r:1\"} 1\n",
                           "xgen_replica_prompt_chunks_total{model_name=\"a\",replica=\"http://r:1\"} 40\n",
                           "xgen_replica_matched_chunks_total{model_name=\"a\",replica=\"http://r:1\"} 30\n"})
    EXPECT_THAT(text, HasSubstr(each));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("xgen_model_load_seconds{model_name=\"never\"")));
}

TEST(Metrics, FallbacksHaveModelAndTarget) {
  RegisteredModel model;
  model.name = "a";
  model.fallbacks = {{"b", 3}, {"c\"", 0}};
  EXPECT_THAT(render_registry({&model, 1}, {}),
              HasSubstr("# TYPE xgen_model_fallbacks_total counter\n"
                        "xgen_model_fallbacks_total{model_name=\"a\",target=\"b\"} 3\n"
                        "xgen_model_fallbacks_total{model_name=\"a\",target=\"c\\\"\"} 0\n"));
  EXPECT_THAT(reference_markdown(), HasSubstr("`xgen_model_fallbacks_total`"));
}

// Dashboards and autoscalers are set up from these pages.
TEST(Metrics, ThePagesNameOnlyWhatThereIs) {
  ModelSample model;
  model.name = "a";
  RegisteredModel registered;
  registered.name = "a";
  const std::string page = render({&model, 1}, {}) + render_registry({&registered, 1}, {}) + reference_markdown();
  const std::regex name("(vllm|xgen):[a-z][a-z0-9_]+");
  int found = 0;
  for (const auto& each : std::filesystem::directory_iterator(XGEN_SOURCE_DIR "/docs")) {
    if (each.path().extension() != ".md") continue;
    std::ifstream file(each.path());
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    for (std::sregex_iterator it(text.begin(), text.end(), name), end; it != end; ++it, ++found)
      EXPECT_THAT(page, HasSubstr(it->str())) << each.path();
  }
  EXPECT_GT(found, 20);
}

TEST(Metrics, EveryLineIsACommentOrASample) {
  ModelSample models[2];
  models[0].name = "a";
  models[1].name = "b";
  std::istringstream lines(render(models, sample_process()));
  int samples = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("# HELP ") || line.starts_with("# TYPE ")) continue;
    const auto space = line.rfind(' ');
    ASSERT_NE(space, std::string::npos) << line;
    char* end = nullptr;
    std::strtod(line.c_str() + space + 1, &end);
    EXPECT_EQ(*end, '\0') << line;
    ++samples;
  }
  EXPECT_GT(samples, 400);
}

TEST(Metrics, TheProcessIsSampled) {
  const ProcessSample sample = sample_process();
  EXPECT_GT(sample.resident_bytes, 1u << 20);
  EXPECT_GE(sample.threads, 1u);
  EXPECT_GE(sample.open_fds, 3u);
  EXPECT_GT(sample.start_time_seconds, 1.6e9);
  // One that moves would be a restart to whoever watches it.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(sample_process().start_time_seconds, sample.start_time_seconds);
}

}  // namespace
}  // namespace xgen::metrics
