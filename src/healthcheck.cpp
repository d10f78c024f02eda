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

// With what the client cannot know: which file it is, and why a certificate was shown.
Error explained(Error error, const HealthTarget& target) {
  const auto says = [&](std::string_view words) { return error.message.find(words) != std::string::npos; };
  if (says("pinned_cert_file"))
    error.message += ", " + target.pinned_cert_file;
  else if (!target.cert_file.empty() && (says("TLS: ") || says("no answer: ")))
    // A server that closes at once takes its reason along: any missing answer may mean this.
    error.message +=
        "; tls_client_auth is required, so the server's own certificate was shown: server.tls_client_ca_file has to "
        "hold it, or the authority that signed it";
  return error;
}

}  // namespace

HealthTarget health_target(const config::Server& server, const std::string& probe) {
  std::string host = server.host == "0.0.0.0" ? "127.0.0.1" : server.host == "::" ? "::1" : server.host;
  if (host.find(':') != std::string::npos) host = "[" + host + "]";
  HealthTarget target;
  const bool tls = !server.tls_cert_file.empty();
  target.url = (tls ? "https://" : "http://") + host + ":" + std::to_string(server.port) + "/health/" + probe;
  if (tls) target.pinned_cert_file = server.tls_cert_file;
  if (tls && !server.tls_client_ca_file.empty() && server.tls_client_auth == "required") {
    target.cert_file = server.tls_cert_file;
    target.key_file = server.tls_key_file;
  }
  return target;
}

Result<std::string> ask_health(const HealthTarget& target, const std::string& user_agent) {
  auto parsed = http::parse_url(target.url);
  if (!parsed) return std::move(parsed).error();
  http::ClientRequest request;
  request.url = *std::move(parsed);
  request.pinned_cert_file = target.pinned_cert_file;
  request.cert_file = target.cert_file;
  request.key_file = target.key_file;
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
  if (!done) return explained(done.error(), target);
  if (status != 200) return make_error(ErrorCode::unavailable, target.url + ": " + std::to_string(status) + " " + body);
  return body;
}

}  // namespace xgen
