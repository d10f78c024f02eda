#include "gateway/balancer.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace xgen::gateway {
namespace {

// A running request's share of every step, in chunks of prompt that could be computed meanwhile.
constexpr double kRunningWork = 2;
// What a waiting request of another gateway has before it, when nothing is known of it.
constexpr double kWaitingWork = 16;
constexpr double kBytesPerToken = 4;
constexpr std::size_t kMaxOutcomes = 128;  // per replica

}  // namespace

void Balancer::set_replicas(const std::vector<std::string>& names) {
  std::vector<Replica> next;
  for (const std::string& name : names) {
    if (std::any_of(next.begin(), next.end(), [&](const Replica& each) { return each.state.name == name; })) continue;
    if (Replica* known = find(name)) {
      next.push_back(std::move(*known));
      known->state.name.clear();
      continue;
    }
    Replica fresh;
    fresh.state.name = name;
    fresh.index.set_capacity(options_.index_chunks);
    next.push_back(std::move(fresh));
  }
  replicas_ = std::move(next);
}

Balancer::Replica* Balancer::find(std::string_view name) {
  for (Replica& each : replicas_)
    if (each.state.name == name) return &each;
  return nullptr;
}

bool Balancer::is_shut(const Replica& replica, Time now) const {
  if (!replica.state.open || now < replica.open_until) return replica.state.open;
  return replica.probing && std::any_of(replicas_.begin(), replicas_.end(),
                                        [](const Replica& other) { return other.state.healthy && !other.state.open; });
}

bool Balancer::may_take(const Replica& replica, Time now) const {
  return replica.state.healthy && !is_shut(replica, now);
}

double Balancer::work(const Replica& replica) {
  return static_cast<double>(replica.pending) + kRunningWork * replica.state.in_flight + replica.foreign;
}

std::optional<Balancer::Pick> Balancer::pick(std::span<const std::uint64_t> chunks, const std::set<std::string>& tried,
                                             Time now) {
  Replica* best = nullptr;
  double least = std::numeric_limits<double>::infinity();
  bool best_rests = true;
  std::size_t matched = 0;
  const std::size_t count = replicas_.size();
  if (count == 0) return std::nullopt;
  ++turn_;
  for (std::size_t i = 0; i < count; ++i) {
    Replica& each = replicas_[(turn_ + i) % count];
    if (!may_take(each, now) || tried.contains(each.state.name)) continue;
    const bool rests = now < each.resting;
    if (rests && !best_rests) continue;
    const std::size_t match = each.index.match(chunks);
    double cost = 0;
    if (options_.policy != Policy::round_robin) cost += work(each);
    if (options_.policy == Policy::prefix) {
      cost += static_cast<double>(chunks.size() - match);
      // The least used index breaks ties, so that new conversations spread over the caches.
      cost += static_cast<double>(each.index.size()) / (static_cast<double>(options_.index_chunks) + 1);
    }
    if (cost >= least && rests == best_rests) continue;
    best = &each;
    least = cost;
    best_rests = rests;
    matched = match;
  }
  if (best == nullptr) return std::nullopt;
  best->probing = best->state.open;
  if (best->probing) best->open_until = now + best->open_time;
  ++best->state.in_flight;
  ++best->state.sent;
  best->state.chunks += chunks.size();
  best->state.matched_chunks += matched;
  best->pending += chunks.size() - matched;
  best->index.add(chunks);
  return Pick{best->state.name, chunks.size() - matched, now, best->probing};
}

void Balancer::answered(Pick& pick, Time now) {
  Replica* replica = find(pick.name);
  if (replica == nullptr) return;
  replica->pending -= std::min(replica->pending, std::exchange(pick.unmatched, 0));
  ++replica->answering;
  replica->last_answer = now;
  pick.answered = true;
  if (std::exchange(pick.probe, false)) close(*replica);
}

double Balancer::failed_share(const Replica& replica) {
  const auto failed =
      std::count_if(replica.outcomes.begin(), replica.outcomes.end(), [](auto& each) { return each.second; });
  return static_cast<double>(failed) / static_cast<double>(std::max<std::size_t>(1, replica.outcomes.size()));
}

bool Balancer::another_does_well(const Replica& replica) const {
  return std::any_of(replicas_.begin(), replicas_.end(), [&](const Replica& other) {
    return &other != &replica && other.state.healthy && !other.state.open && other.failures_in_a_row == 0 &&
           failed_share(other) <= options_.max_failed_share;
  });
}

bool Balancer::seems_hung(const Replica& replica, const Pick& pick, Outcome outcome, Time now) const {
  if (outcome == Outcome::cancelled && now - pick.sent < options_.patience) return false;
  return replica.answering == 0 && replica.last_answer < pick.sent;  // so it has not answered this one either
}

