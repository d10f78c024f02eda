// What is told about every request: its id, its line in the access log, its place in the metrics.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/trace.h"
#include "http/server.h"
#include "inference/types.h"
#include "server/response_counts.h"

namespace xgen::server {

// The span of a request that is traced.
struct TracedRequest {
  std::shared_ptr<trace::Sink> sink;
  std::string parent_id;  // the caller's; empty if it has none
  std::string name;
  std::vector<std::pair<std::string, trace::Value>> attributes;
};

struct RequestInfo {
  std::chrono::steady_clock::time_point start;  // when its head was here; before: it never was
  std::string method;
  std::string path;
  std::string id;                         // x-request-id, the caller's or made here
  trace::Context trace;                   // the caller's, or of the request's own span; empty: none
  std::shared_ptr<TracedRequest> traced;  // null unless its spans are told
  std::string model;                      // that an operator acts on
  std::string key;                        // the name of the API key; empty if none was asked for
  std::string remote;                     // the client's address
  std::string certificate;                // whose it has shown; empty if none
  std::string user;                       // what a trusted proxy calls its user; empty if it does not tell
  bool quiet = false;                     // logged at level debug
  std::size_t route = 0;
  std::shared_ptr<ResponseCounts> counts;
};

RequestInfo describe(const http::Request& request, std::shared_ptr<ResponseCounts> counts);

// Begins a span of its own where spans are told and this request's are: as its caller has decided, else a share of all.
struct Tracing {
  std::shared_ptr<trace::Sink> sink;  // null: none are told
  double share = 1;
};
void begin_span(RequestInfo& info, const Tracing& tracing, std::string name);

// What an engine has told of a request for inference.
struct Work {
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_tokens = 0;
  std::int64_t completion_tokens = 0;  // as far as they have come
  bool complete = false;               // the tokens of prompts are known only then
  inference::Timings timings;          // the longest of several prompts; to the end of one that did not come so far
  std::vector<std::string> finish_reasons;  // each once
};

struct Outcome {
  int status = 0;
  std::string_view model;        // of inference requests
  std::string_view response_id;  // the same
  const Work* work = nullptr;    // the same
  std::string_view reason;       // why it was refused or has failed; never text of a prompt
  std::string_view remote;       // of requests that the HTTP server refuses by itself
};
// Once per request, at its end: counts the answer, writes its line in the access log and ends its span.
void finish_request(const RequestInfo& info, const Outcome& outcome);

}  // namespace xgen::server
