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

bool Balancer::may_take(const Replica& replica, Time now) const {
  if (!replica.state.healthy) return false;
  if (!replica.state.open) return true;
  return now >= replica.open_until && !replica.probing;
}

double Balancer::work(const Replica& replica) const {
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
  if (best->state.open) best->probing = true;
  ++best->state.in_flight;
  ++best->state.sent;
  best->state.chunks += chunks.size();
  best->state.matched_chunks += matched;
  best->pending += chunks.size() - matched;
  best->index.add(chunks);
  return Pick{best->state.name, matched};
}

void Balancer::answered(std::string_view name, std::size_t unmatched) {
  if (Replica* replica = find(name)) replica->pending -= std::min(replica->pending, unmatched);
}

double Balancer::failed_share(const Replica& replica) {
  const auto failed =
      std::count_if(replica.outcomes.begin(), replica.outcomes.end(), [](auto& each) { return each.second; });
  return static_cast<double>(failed) / static_cast<double>(std::max<std::size_t>(1, replica.outcomes.size()));
}

bool Balancer::is_outlier(const Replica& replica) const {
  if (replica.outcomes.size() < static_cast<std::size_t>(options_.min_outcomes)) return false;
  if (failed_share(replica) <= options_.max_failed_share) return false;
  return std::any_of(replicas_.begin(), replicas_.end(), [&](const Replica& other) {
    return &other != &replica && other.state.healthy && !other.state.open &&
           failed_share(other) <= options_.max_failed_share;
  });
}

void Balancer::open(Replica& replica, Time now) {
  replica.open_time = replica.state.open ? std::min(replica.open_time * 2, options_.max_open_time) : options_.open_time;
  replica.open_until = now + replica.open_time;
  replica.state.open = true;
  replica.probing = false;
  replica.failures_in_a_row = 0;
  replica.outcomes.clear();
  // It was started anew, or will be: what it had computed is not counted on.
  replica.index.clear();
  ++replica.state.ejections;
}

void Balancer::ended(std::string_view name, std::size_t unmatched, Outcome outcome, Time now) {
  Replica* replica = find(name);
  if (replica == nullptr) return;
  replica->pending -= std::min(replica->pending, unmatched);
  replica->state.in_flight = std::max(0, replica->state.in_flight - 1);
  const bool probe = std::exchange(replica->probing, false);
  if (outcome == Outcome::neutral) return;
  if (outcome == Outcome::good) {
    replica->failures_in_a_row = 0;
    if (probe || replica->state.open) replica->state.open = false;
  } else {
    ++replica->state.failures;
    ++replica->failures_in_a_row;
  }
  std::erase_if(replica->outcomes, [&](const auto& each) { return each.first + options_.window < now; });
  if (replica->outcomes.size() >= kMaxOutcomes) replica->outcomes.erase(replica->outcomes.begin());
  replica->outcomes.emplace_back(now, outcome == Outcome::failed);
  if (outcome == Outcome::good) return;
  if (replica->state.open) {
    if (probe) open(*replica, now);
  } else if (replica->failures_in_a_row >= options_.max_failures || is_outlier(*replica)) {
    open(*replica, now);
  }
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
    state.open = state.open && now < each.open_until;
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
