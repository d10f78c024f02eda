// Choice of files, facts beside the vocabulary, bad input, and growth of the cost with the text.
#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "base/file_set.h"
#include "text/gguf_vocab.h"

namespace xgen::text {
namespace {

namespace fs = std::filesystem;
const fs::path kGolden = fs::path(XGEN_SOURCE_DIR) / "tests/golden/tokenizers";

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

std::string error_of(std::string_view json) {
  auto t = Tokenizer::from_json(json, "tokenizer.json");
  return t.ok() ? "" : t.error().message;
}

std::string with(std::string_view section) {
  return R"({"model":{"type":"WordLevel","vocab":{"a":0,"<unk>":1},"unk_token":"<unk>"},)" + std::string(section) + "}";
}

TEST(Tokenizer, BadJsonNamesThePlace) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "invalid JSON"},
      {"[]", "not a JSON object"},
      {"{\"model\":", "invalid JSON"},
      {"{}", "model is missing"},
      {"{\"model\":[]}", "model must be an object"},
      {R"({"model":{"type":"BPE"}})", "model: vocab is missing"},
      {R"({"model":{"type":"Magic","vocab":{}}})", "model.type 'Magic' is not known"},
      {R"({"model":{"type":"BPE","vocab":{"a":"b"}}})", "model.vocab holds a string"},
      {R"({"model":{"type":"BPE","vocab":{"a":-1}}})", "out of range"},
      {R"({"model":{"type":"BPE","vocab":{"a":99999999999}}})", "out of range"},
      {R"({"model":{"type":"BPE","vocab":{"a":1.5}}})", "holds a fraction"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}})", "model.merges[0] names 'b'"},
      {R"({"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}})", "model.merges[0] names 'ab'"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":["ab"]}})", "is not two pieces"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[["a"]]}})", "is not a pair"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[["a","a","a"]]}})", "is not a pair"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[[["a"]]]}})", "holds an array"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":{}}})", "merges must be a list"},
      {R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[],"dropout":0.1}})", "dropout"},
      {R"({"model":{"type":"Unigram","vocab":[["a",-1]],"unk_id":7}})", "unk_id 7"},
      {R"({"model":{"type":"Unigram","vocab":[["a"]]}})", "is not a pair"},
      {R"({"model":{"type":"Unigram","vocab":{"a":0}}})", "wrong shape"},
      {with(R"("added_tokens":[{"id":5}])"), "added_tokens[0].content is missing"},
      {with(R"("added_tokens":[{"id":-5,"content":"x"}])"), "out of range"},
      {with(R"("added_tokens":[7])"), "added_tokens[0] must be an object"},
      {with(R"("normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Nope"}]})"),
       "normalizer.normalizers[1].type 'Nope' is not known"},
      {with(R"("normalizer":{"type":"Replace","pattern":{"Regex":"("},"content":""})"), "regular expression '('"},
      {with(R"("normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAA"})"), "charsmap"},
      {with(R"("normalizer":{"type":"Precompiled","precompiled_charsmap":"/////w=="})"), "does not fit"},
      {with(R"("pre_tokenizer":{"type":"Split","pattern":{"String":"a"},"behavior":"Odd"})"), "behavior 'Odd'"},
      {with(R"("pre_tokenizer":{"type":"FixedLength","length":0})"), "length must be at least 1"},
      {with(R"("decoder":{"type":"Metaspace","replacement":""})"), "replacement is empty"},
      {with(R"("post_processor":{"type":"BertProcessing","sep":["x",1],"cls":["y",9]})"), "token 9"},
      {with(R"("post_processor":{"type":"TemplateProcessing","single":[],"special_tokens":{}})"), "exactly once"},
      {with(
           R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}}],"special_tokens":{}})"),
       "special_tokens.x is missing"},
  };
  for (const auto& [json, expected] : cases) {
    const std::string message = error_of(json);
    EXPECT_NE(message.find(expected), std::string::npos) << json << "\n  gave: " << message;
    EXPECT_NE(message.find("tokenizer.json"), std::string::npos) << message;
  }
  std::string deep = R"({"normalizer":)";
  for (int i = 0; i < 60; ++i) deep += R"({"type":"Sequence","normalizers":[)";
  EXPECT_NE(error_of(deep), "");
}

TEST(Tokenizer, TruncatedAndFlippedFilesNeverCrash) {
  std::mt19937 random(11);
  for (const char* name : {"bpe_llama3.tokenizer.json", "unigram_bytes.tokenizer.json", "wordpiece_bert.tokenizer.json",
                           "spm_unigram.tokenizer.model", "spm_bpe.tokenizer.model"}) {
    const std::string data = read_file(kGolden / name);
    ASSERT_FALSE(data.empty());
    const bool model = std::string_view(name).ends_with(".model");
    for (int round = 0; round < 120; ++round) {
      std::string bad = data;
      if (round % 2 == 0) {
        bad.resize(random() % (data.size() - 2));
      } else {
        for (int k = 0; k < 5; ++k) bad[random() % bad.size()] = static_cast<char>(random());
      }
      auto t = Tokenizer::load(*embedded_files("x", {{model ? "tokenizer.model" : "tokenizer.json", bad}}));
      if (t.ok()) {
        auto ids = (*t)->encode("Hello <unk> \xEA\xB0\x80\n");
        if (ids.ok()) (void)(*t)->decode(*ids, false);
      } else {
        EXPECT_FALSE(t.error().message.empty());
      }
      // A cut protobuf may end between two fields; cut JSON never parses.
      if (round % 2 == 0 && !model) {
        EXPECT_FALSE(t.ok());
      }
    }
  }
}

