// Traces: the context that a request brings and passes on (W3C Trace Context), and the spans that are told of it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace xgen::trace {

// Of one span. Without a trace id there is none.
struct Context {
  std::string trace_id;  // 32 lower-case hexadecimal digits
  std::string span_id;   // 16
  bool sampled = false;
  std::string state;  // other systems' part (tracestate), passed on as it is

  explicit operator bool() const { return !trace_id.empty(); }
  // The header "traceparent".
  std::string parent() const;
};

// Of the headers "traceparent" and "tracestate"; empty if they are missing or malformed.
// https://www.w3.org/TR/trace-context/
Context parse(std::string_view traceparent, std::string_view tracestate);
// A new span in the same trace; in a new one where there is none.
Context child_of(const Context& parent);

// Random, of so many hexadecimal digits.
std::string make_id(int digits);

// A line of the log on a request: the message, with the trace's id where there is one. It stands in the message, so
// that both formats hold the literal text by which log viewers link to traces.
std::string with_id(std::string message, const Context& context);

using Value = std::variant<std::string, std::int64_t, double, std::vector<std::string>>;

struct Span {
  enum class Kind : std::uint8_t { internal = 1, server = 2, client = 3 };  // OTLP's numbers
  Context context;
  std::string parent_id;  // empty: the first of its trace
  std::string name;
  Kind kind = Kind::internal;
  std::chrono::system_clock::time_point start;
  std::chrono::system_clock::time_point end;
  std::vector<std::pair<std::string, Value>> attributes;
  bool failed = false;
  std::string error;  // why
};

// Where spans go. Thread-safe; never blocks.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual void add(Span span) = 0;
};

// What a request on its way carries: the span that it is part of, and who wants to hear of further ones (null: nobody).
struct Carrier {
  Context context;
  std::shared_ptr<Sink> sink;
};

// A time of the steady clock as one of the calendar.
std::chrono::system_clock::time_point wall_time(std::chrono::steady_clock::time_point time);

}  // namespace xgen::trace
