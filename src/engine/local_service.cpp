#include "engine/local_service.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <random>
#include <string_view>
#include <utility>

#include "base/prep_thread.h"
#include "engine/engine_loop.h"

namespace xgen::engine {
namespace {

using inference::Message;
using inference::Prompt;

// Longer prompts are prepared on a thread of their own.
constexpr std::size_t kInlineBytes = 8 << 10;
constexpr std::size_t kInlineIds = kInlineBytes / 4;  // to be decoded
constexpr std::size_t kMaxQueuedPrompts = 64;
// No prompt that fits has more bytes per token of the context than this, or it is all white space.
constexpr std::size_t kMaxBytesPerToken = 64;
constexpr std::size_t kLeastMaxBytes = std::size_t{1} << 20;
// What a message costs besides its text, as if it were text.
constexpr std::size_t kBytesPerMessage = 16;
constexpr int kMaxChoices = 1024;
constexpr int kMaxLogprobs = 128;

Error invalid(std::string message, std::string param) {
  return make_error(ErrorCode::invalid_argument, std::move(message), std::move(param));
}

std::string_view prompt_param(const Prompt& prompt) {
  return std::holds_alternative<std::vector<Message>>(prompt) ? "messages" : "prompt";
}

std::size_t text_bytes(const Prompt& prompt) {
  if (const auto* text = std::get_if<std::string>(&prompt)) return text->size();
  std::size_t bytes = 0;
  if (const auto* messages = std::get_if<std::vector<Message>>(&prompt)) {
    for (const Message& m : *messages)
      bytes += m.role.size() + m.content.size() + m.name.size() + m.reasoning.size() + kBytesPerMessage;
  }
  return bytes;
}

// A prompt of ids is turned into text where it is to be echoed.
std::size_t ids_to_decode(const inference::GenerateRequest& request) {
  const auto* ids = std::get_if<std::vector<TokenId>>(&request.prompt);
  return ids != nullptr && request.echo ? ids->size() : 0;
}

std::uint64_t splitmix64(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

std::uint64_t random_base() {
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

// Everything of the sampling settings that does not need the model, and its defaults filled in.
Result<SamplingParams> resolve_sampling(const inference::Sampling& s, const model::GenerationDefaults& d,
                                        int vocab_size) {
  SamplingParams p;
  p.temperature = s.temperature.value_or(d.temperature >= 0 ? d.temperature : 1);
  p.top_p = s.top_p.value_or(d.top_p > 0 ? d.top_p : 1);
  p.top_k = std::max(0, s.top_k.value_or(std::max(d.top_k, 0)));
  p.min_p = s.min_p.value_or(d.min_p >= 0 ? d.min_p : 0);
  p.repetition_penalty = s.repetition_penalty.value_or(d.repetition_penalty > 0 ? d.repetition_penalty : 1);
  p.presence_penalty = s.presence_penalty;
  p.frequency_penalty = s.frequency_penalty;
  // Written so that NaN fails too.
  if (!(p.temperature >= 0 && std::isfinite(p.temperature)))
    return invalid("temperature must be at least 0.", "temperature");
  if (!(p.top_p > 0 && p.top_p <= 1)) return invalid("top_p must be above 0 and at most 1.", "top_p");
  if (!(p.min_p >= 0 && p.min_p <= 1)) return invalid("min_p must be between 0 and 1.", "min_p");
  if (!(p.repetition_penalty > 0 && std::isfinite(p.repetition_penalty))) {
    return invalid("repetition_penalty must be above 0.", "repetition_penalty");
  }
  if (!std::isfinite(p.presence_penalty))
    return invalid("presence_penalty must be a finite number.", "presence_penalty");
  if (!std::isfinite(p.frequency_penalty)) {
    return invalid("frequency_penalty must be a finite number.", "frequency_penalty");
  }
  for (const auto& [id, bias] : s.logit_bias) {
    if (id < 0 || id >= vocab_size) {
      return invalid("logit_bias names token id " + std::to_string(id) + ", but the model's vocabulary has ids 0 to " +
                         std::to_string(vocab_size - 1) + ".",
                     "logit_bias");
    }
    if (!std::isfinite(bias)) return invalid("logit_bias must hold finite numbers.", "logit_bias");
  }
  p.logit_bias = s.logit_bias;
  return p;
}

class LocalService final : public inference::ModelService {
 public:
  explicit LocalService(LocalServiceParts parts)
      : name_(std::move(parts.name)),
        tokenizer_(std::move(parts.tokenizer)),
        render_chat_(std::move(parts.render_chat)),
        defaults_(std::move(parts.defaults)),
        vocab_size_(parts.vocab_size),
        max_model_len_(
            std::min(parts.scheduler.max_model_len,
                     (parts.scheduler.own_blocks > 0 ? parts.scheduler.own_blocks : parts.scheduler.num_blocks) *
                         parts.scheduler.block_size)),
        max_bytes_(std::max(kLeastMaxBytes, static_cast<std::size_t>(max_model_len_) * kMaxBytesPerToken)),
        kv_dtype_(parts.kv_dtype),
        prefix_caching_(parts.scheduler.enable_prefix_caching),
        random_base_(random_base()),
        loop_({name_, parts.max_waiting, std::move(parts.account), parts.block_bytes}, parts.scheduler,
              std::move(parts.runner), tokenizer_),
        prep_(kMaxQueuedPrompts) {
    // A chat model's tokenizer may name the end of a turn where config.json still has the base model's end of text.
    const std::optional<TokenId> eos = tokenizer_->eos_id();
    std::vector<TokenId>& ids = defaults_.eos_ids;
    if (eos && std::find(ids.begin(), ids.end(), *eos) == ids.end()) ids.push_back(*eos);
  }

  // Long prompts that are still to be prepared are refused rather than worked off.
  ~LocalService() override { closing_.store(true, std::memory_order_relaxed); }

  std::unique_ptr<inference::RequestHandle> generate_async(inference::GenerateRequest request,
                                                           std::shared_ptr<inference::EventSink> sink) override {
    auto ticket = std::make_shared<Ticket>();
    std::unique_ptr<inference::RequestHandle> handle = loop_.make_handle(ticket);
    const std::size_t bytes = text_bytes(request.prompt);
    if (auto lacking = inference::not_offered(request, capabilities())) {
      refuse(*ticket, *sink, *std::move(lacking));
    } else if (Status size = check_size(bytes, request.prompt); !size.ok()) {
      refuse(*ticket, *sink, size.error());
    } else if (bytes <= kInlineBytes && ids_to_decode(request) <= kInlineIds) {
      start(std::move(request), sink, ticket);
    } else {
      auto shared = std::make_shared<inference::GenerateRequest>(std::move(request));
      const bool queued = prep_.post([this, shared, sink, ticket] {
        if (ticket->cancelled.load(std::memory_order_relaxed)) return;
        if (closing_.load(std::memory_order_relaxed)) return refuse(*ticket, *sink, shutting_down());
        start(std::move(*shared), sink, ticket);
      });
      if (!queued) refuse(*ticket, *sink, too_many_prompts());
    }
    return handle;
  }

  void tokenize_async(inference::TokenizeRequest request,
                      std::function<void(Result<inference::Tokenized>)> done) override {
    const std::size_t bytes = text_bytes(request.prompt);
    if (auto lacking = inference::not_offered(request.prompt, capabilities())) {
      done(*std::move(lacking));
    } else if (Status size = check_size(bytes, request.prompt); !size.ok()) {
      done(size.error());
    } else if (bytes <= kInlineBytes) {
      done(contained([&] { return tokenize(request); }));
    } else {
      auto shared = std::make_shared<inference::TokenizeRequest>(std::move(request));
      const bool queued = prep_.post([this, shared, done] {
        done(closing_.load(std::memory_order_relaxed) ? Result<inference::Tokenized>(shutting_down())
                                                      : contained([&] { return tokenize(*shared); }));
      });
      if (!queued) done(too_many_prompts());
    }
  }

  void detokenize_async(inference::DetokenizeRequest request, std::function<void(Result<std::string>)> done) override {
    std::vector<TokenId>& ids = request.ids;
    if (ids.size() > static_cast<std::size_t>(max_model_len_)) {
      done(invalid("tokens has " + std::to_string(ids.size()) + " ids; at most " + std::to_string(max_model_len_) +
                       " are decoded, the model's context.",
                   "tokens"));
    } else if (Status status = check_ids(ids, "tokens"); !status.ok()) {
      done(status.error());
    } else if (ids.size() <= kInlineIds) {
      done(detokenize(ids));
    } else {
      auto shared = std::make_shared<std::vector<TokenId>>(std::move(ids));
      const bool queued = prep_.post([this, shared, done] {
        done(closing_.load(std::memory_order_relaxed) ? Result<std::string>(shutting_down()) : detokenize(*shared));
      });
      if (!queued) done(too_many_prompts());
    }
  }

  inference::Capabilities capabilities() const override {
    inference::Capabilities c;
    c.chat = static_cast<bool>(render_chat_);
    c.max_model_len = max_model_len_;
    return c;
  }
  inference::Health health() const override { return loop_.health(); }
  inference::ServiceStats stats() const override {
    inference::ServiceStats stats = loop_.stats();
    stats.kv_dtype = kv_dtype_;
    stats.prefix_caching = prefix_caching_;
    stats.rejected_long_prompts = refused_long_.load(std::memory_order_relaxed);
    return stats;
  }
  void on_failure(std::function<void(Error)> failed) override { loop_.on_failure(std::move(failed)); }
  void close() override { loop_.stop(); }

 private:
  static void refuse(Ticket& ticket, inference::EventSink& sink, Error error) {
    ticket.ended.store(true, std::memory_order_release);
    sink.on_event(inference::Failed{std::move(error)});
  }

  Error shutting_down() const { return make_error(ErrorCode::unavailable, "Model " + name_ + " is shutting down."); }
  Error too_many_prompts() {
    refused_long_.fetch_add(1, std::memory_order_relaxed);
    Error error = make_error(ErrorCode::overloaded, "Model " + name_ + " already prepares " +
                                                        std::to_string(kMaxQueuedPrompts) + " long prompts.");
    error.retry_after_s = 1;
    return error;
  }

  Status check_size(std::size_t bytes, const Prompt& prompt) const {
    if (bytes <= max_bytes_) return {};
    return invalid("The prompt has " + std::to_string(bytes) + " bytes; at most " + std::to_string(max_bytes_) +
                       " are read for a context of " + std::to_string(max_model_len_) + " tokens.",
                   std::string(prompt_param(prompt)));
  }

  Status check_ids(const std::vector<TokenId>& ids, const char* param) const {
    for (TokenId id : ids) {
      if (id >= 0 && id < vocab_size_) continue;
      return invalid(std::string(param) + " has token id " + std::to_string(id) +
                         ", but the model's vocabulary has ids 0 to " + std::to_string(vocab_size_ - 1) + ".",
                     param);
    }
    return {};
  }

  // The prompt's tokens, and its text where there is one. A chat template writes the special tokens itself.
  Result<std::vector<TokenId>> encode(const Prompt& prompt, bool add_special, bool add_generation_prompt,
                                      std::string* text_out) const {
    std::string rendered;
    const std::string* text = std::get_if<std::string>(&prompt);
    if (const auto* messages = std::get_if<std::vector<Message>>(&prompt)) {
      if (!render_chat_) {
        return invalid("Model " + name_ + " has no chat template; use /v1/completions.", "messages");
      }
      if (messages->empty()) return invalid("messages must not be empty.", "messages");
      Result<std::string> result = render_chat_(*messages, add_generation_prompt);
      if (!result.ok()) {
        Error error = std::move(result).error();
        if (error.param.empty()) error.param = "messages";
        // What a template says may repeat the messages.
        error.received = ": " + std::exchange(error.message, "The chat template cannot render these messages");
        return error;
      }
      rendered = std::move(*result);
      if (Status size = check_size(rendered.size(), prompt); !size.ok()) return size.error();
      text = &rendered;
      add_special = false;
    }
    Result<std::vector<TokenId>> ids = tokenizer_->encode(*text, {add_special, /*parse_special=*/true});
    if (!ids.ok()) {
      Error error = std::move(ids).error();
      if (error.param.empty()) error.param = prompt_param(prompt);
      return error;
    }
    if (Status known = check_ids(*ids, std::string(prompt_param(prompt)).c_str()); !known.ok()) return known.error();
    if (text_out != nullptr) *text_out = *text;
    return ids;
  }

  Result<std::string> detokenize(const std::vector<TokenId>& ids) const {
    return contained([&]() -> Result<std::string> { return tokenizer_->decode(ids, /*skip_special=*/false); });
  }

  Result<inference::Tokenized> tokenize(const inference::TokenizeRequest& request) const {
    inference::Tokenized out;
    if (const auto* ids = std::get_if<std::vector<TokenId>>(&request.prompt)) {
      if (Status status = check_ids(*ids, "prompt"); !status.ok()) return status.error();
      out.ids = *ids;
    } else {
      Result<std::vector<TokenId>> encoded =
          encode(request.prompt, request.add_special_tokens, request.add_generation_prompt, nullptr);
      if (!encoded.ok()) return encoded.error();
      out.ids = std::move(*encoded);
    }
    out.tokens.reserve(out.ids.size());
    for (TokenId id : out.ids) out.tokens.push_back(tokenizer_->token_bytes(id));
    return out;
  }

  Result<std::unique_ptr<Job>> make_job(inference::GenerateRequest& request) {
    auto job = std::make_unique<Job>();
    Result<SamplingParams> sampling = resolve_sampling(request.sampling, defaults_, vocab_size_);
    if (!sampling.ok()) return sampling.error();
    job->sampling = std::move(*sampling);
    job->sampling.seed = request.sampling.seed.value_or(splitmix64(random_base_ + drawn_.fetch_add(1)));

    if (request.n < 1 || request.n > kMaxChoices) {
      return invalid("n must be between 1 and " + std::to_string(kMaxChoices) + ".", "n");
    }
    job->n = request.n;
    if (request.logprobs) {
      if (*request.logprobs < 0 || *request.logprobs > kMaxLogprobs) {
        return invalid("logprobs must be between 0 and " + std::to_string(kMaxLogprobs) + ".", "logprobs");
      }
      job->sampling.logprobs = *request.logprobs;
    }
    inference::StopRules& stop = request.stop;
    if (stop.max_tokens && *stop.max_tokens < 0) return invalid("max_tokens must be at least 0.", "max_tokens");
    if (stop.min_tokens < 0) return invalid("min_tokens must be at least 0.", "min_tokens");
    if (stop.max_tokens && stop.min_tokens > *stop.max_tokens) {
      return invalid("min_tokens is " + std::to_string(stop.min_tokens) + ", more than max_tokens " +
                         std::to_string(*stop.max_tokens) + ".",
                     "min_tokens");
    }
    if (Status status = check_ids(stop.stop_token_ids, "stop_token_ids"); !status.ok()) return status.error();
    job->min_tokens = stop.min_tokens;
    if (!stop.ignore_eos) job->eos_ids = defaults_.eos_ids;
    job->stop_ids = std::move(stop.stop_token_ids);
    job->stop = std::move(stop.stop);

    job->echo = request.echo;
    job->prompt_logprobs = request.prompt_logprobs;
    job->priority = request.priority;
    if (request.deadline) {
      job->deadline = std::chrono::duration<double>(request.deadline->time_since_epoch()).count();
    }

    if (auto* ids = std::get_if<std::vector<TokenId>>(&request.prompt)) {
      if (Status status = check_ids(*ids, "prompt"); !status.ok()) return status.error();
      job->prompt = std::move(*ids);
    } else {
      Result<std::vector<TokenId>> encoded =
          encode(request.prompt, /*add_special=*/true, /*add_generation_prompt=*/true,
                 job->echo ? &job->prompt_text : nullptr);
      if (!encoded.ok()) return encoded.error();
      job->prompt = std::move(*encoded);
    }
    job->prompt.shrink_to_fit();
    job->max_tokens = stop.max_tokens.value_or(std::max(1, max_model_len_ - static_cast<int>(job->prompt.size())));
    if (Status fits = loop_.check(*job); !fits.ok()) return fits.error();
    if (job->echo && job->prompt_text.empty())
      job->prompt_text = tokenizer_->decode(job->prompt, /*skip_special=*/true);
    return job;
  }

  void start(inference::GenerateRequest request, const std::shared_ptr<inference::EventSink>& sink,
             const std::shared_ptr<Ticket>& ticket) {
    const std::string param(prompt_param(request.prompt));
    const Status status = contained([&]() -> Status {
      Result<std::unique_ptr<Job>> made = make_job(request);
      if (!made.ok()) return made.error();
      std::unique_ptr<Job> job = std::move(*made);
      job->sink = sink;
      job->ticket = ticket;
      job->arrival = request.arrival;
      return loop_.submit(std::move(job));
    });
    if (status.ok()) return;
    Error error = status.error();
    if (error.param == "prompt") error.param = param;
    refuse(*ticket, *sink, std::move(error));
  }

  // What is thrown while a prompt is prepared, for want of memory above all, fails its request.
  template <class Work>
  auto contained(Work work) const -> decltype(work()) {
    try {
      return work();
    } catch (const std::exception& fault) {
      return make_error(ErrorCode::internal,
                        "Model " + name_ + " could not prepare the request: " + std::string(fault.what()) + ".");
    }
  }

  const std::string name_;
  const std::shared_ptr<const text::Tokenizer> tokenizer_;
  const ChatRenderer render_chat_;
  model::GenerationDefaults defaults_;
  const int vocab_size_;
  const int max_model_len_;
  const std::size_t max_bytes_;
  const std::string_view kv_dtype_;
  const bool prefix_caching_;
  const std::uint64_t random_base_;
  std::atomic<std::uint64_t> drawn_{0};
  std::atomic<std::uint64_t> refused_long_{0};
  std::atomic<bool> closing_{false};
  EngineLoop loop_;
  PrepThread prep_;  // last: its work uses all of the above
};

}  // namespace

std::shared_ptr<inference::ModelService> make_local_service(LocalServiceParts parts) {
  return std::make_shared<LocalService>(std::move(parts));
}

}  // namespace xgen::engine
