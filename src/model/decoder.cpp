#include "model/decoder.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstdlib>
#include <map>
#include <new>
#include <numeric>
#include <utility>

#include "base/prefetch.h"
#include "kernels/kernel_table.h"
#include "kernels/ops.h"
#include "model/decoder_spec.h"
#include "model/decoder_weights.h"
#include "model/weight_packer.h"
#include "weights/metadata.h"
#include "weights/tensor_store.h"

namespace xgen::model {
namespace {

using kernels::Matmul;

// Rows that one part of a row-wise section handles: small enough to share a prompt out, large enough that a decode
// step's few rows stay on the calling thread.
constexpr std::int64_t kRowGrain = 8;

std::size_t index(int i) { return static_cast<std::size_t>(i); }

// Uninitialised memory, cache-line aligned; untouched pages cost nothing.
class FloatBuffer {
 public:
  bool allocate(std::size_t floats) {
    data_.reset();
    if (floats == 0) return true;
    data_.reset(static_cast<float*>(::operator new (floats * sizeof(float), std::align_val_t{64}, std::nothrow)));
    return data_ != nullptr;
  }
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> data_;
};

// Floats that the forward pass needs for `rows` rows, buffer by buffer.
struct Layout {
  std::size_t hidden = 0;     // the residual stream, and again for what is added to it
  std::size_t attention = 0;  // q, k, v and the heads' output; later reused by the MLP
  std::size_t mlp = 0;        // gate and up, or the experts' buffers
  std::size_t rope = 0;       // cos and sin of every RoPE
  std::size_t logits = 0;
  std::size_t activations = 0;  // bytes: what the products with quantised weights make of their inputs

  Layout(const DecoderSpec& spec, std::int64_t vocab, int rows, int logit_rows) {
    const auto r = index(rows);
    const auto heads_dim = index(spec.num_heads) * index(spec.head_dim);
    const auto kv_dim = index(spec.num_kv_heads) * index(spec.head_dim);
    hidden = r * index(spec.hidden_size);
    attention = r * 2 * (heads_dim + kv_dim);
    mlp = r * 2 * index(spec.intermediate_size);
    std::size_t inputs =
        r * index(std::max({spec.hidden_size, spec.num_heads * spec.head_dim, spec.intermediate_size}));
    if (spec.num_experts > 0) {
      const std::size_t assignments = r * index(spec.experts_per_token);
      mlp = std::max(mlp, r * index(spec.num_experts) +
                              assignments * (index(spec.hidden_size) + 2 * index(spec.expert_intermediate_size)));
      inputs = std::max(inputs, assignments * index(std::max(spec.hidden_size, spec.expert_intermediate_size)));
    }
    // Each expert's activations begin anew, at a cache line.
    const auto bytes = [](std::size_t n) {
      return static_cast<std::size_t>(kernels::quantised_bytes(1, static_cast<std::int64_t>(n)));
    };
    activations = bytes(inputs) + (bytes(0) + 64) * index(std::max(1, spec.num_experts));
    for (const RopeSpec& rope_spec : spec.ropes) rope += r * index(rope_spec.rotary_dim);
    logits = index(logit_rows) * static_cast<std::size_t>(vocab);
  }
  std::size_t scratch() const { return std::max(attention, mlp); }
  std::size_t floats() const { return 2 * hidden + scratch() + rope + logits; }
};

// One row's share of one expert.
struct Assignment {
  std::int32_t row = 0;
  std::int32_t expert = 0;
  float weight = 0;
};

kernels::GatedActivation kernel_activation(Activation activation) {
  switch (activation) {
    case Activation::silu:
      return kernels::GatedActivation::silu;
    case Activation::gelu_tanh:
      return kernels::GatedActivation::gelu_tanh;
    case Activation::gelu_erf:
      break;
  }
  return kernels::GatedActivation::gelu_erf;
}

class DecoderImpl final : public Decoder {
 public:
  DecoderImpl(const kernels::KernelTable& kernels, DecoderSpec spec, weights::TensorStore store, DecoderWeights weights,
              weights::Metadata metadata, GenerationDefaults defaults)
      : kernels_(kernels),
        spec_(std::move(spec)),
        store_(std::move(store)),
        weights_(std::move(weights)),
        metadata_(std::move(metadata)),
        defaults_(std::move(defaults)),
        packer_(kernels, matrices(weights_)) {
    info_.architecture = spec_.arch->name;
    info_.vocab_size = static_cast<std::int32_t>(weights_.head.rows());
    info_.hidden_size = spec_.hidden_size;
    info_.num_layers = static_cast<std::int32_t>(spec_.layers.size());
    info_.num_kv_heads = spec_.num_kv_heads;
    info_.head_dim = spec_.head_dim;
    info_.max_position = spec_.max_position;
    info_.weight_bytes = store_.bytes();
    info_.packing_bytes = packer_.more_bytes();
    std::map<DType, std::size_t> bytes;
    for (const weights::NamedTensor& tensor : store_.tensors()) bytes[tensor.view.dtype] += tensor.view.bytes();
    std::size_t most = 0;
    for (const auto& [dtype, count] : bytes) {
      if (count <= most) continue;
      most = count;
      info_.weight_format = dtype_info(dtype).name;
    }
    double scale = static_cast<float>(spec_.embedding_scale);
    if (spec_.embedding_scale_in_weight_dtype && weights_.embedding.dtype == DType::bf16) {
      scale = bf16_to_f32(f32_to_bf16(static_cast<float>(scale)));
    } else if (spec_.embedding_scale_in_weight_dtype && weights_.embedding.dtype == DType::f16) {
      scale = f16_to_f32(f32_to_f16(static_cast<float>(scale)));
    }
    embedding_scale_ = static_cast<float>(scale);
  }

