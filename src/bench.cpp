#include "bench.h"

#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/units.h"
#include "client/load.h"
#include "client/report.h"
#include "complain.h"

namespace xgen {
namespace {

using namespace client;

constexpr int kMaxConcurrency = static_cast<int>(kMaxRunning);
constexpr double kMaxRate = 1'000'000;  // requests a second
constexpr int kMaxThreads = 64;
constexpr std::uint64_t kDefaultRequests = 100;
constexpr int kDefaultConcurrency = 8;

// The bar on stderr, where that is a terminal, and Ctrl-C: the first ends the load, the second the process.
class Watch {
 public:
  Watch(Load& load, const LoadOptions& options) : load_(load), options_(options), thread_([this] { run(); }) {}
  ~Watch() {
    over_.store(true);
    thread_.join();
    if (shown_) std::fputs("\r\x1b[K", stderr);
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // In the thread that starts all others.
  static sigset_t block() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    return set;
  }

 private:
  void run() {
    const sigset_t set = block();
    bool stopping = false;
    while (!over_.load()) {
      const timespec pause{0, 100'000'000};
      if (sigtimedwait(&set, nullptr, &pause) == SIGINT) {
        if (stopping) _exit(130);
        stopping = true;
        load_.stop("it was interrupted");
      }
      if (terminal_) show();
    }
  }
  void show() {
    const Load::Progress now = load_.progress();
    double share = 0;
    if (options_.requests) share = static_cast<double>(now.counted) / static_cast<double>(*options_.requests);
    if (options_.duration) share = std::max(share, (now.elapsed - options_.warmup) / *options_.duration);
    share = std::clamp(share, 0.0, 1.0);
    constexpr int kCells = 24;
    const int full = static_cast<int>(share * kCells);
    char text[256];
    std::snprintf(text, sizeof(text), "[%s%s] %3d%%  %s%llu done, %llu failed, %llu under way, %.0f tokens/s, %.0f s",
                  std::string(static_cast<std::size_t>(full), '#').c_str(),
                  std::string(static_cast<std::size_t>(kCells - full), '.').c_str(), static_cast<int>(100 * share),
                  now.elapsed < options_.warmup ? "warming up, " : "", static_cast<unsigned long long>(now.counted),
                  static_cast<unsigned long long>(now.failed), static_cast<unsigned long long>(now.running),
                  static_cast<double>(now.events - events_) / std::max(now.elapsed - at_, 1e-3), now.elapsed);
    // The rate of about the last second.
    if (now.elapsed - at_ > 1) {
      events_ = now.events;
      at_ = now.elapsed;
    }
    winsize window{};
    const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 1;
    std::fprintf(stderr, "\r\x1b[K%.*s", known ? window.ws_col - 1 : 79, text);
    std::fflush(stderr);
    shown_ = true;
  }

