// GgufVocab: the tokenizer.ggml.* metadata of a GGUF file, handed over as views (text/ does not read GGUF itself).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace xgen::text {

// Field = metadata key of the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
struct GgufVocab {
  std::string_view model;                    // tokenizer.ggml.model: "llama", "gpt2", "bert", "t5"
  std::string_view pre;                      // tokenizer.ggml.pre; empty = absent
  std::span<const std::string_view> tokens;  // tokenizer.ggml.tokens; index = token id
  std::span<const float> scores;             // tokenizer.ggml.scores; empty or one per token
  std::span<const std::int32_t> types;       // tokenizer.ggml.token_type; empty or one per token (1 normal, 2 unknown,
                                             // 3 control, 4 user defined, 5 unused, 6 byte)
  std::span<const std::string_view> merges;  // tokenizer.ggml.merges: "a b"
  std::optional<std::int64_t> bos_id, eos_id, eot_id, unk_id, pad_id, sep_id, cls_id, mask_id;  // ..._token_id
  std::optional<bool> add_bos, add_eos, add_sep;       // tokenizer.ggml.add_{bos,eos,sep}_token
  std::optional<bool> add_space_prefix;                // tokenizer.ggml.add_space_prefix
  std::optional<bool> remove_extra_whitespaces;        // tokenizer.ggml.remove_extra_whitespaces
  std::span<const std::uint8_t> precompiled_charsmap;  // tokenizer.ggml.precompiled_charsmap
  std::string_view chat_template;                      // tokenizer.chat_template; empty = absent
};

}  // namespace xgen::text
