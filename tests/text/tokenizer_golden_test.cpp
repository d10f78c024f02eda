// Tokenizers against what `tokenizers`, `sentencepiece`, `tiktoken` and llama.cpp make of the same texts
// (tools/golden/text_tokenizers.py makes tests/golden/tokenizers).
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <sstream>

#include "base/file_set.h"
#include "base/utf8.h"
#include "text/gguf_vocab.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

namespace xgen::text {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

const fs::path kGolden = fs::path(XGEN_SOURCE_DIR) / "tests/golden/tokenizers";
const fs::path kShared = fs::path(XGEN_SOURCE_DIR) / "../shared";
using Handle = std::shared_ptr<const Tokenizer>;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

json::value read_json(const fs::path& path) { return json::parse(read_file(path)); }

std::vector<TokenId> ids_of(const json::value& v) {
  std::vector<TokenId> ids;
  for (const json::value& id : v.as_array()) ids.push_back(static_cast<TokenId>(id.as_int64()));
  return ids;
}

std::string text_of(const json::value& v) { return std::string(v.as_string().data(), v.as_string().size()); }

// The file as a set that holds it under `name`, alone.
Handle load_as(const fs::path& path, std::string_view name) {
  static std::map<std::string, std::string> storage;
  std::string& data = storage[path.string()];
  if (data.empty()) data = read_file(path);
  auto set = embedded_files(path.string(), {{name, data}});
  auto tokenizer = Tokenizer::load(*set);
  EXPECT_TRUE(tokenizer.ok()) << path << ": " << (tokenizer.ok() ? "" : tokenizer.error().message);
  return tokenizer.ok() ? *tokenizer : nullptr;
}

void expect_ids(const Tokenizer& t, std::string_view text, EncodeOptions options, const std::vector<TokenId>& expected,
                const std::string& what) {
  auto ids = t.encode(text, options);
  ASSERT_TRUE(ids.ok()) << what << ": " << ids.error().message;
  if (*ids == expected) return;
  std::string got, want;
  for (const TokenId id : *ids) got += "[" + std::string(t.token_text(id)) + "]";
  for (const TokenId id : expected) want += "[" + std::string(t.token_text(id)) + "]";
  ADD_FAILURE() << what << ": " << text << "\n  got  " << got << "\n  want " << want;
}

std::string streamed(const Handle& t, std::span<const TokenId> ids, bool skip) {
  StreamDecoder decoder(t, skip);
  std::string all;
  for (const TokenId id : ids) {
    const std::string piece = decoder.push(id);
    EXPECT_TRUE(is_valid_utf8(piece));
    all += piece;
  }
  return all + decoder.flush();
}

void check_case(const Handle& t, const json::object& c, const std::string& text, const std::string& what) {
  const std::vector<TokenId> plain = ids_of(c.at("ids"));
  const std::vector<TokenId> full = c.contains("full") ? ids_of(c.at("full")) : plain;
  expect_ids(*t, text, {false, true}, plain, what);
  if (c.contains("full")) expect_ids(*t, text, {true, true}, full, what + " (with special tokens)");
  expect_ids(*t, text, {false, false}, c.contains("unparsed") ? ids_of(c.at("unparsed")) : plain,
             what + " (special tokens as text)");
  for (const bool skip : {false, true}) {
    const char* key = skip && !c.contains("full") && !c.contains("skip") && c.contains("decode") ? "decode"
                      : skip                                                                     ? "skip"
                                                                                                 : "decode";
    if (c.contains(key) && c.at(key).is_null()) continue;
    const std::string expected = c.contains(key) ? text_of(c.at(key)) : text;
    EXPECT_EQ(t->decode(full, skip), expected) << what << (skip ? " skipping" : " decoding") << " text: " << text;
    EXPECT_EQ(streamed(t, full, skip), expected) << what << " streamed, text: " << text;
  }
}

// Random ids in any order, invalid byte sequences included: pushed and flushed equals one-shot.
void check_stream(const Handle& t, const std::string& what) {
  std::mt19937 random(7);
  std::uniform_int_distribution<TokenId> any(-2, t->vocab_size() + 2);
  std::vector<TokenId> bytes;
  for (TokenId id = 0; id < t->vocab_size(); ++id) {
    const std::string b = t->token_bytes(id);
    if (b.size() == 1 && static_cast<unsigned char>(b[0]) >= 0x80) bytes.push_back(id);
  }
  for (int round = 0; round < 40; ++round) {
    std::vector<TokenId> ids;
    const auto n = random() % 40;
    for (std::size_t i = 0; i < n; ++i) {
      ids.push_back(!bytes.empty() && random() % 2 == 0 ? bytes[random() % bytes.size()] : any(random));
    }
    for (const bool skip : {false, true}) {
      const std::string once = t->decode(ids, skip);
      EXPECT_TRUE(is_valid_utf8(once));
      ASSERT_EQ(streamed(t, ids, skip), once) << what;
      // Primed with a part, the rest continues the text.
      if (ids.size() < 4) continue;
      const std::size_t cut = ids.size() / 2;
      StreamDecoder first(t, skip), rest(t, skip);
      std::string head;
      for (std::size_t i = 0; i < cut; ++i) head += first.push(ids[i]);
      rest.prime(std::span(ids).first(cut));
      std::string tail;
      for (std::size_t i = cut; i < ids.size(); ++i) tail += rest.push(ids[i]);
      ASSERT_EQ(head + tail + rest.flush(), once) << what << " primed";
    }
  }
}

std::vector<std::string> committed() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kGolden)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".golden.json")) names.push_back(name.substr(0, name.size() - 12));
  }
  std::sort(names.begin(), names.end());
  return names;
}

