// RateLimiter: how many requests and tokens each client may have a minute.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/result.h"

namespace xgen::server {

struct RateLimits {
  std::int64_t requests_per_minute = 0;  // 0 = no limit
  std::int64_t tokens_per_minute = 0;    // of prompts and answers; 0 = no limit
  bool any() const { return requests_per_minute > 0 || tokens_per_minute > 0; }
};

// Thread-safe. Each client has two buckets that hold a minute's worth and fill evenly (token bucket, as in RFC 2697). A
// request takes what it may come to at most, as far as that is known; when it ends, the difference to what it came to
// is put back or taken. So a bucket may fall below zero, and its client waits until it is above again.
class RateLimiter {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // What one admitted request holds. settle() at most once; without it (a request that was refused or went wrong before
  // it cost anything) everything is put back.
  class Permit {
   public:
    Permit(std::shared_ptr<RateLimiter> limiter, std::string client, std::int64_t reserved)
        : limiter_(std::move(limiter)), client_(std::move(client)), reserved_(reserved) {}
    ~Permit() { settle(0); }
    Permit(const Permit&) = delete;
    Permit& operator=(const Permit&) = delete;
    void settle(std::int64_t tokens);

   private:
    std::shared_ptr<RateLimiter> limiter_;  // null: settled
    const std::string client_;
    const std::int64_t reserved_;
  };

  static std::shared_ptr<RateLimiter> create(RateLimits limits);

  // What is left to the client after a decision, for the x-ratelimit-* headers of OpenAI. Seconds until the bucket is
  // full again.
  struct Left {
    std::int64_t requests = 0;
    std::int64_t tokens = 0;
    double requests_reset_s = 0;
    double tokens_reset_s = 0;
  };

  // Errors: overloaded, with retry_after_s and which limit it was.
  Result<std::unique_ptr<Permit>> admit(std::string_view client, std::int64_t tokens, Time now, Left& left);

  const RateLimits& limits() const { return limits_; }
  std::size_t clients() const;

 private:
  struct Bucket {
    double level = 0;
    double filled = 0;  // seconds since the limiter began
  };
  struct Client {
    std::string name;
    Bucket requests;
    Bucket tokens;
  };
  using Clients = std::list<Client>;

  explicit RateLimiter(RateLimits limits) : limits_(limits) {}
  Clients::iterator client(std::string_view name, double now);
  static void fill(Bucket& bucket, std::int64_t per_minute, double now);
  void give_back(const std::string& client, std::int64_t tokens);

  const RateLimits limits_;
  std::weak_ptr<RateLimiter> self_;
  mutable std::mutex mutex_;
  Clients clients_;  // the latest first
  std::unordered_map<std::string_view, Clients::iterator> by_name_;
};

}  // namespace xgen::server
