// What the environment says.
#include "sources/settings.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>

namespace xgen::sources {
namespace {

using Variables = std::map<std::string, std::string>;

Environment environment(Variables variables) {
  return [variables = std::move(variables)](const std::string& name) -> std::optional<std::string> {
    const auto it = variables.find(name);
    return it == variables.end() || it->second.empty() ? std::nullopt : std::optional<std::string>(it->second);
  };
}

Settings settings(Variables variables, const std::string& cache = {}) {
  variables.emplace("HOME", "/home/u");
  auto read = settings_from(environment(std::move(variables)), cache);
  EXPECT_TRUE(read) << read.error().message;
  return *std::move(read);
}

std::string fault(Variables variables) {
  const auto read = settings_from(environment(std::move(variables)), "");
  return read ? "" : read.error().message;
}

TEST(Settings, FoldersAsHuggingfaceHubFindsThem) {
  const struct {
    Variables variables;
    std::string cache;
  } cases[] = {
      {{}, "/home/u/.cache/huggingface/hub"},
      {{{"XDG_CACHE_HOME", "/x"}}, "/x/huggingface/hub"},
      {{{"HF_HOME", "/hf"}}, "/hf/hub"},
      {{{"HF_HOME", "~/hf"}}, "/home/u/hf/hub"},
      {{{"HF_HOME", "$DATA/hf"}, {"DATA", "/d"}}, "/d/hf/hub"},
      {{{"HF_HOME", "${DATA}/$NONE"}, {"DATA", "/d"}}, "/d/$NONE/hub"},
      {{{"HF_HOME", "/hf"}, {"HUGGINGFACE_HUB_CACHE", "/old"}}, "/old"},
      {{{"HF_HOME", "/hf"}, {"HF_HUB_CACHE", "/new"}, {"HUGGINGFACE_HUB_CACHE", "/old"}}, "/new"},
  };
  for (const auto& each : cases) EXPECT_EQ(settings(each.variables).hub.cache, each.cache);
  EXPECT_EQ(settings({}).s3.cache, "/home/u/.cache/xgen-model/s3");
  EXPECT_EQ(settings({{"XDG_CACHE_HOME", "/x"}}).s3.cache, "/x/xgen-model/s3");
  EXPECT_EQ(settings({}, "/models").s3.cache, "/models/s3");
}

TEST(Settings, TheHub) {
  EXPECT_EQ(settings({}).hub.endpoint, "https://huggingface.co");
  EXPECT_EQ(settings({{"HF_ENDPOINT", "http://mirror:8080/hf/"}}).hub.endpoint, "http://mirror:8080/hf");
  for (const char* yes : {"1", "true", "ON", "Yes"})
    EXPECT_TRUE(settings({{"HF_HUB_OFFLINE", yes}}).hub.offline) << yes;
  for (const char* no : {"", "0", "false", "maybe"}) EXPECT_FALSE(settings({{"HF_HUB_OFFLINE", no}}).hub.offline) << no;
  EXPECT_TRUE(settings({{"TRANSFORMERS_OFFLINE", "1"}}).hub.offline);
  EXPECT_NE(fault({{"HF_ENDPOINT", "mirror"}}).find("HF_ENDPOINT: "), std::string::npos);
}

TEST(Settings, TheTokenOfTheEnvironmentOrOfTheFile) {
  const std::filesystem::path home = std::filesystem::path(testing::TempDir()) / "xgen_settings_home";
  std::filesystem::create_directories(home);
  std::ofstream(home / "token") << "hf_of_the_file\n";
  EXPECT_EQ(settings({}).hub.token, "");
  EXPECT_EQ(settings({{"HF_HOME", home.string()}}).hub.token, "hf_of_the_file");
  EXPECT_EQ(settings({{"HF_HOME", home.string()}}).hub.token_from, (home / "token").string());
  EXPECT_EQ(settings({{"HF_TOKEN_PATH", (home / "token").string()}}).hub.token, "hf_of_the_file");
  const Settings from_variable = settings({{"HF_HOME", home.string()}, {"HF_TOKEN", " hf_mine\n"}});
  EXPECT_EQ(from_variable.hub.token, "hf_mine");
  EXPECT_EQ(from_variable.hub.token_from, "HF_TOKEN");
  EXPECT_EQ(settings({{"HF_TOKEN", "x"}, {"HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"}}).hub.token, "");
  // It would break the request's head, and the message must not show it.
  const std::string said = fault({{"HF_TOKEN", "hf_secret\r\nX: y"}});
  EXPECT_NE(said.find("HF_TOKEN"), std::string::npos);
  EXPECT_EQ(said.find("hf_secret"), std::string::npos);
  std::filesystem::remove_all(home);
}

TEST(Settings, Aws) {
  EXPECT_FALSE(settings({}).s3.keys);
  EXPECT_EQ(settings({}).s3.region, "us-east-1");
  EXPECT_EQ(settings({{"AWS_DEFAULT_REGION", "a"}}).s3.region, "a");
  EXPECT_EQ(settings({{"AWS_REGION", "b"}, {"AWS_DEFAULT_REGION", "a"}}).s3.region, "b");
  EXPECT_EQ(settings({{"AWS_ENDPOINT_URL", "http://minio:9000/"}}).s3.endpoint, "http://minio:9000");
  EXPECT_EQ(settings({{"AWS_ENDPOINT_URL", "http://a"}, {"AWS_ENDPOINT_URL_S3", "http://b"}}).s3.endpoint, "http://b");
  const Settings all =
      settings({{"AWS_ACCESS_KEY_ID", "id"}, {"AWS_SECRET_ACCESS_KEY", "secret"}, {"AWS_SESSION_TOKEN", "token"}});
  ASSERT_TRUE(all.s3.keys);
  EXPECT_EQ(all.s3.keys->id + all.s3.keys->secret + all.s3.keys->session_token, "idsecrettoken");
  EXPECT_NE(fault({{"AWS_ACCESS_KEY_ID", "id"}}).find("AWS_SECRET_ACCESS_KEY: missing"), std::string::npos);
  EXPECT_NE(fault({{"AWS_REGION", "a/b"}}).find("AWS_REGION"), std::string::npos);
}

}  // namespace
}  // namespace xgen::sources
