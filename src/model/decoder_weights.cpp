#include "model/decoder_weights.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/kernel_table.h"

namespace xgen::model {
namespace {

// Where a layer's tensor is found: after "model.layers.N." in safetensors, after "blk.N." in GGUF.
struct Slot {
  std::string_view hf;
  std::string_view gguf;
};
constexpr Slot kQ{"self_attn.q_proj", "attn_q"};
constexpr Slot kK{"self_attn.k_proj", "attn_k"};
constexpr Slot kV{"self_attn.v_proj", "attn_v"};
constexpr Slot kQkv{"self_attn.qkv_proj", "attn_qkv"};
constexpr Slot kO{"self_attn.o_proj", "attn_output"};
constexpr Slot kQNorm{"self_attn.q_norm", "attn_q_norm"};
constexpr Slot kKNorm{"self_attn.k_norm", "attn_k_norm"};
constexpr Slot kGate{"mlp.gate_proj", "ffn_gate"};
constexpr Slot kUp{"mlp.up_proj", "ffn_up"};
constexpr Slot kGateUp{"mlp.gate_up_proj", "ffn_up"};
constexpr Slot kDown{"mlp.down_proj", "ffn_down"};

TensorView row_range(const TensorView& view, std::int64_t begin, std::int64_t count) {
  TensorView part = view;
  part.shape = make_shape({count, view.cols()});
  part.data += static_cast<std::size_t>(begin) * view.row_bytes();
  return part;
}

// Tensors without meaning for the forward pass that checkpoints carry along.
bool is_ignorable(std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with(".attn_rot_embd") || name == "rope_freqs.weight" ||
         name == "rope_factors_long.weight" || name == "rope_factors_short.weight";
}

std::string replace_expert(std::string_view pattern, int expert) {
  std::string text(pattern);
  return text.replace(text.find("%d"), 2, std::to_string(expert));
}

class Binder {
 public:
  Binder(const DecoderSpec& spec, const weights::TensorStore& store, DecoderWeights& out)
      : spec_(spec), store_(store), out_(out), used_(store.tensors().size(), false) {}

  std::string layer_name(int layer, std::string_view suffix) const {
    return (spec_.gguf ? "blk." : "model.layers.") + std::to_string(layer) + "." + std::string(suffix);
  }
  std::string name(int layer, const Slot& slot, std::string_view suffix) const {
    return layer_name(layer, std::string(spec_.gguf ? slot.gguf : slot.hf) + std::string(suffix));
  }

  bool has(const std::string& name) const { return store_.find(name) != nullptr; }

  const TensorView* find(const std::string& name) {
    const auto tensors = store_.tensors();
    const auto at = std::lower_bound(tensors.begin(), tensors.end(), name,
                                     [](const weights::NamedTensor& t, const std::string& n) { return t.name < n; });
    if (at == tensors.end() || at->name != name) return nullptr;
    used_[static_cast<std::size_t>(at - tensors.begin())] = true;
    return &at->view;
  }

  bool check_shape(const std::string& name, const TensorView& view, const Shape& expected) {
    if (view.shape == expected) return true;
    fail("tensor " + name + " must have shape " + to_string(expected) + ", has " + to_string(view.shape));
    return false;
  }

  // A matrix (or a stack of them) that a matmul reads in place.
  TensorView weight(const std::string& name, const Shape& expected) {
    const TensorView* view = find(name);
    if (!view) {
      missing_.push_back(name);
      return {};
    }
    if (!check_shape(name, *view, expected)) return {};
    if (!kernels::is_weight_dtype(view->dtype)) {
      fail("tensor " + name + " has type " + std::string(dtype_info(view->dtype).name) + ", which is not supported",
           ErrorCode::unsupported);
      return {};
    }
    return *view;
  }
  TensorView matrix(const std::string& name, std::int64_t n, std::int64_t k) {
    return weight(name, make_shape({n, k}));
  }

  // A vector, copied as F32; null where optional and absent.
  const float* vector(const std::string& name, std::int64_t n, Presence presence, bool plus_one = false) {
    if (presence == Presence::absent) return nullptr;
    const TensorView* view = find(name);
    if (!view) {
      if (presence == Presence::required) missing_.push_back(name);
      return nullptr;
    }
    if (!check_shape(name, *view, make_shape({n}))) return nullptr;
    std::vector<float>& values = out_.storage.emplace_back(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::uint16_t half = 0;
      switch (view->dtype) {
        case DType::f32:
          std::memcpy(&values[i], view->data + i * 4, 4);
          break;
        case DType::f16:
          std::memcpy(&half, view->data + i * 2, 2);
          values[i] = f16_to_f32(half);
          break;
        case DType::bf16:
          std::memcpy(&half, view->data + i * 2, 2);
          values[i] = bf16_to_f32(half);
          break;
        default:
          fail("tensor " + name + " must be F32, F16 or BF16, is " + std::string(dtype_info(view->dtype).name),
               ErrorCode::unsupported);
          return nullptr;
      }
      if (plus_one) values[i] += 1;
    }
    return values.data();
  }

