#include "remote/tgi_service.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "remote/ask.h"
#include "remote/event_json.h"
#include "remote/generation.h"
#include "remote/openai_request.h"
#include "remote/openai_stream.h"
#include "remote/remote_service.h"
#include "remote/tgi_request.h"
#include "remote/tgi_stream.h"

namespace xgen::remote {
namespace {

namespace json = boost::json;
using inference::Message;

// The tokens of /tokenize's answer, or of /chat_tokenize's.
const json::array* tokens_of(const json::value& reply) {
  const json::object* chat = reply.if_object();
  return chat == nullptr ? reply.if_array() : array_at(*chat, "tokenize_response");
}

std::optional<int> count_tokens(std::string_view reply) {
  const auto parsed = parse_json(reply);
  const json::array* tokens = parsed ? tokens_of(*parsed) : nullptr;
  return tokens == nullptr ? std::nullopt : std::optional(static_cast<int>(tokens->size()));
}

std::optional<inference::Tokenized> read_tokens(std::string_view reply) {
  const auto parsed = parse_json(reply);
  const json::array* tokens = parsed ? tokens_of(*parsed) : nullptr;
  if (tokens == nullptr) return std::nullopt;
  inference::Tokenized out;
  bool ascii = true;
  for (const json::value& each : *tokens) {
    const json::object* token = each.if_object();
    const json::value* id = token == nullptr ? nullptr : token->if_contains("id");
    if (id == nullptr || !id->is_int64()) return std::nullopt;
    out.ids.push_back(static_cast<inference::TokenId>(id->get_int64()));
    out.tokens.emplace_back(text_at(*token, "text"));
    ascii = ascii &&
            std::all_of(out.tokens.back().begin(), out.tokens.back().end(), [](unsigned char c) { return c < 0x80; });
  }
  // TGI cuts the text's bytes at numbers of characters.
  if (!ascii) out.tokens.clear();
  return out;
}

// Then its last event may be missed, which counts the prompt's tokens.
bool may_be_cut(const inference::GenerateRequest& request) { return !request.stop.stop.empty(); }

class TgiService final : public RemoteService {
 public:
  TgiService(EndpointOptions options, http::Client& client)
      : RemoteService(std::make_shared<Endpoint>(std::move(options), client)) {
    watch(questions());
  }

  std::unique_ptr<inference::RequestHandle> generate_async(inference::GenerateRequest request,
                                                           std::shared_ptr<inference::EventSink> sink) override {
    const bool chat = std::holds_alternative<std::vector<Message>>(request.prompt);
    return generate(endpoint_, request, chat ? chat_call(request) : text_call(request), std::move(sink));
  }

  void tokenize_async(inference::TokenizeRequest request,
                      std::function<void(Result<inference::Tokenized>)> done) override {
    const auto refuse = [&](std::string_view field) { done(not_supported(field, "tgi")); };
    if (const auto* text = std::get_if<std::string>(&request.prompt)) {
      if (!request.add_special_tokens) return refuse("add_special_tokens");
      Ask what{endpoint_->root() + "/tokenize", "/tokenize", tgi_inputs_body(*text), request.deadline, request.hops};
      return ask<inference::Tokenized>(endpoint_, std::move(what), std::move(done), read_tokens);
    }
    if (!std::holds_alternative<std::vector<Message>>(request.prompt)) return refuse("prompt");
    if (!request.add_generation_prompt) return refuse("add_generation_prompt");
    inference::GenerateRequest chat;
    chat.prompt = std::move(request.prompt);
    Ask what{endpoint_->root() + "/chat_tokenize", "/chat_tokenize", chat_body(chat), request.deadline, request.hops};
    ask<inference::Tokenized>(endpoint_, std::move(what), std::move(done), read_tokens);
  }
  void detokenize_async(inference::DetokenizeRequest /*request*/,
                        std::function<void(Result<std::string>)> done) override {
    done(not_supported("/detokenize", "tgi"));
  }

  inference::Capabilities capabilities() const override {
    return {.chat = true,
            .max_model_len = endpoint_->max_model_len.load(),
            .tools = true,
            .response_format = true,
            .images = true,
            .extensions = true};
  }

 private:
  std::vector<Question> questions() const {
    const auto well = [endpoint = endpoint_](const http::ResponseHead& head, std::string_view) {
      if (head.status == 200) return std::string();
      return endpoint->upstream({}).says("answers its health check with status " + std::to_string(head.status));
    };
    const auto learn = [endpoint = endpoint_](const http::ResponseHead& head, std::string_view body) {
      const auto info = parse_json(head.status == 200 ? body : "{}");
      const json::object* object = info ? info->if_object() : nullptr;
      const int length = object == nullptr ? 0 : count_at(*object, "max_total_tokens");
      if (length > 0) endpoint->max_model_len.store(length);
      return std::string();
    };
    return {{endpoint_->root() + "/health", well}, {endpoint_->root() + "/info", learn}};
  }

  Result<std::string> chat_body(const inference::GenerateRequest& request) const {
    const std::string& adapter = endpoint_->options.model;
    return generate_body(request, adapter.empty() ? "tgi" : adapter, Dialect::tgi);
  }

  Result<GenerationCall> chat_call(const inference::GenerateRequest& request) const {
    auto body = chat_body(request);
    if (!body) return std::move(body).error();
    GenerationCall call;
    call.target = endpoint_->root() + "/v1" + std::string(generate_path(request));
    if (may_be_cut(request)) call.count = {endpoint_->root() + "/chat_tokenize", *body, count_tokens};
    call.body = *std::move(body);
    call.read = [quirks = OpenAiStreamQuirks{request.stop.stop, true, request.stop.max_tokens}](Upstream upstream) {
      return std::make_unique<OpenAiStream>(1, std::move(upstream), quirks);
    };
    return call;
  }
  Result<GenerationCall> text_call(const inference::GenerateRequest& request) const {
    auto body = tgi_generate_body(request, endpoint_->options.model);
    if (!body) return std::move(body).error();
    GenerationCall call;
    call.target = endpoint_->root() + "/generate_stream";
    if (may_be_cut(request))
      call.count = {endpoint_->root() + "/tokenize", tgi_inputs_body(std::get<std::string>(request.prompt)),
                    count_tokens};
    call.body = *std::move(body);
    call.read = [wanted = TgiStream::Wanted(request)](Upstream upstream) {
      return std::make_unique<TgiStream>(wanted, std::move(upstream));
    };
    return call;
  }
};

}  // namespace

std::shared_ptr<inference::ModelService> make_tgi_service(EndpointOptions options, http::Client& client) {
  return std::make_shared<TgiService>(std::move(options), client);
}

}  // namespace xgen::remote
