#include "engine/engine_loop.h"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <optional>

#include "base/log.h"

namespace xgen::engine {
namespace {

// A step that takes longer is worth a warning.
constexpr double kDegradedAfterSeconds = 60;
constexpr int kMaxRetryAfterSeconds = 60;
constexpr int kRetryAfterFailureSeconds = 30;

double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }
double clock_seconds(Clock::time_point t) { return seconds(t.time_since_epoch()); }
std::int64_t clock_ns(Clock::time_point t) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(t.time_since_epoch()).count();
}

}  // namespace

struct EngineLoop::Inbox {
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::unique_ptr<Job>> submitted;
  std::vector<RequestId> cancelled;
  RequestId last_id = 0;
  std::uint64_t reclaim_spare = 0;  // bytes to be given back, of what is only kept in case it is useful
  std::uint64_t reclaim_must = 0;   // and in any case
  bool stopping = false;
  bool asleep = false;
  std::optional<Error> failure;           // why the loop has ended by itself
  std::function<void(Error)> on_failure;  // until it is called
  std::atomic<int> waiting{0};            // requests that have not begun

  bool reclaims() const { return reclaim_spare > 0 || reclaim_must > 0; }
  void notify(std::unique_lock<std::mutex>& lock) {
    const bool asleep_now = asleep;
    lock.unlock();
    if (asleep_now) wake.notify_one();
  }
};

struct EngineLoop::Handle final : inference::RequestHandle {
  Handle(std::shared_ptr<Inbox> inbox_in, std::shared_ptr<Ticket> ticket_in)
      : inbox(std::move(inbox_in)), ticket(std::move(ticket_in)) {}
  ~Handle() override {
    ticket->cancelled.store(true, std::memory_order_relaxed);
    if (ticket->ended.load(std::memory_order_acquire)) return;
    std::unique_lock lock(inbox->mutex);
    if (ticket->id == 0 || inbox->stopping) return;
    inbox->cancelled.push_back(ticket->id);
    inbox->notify(lock);
  }
  std::shared_ptr<Inbox> inbox;
  std::shared_ptr<Ticket> ticket;
};

EngineLoop::EngineLoop(EngineLoopOptions options, const SchedulerOptions& scheduler,
                       std::unique_ptr<ModelRunner> runner, std::shared_ptr<const text::Tokenizer> tokenizer)
    : options_(std::move(options)),
      scheduler_([&] {
        SchedulerOptions with_lender = scheduler;
        if (options_.account != nullptr) with_lender.lender = this;
        return with_lender;
      }()),
      runner_(std::move(runner)),
      tokenizer_(std::move(tokenizer)),
      inbox_(std::make_shared<Inbox>()) {
  publish_stats();
  if (options_.account != nullptr) {
    if (scheduler.least_blocks > 0) {
      const int others = std::max(0, scheduler.own_blocks - scheduler.least_blocks);
      const std::uint64_t more = static_cast<std::uint64_t>(others) * options_.block_bytes;
      const std::uint64_t reserved = options_.account->reserved();
      options_.account->may_lend(reserved - std::min(reserved, more), options_.block_bytes);
    }
    options_.account->on_reclaim([inbox = inbox_](std::uint64_t bytes, bool must) {
      std::unique_lock lock(inbox->mutex);
      // Who asks again before anything has come asks for the same.
      std::uint64_t& wanted = must ? inbox->reclaim_must : inbox->reclaim_spare;
      wanted = std::max(wanted, bytes);
      inbox->notify(lock);
    });
  }
  thread_ = std::thread([this] { run(); });
}

EngineLoop::~EngineLoop() {
  if (options_.account != nullptr) options_.account->on_reclaim({});
  stop();
  thread_.join();
}

void EngineLoop::stop() {
  std::unique_lock lock(inbox_->mutex);
  inbox_->stopping = true;
  inbox_->notify(lock);
}

std::unique_ptr<inference::RequestHandle> EngineLoop::make_handle(std::shared_ptr<Ticket> ticket) const {
  return std::make_unique<Handle>(inbox_, std::move(ticket));
}

