#include "registry/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace xgen::registry {
namespace {

using ::testing::HasSubstr;

class NullService final : public inference::ModelService {
 public:
  std::unique_ptr<inference::RequestHandle> generate_async(inference::GenerateRequest,
                                                           std::shared_ptr<inference::EventSink>) override {
    return nullptr;
  }
  void tokenize_async(inference::TokenizeRequest, std::function<void(Result<inference::Tokenized>)>) override {}
  void detokenize_async(std::vector<inference::TokenId>, std::function<void(Result<std::string>)>) override {}
  inference::Capabilities capabilities() const override { return {}; }
  inference::Health health() const override { return {}; }
  inference::ServiceStats stats() const override { return {}; }
};

TEST(Registry, FindsReadyModelsByNameAndAlias) {
  Registry registry;
  ASSERT_TRUE(registry.add("a", {"x", "y"}).ok());
  auto service = std::make_shared<NullService>();
  registry.set_ready("a", service);
  EXPECT_EQ(registry.find("a").value(), service);
  EXPECT_EQ(registry.find("y").value(), service);
  EXPECT_EQ(registry.entry("x")->name, "a");
  EXPECT_GT(registry.entry("x")->created, 0);
}

TEST(Registry, UnknownLoadingAndFailedModelsAreDifferentErrors) {
  Registry registry;
  ASSERT_TRUE(registry.add("a", {}).ok());
  EXPECT_EQ(registry.find("b").error().code, ErrorCode::not_found);
  EXPECT_THAT(registry.find("b").error().message, HasSubstr("'a'"));
  EXPECT_EQ(registry.find("b").error().param, "model");
  registry.set_progress("a", 0.5);
  EXPECT_EQ(registry.find("a").error().code, ErrorCode::unavailable);
  EXPECT_THAT(registry.find("a").error().message, HasSubstr("50%"));
  EXPECT_GT(registry.find("a").error().retry_after_s, 0);
  registry.set_failed("a", "no such tensor");
  EXPECT_THAT(registry.find("a").error().message, HasSubstr("no such tensor"));
}

TEST(Registry, NamesAreUnique) {
  Registry registry;
  ASSERT_TRUE(registry.add("a", {"x"}).ok());
  EXPECT_FALSE(registry.add("a", {}).ok());
  EXPECT_FALSE(registry.add("x", {}).ok());
  EXPECT_FALSE(registry.add("b", {"c", "x"}).ok());
  EXPECT_EQ(registry.list().size(), 1u);
}

}  // namespace
}  // namespace xgen::registry
