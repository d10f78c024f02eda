#include "remote/openai_service.h"

#include <functional>
#include <optional>
#include <string_view>
#include <utility>

#include "base/json.h"
#include "remote/openai_generation.h"
#include "remote/openai_request.h"
#include "remote/openai_watch.h"
#include "remote/reply.h"

namespace xgen::remote {
namespace {

namespace json = boost::json;

constexpr std::uint64_t kMaxReply = 64 << 20;  // bytes of an answer to /tokenize and the like

class OpenAiService final : public inference::ModelService {
 public:
  OpenAiService(OpenAiOptions options, http::Client& client)
      : endpoint_(std::make_shared<OpenAiEndpoint>(std::move(options), client)),
        watch_(std::make_shared<OpenAiWatch>(endpoint_)) {
    watch_->start();
  }
  ~OpenAiService() override { close(); }
  OpenAiService(const OpenAiService&) = delete;
  OpenAiService& operator=(const OpenAiService&) = delete;

  std::unique_ptr<inference::RequestHandle> generate_async(inference::GenerateRequest request,
                                                           std::shared_ptr<inference::EventSink> sink) override {
    return generate(endpoint_, request, std::move(sink));
  }

  void tokenize_async(inference::TokenizeRequest request,
                      std::function<void(Result<inference::Tokenized>)> done) override {
    post<inference::Tokenized>("/tokenize", tokenize_body(request, endpoint_->options.model, endpoint_->dialect.load()),
                               std::move(done), [](const json::object& reply) -> std::optional<inference::Tokenized> {
                                 inference::Tokenized out;
                                 const json::value* ids = reply.if_contains("tokens");
                                 if (ids == nullptr || !ids->is_array()) return std::nullopt;
                                 for (const json::value& id : ids->get_array()) {
                                   if (!id.is_int64()) return std::nullopt;
                                   out.ids.push_back(static_cast<inference::TokenId>(id.get_int64()));
                                 }
                                 const json::value* texts = reply.if_contains("token_strs");
                                 if (texts != nullptr && texts->is_array())
                                   for (const json::value& text : texts->get_array())
                                     if (const json::string* token = text.if_string())
                                       out.tokens.emplace_back(token->data(), token->size());
                                 return out;
                               });
  }
  void detokenize_async(std::vector<inference::TokenId> ids, std::function<void(Result<std::string>)> done) override {
    post<std::string>("/detokenize", detokenize_body(ids, endpoint_->options.model, endpoint_->dialect.load()),
                      std::move(done), [](const json::object& reply) -> std::optional<std::string> {
                        const json::value* text = reply.if_contains("prompt");
                        if (text == nullptr) text = reply.if_contains("text");  // SGLang
                        if (text == nullptr || !text->is_string()) return std::nullopt;
                        return std::string(text->get_string().data(), text->get_string().size());
                      });
  }

  inference::Capabilities capabilities() const override {
    return {.chat = true,
            .max_model_len = endpoint_->max_model_len.load(),
            .tools = true,
            .response_format = true,
            .images = true,
            .extensions = true};
  }
  inference::Health health() const override {
    if (endpoint_->is_closed()) return {inference::Health::State::dead, 0, "closed"};
    return watch_->health();
  }
  inference::ServiceStats stats() const override { return endpoint_->stats.snapshot(); }
  inference::Load load() const override {
    const auto told = watch_->load();
    return told ? *told : inference::ModelService::load();
  }
  void close() override {
    watch_->stop();
    endpoint_->close();
  }

 private:
  // A call with a JSON object as its whole answer, which `read` understands or not.
  template <class T>
  void post(std::string_view route, Result<std::string> body, std::function<void(Result<T>)> done,
            std::optional<T> (*read)(const json::object&)) {
    if (!body) return done(std::move(body).error());
    std::string key;
    auto call = endpoint_->call("POST", endpoint_->root() + std::string(route), &key);
    if (!call) return done(std::move(call).error());
    call->body = *std::move(body);
    call->max_body = kMaxReply;
    auto id = endpoint_->enter();
    if (!id) return done(std::move(id).error());
    auto reply = std::make_shared<Reply>(
        [endpoint = endpoint_, id = *id, done = std::move(done), read, route = std::string(route),
         upstream = endpoint_->upstream(std::move(key))](const auto& head, std::string_view text, const auto& end) {
          endpoint->leave(id);
          if (!end.status) return done(endpoint->is_closed() ? endpoint->closed_error() : error_of_call(end, upstream));
          if (head.status == 404)
            return done(make_error(ErrorCode::unsupported, upstream.says("does not offer " + route)));
          if (head.status != 200) return done(error_of_answer(head, text, upstream));
          const auto parsed = parse_json(text);
          const json::object* object = parsed ? parsed->if_object() : nullptr;
          auto value = object == nullptr ? std::nullopt : read(*object);
          if (!value) return done(make_error(ErrorCode::internal, upstream.says("gave an answer that cannot be read")));
          done(*std::move(value));
        });
    endpoint_->began(*id, endpoint_->client.start(*std::move(call), std::move(reply)));
  }

  const std::shared_ptr<OpenAiEndpoint> endpoint_;
  const std::shared_ptr<OpenAiWatch> watch_;
};

}  // namespace

std::shared_ptr<inference::ModelService> make_openai_service(OpenAiOptions options, http::Client& client) {
  if (options.model.empty()) options.model = options.name;
  return std::make_shared<OpenAiService>(std::move(options), client);
}

}  // namespace xgen::remote
