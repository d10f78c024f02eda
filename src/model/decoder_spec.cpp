#include "model/decoder_spec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace xgen::model {
namespace {

using weights::Metadata;

// The same fact under its name in config.json and (after "ARCH.") in GGUF files.
struct FactName {
  std::string_view hf;
  std::string_view gguf;
};
constexpr FactName kFactNames[] = {
    {"vocab_size", "vocab_size"},
    {"hidden_size", "embedding_length"},
    {"intermediate_size", "feed_forward_length"},
    {"num_hidden_layers", "block_count"},
    {"num_attention_heads", "attention.head_count"},
    {"num_key_value_heads", "attention.head_count_kv"},
    {"head_dim", "attention.key_length"},
    {"max_position_embeddings", "context_length"},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon"},
    {"sliding_window", "attention.sliding_window"},
    {"sliding_window_pattern", "attention.sliding_window_pattern"},
    {"rope_theta", "rope.freq_base"},
    {"rope_local_base_freq", "rope.freq_base_swa"},
    {"attn_logit_softcapping", "attn_logit_softcapping"},
    {"final_logit_softcapping", "final_logit_softcapping"},
    {"attention_multiplier", "attention.scale"},
    {"embedding_multiplier", "embedding_scale"},
    {"residual_multiplier", "residual_scale"},
    {"logits_scaling", "logit_scale"},
    {"num_experts", "expert_count"},
    {"num_experts_per_tok", "expert_used_count"},
    {"moe_intermediate_size", "expert_feed_forward_length"},
    {"norm_topk_prob", "expert_weights_norm"},
};

// Reads facts by their config.json names from either format. The first fault is kept, and reading goes on with
// harmless values: the caller asks status() once.
class Facts {
 public:
  Facts(Metadata root, const ArchSpec& arch, bool gguf) : root_(std::move(root)), arch_(arch), gguf_(gguf) {}

  // The key as the file writes it; empty where the format has no such fact.
  std::string key(std::string_view fact) const {
    if (!gguf_) return std::string(fact);
    for (const FactName& name : kFactNames) {
      if (name.hf == fact) return gguf_key(name.gguf);
    }
    return {};
  }
  std::string gguf_key(std::string_view suffix) const {
    return std::string(arch_.gguf_name) + "." + std::string(suffix);
  }
  bool has(std::string_view fact) const {
    const std::string name = key(fact);
    return !name.empty() && root_.has(name);
  }
  Metadata get(std::string_view fact) const { return root_.get(key(fact)); }

  // Required, unless the row has a default for it.
  std::int64_t integer(std::string_view fact, std::int64_t low, std::int64_t high) {
    if (!has(fact)) {
      if (const double* value = row_default(fact)) return static_cast<std::int64_t>(*value);
      fail(key(fact) + " is missing");
      return low;
    }
    const auto value = root_.get_int(key(fact));
    if (!value) return fail(value.error(), low);
    if (*value < low || *value > high) {
      fail(key(fact) + " must lie in [" + std::to_string(low) + ", " + std::to_string(high) + "], is " +
           std::to_string(*value));
      return low;
    }
    return *value;
  }
  std::int64_t integer_or(std::string_view fact, std::int64_t low, std::int64_t high, std::int64_t fallback) {
    return has(fact) || row_default(fact) ? integer(fact, low, high) : fallback;
  }
  // `low` and `high` are exclusive.
  double real(std::string_view fact, double low, double high) {
    if (!has(fact)) {
      if (const double* value = row_default(fact)) return *value;
      fail(key(fact) + " is missing");
      return 1;
    }
    return checked(key(fact), root_.get_double(key(fact)), low, high);
  }
  double real_or(std::string_view fact, double low, double high, double fallback) {
    return has(fact) || row_default(fact) ? real(fact, low, high) : fallback;
  }
  bool flag(std::string_view fact, bool fallback) {
    if (!has(fact)) {
      const double* value = row_default(fact);
      return value ? *value != 0 : fallback;
    }
    const auto value = root_.get_bool(key(fact));
    return value ? *value : fail(value.error(), fallback);
  }
  double checked(const std::string& name, const Result<double>& value, double low, double high) {
    if (!value) return fail(value.error(), 1.0);
    if (!(*value > low && *value < high)) {
      fail(name + " must lie between " + number(low) + " and " + number(high) + ", is " + number(*value));
      return 1;
    }
    return *value;
  }
  // An explicit null says "none" where absence means the row's default.
  bool is_null(std::string_view fact) const {
    if (gguf_) return false;
    for (std::size_t i = 0; i < root_.size(); ++i) {
      if (root_.key(i) == fact) return root_.at(i).is_null();
    }
    return false;
  }
  const Metadata& root() const { return root_; }
  const ArchSpec& arch() const { return arch_; }
  bool gguf() const { return gguf_; }

