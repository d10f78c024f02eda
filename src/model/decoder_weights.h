// DecoderWeights: a model's tensors bound to their places in the forward pass. Matrices are views of the mapped file;
// norms and biases (a few MB at most) are copied as F32.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "base/result.h"
#include "model/decoder_spec.h"
#include "tensor/tensor.h"
#include "weights/tensor_store.h"

namespace xgen::model {

struct Linear {
  TensorView weight;            // {out, in}
  const float* bias = nullptr;  // [out] or null
};

struct ExpertWeights {
  TensorView gate, up, down;
};

struct LayerWeights {
  const float* attention_norm = nullptr;  // [hidden]; null: no such norm (and so for all norms here)
  const float* attention_out_norm = nullptr;
  const float* mlp_norm = nullptr;
  const float* mlp_out_norm = nullptr;
  const float* q_norm = nullptr;  // [head_dim] or [heads * head_dim], as ArchSpec::qk_norm says
  const float* k_norm = nullptr;
  Linear q, k, v, o;
  Linear gate, up, down;  // unset where the layer is a mixture of experts
  TensorView router;      // {experts, hidden}
  std::vector<ExpertWeights> experts;
};

struct DecoderWeights {
  TensorView embedding;  // {vocab, hidden}
  TensorView head;       // {vocab, hidden}; the embedding itself where tied
  const float* final_norm = nullptr;
  std::vector<LayerWeights> layers;
  std::deque<std::vector<float>> storage;  // what the pointers above point into
};

// Every tensor the spec calls for must be there with the right shape, and none may be left over (but for a few known to
// carry nothing). Errors name the tensors, with expected and actual shapes.
Result<DecoderWeights> bind_decoder_weights(const DecoderSpec& spec, const weights::TensorStore& store);

}  // namespace xgen::model