Status EngineLoop::submit(std::unique_ptr<Job> job) {
  if (Status fits = scheduler_.check(*job); !fits.ok()) return fits;
  std::unique_lock lock(inbox_->mutex);
  if (failure_) return *failure_;
  if (inbox_->stopping || dead_.load(std::memory_order_relaxed)) {
    return make_error(ErrorCode::unavailable, "Model " + options_.name + " is not running any more.");
  }
  if (job->ticket->cancelled.load(std::memory_order_relaxed)) return {};
  if (inbox_->waiting.load(std::memory_order_relaxed) >= options_.max_waiting) {
    lock.unlock();
    {
      std::lock_guard stats_lock(stats_mutex_);
      ++stats_.rejected_queue_full;
    }
    Error error = make_error(ErrorCode::overloaded, "Model " + options_.name + " already has " +
                                                        std::to_string(options_.max_waiting) + " requests waiting.");
    error.retry_after_s = retry_after_s_.load(std::memory_order_relaxed);
    return error;
  }
  inbox_->waiting.fetch_add(1, std::memory_order_relaxed);
  job->id = job->ticket->id = ++inbox_->last_id;
  inbox_->submitted.push_back(std::move(job));
  inbox_->notify(lock);
  return {};
}

void EngineLoop::on_failure(std::function<void(Error)> failed) {
  {
    std::lock_guard lock(inbox_->mutex);
    if (!inbox_->failure) {
      inbox_->on_failure = std::move(failed);
      return;
    }
  }
  failed(*inbox_->failure);
}

// The whole of a step: plan, run, commit. Nothing is committed of a run that went wrong.
Status EngineLoop::step() {
  const StepPlan& plan = scheduler_.plan();
  note_scheduled(plan);
  runner_->run(plan, result_);
  if (Status fault = runner_->fault(); !fault.ok()) return fault;
  deliver(scheduler_.commit(result_));
  improvable_ = improvable_ && runner_->improve();
  return {};
}

void EngineLoop::run() {
  Status status;
  try {
    while (status.ok() && receive()) status = step();
  } catch (const std::exception& fault) {
    status = make_error(ErrorCode::internal, fault.what());
  }
  if (status.ok()) return give_up(make_error(ErrorCode::unavailable, "Model " + options_.name + " is shutting down."));
  const std::string& reason = status.error().message;
  log::error("engine", "the engine of a model failed", {{"model", options_.name}, {"reason", reason}});
  Error error = make_error(ErrorCode::unavailable, "Model " + options_.name + " has failed: " + reason);
  error.retry_after_s = kRetryAfterFailureSeconds;
  give_up(error);
  return_borrowed();
  std::function<void(Error)> failed;
  {
    std::lock_guard lock(inbox_->mutex);
    inbox_->failure = status.error();
    failed = std::exchange(inbox_->on_failure, {});
  }
  if (failed) failed(status.error());
}

// Takes what has arrived, and sleeps while there is nothing to do. False: stop.
bool EngineLoop::receive() {
  for (;;) {
    {
      std::unique_lock lock(inbox_->mutex);
      if (!scheduler_.has_work() && inbox_->submitted.empty() && inbox_->cancelled.empty() && !inbox_->stopping &&
          !inbox_->reclaims()) {
        if (improvable_) {
          lock.unlock();
          step_began_.store(0, std::memory_order_relaxed);
          improvable_ = runner_->improve();
          continue;
        }
        runner_->rest();
        step_began_.store(0, std::memory_order_relaxed);
        if (scheduler_.pool().used() != 0) {
          log::error("engine", "blocks of the KV cache are in use while no request is",
                     {{"model", options_.name}, {"blocks", scheduler_.pool().used()}});
        }
        inbox_->asleep = true;
        inbox_->wake.wait(lock, [this] {
          return !inbox_->submitted.empty() || !inbox_->cancelled.empty() || inbox_->stopping || inbox_->reclaims();
        });
        inbox_->asleep = false;
      }
      if (inbox_->stopping) return false;
      incoming_.swap(inbox_->submitted);
      cancelled_.swap(inbox_->cancelled);
    }
    bool changed = !incoming_.empty() || !cancelled_.empty();
    const Clock::time_point now = Clock::now();
    step_began_.store(clock_ns(now), std::memory_order_relaxed);
    for (std::unique_ptr<Job>& job : incoming_) {
      Job& added = *jobs_.emplace(job->id, std::move(job)).first->second;
      if (added.max_tokens > 0 || (added.prompt_logprobs && added.prompt.size() > 1)) {
        scheduler_.submit(added);
      } else {
        start_event(added, now);
        end_without_tokens(added, now);
      }
    }
    incoming_.clear();
    for (RequestId id : cancelled_) {
      const auto found = jobs_.find(id);
      if (found == jobs_.end() || found->second->over) continue;
      counts_.finished_abort += static_cast<std::uint64_t>(found->second->n - found->second->ended_choices);
      found->second->ticket->ended.store(true, std::memory_order_release);
      scheduler_.cancel(*found->second);
      forget(*found->second);
    }
    cancelled_.clear();
    if (options_.account != nullptr && give_back()) changed = true;
    while (Request* late = scheduler_.expired(clock_seconds(now))) {
      fail(static_cast<Job&>(*late), make_error(ErrorCode::timeout, "The request's time limit has passed."));
      changed = true;
    }
    if (changed) flush();
    if (scheduler_.has_work()) return true;
  }
}

