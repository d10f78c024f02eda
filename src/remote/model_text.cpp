#include "remote/model_text.h"

#include <exception>
#include <utility>

namespace xgen::remote {
namespace {

using inference::Message;

// Longer texts are worked on by a thread of their own.
constexpr std::size_t kInlineBytes = 8 << 10;
constexpr std::size_t kInlineIds = kInlineBytes / 4;
constexpr std::size_t kMaxQueued = 64;

std::string bos_text(const text::Tokenizer& tokenizer) {
  if (!tokenizer.adds_bos()) return {};
  for (const auto& [name, token] : tokenizer.special_tokens())
    if (name == "bos_token") return token;
  return {};
}

std::size_t text_bytes(const inference::Prompt& prompt) {
  if (const auto* text = std::get_if<std::string>(&prompt)) return text->size();
  std::size_t bytes = 0;
  if (const auto* messages = std::get_if<std::vector<Message>>(&prompt))
    for (const Message& message : *messages) bytes += message.content.size() + message.reasoning.size();
  return bytes;
}

Error busy() {
  Error error = make_error(ErrorCode::overloaded, "Too many long texts are waiting to be tokenized.");
  error.retry_after_s = 1;
  return error;
}

// What is thrown on the other thread would leave the caller without an answer.
template <class T, class Work>
Result<T> contained(Work work) {
  try {
    return work();
  } catch (const std::exception& fault) {
    return make_error(ErrorCode::internal, std::string("The text cannot be worked on: ") + fault.what());
  }
}

}  // namespace

ModelText::ModelText(std::shared_ptr<const text::Tokenizer> tokenizer, ChatRenderer render)
    : tokenizer_(std::move(tokenizer)), render_(std::move(render)), bos_(bos_text(*tokenizer_)), prep_(kMaxQueued) {}

Result<std::string> ModelText::render(const std::vector<Message>& messages, bool add_generation_prompt) const {
  if (!render_)
    return make_error(ErrorCode::unsupported, "This model has no chat template; use /v1/completions.", "messages");
  if (messages.empty()) return make_error(ErrorCode::invalid_argument, "messages must not be empty.", "messages");
  auto text = render_(messages, add_generation_prompt);
  if (text) return text;
  Error error = std::move(text).error();
  if (error.param.empty()) error.param = "messages";
  // What a template says may repeat the messages.
  error.received = ": " + std::exchange(error.message, "The chat template cannot render these messages");
  return error;
}

Result<std::string> ModelText::chat_text(const std::vector<Message>& messages) const {
  auto text = render(messages, true);
  if (text && !bos_.empty() && text->starts_with(bos_)) text->erase(0, bos_.size());
  return text;
}

void ModelText::count_async(std::string text, const std::function<void(int)>& done) const {
  const bool at_once = text.size() <= kInlineBytes;
  auto count = [this, text = std::move(text), done] {
    const auto ids = contained<std::vector<text::TokenId>>([&] { return tokenizer_->encode(text); });
    done(ids ? static_cast<int>(ids->size()) : 0);
  };
  if (at_once)
    count();
  else if (!prep_.post(std::move(count)))
    done(0);
}

Result<inference::Tokenized> ModelText::tokenize(const inference::TokenizeRequest& request) const {
  inference::Tokenized out;
  if (const auto* ids = std::get_if<std::vector<inference::TokenId>>(&request.prompt)) {
    out.ids = *ids;
  } else {
    const auto* messages = std::get_if<std::vector<Message>>(&request.prompt);
    auto text = messages == nullptr ? Result<std::string>(std::get<std::string>(request.prompt))
                                    : render(*messages, request.add_generation_prompt);
    if (!text) return std::move(text).error();
    auto encoded = tokenizer_->encode(*text, {messages == nullptr && request.add_special_tokens, true});
    if (!encoded) {
      Error error = std::move(encoded).error();
      if (error.param.empty()) error.param = messages == nullptr ? "prompt" : "messages";
      return error;
    }
    out.ids = *std::move(encoded);
  }
  out.tokens.reserve(out.ids.size());
  for (const inference::TokenId id : out.ids) out.tokens.push_back(tokenizer_->token_bytes(id));
  return out;
}

void ModelText::tokenize_async(inference::TokenizeRequest request,
                               const std::function<void(Result<inference::Tokenized>)>& done) const {
  const bool at_once = text_bytes(request.prompt) <= kInlineBytes;
  auto work = [this, request = std::move(request), done] {
    done(contained<inference::Tokenized>([&] { return tokenize(request); }));
  };
  if (at_once)
    work();
  else if (!prep_.post(std::move(work)))
    done(busy());
}

void ModelText::detokenize_async(inference::DetokenizeRequest request,
                                 const std::function<void(Result<std::string>)>& done) const {
  for (const inference::TokenId id : request.ids)
    if (id < 0 || id >= tokenizer_->vocab_size())
      return done(make_error(ErrorCode::invalid_argument,
                             "tokens has the id " + std::to_string(id) + "; the model knows 0 to " +
                                 std::to_string(tokenizer_->vocab_size() - 1) + ".",
                             "tokens"));
  const bool at_once = request.ids.size() <= kInlineIds;
  auto work = [this, ids = std::move(request.ids), done] {
    done(contained<std::string>([&]() -> Result<std::string> { return tokenizer_->decode(ids, false); }));
  };
  if (at_once)
    work();
  else if (!prep_.post(std::move(work)))
    done(busy());
}

}  // namespace xgen::remote
