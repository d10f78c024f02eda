#include "server/response_counts.h"

#include <algorithm>
#include <utility>

namespace xgen::server {

void ResponseCounts::add(std::size_t route, int status, std::optional<std::chrono::duration<double>> took) {
  const auto last = kStatuses.end() - 1;
  const auto column = static_cast<std::size_t>(std::find(kStatuses.begin(), last, status) - kStatuses.begin());
  Row& row = rows_[std::min(route, none())];
  row.statuses[column].fetch_add(1, std::memory_order_relaxed);
  if (!took) return;
  const double seconds = took->count();
  const auto& bounds = inference::kHttpBuckets;
  const auto bucket =
      static_cast<std::size_t>(std::lower_bound(bounds.begin(), bounds.end(), seconds) - bounds.begin());
  row.buckets[bucket].fetch_add(1, std::memory_order_relaxed);
  row.nanoseconds.fetch_add(static_cast<std::uint64_t>(std::max(0.0, seconds) * 1e9), std::memory_order_relaxed);
}

std::vector<ResponseCounts::Count> ResponseCounts::counts() const {
  std::vector<Count> out;
  for (std::size_t route = 0; route < rows_.size(); ++route)
    for (std::size_t i = 0; i < kStatuses.size(); ++i)
      if (const std::uint64_t count = rows_[route].statuses[i].load(std::memory_order_relaxed); count > 0)
        out.push_back({route, kStatuses[i], count});
  return out;
}

inference::Histogram ResponseCounts::durations(std::size_t route) const {
  const Row& row = rows_[std::min(route, none())];
  std::vector<std::uint64_t> counts;
  for (const auto& each : row.buckets) counts.push_back(each.load(std::memory_order_relaxed));
  return {inference::kHttpBuckets, std::move(counts),
          static_cast<double>(row.nanoseconds.load(std::memory_order_relaxed)) / 1e9};
}

}  // namespace xgen::server
