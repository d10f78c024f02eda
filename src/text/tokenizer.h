// Tokenizer: text <-> token ids of one model, whatever file its vocabulary came in.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/file_set.h"
#include "base/result.h"

namespace xgen::text {

using TokenId = std::int32_t;

struct GgufVocab;       // text/gguf_vocab.h
struct TokenizerParts;  // what a loader puts together; internal to this room

struct EncodeOptions {
  bool add_special = true;    // what the model's post-processor adds: bos, eos, [CLS] ... [SEP]
  bool parse_special = true;  // text that spells a special token becomes that token; false: it stays ordinary text
};

// Immutable after loading, and safe to use from any number of threads at once.
//
// Results equal those of Hugging Face `tokenizers` (tokenizer.json, vocab.json + merges.txt), SentencePiece and
// tiktoken (tokenizer.model) or llama.cpp (GGUF). Decoding equals transformers' decode() with
// clean_up_tokenization_spaces=False, but for one point: in a run of byte-fallback tokens that is not valid UTF-8 only
// the invalid parts become U+FFFD, as Python's bytes.decode(errors="replace") has it; else text already sent to a
// client would have to change.
class Tokenizer {
 public:
  // Takes the first of tokenizer.json, tokenizer.model (SentencePiece or tiktoken ranks), *.tiktoken,
  // vocab.json + merges.txt, vocab.txt; then the facts of tokenizer_config.json, special_tokens_map.json,
  // added_tokens.json and chat_template.jinja / chat_template.json where they are. Errors: not_found listing what was
  // looked for; invalid_argument / unsupported naming the file and the place in it.
  static Result<std::shared_ptr<const Tokenizer>> load(const FileSet& files);
  // A GGUF file's vocabulary. The spans need not outlive the call. Errors: as load(), naming the metadata key.
  static Result<std::shared_ptr<const Tokenizer>> from_gguf(const GgufVocab& vocab);
  // One tokenizer.json by its text; `name` is used in messages.
  static Result<std::shared_ptr<const Tokenizer>> from_json(std::string_view json, std::string_view name);

  explicit Tokenizer(std::unique_ptr<TokenizerParts> parts);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Invalid UTF-8 in `text` is read as U+FFFD. The caller bounds the size of the text; time and memory are near linear
  // in it. Text that the vocabulary has neither token, byte token nor unknown token for is left out by BPE, as in
  // `tokenizers`. Errors: invalid_argument for such text in the other models; too_large where a regular expression of
  // the file reaches its limits, or for over 256 MiB.
  Result<std::vector<TokenId>> encode(std::string_view text, EncodeOptions options = {}) const;

  // Ids outside the vocabulary contribute nothing. The result is valid UTF-8.
  std::string decode(std::span<const TokenId> ids, bool skip_special) const;

  // The piece as the vocabulary spells it ("\u2581the", "\u0120the", "##ing", "<0x0A>"); empty if there is no such id.
  std::string_view token_text(TokenId id) const;
  // The bytes that the token contributes inside a text (for log-probabilities); may be part of a UTF-8 character.
  std::string token_bytes(TokenId id) const;
  std::optional<TokenId> find_token(std::string_view piece) const;
  // One more than the largest id, added tokens included; some ids below may be unused.
  std::int32_t vocab_size() const;
  // Special tokens (<s>, <|im_end|>, ...), which decode() leaves out with skip_special.
  bool is_special(TokenId id) const;

  std::optional<TokenId> bos_id() const;
  std::optional<TokenId> eos_id() const;
  std::optional<TokenId> pad_id() const;
  std::optional<TokenId> unk_id() const;
  // Whether encode(add_special) puts bos at the front; a caller whose template already wrote it encodes without.
  bool adds_bos() const;

  // "bos_token" -> "<s>", "eos_token", "pad_token", "unk_token", ... : the names that chat templates use.
  const std::vector<std::pair<std::string, std::string>>& special_tokens() const;

  // The chat template's source by name; "default" is the one for plain chats. Null if the files have none.
  const std::string* chat_template(std::string_view name = "default") const;
  // All of them: name -> source, the default first.
  const std::vector<std::pair<std::string, std::string>>& chat_templates() const;

  // Internal to this room: StreamDecoder reads the decoder's stages from here.
  const TokenizerParts& parts() const { return *parts_; }

 private:
  std::unique_ptr<TokenizerParts> parts_;
};

}  // namespace xgen::text
