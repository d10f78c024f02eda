// Every ArchSpec row against what transformers computed for a tiny model of that architecture.
#include <gtest/gtest.h>

#include <set>

#include "golden.h"
#include "model/arch.h"

namespace xgen::model {
namespace {

constexpr double kTolerance = 2e-5;  // of the largest logit

class Golden : public testing::TestWithParam<std::string> {
 protected:
  // Every prompt's logits and greedy continuation, with the kernels of every instruction set this machine has.
  static void check(const GoldenCase& golden, const FileSet& files, const std::string& what) {
    for (const kernels::KernelTable* kernels : kernels::available_kernels()) {
      double worst = 0;
      for (const GoldenPrompt& prompt : golden.prompts) {
        const auto decoder = load_decoder(files, {kernels, prompt.max_context});
        ASSERT_TRUE(decoder) << what;
        Runner runner(*decoder);
        Tokens all = prompt.tokens;
        all.insert(all.end(), prompt.greedy.begin(), prompt.greedy.end());
        const auto rows = runner.prefill(all, prompt.positions);
        for (std::size_t i = 0; i < rows.size(); ++i) {
          const double error = relative_error(rows[i], prompt.logits.data() + i * rows[i].size());
          EXPECT_LT(error, kTolerance) << what << ", " << kernels->name << ", position " << prompt.positions[i];
          worst = std::max(worst, error);
        }
        EXPECT_EQ(runner.greedy(prompt.tokens, static_cast<int>(prompt.greedy.size())), prompt.greedy)
            << what << ", " << kernels->name;
      }
      RecordProperty(what + "_" + std::string(kernels->name), std::to_string(worst));
    }
  }
};

TEST_P(Golden, PublishedConfig) {
  const GoldenCase golden = load_golden(GetParam());
  const auto files = hf_files(golden.config, golden.tensors);
  check(golden, *files, "config");
  EXPECT_EQ(load_decoder(*files)->info().architecture, golden.architecture());
}

TEST_P(Golden, ConfigSavedByTransformers5) {
  const GoldenCase golden = load_golden(GetParam());
  check(golden, *hf_files(golden.saved_config, golden.tensors), "saved_config");
}

TEST_P(Golden, Gguf) {
  const GoldenCase golden = load_golden(GetParam());
  const auto files = gguf_files(golden);
  if (!files) GTEST_SKIP() << "GGUF cannot express this case's activation or YaRN switches";
  check(golden, *files, "gguf");
}

INSTANTIATE_TEST_SUITE_P(Models, Golden, testing::ValuesIn(golden_names()), [](const auto& p) { return p.param; });

TEST(GoldenCoverage, EveryRowHasACase) {
  std::set<std::string> covered;
  for (const std::string& name : golden_names()) covered.insert(load_golden(name).architecture());
  for (const ArchSpec& row : arch_specs()) EXPECT_TRUE(covered.contains(std::string(row.name))) << row.name;
}

}  // namespace
}  // namespace xgen::model
