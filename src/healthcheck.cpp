#include "healthcheck.h"

#include <chrono>
#include <string_view>
#include <utility>

#include "http/client.h"
#include "http/url.h"

namespace xgen {
namespace {

constexpr std::chrono::seconds kPatience{3};
constexpr std::size_t kMaxAnswer = 64 << 10;

}  // namespace

std::string health_url(const std::string& listens_on, int port, const std::string& probe) {
  std::string host = listens_on == "0.0.0.0" ? "127.0.0.1" : listens_on == "::" ? "::1" : listens_on;
  if (host.find(':') != std::string::npos) host = "[" + host + "]";
  return "http://" + host + ":" + std::to_string(port) + "/health/" + probe;
}

Result<std::string> ask_health(const std::string& url, const std::string& user_agent) {
  auto parsed = http::parse_url(url);
  if (!parsed) return std::move(parsed).error();
  http::ClientRequest request;
  request.url = *std::move(parsed);
  request.deadline = std::chrono::steady_clock::now() + kPatience;
  request.max_body = kMaxAnswer;
  http::ClientOptions options;
  options.user_agent = user_agent;
  http::Client client(std::move(options));
  int status = 0;
  std::string body;
  const Status done = http::fetch(
      client, std::move(request),
      [&](const http::ResponseHead& head) {
        status = head.status;
        return Status();
      },
      [&](std::string_view chunk) {
        body += chunk;
        return Status();
      });
  if (!done) return done.error();
  if (status != 200) return make_error(ErrorCode::unavailable, url + ": " + std::to_string(status) + " " + body);
  return body;
}

}  // namespace xgen
