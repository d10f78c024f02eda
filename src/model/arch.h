// ArchSpec: what tells one family of decoders from another, as data. A further Llama-like family is one more row.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace xgen::model {

enum class QkNorm : std::uint8_t {
  none,
  per_head,   // RMSNorm over each head of Q and K
  full_width  // RMSNorm over all heads of Q (of K) together
};
enum class BiasRule : std::uint8_t {
  never,
  always,
  config  // as attention_bias / mlp_bias says; in GGUF, which has no such key: where the tensors exist
};
enum class WindowRule : std::uint8_t {
  none,
  every_layer,  // sliding_window, where set, holds for all layers
  from_layer,   // layers from max_window_layers on, if use_sliding_window
  pattern       // of every `window_period` layers the last sees everything
};
enum class NopeRule : std::uint8_t {
  none,
  listed,               // layers whose no_rope_layers entry is 0, or every no_rope_layer_interval-th
  global_beside_window  // in a model with sliding layers those that see everything go without
};
enum class AttentionScale : std::uint8_t {
  head_dim,      // 1 / sqrt(head_dim)
  query_scalar,  // 1 / sqrt(query_pre_attn_scalar)
  multiplier     // attention_multiplier itself
};

// A key of config.json that published checkpoints leave out, with the value transformers then takes.
struct ConfigDefault {
  std::string_view key;
  double value;
};

// Everything defaults to the Llama shape: pre-norm RMSNorm, gated SiLU, no biases, RoPE on half-split pairs.
struct ArchSpec {
  std::string_view name;       // model_type of config.json
  std::string_view gguf_name;  // general.architecture; empty: the family travels under another row's name

  // HF names of a layer's four possible RMSNorms; empty: there is none. (GGUF names them uniformly.)
  std::string_view attention_norm = "input_layernorm";     // before attention
  std::string_view attention_out_norm = "";                // on its output, before the residual is added
  std::string_view mlp_norm = "post_attention_layernorm";  // before the MLP
  std::string_view mlp_out_norm = "";                      // on its output
  bool norm_plus_one = false;                              // safetensors hold weight - 1 (GGUF holds weight)
  QkNorm qk_norm = QkNorm::none;

  BiasRule qkv_bias = BiasRule::never;
  bool o_bias = false;  // the output projection follows qkv_bias
  BiasRule mlp_bias = BiasRule::never;
  bool fused_qkv = false;
  bool fused_gate_up = false;

  bool hf_rope_interleaved = false;    // pairs (2i, 2i+1) instead of (i, i + dim/2)
  bool gguf_rope_interleaved = false;  // the GGUF's Q and K rows are permuted (or made) for interleaved pairs
  bool local_rope = false;             // sliding layers have a RoPE of their own, unscaled, base rope_local_base_freq
  WindowRule window = WindowRule::none;
  int window_period = 0;       // where the config states none
  bool window_switch = false;  // a stated window counts only with use_sliding_window
  NopeRule nope = NopeRule::none;

  std::string_view activation = "silu";  // where the config states none
  bool scale_embedding = false;          // by sqrt(hidden_size)
  AttentionScale attention_scale = AttentionScale::head_dim;
  int query_scalar_is_width_at = 0;  // GGUF: models with this many layers have query scalar hidden / heads
  bool softcaps = false;             // attn_logit_softcapping, final_logit_softcapping
  bool multipliers = false;          // embedding_multiplier, residual_multiplier, logits_scaling

  // Mixture of experts, HF names within a layer; %d is the expert. Empty: dense. (GGUF stacks them, named uniformly.)
  std::string_view moe_router = "";
  std::string_view moe_gate = "";
  std::string_view moe_up = "";
  std::string_view moe_down = "";

  std::span<const ConfigDefault> defaults = {};
};

std::span<const ArchSpec> arch_specs();
// Null where no row has that name.
const ArchSpec* find_arch(std::string_view model_type);
const ArchSpec* find_gguf_arch(std::string_view architecture);
// "llama, mistral, …" for messages; of the names that GGUF files use, or of config.json's.
std::string supported_archs(bool gguf);

}  // namespace xgen::model
