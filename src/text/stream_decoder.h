// StreamDecoder: token ids to text, one at a time, without ever taking back what it gave.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "text/tokenizer.h"

namespace xgen::text {

// What push() and flush() return joins to exactly tokenizer.decode(ids, skip_special). Each piece is valid UTF-8: an
// unfinished character waits for its remaining bytes, and becomes U+FFFD where they do not come. Amortised O(1) per
// token. Not thread-safe; one per choice of one request.
class StreamDecoder {
 public:
  StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special);
  ~StreamDecoder();
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;

  // Takes the prompt before the first push(), so that the text continues it: several decoders treat the first token of
  // a text differently (the leading space of "\u2581the", WordPiece). Only its last few tokens are looked at, so the
  // cost does not grow with the prompt. Without prime() the first push()ed token is the text's first.
  void prime(std::span<const TokenId> prompt);

  // The text that became final with this token; often empty, sometimes more than one token's.
  std::string push(TokenId id);
  // As push(), appending to `out` (no allocation where its capacity suffices).
  void push(TokenId id, std::string& out);

  // The rest, once no token follows. The decoder then starts afresh, as after construction.
  std::string flush();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace xgen::text
