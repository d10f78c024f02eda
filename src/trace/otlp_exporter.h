// OtlpExporter: sends spans to an OpenTelemetry collector: OTLP over HTTP, as JSON.
// https://opentelemetry.io/docs/specs/otlp/#otlphttp
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/trace.h"
#include "http/client.h"

namespace xgen::trace {

struct OtlpOptions {
  http::Url url;                              // of the traces themselves: "http://collector:4318/v1/traces"
  std::string ca_file;                        // empty: the system's store
  std::string service;                        // service.name
  std::string version;                        // service.version
  std::size_t max_queue = 8192;               // spans; more are dropped, and counted
  std::size_t max_batch = 512;                // spans of one call
  std::chrono::milliseconds interval{1'000};  // a batch that is not full waits so long
  std::chrono::milliseconds timeout{10'000};  // of one call
  std::chrono::milliseconds retry{1'000};     // before one that may go well later is tried again, kTries times in all
  static constexpr std::chrono::milliseconds kAtEnd{2'000};
  std::chrono::milliseconds at_end = kAtEnd;  // for what is queued when the process ends
};

// Thread-safe. One thread of its own sends; whoever adds a span never waits for it.
class OtlpExporter final : public Sink {
 public:
  explicit OtlpExporter(OtlpOptions options);
  ~OtlpExporter() override;
  OtlpExporter(const OtlpExporter&) = delete;
  OtlpExporter& operator=(const OtlpExporter&) = delete;

  void add(Span span) override;

  struct Counts {
    std::uint64_t sent = 0;     // spans that the collector has taken
    std::uint64_t dropped = 0;  // that found no room in the queue, or that it has not taken
  };
  Counts counts() const;

  static constexpr int kTries = 3;

 private:
  enum class Outcome : std::uint8_t { taken, refused, later };

  void run();
  bool wait_for_batch(std::vector<Span>& batch);
  void send(const std::vector<Span>& batch);
  Outcome call(const std::string& body, std::size_t spans);

  const OtlpOptions options_;
  http::Client client_;
  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Span> queue_;
  Counts counts_;
  bool ending_ = false;
  bool ended_ = false;
  std::chrono::steady_clock::time_point end_by_;
  http::CancelToken overdue_;                   // what is under way when the time is over
  std::chrono::steady_clock::time_point told_;  // when the log last spoke of a failure
  std::thread thread_;
};

// The body of one call.
std::string otlp_json(const OtlpOptions& options, const std::vector<Span>& spans);

}  // namespace xgen::trace
