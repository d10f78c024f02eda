// What is told about every request: its id, its line in the access log.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "http/server.h"

namespace xgen::server {

struct RequestInfo {
  std::chrono::steady_clock::time_point start;
  std::string method;
  std::string path;
  std::string id;        // x-request-id, the caller's or made here
  std::string trace_id;  // of a traceparent header; empty if none
  bool quiet = false;    // logged at level debug
};

RequestInfo describe(const http::Request& request);

// 32 hexadecimal digits.
std::string make_request_id();

// The access log line. `model` and `tokens` (of the output) belong to inference requests.
void log_request(const RequestInfo& info, int status, std::string_view model = {}, int tokens = -1);

}  // namespace xgen::server
