#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "base/file_set.h"
#include "weights/metadata.h"
#include "weights/tensor_store.h"

namespace xgen::weights {
namespace {

using testing::HasSubstr;

const std::string kShared = std::string(XGEN_SOURCE_DIR) + "/../shared/data/";

Bytes bytes_of(const std::string& text) {
  auto owner = std::make_shared<std::string>(text);
  return {std::as_bytes(std::span(owner->data(), owner->size())), owner};
}

template <class T>
std::string little(T value) {
  std::string text(sizeof value, '\0');
  std::memcpy(text.data(), &value, sizeof value);
  return text;
}

// --- Metadata.

TEST(MetadataJson, TypedGetters) {
  const auto parsed = parse_json_metadata(
      R"({"hidden_size": 896, "rope_theta": 1e6, "eps": 1e-5, "big": 18446744073709551615, "tie": true, "none": null,
          "eos_token_id": [1, 2], "architectures": ["A\u00e4", "B"], "rope_scaling": {"type": "yarn", "factor": 4},
          "mixed": [1, "a", null], "floats": [1, 2.5], "empty": []})",
      "config.json");
  ASSERT_TRUE(parsed.ok());
  const Metadata& m = *parsed;
  EXPECT_EQ(*m.get_int("hidden_size"), 896);
  EXPECT_EQ(*m.get_int("rope_theta"), 1000000);
  EXPECT_EQ(*m.get_double("hidden_size"), 896.0);
  EXPECT_EQ(*m.get_double("eps", 7), 1e-5);
  EXPECT_EQ(*m.get_double("absent", 7), 7);
  EXPECT_EQ(*m.get_bool("none", true), true);
  EXPECT_FALSE(m.has("none"));
  EXPECT_EQ(m.get("big").kind(), Metadata::Kind::unsigned_integer);
  EXPECT_FALSE(m.get_int("big").ok());
  EXPECT_THAT(*m.get("eos_token_id").as_ints(), testing::ElementsAre(1, 2));
  EXPECT_THAT(*m.get("hidden_size").as_ints(), testing::ElementsAre(896));
  EXPECT_THAT(*m.get("architectures").as_strings(), testing::ElementsAre("A\xc3\xa4", "B"));
  EXPECT_EQ(*m.get("rope_scaling").get_string("type"), "yarn");
  EXPECT_EQ(m.get("mixed").size(), 3u);
  EXPECT_EQ(*m.get("mixed").at(1).as_string(), "a");
  EXPECT_THAT(*m.get("floats").as_doubles(), testing::ElementsAre(1, 2.5));
  EXPECT_FALSE(m.get("floats").as_ints().ok());
  EXPECT_EQ(m.get("empty").strings()->size(), 0u);
  EXPECT_EQ(m.get("empty").numbers()->size(), 0u);
  EXPECT_EQ(m.key(0), "hidden_size");
}

TEST(MetadataJson, ErrorsNameFileKeyAndKind) {
  const auto m = parse_json_metadata(R"({"a": {"b": [{"c": "x"}]}, "n": 1.5})", "dir/config.json");
  ASSERT_TRUE(m.ok());
  const auto wrong = m->get("a").get("b").at(0).get_int("c", 3);
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.error().message,
            "dir/config.json: \"a.b[0].c\" must be an integer of at most 63 bits, but is a string");
  const auto missing = m->get("a").get_string("zz");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().message, "dir/config.json: \"a.zz\" is missing; expected a string");
  EXPECT_FALSE(m->get_int("n").ok());
  EXPECT_FALSE(m->get_bool("n").ok());
  const auto broken = parse_json_metadata("{\"a\": }", "bad.json");
  ASSERT_FALSE(broken.ok());
  EXPECT_THAT(broken.error().message, HasSubstr("bad.json"));
}

TEST(MetadataJson, EmptyAndLifetime) {
  const Metadata none;
  EXPECT_EQ(none.size(), 0u);
  EXPECT_TRUE(none.get("x").is_null());
  Metadata inner;
  {
    const auto m = parse_json_metadata(R"({"o": {"s": "kept alive"}})", "c");
    ASSERT_TRUE(m.ok());
    inner = m->get("o");
  }
  EXPECT_EQ(*inner.get_string("s"), "kept alive");
}

// --- Safetensors.

std::string safetensors(const std::string& header, std::size_t data) {
  return little<std::uint64_t>(header.size()) + header + std::string(data, '\x01');
}

std::string fault(const std::string& file) {
  const auto store = parse_safetensors(bytes_of(file), "f");
  return store.ok() ? "" : store.error().message;
}

