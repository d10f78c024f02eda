#include "client/load.h"

#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <utility>

namespace xgen::client {
namespace {

double seconds_of(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

std::string fault_text(const Record& record) {
  std::string text(fault_name(record.fault));
  if (record.fault == Fault::refused) text += " " + std::to_string(record.status);
  return text;
}

// One request and its answer. It keeps itself alive: the call holds it until its end.
class Load::Exchange final : public http::CallListener {
 public:
  Exchange(Load& load, Record record) : load_(load), record_(std::move(record)) {}

  // What comes may be over before the handle is here.
  void hold(std::unique_ptr<http::Call> call) { call_ = std::move(call); }

  void on_head(http::ResponseHead head) override { answer_.head(head); }
  void on_body(std::string_view bytes) override {
    const double now = load_.elapsed();
    answer_.body(bytes, [this, now](const Answer::Piece&) {
      if (record_.events++ == 0)
        record_.first = now;
      else
        record_.gaps.push_back(static_cast<float>(now - record_.last));
      record_.last = now;
      load_.events_.fetch_add(1, std::memory_order_relaxed);
    });
  }
  void on_end(http::CallEnd end) override {
    record_.end = load_.elapsed();
    answer_.end(end);
    load_.finished(std::move(record_), answer_);
  }

 private:
  Load& load_;
  Record record_;
  Answer answer_;
  std::unique_ptr<http::Call> call_;
};

Load::Load(LoadOptions options, const RequestMaker& maker, const std::vector<TraceRow>* trace)
    : options_(std::move(options)), maker_(maker), trace_(trace) {
  result_.begin = options_.warmup;
}

// These three with the lock held, while there is a client.
Load::Cpu Load::cpu_now() const {
  return {seconds_of(CLOCK_PROCESS_CPUTIME_ID), client_->thread_seconds(), seconds_of(sender_)};
}

void Load::note_cpu() {
  if (!cpu_begin_) return;
  const Cpu now = cpu_now();
  result_.cpu = now.process - cpu_begin_->process;
  result_.sender = now.sender - cpu_begin_->sender;
  for (std::size_t i = 0; i < now.receivers.size(); ++i)
    result_.receiver = std::max(result_.receiver, now.receivers[i] - cpu_begin_->receivers[i]);
}

void Load::end_sending(double end) {
  if (over_) return;
  over_ = true;
  result_.end = end;
  note_cpu();
  changed_.notify_all();
}

// Sends the next request, which was planned for then, or is now. False once nothing more is to be sent.
bool Load::launch(std::optional<double> planned) {
  Record record;
  std::uint64_t number = 0;
  {
    std::lock_guard lock(mutex_);
    if (over_) return false;
    record.planned = planned ? *planned : elapsed();
    record.counted = record.planned >= options_.warmup;
    const double end = options_.warmup + options_.duration.value_or(0);
    const bool at_end = options_.duration && record.planned >= end;
    const bool all = record.counted && options_.requests && started_ == *options_.requests;
    if (at_end || all || next_ == kMaxRequests) {
      if (next_ == kMaxRequests)
        result_.ended = "after " + std::to_string(kMaxRequests) + " requests, the most there can be";
      end_sending(at_end ? end : -1);
      return false;
    }
    number = next_++;
    if (record.counted && started_++ == 0) cpu_begin_ = cpu_now();
    if (running_ == options_.max_running) {
      // Without a call, which would take time from those that run.
      record.sent = record.end = elapsed();
      record.fault = Fault::not_sent;
      ended_ += record.counted ? 1 : 0;
      failed_ += record.counted ? 1 : 0;
      result_.messages.try_emplace(fault_text(record),
                                   std::to_string(options_.max_running) + " requests were under way already");
      result_.records.push_back(std::move(record));
      return true;
    }
    ++running_;
  }
  RequestMaker::Made made = maker_.make(number);
  record.input = made.input;
  record.output = made.output;
  if (made.shortened) {
    std::lock_guard lock(mutex_);
    ++result_.shortened;
  }
  http::ClientRequest request = options_.api.request(maker_.path(), std::move(made.body));
  request.retry_closed = false;  // what a server does not answer is a fault to be counted
  record.sent = elapsed();
  if (!planned) record.planned = record.sent;
  const auto exchange = std::make_shared<Exchange>(*this, std::move(record));
  exchange->hold(client_->start(std::move(request), exchange));
  return true;
}

void Load::launch_open() {
  prctl(PR_SET_TIMERSLACK, 1);  // nanosecond; 50,000 by default
  Arrivals arrivals(options_.arrivals, options_.rate, maker_.options().seed, trace_);
  while (const auto at = arrivals.next()) {
    const auto planned = begin_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(*at));
    const bool last = options_.duration && *at >= options_.warmup + *options_.duration;
    {
      std::unique_lock lock(mutex_);
      if (!last) changed_.wait_until(lock, planned, [this] { return over_; });
    }
    if (!launch(at)) return;
  }
  std::lock_guard lock(mutex_);
  end_sending(-1);
}

void Load::finished(Record record, const Answer& answer) {
  record.fault = answer.fault();
  record.status = answer.status();
  record.has_usage = answer.has_usage();
  record.usage = answer.usage();
  record.gaps.shrink_to_fit();
  const bool reached = record.fault != Fault::connect;
  {
    std::lock_guard lock(mutex_);
    unreached_ = reached ? 0 : unreached_ + 1;
    gaps_ += record.gaps.size();
    if (record.fault != Fault::none && record.counted)
      result_.messages.try_emplace(fault_text(record), answer.message());
    if (record.counted) {
      ++ended_;
      failed_ += record.fault != Fault::none ? 1 : 0;
    }
    if (!over_ && (unreached_ >= kMaxUnreached || gaps_ > kMaxGaps)) {
      result_.ended = gaps_ > kMaxGaps
                          ? "after " + std::to_string(gaps_) + " gaps between tokens, the most that are kept"
                          : "there was no connection for " + std::to_string(unreached_) + " requests in a row";
      end_sending(-1);
    }
    result_.records.push_back(std::move(record));
    --running_;  // its place is the next one's
    if (running_ == 0) changed_.notify_all();
  }
  if (!options_.open) launch({});
}

void Load::stop(const std::string& why) {
  std::lock_guard lock(mutex_);
  if (given_up_) return;
  given_up_ = true;
  result_.ended = why;
  end_sending(elapsed());
  changed_.notify_all();
}

LoadResult Load::run() {
  http::ClientOptions settings;
  settings.threads = options_.threads;
  settings.max_idle_per_origin = kMaxRunning;
  settings.max_calls = 2 * kMaxRunning;  // those that end count for a moment longer than here
  {
    http::Client client(settings);
    {
      std::lock_guard lock(mutex_);
      client_ = &client;
      pthread_getcpuclockid(pthread_self(), &sender_);
    }
    if (options_.open) {
      launch_open();
    } else {
      for (int i = 0; i < options_.concurrency; ++i)
        if (!launch({})) break;
    }
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return given_up_ || (over_ && running_ == 0); });
    if (result_.end < 0) {
      result_.end = elapsed();
      note_cpu();
    }
  }  // what still runs is given up
  return std::move(result_);
}

Load::Progress Load::progress() const {
  std::lock_guard lock(mutex_);
  return {elapsed(), ended_, failed_, running_, events_.load(std::memory_order_relaxed)};
}

}  // namespace xgen::client