int EngineLoop::borrow(int blocks) {
  while (blocks > 0 && !options_.account->borrow(static_cast<std::uint64_t>(blocks) * options_.block_bytes))
    blocks /= 2;
  return blocks;
}

// Gives back what others want of the borrowed blocks; whether it did.
bool EngineLoop::give_back() {
  std::uint64_t spare = 0;
  std::uint64_t must = 0;
  {
    std::lock_guard lock(inbox_->mutex);
    spare = std::exchange(inbox_->reclaim_spare, 0);
    must = std::exchange(inbox_->reclaim_must, 0);
  }
  if (spare == 0 && must == 0) return false;
  const std::uint64_t borrowed = options_.account->borrowed() / options_.block_bytes;
  const auto blocks = [this, borrowed](std::uint64_t bytes) {
    return static_cast<int>(
        std::min<std::uint64_t>({(bytes + options_.block_bytes - 1) / options_.block_bytes, borrowed,
                                 static_cast<std::uint64_t>(scheduler_.pool().num_blocks())}));
  };
  discarded_.clear();
  scheduler_.give_back(blocks(must), true, discarded_);
  const int more = blocks(spare) - static_cast<int>(discarded_.size());
  scheduler_.give_back(more, false, discarded_);
  if (discarded_.empty()) return false;
  runner_->discard(discarded_);
  options_.account->give_back(discarded_.size() * options_.block_bytes);
  return true;
}

// A failed engine computes nothing any more: others get what it has borrowed, though the model is still there.
void EngineLoop::return_borrowed() {
  if (options_.account == nullptr) return;
  options_.account->on_reclaim({});
  discarded_.clear();
  for (BlockId block = 0; block < scheduler_.pool().num_blocks(); ++block) discarded_.push_back(block);
  runner_->discard(discarded_);
  options_.account->give_back(options_.account->borrowed());
}

void EngineLoop::note_scheduled(const StepPlan& plan) {
  counts_.iteration_tokens.observe(plan.rows);
  const Clock::time_point now = Clock::now();
  for (const ScheduledSequence& item : plan.items) {
    Job& job = static_cast<Job&>(*item.sequence->request);
    if (job.is_scheduled) continue;
    job.is_scheduled = true;
    job.scheduled = now;
    inbox_->waiting.fetch_sub(1, std::memory_order_relaxed);
    counts_.queue_time.observe(seconds(now - job.arrival));
  }
}

void EngineLoop::deliver(const std::vector<Update>& updates) {
  const Clock::time_point now = Clock::now();
  for (const Update& update : updates) take_update(update, now);
  flush();
}

void EngineLoop::take_update(const Update& update, Clock::time_point now) {
  Job& job = static_cast<Job&>(*update.sequence->request);
  if (job.over) return;
  if (update.result->error) {
    fail(job, *update.result->error);
    return;
  }
  for (const TokenScore& score : update.result->prompt_scores) {
    job.prompt_scores.push_back(describe_score(score, *tokenizer_));
  }
  if (update.prompt_done && !job.started) start_event(job, now);
  if (job.max_tokens > 0) {
    if (update.result->token >= 0) take_token(job, update, now);
  } else if (update.finished) {
    end_without_tokens(job, now);
  }
}

// Only the prompt was wanted: every choice is at its end. The scheduler made the first one alone, if any.
void EngineLoop::end_without_tokens(Job& job, Clock::time_point now) {
  for (int choice = 0; choice < job.n; ++choice) {
    ++counts_.finished_length;
    events_.push_back({&job, inference::ChoiceFinished{choice, inference::FinishReason::length, std::nullopt}});
  }
  if (!job.is_scheduled) job.scheduled = now;
  job.first_token = job.last_token = now;
  scheduler_.cancel(job);
  finish_job(job);
}

