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
  milliseconds open_time{1'000};  // of an open circuit, doubled each time its probe fails, up to
  milliseconds max_open_time{30'000};
  milliseconds patience{10'000};  // a client that leaves sooner says nothing of whether the replica hangs
  // A replica of whose last requests (at least `min_outcomes`, within the window) more than this share failed is
  // ejected as well, while another does well: else the fault is not its own.
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
//
// A replica that fails is out: its circuit is open. After a while one request, the probe, goes there, and its first
// token closes the circuit; if it is silent, the next goes there after the same while, where no other replica is in. A
// fault that may be the request's own (a prompt that no replica can compute fails at all of them) counts only while
// another replica does well, so it never takes out the last one.
//
// A replica hangs if it takes requests and answers none. So a request that was given up without a first token counts
// as such a fault if, in all the time since it was sent, the replica has answered no other and no answer of it was
// under way (whose pauses are limited elsewhere). Where there is merely a long queue, others have got their tokens.
class Balancer {
 public:
  explicit Balancer(BalancerOptions options) : options_(options) {}

  // Replicas that stay keep what is known of them.
  void set_replicas(const std::vector<std::string>& names);

  // A request at a replica, to be handed back to answered() and ended().
  struct Pick {
    std::string name;
    std::size_t unmatched = 0;  // chunks of its prompt that are still to be computed, as far as is known
    Time sent{};
    bool probe = false;  // tries whether the circuit can close
    bool answered = false;
  };
  // Null if every replica that is not in `tried` is unhealthy or has an open circuit. The request counts as sent.
  std::optional<Pick> pick(std::span<const std::uint64_t> chunks, const std::set<std::string>& tried, Time now);

  enum class Outcome : std::uint8_t {
    good,       // answered
    failed,     // no connection, an answer that broke off: the replica's own fault
    doubtful,   // a fault of the replica or of the request
    timed_out,  // not answered, or not in full, within the request's own time
    cancelled,  // the client went away
    neutral,    // says nothing of the replica: a faulty request, or it had no room
  };
  // The request has its first token.
  void answered(Pick& pick, Time now);
  // It has ended. True if that counts as a failure of the replica.
  bool ended(const Pick& pick, Outcome outcome, Time now);
  // It takes nothing more until then (429 with Retry-After), unless no other can.
  void rest(std::string_view name, Time until);
  // A health check: null if the replica did not answer or is not ready.
  void checked(std::string_view name, const std::optional<inference::Load>& load);

  // `open` tells whether the next request would be held off: not once it would be the probe.
  std::vector<inference::ReplicaState> states(Time now) const;
  // When the first of the replicas that are out may be tried again; null if some are in, or none will be.
  std::optional<Time> next_chance(Time now) const;

 private:
  struct Replica {
    inference::ReplicaState state;
    std::size_t pending = 0;  // chunks that requests without an answer yet have to compute
    double foreign = 0;       // work of other clients, as of the replica's last report
    int answering = 0;        // requests with a first token, under way
    Time last_answer{};       // when a request last got its first token, or ended after it
    Time resting{};
    Time open_until{};
    milliseconds open_time{0};
    bool probing = false;  // a probe is under way
    int failures_in_a_row = 0;
    int own_failures_in_a_row = 0;                // of them, those that are beyond doubt
    std::vector<std::pair<Time, bool>> outcomes;  // within the window; true = failed
    PrefixIndex index{0};
  };

  Replica* find(std::string_view name);
  bool is_shut(const Replica& replica, Time now) const;
  bool may_take(const Replica& replica, Time now) const;
  static double work(const Replica& replica);
  void open(Replica& replica, Time now);
  static void close(Replica& replica);
  bool seems_hung(const Replica& replica, const Pick& pick, Outcome outcome, Time now) const;
  bool another_does_well(const Replica& replica) const;
  static double failed_share(const Replica& replica);

  const BalancerOptions options_;
  std::vector<Replica> replicas_;
  std::size_t turn_ = 0;  // among equals
};

}  // namespace xgen::gateway
