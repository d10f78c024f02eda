#include "engine/load_tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "engine/service_fixture.h"
#include "support/memory_files.h"

namespace xgen::engine {
namespace {

namespace fs = std::filesystem;
using Gguf = std::vector<std::pair<std::string, test::GgufValue>>;

// Two normal tokens, and every key that the glue hands over.
Gguf small_vocabulary() {
  return {{"general.architecture", std::string("llama")},
          {"tokenizer.ggml.model", std::string("llama")},
          {"tokenizer.ggml.tokens", std::vector<std::string>{"<unk>", "<s>", "</s>", "\xE2\x96\x81", "a",
                                                             "\xE2\x96\x81"
                                                             "a"}},
          {"tokenizer.ggml.scores", std::vector<float>{0, 0, 0, -1, -2, -0.5f}},
          {"tokenizer.ggml.token_type", std::vector<std::int32_t>{2, 3, 3, 1, 1, 1}},
          {"tokenizer.ggml.bos_token_id", std::uint32_t{1}},
          {"tokenizer.ggml.eos_token_id", std::uint32_t{2}},
          {"tokenizer.ggml.unknown_token_id", std::uint32_t{0}},
          {"tokenizer.ggml.add_bos_token", true},
          {"tokenizer.ggml.add_space_prefix", false},
          {"tokenizer.chat_template", std::string("{{ bos_token }}")}};
}

auto load(const Gguf& metadata) {
  return load_tokenizer(*test::memory_files("vocabulary", {{"model.gguf", test::write_gguf(metadata, {})}}));
}

TEST(LoadTokenizer, TakesAGgufsKeys) {
  auto tokenizer = load(small_vocabulary());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  const text::Tokenizer& t = **tokenizer;
  EXPECT_EQ(t.vocab_size(), 6);
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_EQ(t.unk_id(), 0);
  EXPECT_TRUE(t.adds_bos());
  ASSERT_NE(t.chat_template(), nullptr);
  EXPECT_EQ(*t.chat_template(), "{{ bos_token }}");
  const auto ids = t.encode("a a");
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(*ids, (std::vector<text::TokenId>{1, 4, 5})) << "bos, no space in front, and the better scored piece";
}

TEST(LoadTokenizer, NamesTheKeyThatIsWrong) {
  const std::pair<const char*, test::GgufValue> wrong[] = {
      {"tokenizer.ggml.model", std::uint32_t{1}},         {"tokenizer.ggml.tokens", std::vector<float>{1, 2}},
      {"tokenizer.ggml.tokens", std::string("a")},        {"tokenizer.ggml.scores", std::vector<std::string>{"x"}},
      {"tokenizer.ggml.token_type", std::string("x")},    {"tokenizer.ggml.bos_token_id", std::string("x")},
      {"tokenizer.ggml.add_bos_token", std::string("x")}, {"tokenizer.chat_template", std::uint32_t{1}},
  };
  for (const auto& [key, value] : wrong) {
    Gguf metadata = small_vocabulary();
    for (auto& [name, old] : metadata) {
      if (name == key) old = value;
    }
    const auto tokenizer = load(metadata);
    ASSERT_FALSE(tokenizer.ok()) << key;
    EXPECT_EQ(tokenizer.error().code, ErrorCode::invalid_argument) << key;
    EXPECT_NE(tokenizer.error().message.find(key), std::string::npos) << tokenizer.error().message;
  }
  Gguf without = small_vocabulary();
  std::erase_if(without, [](const auto& entry) { return entry.first == "tokenizer.ggml.tokens"; });
  EXPECT_FALSE(load(without).ok());
}

TEST(LoadTokenizer, FilesOfItsOwnWinOverTheGgufs) {
  auto tokenizer = load_tokenizer(*test::memory_files(
      "both", {{"model.gguf", test::write_gguf(small_vocabulary(), {})}, {"tokenizer.json", byte_tokenizer_json()}}));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ((*tokenizer)->vocab_size(), kByteVocab);
  EXPECT_FALSE(load_tokenizer(*test::memory_files("none", {})).ok());
}

TEST(LoadTokenizer, LlamaCppGoldensThroughTheGgufReader) {
  const fs::path folder = fs::path(XGEN_SOURCE_DIR) / "../shared/data/llama.cpp-vocab";
  if (!fs::exists(folder)) GTEST_SKIP() << "shared/data/llama.cpp-vocab is not there";
  const auto read = [](const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  };
  int checked = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string path = entry.path().string();
    if (entry.path().extension() != ".gguf" || !fs::exists(path + ".inp")) continue;
    SCOPED_TRACE(entry.path().filename().string());
    const auto files = open_files(path);
    ASSERT_TRUE(files.ok());
    const auto tokenizer = load_tokenizer(**files);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
    const std::string text = read(path + ".inp");
    std::istringstream expected(read(path + ".out"));
    const std::string separator = "\n__ggml_vocab_test__\n";
    for (std::size_t from = 0; from < text.size();) {
      const std::size_t end = std::min(text.find(separator, from), text.size());
      std::string line;
      ASSERT_TRUE(std::getline(expected, line));
      std::istringstream numbers(line);
      std::vector<text::TokenId> ids;
      for (text::TokenId id; numbers >> id;) ids.push_back(id);
      const auto got = (*tokenizer)->encode(std::string_view(text).substr(from, end - from), {false, false});
      ASSERT_TRUE(got.ok());
      EXPECT_EQ(*got, ids);
      from = end + separator.size();
      ++checked;
    }
  }
  EXPECT_GT(checked, 200);
}

}  // namespace
}  // namespace xgen::engine