TEST(Safetensors, ViewsAndMetadata) {
  const std::string file = safetensors(
      R"({"__metadata__": {"format": "pt"}, "b": {"dtype": "F16", "shape": [2, 3], "data_offsets": [4, 16]},
          "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
          "five": {"dtype": "U8", "shape": [2, 1, 2, 1, 1], "data_offsets": [16, 20]},
          "none": {"dtype": "F32", "shape": [0, 5], "data_offsets": [20, 20]}})",
      20);
  const auto store = parse_safetensors(bytes_of(file), "f");
  ASSERT_TRUE(store.ok()) << store.error().message;
  ASSERT_EQ(store->tensors().size(), 4u);
  EXPECT_EQ(store->tensors()[0].name, "a");
  EXPECT_EQ(store->find("b")->shape, make_shape({2, 3}));
  EXPECT_EQ(store->find("b")->dtype, DType::f16);
  EXPECT_EQ(store->find("five")->shape, make_shape({2, 2, 1, 1}));
  EXPECT_EQ(store->bytes(), 20u);
  EXPECT_EQ(*store->metadata().get_string("format"), "pt");
  EXPECT_EQ(store->find("c"), nullptr);
  EXPECT_THAT(store->get("c").error().message, HasSubstr("\"c\""));
}

TEST(Safetensors, LyingHeadersAreRefused) {
  EXPECT_THAT(fault("abc"), HasSubstr("shorter"));
  EXPECT_THAT(fault(little<std::uint64_t>(~0ull) + "{}"), HasSubstr("truncated"));
  EXPECT_THAT(fault(little<std::uint64_t>(5) + "{}"), HasSubstr("truncated"));
  EXPECT_THAT(fault(safetensors("[1]", 0)), HasSubstr("no JSON object"));
  EXPECT_THAT(fault(safetensors("{", 0)), HasSubstr("JSON"));
  const auto one = [](const std::string& entry) { return fault(safetensors("{\"t\": " + entry + "}", 16)); };
  EXPECT_THAT(one("3"), HasSubstr("\"t\""));
  EXPECT_THAT(one(R"({"shape": [4], "data_offsets": [0, 16]})"), HasSubstr("dtype"));
  EXPECT_THAT(one(R"({"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]})"), HasSubstr("F8_E4M3"));
  EXPECT_THAT(one(R"({"dtype": "F32", "shape": [5], "data_offsets": [0, 20]})"), HasSubstr("truncated"));
  EXPECT_THAT(one(R"({"dtype": "F32", "shape": [3], "data_offsets": [0, 16]})"), HasSubstr("does not take 16 bytes"));
  EXPECT_THAT(one(R"({"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]})"), HasSubstr("dimension"));
  EXPECT_THAT(one(R"({"dtype": "F32", "shape": [4.5], "data_offsets": [0, 16]})"), HasSubstr("dimension"));
  EXPECT_THAT(one(R"({"dtype": "F32", "shape": "4", "data_offsets": [0, 16]})"), HasSubstr("shape"));
  EXPECT_THAT(one(R"({"dtype": "F32", "shape": [4], "data_offsets": [16, 0]})"), HasSubstr("data_offsets"));
  EXPECT_THAT(one(R"({"dtype": "F32", "shape": [4], "data_offsets": [-1, 15]})"), HasSubstr("data_offsets"));
  EXPECT_THAT(one(R"({"dtype": "F32", "shape": [4], "data_offsets": [0]})"), HasSubstr("data_offsets"));
  // 2^62 * 4 bytes wraps to 0; 2^32 * 2^32 elements wrap to 0.
  EXPECT_THAT(one(R"({"dtype": "F32", "shape": [4611686018427387904], "data_offsets": [0, 0]})"),
              HasSubstr("does not"));
  EXPECT_THAT(one(R"({"dtype": "U8", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]})"),
              HasSubstr("does not"));
  EXPECT_THAT(one(R"({"dtype": "U8", "shape": [4294967296, 4294967296, 1, 1, 1], "data_offsets": [0, 0]})"),
              HasSubstr("too large"));
  EXPECT_THAT(fault(safetensors(R"({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
                                    "b": {"dtype": "U8", "shape": [8], "data_offsets": [7, 15]}})",
                                16)),
              HasSubstr("overlap"));
}

