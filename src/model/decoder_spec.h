// DecoderSpec: everything the forward pass needs to know about one model, resolved from its ArchSpec row and its own
// config.json or GGUF key/values. No family names and no file formats beyond this point.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "model/arch.h"
#include "model/decoder.h"
#include "model/rope.h"
#include "weights/metadata.h"
#include "weights/tensor_store.h"

namespace xgen::model {

enum class Activation : std::uint8_t { silu, gelu_tanh, gelu_erf };
enum class Presence : std::uint8_t { absent, required, optional };

struct LayerSpec {
  int rope = -1;            // index into DecoderSpec::ropes; -1: no rotation
  std::int64_t window = 0;  // positions seen, the query's own included; 0: all
  bool moe = false;
};

struct DecoderSpec {
  const ArchSpec* arch = nullptr;
  bool gguf = false;

  int vocab_size = 0;  // 0: as many as the embedding has rows (GGUF)
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int max_position = 0;
  std::vector<LayerSpec> layers;

  float norm_eps = 0;
  Activation activation = Activation::silu;
  bool rope_interleaved = false;
  std::vector<RopeSpec> ropes;  // at most two: for layers that see everything, and for sliding ones
  float attention_scale = 1;
  float attention_softcap = 0;  // 0: none
  float logits_softcap = 0;
  float residual_multiplier = 1;
  float logits_divisor = 1;
  double embedding_scale = 1;
  bool embedding_scale_in_weight_dtype = false;  // round the scale as transformers does with such weights

  bool tied_embeddings = false;  // lm_head is the embedding unless the file has one
  Presence qkv_bias = Presence::absent;
  Presence o_bias = Presence::absent;
  Presence mlp_bias = Presence::absent;

  int num_experts = 0;  // 0: dense
  int experts_per_token = 0;
  int expert_intermediate_size = 0;
  bool renormalise_experts = true;  // chosen experts' weights are made to sum to 1
};

// `config`: config.json's object or the GGUF's key/values. `store` holds the tensors (GGUF keeps RoPE factors there and
// tells MoE layers by them). `max_context` > 0: the longest sequence that will be served, which decides between
// LongRoPE's factors. Errors name the source and the key.
Result<DecoderSpec> read_decoder_spec(const weights::Metadata& config, const weights::TensorStore& store, bool gguf,
                                      int max_context);

// eos ids and sampling defaults of config.json + generation_config.json (an empty object if there is none), or GGUF.
Result<GenerationDefaults> read_generation_defaults(const weights::Metadata& config,
                                                    const weights::Metadata& generation, bool gguf);

}  // namespace xgen::model
