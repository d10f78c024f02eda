// Endpoint: one server of another engine: how it is called, and what runs there.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/result.h"
#include "http/client.h"
#include "remote/request_stats.h"
#include "remote/secret_file.h"
#include "remote/upstream_error.h"

namespace xgen::remote {

struct EndpointOptions {
  std::string name;          // what clients call the model
  std::string model;         // what the server calls it
  http::Url url;             // its base: "http://vllm-0:8000/v1"
  std::string api_key_file;  // sent as a bearer token; empty: none
  http::Headers headers;     // sent with every request
  std::string ca_file;       // empty: the system's store
  std::chrono::milliseconds connect_timeout{5'000};
  std::chrono::milliseconds first_byte_timeout{300'000};  // to the first of the answer: queueing and the prompt
  std::chrono::milliseconds idle_timeout{60'000};         // between parts of the answer
  std::chrono::milliseconds health_interval{10'000};      // between looks at whether the server is well; 0: never
  std::chrono::milliseconds load_interval{0};             // between looks at the server's /metrics; 0: never
  std::size_t max_requests = 4096;                        // at once; more are refused as overloaded
};

// What the service and its requests share; requests may outlive the service, and nothing outlives the client.
// Thread-safe.
class Endpoint {
 public:
  Endpoint(EndpointOptions given, http::Client& http_client)
      : options(std::move(given)), client(http_client), key_(options.api_key_file) {}

  // A call of the server, but for its body. Errors: unavailable, if the key cannot be read.
  Result<http::ClientRequest> call(std::string_view method, std::string target, std::string* key_out);
  Upstream upstream(std::string key) const { return {options.name, options.url.origin(), std::move(key)}; }
  // "/v1", or what else the base URL ends with, without a slash.
  std::string base() const;
  // Where servers have what is not OpenAI's: beside /v1.
  std::string root() const;
  Error closed_error() const;
  // Why a call ended before its answer was complete. Errors: closed_error(); timeout, if the deadline that it was given
  // has passed; else those of error_of_call.
  Error error_of_end(const http::CallEnd& end, std::optional<std::chrono::steady_clock::time_point> deadline,
                     const Upstream& upstream) const;

  // A slot for one more call. Errors: overloaded; unavailable once closed.
  Result<std::uint64_t> enter();
  // Its call has started; it may be over already.
  void began(std::uint64_t id, std::shared_ptr<http::Call> call);
  // The rest of its answer is of no use.
  void cancel(std::uint64_t id);
  void leave(std::uint64_t id);
  void close();
  bool is_closed() const { return closed_.load(); }

  const EndpointOptions options;
  http::Client& client;
  std::atomic<int> max_model_len{0};  // as the server tells; 0: not known
  RequestStats stats;

 private:
  SecretFile key_;
  std::mutex mutex_;
  std::atomic<bool> closed_{false};
  std::uint64_t last_id_ = 0;
  std::unordered_map<std::uint64_t, std::shared_ptr<http::Call>> running_;
};

}  // namespace xgen::remote
