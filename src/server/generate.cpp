#include "server/generate.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <numeric>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "api/answer.h"
#include "base/log.h"
#include "base/units.h"

namespace xgen::server {
namespace {

using inference::Event;

// An answer that is not streamed wakes the server thread this rarely before its end.
constexpr std::size_t kGatheredEvents = 256;
// So much is held back for a client that reads too slowly, to become few events. What comes after goes to the exchange,
// which has limits of its own, and where it counts in the total of all slow clients.
constexpr std::size_t kMaxHeldBytes = std::size_t{64} << 10;
// Of an answer that is not streamed, of one event's part in a stream, and of the events that wait for the server
// thread. A short request can ask for much: every choice repeats an echoed prompt with its log-probabilities.
constexpr std::size_t kMaxAnswerBytes = http::Exchange::kMaxBacklog;

// Of a prompt, and of an answer, where contents are logged.
constexpr std::size_t kMaxLoggedText = std::size_t{32} << 10;

std::size_t memory_of(const std::vector<inference::TokenLogprob>& logprobs) {
  std::size_t bytes = logprobs.size() * sizeof(inference::TokenLogprob);
  for (const inference::TokenLogprob& each : logprobs) bytes += each.top.size() * sizeof(inference::TopLogprob);
  return bytes;
}
std::size_t memory_of(const std::vector<inference::ToolCallDelta>& calls) {
  std::size_t bytes = calls.size() * sizeof(inference::ToolCallDelta);
  for (const inference::ToolCallDelta& each : calls) bytes += each.id.size() + each.name.size() + each.arguments.size();
  return bytes;
}
// About what an event takes while it waits.
std::size_t memory_of(const Event& event) {
  std::size_t bytes = sizeof(std::pair<std::size_t, Event>);
  if (const auto* delta = std::get_if<inference::Delta>(&event))
    bytes += delta->text.size() + delta->reasoning.size() + memory_of(delta->logprobs) + memory_of(delta->tool_calls);
  if (const auto* started = std::get_if<inference::Started>(&event))
    bytes += started->prompt_text.size() + memory_of(started->prompt_logprobs);
  return bytes;
}

// Events arrive on the engine's thread, which only puts them into `inbox_` and asks for a wake-up; one wake-up takes
// all that have come by then. Everything else happens on the exchange's server thread.
class Call final : public http::ExchangeListener, public std::enable_shared_from_this<Call> {
 public:
  Call(std::shared_ptr<http::Exchange> exchange, RequestInfo info, const api::GenerateCall& call, FallbackRoute route,
       api::AnswerHead head, RateShare share)
      : exchange_(std::move(exchange)),
        info_(std::move(info)),
        route_(std::move(route)),
        head_(std::move(head)),
        share_(std::move(share)),
        stream_(call.stream),
        include_usage_(call.include_usage),
        prompts_(call.requests.size()),
        unfinished_(call.requests.size()),
        tokens_(call.requests.size()),
        progress_(call.requests.size()) {
    if (log::content()) said_.resize(prompts_);
  }

  void start(std::vector<inference::GenerateRequest> requests, inference::ModelService& service);

  // On the engine's thread, which serves other requests too: want of memory ends this call alone.
  void deliver(int attempt, std::size_t prompt, Event event) noexcept {
    const bool terminal =
        std::holds_alternative<inference::Finished>(event) || std::holds_alternative<inference::Failed>(event);
    bool wake = false;
    {
      std::lock_guard lock(mutex_);
      if (over_ || lost_ || attempt != attempt_) return;
      inbox_bytes_ += memory_of(event);
      lost_ = inbox_bytes_ > kMaxAnswerBytes;
      try {
        if (!lost_) inbox_.emplace_back(prompt, std::move(event));
      } catch (const std::bad_alloc&) {
        lost_ = no_memory_ = true;
      }
      wake = terminal || lost_ || stream_ || inbox_.size() >= kGatheredEvents;
    }
    if (wake) exchange_->wake();
  }