void EngineLoop::start_event(Job& job, Clock::time_point now) {
  job.started = true;
  inference::Started started;
  const Clock::time_point scheduled = job.is_scheduled ? job.scheduled : now;
  started.timings = {seconds(scheduled - job.arrival), seconds(now - scheduled), 0};
  started.usage.prompt_tokens = static_cast<int>(job.prompt.size());
  started.usage.cached_tokens = job.cached_tokens;
  started.prompt_text = std::move(job.prompt_text);
  if (job.prompt_logprobs) {
    inference::TokenLogprob first;  // nothing precedes it, so it has no probability
    first.id = job.prompt.front();
    first.token = tokenizer_->token_bytes(first.id);
    started.prompt_logprobs.push_back(std::move(first));
    for (inference::TokenLogprob& score : job.prompt_scores) started.prompt_logprobs.push_back(std::move(score));
    job.prompt_scores = {};
  }
  counts_.prompt_tokens += job.prompt.size();
  counts_.prompt_tokens_cached += static_cast<std::uint64_t>(job.cached_tokens);
  events_.push_back({&job, std::move(started)});
}

void EngineLoop::take_token(Job& job, const Update& update, Clock::time_point now) {
  Sequence& sequence = *update.sequence;
  const TokenId token = update.result->token;
  if (job.outputs.empty()) job.outputs.resize(static_cast<std::size_t>(job.n));
  Job::Choice& choice = job.outputs[static_cast<std::size_t>(sequence.choice)];
  if (!choice.output) {
    choice.output = std::make_unique<ChoiceOutput>(tokenizer_, job.stop, job.min_tokens, job.prompt);
  } else {
    counts_.inter_token_latency.observe(seconds(now - choice.last_token));
  }
  choice.last_token = now;
  if (job.completion_tokens++ == 0) {
    job.first_token = now;
    counts_.time_to_first_token.observe(seconds(now - job.arrival));
    counts_.prefill_time.observe(seconds(now - job.scheduled));
  }
  job.last_token = now;
  ++counts_.generation_tokens;

  inference::ChoiceFinished end;
  end.choice = sequence.choice;
  bool ended = false;
  if (update.finished == inference::FinishReason::stop) {
    choice.output->push_silent();
    ended = true;
    if (!update.stopped_by_eos) end.stop_reason = token;
  } else {
    const TokenScore* score = update.result->score ? &*update.result->score : nullptr;
    if (const auto matched = choice.output->push(token, score)) {
      end.stop_reason = job.stop[*matched];
      ended = true;
      scheduler_.finish(sequence);
    } else if (update.finished) {
      end.reason = *update.finished;
      ended = true;
    }
  }
  if (ended) choice.output->end();
  inference::Delta delta;
  if (choice.output->take(delta)) {
    delta.choice = sequence.choice;
    events_.push_back({&job, std::move(delta)});
  }
  if (!ended) return;
  ++(end.reason == inference::FinishReason::stop ? counts_.finished_stop : counts_.finished_length);
  choice.output.reset();
  events_.push_back({&job, std::move(end)});
  if (++job.ended_choices == job.n) finish_job(job);
}

void EngineLoop::finish_job(Job& job) {
  inference::Finished finished;
  finished.usage = {static_cast<int>(job.prompt.size()), job.cached_tokens, job.completion_tokens};
  finished.timings = {seconds(job.scheduled - job.arrival), seconds(job.first_token - job.scheduled),
                      seconds(job.last_token - job.first_token)};
  const double inference_seconds = finished.timings.prefill + finished.timings.decode;
  counts_.decode_time.observe(finished.timings.decode);
  counts_.inference_time.observe(inference_seconds);
  counts_.e2e_latency.observe(finished.timings.queue + inference_seconds);
  counts_.request_prompt_tokens.observe(static_cast<double>(job.prompt.size()));
  counts_.request_generation_tokens.observe(job.completion_tokens);
  counts_.request_max_tokens.observe(job.max_tokens);
  counts_.request_n.observe(job.n);
  const int per_choice = (job.completion_tokens + job.n - 1) / job.n;
  if (per_choice > 1) counts_.time_per_output_token.observe(finished.timings.decode / (per_choice - 1));
  mean_seconds_ += 0.1 * (inference_seconds - mean_seconds_);
  events_.push_back({&job, finished});
  forget(job);
}