  const ModelInfo& info() const override { return info_; }
  const GenerationDefaults& generation_defaults() const override { return defaults_; }
  const weights::Metadata& metadata() const override { return metadata_; }
  bool is_gguf() const override { return spec_.gguf; }

  void prefetch(const std::function<void(double)>& progress) const override {
    std::size_t before = 0;
    for (const weights::NamedTensor& tensor : store_.tensors()) {
      const std::size_t bytes = tensor.view.bytes();
      xgen::prefetch({tensor.view.data, bytes}, [&](std::size_t done) {
        progress(static_cast<double>(before + done) / static_cast<double>(std::max<std::size_t>(store_.bytes(), 1)));
      });
      before += bytes;
    }
  }

  std::uint64_t workspace_bytes(int max_rows, int max_logit_rows, int threads) const override {
    const std::uint64_t per_row = sizeof(std::int64_t) + sizeof(std::int32_t) +
                                  index(spec_.experts_per_token) * (sizeof(Assignment) + sizeof(std::int32_t));
    const Layout layout(spec_, info_.vocab_size, max_rows, max_logit_rows);
    return layout.floats() * sizeof(float) + per_row * static_cast<std::uint64_t>(max_rows) +
           kernels::Workspace::bytes(threads, spec_.head_dim, layout.activations);
  }

  Status reserve(int max_rows, int max_logit_rows, int threads) override {
    if (max_rows < 1 || max_logit_rows < 0 || threads < 1) {
      return make_error(ErrorCode::invalid_argument, "workspace: rows and threads must be at least 1");
    }
    const Layout layout(spec_, info_.vocab_size, max_rows, max_logit_rows);
    if (!residual_.allocate(layout.hidden) || !hidden_.allocate(layout.hidden) ||
        !scratch_.allocate(layout.scratch()) || !rope_.allocate(layout.rope) || !logits_.allocate(layout.logits)) {
      return make_error(ErrorCode::unavailable,
                        "workspace of " + std::to_string(layout.floats() * sizeof(float)) + " bytes cannot be had");
    }
    max_rows_ = max_rows;
    max_logit_rows_ = max_logit_rows;
    positions_.resize(index(max_rows));
    slots_.resize(index(max_rows));
    assignments_.resize(index(max_rows) * index(spec_.experts_per_token));
    order_.resize(assignments_.size());
    expert_begin_.resize(index(spec_.num_experts) + 1);
    workspace_ = std::make_unique<kernels::Workspace>(threads, spec_.head_dim, layout.activations);
    return {};
  }