class Committed : public testing::TestWithParam<std::string> {};

TEST_P(Committed, EncodesAndDecodesAsTheLibrary) {
  const fs::path model = kGolden / (GetParam() + ".tokenizer.model");
  const Handle t = fs::exists(model) ? load_as(model, "tokenizer.model")
                                     : load_as(kGolden / (GetParam() + ".tokenizer.json"), "tokenizer.json");
  ASSERT_TRUE(t);
  const json::value golden = read_json(kGolden / (GetParam() + ".golden.json"));
  for (const json::value& c : golden.at("cases").as_array()) {
    json::object fields = c.as_object();
    if (fs::exists(model)) {
      // sentencepiece's own encoder never parses control tokens; its decoder leaves them out.
      expect_ids(*t, text_of(c.at("text")), {false, false}, ids_of(c.at("ids")), GetParam());
      if (fields.contains("decode") && c.at("decode").is_null()) continue;
      const std::string expected = text_of(fields.contains("decode") ? c.at("decode") : c.at("text"));
      EXPECT_EQ(t->decode(ids_of(c.at("ids")), true), expected);
      EXPECT_EQ(streamed(t, ids_of(c.at("ids")), true), expected);
    } else {
      check_case(t, fields, text_of(c.at("text")), GetParam());
    }
  }
  check_stream(t, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, Committed, testing::ValuesIn(committed()), [](const auto& p) { return p.param; });

// ---- real vocabularies ----

std::string loaded_name(const std::string& path) {
  if (path.ends_with(".json")) return "tokenizer.json";
  if (path.ends_with(".tiktoken")) return fs::path(path).filename().string();
  return "tokenizer.model";
}

Handle load_real(const std::string& path) {
  static std::map<std::string, Handle> loaded;
  Handle& handle = loaded[path];
  if (handle) return handle;
  const fs::path file = kShared / path;
  if (path.ends_with("vocab.json")) {
    const std::string vocab = read_file(file), merges = read_file(file.parent_path() / "merges.txt");
    std::string config;
    if (fs::exists(file.parent_path() / "tokenizer_config.json")) {
      config = read_file(file.parent_path() / "tokenizer_config.json");
    }
    std::vector<EmbeddedFile> files = {{"vocab.json", vocab}, {"merges.txt", merges}};
    if (!config.empty()) files.push_back({"tokenizer_config.json", config});
    auto t = Tokenizer::load(*embedded_files(path, files));
    EXPECT_TRUE(t.ok()) << (t.ok() ? "" : t.error().message);
    handle = t.ok() ? *t : nullptr;
  } else {
    handle = load_as(file, loaded_name(path));
  }
  return handle;
}

TEST(RealVocabularies, EncodeAndDecodeAsTheLibraries) {
  if (!fs::exists(kShared / "data/tokenizers")) GTEST_SKIP() << "no ../shared/data/tokenizers";
  const json::value all = read_json(kGolden / "real.json");
  const json::array& texts = all.at("texts").as_array();
  for (const auto& [path, golden] : all.at("golden").as_object()) {
    const std::string name(path);
    SCOPED_TRACE(name);
    const Handle t = load_real(name);
    ASSERT_TRUE(t);
    const bool spm = name.find(".model") != std::string::npos && name.find("llama3") == std::string::npos &&
                     name.find("llama4") == std::string::npos;
    const bool json_file = name.ends_with(".json");
    for (std::size_t i = 0; i < texts.size(); ++i) {
      const json::object& c = golden.as_array()[i].as_object();
      const std::string text = text_of(texts[i]);
      if (json_file) {
        check_case(t, c, text, name);
      } else if (spm) {
        expect_ids(*t, text, {false, false}, ids_of(c.at("ids")), name);
        if (c.contains("decode") && c.at("decode").is_null()) continue;
        const std::string expected = text_of(c.contains("decode") ? c.at("decode") : texts[i]);
        EXPECT_EQ(t->decode(ids_of(c.at("ids")), true), expected);
      } else {
        const std::vector<TokenId> raw = ids_of(c.at(c.contains("unparsed") ? "unparsed" : "ids"));
        expect_ids(*t, text, {false, false}, raw, name);
        EXPECT_EQ(t->decode(raw, false), text);
      }
    }
    check_stream(t, name);
  }
  // What the library does not accept is an error here too.
  for (const json::value& path : all.at("refused").as_array()) {
    const std::string refused = read_file(kShared / text_of(path));
    auto t = Tokenizer::load(*embedded_files("x", {{"tokenizer.json", refused}}));
    EXPECT_FALSE(t.ok()) << path;
  }
}

// A reader of just enough GGUF v3 to hand a vocabulary over.
class Gguf {
 public:
  explicit Gguf(std::string data) : data_(std::move(data)) {
    pos_ = 8;
    (void)number<std::uint64_t>();
    const auto pairs = number<std::uint64_t>();
    for (std::uint64_t i = 0; i < pairs; ++i) {
      const std::string key(string());
      value(key, number<std::uint32_t>());
    }
  }
  GgufVocab vocab() {
    GgufVocab v;
    const std::string p = "tokenizer.ggml.";
    v.model = text_[p + "model"];
    v.pre = text_[p + "pre"];
    tokens_.assign(strings_[p + "tokens"].begin(), strings_[p + "tokens"].end());
    merges_.assign(strings_[p + "merges"].begin(), strings_[p + "merges"].end());
    v.tokens = tokens_;
    v.merges = merges_;
    v.scores = floats_[p + "scores"];
    v.types = ints_[p + "token_type"];
    const auto id = [&](const std::string& key) -> std::optional<std::int64_t> {
      const auto it = numbers_.find(p + key + "_token_id");
      return it == numbers_.end() ? std::nullopt : std::optional(it->second);
    };
    v.bos_id = id("bos");
    v.eos_id = id("eos");
    v.unk_id = id("unknown");
    v.pad_id = id("padding");
    v.sep_id = id("seperator");
    v.cls_id = id("cls");
    if (numbers_.contains(p + "add_bos_token")) v.add_bos = numbers_[p + "add_bos_token"] != 0;
    return v;
  }

 private:
  template <class T>
  T number() {
    T v;
    std::memcpy(&v, data_.data() + pos_, sizeof v);
    pos_ += sizeof v;
    return v;
  }
  std::string_view string() {
    const auto n = number<std::uint64_t>();
    const std::string_view s = std::string_view(data_).substr(pos_, n);
    pos_ += n;
    return s;
  }
  void value(const std::string& key, std::uint32_t type) {
    switch (type) {
      case 4:
        numbers_[key] = number<std::uint32_t>();
        break;
      case 5:
        numbers_[key] = number<std::int32_t>();
        break;
      case 6:
        (void)number<float>();
        break;
      case 7:
        numbers_[key] = number<std::uint8_t>();
        break;
      case 8:
        text_[key] = string();
        break;
      case 10:
        numbers_[key] = static_cast<std::int64_t>(number<std::uint64_t>());
        break;
      case 9: {
        const auto element = number<std::uint32_t>();
        const auto n = number<std::uint64_t>();
        for (std::uint64_t i = 0; i < n; ++i) {
          if (element == 8) {
            strings_[key].emplace_back(string());
          } else if (element == 6) {
            floats_[key].push_back(number<float>());
          } else {
            ints_[key].push_back(number<std::int32_t>());
          }
        }
        break;
      }
      default:
        FAIL() << "type " << type << " of " << key;
    }
  }
  std::string data_;
  std::size_t pos_ = 0;
  std::map<std::string, std::string> text_;
  std::map<std::string, std::int64_t> numbers_;
  std::map<std::string, std::vector<std::string>> strings_;
  std::map<std::string, std::vector<float>> floats_;
  std::map<std::string, std::vector<std::int32_t>> ints_;
  std::vector<std::string_view> tokens_, merges_;
};

TEST(RealVocabularies, LlamaCppGoldens) {
  const fs::path folder = kShared / "data/llama.cpp-vocab";
  if (!fs::exists(folder)) GTEST_SKIP() << "no ../shared/data/llama.cpp-vocab";
  // Vocabularies that are there in another form.
  const std::map<std::string, std::string> elsewhere = {
      {"llama-bpe", "data/tokenizers/llama3/tokenizer.model"},
      {"qwen2", "data/tokenizers/qwen2/vocab.json"},
      {"deepseek-r1-qwen", "data/tokenizers/qwen2/vocab.json"},
      {"roberta-bpe", "data/tokenizers/ort-ext/roberta-base/vocab.json"}};
  std::vector<fs::path> inputs;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".inp") inputs.push_back(entry.path());
  }
  std::sort(inputs.begin(), inputs.end());
  int checked = 0;
  for (const fs::path& input : inputs) {
    const fs::path gguf = input.parent_path() / input.stem();
    const std::string name = gguf.stem().string().substr(std::strlen("ggml-vocab-"));
    SCOPED_TRACE(name);
    Handle t;
    if (fs::exists(gguf)) {
      Gguf file(read_file(gguf));
      auto loaded = Tokenizer::from_gguf(file.vocab());
      ASSERT_TRUE(loaded.ok()) << loaded.error().message;
      t = *loaded;
      check_stream(t, name);
    } else if (const auto it = elsewhere.find(name); it != elsewhere.end()) {
      t = load_real(it->second);
    } else {
      std::printf("[ no vocab ] %s\n", input.filename().c_str());
      continue;
    }
    ASSERT_TRUE(t);
    const std::string separator = "\n__ggml_vocab_test__\n";
    const std::string text = read_file(input);
    std::istringstream expected(read_file(input.parent_path() / (input.stem().string() + ".out")));
    for (std::size_t from = 0; from < text.size();) {
      const std::size_t end = std::min(text.find(separator, from), text.size());
      std::string line;
      ASSERT_TRUE(std::getline(expected, line));
      std::istringstream numbers(line);
      std::vector<TokenId> ids;
      for (TokenId id; numbers >> id;) ids.push_back(id);
      expect_ids(*t, std::string_view(text).substr(from, end - from), {false, false}, ids, name);
      from = end + separator.size();
      ++checked;
    }
  }
  EXPECT_GE(checked, 500);
}

