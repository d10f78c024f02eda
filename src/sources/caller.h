// Requests to the Hub and to S3: redirects, waiting and trying again.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>

#include "base/result.h"
#include "http/client.h"

namespace xgen::sources {

inline constexpr int kMaxRedirects = 5;
inline constexpr std::string_view kBucketRegion = "x-amz-bucket-region";
inline constexpr std::size_t kMaxErrorBody = 4096;        // bytes that are kept of an answer that says no
inline constexpr std::uint64_t kGoodProgress = 64 << 10;  // bytes that make good a failure
inline constexpr std::chrono::milliseconds kLongestPause{16'000};
inline constexpr std::chrono::seconds kLongestRetryAfter{600};  // a server that asks for more is given up

// The end of patience with one thing to download.
struct Patience {
  int retries = 5;                                 // failures in a row, each with less than kGoodProgress
  std::chrono::milliseconds first_pause{500};      // before trying again; doubled with every failure in a row
  std::chrono::milliseconds idle_timeout{30'000};  // a connection without progress
};

// A warning, as such a pause would otherwise be a silence without a reason.
void log_retry(const std::string& reason, std::chrono::milliseconds pause, int failures, const Patience& patience);

struct Answer {
  int status = 0;
  http::Headers headers;
  std::string body;
  std::string_view header(std::string_view name) const { return http::find_header(headers, name); }
};

// True if what a server answered may be different a moment later.
bool worth_retrying(int status);
// Of Retry-After, in seconds or as a date; or of the Hub's RateLimit header if nothing is left of it.
std::optional<std::chrono::seconds> retry_after(const http::Headers& headers, std::time_t now);
// How long to wait after so many failures in a row (from 1).
std::chrono::milliseconds pause_after(int failures, const Patience& patience);
// False if it was stopped.
bool wait_for(std::chrono::milliseconds time, const std::stop_token& stop);
Error stopped_error();

// Where an answer of `request` with a Location sends it. The Authorization header and Amazon's (x-amz-…), which may
// bear a session token, stay behind when that is another origin. Errors: unavailable if it leads nowhere, or from https
// to http.
Result<http::ClientRequest> redirected(const http::ClientRequest& request, std::string_view location);

// One fetch that a stop token ends, too.
Status fetch_with_stop(http::Client& client, http::ClientRequest request,
                       const std::function<Status(const http::ResponseHead&)>& on_head,
                       const std::function<Status(std::string_view)>& on_body, const std::stop_token& stop);

// A small answer: redirects are followed to the same origin and elsewhere, but not where S3 names another region than
// `region`, for which the request has to be signed anew; failures that may pass are tried again.
// `make` makes the request for each try (a signature has its time). Errors: unavailable after the last try, naming the
// origin; too_large; cancelled.
Result<Answer> call(http::Client& client, const std::function<Result<http::ClientRequest>()>& make,
                    std::size_t max_body, const Patience& patience, const std::stop_token& stop,
                    std::string_view region = {});

}  // namespace xgen::sources
