// What a loader puts together to make a Tokenizer. Internal to this room.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/result.h"
#include "text/byte_trie.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/token_decoder.h"
#include "text/token_model.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

namespace xgen::text {

// A token that is found in the text before the model sees it.
struct AddedToken {
  std::string content;
  std::int32_t id = kNoToken;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the blanks before it
  bool rstrip = false;       // ... and after it
  bool normalized = true;    // looked for in the normalized text
  bool special = false;
};

class Fields;
// One entry of tokenizer.json's added_tokens or tokenizer_config.json's added_tokens_decoder; all but its id.
Status read_added_token(const Fields& fields, AddedToken& token);

struct TokenizerParts {
  std::string name;  // of the file, for messages
  Vocab vocab;       // the model's own pieces
  Vocab extra;       // added tokens that the model does not have
  std::vector<AddedToken> added;
  std::unordered_map<std::int32_t, std::size_t> added_index;  // id -> index into added
  ByteTrie raw_matcher, normalized_matcher;                   // content -> index into added
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<TokenModel> model;
  std::vector<std::int32_t> prefix, suffix;  // what add_special puts around the text
  std::vector<DecoderStage> decoder;
  std::vector<std::uint8_t> special;  // per id
  std::optional<std::int32_t> bos, eos, pad, unk;
  std::vector<std::pair<std::string, std::string>> special_tokens;
  std::vector<std::pair<std::string, std::string>> chat_templates;
  // Set by tokenizer_config.json; used where the vocabulary's own file does not say.
  std::optional<bool> add_bos, add_eos;

  std::string_view piece(std::int32_t id) const {
    if (extra.has(id)) return extra.piece(id);
    return vocab.has(id) ? vocab.piece(id) : std::string_view();
  }
  bool has(std::int64_t id) const { return extra.has(id) || vocab.has(id); }
  std::int32_t find(std::string_view text) const {
    const std::int32_t id = extra.find(text);
    return id >= 0 ? id : vocab.find(text);
  }
  std::int32_t size() const { return std::max(vocab.size(), extra.size()); }

  // Registers `token`; the model's id for the same text wins over token.id. A later token of the same text replaces the
  // earlier one's flags. Errors: invalid_argument for ids out of range.
  Status add_token(AddedToken token);
  // Builds what depends on all parts together: the matchers, the special flags, the special-token ids.
  Status finish();
};

// SentencePiece's piece types; GGUF's token types are the same numbers.
enum class PieceType : std::uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

// A SentencePiece vocabulary, from tokenizer.model or GGUF.
struct SentencePieceParts {
  std::vector<float> scores;     // per id
  std::vector<PieceType> types;  // per id
  bool unigram = false;          // else BPE
  bool byte_fallback = false;
  bool add_dummy_prefix = true, remove_extra_whitespaces = true, escape_whitespaces = true;
  std::shared_ptr<const Charsmap> charsmap;
  // llama.cpp takes user-defined pieces out of the text first; SentencePiece finds them in the normalized text.
  bool user_defined_as_added = false;
};
// Fills normalizer, model, decoder and the added tokens. Precondition: parts.vocab is indexed, parts.unk set.
Status make_sentencepiece(SentencePieceParts spm, TokenizerParts& parts);

// The loaders. Each fills everything but finish(); `name` is the file's, for messages.
Status load_tokenizer_json(std::string_view json, TokenizerParts& parts);
Status load_sentencepiece(std::string_view protobuf, TokenizerParts& parts);
Status load_tiktoken(std::string_view ranks, std::string_view file_name, TokenizerParts& parts);
bool looks_like_tiktoken(std::string_view data);
// GPT-2's files. `config` is tokenizer_config.json's text or empty; it may name the tokenizer class.
Status load_vocab_and_merges(std::string_view vocab_json, std::string_view merges, std::string_view config,
                             TokenizerParts& parts);
Status load_wordpiece_vocab(std::string_view vocab_txt, std::string_view config, TokenizerParts& parts);
Status load_gguf(const GgufVocab& vocab, TokenizerParts& parts);

// The facts beside the vocabulary. Each reads one file's text.
Status read_tokenizer_config(std::string_view json, TokenizerParts& parts);
Status read_special_tokens_map(std::string_view json, TokenizerParts& parts);
Status read_added_tokens(std::string_view json, TokenizerParts& parts);

// SentencePiece's decoder as transformers writes it: U+2581 -> blank, byte tokens, one blank less at the beginning.
std::vector<DecoderStage> sentencepiece_decoder(bool strip_first_blank);
DecoderStage decoder_stage(DecoderStage::Kind kind, std::string pattern = {}, std::string content = {});

}  // namespace xgen::text
