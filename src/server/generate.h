// One running call of /v1/completions or /v1/chat/completions: from the engine's events to the exchange.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "api/errors.h"
#include "api/requests.h"
#include "http/server.h"
#include "inference/model_service.h"
#include "server/fallback_route.h"
#include "server/rate_limit.h"
#include "server/request_info.h"

namespace xgen::server {

// What a call takes from the rates of its API key.
struct RateShare {
  std::unique_ptr<RateLimit::Permit> permit;  // null: there are none
  std::int64_t prompt_tokens = 0;             // about: for a call that ends before its model has told
  http::Headers headers;                      // of every answer to the call
};

// Starts the call's requests on `service`, the first of `route`, and answers the exchange as their events come; logs
// the request at its end. While none of them has a token, a failure takes them all to the route's next model. A client
// that goes away cancels them. Called on the exchange's server thread.
void generate(std::shared_ptr<http::Exchange> exchange, RequestInfo info, api::GenerateCall call, FallbackRoute route,
              inference::ModelService& service, std::string fingerprint, RateShare share);

// The answer to a request that failed.
http::Response error_response(const Error& error, const std::string& request_id);
http::Response error_response(const Error& error, const std::string& request_id, const api::ErrorKind& kind);
// Says when to come back, where waiting helps. `seconds` 0: soon.
void add_retry_after(http::Response& response, int seconds);

}  // namespace xgen::server
