// The Jinja language, feature by feature, against what jinja2 renders (tests/golden/chat_templates/language.json).
#include <gtest/gtest.h>

#include "text/jinja_golden.h"

namespace xgen::text {
namespace {

jinja::Value to_value(const boost::json::value& json) {
  auto value = jinja::from_json(boost::json::serialize(json));
  EXPECT_TRUE(value.ok());
  return value.ok() ? *value : jinja::Value();
}

TEST(JinjaLanguage, EqualsJinja2) {
  const auto golden = read_json(golden_dir() / "language.json");
  const jinja::Value shared_context = to_value(golden.at("context"));
  std::size_t count = 0;
  for (const auto& entry : golden.at("cases").as_array()) {
    const auto& golden_case = entry.as_object();
    const std::string source(golden_case.at("template").as_string());
    const auto* own = golden_case.if_contains("context");
    const auto actual = render_source(source, own != nullptr ? to_value(*own) : shared_context);
    const auto* text = golden_case.if_contains("text");
    const std::string expected = text != nullptr ? std::string(text->as_string()) : "";
    const std::string problem = difference(actual, text != nullptr ? &expected : nullptr, &golden_case);
    EXPECT_EQ(problem, "") << "template: " << source;
    ++count;
  }
  EXPECT_GT(count, 900U);
}

}  // namespace
}  // namespace xgen::text