  void on_wake() override;
  void on_close() override;

 private:
  struct Sink final : inference::EventSink {
    Sink(std::shared_ptr<Call> owner, int number, std::size_t index)
        : call(std::move(owner)), attempt(number), prompt(index) {}
    // An engine that lets go of a request without a terminal event must not leave its client waiting.
    ~Sink() override {
      if (!ended)
        call->deliver(attempt, prompt,
                      inference::Failed{make_error(ErrorCode::internal, "The engine dropped the request.")});
    }
    Sink(const Sink&) = delete;
    Sink& operator=(const Sink&) = delete;
    void on_event(Event event) override {
      ended = std::holds_alternative<inference::Finished>(event) || std::holds_alternative<inference::Failed>(event);
      call->deliver(attempt, prompt, std::move(event));
    }
    std::shared_ptr<Call> call;
    int attempt;
    std::size_t prompt;
    bool ended = false;
  };

  static Error too_long() {
    return make_error(ErrorCode::invalid_argument, "The answer is longer than " + format_bytes(kMaxAnswerBytes) +
                                                       ": ask for fewer choices, tokens or log-probabilities.");
  }
  bool choice_exists(const Event& event) const;
  void submit(inference::ModelService& service);
  void fall_back(const Error& failure);
  bool hold_back(std::size_t prompt, Event& event);
  bool begin_answer();
  bool add(std::size_t prompt, const Event& event);
  void take(std::size_t prompt, const Event& event);
  void count(std::size_t prompt, const Event& event);
  void note_times(const inference::Timings& timings);
  void note_unfinished();
  void log_answers() const;
  void flush_held();
  http::Headers headers() const;
  void fail(const Error& error);
  void end(int status, std::string_view reason = {});

  std::shared_ptr<http::Exchange> exchange_;
  RequestInfo info_;
  FallbackRoute route_;
  api::AnswerHead head_;
  RateShare share_;
  const bool stream_;
  const bool include_usage_;
  std::size_t prompts_;
  std::size_t unfinished_;
  std::vector<inference::GenerateRequest> requests_;    // while another model may have to take them
  std::vector<std::pair<std::size_t, Event>> started_;  // held back until a token follows
  std::size_t started_bytes_ = 0;                       // about, that they take
  bool answering_ = false;                              // the model has given more than Started: no other follows
  std::optional<api::StreamEncoder> encoder_;           // of an answer that is streamed
  std::optional<api::AnswerBuilder> builder_;           // of another
  std::vector<std::unique_ptr<inference::RequestHandle>> handles_;
  std::vector<std::vector<Event>> held_;  // per prompt, while the client reads too slowly
  std::size_t held_bytes_ = 0;
  std::size_t answer_bytes_ = 0;      // about
  std::vector<std::int64_t> tokens_;  // of each prompt's output, so far
  struct Progress {
    std::optional<inference::Timings> until_started;  // nothing: not yet
    bool finished = false;
  };
  std::vector<Progress> progress_;  // of each prompt
  Work work_;
  std::set<std::string_view> reasons_;             // why choices have ended
  std::chrono::steady_clock::time_point arrival_;  // of the requests
  std::vector<std::string> said_;                  // per prompt, while contents are logged
  std::string out_;                                // SSE events of one wake-up
  bool streaming_ = false;
  bool left_ = false;  // by its client

