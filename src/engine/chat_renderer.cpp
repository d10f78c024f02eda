#include "engine/chat_renderer.h"

#include <utility>
#include <vector>

#include "text/chat_template.h"

namespace xgen::engine {

Result<ChatRenderer> make_chat_renderer(const std::shared_ptr<const text::Tokenizer>& tokenizer,
                                        const std::string& source) {
  const std::string* chat_template = tokenizer->chat_template();
  if (chat_template == nullptr) return ChatRenderer();
  Result<text::ChatTemplate> parsed = text::ChatTemplate::parse(*chat_template);
  if (!parsed.ok()) {
    Error error = std::move(parsed).error();
    error.message = source + ": " + error.message;
    return error;
  }
  text::RenderOptions options;
  for (const auto& [name, token] : tokenizer->special_tokens()) {
    if (name == "bos_token") {
      options.bos_token = token;
    } else if (name == "eos_token") {
      options.eos_token = token;
    } else {
      options.special_tokens.emplace_back(name, token);
    }
  }
  return ChatRenderer([parsed = std::move(*parsed), options = std::move(options)](
                          const std::vector<inference::Message>& messages, bool add_generation_prompt) {
    std::vector<text::ChatMessage> chat;
    chat.reserve(messages.size());
    for (const inference::Message& m : messages) chat.push_back({m.role, m.content, m.name, m.reasoning});
    text::RenderOptions own = options;
    own.add_generation_prompt = add_generation_prompt;
    return text::render_chat(parsed, chat, own);
  });
}

}  // namespace xgen::engine