  void release() override {
    for (FloatBuffer* buffer : {&residual_, &hidden_, &scratch_, &rope_, &logits_}) buffer->allocate(0);
    workspace_.reset();
    packer_.clear();
  }

  bool improve(WorkerPool& pool) override { return packer_.advance(pool); }

  // The whole pass: embed, then attention and MLP layer by layer on one residual stream, then logits of the rows that
  // were asked for. Every op works on rows one by one (attention: on a row and its sequence's cache), so that no row's
  // bits depend on its neighbours.
  std::span<const float> forward(const ForwardBatch& batch, KvCache& cache, WorkerPool& pool) override {
    Step step{pool, cache, batch, static_cast<std::int64_t>(batch.tokens.size()), {}};
    assert(workspace_ && step.rows <= max_rows_ && workspace_->threads() >= pool.size());
    assert(static_cast<std::int64_t>(batch.logit_rows.size()) <= max_logit_rows_);
    if (step.rows == 0) return {};
    place(step);
    kernels::embed(kernels_, pool, weights_.embedding, batch.tokens, embedding_scale_, residual_.data(),
                   spec_.hidden_size);
    for (int layer = 0; layer < info_.num_layers; ++layer) {
      if (!attention_block(step, layer)) return {};
      mlp_block(step, layer);
    }
    return logits(step);
  }

 private:
  struct Step {
    WorkerPool& pool;
    KvCache& cache;
    const ForwardBatch& batch;
    std::int64_t rows;  // of the residual stream: all, after the last attention only those with logits
    std::vector<kernels::AttentionSequence> sequences;
  };

