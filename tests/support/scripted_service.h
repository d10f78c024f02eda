// ScriptedService: a ModelService for tests whose answers the prompt itself scripts, made by one engine thread in steps
// of one token per running choice.
//
//   say TEXT     answers TEXT, in pieces of up to 4 bytes
//   hold …       starts, and then says nothing until it is cancelled
//   flood        a kilobyte per token, up to max_tokens
//   clock        each token is the time at which it was made: "@", nanoseconds of the steady clock, ";"
//   error CODE   fails at once with that ErrorCode (as a number), before it starts
//   break        fails after the first token
//   burst        100 megabytes before anybody can send one
//   drizzle      the same of memory, a byte at a time
//   drop         is forgotten without a terminal event, as a faulty engine might
//   think TEXT   reasons "Let me think.", then answers TEXT
//   hidden N     answers "x" after N tokens that it does not stream
//   call         calls every function of `tools` with the arguments {"n": its index}, in pieces
//   else         "tok " up to max_tokens (default 16)
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <list>
#include <mutex>
#include <thread>

#include "base/utf8.h"
#include "inference/model_service.h"

namespace xgen::scripted {

using namespace inference;

class ScriptedService final : public ModelService {
 public:
  // `able`: offers tools, forms of answers, images and extensions, and does nothing with them beyond the script.
  explicit ScriptedService(std::chrono::microseconds step = {}, bool able = false)
      : step_(step), able_(able), thread_([this] { run(); }) {}
  ~ScriptedService() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  std::atomic<int> running{0};
  std::atomic<int> cancelled{0};
  std::atomic<std::uint64_t> tokens{0};
  std::mutex last_mutex;
  GenerateRequest last;  // the latest request as it arrived

  std::unique_ptr<RequestHandle> generate_async(GenerateRequest request, std::shared_ptr<EventSink> sink) override {
    {
      std::lock_guard lock(last_mutex);
      last = request;
    }
    if (auto lacking = not_offered(request, capabilities())) {
      sink->on_event(Failed{*std::move(lacking)});
      return nullptr;
    }
    const std::string text = prompt_text(request.prompt);
    if (text.starts_with("error ")) {
      Error error = make_error(static_cast<ErrorCode>(std::stoi(text.substr(6))), "scripted failure", "prompt");
      error.retry_after_s = 7;
      sink->on_event(Failed{error});
      return nullptr;
    }
    if (text == "burst") {
      sink->on_event(Started{});
      for (int i = 0; i < 100; ++i) sink->on_event(Delta{0, 1, std::string(1 << 20, 'x'), {}});
      sink->on_event(ChoiceFinished{});
      sink->on_event(Finished{});
      return nullptr;
    }
    if (text == "drizzle") {
      sink->on_event(Started{});
      for (int i = 0; i < 1'000'000; ++i) sink->on_event(Delta{0, 1, "x", {}});
      sink->on_event(ChoiceFinished{});
      sink->on_event(Finished{});
      return nullptr;
    }
    auto job = std::make_shared<Job>();
    job->text = text;
    job->limit = request.stop.max_tokens.value_or(16);
    job->request = std::move(request);
    job->sink = std::move(sink);
    auto handle = std::make_unique<Handle>();
    handle->job = job;
    handle->service = this;
    running.fetch_add(1);
    {
      std::lock_guard lock(mutex_);
      inbox_.push_back(std::move(job));
      work_ = true;
    }
    changed_.notify_all();
    return handle;
  }

  void tokenize_async(TokenizeRequest request, std::function<void(Result<Tokenized>)> done) override {
    Tokenized result;
    for (const char c : prompt_text(request.prompt)) {
      result.ids.push_back(static_cast<unsigned char>(c));
      result.tokens.emplace_back(1, c);
    }
    done(std::move(result));
  }
  void detokenize_async(DetokenizeRequest request, std::function<void(Result<std::string>)> done) override {
    std::string text;
    for (const TokenId id : request.ids) {
      if (id > 255) return done(make_error(ErrorCode::invalid_argument, "token id out of range", "tokens"));
      text += static_cast<char>(id);
    }
    done(replace_invalid_utf8(text));
  }
  Capabilities capabilities() const override {
    return {.chat = true,
            .max_model_len = 4096,
            .tools = able_,
            .response_format = able_,
            .images = able_,
            .extensions = able_};
  }
  Health health() const override { return {health_state.load(), 0, ""}; }
  ServiceStats stats() const override { return {}; }
  void close() override {}

  std::atomic<Health::State> health_state{Health::State::ready};

 private:
  struct Job {
    std::string text;
    int limit = 0;
    GenerateRequest request;
    std::shared_ptr<EventSink> sink;
    std::atomic<bool> cancelled{false};
    bool started = false;
    std::size_t said = 0;  // bytes of a "say"
    int made = 0;          // tokens per choice
  };
  struct Handle final : RequestHandle {
    ~Handle() override {
      job->cancelled.store(true);
      {
        std::lock_guard lock(service->mutex_);
        service->work_ = true;
      }
      service->changed_.notify_all();
    }
    std::shared_ptr<Job> job;
    ScriptedService* service = nullptr;
  };

  static std::string prompt_text(const Prompt& prompt) {
    if (const auto* text = std::get_if<std::string>(&prompt)) return *text;
    if (const auto* chat = std::get_if<std::vector<Message>>(&prompt)) return chat->empty() ? "" : chat->back().content;
    return "";
  }

  static std::string time_text() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return "@" + std::to_string(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count()) + ";";
  }

