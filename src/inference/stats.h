// What a model service counts: plain structs that their owner updates and metrics/ reads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace xgen::inference {

// Upper bounds of the histograms' buckets (vLLM's, so that its dashboards read ours).
inline constexpr std::array<double, 22> kTtftBuckets{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                                     1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
inline constexpr std::array<double, 19> kInterTokenBuckets{.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                                           .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
inline constexpr std::array<double, 21> kLatencyBuckets{.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                                        30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
inline constexpr std::array<double, 16> kHttpBuckets{.001, .005, .01, .025, .05, .1, .25, .5,
                                                     1,    2.5,  5,   10,   30,  60, 120, 300};
inline constexpr std::array<double, 5> kChoiceBuckets{1, 2, 5, 10, 20};
inline constexpr std::array<double, 13> kIterationBuckets{1,   8,    16,   32,   64,   128,  256,
                                                          512, 1024, 2048, 4096, 8192, 16384};
inline constexpr std::array<double, 18> kTokenBuckets{1,    2,    5,    10,    20,    50,    100,    200,    500,
                                                      1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000};

// Not thread-safe: the owner guards it and hands out copies.
class Histogram {
 public:
  explicit Histogram(std::span<const double> bounds) : bounds_(bounds), counts_(bounds.size() + 1) {}
  // One that was counted elsewhere.
  Histogram(std::span<const double> bounds, std::vector<std::uint64_t> counts, double sum)
      : bounds_(bounds), counts_(std::move(counts)), sum_(sum) {}

  void observe(double value) {
    std::size_t i = 0;
    while (i < bounds_.size() && value > bounds_[i]) ++i;
    ++counts_[i];
    sum_ += value;
  }
  // Of the same bounds.
  void add(const Histogram& other) {
    for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
    sum_ += other.sum_;
  }
  std::span<const double> bounds() const { return bounds_; }
  std::span<const std::uint64_t> counts() const { return counts_; }  // per bucket, the last is +Inf; not cumulative
  double sum() const { return sum_; }

 private:
  std::span<const double> bounds_;  // static storage
  std::vector<std::uint64_t> counts_;
  double sum_ = 0;
};

struct ServiceStats {
  // Gauges.
  std::uint64_t requests_running = 0;
  std::uint64_t requests_waiting = 0;
  std::uint64_t unfinished() const { return requests_running + requests_waiting; }
  double kv_cache_usage = 0;        // 0–1, blocks in use by sequences
  std::uint64_t kv_block_size = 0;  // tokens
  std::uint64_t kv_blocks = 0;      // that have memory now
  std::string_view kv_dtype;        // "F16"; static storage; empty: not known
  bool prefix_caching = false;
  // Counters.
  std::uint64_t prefix_cache_queries = 0;  // tokens
  std::uint64_t prefix_cache_hits = 0;     // tokens
  std::uint64_t prompt_tokens = 0;
  std::uint64_t prompt_tokens_cached = 0;
  std::uint64_t generation_tokens = 0;
  std::uint64_t preemptions = 0;
  std::uint64_t finished_stop = 0;  // these four count choices
  std::uint64_t finished_length = 0;
  std::uint64_t finished_abort = 0;
  std::uint64_t finished_error = 0;
  std::uint64_t rejected_queue_full = 0;
  std::uint64_t rejected_long_prompts = 0;  // too many were being prepared
  std::uint64_t rejected_loading = 0;       // too many waited for the model to load
  // Histograms; seconds or tokens.
  Histogram time_to_first_token{kTtftBuckets};
  Histogram inter_token_latency{kInterTokenBuckets};
  Histogram time_per_output_token{kInterTokenBuckets};
  Histogram e2e_latency{kLatencyBuckets};
  Histogram queue_time{kLatencyBuckets};
  Histogram prefill_time{kLatencyBuckets};
  Histogram decode_time{kLatencyBuckets};
  Histogram inference_time{kLatencyBuckets};
  Histogram request_prompt_tokens{kTokenBuckets};
  Histogram request_generation_tokens{kTokenBuckets};
  Histogram request_max_tokens{kTokenBuckets};
  Histogram request_n{kChoiceBuckets};
  Histogram iteration_tokens{kIterationBuckets};
};

// Adds up what several services have counted. Gauges of KV blocks add up, their usage is weighted by them.
void add(ServiceStats& into, const ServiceStats& from);
// The same of a service that goes: its counters and histograms alone.
void add_past(ServiceStats& into, ServiceStats from);

}  // namespace xgen::inference
