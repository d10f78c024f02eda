#include "base/fair_share.h"

#include <algorithm>
#include <cassert>

namespace xgen {

FairShare::User FairShare::join(double weight) {
  const auto free =
      std::find_if(members_.begin(), members_.end(), [](const Member& each) { return each.state == State::absent; });
  const auto user = static_cast<User>(free - members_.begin());
  if (free == members_.end()) members_.emplace_back();
  members_[user] = {State::resting, weight, virtual_time_, {}};
  return user;
}

void FairShare::leave(User user) {
  assert(holder_ != user);
  members_[user].state = State::absent;
  if (last_ == user) last_.reset();
}

void FairShare::ask(User user) {
  Member& member = members_[user];
  member.start = std::max(member.start, virtual_time_);
  member.state = State::asking;
}

std::optional<FairShare::User> FairShare::next(Time now) {
  if (holder_) return {};
  const Member* best = nullptr;
  for (Member& each : members_) {
    if (each.state == State::expected && now >= each.expected_until) each.state = State::resting;
    if (each.state != State::asking && each.state != State::expected) continue;
    if (best == nullptr || each.start < best->start) best = &each;
  }
  if (best == nullptr) return {};
  virtual_time_ = std::max(virtual_time_, best->start);
  if (last_ && slice_used_ < kSlice) {
    const Member& last = members_[*last_];
    if (last.state == State::asking || last.state == State::expected) best = &last;
  }
  if (best->state == State::expected) return {};
  const auto user = static_cast<User>(best - members_.data());
  Member& member = members_[user];
  member.state = State::holding;
  if (last_ != user) slice_used_ = {};
  last_ = holder_ = user;
  began_ = now;
  return user;
}

void FairShare::end(User user, Time now, Then then) {
  assert(holder_ == user);
  Member& member = members_[user];
  const Duration used = now - began_;
  slice_used_ += used;
  member.start += std::chrono::duration<double>(used).count() / member.weight;
  member.state = then == Then::asks ? State::asking : State::expected;
  member.expected_until = now + kGrace;
  holder_.reset();
}

void FairShare::rest(User user) {
  if (holder_ != user) members_[user].state = State::resting;
}

}  // namespace xgen
