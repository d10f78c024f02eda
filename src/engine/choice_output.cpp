#include "engine/choice_output.h"

#include <iterator>
#include <limits>
#include <utility>

namespace xgen::engine {

inference::TokenLogprob describe_score(const TokenScore& score, const text::Tokenizer& tokenizer) {
  inference::TokenLogprob out;
  out.id = score.token;
  out.token = tokenizer.token_bytes(score.token);
  out.logprob = score.logprob;
  for (const auto& [id, logprob] : score.top) out.top.push_back({id, tokenizer.token_bytes(id), logprob});
  return out;
}

ChoiceOutput::ChoiceOutput(std::shared_ptr<const text::Tokenizer> tokenizer, const std::vector<std::string>& stop,
                           int min_tokens, std::span<const TokenId> prompt)
    : tokenizer_(std::move(tokenizer)),
      decoder_(tokenizer_, /*skip_special=*/true),
      matcher_(stop),
      tokens_without_stop_(matcher_.empty() ? std::numeric_limits<int>::max() : min_tokens) {
  decoder_.prime(prompt);
}

std::optional<std::size_t> ChoiceOutput::push(TokenId token, const TokenScore* score) {
  ++pending_.tokens;
  if (score != nullptr) {
    pending_.logprobs.push_back(describe_score(*score, *tokenizer_));
    starts_.push_back(decoded_);
  }
  if (tokens_without_stop_ > 0) {
    --tokens_without_stop_;
    const std::size_t before = pending_.text.size();
    decoder_.push(token, pending_.text);
    decoded_ += pending_.text.size() - before;
    released_ = decoded_;
    return std::nullopt;
  }
  piece_.clear();
  decoder_.push(token, piece_);
  decoded_ += piece_.size();
  text::StopMatcher::Output out = matcher_.push(piece_);
  released_ += out.text.size();
  pending_.text += out.text;
  return out.matched;
}

void ChoiceOutput::end() {
  ended_ = true;
  if (matcher_.done()) {
    // The stop string and what follows it are no part of the text.
    while (!starts_.empty() && starts_.back() >= released_) {
      starts_.pop_back();
      pending_.logprobs.pop_back();
    }
    return;
  }
  std::string rest = decoder_.flush();
  if (tokens_without_stop_ == 0) {
    text::StopMatcher::Output out = matcher_.push(rest);
    rest = std::move(out.text);
    if (!out.matched) rest += matcher_.flush();
  }
  pending_.text += rest;
}

bool ChoiceOutput::take(inference::Delta& delta) {
  if (pending_.text.empty() && !(ended_ && (pending_.tokens > 0 || !pending_.logprobs.empty()))) return false;
  delta = std::exchange(pending_, {});
  std::size_t sendable = delta.logprobs.size();
  while (!ended_ && sendable > 0 && starts_[sendable - 1] >= released_) --sendable;
  const auto held = delta.logprobs.begin() + static_cast<std::ptrdiff_t>(sendable);
  pending_.logprobs.assign(std::make_move_iterator(held), std::make_move_iterator(delta.logprobs.end()));
  delta.logprobs.erase(held, delta.logprobs.end());
  starts_.erase(starts_.begin(), starts_.begin() + static_cast<std::ptrdiff_t>(sendable));
  return true;
}

}  // namespace xgen::engine
