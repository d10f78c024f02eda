// FairShare: whose turn it is with something that one of several users has at a time, so that their times of use are in
// proportion to their weights. Start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing", SIGCOMM 1996),
// with the cost of a turn known at its end.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <vector>

namespace xgen {

// It only decides: no clock, no thread, no waiting. Not thread-safe. A user that rests gains nothing by it, and one
// that asks waits for no longer than the turns that the others' weights give them.
class FairShare {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Duration = std::chrono::steady_clock::duration;
  using User = std::size_t;

  // A user that has had less than a slice goes on before others: handing over costs time as well.
  static constexpr Duration kSlice = std::chrono::milliseconds(2);
  // A user that is expected back keeps its place for so long. It says itself when it rests: this is for threads that
  // get no processor.
  static constexpr Duration kGrace = std::chrono::milliseconds(20);

  // `weight` > 0.
  User join(double weight);
  // Precondition: it is not its turn.
  void leave(User user);

  void ask(User user);
  // Gives the turn to the user that should have it now, if it is free and somebody asks.
  std::optional<User> next(Time now);
  enum class Then {
    asks,    // wants to go on, after others if it is their turn
    returns  // will ask again in a moment
  };
  // The turn ends. Precondition: next() gave it to `user`.
  void end(User user, Time now, Then then);
  // It has nothing to do until it asks again.
  void rest(User user);

  bool free() const { return !holder_; }
  // Whether the holder has used up its slice.
  bool slice_is_over(Time now) const { return holder_ && slice_used_ + (now - began_) >= kSlice; }

 private:
  enum class State { absent, resting, asking, holding, expected };
  struct Member {
    State state = State::absent;
    double weight = 1;
    double start = 0;  // virtual time at which its next turn starts: seconds by weight
    Time expected_until;
  };
  std::vector<Member> members_;
  std::optional<User> holder_;
  std::optional<User> last_;  // whose slice it is
  Time began_;
  Duration slice_used_{};
  double virtual_time_ = 0;  // the least start of those that had work when a turn was given
};

}  // namespace xgen
