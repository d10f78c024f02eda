// Sources as users write them.
#include "base/model_source.h"

#include <gtest/gtest.h>

namespace xgen {
namespace {

TEST(ModelSource, HubSourcesAreReadAsHuggingfaceHubReadsThem) {
  const struct {
    const char* text;
    HubSource expected;
  } cases[] = {
      {"hf://org/repo", {"org/repo", "main", ""}},
      {"hf://models/org/repo", {"org/repo", "main", ""}},
      {"hf://Qwen/Qwen3-0.6B@v1.0", {"Qwen/Qwen3-0.6B", "v1.0", ""}},
      {"hf://org/repo/", {"org/repo", "main", ""}},
      {"hf://org/repo/model-q8_0.gguf", {"org/repo", "main", "model-q8_0.gguf"}},
      {"hf://org/repo@main/sub/model.gguf", {"org/repo", "main", "sub/model.gguf"}},
      {"hf://org/repo@refs/pr/12", {"org/repo", "refs/pr/12", ""}},
      {"hf://org/repo@refs/pr/12/a.gguf", {"org/repo", "refs/pr/12", "a.gguf"}},
      {"hf://org/repo@refs/convert/gguf-v2/a.gguf", {"org/repo", "refs/convert/gguf-v2", "a.gguf"}},
      {"hf://org/repo@feature%2Ffoo/a.gguf", {"org/repo", "feature/foo", "a.gguf"}},
      {"hf://org/repo/a@b.gguf", {"org/repo", "main", "a@b.gguf"}},
  };
  for (const auto& each : cases) {
    const auto parsed = parse_remote_source(each.text);
    ASSERT_TRUE(parsed) << each.text << ": " << parsed.error().message;
    EXPECT_EQ(std::get<HubSource>(*parsed), each.expected) << each.text;
  }
}

TEST(ModelSource, S3Sources) {
  const struct {
    const char* text;
    S3Source expected;
  } cases[] = {
      {"s3://bucket", {"bucket", ""}},
      {"s3://bucket/", {"bucket", ""}},
      {"s3://my.bucket-1/models/Qwen3/", {"my.bucket-1", "models/Qwen3"}},
      {"s3://bucket/a b/ü.gguf", {"bucket", "a b/ü.gguf"}},
  };
  for (const auto& each : cases) {
    const auto parsed = parse_remote_source(each.text);
    ASSERT_TRUE(parsed) << each.text << ": " << parsed.error().message;
    EXPECT_EQ(std::get<S3Source>(*parsed), each.expected) << each.text;
  }
}

TEST(ModelSource, WhatCannotBeRightIsRefused) {
  for (const char* text : {"hf://",
                           "hf://repo",
                           "hf://org/",
                           "hf:///repo",
                           "hf://org/repo@",
                           "hf://org/repo@/file",
                           "hf://../repo",
                           "hf://org/..",
                           "hf://org/re--po",
                           "hf://org/repo.git",
                           "hf://org/repo@..",
                           "hf://org/repo@a%2F..%2F..%2Fb",
                           "hf://org/repo@%2Fetc",
                           "hf://org/repo@a%2",
                           "hf://org/repo/../../x",
                           "hf://org/repo//x",
                           "hf://org/repo/a\\b",
                           "hf://datasets/org/repo",
                           "hf://org/repo@ma\nin",
                           "s3://",
                           "s3://ab",
                           "s3://..",
                           "s3://bucket/../x",
                           "s3://bucket//x",
                           "s3://bu cket/x",
                           "gs://bucket/x",
                           "https://example.com/x"}) {
    const auto parsed = parse_remote_source(text);
    ASSERT_FALSE(parsed) << text;
    EXPECT_NE(parsed.error().message.find("'"), std::string::npos) << text;
  }
}

TEST(ModelSource, RemoteAndLocal) {
  EXPECT_TRUE(is_remote_source("hf://a/b"));
  EXPECT_TRUE(is_remote_source("gs://a/b"));
  EXPECT_FALSE(is_remote_source("/models/a://b"));
  EXPECT_FALSE(is_remote_source("models/x.gguf"));
  EXPECT_FALSE(is_remote_source("://x"));
  EXPECT_FALSE(is_remote_source("builtin:xgen-demo"));
}

TEST(ModelSource, WhatLooksLikeTheHubsIsSaidToBe) {
  const std::string hint = "; of the Hugging Face Hub: hf://Qwen/Qwen3-0.6B";
  for (const char* text : {"Qwen/Qwen3-0.6B", "hf:Qwen/Qwen3-0.6B", "https://huggingface.co/Qwen/Qwen3-0.6B",
                           "https://huggingface.co/Qwen/Qwen3-0.6B/tree/main", "huggingface.co/Qwen/Qwen3-0.6B?x=1",
                           "hf.co/Qwen/Qwen3-0.6B"})
    EXPECT_EQ(hub_hint(text), hint) << text;
  for (const char* text :
       {"", "Qwen3-0.6B", "/models/Qwen3", "./models/Qwen3", "../Qwen3", "a/b/c", "https://example.com/x"})
    EXPECT_EQ(hub_hint(text), "") << text;
  EXPECT_TRUE(parse_remote_source("https://huggingface.co/Qwen/Qwen3-0.6B").error().message.ends_with(hint));
}

TEST(ModelSource, Names) {
  const auto name = [](const char* text) { return default_model_name(*parse_remote_source(text)); };
  EXPECT_EQ(name("hf://Qwen/Qwen3-0.6B@main"), "Qwen3-0.6B");
  EXPECT_EQ(name("hf://org/repo/sub/llama-q8_0.gguf"), "llama-q8_0");
  EXPECT_EQ(name("s3://bucket"), "bucket");
  EXPECT_EQ(name("s3://bucket/models/x"), "x");
}

TEST(ModelSource, SafeRelativePaths) {
  for (const char* path : {"a", "a/b", "a..b", ".hidden", "…/ü"}) EXPECT_TRUE(is_safe_relative_path(path)) << path;
  for (const char* path : {"", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\\b", "a\nb", "a\x7f", "\xff"})
    EXPECT_FALSE(is_safe_relative_path(path)) << path;
  EXPECT_FALSE(is_safe_relative_path(std::string("a\0b", 3)));
  EXPECT_FALSE(is_safe_relative_path(std::string(256, 'a')));
}

}  // namespace
}  // namespace xgen