TEST(Tokenizer, SaysWhatItLookedFor) {
  auto t = Tokenizer::load(*embedded_files("empty", {{"config.json", "{}"}}));
  ASSERT_FALSE(t.ok());
  EXPECT_EQ(t.error().code, ErrorCode::not_found);
  for (const char* name : {"tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"}) {
    EXPECT_NE(t.error().message.find(name), std::string::npos) << t.error().message;
  }
  auto odd = Tokenizer::load(*embedded_files("odd", {{"tokenizer.model", "IQ== 0\n"}}));
  ASSERT_FALSE(odd.ok());
  EXPECT_NE(odd.error().message.find("tokenizer.model"), std::string::npos) << odd.error().message;
}

TEST(Tokenizer, FactsBesideTheVocabulary) {
  const std::string json = read_file(kGolden / "bpe_llama3.tokenizer.json");
  const std::string_view config = R"({"bos_token":{"content":"<|begin_of_text|>"},"eos_token":"<|im_end|>",
    "pad_token":null,"add_bos_token":true,"add_eos_token":true,"added_tokens_decoder":{"900":{"content":"<extra>","special":true}},
    "chat_template":[{"name":"default","template":"D"},{"name":"tool_use","template":"T"}]})";
  auto loaded = Tokenizer::load(*embedded_files("x", {{"tokenizer.json", json}, {"tokenizer_config.json", config}}));
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  const Tokenizer& t = **loaded;
  EXPECT_EQ(t.bos_id(), t.find_token("<|begin_of_text|>"));
  EXPECT_EQ(t.eos_id(), t.find_token("<|im_end|>"));
  EXPECT_FALSE(t.pad_id());
  EXPECT_TRUE(t.adds_bos());
  EXPECT_EQ(t.find_token("<extra>"), 900);
  EXPECT_EQ(t.vocab_size(), 901);
  EXPECT_TRUE(t.is_special(900));
  EXPECT_FALSE(t.is_special(899));
  EXPECT_EQ(*t.chat_template(), "D");
  EXPECT_EQ(*t.chat_template("tool_use"), "T");
  EXPECT_EQ(t.chat_template("none"), nullptr);
  const auto ids = *t.encode("a<extra>");
  EXPECT_EQ(ids.front(), *t.bos_id());  // once, though both files ask for it
  EXPECT_NE(ids[1], *t.bos_id());
  EXPECT_EQ(ids[ids.size() - 2], 900);
  EXPECT_EQ(ids.back(), *t.eos_id());
  EXPECT_EQ(t.token_text(100000), "");

  auto jinja = Tokenizer::load(*embedded_files(
      "x", {{"tokenizer.json", json}, {"tokenizer_config.json", config}, {"chat_template.jinja", "FILE"}}));
  ASSERT_TRUE(jinja.ok());
  EXPECT_EQ(*(*jinja)->chat_template(), "FILE");
  auto bad = Tokenizer::load(
      *embedded_files("x", {{"tokenizer.json", json}, {"tokenizer_config.json", R"({"add_bos_token":"yes"})"}}));
  ASSERT_FALSE(bad.ok());
  EXPECT_NE(bad.error().message.find("add_bos_token must be"), std::string::npos) << bad.error().message;
}

TEST(Tokenizer, OlderFileSets) {
  const std::string_view vocab = R"({"<|endoftext|>":0,"a":1,"b":2,"ab":3,"\u0120":4,"\u0120ab":5})";
  auto gpt2 = Tokenizer::load(*embedded_files("x", {{"vocab.json", vocab},
                                                    {"merges.txt", "#version: 0.2\na b\n\xC4\xA0 ab\n"},
                                                    {"added_tokens.json", R"({"<new>":6})"},
                                                    {"special_tokens_map.json", R"({"eos_token":"<|endoftext|>"})"}}));
  ASSERT_TRUE(gpt2.ok()) << gpt2.error().message;
  EXPECT_EQ(*(*gpt2)->encode("ab ab<new><|endoftext|>"), (std::vector<TokenId>{3, 5, 6, 0}));
  EXPECT_EQ((*gpt2)->eos_id(), 0);
  auto broken = Tokenizer::load(*embedded_files("x", {{"vocab.json", vocab}, {"merges.txt", "a b\nab\n"}}));
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(broken.error().message.find("merges.txt line 2"), std::string::npos) << broken.error().message;

  auto bert =
      Tokenizer::load(*embedded_files("x", {{"vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nwor\n##ld\n"}}));
  ASSERT_TRUE(bert.ok()) << bert.error().message;
  EXPECT_EQ(*(*bert)->encode("Hello world?"), (std::vector<TokenId>{2, 5, 6, 7, 1, 3}));
  EXPECT_EQ((*bert)->decode(std::vector<TokenId>{5, 6, 7}, true), "hello world");
}