  std::mutex mutex_;
  int attempt_ = 0;              // the number of models tried: events of earlier ones are dropped
  bool over_ = false;            // answered or closed: later events are dropped
  bool lost_ = false;            // an event found no room, and what comes after it is of no use
  bool no_memory_ = false;       // and that was why
  std::size_t inbox_bytes_ = 0;  // about, that the events take
  std::vector<std::pair<std::size_t, Event>> inbox_;
};

void Call::start(std::vector<inference::GenerateRequest> requests, inference::ModelService& service) {
  exchange_->set_listener(shared_from_this());
  requests_ = std::move(requests);
  arrival_ = requests_.front().arrival;
  submit(service);
}

// Hands the requests to the model that the route has come to.
void Call::submit(inference::ModelService& service) {
  if (exchange_->closed()) return;
  head_.model = route_.model();
  int attempt = 0;
  {
    std::lock_guard lock(mutex_);
    attempt = attempt_;
  }
  handles_.reserve(prompts_);
  for (std::size_t i = 0; i < prompts_; ++i) {
    inference::GenerateRequest request = route_.more() ? requests_[i] : std::move(requests_[i]);
    request.trace = {info_.trace, info_.traced ? info_.traced->sink : nullptr};
    auto handle = service.generate_async(std::move(request), std::make_shared<Sink>(shared_from_this(), attempt, i));
    if (handle) handles_.push_back(std::move(handle));
  }
}

// The model has failed before its first token.
void Call::fall_back(const Error& failure) {
  const auto service = route_.next(&failure);
  if (!service) {
    head_.model = route_.asked();  // whose error it is
    return fail(service.error());
  }
  std::vector<std::pair<std::size_t, Event>> dropped;
  {
    std::lock_guard lock(mutex_);
    ++attempt_;
    dropped.swap(inbox_);
    inbox_bytes_ = 0;
    lost_ = no_memory_ = false;
  }
  handles_.clear();  // the call's other prompts go along
  started_.clear();
  started_bytes_ = 0;
  submit(**service);
}

// Started says nothing yet: where another model could follow, the answer does not begin with it.
bool Call::hold_back(std::size_t prompt, Event& event) {
  if (answering_ || !route_.has_fallbacks() || !std::holds_alternative<inference::Started>(event)) return false;
  started_bytes_ += memory_of(event);
  started_.emplace_back(prompt, std::move(event));
  return true;
}

// False if the call is over.
bool Call::begin_answer() {
  if (std::exchange(answering_, true)) return true;
  std::vector<inference::GenerateRequest>().swap(requests_);
  if (stream_)
    encoder_.emplace(head_, prompts_, include_usage_);
  else
    builder_.emplace(head_, prompts_);
  for (const auto& [prompt, event] : std::exchange(started_, {}))
    if (!add(prompt, event)) return false;
  return true;
}

bool Call::choice_exists(const Event& event) const {
  if (const auto* delta = std::get_if<inference::Delta>(&event)) return delta->choice >= 0 && delta->choice < head_.n;
  if (const auto* end = std::get_if<inference::ChoiceFinished>(&event))
    return end->choice >= 0 && end->choice < head_.n;
  return true;
}

void Call::on_wake() {
  std::vector<std::pair<std::size_t, Event>> events;
  bool lost = false;
  bool no_memory = false;
  {
    std::lock_guard lock(mutex_);
    if (over_) return;
    events.swap(inbox_);
    inbox_bytes_ = 0;
    lost = lost_;
    no_memory = no_memory_;
  }
  if (no_memory) return fail(make_error(ErrorCode::internal, "There was no memory for the answer."));
  // Events for more than an answer may have; a stream's could have been sent by a server with more time.
  if (lost && !stream_) return fail(too_long());
  if (lost) return fail(make_error(ErrorCode::internal, "The answer came faster than the server could take it."));
  const std::size_t pending = exchange_->pending_bytes();
  const auto slow = [&] {
    return streaming_ && held_bytes_ < kMaxHeldBytes && pending + out_.size() > http::Exchange::kHighWater;
  };
  if (!slow()) flush_held();
  for (auto& [prompt, event] : events) {
    if (const auto* failed = std::get_if<inference::Failed>(&event)) {
      if (!answering_) return fall_back(failed->error);
      flush_held();
      return fail(failed->error);
    }
    if (!choice_exists(event)) continue;
    if (hold_back(prompt, event)) {
      if (started_bytes_ > kMaxAnswerBytes) return fail(too_long());
      continue;
    }
    if (!begin_answer()) return;
    const auto* delta = std::get_if<inference::Delta>(&event);
    if (delta != nullptr && slow()) {
      held_.resize(prompts_);
      held_bytes_ += memory_of(event);
      held_[prompt].push_back(std::move(event));
      continue;
    }
    flush_held();
    if (!add(prompt, event)) return;
  }
  if (held_bytes_ > 0)
    for (auto& waiting : held_) api::merge_deltas(waiting);
  if (unfinished_ == 0) {
    if (encoder_) {
      encoder_->finish(out_);
      exchange_->write(out_);
      exchange_->end_stream();
    } else {
      exchange_->respond({.status = 200, .body = builder_->json(), .headers = headers()});
    }
    end(200);
  } else if (!out_.empty()) {
    exchange_->write(out_);
    out_.clear();
    if (out_.capacity() > 4096) std::string().swap(out_);
  }
}

void Call::flush_held() {
  if (held_bytes_ == 0) return;
  held_bytes_ = 0;
  for (std::size_t prompt = 0; prompt < held_.size(); ++prompt) {
    api::merge_deltas(held_[prompt]);
    for (const Event& event : std::exchange(held_[prompt], {})) take(prompt, event);
  }
}

// False if the call is over: the answer has become too long.
bool Call::add(std::size_t prompt, const Event& event) {
  const std::size_t size = api::encoded_size(event, head_.n);
  answer_bytes_ = builder_ ? answer_bytes_ + size : size;
  if (answer_bytes_ > kMaxAnswerBytes) {
    fail(too_long());
    return false;
  }
  take(prompt, event);
  return true;
}

void Call::take(std::size_t prompt, const Event& event) {
  count(prompt, event);
  if (builder_) {
    builder_->add(prompt, event);
    return;
  }
  if (!streaming_) {
    // Not before the engine has accepted the request: until then an error still gets its own status.
    streaming_ = true;
    http::Headers all = headers();
    all.insert(all.begin(), {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}});
    exchange_->begin_stream(200, "text/event-stream; charset=utf-8", std::move(all));
  }
  encoder_->add(prompt, event, out_);
}

// What was streamed is a guess where a server streams several tokens at once, or keeps some to itself (hidden
// reasoning): the usage at the end is right.
void Call::count(std::size_t prompt, const Event& event) {
  if (const auto* delta = std::get_if<inference::Delta>(&event)) {
    tokens_[prompt] += delta->tokens;
    if (!said_.empty() && said_[prompt].size() < kMaxLoggedText) said_[prompt] += delta->text;
  }
  if (const auto* started = std::get_if<inference::Started>(&event)) progress_[prompt].until_started = started->timings;
  if (const auto* end = std::get_if<inference::ChoiceFinished>(&event))
    reasons_.insert(inference::finish_name(end->reason));
  if (const auto* finished = std::get_if<inference::Finished>(&event)) {
    --unfinished_;
    tokens_[prompt] = finished->usage.completion_tokens;
    work_.prompt_tokens += finished->usage.prompt_tokens;
    work_.cached_tokens += finished->usage.cached_tokens;
    progress_[prompt].finished = true;
    note_times(finished->timings);
  }
}

// Of prompts whose answer has failed, or is not waited for: what has not begun to answer is in the queue to the end.
void Call::note_unfinished() {
  const std::chrono::duration<double> since = std::chrono::steady_clock::now() - arrival_;
  for (const Progress& each : progress_) {
    if (each.finished) continue;
    inference::Timings timings{since.count(), 0, 0};
    if (each.until_started) {
      timings = *each.until_started;
      timings.decode = since.count() - timings.queue - timings.prefill;
    }
    note_times(timings);
  }
}

// Where the time of one prompt went.
void Call::note_times(const inference::Timings& timings) {
  work_.timings.queue = std::max(work_.timings.queue, timings.queue);
  work_.timings.prefill = std::max(work_.timings.prefill, timings.prefill);
  work_.timings.decode = std::max(work_.timings.decode, timings.decode);
  if (!info_.traced) return;
  auto time = trace::wall_time(arrival_);
  const std::pair<std::string_view, double> phases[] = {
      {"queue", timings.queue}, {"prefill", timings.prefill}, {"decode", timings.decode}};
  for (const auto& [name, seconds] : phases) {
    if (seconds <= 0) continue;
    trace::Span span;
    span.context = trace::child_of(info_.trace);
    span.parent_id = info_.trace.span_id;
    span.name = name;
    span.start = time;
    time += std::chrono::duration_cast<std::chrono::system_clock::duration>(std::chrono::duration<double>(seconds));
    span.end = time;
    info_.traced->sink->add(std::move(span));
  }
}

void Call::log_answers() const {
  for (const std::string& text : said_)
    log::info("server", trace::with_id("answer", info_.trace),
              {{"request_id", info_.id}, {"model", head_.model}, {"text", text}});
}

void Call::fail(const Error& error) {
  const int status = api::error_kind(error.code).status;
  if (streaming_) {
    api::append_stream_error(error, out_);
    exchange_->write(out_);
    exchange_->end_stream();
  } else {
    http::Response response = error_response(error, info_.id);
    response.headers.insert(response.headers.end(), share_.headers.begin(), share_.headers.end());
    exchange_->respond(std::move(response));
  }
  end(status, error.message);
}

http::Headers Call::headers() const {
  http::Headers headers{{"x-request-id", info_.id}};
  if (route_.fell_back()) headers.emplace_back("x-xgen-model", route_.model());
  headers.insert(headers.end(), share_.headers.begin(), share_.headers.end());
  return headers;
}

void Call::on_close() {
  left_ = true;
  end(499, "the client went away");
}

// Logs, and lets go of everything that could keep this call or its requests alive.
void Call::end(int status, std::string_view reason) {
  std::vector<std::pair<std::size_t, Event>> dropped;
  {
    std::lock_guard lock(mutex_);
    if (over_) return;
    over_ = true;
    dropped.swap(inbox_);
  }
  handles_.clear();
  requests_.clear();
  for (std::size_t prompt = 0; prompt < held_.size(); ++prompt)
    for (const Event& event : std::exchange(held_[prompt], {})) count(prompt, event);
  for (const auto& [prompt, event] : dropped) count(prompt, event);
  note_unfinished();
  const std::int64_t written = std::accumulate(tokens_.begin(), tokens_.end(), std::int64_t{0});
  // One that fails before it has begun costs nothing. One that its client leaves does: the prompt may have been
  // computed before there was a token to show for it.
  if (share_.permit != nullptr && (answering_ || left_)) {
    const bool told = unfinished_ == 0 && work_.prompt_tokens > 0;
    share_.permit->settle((told ? work_.prompt_tokens : share_.prompt_tokens) + written);
  }
  share_.permit.reset();
  work_.completion_tokens = written;
  work_.complete = unfinished_ == 0;
  work_.finish_reasons.assign(reasons_.begin(), reasons_.end());
  log_answers();
  finish_request(info_,
                 {.status = status, .model = head_.model, .response_id = head_.id, .work = &work_, .reason = reason});
}

}  // namespace

