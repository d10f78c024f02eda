#include "golden.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numbers>
#include <numeric>
#include <random>
#include <sstream>

namespace xgen::model {
namespace {

using boost::json::object;
using test::GgufValue;
using test::Tensor;

const std::string kFolder = std::string(XGEN_SOURCE_DIR) + "/tests/golden/models/";

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

Tokens ints(const boost::json::value& value) { return boost::json::value_to<Tokens>(value); }

std::vector<float> values(const Tensor& tensor) {
  std::vector<float> out(tensor.data.size() / sizeof(float));
  std::memcpy(out.data(), tensor.data.data(), tensor.data.size());
  return out;
}

bool replace(std::string& text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  if (at == std::string::npos) return false;
  text.replace(at, from.size(), to);
  return true;
}

bool is_one_of(const std::string& text, std::initializer_list<std::string> options) {
  return std::find(options.begin(), options.end(), text) != options.end();
}

// llama.cpp's name of a Hugging Face tensor (dense part).
std::string gguf_name(std::string name, const std::string& arch) {
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  if (name == "lm_head.weight") return "output.weight";
  const bool post_attention_is_mlp_norm = is_one_of(
      arch, {"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "smollm3", "phi3", "granite", "glm4"});
  replace(name, "model.layers.", "blk.");
  replace(name, "self_attn.qkv_proj", "attn_qkv");
  replace(name, "self_attn.q_proj", "attn_q");
  replace(name, "self_attn.k_proj", "attn_k");
  replace(name, "self_attn.v_proj", "attn_v");
  replace(name, "self_attn.o_proj", "attn_output");
  replace(name, "self_attn.q_norm", "attn_q_norm");
  replace(name, "self_attn.k_norm", "attn_k_norm");
  replace(name, "mlp.gate_up_proj", "ffn_up");
  replace(name, "mlp.gate_proj", "ffn_gate");
  replace(name, "mlp.up_proj", "ffn_up");
  replace(name, "mlp.down_proj", "ffn_down");
  replace(name, "block_sparse_moe.gate.", "ffn_gate_inp.");
  replace(name, "mlp.gate.", "ffn_gate_inp.");
  replace(name, "input_layernorm", "attn_norm");
  replace(name, "post_self_attn_layernorm", "post_attention_norm");
  replace(name, "pre_feedforward_layernorm", "ffn_norm");
  replace(name, "post_feedforward_layernorm", "post_ffw_norm");
  replace(name, "post_mlp_layernorm", "post_ffw_norm");
  replace(name, "post_attention_layernorm", post_attention_is_mlp_norm ? "ffn_norm" : "post_attention_norm");
  return name;
}

// LlamaModel.permute of the converter: (heads, 2, dim/2) becomes (heads, dim/2, 2).
std::vector<float> permuted(const std::vector<float>& rows, std::size_t heads, std::size_t width) {
  const std::size_t head_dim = rows.size() / width / heads;
  std::vector<float> out(rows.size());
  for (std::size_t h = 0; h < heads; ++h) {
    for (std::size_t r = 0; r < head_dim; ++r) {
      const std::size_t to = r % (head_dim / 2) * 2 + r / (head_dim / 2);
      std::copy_n(&rows[(h * head_dim + r) * width], width, &out[(h * head_dim + to) * width]);
    }
  }
  return out;
}

std::vector<float> llama3_divisors(const object& scaling, double theta, int dim) {
  const double factor = scaling.at("factor").to_number<double>();
  const double low = scaling.at("low_freq_factor").to_number<double>();
  const double high = scaling.at("high_freq_factor").to_number<double>();
  const double context = scaling.at("original_max_position_embeddings").to_number<double>();
  std::vector<float> divisors;
  for (int i = 0; i < dim; i += 2) {
    const double wavelength = 2 * std::numbers::pi * std::pow(theta, static_cast<double>(i) / dim);
    const double smooth = std::clamp((context / wavelength - low) / (high - low), 0.0, 1.0);
    divisors.push_back(static_cast<float>(1 / ((1 - smooth) / factor + smooth)));
  }
  return divisors;
}

}  // namespace

std::vector<std::string> golden_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<float> counter_uniform(const std::string& key, std::size_t n) {
  std::uint64_t seed = 0xCBF29CE484222325;  // FNV-1a
  for (const char c : key) seed = (seed ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  std::vector<float> out(n);
  for (std::size_t i = 0; i < n; ++i) {
    std::uint64_t x = (seed + i + 1) * 0x9E3779B97F4A7C15;  // SplitMix64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    x ^= x >> 31;
    out[i] = static_cast<float>(static_cast<std::int64_t>(x >> 40) - (1 << 23)) * 0x1p-23F;
  }
  return out;
}

GoldenCase load_golden(const std::string& name) {
  const object json = boost::json::parse(read_file(kFolder + name + ".json")).as_object();
  GoldenCase golden{name, json.at("config").as_object(), json.at("saved_config").as_object(), {}, {}};
  const std::string seed = std::to_string(json.at("seed").as_int64());
  for (const auto& entry : json.at("tensors").as_array()) {
    const auto& t = entry.as_array();
    Shape shape;
    for (const auto& n : t[1].as_array()) shape.dims[static_cast<std::size_t>(shape.rank++)] = n.as_int64();
    const auto offset = t[2].to_number<float>();
    const auto scale = t[3].to_number<float>();
    const std::string tensor(t[0].as_string());
    std::vector<float> data = counter_uniform(seed + ":" + tensor, static_cast<std::size_t>(shape.elements()));
    for (float& x : data) x = offset + scale * x;
    golden.tensors.push_back(test::f32_tensor(tensor, shape, data));
  }
  const std::string stored = read_file(kFolder + name + ".logits");
  const auto vocab = static_cast<std::size_t>(golden.config.at("vocab_size").as_int64());
  std::size_t at = 0;
  for (const auto& entry : json.at("prompts").as_array()) {
    const object& p = entry.as_object();
    GoldenPrompt prompt{ints(p.at("tokens")),
                        ints(p.at("greedy")),
                        ints(p.at("positions")),
                        {},
                        static_cast<int>(p.at("max_context").as_int64())};
    prompt.logits.resize(prompt.positions.size() * vocab);
    const std::size_t bytes = prompt.logits.size() * sizeof(float);
    EXPECT_LE(at + bytes, stored.size()) << name;
    std::memcpy(prompt.logits.data(), stored.data() + at, std::min(bytes, stored.size() - at));
    at += bytes;
    golden.prompts.push_back(std::move(prompt));
  }
  EXPECT_EQ(at, stored.size()) << name;
  return golden;
}

FilePtr hf_files(const object& config, const std::vector<Tensor>& tensors) {
  return test::memory_files(
      "hf", {{"config.json", boost::json::serialize(config)}, {"model.safetensors", test::write_safetensors(tensors)}});
}

FilePtr gguf_files(const GoldenCase& golden) {
  const object& config = golden.config;
  const std::string model_type = golden.architecture();
  const auto number = [&](const char* key, double fallback) {
    const auto* value = config.if_contains(key);
    return value && value->is_number() ? value->to_number<double>() : fallback;
  };
  const auto integer = [&](const char* key, double fallback) {
    return static_cast<std::uint32_t>(number(key, fallback));
  };
  const auto real = [&](const char* key, double fallback) { return static_cast<float>(number(key, fallback)); };
  const std::uint32_t heads = integer("num_attention_heads", 0);
  const std::uint32_t kv_heads = integer("num_key_value_heads", heads);
  const std::uint32_t head_dim = integer("head_dim", integer("hidden_size", 0) / heads);
  // GGUF states no activation: each architecture has one.
  if (config.contains("hidden_act") && config.at("hidden_act").as_string() != "silu") return nullptr;
  const bool permutes = is_one_of(model_type, {"llama", "mistral", "mixtral", "smollm3", "granite"});
  const std::string arch = is_one_of(model_type, {"mistral", "mixtral"}) ? "llama"
                           : model_type == "gemma3_text"                 ? "gemma3"
                           : model_type == "qwen3_moe"                   ? "qwen3moe"
                                                                         : model_type;

  std::vector<std::pair<std::string, GgufValue>> kv{{"general.architecture", arch}};
  const auto add = [&](const char* suffix, GgufValue value) { kv.emplace_back(arch + "." + suffix, std::move(value)); };
  add("block_count", integer("num_hidden_layers", 0));
  add("context_length", integer("max_position_embeddings", 0));
  add("embedding_length", integer("hidden_size", 0));
  add("feed_forward_length", integer("intermediate_size", 0));
  add("attention.head_count", heads);
  add("attention.head_count_kv", kv_heads);
  add("attention.layer_norm_rms_epsilon", real("rms_norm_eps", 0));
  add("attention.key_length", head_dim);
  add("attention.value_length", head_dim);
  add("rope.freq_base", real("rope_theta", 0));
  add("rope.dimension_count", static_cast<std::uint32_t>(head_dim * number("partial_rotary_factor", 1)));
  add("vocab_size", integer("vocab_size", 0));
  const bool slides = !config.contains("use_sliding_window") || config.at("use_sliding_window").as_bool();
  if (slides && config.contains("sliding_window") && config.at("sliding_window").is_number()) {
    add("attention.sliding_window", integer("sliding_window", 0));
    std::vector<bool> pattern;
    if (const auto* types = config.if_contains("layer_types")) {
      for (const auto& type : types->as_array()) pattern.push_back(type.as_string() == "sliding_attention");
    }
    for (std::uint32_t i = 0; config.contains("max_window_layers") && i < integer("num_hidden_layers", 0); ++i) {
      pattern.push_back(i >= integer("max_window_layers", 0));
    }
    if (!pattern.empty()) add("attention.sliding_window_pattern", pattern);
  }
  if (config.contains("attn_logit_softcapping")) add("attn_logit_softcapping", real("attn_logit_softcapping", 0));
  if (config.contains("final_logit_softcapping")) add("final_logit_softcapping", real("final_logit_softcapping", 0));
  if (config.contains("attention_multiplier")) add("attention.scale", real("attention_multiplier", 0));
  // llama.cpp derives Gemma's scale from head_dim; the tiny model's differs and is stated.
  if (number("query_pre_attn_scalar", head_dim) != head_dim) {
    add("attention.scale", static_cast<float>(1 / std::sqrt(number("query_pre_attn_scalar", 0))));
  }
  if (config.contains("embedding_multiplier")) add("embedding_scale", real("embedding_multiplier", 0));
  if (config.contains("residual_multiplier")) add("residual_scale", real("residual_multiplier", 0));
  if (config.contains("logits_scaling")) add("logit_scale", real("logits_scaling", 0));
  const std::uint32_t experts = integer("num_local_experts", number("num_experts", 0));
  if (experts > 0) {
    add("expert_count", experts);
    add("expert_used_count", integer("num_experts_per_tok", 0));
    if (config.contains("moe_intermediate_size"))
      add("expert_feed_forward_length", integer("moe_intermediate_size", 0));
    if (config.contains("norm_topk_prob")) add("expert_weights_norm", config.at("norm_topk_prob").as_bool());
  }

  std::vector<Tensor> tensors;
  if (const auto* scaling = config.if_contains("rope_scaling"); scaling && scaling->is_object()) {
    const object& s = scaling->as_object();
    const std::string type(s.contains("rope_type") ? s.at("rope_type").as_string() : s.at("type").as_string());
    const auto divisors = [&](const char* name, const std::vector<float>& list) {
      tensors.push_back(test::f32_tensor(name, make_shape({static_cast<std::int64_t>(list.size())}), list));
    };
    if (type == "llama3") {
      divisors("rope_freqs.weight", llama3_divisors(s, number("rope_theta", 0), static_cast<int>(head_dim)));
    } else if (type == "longrope") {
      const double original = number("original_max_position_embeddings", 0);
      const double factor = number("max_position_embeddings", 0) / original;
      add("rope.scaling.original_context_length", static_cast<std::uint32_t>(original));
      add("rope.scaling.attn_factor", static_cast<float>(std::sqrt(1 + std::log(factor) / std::log(original))));
      divisors("rope_factors_long.weight", boost::json::value_to<std::vector<float>>(s.at("long_factor")));
      divisors("rope_factors_short.weight", boost::json::value_to<std::vector<float>>(s.at("short_factor")));
    } else {
      if (s.contains("truncate") || s.contains("mscale")) return nullptr;  // GGUF's YaRN has no such switches
      add("rope.scaling.type", type);
      add("rope.scaling.factor", s.at("factor").to_number<float>());
      if (type == "yarn") {
        add("rope.scaling.original_context_length",
            static_cast<std::uint32_t>(s.at("original_max_position_embeddings").as_int64()));
      }
    }
  }
  std::map<std::string, std::vector<float>> stacks;
  std::map<std::string, Shape> stack_shapes;
  std::vector<const Tensor*> ordered;
  for (const Tensor& tensor : golden.tensors) ordered.push_back(&tensor);
  // Names sort experts as text; below a stack grows in the order of their numbers.
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const Tensor* a, const Tensor* b) { return a->name.size() < b->name.size(); });
  for (const Tensor* tensor : ordered) {
    std::vector<float> data = values(*tensor);
    const std::string& name = tensor->name;
    if (const auto at = name.find(".experts."); at != std::string::npos) {
      const bool down = name.find("w2") != std::string::npos || name.find("down_proj") != std::string::npos;
      const bool gate = name.find("w1") != std::string::npos || name.find("gate_proj") != std::string::npos;
      const std::string layer = name.substr(13, name.find('.', 13) - 13);
      const std::string stack = "blk." + layer +
                                (down   ? ".ffn_down_exps"
                                 : gate ? ".ffn_gate_exps"
                                        : ".ffn_up_exps") +
                                ".weight";
      stacks[stack].insert(stacks[stack].end(), data.begin(), data.end());
      stack_shapes[stack] = make_shape({experts, tensor->shape[0], tensor->shape[1]});
      continue;
    }
    if (model_type.starts_with("gemma") && name.ends_with("norm.weight")) {
      for (float& x : data) x += 1;
    }
    const std::size_t width = tensor->shape.rank == 2 ? static_cast<std::size_t>(tensor->shape[1]) : 1;
    if (permutes && name.find("q_proj") != std::string::npos) data = permuted(data, heads, width);
    if (permutes && name.find("k_proj") != std::string::npos) data = permuted(data, kv_heads, width);
    tensors.push_back(test::f32_tensor(gguf_name(name, model_type), tensor->shape, data));
  }
  for (const auto& [name, data] : stacks) tensors.push_back(test::f32_tensor(name, stack_shapes[name], data));
  return test::memory_files("gguf", {{"model.gguf", test::write_gguf(kv, tensors)}});
}

std::unique_ptr<Decoder> load_decoder(const FileSet& files, const LoadOptions& options) {
  auto decoder = Decoder::load(files, options);
  EXPECT_TRUE(decoder.ok()) << (decoder.ok() ? "" : decoder.error().message);
  return decoder.ok() ? std::move(*decoder) : nullptr;
}

Runner::Runner(Decoder& decoder, int threads, DType kv, int block_size, int num_blocks, std::uint32_t block_seed)
    : decoder_(decoder), pool_(threads), free_(static_cast<std::size_t>(num_blocks)) {
  auto cache = KvCache::create(decoder.info(), kv, block_size, num_blocks);
  EXPECT_TRUE(cache.ok());
  cache_ = std::move(*cache);
  EXPECT_TRUE(decoder.reserve(256, 256, threads).ok());
  std::iota(free_.begin(), free_.end(), 0);
  std::shuffle(free_.begin(), free_.end(), std::mt19937(block_seed));
}

std::vector<std::vector<float>> Runner::run(const std::vector<Chunk>& chunks) {
  Tokens tokens;
  Tokens logit_rows;
  std::vector<SequenceSlice> slices;
  for (const Chunk& chunk : chunks) {
    Sequence& s = *chunk.sequence;
    const int end = s.computed + static_cast<int>(chunk.tokens.size());
    while (static_cast<int>(s.blocks.size()) * cache_->block_size() < end) {
      s.blocks.push_back(free_.back());
      free_.pop_back();
    }
    const int first_row = static_cast<int>(tokens.size());
    slices.push_back({first_row, static_cast<int>(chunk.tokens.size()), s.computed, s.blocks});
    for (const std::int32_t offset : chunk.wanted) logit_rows.push_back(first_row + offset);
    tokens.insert(tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
    s.computed = end;
  }
  const auto logits = decoder_.forward({tokens, slices, logit_rows}, *cache_, pool_);
  const auto vocab = static_cast<std::size_t>(decoder_.info().vocab_size);
  EXPECT_EQ(logits.size(), logit_rows.size() * vocab);
  std::vector<std::vector<float>> rows;
  for (std::size_t i = 0; i < logits.size(); i += vocab) {
    rows.emplace_back(logits.begin() + static_cast<std::ptrdiff_t>(i),
                      logits.begin() + static_cast<std::ptrdiff_t>(i + vocab));
  }
  return rows;
}

std::vector<std::vector<float>> Runner::prefill(const Tokens& tokens, const Tokens& positions) {
  Sequence sequence;
  auto rows = run({{&sequence, tokens, positions}});
  release(sequence);
  return rows;
}

Tokens Runner::greedy(const Tokens& prompt, int count) {
  Sequence sequence;
  Tokens next = prompt;
  Tokens out;
  while (static_cast<int>(out.size()) < count) {
    const auto rows = run({{&sequence, next, {static_cast<std::int32_t>(next.size()) - 1}}});
    const auto best = std::max_element(rows[0].begin(), rows[0].end()) - rows[0].begin();
    out.push_back(static_cast<std::int32_t>(best));
    next = {out.back()};
  }
  release(sequence);
  return out;
}

void Runner::release(Sequence& sequence) {
  free_.insert(free_.end(), sequence.blocks.begin(), sequence.blocks.end());
  sequence = {};
}

double relative_error(const std::vector<float>& a, const float* b) {
  double difference = 0;
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
    if (std::isnan(a[i])) return std::numeric_limits<double>::infinity();
  }
  return difference / largest;
}

}  // namespace xgen::model
