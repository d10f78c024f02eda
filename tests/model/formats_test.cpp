// Weights in every format load in place and give what the same numbers in F32 give.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "golden.h"

namespace xgen::model {
namespace {

using test::GgufValue;
using test::Tensor;

constexpr std::int64_t kHidden = 256;  // one block of the k-quants
constexpr std::int64_t kInner = 256;
constexpr std::int64_t kVocab = 64;

// Where a block's F16 scales lie (ggml's published layouts); everything else in a block is free bits.
std::vector<std::size_t> scale_offsets(DType type) {
  switch (type) {
    case DType::q4_0:
    case DType::q5_0:
    case DType::q8_0:
      return {0};
    case DType::q4_1:
    case DType::q5_1:
    case DType::q4_k:
    case DType::q5_k:
      return {0, 2};
    case DType::q2_k:
      return {80, 82};
    case DType::q3_k:
      return {108};
    case DType::q6_k:
      return {208};
    default:
      return {};
  }
}

Tensor random_tensor(const std::string& name, DType type, const Shape& shape) {
  const auto n = static_cast<std::size_t>(shape.elements());
  const std::vector<float> u = counter_uniform(name, n);
  if (type == DType::f32) return test::f32_tensor(name, shape, u);
  const DTypeInfo& info = dtype_info(type);
  Tensor tensor{name, type, shape, std::string(n / info.block * info.block_bytes, '\0')};
  for (std::size_t i = 0; i < tensor.data.size(); ++i) {
    tensor.data[i] = static_cast<char>(static_cast<int>(u[i % n] * 0x1p20F) >> 3);
  }
  if (!is_quantised(type)) {
    for (std::size_t i = 0; i < n; ++i) {
      const float x = u[i] * 0.15F;
      const std::uint16_t bits = type == DType::f16 ? f32_to_f16(x) : f32_to_bf16(x);
      std::memcpy(&tensor.data[i * 2], &bits, 2);
    }
    return tensor;
  }
  // Scales that bring the quants, whose range depends on the format, to about the size of trained weights.
  const bool k_quant = info.block == 256;
  const float size = k_quant ? 0.004F / static_cast<float>(type == DType::q6_k || type == DType::q3_k ? 16 : 8)
                     : type == DType::q8_0 ? 0.002F
                                           : 0.015F;
  for (std::size_t block = 0; block < tensor.data.size(); block += info.block_bytes) {
    for (const std::size_t offset : scale_offsets(type)) {
      const std::uint16_t bits = f32_to_f16(size * (1 + 0.5F * u[block % n]));
      std::memcpy(&tensor.data[block + offset], &bits, 2);
    }
  }
  return tensor;
}

std::vector<Tensor> model_tensors(DType type) {
  std::vector<Tensor> tensors{random_tensor("token_embd.weight", type, make_shape({kVocab, kHidden})),
                              random_tensor("output.weight", type, make_shape({kVocab, kHidden}))};
  for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output"}) {
    tensors.push_back(random_tensor("blk.0." + std::string(name) + ".weight", type, make_shape({kHidden, kHidden})));
  }
  for (const char* name : {"ffn_gate", "ffn_up"}) {
    tensors.push_back(random_tensor("blk.0." + std::string(name) + ".weight", type, make_shape({kInner, kHidden})));
  }
  tensors.push_back(random_tensor("blk.0.ffn_down.weight", type, make_shape({kHidden, kInner})));
  for (const char* name : {"output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"}) {
    tensors.push_back(test::f32_tensor(name, make_shape({kHidden}), std::vector<float>(kHidden, 1.0F)));
  }
  return tensors;
}

Tensor dequantised(const Tensor& tensor, const kernels::KernelTable& kernels) {
  const TensorView view{tensor.dtype, tensor.shape, reinterpret_cast<const std::byte*>(tensor.data.data())};
  std::vector<float> values(static_cast<std::size_t>(tensor.shape.elements()));
  for (std::int64_t r = 0; r < view.rows(); ++r) kernels.dequantise_row(view, r, values.data() + r * view.cols());
  return test::f32_tensor(tensor.name, tensor.shape, values);
}

FilePtr files_of(const std::vector<Tensor>& tensors) {
  const std::vector<std::pair<std::string, GgufValue>> metadata{
      {"general.architecture", "llama"},
      {"llama.block_count", 1U},
      {"llama.context_length", 128U},
      {"llama.embedding_length", static_cast<std::uint32_t>(kHidden)},
      {"llama.feed_forward_length", static_cast<std::uint32_t>(kInner)},
      {"llama.attention.head_count", 4U},
      {"llama.attention.layer_norm_rms_epsilon", 1e-5F},
      {"tokenizer.ggml.eos_token_id", 5U},
      {"tokenizer.ggml.eot_token_id", 7U}};
  return test::memory_files("formats", {{"model.gguf", test::write_gguf(metadata, tensors)}});
}

class Formats : public testing::TestWithParam<DType> {};

TEST_P(Formats, AgreeWithTheSameNumbersInF32) {
  const std::vector<Tensor> stored = model_tensors(GetParam());
  Tokens prompt;
  for (std::int32_t i = 0; i < 20; ++i) prompt.push_back(i * 7 % kVocab);
  for (const kernels::KernelTable* kernels : kernels::available_kernels()) {
    std::vector<Tensor> plain;
    for (const Tensor& tensor : stored) plain.push_back(dequantised(tensor, *kernels));
    const auto decoder = load_decoder(*files_of(stored), {kernels, 0});
    const auto reference = load_decoder(*files_of(plain), {kernels, 0});
    ASSERT_TRUE(decoder && reference);
    EXPECT_EQ(decoder->info().weight_format, dtype_info(GetParam()).name);
    EXPECT_EQ(decoder->generation_defaults().eos_ids, (Tokens{5, 7}));
    EXPECT_TRUE(decoder->is_gguf());
    const Tokens positions{0, 9, 19};
    const auto rows = Runner(*decoder).prefill(prompt, positions);
    const auto expected = Runner(*reference).prefill(prompt, positions);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const double error = relative_error(rows[i], expected[i].data());
      const int bits = kernels->activation_bits(GetParam());
      EXPECT_LT(error, bits == 8 ? 5e-2 : bits == 16 ? 1e-4 : 1e-5) << kernels->name << ", position " << positions[i];
      RecordProperty(std::string(kernels->name) + std::to_string(positions[i]), std::to_string(error));
    }
    // In place: nothing of the size of a matrix is held beyond the file itself.
    EXPECT_LT(decoder->workspace_bytes(1, 1, 1), std::uint64_t{4} << 20);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Formats,
                         testing::Values(DType::f16, DType::bf16, DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0,
                                         DType::q5_1, DType::q2_k, DType::q3_k, DType::q4_k, DType::q5_k, DType::q6_k),
                         [](const auto& p) { return std::string(dtype_info(p.param).name); });

// transformers rounds Gemma's embedding scale to the weights' type: sqrt(32) is 5.65685, in BF16 5.65625.
TEST(EmbeddingScale, IsRoundedToTheWeightsType) {
  const boost::json::object config{
      {"model_type", "gemma2"},      {"vocab_size", 64},       {"hidden_size", 32},
      {"intermediate_size", 32},     {"num_hidden_layers", 1}, {"num_attention_heads", 2},
      {"num_key_value_heads", 1},    {"head_dim", 16},         {"max_position_embeddings", 64},
      {"query_pre_attn_scalar", 16}, {"rms_norm_eps", 1e-6},   {"tie_word_embeddings", true}};
  const auto model = [&](DType type, float embedding_factor) {
    std::vector<Tensor> tensors;
    const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
      const Shape shape = rows == 0 ? make_shape({cols}) : make_shape({rows, cols});
      std::vector<float> values = counter_uniform(name, static_cast<std::size_t>(shape.elements()));
      for (float& x : values) x = bf16_to_f32(f32_to_bf16(x * 0.25F));
      if (name == "model.embed_tokens.weight") {
        for (float& x : values) x *= embedding_factor;
      }
      Tensor tensor = test::f32_tensor(name, shape, values);
      if (type == DType::bf16) {
        tensor.dtype = type;
        tensor.data.resize(values.size() * 2);
        for (std::size_t i = 0; i < values.size(); ++i) {
          const std::uint16_t bits = f32_to_bf16(values[i]);
          std::memcpy(&tensor.data[i * 2], &bits, 2);
        }
      }
      tensors.push_back(std::move(tensor));
    };
    const std::string layer = "model.layers.0.";
    add("model.embed_tokens.weight", 64, 32);
    add("lm_head.weight", 64, 32);
    add("model.norm.weight", 0, 32);
    for (const char* name :
         {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"}) {
      add(layer + name + ".weight", 0, 32);
    }
    add(layer + "self_attn.q_proj.weight", 32, 32);
    add(layer + "self_attn.k_proj.weight", 16, 32);
    add(layer + "self_attn.v_proj.weight", 16, 32);
    for (const char* name : {"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
      add(layer + name + ".weight", 32, 32);
    }
    const auto decoder = load_decoder(*hf_files(config, tensors));
    return Runner(*decoder).prefill({3, 1, 4, 1, 5}, {4})[0];
  };
  const float exact = std::sqrt(32.0F);
  const auto stored = model(DType::bf16, 1);
  EXPECT_LT(relative_error(stored, model(DType::f32, bf16_to_f32(f32_to_bf16(exact)) / exact).data()), 1e-6);
  EXPECT_GT(relative_error(stored, model(DType::f32, 1).data()), 5e-6);
}

}  // namespace
}  // namespace xgen::model
