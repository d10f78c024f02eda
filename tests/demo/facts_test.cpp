// What the demo model says of this program (tests/demo/facts.json, derived from its answers) against today's tables:
// every name it mentions exists, and every route and key is spoken of.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "api/requests.h"
#include "base/json.h"
#include "config/config.h"
#include "metrics/metrics.h"
#include "server/app.h"

namespace xgen {
namespace {

const boost::json::object& facts() {
  static const boost::json::value value = [] {
    std::ifstream file(XGEN_SOURCE_DIR "/tests/demo/facts.json");
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    auto parsed = parse_json(text);
    return parsed ? *std::move(parsed) : boost::json::value();
  }();
  return value.as_object();
}

std::set<std::string> mentioned(std::string_view list) {
  std::set<std::string> names;
  for (const auto& name : facts().at(list).as_array()) names.emplace(name.as_string());
  return names;
}

TEST(DemoFacts, RoutesAreTodaysRoutes) {
  std::set<std::string> routes;
  for (const std::string& route : server::route_list()) routes.insert(route.substr(route.find(' ') + 1));
  EXPECT_EQ(mentioned("routes"), routes);
}

TEST(DemoFacts, KeysAreTodaysKeys) {
  const std::vector<std::string> names = config::key_names();
  const std::set<std::string> keys(names.begin(), names.end());
  for (const std::string& key : mentioned("config_keys")) EXPECT_TRUE(keys.contains(key)) << key;
  // Keys whose names are everyday words are found among the words of the answers about their section.
  const auto& words = facts().at("words").as_object();
  for (const std::string& key : keys) {
    const std::string section = key.substr(0, key.find('.')), name = key.substr(key.find('.') + 1);
    if (section == "defaults" || mentioned("config_keys").contains(key)) continue;
    const auto* spoken = words.if_contains(section);
    ASSERT_NE(spoken, nullptr) << key << " is spoken of nowhere";
    const auto& list = spoken->as_array();
    EXPECT_TRUE(std::any_of(list.begin(), list.end(), [&](const auto& word) { return word.as_string() == name; }))
        << key << " is spoken of nowhere";
  }
}

TEST(DemoFacts, ParametersAndMetricsExist) {
  const std::string parameters = api::parameters_markdown();
  for (const std::string& name : mentioned("parameters")) {
    EXPECT_NE(parameters.find("`" + name + "`"), std::string::npos) << name;
  }
  EXPECT_FALSE(mentioned("refused").empty());
  for (const std::string& name : mentioned("refused")) {
    for (const char* value : {R"("required")", R"({"type":"json_object"})", R"({"a":1})",
                              R"([{"type":"function","function":{"name":"f"}}])"}) {
      const auto call =
          api::parse_generate(api::Endpoint::chat, R"({"model":"m","messages":[{"role":"user","content":"x"}],")" +
                                                       name + "\":" + value + "}");
      EXPECT_TRUE(!call.ok() || inference::not_offered(call->requests.at(0), {}).has_value())
          << name << " is said to be refused, and " << value << " is not";
    }
  }
  const std::string page = metrics::reference_markdown();
  for (const std::string& name : mentioned("metrics"))
    EXPECT_NE(page.find("`" + name + "`"), std::string::npos) << name;
}

}  // namespace
}  // namespace xgen
