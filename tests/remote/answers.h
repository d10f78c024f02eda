// What the tests of remote services share: a sink that keeps its events, and the frame of a streamed answer.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "inference/types.h"

namespace xgen::remote {

struct Sink final : inference::EventSink {
  void on_event(inference::Event event) override {
    std::lock_guard lock(mutex);
    EXPECT_FALSE(over()) << "an event after the terminal one";
    events.push_back(std::move(event));
    changed.notify_all();
  }
  bool over() const {
    return !events.empty() && (std::holds_alternative<inference::Finished>(events.back()) ||
                               std::holds_alternative<inference::Failed>(events.back()));
  }
  template <class Ready>
  bool wait(Ready ready) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(10), ready);
  }
  bool wait_over() {
    return wait([this] { return over(); });
  }
  bool wait_events(std::size_t n) {
    return wait([&] { return events.size() >= n; });
  }
  // The failure, once there is one.
  Error error() {
    EXPECT_TRUE(wait_over());
    const auto* failed = events.empty() ? nullptr : std::get_if<inference::Failed>(&events.back());
    EXPECT_NE(failed, nullptr) << "it did not fail";
    return failed == nullptr ? Error{} : failed->error;
  }
  std::string text(int choice = 0) const {
    std::string all;
    for (const inference::Event& event : events)
      if (const auto* delta = std::get_if<inference::Delta>(&event); delta != nullptr && delta->choice == choice)
        all += delta->text;
    return all;
  }
  template <class T>
  std::vector<T> all() const {
    std::vector<T> out;
    for (const inference::Event& event : events)
      if (const T* one = std::get_if<T>(&event)) out.push_back(*one);
    return out;
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<inference::Event> events;
};

inline constexpr std::string_view kStreamHead =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
inline constexpr std::string_view kLast = "0\r\n\r\n";

}  // namespace xgen::remote
