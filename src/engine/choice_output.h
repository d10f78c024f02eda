// ChoiceOutput: one choice's tokens to what its client may see of them: text, log-probabilities, stop strings.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/model_runner.h"
#include "inference/types.h"
#include "text/stop_matcher.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

namespace xgen::engine {

// A token's log-probability as clients get it.
inference::TokenLogprob describe_score(const TokenScore& score, const text::Tokenizer& tokenizer);

class ChoiceOutput {
 public:
  // The text continues that of `prompt`. Stop strings are looked for in the text after the first `min_tokens` tokens.
  ChoiceOutput(std::shared_ptr<const text::Tokenizer> tokenizer, const std::vector<std::string>& stop, int min_tokens,
               std::span<const TokenId> prompt);

  // A token of the text; `score` may be null. Returns the index of the stop string that is complete with it.
  std::optional<std::size_t> push(TokenId token, const TokenScore* score);
  // A token that ends the choice and is not part of its text: it only counts.
  void push_silent() { ++pending_.tokens; }
  // No token follows: whatever was held back becomes part of the text, unless a stop string has matched.
  void end();

  // What can be sent now, if anything. Tokens and their log-probabilities wait until their text can be sent, and those
  // that lie wholly in a stop string are never reported (but counted).
  bool take(inference::Delta& delta);

 private:
  std::shared_ptr<const text::Tokenizer> tokenizer_;
  text::StreamDecoder decoder_;
  text::StopMatcher matcher_;
  int tokens_without_stop_;  // left of them
  bool ended_ = false;
  std::string piece_;  // scratch
  inference::Delta pending_;
  std::vector<std::size_t> starts_;  // of each pending log-probability: bytes decoded before its token
  std::size_t decoded_ = 0;          // bytes of text given to the matcher
  std::size_t released_ = 0;         // bytes of text that became sendable
};

}  // namespace xgen::engine