  static int prompt_tokens(const Job& job) {
    if (const auto* ids = std::get_if<std::vector<TokenId>>(&job.request.prompt)) return static_cast<int>(ids->size());
    return 1 + static_cast<int>(std::count(job.text.begin(), job.text.end(), ' '));
  }

  static std::vector<TokenLogprob> logprobs(const Job& job, const std::string& token) {
    if (!job.request.logprobs) return {};
    TokenLogprob entry{1, token, -0.5F, {}};
    for (int i = 0; i < std::max(1, *job.request.logprobs); ++i)
      entry.top.push_back({i + 1, i == 0 ? token : "alt" + std::to_string(i), -0.5F - static_cast<float>(i)});
    return {std::move(entry)};
  }

  static bool holds(const Job& job) { return job.text == "hold" || job.text.starts_with("hold "); }

  // One step of one job; false once it is over.
  bool step(Job& job) {
    const int n = job.request.n;
    Usage usage{prompt_tokens(job), 0, job.made * n};
    const auto finish = [&](FinishReason reason, std::optional<std::variant<std::string, TokenId>> why = {}) {
      for (int choice = 0; choice < n; ++choice) job.sink->on_event(ChoiceFinished{choice, reason, why});
      usage.completion_tokens = job.made * n;
      job.sink->on_event(Finished{usage, {0.001, 0.002, 0.003}});
      return false;
    };
    const auto say = [&](const std::string& piece) {
      ++job.made;
      tokens.fetch_add(static_cast<std::uint64_t>(n), std::memory_order_relaxed);
      for (int choice = 0; choice < n; ++choice) job.sink->on_event(Delta{choice, 1, piece, logprobs(job, piece)});
    };
    if (!job.started) {
      job.started = true;
      Started started{usage, {}, {}};
      if (job.request.echo) started.prompt_text = job.text;
      if (job.request.prompt_logprobs) started.prompt_logprobs = {{0, job.text, std::nullopt, {}}};
      job.sink->on_event(std::move(started));
      if (job.limit == 0) return finish(FinishReason::length);
    }
    if (holds(job)) return true;
    if (job.text == "drop") {
      job.sink.reset();
      return false;
    }
    if (job.text == "break") {
      say("part");
      job.sink->on_event(Failed{make_error(ErrorCode::internal, "scripted failure in the middle")});
      return false;
    }
    if (job.text == "call") {
      int index = 0;
      for (const Tool& tool : job.request.tools) {
        const auto part = [&](ToolCallDelta piece) {
          Delta delta{0, ++job.made == 1 ? 1 : 0, {}, {}};
          delta.tool_calls.push_back(std::move(piece));
          for (delta.choice = 0; delta.choice < n; ++delta.choice) job.sink->on_event(delta);
        };
        part({index, "call_" + std::to_string(index), tool.name, ""});
        part({index, "", "", "{\"n\": "});
        part({index, "", "", std::to_string(index) + "}"});
        ++index;
      }
      return finish(FinishReason::tool_calls);
    }
    if (job.text.starts_with("hidden ")) {
      say("x");
      job.made += std::stoi(job.text.substr(7));
      return finish(FinishReason::stop);
    }
    if (job.text.starts_with("think ") && job.made == 0) {
      ++job.made;
      for (int choice = 0; choice < n; ++choice) {
        Delta delta{choice, 1, {}, {}};
        delta.reasoning = "Let me think.";
        job.sink->on_event(std::move(delta));
      }
      return true;
    }
    if (job.text.starts_with("say ") || job.text.starts_with("think ")) {
      std::string answer = job.text.substr(job.text.find(' ') + 1);
      std::optional<std::variant<std::string, TokenId>> why;
      for (const std::string& stop : job.request.stop.stop)
        if (const auto at = answer.find(stop); at != std::string::npos) {
          answer.resize(at);
          why = stop;
        }
      std::size_t end = std::min(job.said + 4, answer.size());
      while (end < answer.size() && (static_cast<unsigned char>(answer[end]) & 0xc0) == 0x80) ++end;
      if (end > job.said) say(answer.substr(job.said, end - job.said));
      job.said = end;
      if (end == answer.size()) return finish(FinishReason::stop, why);
    } else {
      say(job.text == "flood" ? std::string(1024, 'x') : job.text == "clock" ? time_text() : "tok ");
    }
    return job.made < job.limit || finish(FinishReason::length);
  }

  void run() {
    std::unique_lock lock(mutex_);
    std::list<std::shared_ptr<Job>> jobs;
    bool idle = true;  // every running job holds
    while (!stop_) {
      if (idle) changed_.wait(lock, [this] { return stop_ || work_; });
      work_ = false;
      for (auto& job : inbox_) jobs.push_back(std::move(job));
      inbox_.clear();
      lock.unlock();
      idle = true;
      for (auto it = jobs.begin(); it != jobs.end();) {
        Job& job = **it;
        const bool was_cancelled = job.cancelled.load();
        if (was_cancelled) cancelled.fetch_add(1);
        if (was_cancelled || !step(job)) {
          running.fetch_sub(1);
          it = jobs.erase(it);
        } else {
          idle = idle && holds(job);
          ++it;
        }
      }
      if (!idle && step_.count() > 0) std::this_thread::sleep_for(step_);
      lock.lock();
    }
    const auto left = std::move(inbox_);
    lock.unlock();  // letting go of a sink may let go of a handle, which takes the lock
  }

  const std::chrono::microseconds step_;
  const bool able_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> inbox_;
  bool work_ = false;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace xgen::scripted
