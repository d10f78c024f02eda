// What loading refuses, and what it reads besides the weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <set>

#include "base/bytes.h"
#include "golden.h"
#include "model/arch.h"
#include "model/decoder_spec.h"
#include "weights/metadata.h"

namespace xgen::model {
namespace {

using boost::json::object;
using test::Tensor;
using testing::HasSubstr;

struct Fault {
  std::string name;
  std::string golden;
  std::function<void(object& config, std::vector<Tensor>& tensors)> make;
  ErrorCode code;
  std::vector<std::string> says;
};

Tensor& tensor_named(std::vector<Tensor>& tensors, const std::string& name) {
  for (Tensor& t : tensors) {
    if (t.name == name) return t;
  }
  ADD_FAILURE() << name;
  return tensors.front();
}

const std::vector<Fault>& faults() {
  static const std::vector<Fault> list{
      {"UnknownArchitecture",
       "llama",
       [](object& c, auto&) { c["model_type"] = "mamba"; },
       ErrorCode::unsupported,
       {"hf/config.json", "model_type \"mamba\"", "llama", "qwen3_moe", "glm4"}},
      {"NotCausal",
       "llama",
       [](object& c, auto&) { c["architectures"] = boost::json::array{"LlamaForSequenceClassification"}; },
       ErrorCode::unsupported,
       {"LlamaForSequenceClassification"}},
      {"Vision",
       "gemma3",
       [](object& c, auto&) {
         c["vision_config"] = object{{"a", 1}};
       },
       ErrorCode::unsupported,
       {"vision_config"}},
      {"Quantised",
       "llama",
       [](object& c, auto&) {
         c["quantization_config"] = object{{"quant_method", "awq"}};
       },
       ErrorCode::unsupported,
       {"quantization_config", "awq"}},
      {"DynamicRope",
       "llama",
       [](object& c, auto&) {
         c["rope_scaling"] = object{{"type", "dynamic"}, {"factor", 2.0}};
       },
       ErrorCode::unsupported,
       {"RoPE type \"dynamic\"", "longrope"}},
      {"RopeWithoutFactor",
       "llama",
       [](object& c, auto&) {
         c["rope_scaling"] = object{{"type", "linear"}};
       },
       ErrorCode::invalid_argument,
       {"needs factor"}},
      {"RopeFactorZero",
       "llama",
       [](object& c, auto&) {
         c["rope_scaling"] = object{{"type", "linear"}, {"factor", 0.0}};
       },
       ErrorCode::invalid_argument,
       {"factor"}},
      {"LongropeListTooShort",
       "phi3_longrope",
       [](object& c, auto&) {
         c["rope_scaling"].as_object()["long_factor"] = boost::json::array{1.0, 2.0};
       },
       ErrorCode::invalid_argument,
       {"long_factor", "12", "has 2"}},
      {"Activation",
       "llama",
       [](object& c, auto&) { c["hidden_act"] = "relu2"; },
       ErrorCode::unsupported,
       {"relu2", "silu"}},
      {"LayerType",
       "gemma2",
       [](object& c, auto&) {
         c["layer_types"] =
             boost::json::array{"chunked_attention", "full_attention", "full_attention", "full_attention"};
       },
       ErrorCode::unsupported,
       {"chunked_attention"}},
      {"Bidirectional",
       "gemma3",
       [](object& c, auto&) { c["use_bidirectional_attention"] = true; },
       ErrorCode::unsupported,
       {"use_bidirectional_attention"}},
      {"MissingKey",
       "llama",
       [](object& c, auto&) { c.erase("hidden_size"); },
       ErrorCode::invalid_argument,
       {"hf/config.json", "hidden_size", "missing"}},
      {"WrongType",
       "llama",
       [](object& c, auto&) { c["num_hidden_layers"] = "three"; },
       ErrorCode::invalid_argument,
       {"num_hidden_layers"}},
      {"Negative",
       "llama",
       [](object& c, auto&) { c["num_attention_heads"] = -4; },
       ErrorCode::invalid_argument,
       {"num_attention_heads", "-4"}},
      {"Absurd",
       "llama",
       [](object& c, auto&) { c["num_hidden_layers"] = 1000000000; },
       ErrorCode::invalid_argument,
       {"num_hidden_layers", "4096"}},
      {"HeadsDoNotDivide",
       "llama",
       [](object& c, auto&) { c["num_key_value_heads"] = 3; },
       ErrorCode::invalid_argument,
       {"multiple"}},
      {"OddRotaryDim", "llama", [](object& c, auto&) { c["head_dim"] = 15; }, ErrorCode::invalid_argument, {"even"}},
      {"ZeroEps",
       "llama",
       [](object& c, auto&) { c["rms_norm_eps"] = 0.0; },
       ErrorCode::invalid_argument,
       {"rms_norm_eps"}},
      {"MissingTensor",
       "llama",
       [](object&, std::vector<Tensor>& t) {
         std::erase_if(t, [](const Tensor& x) { return x.name == "model.layers.1.mlp.up_proj.weight"; });
       },
       ErrorCode::invalid_argument,
       {"missing", "model.layers.1.mlp.up_proj.weight"}},
      {"UnexpectedTensor",
       "llama",
       [](object&, std::vector<Tensor>& t) {
         t.push_back(
             test::f32_tensor("model.layers.0.self_attn.q_proj.bias", make_shape({64}), std::vector<float>(64)));
       },
       ErrorCode::invalid_argument,
       {"unexpected", "model.layers.0.self_attn.q_proj.bias"}},
      {"MoreLayersThanStated",
       "llama",
       [](object& c, auto&) { c["num_hidden_layers"] = 1; },
       ErrorCode::invalid_argument,
       {"unexpected", "model.layers.1.", "more"}},
      {"WrongShape",
       "llama",
       [](object& c, auto&) { c["intermediate_size"] = 100; },
       ErrorCode::invalid_argument,
       {"[100, 64]", "[96, 64]"}},
      {"WrongVocab",
       "llama",
       [](object& c, auto&) { c["vocab_size"] = 161; },
       ErrorCode::invalid_argument,
       {"embed_tokens", "[161, 64]", "[160, 64]"}},
      {"IntegerWeights",
       "llama",
       [](object&, std::vector<Tensor>& t) {
         Tensor& w = tensor_named(t, "model.layers.0.mlp.up_proj.weight");
         w.dtype = DType::i32;
       },
       ErrorCode::unsupported,
       {"model.layers.0.mlp.up_proj.weight", "I32"}},
      {"UntiedWithoutHead",
       "llama3",
       [](object& c, auto&) { c["tie_word_embeddings"] = false; },
       ErrorCode::invalid_argument,
       {"lm_head.weight"}},
      {"MissingExpert",
       "qwen3_moe",
       [](object&, std::vector<Tensor>& t) {
         std::erase_if(t, [](const Tensor& x) { return x.name == "model.layers.0.mlp.experts.7.down_proj.weight"; });
       },
       ErrorCode::invalid_argument,
       {"model.layers.0.mlp.experts.7.down_proj.weight"}},
      {"MoreExpertsPerTokenThanExperts",
       "mixtral",
       [](object& c, auto&) { c["num_experts_per_tok"] = 9; },
       ErrorCode::invalid_argument,
       {"num_experts_per_tok", "4"}},
  };
  return list;
}

class LoadFaults : public testing::TestWithParam<Fault> {};

TEST_P(LoadFaults, AreRefusedByName) {
  GoldenCase golden = load_golden(GetParam().golden);
  GetParam().make(golden.config, golden.tensors);
  const auto decoder = Decoder::load(*hf_files(golden.config, golden.tensors));
  ASSERT_FALSE(decoder.ok());
  EXPECT_EQ(decoder.error().code, GetParam().code) << decoder.error().message;
  for (const std::string& part : GetParam().says) EXPECT_THAT(decoder.error().message, HasSubstr(part));
}

INSTANTIATE_TEST_SUITE_P(All, LoadFaults, testing::ValuesIn(faults()), [](const auto& p) { return p.param.name; });

TEST(Load, NeedsAModel) {
  const auto decoder = Decoder::load(*test::memory_files("folder", {{"README.md", "hello"}}));
  ASSERT_FALSE(decoder.ok());
  EXPECT_EQ(decoder.error().code, ErrorCode::not_found);
  EXPECT_THAT(decoder.error().message, HasSubstr("folder"));
}

TEST(Load, UnknownGgufArchitectureIsNamed) {
  const auto decoder = Decoder::load(*test::memory_files(
      "x", {{"a.gguf", test::write_gguf({{"general.architecture", "bert"}},
                                        {test::f32_tensor("token_embd.weight", make_shape({2}), {1, 2})})}}));
  ASSERT_FALSE(decoder.ok());
  EXPECT_THAT(decoder.error().message, HasSubstr("\"bert\""));
  EXPECT_THAT(decoder.error().message, HasSubstr("qwen3moe"));
}

// Tensors known to carry nothing may stay; a head of its own wins over tying.
TEST(Load, KnownLeftoversAndAnOwnHead) {
  GoldenCase golden = load_golden("llama3");
  golden.tensors.push_back(test::f32_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", make_shape({2}), {1, 2}));
  EXPECT_TRUE(Decoder::load(*hf_files(golden.config, golden.tensors)).ok());

  const Tensor& embedding = tensor_named(golden.tensors, "model.embed_tokens.weight");
  Tensor head = embedding;
  head.name = "lm_head.weight";
  std::fill(head.data.begin(), head.data.end(), '\0');
  golden.tensors.push_back(head);
  const auto decoder = load_decoder(*hf_files(golden.config, golden.tensors));
  ASSERT_TRUE(decoder);
  const auto rows = Runner(*decoder).prefill({1, 2, 3}, {2});
  EXPECT_EQ(rows[0], std::vector<float>(160, 0.0F));
}

TEST(Load, GenerationDefaultsComeFromBothFiles) {
  const GoldenCase golden = load_golden("glm4");
  const auto with = [&](const std::string& generation) {
    return test::memory_files("hf", {{"config.json", boost::json::serialize(golden.config)},
                                     {"model.safetensors", test::write_safetensors(golden.tensors)},
                                     {"generation_config.json", generation}});
  };
  const auto sampled =
      load_decoder(*with(R"({"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05,
                "repetition_penalty": 1.1, "eos_token_id": [4, 9], "transformers_version": "4.51.0"})"));
  ASSERT_TRUE(sampled);
  const GenerationDefaults& d = sampled->generation_defaults();
  EXPECT_EQ(d.eos_ids, (Tokens{2, 3, 4, 9}));
  EXPECT_FLOAT_EQ(d.temperature, 0.6F);
  EXPECT_FLOAT_EQ(d.top_p, 0.95F);
  EXPECT_EQ(d.top_k, 20);
  EXPECT_FLOAT_EQ(d.min_p, 0.05F);
  EXPECT_FLOAT_EQ(d.repetition_penalty, 1.1F);

  const auto greedy = load_decoder(*with(R"({"do_sample": false, "temperature": 0.6})"));
  ASSERT_TRUE(greedy);
  EXPECT_EQ(greedy->generation_defaults().temperature, 0.0F);
  EXPECT_LT(greedy->generation_defaults().top_p, 0);

  const auto wrong = Decoder::load(*with(R"({"temperature": "hot"})"));
  ASSERT_FALSE(wrong.ok());
  EXPECT_THAT(wrong.error().message, HasSubstr("generation_config.json"));
}

TEST(Load, YarnExtendsTheContext) {
  const GoldenCase golden = load_golden("qwen2_yarn");
  EXPECT_EQ(load_decoder(*hf_files(golden.config, golden.tensors))->info().max_position, 4 * 48);
}

TEST(Load, InfoStatesTheShape) {
  const GoldenCase golden = load_golden("gemma3");
  const auto decoder = load_decoder(*hf_files(golden.config, golden.tensors));
  const ModelInfo& info = decoder->info();
  EXPECT_EQ(info.architecture, "gemma3_text");
  EXPECT_EQ(info.weight_format, "F32");
  EXPECT_EQ(info.vocab_size, 160);
  EXPECT_EQ(info.hidden_size, 64);
  EXPECT_EQ(info.num_layers, 7);
  EXPECT_EQ(info.num_kv_heads, 1);
  EXPECT_EQ(info.head_dim, 32);
  EXPECT_EQ(info.max_position, 512);
  std::uint64_t bytes = 0;
  for (const Tensor& t : golden.tensors) bytes += t.data.size();
  EXPECT_EQ(info.weight_bytes, bytes);
  EXPECT_FALSE(decoder->is_gguf());
  EXPECT_TRUE(decoder->metadata().has("sliding_window"));
}

// Published config.json files: each is understood, or refused as unsupported by a message that says what is.
TEST(Configs, PublishedOnesAreUnderstoodOrRefusedByName) {
  const std::filesystem::path root = std::filesystem::path(XGEN_SOURCE_DIR) / "../shared/data/hf-configs";
  if (!std::filesystem::exists(root)) GTEST_SKIP() << root << " is not there";
  std::map<std::string, int> understood;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (!entry.path().filename().string().ends_with("_config.json")) continue;
    if (entry.path().filename().string().find("hf_quant") != std::string::npos) continue;
    const auto bytes = map_file(entry.path());
    ASSERT_TRUE(bytes.ok());
    const auto config = weights::parse_json_metadata(bytes->text(), entry.path().filename());
    if (!config) continue;  // some hold Infinity, which JSON does not know
    const auto spec = read_decoder_spec(*config, weights::TensorStore(), false, 0);
    if (spec.ok()) {
      ++understood[std::string(spec->arch->name)];
    } else {
      EXPECT_EQ(spec.error().code, ErrorCode::unsupported) << spec.error().message;
      EXPECT_THAT(spec.error().message, HasSubstr("support"));
    }
  }
  for (const char* name : {"llama", "mistral", "mixtral", "qwen3", "qwen3_moe", "phi3", "exaone4"}) {
    EXPECT_GT(understood[name], 0) << name;
  }
}

TEST(Configs, ExaoneLettersAndNumbersSayTheSame) {
  const GoldenCase golden = load_golden("exaone4");
  object config = golden.config;
  config.erase("layer_types");
  const auto windows = [&](const boost::json::value& pattern) {
    config["sliding_window_pattern"] = pattern;
    const auto spec = read_decoder_spec(*weights::parse_json_metadata(boost::json::serialize(config), "config.json"),
                                        weights::TensorStore(), false, 0);
    std::string letters;
    EXPECT_TRUE(spec.ok());
    for (const LayerSpec& layer : spec->layers) letters += layer.window > 0 ? 'L' : 'G';
    return letters;
  };
  EXPECT_EQ(windows("LLLG"), "LLLGG");  // the last layer is global whatever the letters say
  EXPECT_EQ(windows(4), "LLLGL");
  EXPECT_EQ(windows("LG"), "LGLGG");
}

TEST(Configs, WindowsNeedTheSwitchWhereThereIsOne) {
  const GoldenCase golden = load_golden("qwen3_moe");
  object config = golden.config;
  config["sliding_window"] = 8;
  const auto window = [&] {
    return read_decoder_spec(*weights::parse_json_metadata(boost::json::serialize(config), "config.json"),
                             weights::TensorStore(), false, 0)
        ->layers[0]
        .window;
  };
  EXPECT_EQ(window(), 0);
  config["use_sliding_window"] = true;
  EXPECT_EQ(window(), 8);
}

// Whatever a config.json says: an error, or a model that runs.
TEST(Configs, JunkValuesNeverCrash) {
  const std::vector<boost::json::value> junk{nullptr,
                                             true,
                                             false,
                                             -1,
                                             0,
                                             1,
                                             3,
                                             1000000007,
                                             INT64_MAX,
                                             -0.5,
                                             1e308,
                                             "",
                                             "full_attention",
                                             boost::json::array{},
                                             boost::json::array{1, "a"},
                                             boost::json::array{1, 2},
                                             object{},
                                             object{{"rope_type", "yarn"}},
                                             object{{"rope_type", "llama3"}, {"factor", 1e-300}},
                                             object{{"full_attention", object{}}, {"sliding_attention", 3}}};
  std::mt19937 random(11);
  int loaded = 0;
  for (const char* name : {"llama3", "phi3_longrope", "gemma3", "exaone4", "qwen3_moe", "smollm3"}) {
    const GoldenCase golden = load_golden(name);
    const std::string weights = test::write_safetensors(golden.tensors);
    for (int i = 0; i < 150; ++i) {
      object config = i % 2 ? golden.config : golden.saved_config;
      for (int changes = 1 + static_cast<int>(random() % 2); changes > 0; --changes) {
        auto member = config.begin() + static_cast<std::ptrdiff_t>(random() % config.size());
        if (member->value().is_object() && !member->value().as_object().empty() && random() % 2) {
          object& inner = member->value().as_object();
          member = inner.begin() + static_cast<std::ptrdiff_t>(random() % inner.size());
        }
        member->value() = junk[random() % junk.size()];
      }
      const std::string text = boost::json::serialize(config);
      auto decoder =
          Decoder::load(*test::memory_files("junk", {{"config.json", text}, {"model.safetensors", weights}}));
      if (!decoder) {
        EXPECT_FALSE(decoder.error().message.empty());
        continue;
      }
      ++loaded;
      EXPECT_EQ(Runner(**decoder).prefill({5, 6, 7}, {2}).size(), 1U) << text;
    }
  }
  EXPECT_GT(loaded, 50);  // many keys do not matter, or matter within limits
}

TEST(Arch, NamesAreUnique) {
  std::set<std::string_view> names;
  for (const ArchSpec& row : arch_specs()) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_EQ(find_arch(row.name), &row);
    if (!row.gguf_name.empty()) {
      EXPECT_EQ(find_gguf_arch(row.gguf_name), &row);
    }
  }
  EXPECT_EQ(find_arch("gpt2"), nullptr);
  EXPECT_EQ(find_gguf_arch(""), nullptr);
}

}  // namespace
}  // namespace xgen::model
