// Traces of real traffic: when requests came and how long they were, as Azure's LLM inference traces have it.
#pragma once

#include <istream>
#include <string>
#include <vector>

#include "base/result.h"

namespace xgen::client {

struct TraceRow {
  double at = 0;   // seconds since the first row
  int input = 0;   // tokens
  int output = 0;  // tokens
};
inline constexpr std::size_t kMaxTraceRows = 10'000'000;

// CSV whose first line names the columns, among them TIMESTAMP ("2023-11-16 18:15:46.6805900", or seconds),
// ContextTokens and GeneratedTokens; in the order of time. `name` is for messages. Errors: invalid_argument, with the
// line.
Result<std::vector<TraceRow>> read_trace(std::istream& text, const std::string& name);
Result<std::vector<TraceRow>> read_trace_file(const std::string& path);

}  // namespace xgen::client
