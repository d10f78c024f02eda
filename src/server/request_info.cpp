#include "server/request_info.h"

#include <algorithm>
#include <array>
#include <random>
#include <utility>

#include "base/log.h"

namespace xgen::server {
namespace {

constexpr std::size_t kMaxRequestId = 128;

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// W3C Trace Context: version-traceid-parentid-flags; an id of zeros is none.
std::string_view trace_id_of(std::string_view traceparent) {
  if (traceparent.size() < 55 || traceparent[2] != '-' || traceparent[35] != '-') return {};
  const std::string_view id = traceparent.substr(3, 32);
  const bool valid = is_hex(id) && id.find_first_not_of('0') != std::string_view::npos;
  return valid ? id : std::string_view{};
}

}  // namespace

std::string make_request_id() {
  thread_local std::mt19937_64 random{[] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }()};
  constexpr char kHex[] = "0123456789abcdef";
  std::string id;
  id.reserve(32);
  for (int half = 0; half < 2; ++half) {
    std::uint64_t bits = random();
    for (int i = 0; i < 16; ++i, bits >>= 4) id += kHex[bits & 15];
  }
  return id;
}

RequestInfo describe(const http::Request& request, std::shared_ptr<ResponseCounts> counts) {
  RequestInfo info;
  if (counts) info.route = counts->none();
  info.counts = std::move(counts);
  info.start = std::chrono::steady_clock::now();
  info.method = request.method;
  info.path = request.path;
  const std::string_view id = request.header("x-request-id");
  const bool usable = !id.empty() && id.size() <= kMaxRequestId &&
                      std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 0x7f; });
  info.id = usable ? std::string(id) : make_request_id();
  info.remote = request.remote;
  info.certificate = request.certificate;
  info.trace_id = trace_id_of(request.header("traceparent"));
  return info;
}

void finish_request(const RequestInfo& info, const Outcome& outcome) {
  if (info.counts) info.counts->add(info.route, outcome.status);
  const log::Level level = outcome.status == 500 ? log::Level::error  // our own fault
                           : info.quiet && outcome.status != 401 && outcome.status != 403 ? log::Level::debug
                                                                                          : log::Level::info;
  if (!log::enabled(level)) return;
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - info.start;
  std::array<log::Field, 12> fields;
  std::size_t count = 0;
  const auto add = [&](log::Field field) { fields[count++] = std::move(field); };
  // Of a request that the HTTP server refuses, little may have been read.
  if (!info.method.empty()) add({"method", info.method.substr(0, log::kMaxQuoted)});
  if (!info.path.empty()) add({"path", info.path.substr(0, log::kMaxQuoted)});
  add({"status", outcome.status});
  if (outcome.remote.empty()) add({"duration_ms", log::Decimal{took.count(), 2}});
  add({"request_id", info.id});
  if (const std::string_view remote = outcome.remote.empty() ? info.remote : outcome.remote; !remote.empty())
    add({"remote", remote});
  if (!info.certificate.empty()) add({"client_cert", info.certificate});
  if (!info.user.empty()) add({"user_id", info.user.substr(0, log::kMaxQuoted)});
  if (!info.key.empty()) add({"api_key", info.key});
  if (!outcome.model.empty()) add({"model", outcome.model.substr(0, log::kMaxQuoted)});
  if (outcome.tokens >= 0) add({"tokens", outcome.tokens});
  if (!outcome.reason.empty()) add({"reason", outcome.reason.substr(0, log::kMaxQuoted)});
  // In the message, so that both formats hold the literal text by which log viewers link to traces.
  const std::string message = info.trace_id.empty() ? "request" : "request trace_id=" + info.trace_id;
  log::write(level, "http", message, std::span<const log::Field>(fields.data(), count));
}

}  // namespace xgen::server
