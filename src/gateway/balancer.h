// Which of several equal replicas takes the next request. No clock, no thread, no network: the times are given.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/prefix_index.h"
#include "inference/model_service.h"

namespace xgen::gateway {

using Time = std::chrono::steady_clock::time_point;
using std::chrono::milliseconds;

enum class Policy : std::uint8_t {
  prefix,        // least work, a prompt's known beginning counting as done
  least_loaded,  // least work
  round_robin,
};

struct BalancerOptions {
  Policy policy = Policy::prefix;
  int max_failures = 5;           // failures in a row that open a replica's circuit
  milliseconds open_time{1'000};  // of an open circuit, doubled each time it opens again, up to
  milliseconds max_open_time{30'000};
  // A replica of whose last requests (at least `min_outcomes`, within the window) more than this share failed is
  // ejected like one with an open circuit, unless as much is true of the others: then the fault is not its own.
  double max_failed_share = 0.5;
  int min_outcomes = 10;
  milliseconds window{30'000};
  std::size_t index_chunks = std::size_t{1} << 18;  // remembered per replica, where its KV cache's size is not known
};

// Not thread-safe. Replicas are known by their names (their URLs).
//
// Every request costs a replica work: the chunks of its prompt that are not in the replica's prefix cache until its
// first token, and a share of every later step. A request goes where it would have to wait for the least work, its own
// chunks included. So a conversation goes to the replica that has its beginning, unless that has so much to do that
// computing everything anew elsewhere is quicker.
class Balancer {
 public:
  explicit Balancer(BalancerOptions options) : options_(options) {}

  // Replicas that stay keep what is known of them.
  void set_replicas(const std::vector<std::string>& names);

  struct Pick {
    std::string name;
    std::size_t matched = 0;  // chunks
  };
  // Null if every replica that is not in `tried` is unhealthy or has an open circuit. The request counts as sent.
  std::optional<Pick> pick(std::span<const std::uint64_t> chunks, const std::set<std::string>& tried, Time now);

  enum class Outcome : std::uint8_t {
    good,     // answered, or refused with good reason (a faulty request)
    failed,   // no connection, a fault of the replica, an answer that broke off
    neutral,  // cancelled, or the replica had no room
  };
  // The request that pick() sent there has its first token.
  void answered(std::string_view name, std::size_t unmatched);
  // It has ended. `unmatched`: if it had not answered, its chunks that were not matched; else 0.
  void ended(std::string_view name, std::size_t unmatched, Outcome outcome, Time now);
  // It takes nothing more until then (429 with Retry-After), unless no other can.
  void rest(std::string_view name, Time until);
  // A health check: null if the replica did not answer or is not ready.
  void checked(std::string_view name, const std::optional<inference::Load>& load);

  std::vector<inference::ReplicaState> states(Time now) const;
  // When the first of the replicas that are out may be tried again; null if some are in, or none will be.
  std::optional<Time> next_chance(Time now) const;

 private:
  struct Replica {
    inference::ReplicaState state;
    std::size_t pending = 0;  // chunks that requests without an answer yet have to compute
    double foreign = 0;       // work of other clients, as of the replica's last report
    Time resting{};
    Time open_until{};
    milliseconds open_time{0};
    bool probing = false;  // one request tries whether a circuit can close again
    int failures_in_a_row = 0;
    std::vector<std::pair<Time, bool>> outcomes;  // within the window; true = failed
    PrefixIndex index{0};
  };

  Replica* find(std::string_view name);
  bool may_take(const Replica& replica, Time now) const;
  double work(const Replica& replica) const;
  void open(Replica& replica, Time now);
  bool is_outlier(const Replica& replica) const;
  static double failed_share(const Replica& replica);

  const BalancerOptions options_;
  std::vector<Replica> replicas_;
  std::size_t turn_ = 0;  // among equals
};

}  // namespace xgen::gateway
