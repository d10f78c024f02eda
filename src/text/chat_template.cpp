#include "text/chat_template.h"

#include "base/utf8.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/parser.h"
#include "text/jinja/scope.h"

namespace xgen::text {
namespace {

std::string located(const jinja::TemplateError& error) {
  if (error.line == 0) return "chat template: " + error.message;
  return "chat template, line " + std::to_string(error.line) + ": " + error.message;
}

std::tm system_local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm out{};
  localtime_r(&now, &out);
  return out;
}

}  // namespace

struct ChatTemplate::State {
  jinja::Tree tree;
};

Result<ChatTemplate> ChatTemplate::parse(std::string_view source, const jinja::Limits& limits) {
  const auto refuse = [](std::string message) {
    return make_error(ErrorCode::invalid_argument, std::move(message), "chat_template");
  };
  if (source.size() > limits.max_source)
    return refuse("chat template: longer than " + std::to_string(limits.max_source) + " bytes");
  if (!is_valid_utf8(source)) return refuse("chat template: not valid UTF-8");
  try {
    auto state = std::make_shared<State>();
    state->tree = jinja::bind_names(jinja::parse(source));
    return ChatTemplate(std::move(state));
  } catch (const jinja::TemplateError& error) {
    return refuse(located(error));
  }
}

Result<std::string> ChatTemplate::render(const jinja::Value& context, const RenderSettings& settings) const {
  try {
    jinja::Interpreter interpreter(state_->tree, context, settings.limits,
                                   settings.local_time ? settings.local_time : system_local_time);
    return interpreter.run();
  } catch (const jinja::TemplateError& error) {
    const bool limit = error.fault == jinja::Fault::limit;
    return make_error(limit ? ErrorCode::too_large : ErrorCode::invalid_argument,
                      error.fault == jinja::Fault::raised ? error.message : located(error), "messages");
  }
}

Result<std::string> render_chat(const ChatTemplate& chat_template, std::span<const ChatMessage> messages,
                                const RenderOptions& options) {
  using jinja::Value;
  std::vector<Value> list;
  list.reserve(messages.size());
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (!is_valid_utf8(message.role) || !is_valid_utf8(message.content) || !is_valid_utf8(message.name) ||
        !is_valid_utf8(message.reasoning_content))
      return make_error(ErrorCode::invalid_argument, "messages[" + std::to_string(i) + "] is not valid UTF-8",
                        "messages");
    std::vector<std::pair<std::string, Value>> fields = {{"role", message.role}, {"content", message.content}};
    if (!message.name.empty()) fields.emplace_back("name", message.name);
    if (!message.reasoning_content.empty()) fields.emplace_back("reasoning_content", message.reasoning_content);
    list.push_back(Value::dict(std::move(fields)));
  }
  std::vector<std::pair<std::string, Value>> context = {{"messages", Value::list(std::move(list))},
                                                        {"tools", Value::none()},
                                                        {"documents", Value::none()},
                                                        {"add_generation_prompt", options.add_generation_prompt}};
  if (!options.bos_token.empty()) context.emplace_back("bos_token", options.bos_token);
  if (!options.eos_token.empty()) context.emplace_back("eos_token", options.eos_token);
  for (const auto& [name, text] : options.special_tokens) context.emplace_back(name, text);
  for (const auto& [name, value] : options.extra) context.emplace_back(name, value);
  return chat_template.render(Value::dict(std::move(context)), options.settings);
}

}  // namespace xgen::text
