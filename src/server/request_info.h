// What is told about every request: its id, its line in the access log, its place in the metrics.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "http/server.h"
#include "server/response_counts.h"

namespace xgen::server {

struct RequestInfo {
  std::chrono::steady_clock::time_point start;
  std::string method;
  std::string path;
  std::string id;           // x-request-id, the caller's or made here
  std::string trace_id;     // of a traceparent header; empty if none
  std::string key;          // the name of the API key; empty if none was asked for
  std::string remote;       // the client's address
  std::string certificate;  // whose it has shown; empty if none
  std::string user;         // what a trusted proxy calls its user; empty if it does not tell
  bool quiet = false;       // logged at level debug
  std::size_t route = 0;
  std::shared_ptr<ResponseCounts> counts;
};

RequestInfo describe(const http::Request& request, std::shared_ptr<ResponseCounts> counts);

// 32 hexadecimal digits.
std::string make_request_id();

struct Outcome {
  int status = 0;
  std::string_view model;    // of inference requests
  std::int64_t tokens = -1;  // of their output
  std::string_view reason;   // why it was refused or has failed; never text of a prompt
  std::string_view remote;   // of requests that the HTTP server refuses by itself
};
// Once per request, at its end: counts the answer and writes its line in the access log.
void finish_request(const RequestInfo& info, const Outcome& outcome);

}  // namespace xgen::server
