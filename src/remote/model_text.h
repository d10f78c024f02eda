// ModelText: the tokenizer and chat template, on this side, of a model whose engine takes nothing but text.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/prep_thread.h"
#include "base/result.h"
#include "inference/model_service.h"
#include "text/tokenizer.h"

namespace xgen::remote {

// Messages to the text of a prompt. Errors: invalid_argument with what the template says of them.
using ChatRenderer =
    std::function<Result<std::string>(const std::vector<inference::Message>& messages, bool add_generation_prompt)>;

// Thread-safe. What takes long runs on a thread of its own; `done` is called once, possibly before the call returns.
class ModelText {
 public:
  // `render`: empty where the model has no chat template.
  ModelText(std::shared_ptr<const text::Tokenizer> tokenizer, ChatRenderer render);

  bool has_chat() const { return static_cast<bool>(render_); }
  // The text to send for messages, to an engine that adds the special tokens of a text by itself: it begins after the
  // bos token. Errors: unsupported without a template; invalid_argument with what the template says of them.
  Result<std::string> chat_text(const std::vector<inference::Message>& messages) const;

  // Tokens of `text` with the special ones that an engine adds; 0 where they cannot be counted.
  void count_async(std::string text, const std::function<void(int)>& done) const;
  void tokenize_async(inference::TokenizeRequest request,
                      const std::function<void(Result<inference::Tokenized>)>& done) const;
  void detokenize_async(inference::DetokenizeRequest request,
                        const std::function<void(Result<std::string>)>& done) const;

 private:
  Result<std::string> render(const std::vector<inference::Message>& messages, bool add_generation_prompt) const;
  Result<inference::Tokenized> tokenize(const inference::TokenizeRequest& request) const;

  const std::shared_ptr<const text::Tokenizer> tokenizer_;
  const ChatRenderer render_;
  const std::string bos_;    // the text of the bos token that encoding adds; empty: it adds none
  mutable PrepThread prep_;  // last: its work uses all of the above
};

}  // namespace xgen::remote
