#include "trace/otlp_exporter.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <exception>
#include <iterator>
#include <optional>

#include "base/json_text.h"
#include "base/log.h"

namespace xgen::trace {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kQuiet{60};  // between two lines of the log on failures

void append_double(std::string& out, double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), std::isfinite(value) ? value : 0).ptr;
  out.append(text, end);
}

// 64-bit integers are strings in OTLP's JSON.
struct AppendValue {
  std::string& out;
  void operator()(const std::string& text) const {
    out += "{\"stringValue\":";
    append_json_string(out, text);
    out += '}';
  }
  void operator()(std::int64_t number) const { out.append("{\"intValue\":\"").append(std::to_string(number)) += "\"}"; }
  void operator()(double number) const {
    out += "{\"doubleValue\":";
    append_double(out, number);
    out += '}';
  }
  void operator()(const std::vector<std::string>& list) const {
    out += "{\"arrayValue\":{\"values\":[";
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (i > 0) out += ',';
      (*this)(list[i]);
    }
    out += "]}}";
  }
};

void append_attribute(std::string& out, std::string_view key, const Value& value) {
  if (out.back() != '[') out += ',';
  out += "{\"key\":";
  append_json_string(out, key);
  out += ",\"value\":";
  std::visit(AppendValue{out}, value);
  out += '}';
}

std::string nanoseconds(std::chrono::system_clock::time_point time) {
  return std::to_string(std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count());
}

void append_span(std::string& out, const Span& span) {
  out.append("{\"traceId\":\"").append(span.context.trace_id);
  out.append("\",\"spanId\":\"").append(span.context.span_id).append("\"");
  if (!span.parent_id.empty()) out.append(",\"parentSpanId\":\"").append(span.parent_id).append("\"");
  if (!span.context.state.empty()) {
    out += ",\"traceState\":";
    append_json_string(out, span.context.state);
  }
  out += ",\"name\":";
  append_json_string(out, span.name);
  out.append(",\"kind\":").append(std::to_string(static_cast<int>(span.kind)));
  out.append(",\"startTimeUnixNano\":\"").append(nanoseconds(span.start));
  out.append("\",\"endTimeUnixNano\":\"").append(nanoseconds(span.end)).append("\",\"attributes\":[");
  for (const auto& [key, value] : span.attributes) append_attribute(out, key, value);
  out += "],\"status\":{";
  if (span.failed) {
    out += "\"code\":2,\"message\":";
    append_json_string(out, span.error);
  }
  out += "}}";
}

}  // namespace

std::string otlp_json(const OtlpOptions& options, const std::vector<Span>& spans) {
  std::string out = "{\"resourceSpans\":[{\"resource\":{\"attributes\":[";
  append_attribute(out, "service.name", options.service);
  append_attribute(out, "service.version", options.version);
  out += "]},\"scopeSpans\":[{\"scope\":{\"name\":\"xgen-model\",\"version\":";
  append_json_string(out, options.version);
  out += "},\"spans\":[";
  for (std::size_t i = 0; i < spans.size(); ++i) {
    if (i > 0) out += ',';
    append_span(out, spans[i]);
  }
  return out + "]}]}]}";
}

OtlpExporter::OtlpExporter(OtlpOptions options)
    : options_(std::move(options)),
      client_({.user_agent = "xgen-model/" + options_.version}),
      thread_([this] { run(); }) {}

OtlpExporter::~OtlpExporter() {
  {
    std::unique_lock lock(mutex_);
    ending_ = true;
    end_by_ = Clock::now() + options_.at_end;
    arrived_.notify_all();
    arrived_.wait_until(lock, end_by_, [this] { return ended_; });
  }
  overdue_.cancel();
  thread_.join();
}

void OtlpExporter::add(Span span) {
  std::lock_guard lock(mutex_);
  if (queue_.size() >= options_.max_queue) {
    ++counts_.dropped;
    return;
  }
  queue_.push_back(std::move(span));
  if (queue_.size() == options_.max_batch) arrived_.notify_all();
}

OtlpExporter::Counts OtlpExporter::counts() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

void OtlpExporter::run() {
  std::vector<Span> batch;
  while (wait_for_batch(batch)) {
    try {
      send(batch);
    } catch (const std::exception& fault) {  // want of memory
      log::error("trace", "spans are lost", {{"reason", fault.what()}, {"spans", batch.size()}});
    }
    batch.clear();
  }
  std::lock_guard lock(mutex_);
  ended_ = true;
  arrived_.notify_all();
}

// False once there is nothing more to come.
bool OtlpExporter::wait_for_batch(std::vector<Span>& batch) {
  std::unique_lock lock(mutex_);
  arrived_.wait_for(lock, options_.interval, [this] { return ending_ || queue_.size() >= options_.max_batch; });
  if (ending_ && (queue_.empty() || Clock::now() >= end_by_)) {
    counts_.dropped += queue_.size();
    return false;
  }
  const auto count = static_cast<std::ptrdiff_t>(std::min(queue_.size(), options_.max_batch));
  batch.assign(std::make_move_iterator(queue_.begin()), std::make_move_iterator(queue_.begin() + count));
  queue_.erase(queue_.begin(), queue_.begin() + count);
  return true;
}

void OtlpExporter::send(const std::vector<Span>& batch) {
  if (batch.empty()) return;
  const std::string body = otlp_json(options_, batch);
  Outcome outcome = Outcome::later;
  for (int i = 0; i < kTries && outcome == Outcome::later; ++i) {
    if (i > 0) {
      std::unique_lock lock(mutex_);
      arrived_.wait_for(lock, options_.retry, [this] { return ending_; });
      if (ending_ && Clock::now() >= end_by_) break;
    }
    outcome = call(body, batch.size());
  }
  std::lock_guard lock(mutex_);
  (outcome == Outcome::taken ? counts_.sent : counts_.dropped) += batch.size();
}

OtlpExporter::Outcome OtlpExporter::call(const std::string& body, std::size_t spans) {
  http::ClientRequest request;
  request.method = "POST";
  request.url = options_.url;
  request.headers = {{"Content-Type", "application/json"}};
  request.body = body;
  request.ca_file = options_.ca_file;
  request.connect_timeout = request.first_byte_timeout = request.idle_timeout = options_.timeout;
  request.deadline = Clock::now() + options_.timeout;
  int status = 0;
  const Status done = http::fetch(
      client_, std::move(request),
      [&](const http::ResponseHead& head) -> Status {
        status = head.status;
        return {};
      },
      [](std::string_view) -> Status { return {}; }, &overdue_);
  if (done && status >= 200 && status < 300) return Outcome::taken;
  const Clock::time_point now = Clock::now();
  if (told_ == Clock::time_point() || now - told_ > kQuiet) {
    told_ = now;
    log::warn("trace", "the collector does not take spans",
              {{"url", options_.url.origin()},
               {"spans", spans},
               {"reason", done ? "status " + std::to_string(status) : done.error().message}});
  }
  // As the protocol has it; what never reached the collector may as well.
  const bool later = !done || status == 429 || status == 502 || status == 503 || status == 504;
  return later ? Outcome::later : Outcome::refused;
}

}  // namespace xgen::trace
