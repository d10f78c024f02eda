// What is downloaded of a repository.
#include "sources/file_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace xgen::sources {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAreArray;

std::vector<RemoteFile> files(const std::vector<std::string>& names) {
  std::vector<RemoteFile> out;
  for (const std::string& name : names) {
    RemoteFile file;
    file.path = name;
    file.size = name.size();
    out.push_back(file);
  }
  return out;
}

std::vector<std::string> names(const Choice& choice) {
  std::vector<std::string> out;
  for (const RemoteFile& file : choice.files) out.push_back(file.path);
  return out;
}

TEST(FileChoice, WhatServingNeedsAndNothingElse) {
  const struct {
    const char* what;
    std::vector<std::string> listed;
    std::string path;
    std::vector<std::string> chosen;
    std::string open;
  } cases[] = {
      {"a single file of weights",
       {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "README.md", "pytorch_model.bin", "onnx/model.onnx", "image.png",
        "original/a.safetensors", ".gitattributes", "tf_model.h5", "flax_model.msgpack", "adapter.safetensors"},
       "",
       {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja"},
       ""},
      {"shards beside one big copy",
       {"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "consolidated.safetensors", "tokenizer.model", "params.json"},
       "",
       {"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "tokenizer.model"},
       ""},
      {"weights under a name of their own",
       {"config.json", "weights.safetensors", "vocab.json", "merges.txt"},
       "",
       {"config.json", "weights.safetensors", "vocab.json", "merges.txt"},
       ""},
      {"safetensors before GGUF",
       {"config.json", "model.safetensors", "a.gguf", "b.gguf"},
       "",
       {"config.json", "model.safetensors"},
       ""},
      {"a folder",
       {"config.json", "model.safetensors", "sub/config.json", "sub/model.safetensors"},
       "sub",
       {"sub/config.json", "sub/model.safetensors"},
       "sub"},
      {"the only GGUF model", {"README.md", "llama.Q4_K_M.gguf"}, "", {"llama.Q4_K_M.gguf"}, "llama.Q4_K_M.gguf"},
      {"the only GGUF model beside its vision tower",
       {"gemma.gguf", "mmproj-gemma.gguf"},
       "",
       {"gemma.gguf"},
       "gemma.gguf"},
      {"the only GGUF model, in parts",
       {"q4/m-00001-of-00002.gguf", "q4/m-00002-of-00002.gguf"},
       "",
       {"q4/m-00001-of-00002.gguf", "q4/m-00002-of-00002.gguf"},
       "q4/m-00001-of-00002.gguf"},
      {"a named GGUF file", {"a.gguf", "b.gguf", "config.json"}, "b.gguf", {"b.gguf"}, "b.gguf"},
      {"a named part",
       {"m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "b.gguf"},
       "m-00002-of-00002.gguf",
       {"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"},
       "m-00001-of-00002.gguf"},
  };
  for (const auto& each : cases) {
    const auto choice = choose_files(files(each.listed), each.path, "hf://org/repo");
    ASSERT_TRUE(choice) << each.what << ": " << choice.error().message;
    EXPECT_THAT(names(*choice), UnorderedElementsAreArray(each.chosen)) << each.what;
    EXPECT_EQ(choice->open, each.open) << each.what;
  }
}

TEST(FileChoice, RefusalsSayWhatThereIs) {
  const struct {
    std::vector<std::string> listed;
    std::string path;
    ErrorCode code;
    std::string said;
  } cases[] = {
      {{"a-q4.gguf", "a-q8-00001-of-00002.gguf", "a-q8-00002-of-00002.gguf"},
       "",
       ErrorCode::invalid_argument,
       "several GGUF models; name one of them at the end of the source: a-q4.gguf, a-q8-00001-of-00002.gguf"},
      {{"README.md", "pytorch_model.bin"}, "", ErrorCode::unsupported, "there are: README.md, pytorch_model.bin"},
      {{"config.json", "pytorch_model.bin"}, "", ErrorCode::unsupported, "neither config.json with .safetensors"},
      {{"a.gguf"}, "b.gguf", ErrorCode::not_found, "no file or folder 'b.gguf'"},
      {{"config.json", "model.safetensors"}, "model.safetensors", ErrorCode::invalid_argument, "no .gguf file"},
      {{"m-00001-of-00002.gguf"}, "m-00001-of-00002.gguf", ErrorCode::not_found, "'m-00002-of-00002.gguf' is missing"},
      {{}, "", ErrorCode::not_found, "there are no files"},
  };
  for (const auto& each : cases) {
    const auto choice = choose_files(files(each.listed), each.path, "hf://org/repo");
    ASSERT_FALSE(choice) << each.said;
    EXPECT_EQ(choice.error().code, each.code) << each.said;
    EXPECT_THAT(choice.error().message, HasSubstr("hf://org/repo: "));
    EXPECT_THAT(choice.error().message, HasSubstr(each.said));
  }
}

}  // namespace
}  // namespace xgen::sources
