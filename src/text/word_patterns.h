// The word patterns of known tokenizers, as data: tiktoken encodings and GGUF pre-tokenizer names.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/pre_tokenizer.h"

namespace xgen::text {

// GPT-2 (https://github.com/openai/gpt-2), Llama 3 = tiktoken's cl100k_base, Qwen 2, tiktoken's o200k_base.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kO200kPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// tokenizer.ggml.pre of byte-level BPE vocabularies.
struct GgufPreTokenizer {
  std::vector<std::string_view> names;
  std::vector<std::string_view> regexes;  // applied one after the other, matches isolated
  bool ignore_merges = false;
  bool add_bos = false;  // where the file does not say
};
// Null for an unknown name. The empty name is "default".
const GgufPreTokenizer* find_gguf_pre_tokenizer(std::string_view name);

// Appends one split per regex. Errors: invalid_argument.
Status add_split_steps(const std::vector<std::string_view>& regexes, PreTokenizer& out);

}  // namespace xgen::text