TEST(Safetensors, ShardsThroughTheIndex) {
  const std::string one = safetensors(R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}})", 4);
  const std::string two = safetensors(R"({"b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}})", 4);
  const std::string index = R"({"metadata": {}, "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}})";
  const auto set = embedded_files("set", {{"x-1.safetensors", one},
                                          {"x-2.safetensors", two},
                                          {"unused.safetensors", "junk"},
                                          {"model.safetensors.index.json", index}});
  const auto store = open_safetensors(*set);
  ASSERT_TRUE(store.ok()) << store.error().message;
  EXPECT_EQ(store->tensors().size(), 2u);
  const auto partial = embedded_files("set", {{"x-1.safetensors", one}, {"model.safetensors.index.json", index}});
  EXPECT_THAT(open_safetensors(*partial).error().message, HasSubstr("x-2.safetensors"));
  const auto twice = embedded_files("set", {{"x-1.safetensors", one}, {"x-2.safetensors", one}});
  EXPECT_THAT(open_safetensors(*twice).error().message, HasSubstr("\"a\" is there twice"));
  const auto none = embedded_files("set", {{"README", ""}});
  EXPECT_EQ(open_safetensors(*none).error().code, ErrorCode::not_found);
  const auto escape =
      embedded_files("set", {{"model.safetensors.index.json", R"({"weight_map": {"a": "../../etc/passwd"}})"}});
  EXPECT_FALSE(open_safetensors(*escape).ok());
}

// --- GGUF.

std::string text(const std::string& s) { return little<std::uint64_t>(s.size()) + s; }

struct GgufFile {
  std::uint32_t version = 3;
  std::vector<std::string> values;   // key, type, value
  std::vector<std::string> tensors;  // infos
  std::size_t data = 0;
  std::size_t alignment = 32;

  GgufFile& value(const std::string& key, std::uint32_t type, const std::string& bytes) {
    values.push_back(text(key) + little(type) + bytes);
    return *this;
  }
  GgufFile& tensor(const std::string& name, std::vector<std::uint64_t> dims, std::uint32_t type, std::uint64_t offset) {
    std::string info = text(name) + little<std::uint32_t>(static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t d : dims) info += little(d);
    tensors.push_back(info + little(type) + little(offset));
    return *this;
  }
  std::string str() const {
    std::string file =
        "GGUF" + little(version) + little<std::uint64_t>(tensors.size()) + little<std::uint64_t>(values.size());
    for (const auto& v : values) file += v;
    for (const auto& t : tensors) file += t;
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + std::string(data, '\x02');
  }
};

std::string gguf_fault(const GgufFile& file) {
  const auto store = parse_gguf(bytes_of(file.str()), "f.gguf");
  return store.ok() ? "" : store.error().message;
}

GgufFile sample() {
  GgufFile f;
  f.value("general.architecture", 8, text("llama"))
      .value("llama.context_length", 4, little<std::uint32_t>(2048))
      .value("llama.rope.freq_base", 6, little(10000.0f))
      .value("flag", 7, little<std::uint8_t>(1))
      .value("neg", 11, little<std::int64_t>(-5))
      .value("tokens", 9, little<std::uint32_t>(8) + little<std::uint64_t>(3) + text("a") + text("") + text("ccc"))
      .value("scores", 9, little<std::uint32_t>(6) + little<std::uint64_t>(2) + little(0.5f) + little(-2.0f))
      .value("types", 9, little<std::uint32_t>(4) + little<std::uint64_t>(2) + little(1u) + little(4000000000u));
  f.tensor("q", {64, 3}, 8, 0).tensor("f", {5}, 0, 224);
  f.data = 244;
  return f;
}

TEST(Gguf, ValuesAndTensors) {
  for (const std::uint32_t version : {2u, 3u}) {
    GgufFile f = sample();
    f.version = version;
    const auto store = parse_gguf(bytes_of(f.str()), "f.gguf");
    ASSERT_TRUE(store.ok()) << store.error().message;
    const Metadata& m = store->metadata();
    EXPECT_EQ(*m.get_string("general.architecture"), "llama");
    EXPECT_EQ(*m.get_int("llama.context_length"), 2048);
    EXPECT_EQ(*m.get_double("llama.rope.freq_base"), 10000);
    EXPECT_EQ(*m.get_bool("flag"), true);
    EXPECT_EQ(*m.get_int("neg"), -5);
    EXPECT_THAT(*m.get("tokens").strings(), testing::ElementsAre("a", "", "ccc"));
    EXPECT_EQ(m.get("scores").numbers()->number(1), -2.0);
    EXPECT_THAT(*m.get("types").as_ints(), testing::ElementsAre(1, 4000000000));
    const TensorView& q = *store->find("q");
    EXPECT_EQ(q.shape, make_shape({3, 64}));
    EXPECT_EQ(q.dtype, DType::q8_0);
    EXPECT_EQ(q.bytes(), 204u);
    EXPECT_EQ(store->find("f")->shape, make_shape({5}));
  }
}

