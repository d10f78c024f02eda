#include "engine/load_tokenizer.h"

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/gguf_vocab.h"
#include "weights/tensor_store.h"

namespace xgen::engine {
namespace {

Error wrong_kind(const weights::Metadata& metadata, std::string_view key, std::string_view expected) {
  return make_error(ErrorCode::invalid_argument, std::string(metadata.source()) + ": " + std::string(key) +
                                                     " should be " + std::string(expected) + ".");
}

// A key that may be absent, but has the right type where it is there.
template <class T, class Read>
Status read_optional(const weights::Metadata& metadata, std::string_view key, std::optional<T>& out, Read read) {
  if (!metadata.has(key)) return {};
  auto value = read(metadata, key);
  if (!value.ok()) return value.error();
  out = *value;
  return {};
}

}  // namespace

Result<std::shared_ptr<const text::Tokenizer>> gguf_tokenizer(const weights::Metadata& metadata) {
  text::GgufVocab vocab;
  std::vector<float> scores;
  std::vector<std::int32_t> types;
  std::vector<std::uint8_t> charsmap;

  const auto model = metadata.get_string("tokenizer.ggml.model");
  if (!model.ok()) return model.error();
  vocab.model = *model;
  const auto pre = metadata.get_string("tokenizer.ggml.pre", "");
  if (!pre.ok()) return pre.error();
  vocab.pre = *pre;
  const auto chat_template = metadata.get_string("tokenizer.chat_template", "");
  if (!chat_template.ok()) return chat_template.error();
  vocab.chat_template = *chat_template;

  // The handles keep the arrays that they point to.
  const weights::Metadata tokens = metadata.get("tokenizer.ggml.tokens");
  const weights::Metadata merges = metadata.get("tokenizer.ggml.merges");
  if (tokens.strings() == nullptr) return wrong_kind(metadata, "tokenizer.ggml.tokens", "a list of strings");
  vocab.tokens = *tokens.strings();
  if (!merges.is_null()) {
    if (merges.strings() == nullptr) return wrong_kind(metadata, "tokenizer.ggml.merges", "a list of strings");
    vocab.merges = *merges.strings();
  }
  const auto copy_numbers = [&metadata](std::string_view key, auto& out, auto convert) -> Status {
    const weights::Metadata value = metadata.get(key);
    if (value.is_null()) return {};
    const weights::NumberArray* numbers = value.numbers();
    if (numbers == nullptr) return wrong_kind(metadata, key, "a list of numbers");
    out.resize(numbers->size());
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = convert(*numbers, i);
    return {};
  };
  Status status = copy_numbers("tokenizer.ggml.scores", scores, [](const weights::NumberArray& n, std::size_t i) {
    return static_cast<float>(n.number(i));
  });
  if (!status.ok()) return status.error();
  status = copy_numbers("tokenizer.ggml.token_type", types, [](const weights::NumberArray& n, std::size_t i) {
    return static_cast<std::int32_t>(n.integer(i));
  });
  if (!status.ok()) return status.error();
  // Some writers store the bytes as signed ones.
  status = copy_numbers(
      "tokenizer.ggml.precompiled_charsmap", charsmap,
      [](const weights::NumberArray& n, std::size_t i) { return static_cast<std::uint8_t>(n.integer(i)); });
  if (!status.ok()) return status.error();
  vocab.scores = scores;
  vocab.types = types;
  vocab.precompiled_charsmap = charsmap;

  const auto get_int = [](const weights::Metadata& m, std::string_view key) { return m.get_int(key); };
  const auto get_bool = [](const weights::Metadata& m, std::string_view key) { return m.get_bool(key); };
  const std::pair<std::string_view, std::optional<std::int64_t>*> ids[] = {
      {"tokenizer.ggml.bos_token_id", &vocab.bos_id},
      {"tokenizer.ggml.eos_token_id", &vocab.eos_id},
      {"tokenizer.ggml.eot_token_id", &vocab.eot_id},
      {"tokenizer.ggml.unknown_token_id", &vocab.unk_id},
      {"tokenizer.ggml.padding_token_id", &vocab.pad_id},
      {"tokenizer.ggml.seperator_token_id", &vocab.sep_id},  // spelled so in the specification
      {"tokenizer.ggml.cls_token_id", &vocab.cls_id},
      {"tokenizer.ggml.mask_token_id", &vocab.mask_id},
  };
  for (const auto& [key, target] : ids) {
    if (status = read_optional(metadata, key, *target, get_int); !status.ok()) return status.error();
  }
  const std::pair<std::string_view, std::optional<bool>*> flags[] = {
      {"tokenizer.ggml.add_bos_token", &vocab.add_bos},
      {"tokenizer.ggml.add_eos_token", &vocab.add_eos},
      {"tokenizer.ggml.add_sep_token", &vocab.add_sep},
      {"tokenizer.ggml.add_space_prefix", &vocab.add_space_prefix},
      {"tokenizer.ggml.remove_extra_whitespaces", &vocab.remove_extra_whitespaces},
  };
  for (const auto& [key, target] : flags) {
    if (status = read_optional(metadata, key, *target, get_bool); !status.ok()) return status.error();
  }
  return text::Tokenizer::from_gguf(vocab);
}

Result<std::shared_ptr<const text::Tokenizer>> load_tokenizer(const FileSet& files) {
  const std::vector<std::string> names = files.list();
  const bool has_gguf =
      std::any_of(names.begin(), names.end(), [](const std::string& name) { return name.ends_with(".gguf"); });
  const bool has_own = files.has("tokenizer.json") || files.has("tokenizer.model");
  if (!has_gguf || has_own) return text::Tokenizer::load(files);
  const Result<weights::TensorStore> store = weights::open_gguf(files);
  if (!store.ok()) return store.error();
  return gguf_tokenizer(store->metadata());
}

}  // namespace xgen::engine