void Balancer::open(Replica& replica, Time now) {
  replica.open_time = replica.state.open ? std::min(replica.open_time * 2, options_.max_open_time) : options_.open_time;
  replica.open_until = now + replica.open_time;
  replica.state.open = true;
  replica.probing = false;
  replica.failures_in_a_row = replica.own_failures_in_a_row = 0;
  replica.outcomes.clear();
  // It was started anew, or will be: what it had computed is not counted on.
  replica.index.clear();
  ++replica.state.ejections;
}

void Balancer::close(Replica& replica) {
  replica.state.open = false;
  replica.probing = false;
  replica.failures_in_a_row = replica.own_failures_in_a_row = 0;
}

bool Balancer::ended(const Pick& pick, Outcome outcome, Time now) {
  Replica* replica = find(pick.name);
  if (replica == nullptr) return false;
  replica->pending -= std::min(replica->pending, pick.unmatched);
  replica->state.in_flight = std::max(0, replica->state.in_flight - 1);
  if (pick.answered) {
    replica->answering = std::max(0, replica->answering - 1);
    if (outcome != Outcome::failed && outcome != Outcome::doubtful) replica->last_answer = now;
  }
  if (outcome == Outcome::timed_out || outcome == Outcome::cancelled)
    outcome = seems_hung(*replica, pick, outcome, now) ? Outcome::doubtful : Outcome::neutral;
  const bool failed = outcome == Outcome::failed || outcome == Outcome::doubtful;
  if (failed) ++replica->state.failures;
  if (replica->state.open) {
    // What was sent before it opened says nothing of how the replica is now.
    if (!pick.probe) return failed;
    replica->probing = false;
    replica->open_until = std::min(replica->open_until, now);
    if (outcome == Outcome::good) close(*replica);
    if (outcome == Outcome::failed || (failed && another_does_well(*replica))) open(*replica, now);
    return failed;
  }
  if (outcome == Outcome::neutral) return false;
  replica->failures_in_a_row = failed ? replica->failures_in_a_row + 1 : 0;
  replica->own_failures_in_a_row = failed ? replica->own_failures_in_a_row + (outcome == Outcome::failed) : 0;
  std::erase_if(replica->outcomes, [&](const auto& each) { return each.first + options_.window < now; });
  if (replica->outcomes.size() >= kMaxOutcomes) replica->outcomes.erase(replica->outcomes.begin());
  replica->outcomes.emplace_back(now, failed);
  if (!failed) return false;
  const bool in_a_row = replica->failures_in_a_row >= options_.max_failures;
  const bool its_own = replica->own_failures_in_a_row >= options_.max_failures;
  const bool mostly = replica->outcomes.size() >= static_cast<std::size_t>(options_.min_outcomes) &&
                      failed_share(*replica) > options_.max_failed_share;
  if (its_own || ((in_a_row || mostly) && another_does_well(*replica))) open(*replica, now);
  return true;
}

void Balancer::rest(std::string_view name, Time until) {
  if (Replica* replica = find(name)) replica->resting = std::max(replica->resting, until);
}

void Balancer::checked(std::string_view name, const std::optional<inference::Load>& load) {
  Replica* replica = find(name);
  if (replica == nullptr) return;
  if (!load) {
    if (std::exchange(replica->state.healthy, false)) replica->index.clear();
    return;
  }
  replica->state.healthy = true;
  const double others = std::max(0.0, load->running + load->waiting - load->own);
  const double waiting = std::min(load->waiting, others);
  replica->foreign = kWaitingWork * waiting + kRunningWork * (others - waiting);
  if (load->kv_tokens > 0) {
    const auto chunks = static_cast<std::size_t>(load->kv_tokens * kBytesPerToken / kChunkBytes);
    replica->index.set_capacity(std::clamp<std::size_t>(chunks, 1, options_.index_chunks));
  }
}

std::vector<inference::ReplicaState> Balancer::states(Time now) const {
  std::vector<inference::ReplicaState> out;
  for (const Replica& each : replicas_) {
    inference::ReplicaState state = each.state;
    state.open = is_shut(each, now);
    out.push_back(std::move(state));
  }
  return out;
}

std::optional<Time> Balancer::next_chance(Time now) const {
  std::optional<Time> next;
  for (const Replica& each : replicas_) {
    if (may_take(each, now)) return std::nullopt;
    if (each.state.healthy && (!next || each.open_until < *next)) next = each.open_until;
  }
  return next;
}

}  // namespace xgen::gateway