  Load& load_;
  const LoadOptions options_;
  const bool terminal_ = isatty(STDERR_FILENO) == 1;
  bool shown_ = false;
  std::uint64_t events_ = 0;
  double at_ = 0;
  std::atomic<bool> over_{false};
  std::thread thread_;  // last: it uses the others
};

Error misuse(const std::string& message) { return make_error(ErrorCode::invalid_argument, message); }

Result<double> seconds_of(const char* flag, const std::string& text, bool may_be_none) {
  const auto time = parse_duration(text);
  if (!time) return misuse(std::string(flag) + ": " + time.error().message);
  if (time->count() == 0 && !may_be_none) return misuse(std::string(flag) + ": expected a time above 0");
  return static_cast<double>(time->count()) / 1000;
}

// What the flags say together; the server has not been asked for anything yet.
Result<Subject> subject_of(const BenchFlags& flags) {
  Subject subject;
  const char* key = std::getenv("OPENAI_API_KEY");
  auto api = make_api(flags.url, flags.key_file, key == nullptr ? "" : key);
  if (!api) return std::move(api).error();
  LoadOptions& load = subject.load;
  load.api = *std::move(api);
  load.api.ca_file = flags.ca_file;
  const auto timeout = seconds_of("--timeout", flags.timeout, false);
  if (!timeout) return timeout.error();
  load.api.timeout = std::chrono::milliseconds(static_cast<std::int64_t>(*timeout * 1000));

  load.open = flags.rate || flags.arrivals;
  if (load.open && flags.concurrency)
    return misuse("--concurrency is of a closed loop, --rate and --arrivals are of an open one: give one or the other");
  if (flags.concurrency && (*flags.concurrency < 1 || *flags.concurrency > kMaxConcurrency))
    return misuse("--concurrency: expected 1 to " + std::to_string(kMaxConcurrency));
  load.concurrency = flags.concurrency.value_or(kDefaultConcurrency);
  if (flags.rate && (!(*flags.rate > 0) || *flags.rate > kMaxRate))
    return misuse("--rate: expected a number of requests a second above 0");
  load.rate = flags.rate.value_or(0);
  const std::string arrivals = flags.arrivals.value_or("poisson");
  load.arrivals = arrivals == "trace"      ? Arrivals::Kind::trace
                  : arrivals == "constant" ? Arrivals::Kind::constant
                                           : Arrivals::Kind::poisson;
  const bool traced = load.open && load.arrivals == Arrivals::Kind::trace;
  if (load.open && !traced && !flags.rate) return misuse("--arrivals " + arrivals + " needs a --rate");

  RequestOptions& requests = subject.requests;
  auto input = parse_lengths(flags.input, false);
  if (!input) return misuse("--input: " + input.error().message);
  auto output = parse_lengths(flags.output, true);
  if (!output) return misuse("--output: " + output.error().message);
  requests.input = *input;
  requests.output = *output;
  const bool needs_trace = traced || input->kind == Lengths::Kind::trace || output->kind == Lengths::Kind::trace;
  if (needs_trace && flags.trace.empty()) return misuse("'trace' as arrivals or lengths needs a --trace FILE");
  if (!needs_trace && !flags.trace.empty())
    return misuse("--trace is not used: take --arrivals trace, --input trace or --output trace");
  subject.trace = flags.trace;
  if (flags.prefixes < 0) return misuse("--prefixes: expected a number of at least 0");
  if (flags.prefix_tokens < 1 || flags.prefix_tokens > kMaxLength)
    return misuse("--prefix-tokens: expected 1 to " + std::to_string(kMaxLength));
  requests.prefixes = flags.prefixes;
  requests.prefix_tokens = flags.prefix_tokens;
  requests.chat = flags.endpoint == "chat";
  requests.ignore_eos = flags.ignore_eos;
  requests.ask_usage = !flags.no_usage;
  auto extra = parse_extra(flags.extra);
  if (!extra) return misuse("--extra: " + extra.error().message);
  requests.extra = *std::move(extra);
  requests.seed = flags.seed;
  if (flags.max_len < 0) return misuse("--max-len: expected a number of tokens");
  requests.max_len = flags.max_len;

  const auto warmup = seconds_of("--warmup", flags.warmup, true);
  if (!warmup) return warmup.error();
  load.warmup = *warmup;
  if (!flags.duration.empty()) {
    const auto duration = seconds_of("--duration", flags.duration, false);
    if (!duration) return duration.error();
    load.duration = *duration;
  }
  if (flags.requests && (*flags.requests < 1 || *flags.requests > kMaxRequests))
    return misuse("--requests: expected 1 to " + std::to_string(kMaxRequests));
  load.requests = flags.requests;
  if (!load.requests && !load.duration) load.requests = kDefaultRequests;
  if (flags.threads < 1 || flags.threads > kMaxThreads)
    return misuse("--threads: expected 1 to " + std::to_string(kMaxThreads));
  load.threads = flags.threads;
  if (!flags.slo.empty()) {
    const auto slo = parse_slo(flags.slo);
    if (!slo) return misuse("--slo: " + slo.error().message);
    subject.slo = *slo;
  }
  return subject;
}

// A file that is to be written at the end: what cannot be written is known before the load, and an older report is kept
// until there is a new one.
Result<std::FILE*> create(const char* flag, const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "ab");
  if (file == nullptr) return misuse(std::string(flag) + " " + path + ": " + std::strerror(errno));
  return file;
}

bool write_all(std::FILE* file, const std::string& text) {
  // A pipe has no length to be cut.
  const bool empty = ftruncate(fileno(file), 0) == 0 || errno == EINVAL;
  const bool written = empty && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  return std::fclose(file) == 0 && written;
}

}  // namespace

