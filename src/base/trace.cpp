#include "base/trace.h"

#include <algorithm>
#include <random>

namespace xgen::trace {
namespace {

constexpr std::size_t kTraceDigits = 32;
constexpr std::size_t kSpanDigits = 16;
constexpr std::size_t kParentSize = 2 + 1 + kTraceDigits + 1 + kSpanDigits + 1 + 2;
constexpr std::size_t kMaxState = 512;  // bytes that the specification asks to pass on at least

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}
bool is_id(std::string_view text) { return is_hex(text) && text.find_first_not_of('0') != std::string_view::npos; }

}  // namespace

std::string Context::parent() const { return "00-" + trace_id + "-" + span_id + (sampled ? "-01" : "-00"); }

Context parse(std::string_view traceparent, std::string_view tracestate) {
  // Later versions may append something after another '-'.
  if (traceparent.size() < kParentSize) return {};
  const std::string_view version = traceparent.substr(0, 2);
  const std::string_view trace_id = traceparent.substr(3, kTraceDigits);
  const std::string_view span_id = traceparent.substr(4 + kTraceDigits, kSpanDigits);
  const std::string_view flags = traceparent.substr(5 + kTraceDigits + kSpanDigits, 2);
  const bool dashes = traceparent[2] == '-' && traceparent[3 + kTraceDigits] == '-' &&
                      traceparent[4 + kTraceDigits + kSpanDigits] == '-';
  const bool ends = version == "00" ? traceparent.size() == kParentSize
                                    : traceparent.size() == kParentSize || traceparent[kParentSize] == '-';
  if (!dashes || !ends || !is_hex(version) || version == "ff" || !is_hex(flags)) return {};
  if (!is_id(trace_id) || !is_id(span_id)) return {};
  Context context;
  context.trace_id = trace_id;
  context.span_id = span_id;
  const char low = flags[1];
  context.sampled = ((low >= 'a' ? low - 'a' + 10 : low - '0') & 1) != 0;
  if (tracestate.size() <= kMaxState) context.state = tracestate;
  return context;
}

Context child_of(const Context& parent) {
  Context context = parent;
  if (!context) context.trace_id = make_id(kTraceDigits);
  context.span_id = make_id(kSpanDigits);
  return context;
}

std::string with_id(std::string message, const Context& context) {
  if (context) message.append(" trace_id=").append(context.trace_id);
  return message;
}

std::string make_id(int digits) {
  thread_local std::mt19937_64 random{[] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }()};
  constexpr char kHex[] = "0123456789abcdef";
  std::string id;
  id.reserve(static_cast<std::size_t>(digits));
  std::uint64_t bits = 0;
  for (int i = 0; i < digits; ++i, bits >>= 4) {
    if (i % 16 == 0) bits = random();
    id += kHex[bits & 15];
  }
  return id;
}

std::chrono::system_clock::time_point wall_time(std::chrono::steady_clock::time_point time) {
  const auto since = std::chrono::steady_clock::now() - time;
  return std::chrono::system_clock::now() - std::chrono::duration_cast<std::chrono::system_clock::duration>(since);
}

}  // namespace xgen::trace
