// What the tests of remote services share: a sink that keeps its events, the frame of a streamed answer, a fixture.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "http/client.h"
#include "inference/model_service.h"
#include "remote/endpoint.h"
#include "support/raw_server.h"

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

inline inference::GenerateRequest text_request(std::string prompt = "Once") {
  inference::GenerateRequest request;
  request.request_id = "req-1";
  request.prompt = std::move(prompt);
  return request;
}
inline inference::GenerateRequest chat_request() {
  inference::GenerateRequest request;
  request.prompt = std::vector<inference::Message>{{"user", "Hi"}};
  return request;
}

// A service before a server that a test writes.
class RemoteServiceTest : public ::testing::Test {
 protected:
  // Ends the service and its server. A test keeps it behind all that the server's script refers to.
  class [[nodiscard]] Served {
   public:
    explicit Served(RemoteServiceTest& test) : test_(test) {}
    ~Served() {
      if (test_.service) test_.service->close();
      test_.service.reset();
      test_.server.reset();
    }
    Served(const Served&) = delete;
    Served& operator=(const Served&) = delete;

   private:
    RemoteServiceTest& test_;
  };
  static EndpointOptions quiet() {
    EndpointOptions options;
    options.health_interval = std::chrono::milliseconds(0);
    return options;
  }
  std::shared_ptr<Sink> ask(inference::GenerateRequest request = text_request()) {
    auto sink = std::make_shared<Sink>();
    handle = service->generate_async(std::move(request), sink);
    return sink;
  }

  http::Client client;
  std::unique_ptr<scripted::RawServer> server;
  std::shared_ptr<inference::ModelService> service;
  std::unique_ptr<inference::RequestHandle> handle;
};

}  // namespace xgen::remote