void add_retry_after(http::Response& response, int seconds) {
  if (response.status == 429 || response.status == 503)
    response.headers.emplace_back("Retry-After", std::to_string(std::max(1, seconds)));
}

http::Response error_response(const Error& error, const std::string& request_id, const api::ErrorKind& kind) {
  http::Response response{.status = kind.status, .body = api::error_json(error, kind)};
  response.headers.emplace_back("x-request-id", request_id);
  add_retry_after(response, error.retry_after_s);
  return response;
}

http::Response error_response(const Error& error, const std::string& request_id) {
  return error_response(error, request_id, api::error_kind(error.code));
}

namespace {

// What the model is asked, for people to read.
std::string text_of(const inference::Prompt& prompt) {
  std::string text;
  if (const auto* given = std::get_if<std::string>(&prompt)) text = given->substr(0, kMaxLoggedText);
  if (const auto* ids = std::get_if<std::vector<inference::TokenId>>(&prompt)) {
    for (const inference::TokenId id : *ids) {
      if (text.size() > kMaxLoggedText) break;
      text.append(text.empty() ? "" : " ").append(std::to_string(id));
    }
  }
  if (const auto* messages = std::get_if<std::vector<inference::Message>>(&prompt)) {
    for (const inference::Message& each : *messages) {
      if (text.size() > kMaxLoggedText) break;
      text.append(text.empty() ? "" : "\n").append(each.role).append(": ").append(each.content, 0, kMaxLoggedText);
      for (const inference::ContentPart& part : each.parts)
        text.append(part.kind == inference::ContentPart::Kind::text ? part.value.substr(0, kMaxLoggedText) : "[image]");
    }
  }
  return text.substr(0, kMaxLoggedText);
}

// Names of the OpenTelemetry conventions for generative AI.
void describe_call(const api::GenerateCall& call, TracedRequest& traced) {
  const auto add = [&](std::string_view name, trace::Value value) {
    traced.attributes.emplace_back(std::string(name), std::move(value));
  };
  const inference::GenerateRequest& request = call.requests.front();
  const std::string operation = call.endpoint == api::Endpoint::chat ? "chat" : "text_completion";
  const std::string model = call.model.substr(0, log::kMaxQuoted);
  traced.name = operation + " " + model;
  add("gen_ai.operation.name", operation);
  add("gen_ai.provider.name", "xgen-model");
  add("gen_ai.request.model", model);
  add("gen_ai.request.choice.count", std::int64_t{request.n});
  if (request.stop.max_tokens) add("gen_ai.request.max_tokens", std::int64_t{*request.stop.max_tokens});
  if (request.sampling.temperature) add("gen_ai.request.temperature", double{*request.sampling.temperature});
  if (request.sampling.top_p) add("gen_ai.request.top_p", double{*request.sampling.top_p});
  if (request.sampling.top_k) add("gen_ai.request.top_k", static_cast<double>(*request.sampling.top_k));
  if (const float penalty = request.sampling.frequency_penalty; penalty != 0)
    add("gen_ai.request.frequency_penalty", double{penalty});
  if (const float penalty = request.sampling.presence_penalty; penalty != 0)
    add("gen_ai.request.presence_penalty", double{penalty});
  if (request.sampling.seed) add("gen_ai.request.seed", static_cast<std::int64_t>(*request.sampling.seed));
}

}  // namespace