TEST(Tokenizer, GgufErrorsNameTheKey) {
  const std::string_view tokens[] = {"a", "b", "ab"};
  const std::string_view merges[] = {"a b"};
  const auto message = [](const GgufVocab& v) {
    auto t = Tokenizer::from_gguf(v);
    return t.ok() ? std::string() : t.error().message;
  };
  GgufVocab v;
  v.model = "gpt2";
  EXPECT_NE(message(v).find("tokenizer.ggml.tokens"), std::string::npos);
  v.tokens = tokens;
  v.merges = merges;
  v.pre = "no-such-model";
  EXPECT_NE(message(v).find("tokenizer.ggml.pre 'no-such-model'"), std::string::npos) << message(v);
  for (const char* pre :
       {"",       "default",   "llama-bpe", "deepseek-llm", "deepseek-coder", "deepseek-v3", "falcon",
        "mpt",    "starcoder", "gpt-2",     "refact",       "command-r",      "qwen2",       "qwen35",
        "olmo",   "smollm",    "tekken",    "chatglm-bpe",  "exaone",         "exaone4",     "gpt-4o",
        "viking", "bloom",     "chameleon", "kimi-k2",      "superbpe",       "bailingmoe",  "seed-coder"}) {
    v.pre = pre;
    auto t = Tokenizer::from_gguf(v);
    ASSERT_TRUE(t.ok()) << pre << ": " << t.error().message;
    EXPECT_EQ(*(*t)->encode("ab"), (std::vector<TokenId>{2})) << pre;
  }
  v.bos_id = 3;
  EXPECT_NE(message(v).find("bos_token_id 3"), std::string::npos) << message(v);
  v.bos_id = {};
  const std::int32_t types[] = {1, 9, 1};
  v.types = types;
  EXPECT_NE(message(v).find("token_type[1]"), std::string::npos) << message(v);
  v.types = {};
  v.model = "rwkv";
  EXPECT_NE(message(v).find("'rwkv' is not known"), std::string::npos) << message(v);
  v.model = "llama";
  EXPECT_NE(message(v).find("scores"), std::string::npos) << message(v);
}

// A text eight times as long may take about eight times as long: far below the square, whatever the machine's load.
TEST(Tokenizer, CostGrowsLinearly) {
  for (const char* name : {"bpe_gpt2", "bpe_llama3", "bpe_metaspace_first", "bpe_metaspace_always", "unigram",
                           "wordpiece_bert", "bpe_word_suffix"}) {
    auto t = Tokenizer::from_json(read_file(kGolden / (std::string(name) + ".tokenizer.json")), name);
    ASSERT_TRUE(t.ok()) << t.error().message;
    for (const char* unit : {"x", " ", "ab", "\xCC\x81", "<", "1"}) {
      const auto cost = [&](std::size_t n) {
        std::string text;
        while (text.size() < n) text += unit;
        double best = 1e9;
        for (int k = 0; k < 3; ++k) {
          timespec a, b;
          clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
          EXPECT_TRUE((*t)->encode(text).ok());
          clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
          best = std::min(best,
                          static_cast<double>(b.tv_sec - a.tv_sec) + 1e-9 * static_cast<double>(b.tv_nsec - a.tv_nsec));
        }
        return best;
      };
      const double small = cost(8000), large = cost(64000);
      EXPECT_LT(large, 30 * small + 0.002) << name << " '" << unit << "'";
    }
  }
}

TEST(Tokenizer, ThreadsShareOne) {
  auto t = Tokenizer::from_json(read_file(kGolden / "bpe_qwen2.tokenizer.json"), "x");
  ASSERT_TRUE(t.ok());
  const std::string text = "The quick brown fox \xEC\x95\x88\xEB\x85\x95 12345 jumps over the lazy dog.\n";
  const auto expected = *(*t)->encode(text);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 50; ++k) {
        if (*(*t)->encode(text) != expected || (*t)->decode(expected, true) != text) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Tokenizer, InvalidUtf8IsReadAsReplacementCharacters) {
  auto t = Tokenizer::from_json(read_file(kGolden / "bpe_gpt2.tokenizer.json"), "x");
  ASSERT_TRUE(t.ok());
  EXPECT_EQ(*(*t)->encode("a\xFF\xC3z"), *(*t)->encode("a\xEF\xBF\xBD\xEF\xBF\xBDz"));
}

}  // namespace
}  // namespace xgen::text
