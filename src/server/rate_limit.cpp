#include "server/rate_limit.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace xgen::server {

void RateLimit::Bucket::fill(std::int64_t per_minute, Time now) {
  const auto size = static_cast<double>(per_minute);
  if (!std::exchange(begun, true)) {
    level = size;
  } else {
    const double seconds = std::max(0.0, std::chrono::duration<double>(now - filled).count());
    level = std::min(size, level + seconds * size / 60);
  }
  filled = now;
}

double RateLimit::Bucket::seconds_until(double wanted, std::int64_t per_minute) const {
  if (per_minute == 0 || level >= wanted) return 0;
  return (wanted - level) * 60 / static_cast<double>(per_minute);
}

void RateLimit::Permit::settle(std::int64_t tokens) {
  const auto limit = std::exchange(limit_, nullptr);
  if (limit == nullptr || limit->limits_.tokens_per_minute == 0) return;
  std::lock_guard lock(limit->mutex_);
  double& level = limit->tokens_.level;
  level =
      std::min(static_cast<double>(limit->limits_.tokens_per_minute), level + static_cast<double>(reserved_ - tokens));
}

Result<std::unique_ptr<RateLimit::Permit>> RateLimit::admit(std::int64_t tokens, Time now, Left& left) {
  const auto [requests_a_minute, tokens_a_minute] = limits_;
  std::lock_guard lock(mutex_);
  requests_.fill(requests_a_minute, now);
  tokens_.fill(tokens_a_minute, now);
  // More than a bucket holds can only be asked of a full one.
  const std::int64_t reserved = tokens_a_minute > 0 ? std::min(std::max<std::int64_t>(tokens, 1), tokens_a_minute) : 0;
  const double requests_wait = requests_.seconds_until(1, requests_a_minute);
  const double tokens_wait = tokens_.seconds_until(static_cast<double>(reserved), tokens_a_minute);
  const bool admitted = requests_wait <= 0 && tokens_wait <= 0;
  if (admitted) {
    requests_.level -= 1;
    tokens_.level -= static_cast<double>(reserved);
  }
  const auto whole = [](double level) { return static_cast<std::int64_t>(std::floor(std::max(0.0, level))); };
  left = {whole(requests_.level), whole(tokens_.level),
          requests_.seconds_until(static_cast<double>(requests_a_minute), requests_a_minute),
          tokens_.seconds_until(static_cast<double>(tokens_a_minute), tokens_a_minute)};
  if (admitted) return std::make_unique<Permit>(shared_from_this(), reserved);
  Error error =
      make_error(ErrorCode::overloaded, requests_wait >= tokens_wait
                                            ? "more than " + std::to_string(requests_a_minute) + " requests a minute"
                                            : "more than " + std::to_string(tokens_a_minute) +
                                                  " tokens a minute; this request may take " + std::to_string(tokens));
  error.retry_after_s = std::max(1, static_cast<int>(std::ceil(std::max(requests_wait, tokens_wait))));
  return error;
}

}  // namespace xgen::server
