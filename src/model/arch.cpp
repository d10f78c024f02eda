#include "model/arch.h"

namespace xgen::model {
namespace {

constexpr ConfigDefault kMistral[] = {{"sliding_window", 4096}, {"num_key_value_heads", 8}};
constexpr ConfigDefault kSmolLm3[] = {{"tie_word_embeddings", 1}, {"rope_theta", 2e6}, {"num_key_value_heads", 4}};
constexpr ConfigDefault kQwen2[] = {{"sliding_window", 4096}, {"max_window_layers", 28}};
constexpr ConfigDefault kQwen3[] = {{"head_dim", 128}, {"sliding_window", 4096}, {"max_window_layers", 28}};
constexpr ConfigDefault kQwen3Moe[] = {{"sliding_window", 4096}, {"norm_topk_prob", 0}, {"num_key_value_heads", 4}};
constexpr ConfigDefault kGemma2[] = {{"tie_word_embeddings", 1},      {"head_dim", 256},
                                     {"query_pre_attn_scalar", 256},  {"sliding_window", 4096},
                                     {"final_logit_softcapping", 30}, {"attn_logit_softcapping", 50}};
constexpr ConfigDefault kGemma3[] = {
    {"tie_word_embeddings", 1}, {"head_dim", 256},          {"query_pre_attn_scalar", 256},
    {"sliding_window", 4096},   {"num_attention_heads", 8}, {"num_key_value_heads", 4},
    {"vocab_size", 262208},     {"rms_norm_eps", 1e-6},     {"max_position_embeddings", 131072},
    {"rope_theta", 1e6}};
constexpr ConfigDefault kExaone4[] = {{"sliding_window", 4096}};
constexpr ConfigDefault kGlm4[] = {
    {"head_dim", 128}, {"attention_bias", 1}, {"partial_rotary_factor", 0.5}, {"num_key_value_heads", 2}};

constexpr ArchSpec kRows[] = {
    {.name = "llama",
     .gguf_name = "llama",
     .qkv_bias = BiasRule::config,
     .o_bias = true,
     .mlp_bias = BiasRule::config,
     .gguf_rope_interleaved = true},
    {.name = "mistral",
     .gguf_name = "",  // "llama" in GGUF files
     .window = WindowRule::every_layer,
     .defaults = kMistral},
    {.name = "mixtral",
     .gguf_name = "",
     .window = WindowRule::every_layer,
     .moe_router = "block_sparse_moe.gate.weight",
     .moe_gate = "block_sparse_moe.experts.%d.w1.weight",
     .moe_up = "block_sparse_moe.experts.%d.w3.weight",
     .moe_down = "block_sparse_moe.experts.%d.w2.weight"},
    {.name = "qwen2",
     .gguf_name = "qwen2",
     .qkv_bias = BiasRule::always,
     .window = WindowRule::from_layer,
     .window_switch = true,
     .defaults = kQwen2},
    {.name = "qwen3",
     .gguf_name = "qwen3",
     .qk_norm = QkNorm::per_head,
     .qkv_bias = BiasRule::config,
     .o_bias = true,
     .window = WindowRule::from_layer,
     .window_switch = true,
     .defaults = kQwen3},
    {.name = "qwen3_moe",
     .gguf_name = "qwen3moe",
     .qk_norm = QkNorm::per_head,
     .qkv_bias = BiasRule::config,
     .o_bias = true,
     .window = WindowRule::every_layer,
     .window_switch = true,
     .moe_router = "mlp.gate.weight",
     .moe_gate = "mlp.experts.%d.gate_proj.weight",
     .moe_up = "mlp.experts.%d.up_proj.weight",
     .moe_down = "mlp.experts.%d.down_proj.weight",
     .defaults = kQwen3Moe},
    {.name = "smollm3",
     .gguf_name = "smollm3",
     .qkv_bias = BiasRule::config,
     .o_bias = true,
     .mlp_bias = BiasRule::config,
     .gguf_rope_interleaved = true,
     .window_switch = true,
     .nope = NopeRule::listed,
     .defaults = kSmolLm3},
    {.name = "phi3", .gguf_name = "phi3", .fused_qkv = true, .fused_gate_up = true, .window = WindowRule::every_layer},
    {.name = "gemma2",
     .gguf_name = "gemma2",
     .attention_out_norm = "post_attention_layernorm",
     .mlp_norm = "pre_feedforward_layernorm",
     .mlp_out_norm = "post_feedforward_layernorm",
     .norm_plus_one = true,
     .qkv_bias = BiasRule::config,
     .o_bias = true,
     .window = WindowRule::pattern,
     .window_period = 2,
     .activation = "gelu_pytorch_tanh",
     .scale_embedding = true,
     .attention_scale = AttentionScale::query_scalar,
     .query_scalar_is_width_at = 46,
     .softcaps = true,
     .defaults = kGemma2},
    {.name = "gemma3_text",
     .gguf_name = "gemma3",
     .attention_out_norm = "post_attention_layernorm",
     .mlp_norm = "pre_feedforward_layernorm",
     .mlp_out_norm = "post_feedforward_layernorm",
     .norm_plus_one = true,
     .qk_norm = QkNorm::per_head,
     .qkv_bias = BiasRule::config,
     .o_bias = true,
     .local_rope = true,
     .window = WindowRule::pattern,
     .window_period = 6,
     .activation = "gelu_pytorch_tanh",
     .scale_embedding = true,
     .attention_scale = AttentionScale::query_scalar,
     .query_scalar_is_width_at = 62,
     .softcaps = true,
     .defaults = kGemma3},
    {.name = "granite",
     .gguf_name = "granite",
     .qkv_bias = BiasRule::config,
     .o_bias = true,
     .mlp_bias = BiasRule::config,
     .gguf_rope_interleaved = true,
     .attention_scale = AttentionScale::multiplier,
     .multipliers = true},
    {.name = "olmo2",
     .gguf_name = "olmo2",
     .attention_norm = "",
     .attention_out_norm = "post_attention_layernorm",
     .mlp_norm = "",
     .mlp_out_norm = "post_feedforward_layernorm",
     .qk_norm = QkNorm::full_width,
     .qkv_bias = BiasRule::config,
     .o_bias = true},
    {.name = "exaone4",
     .gguf_name = "exaone4",
     .attention_norm = "",
     .attention_out_norm = "post_attention_layernorm",
     .mlp_norm = "",
     .mlp_out_norm = "post_feedforward_layernorm",
     .qk_norm = QkNorm::per_head,
     .window = WindowRule::pattern,
     .window_period = 4,
     .nope = NopeRule::global_beside_window,
     .defaults = kExaone4},
    {.name = "glm4",
     .gguf_name = "glm4",
     .attention_out_norm = "post_self_attn_layernorm",
     .mlp_out_norm = "post_mlp_layernorm",
     .qkv_bias = BiasRule::config,
     .fused_gate_up = true,
     .hf_rope_interleaved = true,
     .gguf_rope_interleaved = true,
     .defaults = kGlm4},
};

}  // namespace

std::span<const ArchSpec> arch_specs() { return kRows; }

const ArchSpec* find_arch(std::string_view model_type) {
  for (const ArchSpec& row : kRows) {
    if (row.name == model_type) return &row;
  }
  return nullptr;
}

const ArchSpec* find_gguf_arch(std::string_view architecture) {
  if (architecture.empty()) return nullptr;
  for (const ArchSpec& row : kRows) {
    if (row.gguf_name == architecture) return &row;
  }
  return nullptr;
}

std::string supported_archs(bool gguf) {
  std::string list;
  for (const ArchSpec& row : kRows) {
    const std::string_view name = gguf ? row.gguf_name : row.name;
    if (name.empty()) continue;
    if (!list.empty()) list += ", ";
    list += name;
  }
  return list;
}

}  // namespace xgen::model