  const float* norm(const std::string& name, std::int64_t n) {
    return vector(name, n, Presence::required, spec_.arch->norm_plus_one && !spec_.gguf);
  }
  Linear linear(int layer, const Slot& slot, std::int64_t n, std::int64_t k, Presence bias) {
    return {matrix(name(layer, slot, ".weight"), n, k), vector(name(layer, slot, ".bias"), n, bias)};
  }

  void fail(std::string message, ErrorCode code = ErrorCode::invalid_argument) {
    if (!error_) error_ = make_error(code, std::string(store_.source()) + ": " + std::move(message));
  }

  // After everything was asked for: faults of single tensors first, then what is missing, then what is left over.
  Status finish() {
    std::vector<std::string> unexpected;
    for (std::size_t i = 0; i < used_.size(); ++i) {
      const std::string_view tensor = store_.tensors()[i].name;
      if (!used_[i] && !is_ignorable(tensor)) unexpected.emplace_back(tensor);
    }
    if (!missing_.empty()) {
      fail("tensors missing for architecture " + std::string(spec_.arch->name) + ": " + listing(missing_) +
           (unexpected.empty() ? "" : " (and unexpected: " + listing(unexpected) + ")"));
    } else if (!unexpected.empty()) {
      fail("unexpected tensors for architecture " + std::string(spec_.arch->name) + ": " + listing(unexpected));
    }
    return error_ ? Status(*error_) : Status();
  }

 private:
  static std::string listing(const std::vector<std::string>& names) {
    std::string text;
    for (std::size_t i = 0; i < names.size() && i < 5; ++i) text += (i ? ", " : "") + names[i];
    if (names.size() > 5) text += " and " + std::to_string(names.size() - 5) + " more";
    return text;
  }

