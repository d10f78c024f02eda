#include "inference/model_service.h"

namespace xgen::inference {
namespace {

Error refusal(const std::string& param, const std::string& what) {
  return make_error(ErrorCode::unsupported, "'" + param + "' is not supported by this model: " + what, param);
}

}  // namespace

std::string_view finish_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::abort:
      return "abort";
    case FinishReason::tool_calls:
      return "tool_calls";
    case FinishReason::content_filter:
      return "content_filter";
  }
  return "unknown";
}

std::optional<Error> not_offered(const Prompt& prompt, const Capabilities& capabilities) {
  const auto* messages = std::get_if<std::vector<Message>>(&prompt);
  if (messages == nullptr) return std::nullopt;
  for (std::size_t i = 0; i < messages->size(); ++i) {
    const Message& message = (*messages)[i];
    const auto field = [&](const char* name) { return "messages[" + std::to_string(i) + "]." + name; };
    if (!capabilities.tools && !message.tool_calls.empty())
      return refusal(field("tool_calls"), "its engine knows no tools.");
    if (!capabilities.tools && !message.tool_call_id.empty())
      return refusal(field("tool_call_id"), "its engine knows no tools.");
    for (std::size_t part = 0; part < message.parts.size(); ++part)
      if (!capabilities.images && message.parts[part].kind == ContentPart::Kind::image)
        return refusal(field("content") + "[" + std::to_string(part) + "]", "it takes text, no images.");
  }
  return std::nullopt;
}

std::optional<Error> not_offered(const GenerateRequest& request, const Capabilities& capabilities) {
  if (!capabilities.tools && !request.tools.empty()) return refusal("tools", "its engine knows no tools.");
  if (!capabilities.response_format && request.response_format.kind != ResponseFormat::Kind::text)
    return refusal("response_format", "its engine cannot hold answers to a form.");
  if (!capabilities.extensions && !request.extensions.empty())
    return refusal(request.extensions.front().name, "its engine does not have this parameter.");
  return not_offered(request.prompt, capabilities);
}

Load ModelService::load() const {
  const ServiceStats now = stats();
  return {static_cast<double>(now.requests_running), static_cast<double>(now.requests_waiting),
          static_cast<double>(now.kv_blocks * now.kv_block_size), static_cast<double>(now.unfinished())};
}

}  // namespace xgen::inference
