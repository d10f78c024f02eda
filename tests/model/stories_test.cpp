// The stories260K checkpoint: a real trained model and its known greedy output.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "golden.h"
#include "support/stories260k.h"

namespace xgen::model {
namespace {

TEST(Stories260K, GreedyContinuationIsTheKnownOne) {
  const std::string folder = std::string(XGEN_SOURCE_DIR) + "/../shared/data/stories260K";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is not there";
  auto converted = test::convert_stories260k(folder);
  ASSERT_TRUE(converted.ok()) << converted.error().message;
  const auto decoder = load_decoder(*test::memory_files("stories260K", std::move(*converted)));
  ASSERT_TRUE(decoder);
  EXPECT_EQ(decoder->info().max_position, 512);
  EXPECT_EQ(decoder->generation_defaults().eos_ids, Tokens{2});

  std::ifstream in(folder + "/golden_ids.txt");
  std::stringstream text;
  text << in.rdbuf();
  const auto ids = boost::json::value_to<Tokens>(boost::json::parse(text.str()));
  ASSERT_GT(ids.size(), 100U);
  Runner runner(*decoder, 2);
  EXPECT_EQ(runner.greedy({ids[0]}, static_cast<int>(ids.size()) - 1), Tokens(ids.begin() + 1, ids.end()));
}

}  // namespace
}  // namespace xgen::model