void generate(std::shared_ptr<http::Exchange> exchange, RequestInfo info, api::GenerateCall call, FallbackRoute route,
              inference::ModelService& service, std::string fingerprint, RateShare share) {
  const auto& first = call.requests.front();
  if (info.traced) describe_call(call, *info.traced);
  if (log::content())
    for (const inference::GenerateRequest& each : call.requests)
      log::info("server", trace::with_id("prompt", info.trace),
                {{"request_id", info.id}, {"model", call.model}, {"text", text_of(each.prompt)}});
  api::AnswerHead head{
      .endpoint = call.endpoint,
      .id = (call.endpoint == api::Endpoint::chat ? "chatcmpl-" : "cmpl-") + info.id,
      .created =
          std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count(),
      .model = call.model,
      .fingerprint = std::move(fingerprint),
      .n = first.n,
      .logprobs = first.logprobs.has_value(),
      .top_logprobs = first.logprobs.value_or(0),
  };
  for (std::size_t i = 0; i < call.requests.size(); ++i)
    call.requests[i].request_id = i == 0 ? info.id : info.id + "-" + std::to_string(i);
  const auto running = std::make_shared<Call>(std::move(exchange), std::move(info), call, std::move(route),
                                              std::move(head), std::move(share));
  running->start(std::move(call.requests), service);
}

}  // namespace xgen::server
