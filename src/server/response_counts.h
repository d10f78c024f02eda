// How many answers each route has given with each status, and how long they took: a fixed table of counters, whatever
// clients ask for.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "inference/stats.h"

namespace xgen::server {

// Thread-safe.
class ResponseCounts {
 public:
  struct Count {
    std::size_t route = 0;
    int status = 0;  // 0: one that the table does not know
    std::uint64_t count = 0;
  };

  explicit ResponseCounts(std::size_t routes) : rows_(routes + 1) {}

  // Stands for requests that no route was found for.
  std::size_t none() const { return rows_.size() - 1; }
  // `took`: from the end of the request's head to that of the answer; nothing for one whose head never came.
  void add(std::size_t route, int status, std::optional<std::chrono::duration<double>> took);
  // Those that are not 0, by route and status.
  std::vector<Count> counts() const;
  // Of a route's answers, in seconds.
  inference::Histogram durations(std::size_t route) const;

 private:
  static constexpr std::array kStatuses{200, 202, 204, 400, 401, 403, 404, 405, 408,
                                        413, 415, 429, 431, 499, 500, 503, 505, 0};
  struct Row {
    std::array<std::atomic<std::uint64_t>, kStatuses.size()> statuses{};
    std::array<std::atomic<std::uint64_t>, inference::kHttpBuckets.size() + 1> buckets{};
    std::atomic<std::uint64_t> nanoseconds{0};
  };
  std::vector<Row> rows_;
};

}  // namespace xgen::server
