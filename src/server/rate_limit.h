// RateLimit: how many requests and tokens one API key may have a minute.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>

#include "base/result.h"

namespace xgen::server {

struct RateLimits {
  std::int64_t requests_per_minute = 0;  // 0 = no limit
  std::int64_t tokens_per_minute = 0;    // of prompts and answers; 0 = no limit
  bool any() const { return requests_per_minute > 0 || tokens_per_minute > 0; }
  bool operator==(const RateLimits&) const = default;
};

// Thread-safe. Two buckets that hold a minute's worth and fill evenly (token buckets, as in RFC 2697). A request takes
// what it may come to, as far as that is known; when it ends, the difference to what it came to is put back or taken.
// So a bucket may fall below zero, and nothing is admitted until it is above again.
class RateLimit : public std::enable_shared_from_this<RateLimit> {
 public:
  using Time = std::chrono::steady_clock::time_point;

  explicit RateLimit(RateLimits limits) : limits_(limits) {}

  // What one admitted request holds. settle() counts once; without it (a request that went wrong before it cost
  // anything) the tokens are put back.
  class Permit {
   public:
    Permit(std::shared_ptr<RateLimit> limit, std::int64_t reserved) : limit_(std::move(limit)), reserved_(reserved) {}
    ~Permit() { settle(0); }
    Permit(const Permit&) = delete;
    Permit& operator=(const Permit&) = delete;
    void settle(std::int64_t tokens);

   private:
    std::shared_ptr<RateLimit> limit_;  // null: settled
    const std::int64_t reserved_;
  };

  // What is left after a decision, and the seconds until the buckets are full again.
  struct Left {
    std::int64_t requests = 0;
    std::int64_t tokens = 0;
    double requests_reset_s = 0;
    double tokens_reset_s = 0;
  };

  // `tokens`: that the request may come to. Errors: overloaded, with retry_after_s and which limit it was.
  Result<std::unique_ptr<Permit>> admit(std::int64_t tokens, Time now, Left& left);

  const RateLimits& limits() const { return limits_; }

 private:
  // Requests, or tokens.
  struct Bucket {
    double level = 0;
    bool begun = false;
    Time filled;
    void fill(std::int64_t per_minute, Time now);
    double seconds_until(double wanted, std::int64_t per_minute) const;
  };

  const RateLimits limits_;
  std::mutex mutex_;
  Bucket requests_;
  Bucket tokens_;
};

}  // namespace xgen::server