  void fail(std::string message, ErrorCode code = ErrorCode::invalid_argument) {
    if (!error_) error_ = make_error(code, std::string(root_.source()) + ": " + std::move(message));
  }
  void fail(const Error& error) {
    if (!error_) error_ = error;
  }
  template <class T>
  T fail(const Error& error, T value) {
    fail(error);
    return value;
  }
  Status status() const { return error_ ? Status(*error_) : Status(); }
  static std::string number(double value) {
    std::string text = std::to_string(value);
    while (text.find('.') != std::string::npos && (text.back() == '0' || text.back() == '.')) {
      const bool point = text.back() == '.';
      text.pop_back();
      if (point) break;
    }
    return text;
  }

 private:
  const double* row_default(std::string_view fact) const {
    if (gguf_ || is_null(fact)) return nullptr;
    for (const ConfigDefault& d : arch_.defaults) {
      if (d.key == fact) return &d.value;
    }
    return nullptr;
  }

  Metadata root_;
  const ArchSpec& arch_;
  bool gguf_;
  std::optional<Error> error_;
};

constexpr double kHuge = 1e12;

Result<const ArchSpec*> choose_arch(const Metadata& config, bool gguf) {
  const auto refuse = [&](const std::string& what) {
    return make_error(ErrorCode::unsupported,
                      std::string(config.source()) + ": " + what + "; supported are " + supported_archs(gguf));
  };
  if (gguf) {
    const auto name = config.get_string("general.architecture");
    if (!name) return name.error();
    const ArchSpec* arch = find_gguf_arch(*name);
    if (!arch) return refuse("general.architecture \"" + std::string(*name) + "\" is not supported");
    return arch;
  }
  const auto name = config.get_string("model_type");
  if (!name) return name.error();
  for (const std::string_view key : {"vision_config", "audio_config", "text_config"}) {
    if (config.has(key)) {
      return refuse("model_type \"" + std::string(*name) + "\" with " + std::string(key) +
                    " (a multimodal model) is not supported");
    }
  }
  const ArchSpec* arch = find_arch(*name);
  if (!arch) return refuse("model_type \"" + std::string(*name) + "\" is not supported");
  if (config.has("architectures")) {
    const auto classes = config.get("architectures").as_strings();
    if (!classes) return classes.error();
    if (!classes->empty() &&
        std::none_of(classes->begin(), classes->end(), [](std::string_view c) { return c.ends_with("ForCausalLM"); })) {
      return refuse("architectures \"" + std::string(classes->front()) + "\" is not a causal language model");
    }
  }
  if (config.has("quantization_config")) {
    const auto method = config.get("quantization_config").get_string("quant_method", "unknown");
    return make_error(ErrorCode::unsupported, std::string(config.source()) + ": quantization_config (quant_method \"" +
                                                  std::string(method ? *method : "unknown") +
                                                  "\") is not supported; use F32, F16, BF16 safetensors or a GGUF");
  }
  return arch;
}

std::optional<Activation> activation_named(std::string_view name) {
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::gelu_tanh;
  if (name == "gelu") return Activation::gelu_erf;
  return std::nullopt;
}

void read_activation(Facts& facts, DecoderSpec& spec) {
  std::string name(facts.arch().activation);
  if (!facts.gguf()) {
    for (const char* key : {"hidden_activation", "hidden_act"}) {
      if (!facts.has(key)) continue;
      const auto value = facts.root().get_string(key);
      if (!value) return facts.fail(value.error());
      name = *value;
      break;
    }
  }
  if (const auto activation = activation_named(name)) {
    spec.activation = *activation;
  } else {
    facts.fail("activation \"" + name + "\" is not supported; supported are silu, gelu, gelu_pytorch_tanh",
               ErrorCode::unsupported);
  }
}

// ---- RoPE

std::vector<double> factor_list(Facts& facts, const Metadata& scaling, std::string_view key, int rotary_dim) {
  const auto list = scaling.get(key).as_doubles();
  if (!list) return facts.fail(list.error(), std::vector<double>{});
  const auto expected = static_cast<std::size_t>(rotary_dim / 2);
  if (list->size() != expected) {
    facts.fail("RoPE scaling's " + std::string(key) + " must have " + std::to_string(expected) + " numbers, has " +
               std::to_string(list->size()));
    return {};
  }
  for (const double value : *list) {
    if (!(value > 0 && value < kHuge)) facts.fail("RoPE scaling's " + std::string(key) + " must be positive");
  }
  return *list;
}

// `parameters` is an object as config.json's rope_scaling or rope_parameters.
RopeSpec read_hf_rope(Facts& facts, const Metadata& parameters, double theta, double partial, const DecoderSpec& spec,
                      int max_context, double& extended_context) {
  const auto real = [&](std::string_view key, double low, double fallback) {
    return facts.checked("RoPE scaling's " + std::string(key), parameters.get_double(key, fallback), low, kHuge);
  };
  std::string type = "default";
  if (parameters.is_object()) {
    const auto named = parameters.has("rope_type") ? parameters.get_string("rope_type")
                                                   : parameters.get_string("type", std::string_view("default"));
    if (!named) return facts.fail(named.error(), RopeSpec{});
    type = *named;
    theta = real("rope_theta", 1, theta);
    partial = real("partial_rotary_factor", 0, partial);
    if (parameters.has("mrope_section")) {
      facts.fail("RoPE type \"mrope\" (a multimodal model's) is not supported", ErrorCode::unsupported);
      return {};
    }
  }
  const int rotary_dim = static_cast<int>(std::min(1.0, partial) * spec.head_dim);
  if (rotary_dim < 2 || rotary_dim % 2 != 0) {
    facts.fail("the rotated part of a head must be even and at least 2, is " + std::to_string(rotary_dim));
    return {};
  }
  // Phi-3's first files call LongRoPE "su" or "yarn".
  const bool has_lists = parameters.is_object() && parameters.has("long_factor");
  if (type == "su" || (type == "yarn" && has_lists)) type = "longrope";

  RopeScaling scaling;
  if (type != "default") scaling.original_context = real("original_max_position_embeddings", 0, spec.max_position);
  if (facts.root().has("original_max_position_embeddings")) {
    scaling.original_context = facts.real("original_max_position_embeddings", 0, kHuge);
  }
  const auto require_factor = [&] {
    if (!parameters.has("factor")) facts.fail("RoPE scaling \"" + type + "\" needs factor");
    scaling.factor = real("factor", 0, 1);
  };
  if (type == "default") {
  } else if (type == "linear") {
    scaling.kind = RopeScaling::Kind::linear;
    require_factor();
  } else if (type == "llama3") {
    scaling.kind = RopeScaling::Kind::llama3;
    require_factor();
    scaling.low_freq_factor = real("low_freq_factor", 0, 1);
    scaling.high_freq_factor = real("high_freq_factor", 0, 4);
    if (scaling.high_freq_factor <= scaling.low_freq_factor) {
      facts.fail("RoPE scaling's high_freq_factor must be above low_freq_factor");
    }
  } else if (type == "yarn") {
    scaling.kind = RopeScaling::Kind::yarn;
    require_factor();
    scaling.beta_fast = real("beta_fast", 0, 32);
    scaling.beta_slow = real("beta_slow", 0, 1);
    const auto truncate = parameters.get_bool("truncate", true);
    scaling.truncate = truncate ? *truncate : facts.fail(truncate.error(), true);
    if (parameters.has("attention_factor")) {
      scaling.attention_factor = real("attention_factor", 0, 1);
    } else if (parameters.has("mscale") && parameters.has("mscale_all_dim") && real("mscale", -1, 1) != 0 &&
               real("mscale_all_dim", -1, 1) != 0) {
      scaling.attention_factor = yarn_magnitude(scaling.factor, real("mscale", -1, 1)) /
                                 yarn_magnitude(scaling.factor, real("mscale_all_dim", -1, 1));
    } else {
      scaling.attention_factor = yarn_magnitude(scaling.factor);
    }
    extended_context = scaling.original_context * scaling.factor;
  } else if (type == "longrope") {
    scaling.kind = RopeScaling::Kind::longrope;
    const bool long_context = (max_context > 0 ? max_context : spec.max_position) > scaling.original_context;
    // Both lists are checked, one is used.
    auto short_list = factor_list(facts, parameters, "short_factor", rotary_dim);
    auto long_list = factor_list(facts, parameters, "long_factor", rotary_dim);
    scaling.divisors = long_context ? std::move(long_list) : std::move(short_list);
    const double factor =
        parameters.has("factor") ? real("factor", 0, 1) : spec.max_position / scaling.original_context;
    scaling.attention_factor = parameters.has("attention_factor") ? real("attention_factor", 0, 1)
                               : factor <= 1                      ? 1.0
                                             : std::sqrt(1 + std::log(factor) / std::log(scaling.original_context));
  } else {
    facts.fail("RoPE type \"" + type + "\" is not supported; supported are default, linear, llama3, yarn, longrope",
               ErrorCode::unsupported);
  }
  if (!facts.status().ok()) return {};
  return make_rope(rotary_dim, theta, scaling);
}

void read_hf_ropes(Facts& facts, DecoderSpec& spec, int max_context, double& extended_context) {
  const double theta = facts.real_or("rope_theta", 1, kHuge, 10000);
  const double partial = facts.real_or("partial_rotary_factor", 0, 1.0000001, 1);
  const Metadata parameters =
      facts.root().has("rope_parameters") ? facts.root().get("rope_parameters") : facts.root().get("rope_scaling");
  const bool nested =
      parameters.is_object() && (parameters.has("full_attention") || parameters.has("sliding_attention"));
  const auto add = [&](const Metadata& from, double base) {
    spec.ropes.push_back(read_hf_rope(facts, from, base, partial, spec, max_context, extended_context));
  };
  add(nested ? parameters.get("full_attention") : parameters, theta);
  if (facts.arch().local_rope) {
    add(nested ? parameters.get("sliding_attention") : Metadata(),
        facts.real_or("rope_local_base_freq", 1, kHuge, 10000));
  } else if (nested && parameters.has("sliding_attention")) {
    facts.fail("rope_parameters by layer type are not supported for " + std::string(facts.arch().name),
               ErrorCode::unsupported);
  }
}

// A one-dimensional F32 tensor of RoPE divisors; empty if there is none.
std::vector<double> divisors_tensor(Facts& facts, const weights::TensorStore& store, std::string_view name,
                                    int rotary_dim) {
  const TensorView* tensor = store.find(name);
  if (!tensor) return {};
  if (tensor->dtype != DType::f32 || tensor->shape != make_shape({rotary_dim / 2})) {
    facts.fail("tensor " + std::string(name) + " must be F32 [" + std::to_string(rotary_dim / 2) + "], is " +
               std::string(dtype_info(tensor->dtype).name) + " " + to_string(tensor->shape));
    return {};
  }
  std::vector<double> values;
  for (int i = 0; i < rotary_dim / 2; ++i) {
    float value = 0;
    std::copy_n(tensor->data + static_cast<std::size_t>(i) * sizeof(float), sizeof(float),
                reinterpret_cast<std::byte*>(&value));
    if (!(value > 0 && value < 1e12F)) facts.fail("tensor " + std::string(name) + " must be positive");
    values.push_back(value);
  }
  return values;
}

void read_gguf_ropes(Facts& facts, DecoderSpec& spec, const weights::TensorStore& store, int max_context,
                     double& extended_context) {
  const Metadata& root = facts.root();
  const auto real = [&](std::string_view suffix, double low, double fallback) {
    return facts.checked(facts.gguf_key(suffix), root.get_double(facts.gguf_key(suffix), fallback), low, kHuge);
  };
  const auto dim = root.get_int(facts.gguf_key("rope.dimension_count"), spec.head_dim);
  if (!dim) return facts.fail(dim.error());
  if (*dim < 2 || *dim % 2 != 0 || *dim > spec.head_dim) {
    return facts.fail(facts.gguf_key("rope.dimension_count") + " must be even and in [2, " +
                      std::to_string(spec.head_dim) + "], is " + std::to_string(*dim));
  }
  const int rotary_dim = static_cast<int>(*dim);
  // A factor alone means linear scaling; the first files called it scale_linear. 0 stands for "not scaled".
  const auto type = root.get_string(facts.gguf_key("rope.scaling.type"), std::string_view("linear"));
  if (!type) return facts.fail(type.error());
  const double stated = real("rope.scaling.factor", -1, real("rope.scale_linear", -1, 0));
  const double factor = stated > 0 ? stated : 1;

  RopeScaling scaling;
  scaling.original_context = real("rope.scaling.original_context_length", 0, spec.max_position);
  scaling.attention_factor = real("rope.scaling.attn_factor", 0, 1);
  if (*type == "linear") {
    scaling.kind = RopeScaling::Kind::linear;
    scaling.factor = factor;
  } else if (*type == "yarn") {
    scaling.kind = RopeScaling::Kind::yarn;
    scaling.factor = factor;
    scaling.beta_fast = real("rope.scaling.yarn_beta_fast", 0, 32);
    scaling.beta_slow = real("rope.scaling.yarn_beta_slow", 0, 1);
    // config.json's attention_factor, which takes the place of the usual magnitude.
    scaling.attention_factor *= real("rope.scaling.yarn_attn_factor", 0, yarn_magnitude(factor));
    extended_context = scaling.original_context * factor;
  } else if (*type != "none" && *type != "longrope") {
    return facts.fail(facts.gguf_key("rope.scaling.type") + " \"" + std::string(*type) +
                          "\" is not supported; supported are none, linear, yarn, longrope",
                      ErrorCode::unsupported);
  }
  // Llama 3.1's scaling is stored as divisors; LongRoPE's two lists likewise.
  scaling.divisors = divisors_tensor(facts, store, "rope_freqs.weight", rotary_dim);
  auto short_list = divisors_tensor(facts, store, "rope_factors_short.weight", rotary_dim);
  auto long_list = divisors_tensor(facts, store, "rope_factors_long.weight", rotary_dim);
  if (short_list.empty() != long_list.empty()) {
    return facts.fail("tensors rope_factors_short.weight and rope_factors_long.weight must come together");
  }
  if (!long_list.empty()) {
    const bool long_context = (max_context > 0 ? max_context : spec.max_position) > scaling.original_context;
    scaling.divisors = long_context ? std::move(long_list) : std::move(short_list);
  }
  const double theta = facts.real_or("rope_theta", 1, kHuge, 10000);
  if (!facts.status().ok()) return;
  spec.ropes.push_back(make_rope(rotary_dim, theta, scaling));
  if (facts.arch().local_rope) {
    spec.ropes.push_back(make_rope(rotary_dim, facts.real_or("rope_local_base_freq", 1, kHuge, 10000), RopeScaling{}));
  }
}

// ---- Layers

// Which layers slide; empty if none does.
std::vector<bool> sliding_layers(Facts& facts, std::size_t n) {
  const ArchSpec& arch = facts.arch();
  const Metadata& root = facts.root();
  WindowRule rule = arch.window;
  // "llama" GGUFs hold Mistral too: the window is stated where there is one.
  if (facts.gguf() && rule == WindowRule::none && facts.has("sliding_window")) rule = WindowRule::every_layer;

  if (!facts.gguf() && rule != WindowRule::every_layer && facts.has("layer_types")) {
    const auto types = root.get("layer_types").as_strings();
    if (!types) return facts.fail(types.error(), std::vector<bool>{});
    if (types->size() < n) {
      facts.fail("layer_types must name " + std::to_string(n) + " layers, names " + std::to_string(types->size()));
      return {};
    }
    std::vector<bool> sliding(n);
    for (std::size_t i = 0; i < n; ++i) {
      sliding[i] = (*types)[i] == "sliding_attention";
      if (!sliding[i] && (*types)[i] != "full_attention") {
        facts.fail("layer type \"" + std::string((*types)[i]) +
                       "\" is not supported; supported are full_attention, sliding_attention",
                   ErrorCode::unsupported);
      }
    }
    return sliding;
  }
  const Metadata pattern = facts.get("sliding_window_pattern");
  if (const weights::NumberArray* flags = facts.gguf() ? pattern.numbers() : nullptr) {
    std::vector<bool> sliding(n);
    if (flags->size() < n) facts.fail(facts.key("sliding_window_pattern") + " must have one entry per layer");
    for (std::size_t i = 0; i < n && i < flags->size(); ++i) sliding[i] = flags->integer(i) != 0;
    return sliding;
  }
  switch (rule) {
    case WindowRule::none:
      return {};
    case WindowRule::every_layer:
      return std::vector<bool>(n, true);
    case WindowRule::from_layer: {
      // GGUF has no such switch: converters leave the window out where it is off.
      const std::int64_t from = facts.gguf() ? 0 : facts.integer("max_window_layers", 0, 1 << 20);
      std::vector<bool> sliding(n);
      for (std::size_t i = 0; i < n; ++i) sliding[i] = static_cast<std::int64_t>(i) >= from;
      return sliding;
    }
    case WindowRule::pattern:
      break;
  }
  std::vector<bool> sliding(n);
  if (pattern.kind() == Metadata::Kind::string) {  // "LLLG": local and global in turn, the last layer global
    const auto letters = pattern.as_string();
    if (!letters || letters->empty() || letters->find_first_not_of("LG") != std::string_view::npos) {
      facts.fail("sliding_window_pattern must be a number or made of the letters L and G");
      return {};
    }
    for (std::size_t i = 0; i < n; ++i) sliding[i] = (*letters)[i % letters->size()] == 'L' && i + 1 < n;
    return sliding;
  }
  const std::int64_t period = facts.integer_or("sliding_window_pattern", 1, 1 << 20, arch.window_period);
  for (std::size_t i = 0; i < n; ++i) sliding[i] = (static_cast<std::int64_t>(i) + 1) % period != 0;
  return sliding;
}

// Which layers rotate Q and K.
std::vector<bool> rotated_layers(Facts& facts, const std::vector<bool>& sliding, std::size_t n) {
  std::vector<bool> rotated(n, true);
  switch (facts.arch().nope) {
    case NopeRule::none:
      break;
    case NopeRule::global_beside_window:
      if (!sliding.empty()) rotated = sliding;
      break;
    case NopeRule::listed: {
      const Metadata list = facts.gguf() ? Metadata() : facts.root().get("no_rope_layers");
      const weights::NumberArray* numbers = list.numbers();
      if (numbers && numbers->size() > 0) {
        if (numbers->size() < n) facts.fail("no_rope_layers must have one entry per layer");
        for (std::size_t i = 0; i < n && i < numbers->size(); ++i) rotated[i] = numbers->integer(i) != 0;
        break;
      }
      const std::int64_t interval = facts.integer_or("no_rope_layer_interval", 1, 1 << 20, 4);
      for (std::size_t i = 0; i < n; ++i) rotated[i] = (static_cast<std::int64_t>(i) + 1) % interval != 0;
      break;
    }
  }
  return rotated;
}

void read_layers(Facts& facts, DecoderSpec& spec) {
  const auto n = static_cast<std::size_t>(facts.integer("num_hidden_layers", 1, 4096));
  std::vector<bool> sliding;
  std::int64_t window = 0;
  // GGUF has no such switch: converters leave the window out where it is off.
  const bool switched_on = facts.flag("use_sliding_window", false);
  const bool may_slide = facts.gguf() || !facts.arch().window_switch || switched_on;
  if (!facts.gguf() && switched_on && facts.arch().window == WindowRule::none && !facts.has("layer_types")) {
    facts.fail("use_sliding_window without layer_types is not supported", ErrorCode::unsupported);
  }
  if (may_slide && !facts.is_null("sliding_window")) {
    window = facts.integer_or("sliding_window", 0, std::int64_t{1} << 40, 0);
    if (window > 0) sliding = sliding_layers(facts, n);
  }
  const std::vector<bool> rotated = rotated_layers(facts, sliding, n);
  spec.layers.resize(n);
  for (std::size_t i = 0; i < n; ++i) {
    const bool slides = !sliding.empty() && sliding[i];
    spec.layers[i].window = slides ? window : 0;
    if (rotated[i]) spec.layers[i].rope = slides && facts.arch().local_rope ? 1 : 0;
  }
}

void read_experts(Facts& facts, const weights::TensorStore& store, DecoderSpec& spec) {
  if (!facts.gguf() && facts.arch().moe_router.empty()) return;
  const std::string_view count = !facts.gguf() && facts.has("num_local_experts") ? "num_local_experts" : "num_experts";
  const std::int64_t experts = facts.gguf() ? facts.integer_or(count, 0, 4096, 0) : facts.integer(count, 1, 4096);
  if (experts == 0) return;
  spec.num_experts = static_cast<int>(experts);
  spec.experts_per_token = static_cast<int>(facts.integer("num_experts_per_tok", 1, experts));
  spec.expert_intermediate_size =
      static_cast<int>(facts.integer_or("moe_intermediate_size", 1, 1 << 24, spec.intermediate_size));
  spec.renormalise_experts = facts.flag("norm_topk_prob", true);
  std::vector<std::int64_t> dense;
  std::int64_t step = 1;
  if (!facts.gguf()) {
    step = facts.integer_or("decoder_sparse_step", 1, 1 << 20, 1);
    if (facts.has("mlp_only_layers")) {
      const auto list = facts.root().get("mlp_only_layers").as_ints();
      if (!list) return facts.fail(list.error());
      dense = *list;
    }
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const auto layer = static_cast<std::int64_t>(i);
    spec.layers[i].moe = facts.gguf()
                             ? store.find("blk." + std::to_string(i) + ".ffn_gate_inp.weight") != nullptr
                             : (layer + 1) % step == 0 && std::find(dense.begin(), dense.end(), layer) == dense.end();
  }
}

Presence presence(Facts& facts, BiasRule rule, std::string_view key) {
  if (rule == BiasRule::never) return Presence::absent;
  if (rule == BiasRule::always) return Presence::required;
  if (facts.gguf()) return Presence::optional;
  return facts.flag(key, false) ? Presence::required : Presence::absent;
}

void read_scales(Facts& facts, DecoderSpec& spec) {
  const ArchSpec& arch = facts.arch();
  double scale = 1 / std::sqrt(static_cast<double>(spec.head_dim));
  if (arch.attention_scale == AttentionScale::query_scalar && !facts.gguf()) {
    scale = 1 / std::sqrt(facts.real("query_pre_attn_scalar", 0, kHuge));
  } else if (arch.attention_scale == AttentionScale::query_scalar &&
             static_cast<int>(spec.layers.size()) == arch.query_scalar_is_width_at) {
    const int head_width = spec.hidden_size / spec.num_heads;
    scale = 1 / std::sqrt(static_cast<double>(head_width));
  }
  // GGUF states any other scale outright (0: not stated).
  const bool stated =
      facts.gguf() ? facts.has("attention_multiplier") : arch.attention_scale == AttentionScale::multiplier;
  if (stated) {
    const double value = facts.real_or("attention_multiplier", -1, kHuge, 1);
    if (value > 0) scale = value;
  }
  spec.attention_scale = static_cast<float>(scale);
  if (arch.softcaps) {
    spec.attention_softcap = static_cast<float>(facts.real_or("attn_logit_softcapping", -1, kHuge, 0));
    spec.logits_softcap = static_cast<float>(facts.real_or("final_logit_softcapping", -1, kHuge, 0));
  }
  if (arch.multipliers) {
    spec.embedding_scale = facts.real_or("embedding_multiplier", 0, kHuge, 1);
    spec.residual_multiplier = static_cast<float>(facts.real_or("residual_multiplier", 0, kHuge, 1));
    spec.logits_divisor = static_cast<float>(facts.real_or("logits_scaling", 0, kHuge, 1));
  }
  if (arch.scale_embedding) {
    spec.embedding_scale = std::sqrt(static_cast<double>(spec.hidden_size));
    spec.embedding_scale_in_weight_dtype = !facts.gguf();
  }
}

}  // namespace

