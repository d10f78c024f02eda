#include "remote/triton_service.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "remote/generation.h"
#include "remote/remote_service.h"
#include "remote/reply.h"
#include "remote/triton_request.h"
#include "remote/triton_stream.h"

namespace xgen::remote {
namespace {

using inference::Message;

// The model that computes, in TensorRT-LLM's own model repositories: what is asked to stop.
constexpr std::string_view kEngineModel = "tensorrt_llm";
constexpr std::uint64_t kMaxConfig = 4 << 20;  // bytes of what the server says of its model
constexpr std::chrono::milliseconds kConfigTimeout{5'000};

std::uint64_t random_number() {
  std::random_device device;
  return (std::uint64_t{device()} << 31) ^ device();  // below 2^63: a JSON integer to everybody
}

// As one part of a path.
std::string path_part(std::string_view text) {
  constexpr std::string_view kPlain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
  constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    if (kPlain.find(c) != std::string_view::npos) {
      out += c;
      continue;
    }
    const auto byte = static_cast<unsigned char>(c);
    out += {'%', kHex[byte >> 4], kHex[byte & 15]};
  }
  return out;
}

// What the server said last of its model; null before it has said anything.
class ModelFacts {
 public:
  std::optional<TritonModel> get() const {
    std::lock_guard lock(mutex_);
    return model_;
  }
  // One that does not tell is taken as it comes.
  void read(const http::ResponseHead& head, std::string_view body) {
    TritonModel model = head.status == 200 ? read_triton_config(body) : TritonModel();
    std::lock_guard lock(mutex_);
    if (head.status == 200 || !model_) model_ = std::move(model);
  }

 private:
  mutable std::mutex mutex_;
  std::optional<TritonModel> model_;
};

// A request that waits until the server has told of its model, and what becomes of it then.
struct Waiting {
  std::mutex mutex;
  bool gone = false;
  std::shared_ptr<http::Call> asking;
  std::unique_ptr<inference::RequestHandle> request;
};
class WaitingHandle final : public inference::RequestHandle {
 public:
  explicit WaitingHandle(std::shared_ptr<Waiting> waiting) : waiting_(std::move(waiting)) {}
  ~WaitingHandle() override {
    std::unique_ptr<inference::RequestHandle> request;  // ends outside the lock
    std::shared_ptr<http::Call> asking;
    {
      std::lock_guard lock(waiting_->mutex);
      waiting_->gone = true;
      request = std::move(waiting_->request);
      asking = std::move(waiting_->asking);
    }
    if (asking != nullptr && request == nullptr) asking->cancel();
  }
  WaitingHandle(const WaitingHandle&) = delete;
  WaitingHandle& operator=(const WaitingHandle&) = delete;

 private:
  const std::shared_ptr<Waiting> waiting_;
};

class TritonService final : public RemoteService, public std::enable_shared_from_this<TritonService> {
 public:
  TritonService(EndpointOptions options, std::shared_ptr<const ModelText> text, http::Client& client)
      : RemoteService(std::make_shared<Endpoint>(std::move(options), client)),
        text_(std::move(text)),
        facts_(std::make_shared<ModelFacts>()),
        id_base_("xgen-" + std::to_string(random_number()) + "-") {
    watch(questions(), /*once=*/true);
  }

  std::unique_ptr<inference::RequestHandle> generate_async(inference::GenerateRequest request,
                                                           std::shared_ptr<inference::EventSink> sink) override {
    if (const auto facts = facts_->get())
      return generate(endpoint_, request, make_call(request, *facts), std::move(sink));
    return generate_later(std::move(request), std::move(sink));
  }
  void tokenize_async(inference::TokenizeRequest request,
                      std::function<void(Result<inference::Tokenized>)> done) override {
    if (auto lacking = inference::not_offered(request.prompt, capabilities())) return done(*std::move(lacking));
    text_->tokenize_async(std::move(request), done);
  }
  void detokenize_async(inference::DetokenizeRequest request, std::function<void(Result<std::string>)> done) override {
    text_->detokenize_async(std::move(request), done);
  }

  inference::Capabilities capabilities() const override {
    return {.chat = text_->has_chat(), .logprobs = false, .response_format = true, .extensions = true};
  }

 private:
  // "/v2", after what else the base URL has.
  std::string base() const {
    std::string base = endpoint_->base();
    if (!base.ends_with("/v2")) base += "/v2";
    return base;
  }
  std::string model_path(std::string_view name) const { return base() + "/models/" + path_part(name); }

  std::string config_target() const { return model_path(endpoint_->options.model) + "/config"; }

