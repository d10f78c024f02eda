#include "metrics/metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <system_error>
#include <variant>

#include "base/log.h"

namespace xgen::metrics {
namespace {

using inference::Histogram;
using inference::ServiceStats;

enum class Type { gauge, counter, histogram };
constexpr std::string_view kTypeNames[] = {"gauge", "counter", "histogram"};

void append_number(std::string& out, double value) {
  if (std::isnan(value)) {
    out += "NaN";
  } else if (std::isinf(value)) {
    out += value > 0 ? "+Inf" : "-Inf";
  } else {
    std::array<char, 32> text{};
    const auto end = std::to_chars(text.data(), text.data() + text.size(), value).ptr;
    out.append(text.data(), end);
  }
}

std::string escape_label(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return out;
}

// One value of a metric: extra labels (with a leading comma, or empty) and where the number is.
struct Series {
  std::string_view labels;
  double (*value)(const ServiceStats&);
};

struct Metric {
  std::string_view name;
  Type type;
  std::string_view help;
  std::vector<Series> series;                                    // gauges and counters
  const Histogram& (*histogram)(const ServiceStats&) = nullptr;  // histograms
};

#define XGEN_VALUE(expression) [](const ServiceStats& s) -> double { return static_cast<double>(expression); }
#define XGEN_HISTOGRAM(field) [](const ServiceStats& s) -> const Histogram& { return s.field; }

// vLLM's names and label sets, so that existing dashboards, autoscalers and endpoint pickers work unchanged.
const std::vector<Metric>& model_metrics() {
  static const std::vector<Metric> table = {
      {"vllm:num_requests_running",
       Type::gauge,
       "Requests in the running batch.",
       {{"", XGEN_VALUE(s.requests_running)}}},
      {"vllm:num_requests_waiting",
       Type::gauge,
       "Requests waiting to be scheduled.",
       {{"", XGEN_VALUE(s.requests_waiting)}}},
      {"vllm:kv_cache_usage_perc",
       Type::gauge,
       "Share of the KV blocks in use (0 to 1).",
       {{"", XGEN_VALUE(s.kv_cache_usage)}}},
      {"vllm:prefix_cache_queries_total",
       Type::counter,
       "Prompt tokens looked up in the prefix cache.",
       {{"", XGEN_VALUE(s.prefix_cache_queries)}}},
      {"vllm:prefix_cache_hits_total",
       Type::counter,
       "Prompt tokens found in the prefix cache.",
       {{"", XGEN_VALUE(s.prefix_cache_hits)}}},
      {"vllm:prompt_tokens_total", Type::counter, "Prompt tokens processed.", {{"", XGEN_VALUE(s.prompt_tokens)}}},
      {"vllm:prompt_tokens_cached_total",
       Type::counter,
       "Prompt tokens taken from the prefix cache.",
       {{"", XGEN_VALUE(s.prompt_tokens_cached)}}},
      {"vllm:generation_tokens_total", Type::counter, "Tokens generated.", {{"", XGEN_VALUE(s.generation_tokens)}}},
      {"vllm:num_preemptions_total",
       Type::counter,
       "Sequences preempted to free KV blocks.",
       {{"", XGEN_VALUE(s.preemptions)}}},
      {"vllm:request_success_total",
       Type::counter,
       "Choices ended, by reason: a request with n > 1 counts n times, as in vLLM.",
       {{",finished_reason=\"stop\"", XGEN_VALUE(s.finished_stop)},
        {",finished_reason=\"length\"", XGEN_VALUE(s.finished_length)},
        {",finished_reason=\"abort\"", XGEN_VALUE(s.finished_abort)},
        {",finished_reason=\"error\"", XGEN_VALUE(s.finished_error)}}},
      {"vllm:admission_rejections_total",
       Type::counter,
       "Requests that the model refused with 429, by reason: its queue is full, too many long prompts are being "
       "prepared, too many requests wait for it to load. What is refused before a model is asked (a key's rate, too "
       "many large bodies) is in xgen_http_responses_total alone.",
       {{",reason=\"queue_full\"", XGEN_VALUE(s.rejected_queue_full)},
        {",reason=\"long_prompts\"", XGEN_VALUE(s.rejected_long_prompts)},
        {",reason=\"loading\"", XGEN_VALUE(s.rejected_loading)}}},
      {"vllm:time_to_first_token_seconds",
       Type::histogram,
       "Arrival to first token.",
       {},
       XGEN_HISTOGRAM(time_to_first_token)},
      {"vllm:inter_token_latency_seconds",
       Type::histogram,
       "Time between two tokens of a request.",
       {},
       XGEN_HISTOGRAM(inter_token_latency)},
      {"vllm:request_time_per_output_token_seconds",
       Type::histogram,
       "Mean time per output token of a request.",
       {},
       XGEN_HISTOGRAM(time_per_output_token)},
      {"vllm:e2e_request_latency_seconds", Type::histogram, "Arrival to last token.", {}, XGEN_HISTOGRAM(e2e_latency)},
      {"vllm:request_queue_time_seconds",
       Type::histogram,
       "Arrival to first scheduled.",
       {},
       XGEN_HISTOGRAM(queue_time)},
      {"vllm:request_prefill_time_seconds",
       Type::histogram,
       "First scheduled to first token.",
       {},
       XGEN_HISTOGRAM(prefill_time)},
      {"vllm:request_decode_time_seconds", Type::histogram, "First token to last.", {}, XGEN_HISTOGRAM(decode_time)},
      {"vllm:request_inference_time_seconds",
       Type::histogram,
       "First scheduled to last token.",
       {},
       XGEN_HISTOGRAM(inference_time)},
      {"vllm:request_prompt_tokens",
       Type::histogram,
       "Prompt tokens of a request.",
       {},
       XGEN_HISTOGRAM(request_prompt_tokens)},
      {"vllm:request_generation_tokens",
       Type::histogram,
       "Output tokens of a request.",
       {},
       XGEN_HISTOGRAM(request_generation_tokens)},
      {"vllm:request_params_max_tokens",
       Type::histogram,
       "max_tokens of a request.",
       {},
       XGEN_HISTOGRAM(request_max_tokens)},
      {"vllm:request_params_n", Type::histogram, "n of a request.", {}, XGEN_HISTOGRAM(request_n)},
      {"vllm:iteration_tokens_total",
       Type::histogram,
       "Tokens computed in one engine step.",
       {},
       XGEN_HISTOGRAM(iteration_tokens)},
  };
  return table;
}

#undef XGEN_VALUE
#undef XGEN_HISTOGRAM

struct ProcessMetric {
  std::string_view name;
  Type type;
  std::string_view help;
  double (*value)(const ProcessSample&);
};
#define XGEN_VALUE(expression) [](const ProcessSample& s) -> double { return static_cast<double>(expression); }
constexpr ProcessMetric kProcessMetrics[] = {
    {"xgen_http_open_connections", Type::gauge, "Open HTTP connections.", XGEN_VALUE(s.http_connections)},
    {"xgen_trace_spans_total", Type::counter, "Spans that the collector of traces has taken.",
     XGEN_VALUE(s.spans_sent)},
    {"xgen_trace_spans_dropped_total", Type::counter,
     "Spans that found no room in the queue, or that the collector has not taken.", XGEN_VALUE(s.spans_dropped)},
    {"xgen_log_lines_lost_total", Type::counter, "Lines of the log that whoever reads stderr was too slow for.",
     XGEN_VALUE(s.log_lines_lost)},
    {"process_start_time_seconds", Type::gauge, "Start of the process, Unix time.", XGEN_VALUE(s.start_time_seconds)},
    {"process_cpu_seconds_total", Type::counter, "User and system CPU time.", XGEN_VALUE(s.cpu_seconds)},
    {"process_resident_memory_bytes", Type::gauge, "Resident memory.", XGEN_VALUE(s.resident_bytes)},
    {"process_virtual_memory_bytes", Type::gauge, "Virtual memory.", XGEN_VALUE(s.virtual_bytes)},
    {"process_open_fds", Type::gauge, "Open file descriptors.", XGEN_VALUE(s.open_fds)},
    {"process_max_fds", Type::gauge, "Limit of open file descriptors.", XGEN_VALUE(s.max_fds)},
    {"process_threads", Type::gauge, "Threads.", XGEN_VALUE(s.threads)},
};
#undef XGEN_VALUE

void append_header(std::string& out, std::string_view name, Type type, std::string_view help) {
  out.append("# HELP ").append(name).append(" ").append(help).append("\n# TYPE ").append(name).append(" ");
  out.append(kTypeNames[static_cast<std::size_t>(type)]).append("\n");
}

void append_sample(std::string& out, std::string_view name, std::string_view suffix, std::string_view labels,
                   double value) {
  out.append(name).append(suffix);
  if (!labels.empty()) out.append("{").append(labels).append("}");
  out += ' ';
  append_number(out, value);
  out += '\n';
}

void append_histogram(std::string& out, std::string_view name, const std::string& labels, const Histogram& histogram) {
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < histogram.counts().size(); ++i) {
    total += histogram.counts()[i];
    std::string bucket = labels + ",le=\"";
    append_number(bucket, i < histogram.bounds().size() ? histogram.bounds()[i] : INFINITY);
    bucket += '"';
    append_sample(out, name, "_bucket", bucket, static_cast<double>(total));
  }
  append_sample(out, name, "_sum", labels, histogram.sum());
  append_sample(out, name, "_count", labels, static_cast<double>(total));
}

constexpr std::string_view kResponses = "xgen_http_responses_total";
constexpr std::string_view kResponsesHelp =
    "HTTP answers by route (as in the list of routes, or none) and status; 499: the client went away first.";
constexpr std::string_view kDurations = "xgen_http_request_duration_seconds";
constexpr std::string_view kDurationsHelp = "From the end of a request's head to that of its answer, by route.";
constexpr std::string_view kBuild = "xgen_build_info";
constexpr std::string_view kBuildHelp = "1, with the version and the instruction set of the kernels as labels.";
constexpr std::string_view kCacheInfo = "vllm:cache_config_info";
constexpr std::string_view kCacheInfoHelp = "Facts of the KV cache, as labels.";

double seconds_of(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

}  // namespace

ProcessSample sample_process() {
  ProcessSample sample;
  sample.log_lines_lost = log::lost();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  sample.cpu_seconds = seconds(usage.ru_utime) + seconds(usage.ru_stime);
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) sample.max_fds = files.rlim_cur;
  std::ifstream status("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(status)), {});
  // Fields after the command's closing parenthesis (proc(5)): state is field 3.
  if (const auto paren = text.rfind(')'); paren != std::string::npos) {
    std::istringstream fields(text.substr(paren + 1));
    std::vector<std::string> values;
    for (std::string value; fields >> value;) values.push_back(value);
    const auto number = [&](std::size_t field) {
      return field - 3 < values.size() ? std::strtod(values[field - 3].c_str(), nullptr) : 0;
    };
    sample.threads = static_cast<std::uint64_t>(number(20));
    sample.virtual_bytes = static_cast<std::uint64_t>(number(23));
    sample.resident_bytes = static_cast<std::uint64_t>(number(24)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    // Once: two readings of two clocks never are quite the same apart, and a value that moves counts as a restart.
    static const double start_time = seconds_of(CLOCK_REALTIME) - seconds_of(CLOCK_BOOTTIME) +
                                     number(22) / static_cast<double>(sysconf(_SC_CLK_TCK));
    sample.start_time_seconds = start_time;
  }
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end; it.increment(error)) {
    ++sample.open_fds;
  }
  return sample;
}

std::string render(std::span<const ModelSample> models, const ProcessSample& process) {
  std::string out;
  out.reserve(4096 + models.size() * 16384);
  std::vector<std::string> labels;
  for (const ModelSample& model : models)
    labels.push_back("engine=\"0\",model_name=\"" + escape_label(model.name) + "\"");

  for (const Metric& metric : model_metrics()) {
    append_header(out, metric.name, metric.type, metric.help);
    for (std::size_t m = 0; m < models.size(); ++m) {
      if (metric.type == Type::histogram) {
        append_histogram(out, metric.name, labels[m], metric.histogram(models[m].stats));
      } else {
        for (const Series& series : metric.series) {
          append_sample(out, metric.name, "", labels[m] + std::string(series.labels), series.value(models[m].stats));
        }
      }
    }
  }
  append_header(out, kCacheInfo, Type::gauge, kCacheInfoHelp);
  for (std::size_t m = 0; m < models.size(); ++m) {
    const ServiceStats& stats = models[m].stats;
    if (stats.kv_blocks == 0) continue;  // not loaded, or another engine's
    append_sample(out, kCacheInfo, "",
                  labels[m] + ",block_size=\"" + std::to_string(stats.kv_block_size) + "\",num_gpu_blocks=\"" +
                      std::to_string(stats.kv_blocks) + "\",cache_dtype=\"" + lower(stats.kv_dtype) +
                      "\",enable_prefix_caching=\"" + (stats.prefix_caching ? "True" : "False") + "\"",
                  1);
  }
  append_header(out, kResponses, Type::counter, kResponsesHelp);
  for (const HttpResponses& each : process.http_responses) {
    const std::string status = each.status == 0 ? "other" : std::to_string(each.status);
    append_sample(out, kResponses, "", "route=\"" + escape_label(each.route) + "\",status=\"" + status + "\"",
                  static_cast<double>(each.count));
  }
  append_header(out, kDurations, Type::histogram, kDurationsHelp);
  for (const HttpDurations& each : process.http_durations)
    append_histogram(out, kDurations, "route=\"" + escape_label(each.route) + "\"", each.seconds);
  append_header(out, kBuild, Type::gauge, kBuildHelp);
  append_sample(out, kBuild, "",
                "version=\"" + escape_label(process.version) + "\",kernels=\"" + escape_label(process.kernels) + "\"",
                1);
  for (const ProcessMetric& metric : kProcessMetrics) {
    append_header(out, metric.name, metric.type, metric.help);
    append_sample(out, metric.name, "", "", metric.value(process));
  }
  return out;
}

namespace {

struct RegistryMetric {
  std::string_view name;
  Type type;
  std::string_view help;
  std::uint64_t RegisteredModel::*value;
};
constexpr RegistryMetric kRegistryMetrics[] = {
    {"xgen_model_reserved_bytes", Type::gauge, "Memory that a model has for itself.", &RegisteredModel::reserved_bytes},
    {"xgen_model_borrowed_bytes", Type::gauge, "Memory that its KV cache has borrowed of what no model has reserved.",
     &RegisteredModel::borrowed_bytes},
    {"xgen_model_loads_total", Type::counter, "Loads that succeeded, waking up included.", &RegisteredModel::loads},
    {"xgen_model_load_failures_total", Type::counter, "Loads that failed, and engines that ended by themselves.",
     &RegisteredModel::load_failures},
    {"xgen_model_evictions_total", Type::counter, "How often it was unloaded to make room for another model.",
     &RegisteredModel::evictions},
    {"xgen_model_unloads_total", Type::counter, "How often it left memory, for whatever reason.",
     &RegisteredModel::unloads},
};
constexpr std::string_view kLoadSeconds = "xgen_model_load_seconds";
constexpr std::string_view kLoadSecondsHelp =
    "Where the time of its last load went, by phase: fetch (downloading), wait (for its turn and for room), load.";
constexpr std::string_view kState = "xgen_model_state";
constexpr std::string_view kStateHelp = "1 for the state that a model is in, as the label state.";
constexpr std::string_view kFallbacks = "xgen_model_fallbacks_total";
constexpr std::string_view kFallbacksHelp =
    "Calls that the model failed before the first token, by the model that they went to (target).";
constexpr std::string_view kSleep = "vllm:engine_sleep_state";
constexpr std::string_view kSleepHelp =
    "Label sleep_state: awake = 1 while the model is loaded, weights_offloaded = 1 while it sleeps, discard_all = 1 "
    "while "
    "nothing of it is in memory.";

struct ReplicaMetric {
  std::string_view name;
  Type type;
  std::string_view help;
  std::uint64_t (*value)(const inference::ReplicaState&);
};
using Replica = inference::ReplicaState;
constexpr ReplicaMetric kReplicaMetrics[] = {
    {"xgen_replica_up", Type::gauge, "1 while the replica of a remote model answers its health checks.",
     [](const Replica& r) -> std::uint64_t { return r.healthy ? 1 : 0; }},
    {"xgen_replica_circuit_open", Type::gauge, "1 while nothing is sent to it because it has failed.",
     [](const Replica& r) -> std::uint64_t { return r.open ? 1 : 0; }},
    {"xgen_replica_requests_in_flight", Type::gauge, "Requests that run there.",
     [](const Replica& r) { return static_cast<std::uint64_t>(std::max(0, r.in_flight)); }},
    {"xgen_replica_requests_total", Type::counter, "Requests that were sent there.",
     [](const Replica& r) { return r.sent; }},
    {"xgen_replica_failures_total", Type::counter, "Of them those that failed.",
     [](const Replica& r) { return r.failures; }},
    {"xgen_replica_ejections_total", Type::counter, "How often its circuit opened.",
     [](const Replica& r) { return r.ejections; }},
    {"xgen_replica_prompt_chunks_total", Type::counter, "Chunks of all prompts that were sent there.",
     [](const Replica& r) { return r.chunks; }},
    {"xgen_replica_matched_chunks_total", Type::counter, "Of them those that its prefix cache should hold.",
     [](const Replica& r) { return r.matched_chunks; }},
};

struct MemoryMetric {
  std::string_view name;
  std::string_view help;
  std::uint64_t MemorySample::*value;
};
constexpr MemoryMetric kMemoryMetrics[] = {
    {"xgen_memory_budget_bytes", "Memory for all models together.", &MemorySample::total_bytes},
    {"xgen_memory_reserved_bytes", "Of it reserved by models.", &MemorySample::reserved_bytes},
    {"xgen_memory_borrowed_bytes", "Of it borrowed for KV cache, and given back on demand.",
     &MemorySample::borrowed_bytes},
};

}  // namespace

std::string render_registry(std::span<const RegisteredModel> models, std::span<const MemorySample> memories) {
  std::string out;
  const auto labels = [](const RegisteredModel& model) { return "model_name=\"" + escape_label(model.name) + "\""; };
  for (const RegistryMetric& metric : kRegistryMetrics) {
    append_header(out, metric.name, metric.type, metric.help);
    for (const RegisteredModel& model : models)
      append_sample(out, metric.name, "", labels(model), static_cast<double>(model.*metric.value));
  }
  append_header(out, kLoadSeconds, Type::gauge, kLoadSecondsHelp);
  for (const RegisteredModel& model : models) {
    if (model.loads == 0) continue;
    for (const auto& [phase, value] : {std::pair<std::string_view, double>{"fetch", model.fetch_seconds},
                                       {"wait", model.wait_seconds},
                                       {"load", model.load_seconds}})
      append_sample(out, kLoadSeconds, "", labels(model) + ",phase=\"" + std::string(phase) + "\"", value);
  }
  for (const ReplicaMetric& metric : kReplicaMetrics) {
    append_header(out, metric.name, metric.type, metric.help);
    for (const RegisteredModel& model : models)
      for (const inference::ReplicaState& replica : model.replicas)
        append_sample(out, metric.name, "", labels(model) + ",replica=\"" + escape_label(replica.name) + "\"",
                      static_cast<double>(metric.value(replica)));
  }
  append_header(out, kState, Type::gauge, kStateHelp);
  for (const RegisteredModel& model : models)
    append_sample(out, kState, "", labels(model) + ",state=\"" + std::string(model.state) + "\"", 1);
  append_header(out, kFallbacks, Type::counter, kFallbacksHelp);
  for (const RegisteredModel& model : models)
    for (const auto& [target, count] : model.fallbacks)
      append_sample(out, kFallbacks, "", labels(model) + ",target=\"" + escape_label(target) + "\"",
                    static_cast<double>(count));
  append_header(out, kSleep, Type::gauge, kSleepHelp);
  for (const RegisteredModel& model : models) {
    const bool sleeps = model.state == "sleeping";
    const bool awake = !sleeps && model.reserved_bytes > 0;
    const auto sample = [&](std::string_view state, bool is) {
      append_sample(out, kSleep, "", labels(model) + ",engine=\"0\",sleep_state=\"" + std::string(state) + "\"",
                    is ? 1 : 0);
    };
    sample("awake", awake);
    sample("weights_offloaded", sleeps);
    sample("discard_all", !awake && !sleeps);
  }
  for (const MemoryMetric& metric : kMemoryMetrics) {
    append_header(out, metric.name, Type::gauge, metric.help);
    for (const MemorySample& memory : memories)
      append_sample(out, metric.name, "", "memory=\"" + std::string(memory.memory) + "\"",
                    static_cast<double>(memory.*metric.value));
  }
  return out;
}

std::string reference_markdown() {
  std::string out = "| metric | type | meaning |\n| --- | --- | --- |\n";
  const auto row = [&](std::string_view name, Type type, std::string_view help) {
    out.append("| `")
        .append(name)
        .append("` | ")
        .append(kTypeNames[static_cast<std::size_t>(type)])
        .append(" | ")
        .append(help)
        .append(" |\n");
  };
  for (const Metric& metric : model_metrics()) row(metric.name, metric.type, metric.help);
  row(kCacheInfo, Type::gauge, kCacheInfoHelp);
  row(kResponses, Type::counter, kResponsesHelp);
  row(kDurations, Type::histogram, kDurationsHelp);
  row(kBuild, Type::gauge, kBuildHelp);
  for (const ProcessMetric& metric : kProcessMetrics) row(metric.name, metric.type, metric.help);
  for (const RegistryMetric& metric : kRegistryMetrics) row(metric.name, metric.type, metric.help);
  row(kLoadSeconds, Type::gauge, kLoadSecondsHelp);
  for (const ReplicaMetric& metric : kReplicaMetrics) row(metric.name, metric.type, metric.help);
  row(kState, Type::gauge, kStateHelp);
  row(kFallbacks, Type::counter, kFallbacksHelp);
  row(kSleep, Type::gauge, kSleepHelp);
  for (const MemoryMetric& metric : kMemoryMetrics) row(metric.name, Type::gauge, metric.help);
  return out;
}

}  // namespace xgen::metrics
