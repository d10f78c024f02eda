#include "remote/openai_service.h"

#include <atomic>
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

namespace xgen::remote {
namespace {

namespace json = boost::json;

// The list of models: what is wrong with it, if anything; what it says of this one is noted. `dialect` is null where it
// is known.
std::string read_models(Endpoint& endpoint, std::string_view body, std::atomic<Dialect>* dialect) {
  const auto parsed = parse_json(body);
  const json::object* list = parsed ? parsed->if_object() : nullptr;
  const json::array* data = list == nullptr ? nullptr : array_at(*list, "data");
  if (data == nullptr) return {};
  std::string names;
  for (const json::value& each : *data) {
    const json::object* card = each.if_object();
    const std::string_view name = card == nullptr ? std::string_view() : text_at(*card, "id");
    if (name == endpoint.options.model) {
      if (const int length = count_at(*card, "max_model_len"); length > 0) endpoint.max_model_len.store(length);
      if (dialect != nullptr) dialect->store(dialect_of_owner(text_at(*card, "owned_by")));
      return {};
    }
    if (!name.empty() && names.size() < 500) names.append(names.empty() ? "" : ", ").append(name);
  }
  return endpoint.upstream({}).says("does not serve '" + endpoint.options.model + "'" +
                                    (names.empty() ? std::string() : ", but " + names));
}

std::optional<inference::Tokenized> read_tokens(std::string_view reply) {
  const auto parsed = parse_json(reply);
  const json::object* object = parsed ? parsed->if_object() : nullptr;
  const json::array* ids = object == nullptr ? nullptr : array_at(*object, "tokens");
  if (ids == nullptr) return std::nullopt;
  inference::Tokenized out;
  for (const json::value& id : *ids) {
    if (!id.is_int64()) return std::nullopt;
    out.ids.push_back(static_cast<inference::TokenId>(id.get_int64()));
  }
  if (const json::array* texts = array_at(*object, "token_strs"))
    for (const json::value& text : *texts)
      if (const json::string* token = text.if_string()) out.tokens.emplace_back(view(*token));
  return out;
}

std::optional<std::string> read_text(std::string_view reply) {
  const auto parsed = parse_json(reply);
  const json::object* object = parsed ? parsed->if_object() : nullptr;
  if (object == nullptr) return std::nullopt;
  const json::value* text = object->if_contains("prompt");
  if (text == nullptr) text = object->if_contains("text");  // SGLang
  if (text == nullptr || !text->is_string()) return std::nullopt;
  return std::string(view(text->get_string()));
}

class OpenAiService final : public RemoteService {
 public:
  OpenAiService(const OpenAiOptions& options, http::Client& client)
      : RemoteService(std::make_shared<Endpoint>(options, client)),
        dialect_(std::make_shared<std::atomic<Dialect>>(options.dialect)) {
    const auto find_out = options.dialect == Dialect::unknown ? dialect_ : nullptr;
    const Question models{
        endpoint_->base() + "/models",
        [endpoint = endpoint_, find_out](const http::ResponseHead& head, std::string_view body) -> std::string {
          return head.status == 200 ? read_models(*endpoint, body, find_out.get()) : std::string();
        }};
    watch({models});
  }

  std::unique_ptr<inference::RequestHandle> generate_async(inference::GenerateRequest request,
                                                           std::shared_ptr<inference::EventSink> sink) override {
    return generate(endpoint_, request, make_call(request), std::move(sink));
  }

  void tokenize_async(inference::TokenizeRequest request,
                      std::function<void(Result<inference::Tokenized>)> done) override {
    Ask what{endpoint_->root() + "/tokenize", "/tokenize",
             tokenize_body(request, endpoint_->options.model, dialect_->load()), request.deadline, request.hops};
    ask<inference::Tokenized>(endpoint_, std::move(what), std::move(done), read_tokens);
  }
  void detokenize_async(inference::DetokenizeRequest request, std::function<void(Result<std::string>)> done) override {
    Ask what{endpoint_->root() + "/detokenize", "/detokenize",
             detokenize_body(request.ids, endpoint_->options.model, dialect_->load()), request.deadline, request.hops};
    ask<std::string>(endpoint_, std::move(what), std::move(done), read_text);
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
  Result<GenerationCall> make_call(const inference::GenerateRequest& request) const {
    auto body = generate_body(request, endpoint_->options.model, dialect_->load());
    if (!body) return std::move(body).error();
    GenerationCall call;
    call.target = endpoint_->base() + std::string(generate_path(request));
    call.body = *std::move(body);
    call.read = [n = request.n](Upstream upstream) { return std::make_unique<OpenAiStream>(n, std::move(upstream)); };
    return call;
  }

  const std::shared_ptr<std::atomic<Dialect>> dialect_;
};

}  // namespace

std::shared_ptr<inference::ModelService> make_openai_service(OpenAiOptions options, http::Client& client) {
  if (options.model.empty()) options.model = options.name;
  return std::make_shared<OpenAiService>(options, client);
}

}  // namespace xgen::remote