  // What products read.
  static std::vector<TensorView> matrices(const DecoderWeights& weights) {
    std::vector<TensorView> all;
    const auto add = [&all](const TensorView& view) {
      if (view.data != nullptr) all.push_back(view);
    };
    for (const LayerWeights& layer : weights.layers) {
      for (const Linear* linear : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
        add(linear->weight);
      add(layer.router);
      for (const ExpertWeights& expert : layer.experts) {
        for (const TensorView* view : {&expert.gate, &expert.up, &expert.down}) add(*view);
      }
    }
    add(weights.head);
    return all;
  }

  void multiply(Step& step, std::span<Matmul> products) {
    for (Matmul& product : products) product.packed = packer_.find(product.weight);
    kernels::matmul(kernels_, step.pool, *workspace_, products);
  }
  void multiply(Step& step, Matmul product) { multiply(step, std::span(&product, 1)); }

  // Positions, cache slots and RoPE tables of the step's rows.
  void place(Step& step) {
    const int block_size = step.cache.block_size();
    for (const SequenceSlice& s : step.batch.sequences) {
      if (s.rows == 0) continue;
      step.sequences.push_back({s.blocks.data(), s.first_row, s.rows, s.first_position});
      for (int i = 0; i < s.rows; ++i) {
        const int position = s.first_position + i;
        assert(index(position / block_size) < s.blocks.size());
        const std::int64_t block = s.blocks[index(position / block_size)];
        assert(block >= 0 && block < step.cache.num_blocks());
        positions_[index(s.first_row + i)] = position;
        slots_[index(s.first_row + i)] = block * block_size + position % block_size;
      }
    }
    float* table = rope_.data();
    rope_tables_.clear();
    for (const RopeSpec& rope : spec_.ropes) {
      const auto half = static_cast<std::int64_t>(rope.frequencies.size());
      float* cos = table;
      float* sin = cos + step.rows * half;
      table = sin + step.rows * half;
      rope_tables_.push_back({cos, sin});
      kernels::parallel_rows(step.pool, step.rows, kRowGrain, [&](std::int64_t m0, std::int64_t m1) {
        fill_rope_tables(rope,
                         std::span(positions_).subspan(static_cast<std::size_t>(m0), static_cast<std::size_t>(m1 - m0)),
                         cos + m0 * half, sin + m0 * half);
      });
    }
  }

  // out = norm(residual), or the residual itself where the layer has no such norm.
  const float* pre_norm(Step& step, const float* weight) {
    if (!weight) return residual_.data();
    const std::int64_t n = spec_.hidden_size;
    kernels::parallel_rows(step.pool, step.rows, kRowGrain, [&](std::int64_t m0, std::int64_t m1) {
      kernels_.rms_norm(residual_.data() + m0 * n, n, weight, spec_.norm_eps, m1 - m0, n, hidden_.data() + m0 * n, n);
    });
    return hidden_.data();
  }

  // A block whose output is neither normed nor scaled lets its last product add to the residual itself.
  bool adds_directly(const float* out_norm) const { return !out_norm && spec_.residual_multiplier == 1.0F; }

  // residual += multiplier * norm(hidden)
  void add_to_residual(Step& step, const float* out_norm) {
    const std::int64_t n = spec_.hidden_size;
    kernels::parallel_rows(step.pool, step.rows, kRowGrain, [&](std::int64_t m0, std::int64_t m1) {
      float* x = residual_.data() + m0 * n;
      float* y = hidden_.data() + m0 * n;
      if (out_norm) kernels_.rms_norm(y, n, out_norm, spec_.norm_eps, m1 - m0, n, y, n);
      if (spec_.residual_multiplier != 1.0F) kernels_.scale(spec_.residual_multiplier, m1 - m0, n, y, n);
      kernels_.add(x, n, y, n, m1 - m0, n, x, n);
    });
  }

  // The last product of a block: into the residual, or through the block's output norm.
  void project_out(Step& step, const Linear& linear, const float* x, std::int64_t x_width, const float* out_norm) {
    const bool direct = adds_directly(out_norm);
    multiply(step, Matmul{.weight = linear.weight,
                          .x = x,
                          .x_stride = x_width,
                          .y = direct ? residual_.data() : hidden_.data(),
                          .y_stride = spec_.hidden_size,
                          .m = step.rows,
                          .bias = linear.bias,
                          .accumulate = direct});
    if (!direct) add_to_residual(step, out_norm);
  }

  Matmul product(const Step& step, const Linear& linear, const float* x, float* y) const {
    const std::int64_t n = linear.weight.rows();
    return {.weight = linear.weight,
            .x = x,
            .x_stride = spec_.hidden_size,
            .y = y,
            .y_stride = n,
            .m = step.rows,
            .bias = linear.bias,
            .accumulate = false};
  }

  // False when nothing is left to do: after the last layer's keys and values in a step without logits.
  bool attention_block(Step& step, int layer) {
    const LayerWeights& weights = weights_.layers[index(layer)];
    const LayerSpec& facts = spec_.layers[index(layer)];
    const std::int64_t head_dim = spec_.head_dim;
    const std::int64_t q_dim = spec_.num_heads * head_dim;
    const std::int64_t kv_dim = spec_.num_kv_heads * head_dim;
    float* q = scratch_.data();
    float* k = q + step.rows * q_dim;
    float* v = k + step.rows * kv_dim;
    float* out = v + step.rows * kv_dim;

    const float* x = pre_norm(step, weights.attention_norm);
    std::array products{product(step, weights.q, x, q), product(step, weights.k, x, k), product(step, weights.v, x, v)};
    multiply(step, products);

    const kernels::KvCache kv{step.cache.keys(layer), step.cache.values(layer), step.cache.dtype(),
                              spec_.num_kv_heads,     spec_.head_dim,           step.cache.block_size()};
    kernels::parallel_rows(step.pool, step.rows, kRowGrain, [&](std::int64_t m0, std::int64_t m1) {
      const std::int64_t m = m1 - m0;
      prepare_heads(facts, weights.q_norm, q + m0 * q_dim, spec_.num_heads, m0, m);
      prepare_heads(facts, weights.k_norm, k + m0 * kv_dim, spec_.num_kv_heads, m0, m);
      kernels_.kv_write(kv, k + m0 * kv_dim, kv_dim, v + m0 * kv_dim, kv_dim, slots_.data() + m0, m);
    });

    const bool last = layer + 1 == info_.num_layers;
    if (last && step.batch.logit_rows.empty()) return false;
    kernels::attention(kernels_, step.pool, *workspace_,
                       kernels::Attention{.q = q,
                                          .q_stride = q_dim,
                                          .out = out,
                                          .out_stride = q_dim,
                                          .heads = spec_.num_heads,
                                          .scale = spec_.attention_scale,
                                          .softcap = spec_.attention_softcap,
                                          .window = facts.window,
                                          .cache = kv,
                                          .sequences = step.sequences});
    if (last) {
      // From here on only the rows with logits matter; they move up, in order.
      keep_rows(step.batch.logit_rows, out, q_dim);
      keep_rows(step.batch.logit_rows, residual_.data(), spec_.hidden_size);
      step.rows = static_cast<std::int64_t>(step.batch.logit_rows.size());
    }
    project_out(step, weights.o, out, q_dim, weights.attention_out_norm);
    return true;
  }

  // Norm and rotation of `heads` heads of rows [m0, m0 + m), x being the first of them.
  void prepare_heads(const LayerSpec& facts, const float* norm, float* x, int heads, std::int64_t m0, std::int64_t m) {
    const std::int64_t head_dim = spec_.head_dim;
    const std::int64_t width = heads * head_dim;
    if (norm && spec_.arch->qk_norm == QkNorm::per_head) {
      kernels_.rms_norm(x, head_dim, norm, spec_.norm_eps, m * heads, head_dim, x, head_dim);
    } else if (norm) {
      kernels_.rms_norm(x, width, norm, spec_.norm_eps, m, width, x, width);
    }
    if (facts.rope < 0) return;
    const RopeSpec& rope = spec_.ropes[index(facts.rope)];
    const auto half = static_cast<std::int64_t>(rope.frequencies.size());
    const auto& [cos, sin] = rope_tables_[index(facts.rope)];
    kernels_.rope(kernels::Rope{.x = x,
                                .stride = width,
                                .m = m,
                                .heads = heads,
                                .head_dim = spec_.head_dim,
                                .rotary_dim = rope.rotary_dim,
                                .interleaved = spec_.rope_interleaved,
                                .cos = cos + m0 * half,
                                .sin = sin + m0 * half},
                  0, m);
  }

  static void keep_rows(std::span<const std::int32_t> rows, float* x, std::int64_t width) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (static_cast<std::size_t>(rows[i]) == i) continue;
      std::copy_n(x + rows[i] * width, width, x + static_cast<std::int64_t>(i) * width);
    }
  }