// Vocabularies without goldens load, and give back what they were given.
TEST(RealVocabularies, GgufRoundTrip) {
  const fs::path folder = kShared / "data/llama.cpp-vocab";
  if (!fs::exists(folder)) GTEST_SKIP() << "no ../shared/data/llama.cpp-vocab";
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".gguf") continue;
    Gguf file(read_file(entry.path()));
    auto t = Tokenizer::from_gguf(file.vocab());
    ASSERT_TRUE(t.ok()) << entry.path() << t.error().message;
    if (file.vocab().model == "bert") continue;
    const std::string text = "Hello, 세계! \n\n x = 1234567; ";
    EXPECT_EQ((*t)->decode(*(*t)->encode(text), true), text) << entry.path();
  }
}

TEST(RealVocabularies, VllmCppGoldens) {
  const fs::path folder = kShared / "data/tokenizers/goldens-vllm.cpp";
  if (!fs::exists(folder)) GTEST_SKIP() << "no ../shared/data/tokenizers/goldens-vllm.cpp";
  const Handle t = load_as(folder / "tokenizer_mistral/tokenizer.json", "tokenizer.json");
  ASSERT_TRUE(t);
  const json::value golden = read_json(folder / "tokenizer_mistral/encodings.json");
  for (const json::value& c : golden.at("entries").as_array()) {
    const std::string text = text_of(c.at("text"));
    expect_ids(*t, text, {false, true}, ids_of(c.at("ids")), "mistral");
    expect_ids(*t, text, {true, true}, ids_of(c.at("ids_special")), "mistral");
    EXPECT_EQ(t->decode(ids_of(c.at("ids")), false), text_of(c.at("decode"))) << text;
  }
  // DeepSeek V2's vocabulary is that of the GGUF, except that the GGUF has the letters that stand for bytes which no
  // UTF-8 text holds (0xC0, 0xC1, 0xF5 to 0xFF) as tokens of their own.
  Gguf file(read_file(kShared / "data/llama.cpp-vocab/ggml-vocab-deepseek-llm.gguf"));
  auto deepseek = Tokenizer::from_gguf(file.vocab());
  ASSERT_TRUE(deepseek.ok()) << deepseek.error().message;
  const json::value entries = read_json(folder / "tokenizer_deepseek_v2/encodings.json");
  constexpr std::string_view kOwnTokens[] = {"À", "Á", "õ", "ö", "÷", "ø", "ù", "ú", "û", "ü", "ý", "þ", "ÿ"};
  int checked = 0;
  for (const json::value& c : entries.at("entries").as_array()) {
    const std::string text = text_of(c.at("text"));
    if (std::any_of(std::begin(kOwnTokens), std::end(kOwnTokens),
                    [&](std::string_view letter) { return text.find(letter) != std::string::npos; })) {
      continue;
    }
    expect_ids(**deepseek, text, {false, true}, ids_of(c.at("ids")), "deepseek");
    ++checked;
  }
  EXPECT_GE(checked, 97);
}

