// Load: sends requests to a server, in a closed or an open loop, and notes the time of everything that comes back.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <ctime>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "client/answer.h"
#include "client/api.h"
#include "client/arrivals.h"
#include "client/requests.h"

namespace xgen::client {

inline constexpr std::uint64_t kMaxRequests = 10'000'000;  // of one load
inline constexpr std::size_t kMaxRunning = 16'384;         // requests at once
inline constexpr std::size_t kMaxGaps = 250'000'000;       // that are kept, 4 bytes each; the load ends early with them
inline constexpr int kMaxUnreached = 1'000;                // requests in a row without a connection; likewise

struct LoadOptions {
  Api api;
  int concurrency = 1;  // of a closed loop
  bool open = false;
  Arrivals::Kind arrivals = Arrivals::Kind::poisson;  // of an open loop
  double rate = 0;
  double warmup = 0;  // seconds; what begins in them is not counted
  // Counted requests, and seconds after the warm-up: whichever comes first.
  std::optional<std::uint64_t> requests;
  std::optional<double> duration;
  int threads = 1;  // that receive
  std::size_t max_running = kMaxRunning;
};

// One request; times in seconds since the load's begin.
struct Record {
  double planned = 0;  // when it was to be sent; in a closed loop, when it was
  double sent = 0;
  double first = -1;        // the first event that brought text, -1 if none did
  double last = -1;         // the last one
  double end = 0;           // the answer was complete, or had failed
  std::vector<float> gaps;  // between such events
  int input = 0;            // tokens that were meant
  int output = 0;           // tokens that were asked for
  int events = 0;           // that brought text
  bool has_usage = false;
  Answer::Usage usage;
  Fault fault = Fault::none;
  int status = 0;
  bool counted = false;  // planned after the warm-up

  // As the server counted, or a token for each event.
  int tokens() const { return has_usage ? usage.completion_tokens : events; }
};

struct LoadResult {
  std::deque<Record> records;
  double begin = 0;  // of what is counted, seconds since the load's begin
  double end = 0;
  // Processor seconds between them.
  double cpu = 0;                               // of this process
  double receiver = 0;                          // of the thread that receives and was busiest
  double sender = 0;                            // of the thread that sends in an open loop
  std::uint64_t shortened = 0;                  // requests, for the model's context
  std::string ended;                            // why before its time; empty: it was not
  std::map<std::string, std::string> messages;  // the first of each kind of fault, by fault_text()
};
// "refused 429", "timeout".
std::string fault_text(const Record& record);

class Load {
 public:
  // `trace` outlives this.
  Load(LoadOptions options, const RequestMaker& maker, const std::vector<TraceRow>* trace);

  // Once. Comes back when every request has ended.
  LoadResult run();

  // The rest is thread-safe. Sends nothing more, and gives up what runs.
  void stop(const std::string& why);
  struct Progress {
    double elapsed = 0;
    std::uint64_t counted = 0;  // requests that have ended
    std::uint64_t failed = 0;
    std::uint64_t running = 0;
    std::uint64_t events = 0;  // that brought text
  };
  Progress progress() const;

 private:
  class Exchange;
  using Clock = std::chrono::steady_clock;

  double elapsed() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }
  bool launch(std::optional<double> planned);
  void launch_open();
  void finished(Record record, const Answer& answer);
  void end_sending(double end);
  // Processor seconds so far.
  struct Cpu {
    double process = 0;
    std::vector<double> receivers;
    double sender = 0;
  };
  Cpu cpu_now() const;
  void note_cpu();

  const LoadOptions options_;
  const RequestMaker& maker_;
  const std::vector<TraceRow>* trace_;
  const Clock::time_point begin_ = Clock::now();

  mutable std::mutex mutex_;
  http::Client* client_ = nullptr;
  clockid_t sender_ = CLOCK_THREAD_CPUTIME_ID;  // of the thread in run()
  std::condition_variable changed_;
  bool over_ = false;  // nothing more is sent
  bool given_up_ = false;
  std::uint64_t next_ = 0;
  std::uint64_t started_ = 0;  // counted ones
  std::uint64_t running_ = 0;
  std::uint64_t failed_ = 0;  // counted ones
  std::uint64_t ended_ = 0;   // counted ones
  int unreached_ = 0;         // in a row
  std::size_t gaps_ = 0;
  std::optional<Cpu> cpu_begin_;
  LoadResult result_;
  std::atomic<std::uint64_t> events_{0};
};

}  // namespace xgen::client