  void mlp_block(Step& step, int layer) {
    const LayerWeights& weights = weights_.layers[index(layer)];
    const float* x = pre_norm(step, weights.mlp_norm);
    if (spec_.layers[index(layer)].moe) return mixture_of_experts(step, weights, x);
    const std::int64_t inner = spec_.intermediate_size;
    float* gate = scratch_.data();
    float* up = gate + step.rows * inner;
    std::array products{product(step, weights.gate, x, gate), product(step, weights.up, x, up)};
    multiply(step, products);
    gated(step, gate, up, step.rows, inner);
    project_out(step, weights.down, gate, inner, weights.mlp_out_norm);
  }

  // gate = activation(gate) * up
  void gated(Step& step, float* gate, const float* up, std::int64_t rows, std::int64_t inner) {
    kernels::parallel_rows(step.pool, rows, kRowGrain, [&](std::int64_t m0, std::int64_t m1) {
      kernels_.gated(kernel_activation(spec_.activation), gate + m0 * inner, inner, up + m0 * inner, inner, m1 - m0,
                     inner, gate + m0 * inner, inner);
    });
  }

  // Each row goes through its top experts. Rows are gathered by expert, so that each expert's weights are read once a
  // step; a row's results are added in ascending order of its experts, whoever shares them.
  void mixture_of_experts(Step& step, const LayerWeights& weights, const float* x) {
    const std::int64_t hidden = spec_.hidden_size;
    const std::int64_t inner = spec_.expert_intermediate_size;
    const std::int64_t experts = spec_.num_experts;
    const int top = spec_.experts_per_token;
    const std::int64_t count = step.rows * top;
    float* scores = scratch_.data();
    float* gathered = scores + step.rows * experts;
    float* gate = gathered + count * hidden;
    float* up = gate + count * inner;

    multiply(step, product(step, Linear{weights.router, nullptr}, x, scores));
    kernels::parallel_rows(step.pool, step.rows, kRowGrain, [&](std::int64_t m0, std::int64_t m1) {
      for (std::int64_t r = m0; r < m1; ++r) {
        route(static_cast<std::int32_t>(r), scores + r * experts, &assignments_[static_cast<std::size_t>(r * top)]);
      }
    });

    // order_[a] is the place of assignment a among the gathered rows (a counting sort by expert).
    std::fill(expert_begin_.begin(), expert_begin_.end(), 0);
    const std::span assignments(assignments_.data(), static_cast<std::size_t>(count));
    for (const Assignment& a : assignments) ++expert_begin_[index(a.expert) + 1];
    std::partial_sum(expert_begin_.begin(), expert_begin_.end(), expert_begin_.begin());
    next_.assign(expert_begin_.begin(), expert_begin_.end());
    for (std::size_t a = 0; a < assignments.size(); ++a) order_[a] = next_[index(assignments[a].expert)]++;
    kernels::parallel_rows(step.pool, count, kRowGrain, [&](std::int64_t a0, std::int64_t a1) {
      for (auto a = static_cast<std::size_t>(a0); a < static_cast<std::size_t>(a1); ++a) {
        std::copy_n(x + assignments[a].row * hidden, hidden, gathered + order_[a] * hidden);
      }
    });

    products_.clear();
    for_each_expert(weights, [&](const ExpertWeights& expert, std::int64_t begin, std::int64_t m) {
      const float* in = gathered + begin * hidden;
      products_.push_back(
          {.weight = expert.gate, .x = in, .x_stride = hidden, .y = gate + begin * inner, .y_stride = inner, .m = m});
      products_.push_back(
          {.weight = expert.up, .x = in, .x_stride = hidden, .y = up + begin * inner, .y_stride = inner, .m = m});
    });
    multiply(step, products_);
    gated(step, gate, up, count, inner);
    products_.clear();
    for_each_expert(weights, [&](const ExpertWeights& expert, std::int64_t begin, std::int64_t m) {
      products_.push_back({.weight = expert.down,
                           .x = gate + begin * inner,
                           .x_stride = inner,
                           .y = gathered + begin * hidden,
                           .y_stride = hidden,
                           .m = m});
    });
    multiply(step, products_);

    kernels::parallel_rows(step.pool, step.rows, kRowGrain, [&](std::int64_t m0, std::int64_t m1) {
      for (std::int64_t r = m0; r < m1; ++r) {
        float* sum = hidden_.data() + r * hidden;
        std::fill_n(sum, hidden, 0.0F);
        for (auto a = static_cast<std::size_t>(r * top); a < static_cast<std::size_t>((r + 1) * top); ++a) {
          float* part = gathered + order_[a] * hidden;
          kernels_.scale(assignments[a].weight, 1, hidden, part, hidden);
          kernels_.add(sum, hidden, part, hidden, 1, hidden, sum, hidden);
        }
      }
    });
    add_to_residual(step, weights.mlp_out_norm);
  }

