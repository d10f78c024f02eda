// EngineLoop: the one thread that owns scheduler and runner of a model, and delivers what they produce.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/memory_budget.h"
#include "engine/choice_output.h"
#include "engine/model_runner.h"
#include "engine/scheduler.h"
#include "inference/model_service.h"
#include "text/tokenizer.h"

namespace xgen::engine {

using Clock = std::chrono::steady_clock;

// What the client's handle and the engine share of one request.
struct Ticket {
  std::atomic<bool> cancelled{false};
  std::atomic<bool> ended{false};  // the terminal event is delivered, or never will be
  RequestId id = 0;                // guarded by the inbox's mutex; 0: not in the inbox yet
};

// A request with all that its delivery needs.
struct Job final : Request {
  std::shared_ptr<inference::EventSink> sink;
  std::shared_ptr<Ticket> ticket;
  std::vector<std::string> stop;
  bool echo = false;
  std::string prompt_text;  // if echo
  Clock::time_point arrival;

  // Kept by the loop.
  Clock::time_point scheduled;
  Clock::time_point first_token;
  Clock::time_point last_token;
  bool is_scheduled = false;
  bool started = false;   // the Started event is out
  bool over = false;      // its last event is queued
  int ended_choices = 0;  // whose end is queued; the scheduler may be ahead within a step
  int completion_tokens = 0;
  std::vector<inference::TokenLogprob> prompt_scores;
  struct Choice {
    std::unique_ptr<ChoiceOutput> output;
    Clock::time_point last_token;
  };
  std::vector<Choice> outputs;  // by choice
};

struct EngineLoopOptions {
  std::string name;        // of the model, for the log
  int max_waiting = 1024;  // requests that have not begun; more are refused as overloaded
  // Where the memory of the scheduler's further blocks comes from, and what one takes; null: there are none.
  std::shared_ptr<MemoryBudget::Account> account;
  std::uint64_t block_bytes = 0;
};

class EngineLoop final : private BlockLender {
 public:
  EngineLoop(EngineLoopOptions options, const SchedulerOptions& scheduler, std::unique_ptr<ModelRunner> runner,
             std::shared_ptr<const text::Tokenizer> tokenizer);
  // Requests that are still there fail as unavailable.
  ~EngineLoop() override;
  // As the destructor does to requests, without waiting for it. Thread-safe.
  void stop();
  EngineLoop(const EngineLoop&) = delete;
  EngineLoop& operator=(const EngineLoop&) = delete;

  // A handle whose destruction cancels the request, before or after it is submitted. It may outlive the loop.
  std::unique_ptr<inference::RequestHandle> make_handle(std::shared_ptr<Ticket> ticket) const;
  // invalid_argument if the job can never fit.
  Status check(const Job& job) const { return scheduler_.check(job); }
  // Takes the job, or refuses it: check(), overloaded (with retry_after_s), unavailable.
  // A job whose ticket is cancelled vanishes. Thread-safe.
  Status submit(std::unique_ptr<Job> job);

  // As ModelService::on_failure.
  void on_failure(std::function<void(Error)> failed);
  inference::Health health() const;
  inference::ServiceStats stats() const;

 private:
  struct Inbox;
  struct Handle;
  struct QueuedEvent {
    Job* job;
    inference::Event event;
  };

  void run();
  Status step();
  bool receive();
  void note_scheduled(const StepPlan& plan);
  void deliver(const std::vector<Update>& updates);
  void take_update(const Update& update, Clock::time_point now);
  void take_token(Job& job, const Update& update, Clock::time_point now);
  void start_event(Job& job, Clock::time_point now);
  void end_without_tokens(Job& job, Clock::time_point now);
  void finish_job(Job& job);
  void fail(Job& job, Error error);
  void forget(Job& job);
  void flush();
  int borrow(int blocks) override;
  bool give_back();
  void return_borrowed();
  void publish_stats();
  void give_up(const Error& error);

  const EngineLoopOptions options_;
  Scheduler scheduler_;
  std::unique_ptr<ModelRunner> runner_;
  bool improvable_ = true;  // the runner may have something to improve; the loop's thread alone
  std::shared_ptr<const text::Tokenizer> tokenizer_;
  std::shared_ptr<Inbox> inbox_;

  // Of the engine thread.
  std::vector<std::unique_ptr<Job>> incoming_;
  std::vector<RequestId> cancelled_;
  std::unordered_map<RequestId, std::unique_ptr<Job>> jobs_;
  StepResult result_;
  std::vector<BlockId> discarded_;
  std::vector<QueuedEvent> events_;
  std::vector<RequestId> ended_;
  inference::ServiceStats counts_;
  double mean_seconds_ = 1;  // of recent requests, scheduled to finished

  mutable std::mutex stats_mutex_;
  inference::ServiceStats stats_;
  std::atomic<std::int64_t> step_began_{0};  // steady clock, ns; 0 = idle
  std::atomic<int> retry_after_s_{1};
  std::atomic<bool> dead_{false};
  std::optional<Error> failure_;  // why it gave up; guarded by the inbox
  std::thread thread_;
};

}  // namespace xgen::engine
