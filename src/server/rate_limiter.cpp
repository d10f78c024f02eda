#include "server/rate_limiter.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace xgen::server {
namespace {

// The one that has been quiet longest is forgotten for one more: its buckets are as good as full, or it would come
// again.
constexpr std::size_t kMaxClients = 65536;

double seconds(RateLimiter::Time time) { return std::chrono::duration<double>(time.time_since_epoch()).count(); }

}  // namespace

std::shared_ptr<RateLimiter> RateLimiter::create(RateLimits limits) {
  std::shared_ptr<RateLimiter> limiter(new RateLimiter(limits));
  limiter->self_ = limiter;
  return limiter;
}

void RateLimiter::Permit::settle(std::int64_t tokens) {
  if (const auto limiter = std::exchange(limiter_, nullptr)) limiter->give_back(client_, reserved_ - tokens);
}

void RateLimiter::fill(Bucket& bucket, std::int64_t per_minute, double now) {
  const auto size = static_cast<double>(per_minute);
  bucket.level = std::min(size, bucket.level + std::max(0.0, now - bucket.filled) * size / 60);
  bucket.filled = now;
}

RateLimiter::Clients::iterator RateLimiter::client(std::string_view name, double now) {
  const auto known = by_name_.find(name);
  if (known != by_name_.end()) {
    clients_.splice(clients_.begin(), clients_, known->second);
  } else {
    if (clients_.size() >= kMaxClients) {
      by_name_.erase(clients_.back().name);
      clients_.pop_back();
    }
    clients_.push_front({std::string(name),
                         {static_cast<double>(limits_.requests_per_minute), now},
                         {static_cast<double>(limits_.tokens_per_minute), now}});
    by_name_.emplace(clients_.front().name, clients_.begin());
  }
  fill(clients_.front().requests, limits_.requests_per_minute, now);
  fill(clients_.front().tokens, limits_.tokens_per_minute, now);
  return clients_.begin();
}

Result<std::unique_ptr<RateLimiter::Permit>> RateLimiter::admit(std::string_view name, std::int64_t tokens, Time time,
                                                                Left& left) {
  const double now = seconds(time);
  std::lock_guard lock(mutex_);
  Client& client = *this->client(name, now);
  // More than a bucket holds can only be asked of a full one.
  const std::int64_t reserved = limits_.tokens_per_minute > 0 ? std::min(tokens, limits_.tokens_per_minute) : 0;
  const auto missing = [](const Bucket& bucket, std::int64_t per_minute, double wanted) {
    return per_minute > 0 && bucket.level < wanted ? (wanted - bucket.level) * 60 / static_cast<double>(per_minute) : 0;
  };
  const double requests_wait = missing(client.requests, limits_.requests_per_minute, 1);
  const double tokens_wait =
      missing(client.tokens, limits_.tokens_per_minute, std::max(1.0, static_cast<double>(reserved)));
  const bool admitted = requests_wait <= 0 && tokens_wait <= 0;
  if (admitted) {
    client.requests.level -= 1;
    client.tokens.level -= static_cast<double>(reserved);
  }
  const auto until_full = [](const Bucket& bucket, std::int64_t per_minute) {
    return per_minute > 0 ? (static_cast<double>(per_minute) - bucket.level) * 60 / static_cast<double>(per_minute) : 0;
  };
  left = {static_cast<std::int64_t>(std::floor(std::max(0.0, client.requests.level))),
          static_cast<std::int64_t>(std::floor(std::max(0.0, client.tokens.level))),
          until_full(client.requests, limits_.requests_per_minute),
          until_full(client.tokens, limits_.tokens_per_minute)};
  if (admitted) return std::make_unique<Permit>(self_.lock(), client.name, reserved);
  const bool by_requests = requests_wait >= tokens_wait;
  const double wait = std::max(requests_wait, tokens_wait);
  Error error =
      make_error(ErrorCode::overloaded,
                 by_requests ? "More than " + std::to_string(limits_.requests_per_minute) + " requests a minute."
                             : "More than " + std::to_string(limits_.tokens_per_minute) +
                                   " tokens a minute; this request may take " + std::to_string(tokens) + ".");
  error.retry_after_s = std::max(1, static_cast<int>(std::ceil(wait)));
  return error;
}

void RateLimiter::give_back(const std::string& name, std::int64_t tokens) {
  if (limits_.tokens_per_minute == 0) return;
  std::lock_guard lock(mutex_);
  const auto known = by_name_.find(name);
  if (known == by_name_.end()) return;
  Bucket& bucket = known->second->tokens;
  bucket.level = std::min(static_cast<double>(limits_.tokens_per_minute), bucket.level + static_cast<double>(tokens));
}

std::size_t RateLimiter::clients() const {
  std::lock_guard lock(mutex_);
  return clients_.size();
}

}  // namespace xgen::server
