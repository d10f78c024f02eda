#include "sources/caller.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <ctime>
#include <mutex>
#include <utility>

#include "base/log.h"

namespace xgen::sources {
namespace {

constexpr std::string_view kAmazon = "x-amz-";  // a signature's date and session token

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

std::optional<long long> number(std::string_view text) {
  long long value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0) return {};
  return value;
}

}  // namespace

bool worth_retrying(int status) {
  return status == 408 || status == 425 || status == 429 || status == 500 || status == 502 || status == 503 ||
         status == 504;
}

std::optional<std::chrono::seconds> retry_after(const http::Headers& headers, std::time_t now) {
  const std::string text(http::find_header(headers, "retry-after"));
  if (const auto seconds = number(text)) return std::chrono::seconds(*seconds);
  std::tm time{};
  if (!text.empty() && ::strptime(text.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &time) != nullptr)
    return std::chrono::seconds(std::max<std::time_t>(::timegm(&time) - now, 0));
  // RateLimit: "resolvers";r=0;t=55
  const std::string_view limit = http::find_header(headers, "ratelimit");
  const std::size_t at = limit.find(";t=");
  if (limit.find(";r=0") != std::string_view::npos && at != std::string_view::npos) {
    std::string_view rest = limit.substr(at + 3);
    rest = rest.substr(0, rest.find_first_not_of("0123456789"));
    if (const auto seconds = number(rest)) return std::chrono::seconds(*seconds);
  }
  return {};
}

std::chrono::milliseconds pause_after(int failures, const Patience& patience) {
  const int doublings = std::clamp(failures - 1, 0, 10);
  return std::min(patience.first_pause * (1 << doublings), kLongestPause);
}

bool wait_for(std::chrono::milliseconds time, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock lock(mutex);
  never.wait_for(lock, stop, time, [] { return false; });
  return !stop.stop_requested();
}

void log_retry(const std::string& reason, std::chrono::milliseconds pause, int failures, const Patience& patience) {
  log::warn("sources", "trying again",
            {{"reason", reason}, {"pause_ms", pause.count()}, {"failures", failures}, {"retries", patience.retries}});
}

Error stopped_error() { return make_error(ErrorCode::cancelled, "The download was called off."); }

Result<http::ClientRequest> redirected(const http::ClientRequest& request, std::string_view location) {
  if (location.empty())
    return make_error(ErrorCode::unavailable, request.url.origin() + " answered with a redirect that leads nowhere");
  auto url = http::join_url(request.url, location);
  if (!url) {
    return make_error(
        ErrorCode::unavailable,
        request.url.origin() + " answered with a redirect that cannot be followed: " + url.error().message);
  }
  if (request.url.tls && !url->tls)
    return make_error(ErrorCode::unavailable, request.url.origin() + " redirects from https to http: " + url->origin());
  http::ClientRequest next = request;
  if (url->origin() != request.url.origin()) {
    std::erase_if(next.headers, [](const auto& header) {
      return http::equal_ignoring_case(header.first, "authorization") ||
             http::equal_ignoring_case(header.first, "host") ||
             http::equal_ignoring_case(header.first.substr(0, kAmazon.size()), kAmazon);
    });
  }
  next.url = *std::move(url);
  return next;
}

Status fetch_with_stop(http::Client& client, http::ClientRequest request,
                       const std::function<Status(const http::ResponseHead&)>& on_head,
                       const std::function<Status(std::string_view)>& on_body, const std::stop_token& stop) {
  http::CancelToken cancel;
  const std::stop_callback stopped(stop, [&cancel] { cancel.cancel(); });
  return http::fetch(client, std::move(request), on_head, on_body, &cancel);
}

Result<Answer> call(http::Client& client, const std::function<Result<http::ClientRequest>()>& make,
                    std::size_t max_body, const Patience& patience, const std::stop_token& stop,
                    std::string_view region) {
  for (int failures = 1;; ++failures) {
    if (stop.stop_requested()) return stopped_error();
    auto request = make();
    if (!request) return std::move(request).error();
    Answer answer;
    Status ended;
    for (int redirects = 0;; ++redirects) {
      request->idle_timeout = request->first_byte_timeout = patience.idle_timeout;
      request->max_body = max_body;
      answer = {};
      ended = fetch_with_stop(
          client, *request,
          [&answer](const http::ResponseHead& head) -> Status {
            answer.status = head.status;
            answer.headers = head.headers;
            return {};
          },
          [&answer](std::string_view chunk) -> Status {
            answer.body += chunk;
            return {};
          },
          stop);
      if (!ended || !is_redirect(answer.status) || answer.header("location").empty()) break;
      const std::string_view there = answer.header(kBucketRegion);
      if (!there.empty() && there != region) break;
      if (redirects >= kMaxRedirects)
        return make_error(ErrorCode::unavailable,
                          request->url.origin() + " redirects more than " + std::to_string(kMaxRedirects) + " times");
      auto next = redirected(*request, answer.header("location"));
      if (!next) return std::move(next).error();
      request = std::move(next);
    }
    std::chrono::milliseconds pause = pause_after(failures, patience);
    std::string reason;
    if (ended) {
      if (!worth_retrying(answer.status) || failures > patience.retries) return answer;
      if (const auto asked = retry_after(answer.headers, std::time(nullptr))) {
        if (*asked > kLongestRetryAfter) return answer;
        pause = *asked;
      }
      reason = request->url.origin() + " answered " + std::to_string(answer.status);
    } else {
      const ErrorCode code = ended.error().code;
      const bool may_pass =
          code == ErrorCode::unavailable || code == ErrorCode::timeout || code == ErrorCode::overloaded;
      if (!may_pass || failures > patience.retries) return std::move(ended).error();
      reason = ended.error().message;
    }
    log_retry(reason, pause, failures, patience);
    if (!wait_for(pause, stop)) return stopped_error();
  }
}

}  // namespace xgen::sources
