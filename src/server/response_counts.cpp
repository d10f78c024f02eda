#include "server/response_counts.h"

#include <algorithm>

namespace xgen::server {

void ResponseCounts::add(std::size_t route, int status) {
  const auto last = kStatuses.end() - 1;
  const auto column = static_cast<std::size_t>(std::find(kStatuses.begin(), last, status) - kStatuses.begin());
  rows_[std::min(route, none())][column].fetch_add(1, std::memory_order_relaxed);
}

std::vector<ResponseCounts::Count> ResponseCounts::counts() const {
  std::vector<Count> out;
  for (std::size_t route = 0; route < rows_.size(); ++route)
    for (std::size_t i = 0; i < kStatuses.size(); ++i)
      if (const std::uint64_t count = rows_[route][i].load(std::memory_order_relaxed); count > 0)
        out.push_back({route, kStatuses[i], count});
  return out;
}

}  // namespace xgen::server
