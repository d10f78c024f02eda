// TokenModel: one word (or a whole text) to token ids: BPE, Unigram, WordPiece.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/byte_trie.h"
#include "text/vocab.h"

namespace xgen::text {

constexpr std::int32_t kNoToken = -1;

// Working memory of one encode() call, reused from word to word.
struct Scratch {
  struct Symbol {
    std::int32_t id;
    std::uint32_t begin, length;  // bytes of the word
    std::int32_t prev, next;      // indices; -1 = none
    std::uint32_t rank;           // of the merge with the next symbol
  };
  struct Candidate {
    std::uint32_t rank;
    std::int32_t left;
    std::int32_t id;       // what the merge makes
    std::uint32_t length;  // bytes of both symbols when it was queued
  };
  struct Step {  // Unigram's lattice: the best way to reach a byte
    double score;
    std::int32_t id;
    std::int32_t from;
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
  std::vector<Step> lattice;
  std::string mapped;
};

class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // Appends the ids of `word`. Precondition: `word` is at most 1 GiB. Errors: invalid_argument (no token for a part of
  // it and no unknown token).
  virtual Status encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const = 0;
};

// What stands for text that the vocabulary does not hold.
struct Unknown {
  std::int32_t id = kNoToken;
  bool fuse = false;                    // neighbours become one
  bool byte_fallback = false;           // bytes instead, where all of them have a token
  std::array<std::int32_t, 256> bytes;  // "<0x00>" .. "<0xFF>"; kNoToken where there is none
  Unknown() { bytes.fill(kNoToken); }
  void find_bytes(const Vocab& vocab);
};

// Byte pair encoding. Ranks come either from a table of pairs (Hugging Face, GPT-2) or from the pieces themselves
// (SentencePiece scores, tiktoken ranks): `piece_ranks`, smaller first, kNever = not made by merging.
class BpeModel final : public TokenModel {
 public:
  static constexpr std::uint32_t kNever = 0xFFFFFFFFu;

  struct Options {
    bool byte_level = false;     // words are raw bytes, pieces are spelt in GPT-2's printable alphabet
    bool raw_bytes = false;      // pieces are the bytes themselves (tiktoken)
    bool ignore_merges = false;  // a word that is a piece needs no merging
    std::string subword_prefix;  // put before every symbol but the first
    std::string word_suffix;     // put after the last symbol
    Unknown unknown;
    std::vector<std::int32_t> frozen;  // user-defined pieces: found first, longest first, never merged
  };

  // Precondition: the vocabulary is indexed and outlives the model.
  BpeModel(const Vocab& vocab, Options options);

  // The table of merges, best first. Of a pair named twice the last counts.
  struct NamedMerge {
    std::int32_t left, right, merged;  // ids
  };
  void set_merges(std::span<const NamedMerge> merges);
  void set_piece_ranks(std::vector<std::uint32_t> ranks);

  Status encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const override;

 private:
  struct Merge {
    std::uint64_t key = ~std::uint64_t{0};
    std::uint32_t rank = kNever;
    std::int32_t id = kNoToken;
  };
  struct Found {
    std::uint32_t rank;
    std::int32_t id;
  };
  Found find_merge(std::int32_t left, std::int32_t right) const;
  Found candidate(std::string_view word, const Scratch::Symbol& left, const Scratch::Symbol& right) const;
  Status encode_word(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  void split(std::string_view word, Scratch& scratch) const;
  void merge_short(std::string_view word, Scratch& scratch) const;
  void merge_long(std::string_view word, Scratch& scratch) const;
  void emit(std::string_view word, const Scratch& scratch, std::vector<std::int32_t>& ids) const;

  const Vocab& vocab_;
  Options options_;
  std::array<std::int32_t, 256>
      byte_ids_;  // of single bytes: their own pieces (byte_level, raw_bytes) or ASCII characters
  ByteTrie frozen_;
  // No piece has U+2581 after another character, so no merge crosses such a border: a text without words
  // (SentencePiece) may be cut there.
  bool cut_at_metaspace_ = false;
  std::vector<Merge> merges_;
  std::vector<std::uint32_t> piece_ranks_;
  // Per piece: does merging its own text give it back? 0 not known yet, 1 yes, 2 no. Found out when first met, so that
  // most words cost one look-up; relaxed atomics suffice, since every thread finds the same answer.
  mutable std::unique_ptr<std::atomic<std::uint8_t>[]> whole_;
};

// Unigram language model (Kudo 2018): the most probable segmentation, by Viterbi.
class UnigramModel final : public TokenModel {
 public:
  struct Options {
    Unknown unknown;
    bool single_precision = false;    // SentencePiece adds in float, Hugging Face in double
    std::vector<std::uint8_t> types;  // per id: 0 normal, 1 left out, 2 user defined; empty = all normal
  };
  UnigramModel(const Vocab& vocab, std::vector<double> scores, Options options);
  Status encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const override;

 private:
  template <class Real>
  Status run(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const;

  const Vocab& vocab_;
  Options options_;
  std::vector<double> scores_;
  double unknown_score_ = 0;
  ByteTrie trie_;
};

// WordPiece (Schuster & Nakajima 2012): greedy longest match from the left.
class WordPieceModel final : public TokenModel {
 public:
  struct Options {
    std::int32_t unknown = kNoToken;
    std::string first_prefix;  // "" in tokenizer.json, U+2581 in GGUF
    std::string subword_prefix = "##";
    std::size_t max_chars = 100;  // longer words are unknown
  };
  WordPieceModel(const Vocab& vocab, Options options);
  Status encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const override;

 private:
  const Vocab& vocab_;
  Options options_;
  std::size_t longest_ = 0;  // bytes
};

// One id per word, by look-up ("WordLevel").
class WordLevelModel final : public TokenModel {
 public:
  WordLevelModel(const Vocab& vocab, std::int32_t unknown) : vocab_(vocab), unknown_(unknown) {}
  Status encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const override;

 private:
  const Vocab& vocab_;
  std::int32_t unknown_;
};

// GPT-2's printable alphabet: byte -> its character as UTF-8 (1 or 2 bytes).
std::string_view byte_level_char(unsigned char byte);
// The byte that the code point stands for; -1 if none.
int byte_level_byte(char32_t c);
void append_byte_level(std::string& out, std::string_view bytes);

}  // namespace xgen::text