// mistral-common's rendered conversations: each stretch between control tokens is tokenised by itself.
TEST(RealVocabularies, MistralGoldens) {
  const fs::path folder = kShared / "data/tokenizers/mistral";
  if (!fs::exists(folder)) GTEST_SKIP() << "no ../shared/data/tokenizers/mistral";
  const std::map<std::string, std::string> models = {{"v1", "tokenizer.model.v1"},
                                                     {"v2", "mistral_instruct_tokenizer_240216.model.v2"},
                                                     {"v3", "mistral_instruct_tokenizer_240323.model.v3"}};
  int checked = 0;
  for (const auto& [version, model] : models) {
    const Handle t = load_as(folder / model, "tokenizer.model");
    ASSERT_TRUE(t);
    for (const auto& sample : fs::directory_iterator(folder / "golden-samples")) {
      const fs::path tokens = sample.path() / ("tokens_" + version + ".json");
      if (!fs::exists(tokens)) continue;
      const std::vector<TokenId> expected = ids_of(read_json(tokens).at("tokens"));
      // The rendered text shows every piece as it is, so it is what the ids spell.
      std::string rendered = read_file(sample.path() / ("text_" + version + ".txt"));
      std::string spelt;
      for (const TokenId id : expected) spelt += t->token_text(id);
      const auto blanks = [](std::string& s) {
        for (std::size_t at; (at = s.find("\xE2\x96\x81")) != std::string::npos;) s.replace(at, 3, " ");
      };
      blanks(spelt);
      blanks(rendered);
      EXPECT_EQ(spelt, rendered) << sample.path() << version;
      // Stretches of ordinary tokens come back from their text.
      std::vector<TokenId> again;
      for (std::size_t i = 0; i < expected.size();) {
        if (t->is_special(expected[i])) {
          again.push_back(expected[i++]);
          continue;
        }
        std::size_t end = i;
        while (end < expected.size() && !t->is_special(expected[end])) ++end;
        const auto ids = t->encode(t->decode(std::span(expected).subspan(i, end - i), true), {false, false});
        ASSERT_TRUE(ids.ok());
        again.insert(again.end(), ids->begin(), ids->end());
        i = end;
      }
      EXPECT_EQ(again, expected) << sample.path() << version;
      ++checked;
    }
  }
  EXPECT_GE(checked, 10);
}

