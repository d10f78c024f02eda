// Figures: what the records of a load come to. docs/benchmarking.md defines each of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "client/load.h"

namespace xgen::client {

// Of values that have been sorted: the smallest of them that at least this share (0 to 1) does not exceed. 0 of none.
float percentile(const std::vector<float>& sorted, double share);

struct Summary {
  std::size_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, max = 0;
};
// Sorts them.
Summary summarize(std::vector<float>& values);

// What a request must keep to be a good one; seconds.
struct Slo {
  std::optional<double> ttft;
  std::optional<double> itl;   // of every gap
  std::optional<double> tpot;  // of the mean
  std::optional<double> e2e;
  bool empty() const { return !ttft && !itl && !tpot && !e2e; }
  bool kept_by(const Record& record) const;
  std::string text() const;  // "ttft 200 ms, itl 50 ms"
};
// "ttft=200ms,itl=50ms,tpot=40ms,e2e=5s". Errors: invalid_argument.
Result<Slo> parse_slo(std::string_view text);

// A time to the answer's first text, and the like: seconds.
double ttft_of(const Record& record);                 // precondition: it has an event
std::optional<double> tpot_of(const Record& record);  // nothing of a single token
double e2e_of(const Record& record);

struct Figures {
  double seconds = 0;         // that are counted
  std::uint64_t counted = 0;  // requests
  std::uint64_t succeeded = 0;
  std::map<std::string, std::uint64_t> faults;  // by fault_text()

  Summary ttft, itl, tpot, e2e;  // seconds, of those that succeeded
  Summary late;                  // from planned to sent; of an open loop
  Summary input, output;         // tokens, as the server counted; of those that succeeded
  double asked_input = 0;        // their mean
  double asked_output = 0;
  double cached = 0;               // share of the input tokens
  std::uint64_t with_usage = 0;    // requests whose tokens the server counted
  double requests_per_second = 0;  // that were complete
  double output_per_second = 0;    // tokens
  double input_per_second = 0;     // tokens of prompts whose answers began
  double running = 0;              // requests, in the mean
  std::uint64_t good = 0;          // counted ones that kept the SLO
  double good_per_second = 0;      // that kept it and were complete
  double cores = 0;                // that this process used
  double receiver = 0;             // of a core, of the thread that receives and was busiest
  double sender = 0;               // of a core, of the thread that sends in an open loop

  std::vector<float> ttfts, itls;  // sorted, seconds

  // The time line, of equal pieces from the load's begin to its last answer.
  struct Moment {
    double output_per_second = 0;
    double running = 0;
    std::uint64_t failed = 0;
  };
  double step = 1;  // seconds
  std::vector<Moment> line;
};
Figures figures_of(const LoadResult& result, const Slo& slo);

}  // namespace xgen::client