  template <class F>
  void for_each_expert(const LayerWeights& weights, F&& fn) {
    for (std::size_t e = 0; e < weights.experts.size(); ++e) {
      const std::int64_t m = expert_begin_[e + 1] - expert_begin_[e];
      if (m > 0) fn(weights.experts[e], expert_begin_[e], m);
    }
  }

  // Softmax over all experts, the best `experts_per_token` of them (the lower number on ties) in ascending order.
  // `scores` becomes the probabilities.
  void route(std::int32_t row, float* scores, Assignment* chosen) const {
    const int experts = spec_.num_experts;
    const int top = spec_.experts_per_token;
    kernels_.exp(scores, kernels_.max(scores, experts), experts, scores);
    double total = 0;
    for (int e = 0; e < experts; ++e) total += scores[e];
    for (int i = 0; i < top; ++i) {
      int best = -1;
      for (int e = 0; e < experts; ++e) {
        const bool taken = std::any_of(chosen, chosen + i, [e](const Assignment& a) { return a.expert == e; });
        if (!taken && (best < 0 || scores[e] > scores[best])) best = e;
      }
      chosen[i] = {row, best, scores[best]};
    }
    if (spec_.renormalise_experts) {
      total = 0;
      for (int i = 0; i < top; ++i) total += chosen[i].weight;
    }
    for (int i = 0; i < top; ++i) chosen[i].weight = static_cast<float>(chosen[i].weight / total);
    std::sort(chosen, chosen + top, [](const Assignment& a, const Assignment& b) { return a.expert < b.expert; });
  }