  const DecoderSpec& spec_;
  const weights::TensorStore& store_;
  DecoderWeights& out_;
  std::vector<bool> used_;
  std::vector<std::string> missing_;
  std::optional<Error> error_;
};

void bind_attention(Binder& bind, const DecoderSpec& spec, int layer, LayerWeights& out) {
  const std::int64_t hidden = spec.hidden_size;
  const std::int64_t q_dim = std::int64_t{spec.num_heads} * spec.head_dim;
  const std::int64_t kv_dim = std::int64_t{spec.num_kv_heads} * spec.head_dim;
  // llama.cpp's converter can fuse any architecture's (--fuse-qkv).
  if (spec.arch->fused_qkv || (spec.gguf && bind.has(bind.name(layer, kQkv, ".weight")))) {
    const Linear qkv = bind.linear(layer, kQkv, q_dim + 2 * kv_dim, hidden, spec.qkv_bias);
    const auto part = [&](std::int64_t begin, std::int64_t rows) {
      return Linear{row_range(qkv.weight, begin, rows), qkv.bias ? qkv.bias + begin : nullptr};
    };
    if (qkv.weight.data) {
      out.q = part(0, q_dim);
      out.k = part(q_dim, kv_dim);
      out.v = part(q_dim + kv_dim, kv_dim);
    }
  } else {
    out.q = bind.linear(layer, kQ, q_dim, hidden, spec.qkv_bias);
    out.k = bind.linear(layer, kK, kv_dim, hidden, spec.qkv_bias);
    out.v = bind.linear(layer, kV, kv_dim, hidden, spec.qkv_bias);
  }
  out.o = bind.linear(layer, kO, hidden, q_dim, spec.o_bias);
  if (spec.arch->qk_norm != QkNorm::none) {
    const bool per_head = spec.arch->qk_norm == QkNorm::per_head;
    out.q_norm = bind.norm(bind.name(layer, kQNorm, ".weight"), per_head ? spec.head_dim : q_dim);
    out.k_norm = bind.norm(bind.name(layer, kKNorm, ".weight"), per_head ? spec.head_dim : kv_dim);
  }
}

void bind_mlp(Binder& bind, const DecoderSpec& spec, int layer, LayerWeights& out) {
  const std::int64_t hidden = spec.hidden_size;
  const std::int64_t inner = spec.intermediate_size;
  if (spec.arch->fused_gate_up) {
    const TensorView gate_up = bind.matrix(bind.name(layer, kGateUp, ".weight"), 2 * inner, hidden);
    if (gate_up.data) {
      out.gate.weight = row_range(gate_up, 0, inner);
      out.up.weight = row_range(gate_up, inner, inner);
    }
  } else {
    out.gate = bind.linear(layer, kGate, inner, hidden, spec.mlp_bias);
    out.up = bind.linear(layer, kUp, inner, hidden, spec.mlp_bias);
  }
  out.down = bind.linear(layer, kDown, hidden, inner, spec.mlp_bias);
}

void bind_experts(Binder& bind, const DecoderSpec& spec, int layer, LayerWeights& out) {
  const std::int64_t hidden = spec.hidden_size;
  const std::int64_t inner = spec.expert_intermediate_size;
  const int n = spec.num_experts;
  out.router =
      bind.matrix(bind.layer_name(layer, spec.gguf ? "ffn_gate_inp.weight" : spec.arch->moe_router), n, hidden);
  if (!out.router.data) return;  // the count is not to be believed then
  out.experts.resize(static_cast<std::size_t>(n));
  if (!spec.gguf) {
    for (int e = 0; e < n; ++e) {
      ExpertWeights& expert = out.experts[static_cast<std::size_t>(e)];
      const auto matrix = [&](std::string_view pattern, std::int64_t rows, std::int64_t cols) {
        return bind.matrix(bind.layer_name(layer, replace_expert(pattern, e)), rows, cols);
      };
      expert.gate = matrix(spec.arch->moe_gate, inner, hidden);
      expert.up = matrix(spec.arch->moe_up, inner, hidden);
      expert.down = matrix(spec.arch->moe_down, hidden, inner);
    }
    return;
  }
  const auto stack = [&](std::string_view suffix, std::int64_t rows, std::int64_t cols,
                         TensorView ExpertWeights::*part) {
    const TensorView all = bind.weight(bind.layer_name(layer, suffix), make_shape({n, rows, cols}));
    for (int e = 0; all.data && e < n; ++e) {
      out.experts[static_cast<std::size_t>(e)].*part = row_range(all, e * rows, rows);
    }
  };
  stack("ffn_gate_exps.weight", inner, hidden, &ExpertWeights::gate);
  stack("ffn_up_exps.weight", inner, hidden, &ExpertWeights::up);
  stack("ffn_down_exps.weight", hidden, inner, &ExpertWeights::down);
}

}  // namespace

Result<DecoderWeights> bind_decoder_weights(const DecoderSpec& spec, const weights::TensorStore& store) {
  DecoderWeights out;
  Binder bind(spec, store, out);
  const std::int64_t hidden = spec.hidden_size;

  const std::string embedding = spec.gguf ? "token_embd.weight" : "model.embed_tokens.weight";
  std::int64_t vocab = spec.vocab_size;
  if (const TensorView* view = store.find(embedding); vocab == 0 && view && view->shape.rank == 2) {
    vocab = std::min<std::int64_t>(view->shape[0], 1 << 30);
  }
  out.embedding = bind.matrix(embedding, vocab, hidden);
  out.final_norm = bind.norm(spec.gguf ? "output_norm.weight" : "model.norm.weight", hidden);
  // A head of its own wins where the file has one, also over tie_word_embeddings. GGUF says "tied" by leaving it out.
  const std::string head = spec.gguf ? "output.weight" : "lm_head.weight";
  const bool own_head = store.find(head) || (!spec.gguf && !spec.tied_embeddings);
  out.head = own_head ? bind.matrix(head, vocab, hidden) : out.embedding;

  out.layers.resize(spec.layers.size());
  for (std::size_t i = 0; i < out.layers.size(); ++i) {
    const int layer = static_cast<int>(i);
    LayerWeights& weights = out.layers[i];
    const auto norm = [&](std::string_view hf, std::string_view gguf) -> const float* {
      if (hf.empty()) return nullptr;
      return bind.norm(bind.name(layer, Slot{hf, gguf}, ".weight"), hidden);
    };
    const ArchSpec& arch = *spec.arch;
    weights.attention_norm = norm(arch.attention_norm, "attn_norm");
    weights.attention_out_norm = norm(arch.attention_out_norm, "post_attention_norm");
    weights.mlp_norm = norm(arch.mlp_norm, "ffn_norm");
    weights.mlp_out_norm = norm(arch.mlp_out_norm, "post_ffw_norm");
    bind_attention(bind, spec, layer, weights);
    if (spec.layers[i].moe) {
      bind_experts(bind, spec, layer, weights);
    } else {
      bind_mlp(bind, spec, layer, weights);
    }
  }
  if (Status status = bind.finish(); !status.ok()) return status.error();
  return Result<DecoderWeights>(std::move(out));  // never copied: it points into itself
}

}  // namespace xgen::model