TEST(Gguf, MetadataOutlivesTheStore) {
  Metadata m;
  {
    const auto store = parse_gguf(bytes_of(sample().str()), "f.gguf");
    ASSERT_TRUE(store.ok());
    m = store->metadata();
  }
  EXPECT_EQ(*m.get_string("general.architecture"), "llama");
}

TEST(Gguf, LyingHeadersAreRefused) {
  EXPECT_THAT(parse_gguf(bytes_of("GGML"), "f").error().message, HasSubstr("GGUF"));
  EXPECT_THAT(parse_gguf(bytes_of(""), "f").error().message, HasSubstr("GGUF"));
  GgufFile old;
  old.version = 1;
  EXPECT_THAT(gguf_fault(old), HasSubstr("version 1"));
  old.version = 0x03000000;
  EXPECT_THAT(gguf_fault(old), HasSubstr("big-endian"));
  // Counts that cannot be true.
  const std::string head = "GGUF" + little(3u);
  EXPECT_THAT(parse_gguf(bytes_of(head + little(~0ull) + little<std::uint64_t>(0) + std::string(64, '\0')), "f")
                  .error()
                  .message,
              HasSubstr("do not fit"));
  EXPECT_THAT(parse_gguf(bytes_of(head + little<std::uint64_t>(0) + little(~0ull >> 1) + std::string(64, '\0')), "f")
                  .error()
                  .message,
              HasSubstr("do not fit"));
  const auto value = [](std::uint32_t type, const std::string& bytes) {
    GgufFile f;
    f.value("key", type, bytes);
    return gguf_fault(f);
  };
  EXPECT_THAT(value(8, little(~0ull)), HasSubstr("truncated"));
  EXPECT_THAT(value(13, ""), HasSubstr("unknown value type 13 (key \"key\")"));
  EXPECT_THAT(value(9, little(8u) + little(1ull << 60)), HasSubstr("does not fit"));
  EXPECT_THAT(value(9, little(12u) + little(1ull << 61)), HasSubstr("does not fit"));
  EXPECT_THAT(value(9, little(99u) + little(0ull)), HasSubstr("unknown array type"));
  std::string deep;
  for (int i = 0; i < 6; ++i) deep += little(9u) + little(1ull);
  EXPECT_THAT(value(9, deep), HasSubstr("nested"));
  GgufFile twice;
  twice.value("k", 7, little<std::uint8_t>(0)).value("k", 7, little<std::uint8_t>(0));
  EXPECT_THAT(gguf_fault(twice), HasSubstr("\"k\" is there twice"));
  const auto tensor = [](std::vector<std::uint64_t> dims, std::uint32_t type, std::uint64_t offset) {
    GgufFile f;
    f.tensor("t", std::move(dims), type, offset);
    f.data = 256;
    return gguf_fault(f);
  };
  EXPECT_EQ(tensor({64}, 0, 0), "");
  EXPECT_THAT(tensor({65}, 0, 0), HasSubstr("truncated"));
  EXPECT_THAT(tensor({8}, 0, 256), HasSubstr("truncated"));
  EXPECT_THAT(tensor({8}, 0, ~31ull), HasSubstr("truncated"));
  EXPECT_THAT(tensor({8}, 0, 4), HasSubstr("aligned"));
  EXPECT_THAT(tensor({33}, 8, 0), HasSubstr("impossible shape"));
  EXPECT_THAT(tensor({1ull << 62}, 0, 0), HasSubstr("impossible shape"));
  EXPECT_THAT(tensor({1ull << 32, 1ull << 32}, 0, 0), HasSubstr("impossible shape"));
  EXPECT_THAT(tensor({~0ull}, 0, 0), HasSubstr("dimension"));
  EXPECT_THAT(tensor({}, 0, 0), HasSubstr("0 dimensions"));
  EXPECT_THAT(tensor({1, 1, 1, 1, 1}, 0, 0), HasSubstr("5 dimensions"));
  EXPECT_THAT(tensor({32}, 20, 0), HasSubstr("tensor \"t\" has the unsupported type IQ4_NL (20)"));
  EXPECT_THAT(tensor({32}, 12345, 0), HasSubstr("unknown (12345)"));
  GgufFile align;
  align.value("general.alignment", 4, little(24u));
  EXPECT_THAT(gguf_fault(align), HasSubstr("power of two"));
  GgufFile overlap;
  overlap.tensor("a", {32}, 0, 0).tensor("b", {32}, 0, 96);
  overlap.data = 256;
  EXPECT_THAT(gguf_fault(overlap), HasSubstr("\"a\" and \"b\" overlap"));
  GgufFile same;
  same.tensor("a", {8}, 0, 0).tensor("a", {8}, 0, 32);
  same.data = 64;
  EXPECT_THAT(gguf_fault(same), HasSubstr("twice"));
}