  std::span<const float> logits(Step& step) {
    const std::int64_t hidden = spec_.hidden_size;
    const std::int64_t vocab = info_.vocab_size;
    const float* x = pre_norm(step, weights_.final_norm);
    float* out = logits_.data();
    multiply(step,
             Matmul{.weight = weights_.head, .x = x, .x_stride = hidden, .y = out, .y_stride = vocab, .m = step.rows});
    if (spec_.logits_divisor != 1.0F || spec_.logits_softcap > 0) {
      kernels::parallel_rows(step.pool, step.rows, 1, [&](std::int64_t m0, std::int64_t m1) {
        float* y = out + m0 * vocab;
        if (spec_.logits_divisor != 1.0F) kernels_.scale(1.0F / spec_.logits_divisor, m1 - m0, vocab, y, vocab);
        if (spec_.logits_softcap > 0) kernels_.softcap(spec_.logits_softcap, m1 - m0, vocab, y, vocab);
      });
    }
    return {out, static_cast<std::size_t>(step.rows * vocab)};
  }

  const kernels::KernelTable& kernels_;
  const DecoderSpec spec_;
  const weights::TensorStore store_;
  const DecoderWeights weights_;
  const weights::Metadata metadata_;
  const GenerationDefaults defaults_;
  ModelInfo info_;
  WeightPacker packer_;
  float embedding_scale_ = 1;

  int max_rows_ = 0;
  int max_logit_rows_ = 0;
  FloatBuffer residual_;
  FloatBuffer hidden_;
  FloatBuffer scratch_;
  FloatBuffer rope_;
  FloatBuffer logits_;
  std::unique_ptr<kernels::Workspace> workspace_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int64_t> slots_;
  std::vector<std::pair<const float*, const float*>> rope_tables_;
  // Mixture of experts.
  std::vector<Assignment> assignments_;
  std::vector<std::int64_t> order_;
  std::vector<std::int64_t> expert_begin_;
  std::vector<std::int64_t> next_;
  std::vector<Matmul> products_;
};

Result<weights::Metadata> read_json(const FileSet& files, std::string_view name) {
  const auto bytes = files.open(name);
  if (!bytes) return bytes.error();
  return weights::parse_json_metadata(bytes->text(), files.describe(name));
}

}  // namespace

Result<std::unique_ptr<Decoder>> Decoder::load(const FileSet& files, const LoadOptions& options) {
  const kernels::KernelTable* kernels = options.kernels;
  if (!kernels) {
    const auto best = kernels::select_kernels();
    if (!best) return best.error();
    kernels = *best;
  }
  const std::vector<std::string> names = files.list();
  const bool gguf = !files.has("config.json") &&
                    std::any_of(names.begin(), names.end(), [](const std::string& n) { return n.ends_with(".gguf"); });
  if (!gguf && !files.has("config.json")) {
    return make_error(ErrorCode::not_found, files.describe() + ": neither config.json nor a .gguf file");
  }
  weights::Metadata config;
  weights::Metadata generation;
  if (!gguf) {
    auto parsed = read_json(files, "config.json");
    if (!parsed) return parsed.error();
    config = std::move(*parsed);
    if (files.has("generation_config.json")) {
      auto stated = read_json(files, "generation_config.json");
      if (!stated) return stated.error();
      generation = std::move(*stated);
    }
  }
  auto store = gguf ? weights::open_gguf(files) : weights::open_safetensors(files);
  if (!store) return store.error();
  if (gguf) config = store->metadata();
  auto spec = read_decoder_spec(config, *store, gguf, options.max_context);
  if (!spec) return spec.error();
  auto defaults = read_generation_defaults(config, generation, gguf);
  if (!defaults) return defaults.error();
  auto weights = bind_decoder_weights(*spec, *store);
  if (!weights) return weights.error();
  return std::unique_ptr<Decoder>(std::make_unique<DecoderImpl>(
      *kernels, std::move(*spec), std::move(*store), std::move(*weights), std::move(config), std::move(*defaults)));
}

}  // namespace xgen::model