Result<DecoderSpec> read_decoder_spec(const Metadata& config, const weights::TensorStore& store, bool gguf,
                                      int max_context) {
  const auto arch = choose_arch(config, gguf);
  if (!arch) return arch.error();
  Facts facts(config, **arch, gguf);
  DecoderSpec spec;
  spec.arch = *arch;
  spec.gguf = gguf;

  const auto dimension = [&](std::string_view fact) { return static_cast<int>(facts.integer(fact, 1, 1 << 24)); };
  spec.vocab_size = gguf ? 0 : dimension("vocab_size");
  spec.hidden_size = dimension("hidden_size");
  spec.intermediate_size = dimension("intermediate_size");
  spec.num_heads = static_cast<int>(facts.integer("num_attention_heads", 1, 1 << 16));
  spec.num_kv_heads = static_cast<int>(facts.integer_or("num_key_value_heads", 1, spec.num_heads, spec.num_heads));
  spec.head_dim =
      static_cast<int>(facts.integer_or("head_dim", 2, 1 << 12, std::max(2, spec.hidden_size / spec.num_heads)));
  spec.max_position = static_cast<int>(facts.integer("max_position_embeddings", 1, 1 << 30));
  spec.norm_eps = static_cast<float>(facts.real_or("rms_norm_eps", 0, 1, 1e-6));
  if (spec.num_heads % spec.num_kv_heads != 0) {
    facts.fail(facts.key("num_attention_heads") + " (" + std::to_string(spec.num_heads) + ") must be a multiple of " +
               facts.key("num_key_value_heads") + " (" + std::to_string(spec.num_kv_heads) + ")");
  }
  if (gguf && config.get_int(facts.gguf_key("attention.value_length"), spec.head_dim).ok() &&
      *config.get_int(facts.gguf_key("attention.value_length"), spec.head_dim) != spec.head_dim) {
    facts.fail("attention.value_length differs from attention.key_length, which is not supported",
               ErrorCode::unsupported);
  }
  if (!gguf && facts.flag("use_bidirectional_attention", false)) {
    facts.fail("use_bidirectional_attention is not supported", ErrorCode::unsupported);
  }
  read_activation(facts, spec);
  read_layers(facts, spec);
  read_experts(facts, store, spec);
  read_scales(facts, spec);

  spec.rope_interleaved = gguf ? spec.arch->gguf_rope_interleaved : spec.arch->hf_rope_interleaved;
  double extended_context = 0;
  if (gguf) {
    read_gguf_ropes(facts, spec, store, max_context, extended_context);
  } else {
    read_hf_ropes(facts, spec, max_context, extended_context);
  }
  // YaRN's configs state the original context in max_position_embeddings, or the extended one: both occur.
  spec.max_position = std::max(spec.max_position, static_cast<int>(std::min(extended_context, 1e9)));

  spec.tied_embeddings = !gguf && facts.flag("tie_word_embeddings", false);
  spec.qkv_bias = presence(facts, spec.arch->qkv_bias, "attention_bias");
  spec.o_bias = spec.arch->o_bias ? spec.qkv_bias : Presence::absent;
  spec.mlp_bias = presence(facts, spec.arch->mlp_bias, "mlp_bias");
  if (Status status = facts.status(); !status.ok()) return status.error();
  return spec;
}

