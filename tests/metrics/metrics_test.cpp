#include "metrics/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

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
}

}  // namespace
}  // namespace xgen::metrics