  // Asks of the model first: without that text could come twice, and parameters be passed over.
  std::unique_ptr<inference::RequestHandle> generate_later(inference::GenerateRequest request,
                                                           std::shared_ptr<inference::EventSink> sink) {
    const auto refuse = [&](Error error) -> std::unique_ptr<inference::RequestHandle> {
      sink->on_event(inference::Failed{std::move(error)});
      return nullptr;
    };
    std::string key;
    auto call = endpoint_->call("GET", config_target(), &key);
    if (!call) return refuse(std::move(call).error());
    call->first_byte_timeout = std::min(call->first_byte_timeout, kConfigTimeout);
    call->max_body = kMaxConfig;
    call->deadline = request.deadline;
    auto id = endpoint_->enter();
    if (!id) return refuse(std::move(id).error());
    auto waiting = std::make_shared<Waiting>();
    auto reply = std::make_shared<Reply>([self = shared_from_this(), weak = std::weak_ptr(waiting), id = *id,
                                          request = std::move(request), sink = std::move(sink),
                                          upstream = endpoint_->upstream(std::move(key))](
                                             const auto& head, std::string_view body, const auto& end) mutable {
      self->endpoint_->leave(id);
      const auto kept = weak.lock();
      if (kept == nullptr) return;
      {
        std::lock_guard lock(kept->mutex);
        if (kept->gone) return;
      }
      Result<GenerationCall> answer = self->call_after(request, head, body, end, upstream);
      auto running = generate(self->endpoint_, request, std::move(answer), std::move(sink));
      std::lock_guard lock(kept->mutex);
      if (!kept->gone) kept->request.swap(running);
    });
    std::shared_ptr<http::Call> asking = endpoint_->client.start(*std::move(call), std::move(reply));
    endpoint_->began(*id, asking);
    {
      std::lock_guard lock(waiting->mutex);
      waiting->asking = std::move(asking);
    }
    return std::make_unique<WaitingHandle>(std::move(waiting));
  }
  Result<GenerationCall> call_after(const inference::GenerateRequest& request, const http::ResponseHead& head,
                                    std::string_view body, const http::CallEnd& end, const Upstream& upstream) {
    if (!end.status) return endpoint_->error_of_end(end, request.deadline, upstream);
    if (head.status >= 500) return error_of_answer(head, body, upstream);
    facts_->read(head, body);
    return make_call(request, *facts_->get());
  }

  std::vector<Question> questions() const {
    const auto well = [endpoint = endpoint_](const http::ResponseHead& head, std::string_view body) {
      return head.status == 200 ? std::string() : error_of_answer(head, body, endpoint->upstream({})).message;
    };
    const auto learn = [facts = facts_](const http::ResponseHead& head, std::string_view body) {
      facts->read(head, body);
      return std::string();
    };
    const std::string model = model_path(endpoint_->options.model);
    return {{base() + "/health/ready", well}, {model + "/ready", well}, {config_target(), learn}};
  }

  Result<GenerationCall> make_call(const inference::GenerateRequest& request, const TritonModel& model) {
    if (auto lacking = inference::not_offered(request, capabilities())) return *std::move(lacking);
    std::string text;
    if (const auto* messages = std::get_if<std::vector<Message>>(&request.prompt)) {
      auto rendered = text_->chat_text(*messages);
      if (!rendered) return std::move(rendered).error();
      text = *std::move(rendered);
    } else if (const auto* given = std::get_if<std::string>(&request.prompt)) {
      text = *given;
    } else {
      return make_error(ErrorCode::unsupported,
                        "'prompt' must be text: the engine of this model (triton) takes no token ids", "prompt");
    }
    const std::string id = id_base_ + std::to_string(++last_id_);
    auto body = triton_generate_body(request, {text, id, random_number()}, model);
    if (!body) return std::move(body).error();
    GenerationCall call;
    call.target = model_path(endpoint_->options.model) + "/generate_stream";
    call.body = *std::move(body);
    call.read = [wanted = TritonStream::Wanted(request), accumulates = model.accumulates](Upstream upstream) {
      return std::make_unique<TritonStream>(wanted, accumulates, std::move(upstream));
    };
    call.count_here = [counter = text_, text = std::move(text)](const std::function<void(int)>& done) {
      counter->count_async(text, done);
    };
    // Triton notices a closed connection only once it has begun to answer.
    call.stop = {model_path(kEngineModel) + "/generate", triton_stop_body(id)};
    return call;
  }

  const std::shared_ptr<const ModelText> text_;
  const std::shared_ptr<ModelFacts> facts_;
  const std::string id_base_;  // ids of clients may come twice
  std::atomic<std::uint64_t> last_id_{0};
};

}  // namespace

std::shared_ptr<inference::ModelService> make_triton_service(EndpointOptions options,
                                                             std::shared_ptr<const ModelText> text,
                                                             http::Client& client) {
  if (options.model.empty()) options.model = options.name;
  return std::make_shared<TritonService>(std::move(options), std::move(text), client);
}

}  // namespace xgen::remote
