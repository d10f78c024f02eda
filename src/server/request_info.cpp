#include "server/request_info.h"

#include <algorithm>
#include <array>
#include <optional>
#include <random>
#include <utility>

#include "base/log.h"

namespace xgen::server {
namespace {

constexpr std::size_t kMaxRequestId = 128;

// From 0 to 1.
double random_share() {
  thread_local std::minstd_rand random{std::random_device{}()};
  return std::uniform_real_distribution<double>(0, 1)(random);
}

}  // namespace

RequestInfo describe(const http::Request& request, std::shared_ptr<ResponseCounts> counts) {
  RequestInfo info;
  if (counts) info.route = counts->none();
  info.counts = std::move(counts);
  info.start = request.arrival;
  info.method = request.method;
  info.path = request.path;
  const std::string_view id = request.header("x-request-id");
  const bool usable = !id.empty() && id.size() <= kMaxRequestId &&
                      std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 0x7f; });
  info.id = usable ? std::string(id) : trace::make_id(32);
  info.remote = request.remote;
  info.certificate = request.certificate;
  info.trace = trace::parse(request.header("traceparent"), request.header("tracestate"));
  return info;
}

void begin_span(RequestInfo& info, const Tracing& tracing, std::string name) {
  if (tracing.sink == nullptr) return;
  const bool sampled = info.trace ? info.trace.sampled : random_share() < tracing.share;
  if (!sampled) {
    // Others must not decide it anew.
    if (!info.trace) info.trace = trace::child_of({});
    return;
  }
  info.traced = std::make_shared<TracedRequest>();
  info.traced->sink = tracing.sink;
  info.traced->parent_id = info.trace.span_id;
  info.traced->name = std::move(name);
  info.trace = trace::child_of(info.trace);
  info.trace.sampled = true;
}

namespace {

// Names of the OpenTelemetry conventions for HTTP and for generative AI; the latencies as vLLM names them.
void end_span(const RequestInfo& info, const Outcome& outcome) {
  TracedRequest& traced = *info.traced;
  trace::Span span;
  span.context = info.trace;
  span.parent_id = traced.parent_id;
  span.name = std::move(traced.name);
  span.kind = trace::Span::Kind::server;
  span.start = trace::wall_time(info.start);
  span.end = std::chrono::system_clock::now();
  span.attributes = std::move(traced.attributes);
  const auto add = [&](std::string_view name, trace::Value value) {
    span.attributes.emplace_back(std::string(name), std::move(value));
  };
  add("http.request.method", info.method.substr(0, log::kMaxQuoted));
  add("url.path", info.path.substr(0, log::kMaxQuoted));
  add("http.response.status_code", static_cast<std::int64_t>(outcome.status));
  add("gen_ai.request.id", info.id);
  if (!outcome.response_id.empty()) add("gen_ai.response.id", std::string(outcome.response_id));
  if (!outcome.model.empty()) add("gen_ai.response.model", std::string(outcome.model.substr(0, log::kMaxQuoted)));
  if (outcome.work != nullptr) {
    const Work& work = *outcome.work;
    add("gen_ai.usage.output_tokens", work.completion_tokens);
    if (!work.finish_reasons.empty()) add("gen_ai.response.finish_reasons", work.finish_reasons);
    add("gen_ai.latency.time_in_queue", work.timings.queue);
    if (work.complete) {
      add("gen_ai.usage.input_tokens", work.prompt_tokens);
      add("gen_ai.usage.cache_read.input_tokens", work.cached_tokens);
      add("gen_ai.latency.time_to_first_token", work.timings.queue + work.timings.prefill);
      add("gen_ai.latency.e2e", std::chrono::duration<double>(span.end - span.start).count());
    }
  }
  // What the client has done wrong is no failure of the server.
  if (outcome.status >= 500) {
    add("error.type", std::to_string(outcome.status));
    span.failed = true;
    span.error = outcome.reason.substr(0, log::kMaxQuoted);
  }
  traced.sink->add(std::move(span));
}

}  // namespace

void finish_request(const RequestInfo& info, const Outcome& outcome) {
  std::optional<std::chrono::duration<double>> took;
  if (info.start != std::chrono::steady_clock::time_point()) took = std::chrono::steady_clock::now() - info.start;
  if (info.counts) info.counts->add(info.route, outcome.status, took);
  if (info.traced != nullptr) end_span(info, outcome);
  const log::Level level = outcome.status == 500 ? log::Level::error  // our own fault
                           : info.quiet && outcome.status != 401 && outcome.status != 403 ? log::Level::debug
                                                                                          : log::Level::info;
  if (!log::enabled(level)) return;
  std::array<log::Field, 20> fields;
  std::size_t count = 0;
  const auto add = [&](log::Field field) { fields[count++] = std::move(field); };
  // Of a request that the HTTP server refuses, little may have been read.
  if (!info.method.empty()) add({"method", info.method.substr(0, log::kMaxQuoted)});
  if (!info.path.empty()) add({"path", info.path.substr(0, log::kMaxQuoted)});
  add({"status", outcome.status});
  if (took) add({"duration_ms", log::Decimal{took->count() * 1e3, 2}});
  add({"request_id", info.id});
  if (const std::string_view remote = outcome.remote.empty() ? info.remote : outcome.remote; !remote.empty())
    add({"remote", remote});
  if (!info.certificate.empty()) add({"client_cert", info.certificate});
  if (!info.user.empty()) add({"user_id", info.user.substr(0, log::kMaxQuoted)});
  if (!info.key.empty()) add({"api_key", info.key});
  if (const std::string_view model = outcome.model.empty() ? info.model : outcome.model; !model.empty())
    add({"model", model.substr(0, log::kMaxQuoted)});
  if (outcome.work != nullptr) {
    const Work& work = *outcome.work;
    if (work.complete) {
      add({"prompt_tokens", work.prompt_tokens});
      add({"cached_tokens", work.cached_tokens});
    }
    add({"completion_tokens", work.completion_tokens});
    add({"queue_ms", log::Decimal{work.timings.queue * 1e3, 2}});
    add({"prefill_ms", log::Decimal{work.timings.prefill * 1e3, 2}});
    add({"decode_ms", log::Decimal{work.timings.decode * 1e3, 2}});
    if (work.complete) {
      std::string reasons;
      for (const std::string& each : work.finish_reasons) reasons.append(reasons.empty() ? "" : ",").append(each);
      add({"finish_reason", std::move(reasons)});
    }
  }
  if (!outcome.reason.empty()) add({"reason", outcome.reason.substr(0, log::kMaxQuoted)});
  log::write(level, "http", trace::with_id("request", info.trace), std::span<const log::Field>(fields.data(), count));
}

}  // namespace xgen::server