namespace {

void add_eos(const Metadata& value, std::vector<std::int32_t>& ids) {
  const auto list = value.as_ints();
  if (!list) return;
  for (const std::int64_t id : *list) {
    if (id >= 0 && id <= INT32_MAX && std::find(ids.begin(), ids.end(), id) == ids.end()) {
      ids.push_back(static_cast<std::int32_t>(id));
    }
  }
}

}  // namespace

Result<GenerationDefaults> read_generation_defaults(const Metadata& config, const Metadata& generation, bool gguf) {
  GenerationDefaults defaults;
  std::optional<Error> fault;
  const auto real = [&](const Metadata& from, std::string_view key, float& value) {
    if (!from.has(key)) return;
    const auto stated = from.get_double(key);
    if (!stated) {
      if (!fault) fault = stated.error();
    } else if (!(*stated >= 0 && *stated <= 1e6)) {
      if (!fault) {
        fault = make_error(ErrorCode::invalid_argument,
                           std::string(from.source()) + ": " + std::string(key) + " must not be negative");
      }
    } else {
      value = static_cast<float>(*stated);
    }
  };
  float top_k = -1;
  if (gguf) {
    for (const char* key :
         {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
      if (config.has(key)) add_eos(config.get(key), defaults.eos_ids);
    }
    real(config, "general.sampling.temp", defaults.temperature);
    real(config, "general.sampling.top_p", defaults.top_p);
    real(config, "general.sampling.top_k", top_k);
    real(config, "general.sampling.min_p", defaults.min_p);
    real(config, "general.sampling.penalty_repeat", defaults.repetition_penalty);
  } else {
    if (config.has("eos_token_id")) add_eos(config.get("eos_token_id"), defaults.eos_ids);
    if (generation.has("eos_token_id")) add_eos(generation.get("eos_token_id"), defaults.eos_ids);
    real(generation, "temperature", defaults.temperature);
    real(generation, "top_p", defaults.top_p);
    real(generation, "top_k", top_k);
    real(generation, "min_p", defaults.min_p);
    real(generation, "repetition_penalty", defaults.repetition_penalty);
    // Sampling switched off outright means greedy, whatever temperature stands beside it.
    const auto sample = generation.get_bool("do_sample", true);
    if (!sample && !fault) fault = sample.error();
    if (sample && !*sample) defaults.temperature = 0;
  }
  defaults.top_k = static_cast<int>(top_k);
  if (fault) return *fault;
  return defaults;
}

}  // namespace xgen::model
