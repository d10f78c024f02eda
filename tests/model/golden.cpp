#include "golden.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/crc.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <sstream>

namespace xgen::model {
namespace {

using boost::json::object;
using test::GgufValue;
using test::Tensor;

const std::string kFolder = std::string(XGEN_SOURCE_DIR) + "/tests/golden/models/";
const std::string kGgufFolder = std::string(XGEN_SOURCE_DIR) + "/tests/golden/gguf/";

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

// llama.cpp's name of a Hugging Face tensor; of an expert's, the stack that it goes into.
std::string gguf_name(std::string name, const std::string& arch) {
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  if (name == "lm_head.weight") return "output.weight";
  const bool post_attention_is_mlp_norm = is_one_of(
      arch, {"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "smollm3", "phi3", "granite", "glm4"});
  if (const auto at = name.find(".experts."); at != std::string::npos) {
    const std::string part = name.substr(name.find('.', at + 9));  // behind the expert's number
    const std::string stack = part == ".w1.weight" || part == ".gate_proj.weight"   ? "ffn_gate_exps"
                              : part == ".w2.weight" || part == ".down_proj.weight" ? "ffn_down_exps"
                                                                                    : "ffn_up_exps";
    return "blk." + name.substr(13, name.find('.', 13) - 13) + "." + stack + ".weight";
  }
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

// The file's [type, value] pairs, as tools/golden/gguf_models.py writes them.
GgufValue gguf_value(const boost::json::value& entry) {
  const std::string_view type = entry.at(0).as_string();
  const boost::json::value& value = entry.at(1);
  if (type == "u32") return value.to_number<std::uint32_t>();
  if (type == "f32") return value.to_number<float>();
  if (type == "bool") return value.as_bool();
  if (type == "bool[]") return boost::json::value_to<std::vector<bool>>(value);
  EXPECT_EQ(type, "str");
  return std::string(value.as_string());
}

// What the converter makes of a case's weights, by their GGUF names.
std::map<std::string, Tensor> gguf_tensors(const GoldenCase& golden) {
  const std::string model_type = golden.architecture();
  const bool permutes = is_one_of(model_type, {"llama", "mistral", "mixtral", "smollm3", "granite"});
  const auto heads = golden.config.at("num_attention_heads").to_number<std::size_t>();
  const auto* kv = golden.config.if_contains("num_key_value_heads");
  const std::size_t kv_heads = kv ? kv->to_number<std::size_t>() : heads;
  std::vector<const Tensor*> ordered;
  for (const Tensor& tensor : golden.tensors) ordered.push_back(&tensor);
  // Names sort experts as text; below a stack grows in the order of their numbers.
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const Tensor* a, const Tensor* b) { return a->name.size() < b->name.size(); });
  std::map<std::string, Tensor> out;
  for (const Tensor* tensor : ordered) {
    std::vector<float> data = values(*tensor);
    const std::string name = gguf_name(tensor->name, model_type);
    if (model_type.starts_with("gemma") && name.ends_with("norm.weight")) {
      for (float& x : data) x += 1;
    }
    const std::size_t width = tensor->shape.rank == 2 ? static_cast<std::size_t>(tensor->shape[1]) : 1;
    if (permutes && name.find("attn_q.") != std::string::npos) data = permuted(data, heads, width);
    if (permutes && name.find("attn_k.") != std::string::npos) data = permuted(data, kv_heads, width);
    Tensor made = test::f32_tensor(name, tensor->shape, data);
    if (name.find("_exps") == std::string::npos) {
      out[name] = std::move(made);
      continue;
    }
    Tensor& stack = out.try_emplace(name, Tensor{name, made.dtype, make_shape({0, made.shape[0], made.shape[1]}), ""})
                        .first->second;
    stack.data += made.data;
    ++stack.shape.dims[0];
  }
  return out;
}

std::vector<std::string> json_names(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

std::vector<std::string> golden_names() { return json_names(kFolder); }
std::vector<std::string> gguf_names() { return json_names(kGgufFolder); }

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

GgufContents gguf_contents(const GoldenCase& golden) {
  const object file = boost::json::parse(read_file(kGgufFolder + golden.name + ".json")).as_object();
  GgufContents out{{}, gguf_tensors(golden)};
  for (const char* part : {"metadata", "left_out"}) {
    for (const auto& [key, value] : file.at(part).as_object()) out.metadata[key] = gguf_value(value);
  }
  const object& tensors = file.at("tensors").as_object();
  for (const auto& [name, facts] : tensors) {
    EXPECT_EQ(facts.at(0).as_string(), "F32") << name;
    Tensor& tensor = out.tensors[name];
    if (facts.at(2).is_array()) {
      const auto list = boost::json::value_to<std::vector<float>>(facts.at(2));
      tensor = test::f32_tensor(name, make_shape({static_cast<std::int64_t>(list.size())}), list);
    } else {
      boost::crc_32_type crc;
      crc.process_bytes(tensor.data.data(), tensor.data.size());
      EXPECT_EQ(crc.checksum(), facts.at(2).to_number<std::uint32_t>()) << name << " is not what the converter writes";
    }
    EXPECT_EQ(std::vector<std::int64_t>(tensor.shape.dims.begin(), tensor.shape.dims.begin() + tensor.shape.rank),
              boost::json::value_to<std::vector<std::int64_t>>(facts.at(1)))
        << name;
  }
  EXPECT_EQ(out.tensors.size(), tensors.size()) << "tensors that the converter does not write";
  return out;
}

FilePtr gguf_files(const GgufContents& contents) {
  std::vector<Tensor> tensors;
  for (const auto& [name, tensor] : contents.tensors) tensors.push_back(tensor);
  return test::memory_files(
      "gguf", {{"model.gguf", test::write_gguf({contents.metadata.begin(), contents.metadata.end()}, tensors)}});
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
