#include "api/requests.h"

#include "api/chat_body.h"
#include "api/field_errors.h"
#include "api/parameters.h"
#include "base/json.h"

namespace xgen::api {
namespace {

namespace json = boost::json;
using inference::GenerateRequest;

// Every field of the body through the table.
Status read_body(Endpoint endpoint, std::string_view body, const ParseOptions& options, Draft& draft,
                 std::vector<std::string>& unknown) {
  draft.endpoint = endpoint;
  if (body.empty()) return invalid("The request has no body; it must be a JSON object", {});
  auto parsed = parse_json(body, {.max_depth = kMaxJsonDepth});
  if (!parsed) return invalid("The body of the request: " + parsed.error().message, {});
  const json::object* object = parsed->if_object();
  if (object == nullptr) return invalid("The body of the request must be a JSON object", {});
  for (const auto& [key, value] : *object) {
    const std::string_view name(key.data(), key.size());
    if (const Parameter* parameter = find_parameter(endpoint, name)) {
      if (Status status = apply_parameter(*parameter, value, draft); !status.ok()) return status;
    } else if (options.reject_unknown) {
      const std::string shown(name.substr(0, 128));
      return make_error(ErrorCode::unsupported, "Unknown parameter: '" + shown + "'", shown);
    } else if (unknown.size() < 16) {
      unknown.emplace_back(name.substr(0, 128));
    }
  }
  return {};
}

Status check_generate(Draft& draft) {
  if (draft.model.empty()) return invalid("'model' is required: the name of a served model, see /v1/models", "model");
  if (draft.endpoint == Endpoint::chat) {
    if (!draft.messages) return invalid("'messages' is required", "messages");
    draft.prompts.emplace_back(std::move(*draft.messages));
    if (draft.max_completion_tokens) {
      if (draft.stop.max_tokens && draft.stop.max_tokens != draft.max_completion_tokens)
        return invalid("'max_tokens' and 'max_completion_tokens' must not differ", "max_tokens");
      draft.stop.max_tokens = draft.max_completion_tokens;
    }
    if (draft.top_logprobs.value_or(0) > 0 && !draft.chat_logprobs)
      return invalid("'top_logprobs' needs 'logprobs' to be true", "top_logprobs");
    if (draft.chat_logprobs) draft.logprobs = draft.top_logprobs.value_or(0);
  } else {
    if (draft.prompts.empty()) return invalid("'prompt' is required", "prompt");
    if (!draft.stop.max_tokens) draft.stop.max_tokens = 16;
    if (draft.best_of && *draft.best_of != draft.n)
      return make_error(ErrorCode::unsupported, "'best_of' is not supported with a value other than n", "best_of");
  }
  if (Status status = check_tools(draft); !status) return status;
  if (draft.stream_options && !draft.stream)
    return invalid("'stream_options' is only allowed when 'stream' is true", "stream_options");
  if (draft.stop.max_tokens && draft.stop.min_tokens > *draft.stop.max_tokens)
    return invalid("'min_tokens' must not be greater than 'max_tokens'", "min_tokens");
  if (draft.prompts.size() * static_cast<std::size_t>(draft.n) > kMaxChoices)
    return invalid("prompts times 'n' must be at most " + std::to_string(kMaxChoices) + ", got " +
                       std::to_string(draft.prompts.size()) + " times " + std::to_string(draft.n),
                   "n");
  return {};
}

}  // namespace

Result<GenerateCall> parse_generate(Endpoint endpoint, std::string_view body, const ParseOptions& options) {
  Draft draft;
  GenerateCall call;
  if (Status status = read_body(endpoint, body, options, draft, call.unknown); !status.ok())
    return std::move(status).error();
  if (Status status = check_generate(draft); !status.ok()) return std::move(status).error();
  call.endpoint = endpoint;
  call.model = std::move(draft.model);
  call.stream = draft.stream;
  call.include_usage = draft.include_usage;
  call.requests.reserve(draft.prompts.size());
  GenerateRequest request;
  request.sampling = std::move(draft.sampling);
  request.stop = std::move(draft.stop);
  request.n = draft.n;
  request.logprobs = draft.logprobs;
  request.echo = draft.echo;
  request.prompt_logprobs = draft.echo && draft.logprobs.has_value();
  request.priority = draft.priority;
  request.tools = std::move(draft.tools);
  request.tool_choice = std::move(draft.tool_choice);
  request.parallel_tool_calls = draft.parallel_tool_calls;
  request.response_format = std::move(draft.response_format);
  request.extensions = std::move(draft.extensions);
  for (std::size_t i = 0; i < draft.prompts.size(); ++i) {
    GenerateRequest& added = call.requests.emplace_back(request);
    added.prompt = std::move(draft.prompts[i]);
  }
  return call;
}

Result<TokenizeCall> parse_tokenize(std::string_view body, const ParseOptions& options) {
  Draft draft;
  TokenizeCall call;
  if (Status status = read_body(Endpoint::tokenize, body, options, draft, call.unknown); !status.ok())
    return std::move(status).error();
  if (draft.prompts.empty() == !draft.messages.has_value())
    return invalid("Exactly one of 'prompt' and 'messages' is required", "prompt");
  call.model = std::move(draft.model);
  if (draft.messages) {
    if (draft.add_special_tokens.value_or(false))
      return make_error(ErrorCode::unsupported, "'add_special_tokens' is not supported with 'messages'",
                        "add_special_tokens");
    call.request.prompt = std::move(*draft.messages);
  } else {
    call.request.prompt = std::move(draft.prompts.front());
  }
  call.request.add_special_tokens = draft.add_special_tokens.value_or(true);
  call.request.add_generation_prompt = draft.add_generation_prompt;
  call.return_token_strs = draft.return_token_strs;
  return call;
}

Result<DetokenizeCall> parse_detokenize(std::string_view body, const ParseOptions& options) {
  Draft draft;
  DetokenizeCall call;
  if (Status status = read_body(Endpoint::detokenize, body, options, draft, call.unknown); !status.ok())
    return std::move(status).error();
  if (!draft.tokens) return invalid("'tokens' is required", "tokens");
  call.model = std::move(draft.model);
  call.request.ids = std::move(*draft.tokens);
  return call;
}

}  // namespace xgen::api