void EngineLoop::fail(Job& job, Error error) {
  counts_.finished_error += static_cast<std::uint64_t>(job.n - job.ended_choices);
  scheduler_.cancel(job);
  events_.push_back({&job, inference::Failed{std::move(error)}});
  forget(job);
}

// No event of this job is queued from now on. It is destroyed by flush(), once those that are have gone out.
void EngineLoop::forget(Job& job) {
  job.over = true;
  if (!job.is_scheduled) inbox_->waiting.fetch_sub(1, std::memory_order_relaxed);
  ended_.push_back(job.id);
}

// Sends the step's events. The counts go first: whoever has seen an event finds it counted.
void EngineLoop::flush() {
  publish_stats();
  for (QueuedEvent& queued : events_) {
    Ticket& ticket = *queued.job->ticket;
    if (ticket.cancelled.load(std::memory_order_relaxed) || ticket.ended.load(std::memory_order_relaxed)) continue;
    const bool terminal = std::holds_alternative<inference::Finished>(queued.event) ||
                          std::holds_alternative<inference::Failed>(queued.event);
    // Before the event: its receiver may drop the handle at once.
    if (terminal) ticket.ended.store(true, std::memory_order_release);
    queued.job->sink->on_event(std::move(queued.event));
  }
  events_.clear();
  for (RequestId id : ended_) jobs_.erase(id);
  ended_.clear();
}

void EngineLoop::publish_stats() {
  counts_.requests_running = scheduler_.num_running();
  counts_.requests_waiting = scheduler_.num_waiting();
  counts_.kv_block_size = static_cast<std::uint64_t>(scheduler_.pool().block_size());
  const int present = scheduler_.pool().num_blocks() - scheduler_.pool().absent();
  counts_.kv_blocks = static_cast<std::uint64_t>(present);
  counts_.kv_cache_usage = static_cast<double>(scheduler_.pool().used()) / std::max(1, present);
  counts_.prefix_cache_queries = scheduler_.stats().prefix_queries;
  counts_.prefix_cache_hits = scheduler_.stats().prefix_hits;
  counts_.preemptions = scheduler_.stats().preemptions;
  const double drain =
      mean_seconds_ * static_cast<double>(scheduler_.num_waiting()) / scheduler_.options().max_num_seqs;
  retry_after_s_.store(static_cast<int>(std::clamp(std::ceil(drain), 1.0, static_cast<double>(kMaxRetryAfterSeconds))),
                       std::memory_order_relaxed);
  std::lock_guard lock(stats_mutex_);
  counts_.rejected_queue_full = stats_.rejected_queue_full;  // counted by submit()
  stats_ = counts_;
}

// Ends everything: no request is left without its terminal event.
void EngineLoop::give_up(const Error& error) {
  {
    std::lock_guard lock(inbox_->mutex);
    dead_.store(true, std::memory_order_relaxed);
    failure_ = error;
    for (std::unique_ptr<Job>& job : inbox_->submitted) incoming_.push_back(std::move(job));
    inbox_->submitted.clear();
  }
  for (std::unique_ptr<Job>& job : incoming_) {
    if (!job) continue;
    events_.push_back({job.get(), inference::Failed{error}});
    job->over = true;
    jobs_.emplace(job->id, std::move(job));
  }
  for (auto& [id, job] : jobs_) {
    if (!job->over) events_.push_back({job.get(), inference::Failed{error}});
    ended_.push_back(id);
  }
  flush();
  step_began_.store(0, std::memory_order_relaxed);
}

inference::Health EngineLoop::health() const {
  inference::Health health;
  if (dead_.load(std::memory_order_relaxed)) {
    health.state = inference::Health::State::dead;
    health.detail = "the engine has stopped";
    return health;
  }
  const std::int64_t began = step_began_.load(std::memory_order_relaxed);
  if (began != 0) health.seconds_since_step = static_cast<double>(clock_ns(Clock::now()) - began) * 1e-9;
  if (health.seconds_since_step > kDegradedAfterSeconds) {
    health.state = inference::Health::State::degraded;
    health.detail =
        "the current step has been running for " + std::to_string(static_cast<int>(health.seconds_since_step)) + " s";
  }
  return health;
}

inference::ServiceStats EngineLoop::stats() const {
  std::lock_guard lock(stats_mutex_);
  return stats_;
}

}  // namespace xgen::engine