std::string without_blanks(std::string text) {
  std::erase(text, ' ');
  return text;
}

TEST(RealVocabularies, SwiftTransformersGoldens) {
  const fs::path folder = kShared / "data/tokenizers/goldens-swift-transformers";
  if (!fs::exists(folder)) GTEST_SKIP() << "no ../shared/data/tokenizers/goldens-swift-transformers";
  const auto check = [&](const char* file, const Handle& t, bool special) {
    SCOPED_TRACE(file);
    ASSERT_TRUE(t);
    const json::value golden = read_json(folder / file);
    const std::string text = text_of(golden.at("text"));
    expect_ids(*t, text, {special, true}, ids_of(golden.at("token_ids")), file);
  };
  check("gpt2_encoded_tokens.json", load_real("data/tokenizers/tiktoken/r50k_base.tiktoken"), false);
  check("llama_encoded.json", load_real("data/tokenizers/llama2/tokenizer.model"), true);
  check("t5_base_encoded.json", load_real("data/tokenizers/ort-ext/t5-small/tokenizer.json"), true);
  check("bert_uncased_encoded.json", load_real("data/tokenizers/bert-gte-small/tokenizer.json"), true);
  std::printf("[ no vocab ] distilbert_cased_encoded.json\n");

  // Each of several tokenizers; those whose vocabulary is here in some form.
  const std::map<std::string, std::string> models = {
      {"bert-base-uncased", "data/tokenizers/bert-gte-small/tokenizer.json"},
      {"google-bert/bert-base-uncased", "data/tokenizers/bert-gte-small/tokenizer.json"},
      {"distilgpt2", "data/tokenizers/tiktoken/r50k_base.tiktoken"},
      {"coreml-projects/Llama-2-7b-chat-coreml", "data/tokenizers/llama2/tokenizer.model"},
      {"tiiuae/falcon-7b", "data/tokenizers/ort-ext/falcon-tokenizer/tokenizer.json"},
      {"t5-base", "data/tokenizers/ort-ext/t5-small/tokenizer.json"},
      {"pcuenq/Llama-3.2-1B-Instruct-tokenizer", "data/tokenizers/llama3/tokenizer.model"}};
  const json::value tests = read_json(folder / "tokenizer_tests.json");
  for (const auto& [key, cases] : tests.as_object()) {
    const std::string name(key);
    SCOPED_TRACE(name);
    if (!models.contains(name)) {
      std::printf("[ no vocab ] tokenizer_tests.json: %s\n", name.c_str());
      continue;
    }
    const Handle t = load_real(models.at(name));
    ASSERT_TRUE(t);
    for (const json::value& c : cases.as_array()) {
      const std::vector<TokenId> ids = ids_of(c.at("encoded").at("input_ids"));
      expect_ids(*t, text_of(c.at("input")), {true, true}, ids, name);
      // They were decoded with clean_up_tokenization_spaces, which moves blanks.
      EXPECT_EQ(without_blanks(t->decode(ids, true)), without_blanks(text_of(c.at("decoded_without_special"))));
    }
  }
}

}  // namespace
}  // namespace xgen::text
