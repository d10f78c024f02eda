// The table of metrics and their text exposition (Prometheus format 0.0.4).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "inference/model_service.h"
#include "inference/stats.h"

namespace xgen::metrics {

struct ModelSample {
  std::string name;
  inference::ServiceStats stats;
};

struct HttpResponses {
  std::string_view route;  // a pattern, never a path: there must be few
  int status = 0;          // 0 = any other
  std::uint64_t count = 0;
};

struct HttpDurations {
  std::string_view route;
  inference::Histogram seconds;
};

// Facts of the process and of HTTP that no model owns.
struct ProcessSample {
  double start_time_seconds = 0;  // Unix time
  double cpu_seconds = 0;         // user + system
  std::uint64_t resident_bytes = 0;
  std::uint64_t virtual_bytes = 0;
  std::uint64_t open_fds = 0;
  std::uint64_t max_fds = 0;
  std::uint64_t threads = 0;
  std::uint64_t http_connections = 0;
  std::uint64_t spans_sent = 0;  // to a collector of traces
  std::uint64_t spans_dropped = 0;
  std::uint64_t log_lines_lost = 0;
  std::vector<HttpResponses> http_responses;
  std::vector<HttpDurations> http_durations;
  std::string version;
  std::string kernels;  // the instruction set
};
// Reads all but those of HTTP from /proc and getrusage.
ProcessSample sample_process();

// A model of the registry, loaded or not.
struct RegisteredModel {
  std::string name;
  std::string_view state;  // "ready", "sleeping", …
  std::uint64_t reserved_bytes = 0;
  std::uint64_t borrowed_bytes = 0;
  std::uint64_t loads = 0;
  std::uint64_t load_failures = 0;
  std::uint64_t evictions = 0;
  std::uint64_t unloads = 0;
  double fetch_seconds = 0;  // of the last load
  double wait_seconds = 0;
  double load_seconds = 0;
  std::vector<inference::ReplicaState> replicas;
  std::vector<std::pair<std::string, std::uint64_t>> fallbacks;  // to whom, and how often
};
// One budget of memory: the host's.
struct MemorySample {
  std::string_view memory;
  std::uint64_t total_bytes = 0;
  std::uint64_t reserved_bytes = 0;
  std::uint64_t borrowed_bytes = 0;
};

inline constexpr std::string_view kContentType = "text/plain; version=0.0.4; charset=utf-8";

std::string render(std::span<const ModelSample> models, const ProcessSample& process);
// The same for what the registry knows; to be appended.
std::string render_registry(std::span<const RegisteredModel> models, std::span<const MemorySample> memories);

// Name, type, help and labels of every metric, as Markdown rows for the documentation.
std::string reference_markdown();

}  // namespace xgen::metrics
