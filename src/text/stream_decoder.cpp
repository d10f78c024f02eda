#include "text/stream_decoder.h"

#include "base/utf8.h"
#include "text/tokenizer_parts.h"

namespace xgen::text {

struct StreamDecoder::State {
  State(std::shared_ptr<const Tokenizer> t, bool skip)
      : tokenizer(std::move(t)), run(tokenizer->parts().decoder), skip_special(skip) {}

  void push(TokenId id) {
    const TokenizerParts& parts = tokenizer->parts();
    if (!parts.has(id) || (skip_special && tokenizer->is_special(id))) return;
    run.push(parts.piece(id), bytes);
  }
  // Moves what is final from bytes to out.
  void emit(bool all, std::string& out) {
    const std::size_t n = all ? bytes.size() : complete_utf8_prefix(bytes);
    const std::string_view text = std::string_view(bytes).substr(0, n);
    if (is_valid_utf8(text)) {
      out += text;
    } else {
      out += replace_invalid_utf8(text);
    }
    bytes.erase(0, n);
  }

  std::shared_ptr<const Tokenizer> tokenizer;
  DecoderRun run;
  bool skip_special;
  std::string bytes;  // decoded, not given out: at most an unfinished character between calls
};

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special)
    : state_(std::make_unique<State>(std::move(tokenizer), skip_special)) {}
StreamDecoder::~StreamDecoder() = default;
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;

void StreamDecoder::prime(std::span<const TokenId> prompt) {
  // More than any decoder looks back on: an unfinished character, the end of a word, a run of skipped tokens.
  constexpr std::size_t kLookBack = 64;
  std::string given;
  for (const TokenId id : prompt.last(std::min(prompt.size(), kLookBack))) push(id, given);
}

void StreamDecoder::push(TokenId id, std::string& out) {
  state_->push(id);
  state_->emit(false, out);
}

std::string StreamDecoder::push(TokenId id) {
  std::string out;
  push(id, out);
  return out;
}

std::string StreamDecoder::flush() {
  std::string out;
  state_->run.flush(state_->bytes);
  state_->emit(true, out);
  return out;
}

}  // namespace xgen::text
