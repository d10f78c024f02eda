#include "server/request_info.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <random>

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

RequestInfo describe(const http::Request& request) {
  RequestInfo info;
  info.start = std::chrono::steady_clock::now();
  info.method = request.method;
  info.path = request.path;
  const std::string_view id = request.header("x-request-id");
  const bool usable = !id.empty() && id.size() <= kMaxRequestId &&
                      std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 0x7f; });
  info.id = usable ? std::string(id) : make_request_id();
  info.trace_id = trace_id_of(request.header("traceparent"));
  return info;
}

void log_request(const RequestInfo& info, int status, std::string_view model, int tokens) {
  const log::Level level = info.quiet ? log::Level::debug : log::Level::info;
  if (!log::enabled(level)) return;
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - info.start;
  char duration[32];
  std::snprintf(duration, sizeof(duration), "%.2f", took.count());
  std::array<log::Field, 7> fields;
  std::size_t count = 0;
  const auto add = [&](std::string_view key, std::string value) { fields[count++] = {key, std::move(value)}; };
  add("method", info.method);
  add("path", info.path.substr(0, 256));
  add("status", std::to_string(status));
  add("duration_ms", duration);
  add("request_id", info.id);
  if (!model.empty()) add("model", std::string(model.substr(0, 256)));
  if (tokens >= 0) add("tokens", std::to_string(tokens));
  // In the message, so that both formats hold the literal text by which log viewers link to traces.
  const std::string message = info.trace_id.empty() ? "request" : "request trace_id=" + info.trace_id;
  log::write(level, "http", message, std::span<const log::Field>(fields.data(), count));
}

}  // namespace xgen::server