CLI::App* add_bench(CLI::App& program, BenchFlags& flags) {
  CLI::App* command = program.add_subcommand("bench", "Measure any OpenAI server under load (docs/benchmarking.md)");
  const auto option = [&](const char* name, auto& value, const std::string& text) {
    return command->add_option(name, value, text);
  };
  option("url", flags.url, "The server, with or without /v1 (default: " + flags.url + ")");
  option("--model", flags.model, "The model (default: the server's, if it has one alone)");
  option("--api-key-file", flags.key_file, "A file with the API key (default: $OPENAI_API_KEY)");
  option("--ca-file", flags.ca_file, "Certificates to trust for https, as PEM (default: the system's)");
  option("--concurrency", flags.concurrency,
         "Closed loop: so many requests at once, each followed by the next (default: 8)");
  option("--rate", flags.rate, "Open loop: so many requests a second, whatever becomes of them");
  option("--arrivals", flags.arrivals, "Open loop: when they come: poisson (default), constant, or as in the trace")
      ->check(CLI::IsMember({"poisson", "constant", "trace"}));
  option("--trace", flags.trace,
         "CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens; --rate changes its pace");
  option("--input", flags.input, "Tokens of a prompt: N, N-M, sharegpt or trace (default: " + flags.input + ")");
  option("--output", flags.output, "Most tokens of an answer, likewise (default: " + flags.output + ")");
  option("--prefixes", flags.prefixes, "Prompts begin with one of so many shared prefixes (default: none)");
  option("--prefix-tokens", flags.prefix_tokens, "Tokens of a shared prefix, before those of --input (default: 256)");
  option("--endpoint", flags.endpoint, "chat (default) or completions")->check(CLI::IsMember({"chat", "completions"}));
  command->add_flag("--ignore-eos", flags.ignore_eos,
                    "Answers are as long as --output says, where the server understands that");
  command->add_flag("--no-usage", flags.no_usage,
                    "Do not ask for stream_options.include_usage: tokens are then counted by events");
  option("--extra", flags.extra, R"(More fields of each request, as JSON: {"temperature": 0})");
  option("--seed", flags.seed, "The same seed makes the same requests at the same times (default: 1)");
  option("--requests", flags.requests, "End after so many requests (default: 100, without --duration)");
  option("--duration", flags.duration, "Send nothing more after this time, and wait for what runs: 30s, 5m");
  option("--warmup", flags.warmup, "What is sent in this time, before all else, is not counted (default: 0)");
  option("--timeout", flags.timeout, "Longest time of one request (default: " + flags.timeout + ")");
  option("--max-len", flags.max_len, "Longest prompt with its answer, in tokens (default: what the server says)");
  option("--threads", flags.threads, "Threads that receive (default: 1)");
  option("--slo", flags.slo, "Goodput: requests that keep all of ttft=200ms,itl=50ms,tpot=40ms,e2e=5s");
  option("--json", flags.json, "Write the figures to this file");
  option("--svg", flags.svg, "Draw the distributions and the throughput over time into this file");
  return command;
}

int bench(const BenchFlags& flags, const std::string& version) {
  auto made = subject_of(flags);
  if (!made) return complain(kMisused, made.error().message);
  Subject& subject = *made;
  std::vector<TraceRow> trace;
  if (!subject.trace.empty()) {
    auto read = read_trace_file(subject.trace);
    if (!read) return complain(kMisused, "--trace " + read.error().message);
    trace = *std::move(read);
  }
  const std::vector<TraceRow>* rows = trace.empty() ? nullptr : &trace;
  std::signal(SIGPIPE, SIG_IGN);  // a connection that has gone is an error like others
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }

  {
    http::Client asker;
    const auto model = choose_model(asker, subject.load.api, flags.model);
    if (!model) return complain(kFailed, model.error().message);
    subject.requests.model = model->name;
    if (subject.requests.max_len == 0) subject.requests.max_len = model->max_len;
    const auto cost = measure_cost(asker, subject.load.api, RequestMaker(subject.requests, rows));
    if (!cost) return complain(kFailed, cost.error().message);
    subject.cost = *cost;
  }
  std::FILE* json = nullptr;
  std::FILE* svg = nullptr;
  for (const auto& [flag, path, file] :
       {std::tuple("--json", &flags.json, &json), std::tuple("--svg", &flags.svg, &svg)}) {
    if (path->empty()) continue;
    const auto created = create(flag, *path);
    if (!created) return complain(kMisused, created.error().message);
    *file = *created;
  }
  subject.version = version;
  subject.url = subject.load.api.text();
  subject.model = subject.requests.model;

  RequestMaker maker(subject.requests, rows);
  maker.set_cost(subject.cost);
  Watch::block();
  LoadResult result;
  {
    Load load(subject.load, maker, rows);
    const Watch watch(load, subject.load);
    result = load.run();
  }
  const Figures figures = figures_of(result, subject.slo);
  const bool shown = std::fputs(report_text(subject, result, figures).c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  const int why_not = errno;
  if (json != nullptr && !write_all(json, report_json(subject, result, figures)))
    return complain(kFailed, "--json " + flags.json + ": it could not be written");
  if (svg != nullptr && !write_all(svg, report_svg(subject, figures)))
    return complain(kFailed, "--svg " + flags.svg + ": it could not be written");
  if (!shown) return complain(kFailed, std::string("stdout: ") + std::strerror(why_not));
  return figures.succeeded > 0 ? 0 : kFailed;
}

}  // namespace xgen
