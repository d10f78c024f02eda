#include "support/stories260k.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/bytes.h"
#include "support/memory_files.h"

namespace xgen::test {
namespace {

// llama2.c's version 0 export: seven int32, then F32 tensors one after another.
struct Header {
  std::int32_t dim, hidden, layers, heads, kv_heads, vocab, seq_len;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> data) : data_(data) {}
  template <class T>
  bool read(T& value) {
    if (data_.size() - at_ < sizeof value) return false;
    std::memcpy(&value, data_.data() + at_, sizeof value);
    at_ += sizeof value;
    return true;
  }
  bool floats(std::size_t n, std::vector<float>& values) {
    if ((data_.size() - at_) / sizeof(float) < n) return false;
    values.resize(n);
    std::memcpy(values.data(), data_.data() + at_, n * sizeof(float));
    at_ += n * sizeof(float);
    return true;
  }
  bool text(std::size_t n, std::string& value) {
    if (data_.size() - at_ < n) return false;
    value.assign(reinterpret_cast<const char*>(data_.data()) + at_, n);
    at_ += n;
    return true;
  }
  bool at_end() const { return at_ == data_.size(); }

 private:
  std::span<const std::byte> data_;
  std::size_t at_ = 0;
};

// llama2.c rotates pairs (2j, 2j+1) of a head, Hugging Face pairs (j, j + head_dim/2).
std::vector<float> to_half_split(const std::vector<float>& rows, std::size_t heads, std::size_t head_dim,
                                 std::size_t width) {
  std::vector<float> out(rows.size());
  for (std::size_t h = 0; h < heads; ++h) {
    for (std::size_t r = 0; r < head_dim; ++r) {
      const std::size_t to = r % 2 * (head_dim / 2) + r / 2;
      std::memcpy(&out[(h * head_dim + to) * width], &rows[(h * head_dim + r) * width], width * sizeof(float));
    }
  }
  return out;
}

Result<std::string> convert_weights(Reader& in, const Header& h, const std::string& path) {
  const auto dim = static_cast<std::size_t>(h.dim);
  const auto hidden = static_cast<std::size_t>(h.hidden);
  const auto heads = static_cast<std::size_t>(h.heads);
  const auto kv_heads = static_cast<std::size_t>(h.kv_heads);
  const std::size_t head_dim = dim / heads;
  const std::size_t kv_dim = kv_heads * head_dim;

  std::vector<Tensor> tensors;
  bool ok = true;
  const auto take = [&](const std::string& name, std::size_t rows, std::size_t cols, std::size_t rope_heads = 0) {
    std::vector<float> values;
    ok = ok && in.floats(rows * cols, values);
    if (!ok) return;
    if (rope_heads > 0) values = to_half_split(values, rope_heads, head_dim, cols);
    const auto n = static_cast<std::int64_t>(cols);
    tensors.push_back(
        f32_tensor(name, rows == 1 ? make_shape({n}) : make_shape({static_cast<std::int64_t>(rows), n}), values));
  };
  // Each kind of tensor lies there for all layers before the next kind.
  const auto take_layers = [&](const std::string& name, std::size_t rows, std::size_t cols,
                               std::size_t rope_heads = 0) {
    for (int i = 0; i < h.layers; ++i) {
      take("model.layers." + std::to_string(i) + "." + name + ".weight", rows, cols, rope_heads);
    }
  };
  take("model.embed_tokens.weight", static_cast<std::size_t>(h.vocab), dim);
  take_layers("input_layernorm", 1, dim);
  take_layers("self_attn.q_proj", dim, dim, heads);
  take_layers("self_attn.k_proj", kv_dim, dim, kv_heads);
  take_layers("self_attn.v_proj", kv_dim, dim);
  take_layers("self_attn.o_proj", dim, dim);
  take_layers("post_attention_layernorm", 1, dim);
  take_layers("mlp.gate_proj", hidden, dim);
  take_layers("mlp.down_proj", dim, hidden);
  take_layers("mlp.up_proj", hidden, dim);
  take("model.norm.weight", 1, dim);
  if (!ok) return make_error(ErrorCode::invalid_argument, path + ": too short");
  return write_safetensors(tensors);
}

// ---- tokenizer.model: SentencePiece's ModelProto, field by field (sentencepiece_model.proto).

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}
void put_number(std::string& out, std::uint32_t field, std::uint64_t value) {
  put_varint(out, field << 3);
  put_varint(out, value);
}
void put_bytes(std::string& out, std::uint32_t field, const std::string& value) {
  put_varint(out, field << 3 | 2);
  put_varint(out, value.size());
  out += value;
}
void put_float(std::string& out, std::uint32_t field, float value) {
  put_varint(out, field << 3 | 5);
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

enum PieceType : std::uint32_t { kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6 };

Result<std::string> convert_tokenizer(std::span<const std::byte> file, const std::string& path, std::int32_t vocab) {
  Reader in(file);
  std::int32_t longest = 0;
  bool ok = in.read(longest);
  std::string proto;
  for (std::int32_t id = 0; ok && id < vocab; ++id) {
    float score = 0;
    std::int32_t length = 0;
    std::string text;
    ok = in.read(score) && in.read(length) && length >= 0 && in.text(static_cast<std::size_t>(length), text);
    PieceType type = kNormal;
    if (id == 0) {
      type = kUnknown;
    } else if (id <= 2) {
      type = kControl;
      text = id == 1 ? "<s>" : "</s>";  // llama2.c stores them with line feeds around
    } else if (id < 259) {
      type = kByte;
    } else {
      std::string escaped;  // llama2.c stores spaces for SentencePiece's U+2581
      for (const char c : text) escaped += c == ' ' ? std::string("\xE2\x96\x81") : std::string(1, c);
      text = std::move(escaped);
    }
    std::string piece;
    put_bytes(piece, 1, text);
    put_float(piece, 2, score);
    put_number(piece, 3, type);
    put_bytes(proto, 1, piece);
  }
  if (!ok || !in.at_end()) return make_error(ErrorCode::invalid_argument, path + ": not a vocabulary of llama2.c");
  std::string trainer;
  put_number(trainer, 3, 2);  // model_type = BPE
  put_number(trainer, 4, static_cast<std::uint64_t>(vocab));
  put_number(trainer, 35, 1);  // byte_fallback
  put_number(trainer, 40, 0);  // unk, bos, eos
  put_number(trainer, 41, 1);
  put_number(trainer, 42, 2);
  put_bytes(proto, 2, trainer);
  std::string normalizer;
  put_bytes(normalizer, 1, "identity");
  put_number(normalizer, 3, 1);  // add_dummy_prefix
  put_number(normalizer, 4, 0);  // remove_extra_whitespaces
  put_number(normalizer, 5, 1);  // escape_whitespaces
  put_bytes(proto, 3, normalizer);
  return proto;
}

}  // namespace