TEST(Gguf, EveryTruncationAndManyCorruptionsAreHarmless) {
  const std::string file = sample().str();
  const std::size_t data_needed = file.size();
  for (std::size_t size = 0; size < data_needed; ++size) {
    EXPECT_FALSE(parse_gguf(bytes_of(file.substr(0, size)), "f").ok()) << size;
  }
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string bad = file;
    for (int n = 0; n < 3; ++n) bad[random() % 600 % bad.size()] = static_cast<char>(random());
    const Bytes bytes = bytes_of(bad);
    const auto store = parse_gguf(bytes, "f");
    if (!store.ok()) continue;
    for (const NamedTensor& t : store->tensors()) {
      EXPECT_GE(t.view.data, bytes.data());
      EXPECT_LE(t.view.data + t.view.bytes(), bytes.data() + bytes.size());
    }
  }
}

TEST(Gguf, SplitFiles) {
  const auto part = [](std::uint16_t number, const std::string& name) {
    GgufFile f;
    f.value("split.no", 2, little(number)).value("split.count", 2, little<std::uint16_t>(2));
    f.tensor(name, {8}, 0, 0);
    f.data = 32;
    return f.str();
  };
  const std::string one = part(0, "a");
  const std::string two = part(1, "b");
  const auto both = embedded_files("set", {{"m-00001-of-00002.gguf", one}, {"m-00002-of-00002.gguf", two}});
  const auto store = open_gguf(*both);
  ASSERT_TRUE(store.ok()) << store.error().message;
  EXPECT_NE(store->find("a"), nullptr);
  EXPECT_NE(store->find("b"), nullptr);
  const auto missing = embedded_files("set", {{"m-00001-of-00002.gguf", one}});
  EXPECT_THAT(open_gguf(*missing).error().message, HasSubstr("only 1 of 2 parts"));
  const auto swapped = embedded_files("set", {{"m-00001-of-00002.gguf", two}, {"m-00002-of-00002.gguf", one}});
  EXPECT_THAT(open_gguf(*swapped).error().message, HasSubstr("unlike its name"));
  const auto several = embedded_files("set", {{"a.gguf", one}, {"b.gguf", two}});
  EXPECT_THAT(open_gguf(*several).error().message, HasSubstr("several GGUF models"));
  const auto none = embedded_files("set", {});
  EXPECT_EQ(open_gguf(*none).error().code, ErrorCode::not_found);
}

// --- Real files.

TEST(RealFiles, SafetensorsSmall) {
  const std::string folder = kShared + "safetensors-small";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is not there";
  int opened = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    const auto bytes = map_file(entry.path().string());
    ASSERT_TRUE(bytes.ok());
    const auto store = parse_safetensors(*bytes, entry.path().string());
    ASSERT_TRUE(store.ok()) << store.error().message;
    EXPECT_GT(store->tensors().size(), 0u);
    ++opened;
  }
  EXPECT_GT(opened, 0);
}

TEST(RealFiles, TinyLlamaGguf) {
  const std::string folder = kShared + "llama-2-tiny-random";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is not there";
  const auto files = open_files(folder);
  ASSERT_TRUE(files.ok());
  const auto store = open_gguf(**files);
  ASSERT_TRUE(store.ok()) << store.error().message;
  EXPECT_EQ(*store->metadata().get_string("general.architecture"), "llama");
  EXPECT_EQ(store->metadata().get("tokenizer.ggml.tokens").size(), 32000u);
  const TensorView* embedding = store->find("token_embd.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->rows(), 32000);
}

TEST(RealFiles, VocabularyGgufsOpenInMilliseconds) {
  const std::string folder = kShared + "llama.cpp-vocab";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << folder << " is not there";
  int opened = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.path().extension() != ".gguf") continue;
    const auto bytes = map_file(entry.path().string());
    ASSERT_TRUE(bytes.ok());
    const auto begin = std::chrono::steady_clock::now();
    const auto store = parse_gguf(*bytes, entry.path().string());
    const auto time = std::chrono::steady_clock::now() - begin;
    ASSERT_TRUE(store.ok()) << store.error().message;
    EXPECT_GT(store->metadata().get("tokenizer.ggml.tokens").strings()->size(), 1000u);
    EXPECT_LT(std::chrono::duration<double>(time).count(), 1.0);  // tens of milliseconds; the machine may be busy
    ++opened;
  }
  EXPECT_GT(opened, 0);
}

}  // namespace
}  // namespace xgen::weights