Result<std::map<std::string, std::string>> convert_stories260k(const std::string& folder) {
  const std::string model_path = folder + "/stories260K.bin";
  const std::string tokenizer_path = folder + "/tok512.bin";
  const auto model = map_file(model_path);
  if (!model) return model.error();
  const auto tokenizer = map_file(tokenizer_path);
  if (!tokenizer) return tokenizer.error();

  Reader in(model->span());
  Header h{};
  const auto is_size = [](std::int32_t n) { return n > 0 && n < 1 << 16; };
  if (!in.read(h) || !is_size(h.dim) || !is_size(h.hidden) || !is_size(h.layers) || !is_size(h.heads) ||
      !is_size(h.kv_heads) || !is_size(h.vocab) || !is_size(h.seq_len) || h.dim % h.heads != 0) {
    return make_error(ErrorCode::invalid_argument, model_path + ": not a llama2.c checkpoint with tied embeddings");
  }
  const auto weights = convert_weights(in, h, model_path);
  if (!weights) return weights.error();
  const auto vocabulary = convert_tokenizer(tokenizer->span(), tokenizer_path, h.vocab);
  if (!vocabulary) return vocabulary.error();

  const auto field = [](const char* key, int value) {
    return std::string("  \"") + key + "\": " + std::to_string(value) + ",\n";
  };
  std::map<std::string, std::string> files;
  files["config.json"] =
      "{\n  \"architectures\": [\"LlamaForCausalLM\"],\n  \"model_type\": \"llama\",\n" + field("vocab_size", h.vocab) +
      field("hidden_size", h.dim) + field("intermediate_size", h.hidden) + field("num_hidden_layers", h.layers) +
      field("num_attention_heads", h.heads) + field("num_key_value_heads", h.kv_heads) +
      field("max_position_embeddings", h.seq_len) + field("bos_token_id", 1) + field("eos_token_id", 2) +
      "  \"hidden_act\": \"silu\",\n  \"rms_norm_eps\": 1e-05,\n  \"rope_theta\": 10000.0,\n"
      "  \"tie_word_embeddings\": true\n}\n";
  files["model.safetensors"] = *weights;
  files["tokenizer.model"] = *vocabulary;
  files["tokenizer_config.json"] =
      "{\n  \"tokenizer_class\": \"LlamaTokenizer\",\n  \"add_bos_token\": true,\n  \"add_eos_token\": false,\n"
      "  \"bos_token\": \"<s>\",\n  \"eos_token\": \"</s>\",\n  \"unk_token\": \"<unk>\"\n}\n";
  return files;
}

}  // namespace xgen::test
