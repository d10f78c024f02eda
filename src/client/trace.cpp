#include "client/trace.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <optional>
#include <string_view>

namespace xgen::client {
namespace {

constexpr int kMaxTokens = 10'000'000;  // of one row

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\"";
  text.remove_prefix(std::min(text.find_first_not_of(kBlanks), text.size()));
  text.remove_suffix(text.size() - std::min(text.find_last_not_of(kBlanks) + 1, text.size()));
  return text;
}

std::vector<std::string_view> fields_of(std::string_view line) {
  std::vector<std::string_view> fields;
  for (;;) {
    const std::size_t comma = line.find(',');
    fields.push_back(trimmed(line.substr(0, comma)));
    if (comma == std::string_view::npos) return fields;
    line.remove_prefix(comma + 1);
  }
}

std::optional<double> number_of(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

// Digits from the front of `text`, and the separator behind them where one is wanted.
bool take_number(std::string_view& text, std::string_view separators, int& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value < 0) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  if (separators.empty()) return true;
  if (text.empty() || separators.find(text.front()) == std::string_view::npos) return false;
  text.remove_prefix(1);
  return true;
}

// Seconds since 1970, of a date and time in UTC, or the number that it is.
std::optional<double> time_of(std::string_view text) {
  if (const auto plain = number_of(text)) return plain;
  if (text.ends_with('Z')) text.remove_suffix(1);
  if (text.ends_with("+00:00")) text.remove_suffix(6);
  int year = 0, month = 0, day = 0, hour = 0, minute = 0;
  if (!take_number(text, "-", year) || !take_number(text, "-", month) || !take_number(text, " T", day) ||
      !take_number(text, ":", hour) || !take_number(text, ":", minute))
    return std::nullopt;
  const auto second = number_of(text);
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  if (!second || !date.ok() || hour > 23 || minute > 59 || *second < 0 || *second > 61) return std::nullopt;
  const auto days = std::chrono::sys_days(date).time_since_epoch().count();
  return static_cast<double>(days) * 86400 + hour * 3600 + minute * 60 + *second;
}

}  // namespace

Result<std::vector<TraceRow>> read_trace(std::istream& text, const std::string& name) {
  std::size_t number = 0;
  const auto fault = [&](const std::string& why) {
    return make_error(ErrorCode::invalid_argument, name + ", line " + std::to_string(number) + ": " + why);
  };
  constexpr std::string_view kColumns[] = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"};
  std::size_t places[3] = {};
  std::vector<TraceRow> rows;
  double first = 0;
  for (std::string line; std::getline(text, line);) {
    if (++number == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);
    if (trimmed(line).empty()) continue;
    const auto fields = fields_of(line);
    if (number == 1) {
      for (std::size_t i = 0; i < 3; ++i) {
        const auto found = std::find(fields.begin(), fields.end(), kColumns[i]);
        if (found == fields.end()) return fault("there is no column " + std::string(kColumns[i]));
        places[i] = static_cast<std::size_t>(found - fields.begin());
      }
      continue;
    }
    for (std::size_t i = 0; i < 3; ++i)
      if (places[i] >= fields.size()) return fault("no " + std::string(kColumns[i]));
    const auto at = time_of(fields[places[0]]);
    if (!at) return fault("TIMESTAMP: expected a time like 2023-11-16 18:15:46.68, or seconds");
    TraceRow row;
    for (std::size_t i = 1; i < 3; ++i) {
      const auto tokens = number_of(fields[places[i]]);
      if (!tokens || *tokens < 0 || *tokens > kMaxTokens || *tokens != std::floor(*tokens))
        return fault(std::string(kColumns[i]) + ": expected a number of tokens");
      (i == 1 ? row.input : row.output) = std::max(1, static_cast<int>(*tokens));
    }
    if (rows.empty()) first = *at;
    row.at = *at - first;
    if (!rows.empty() && row.at < rows.back().at) return fault("TIMESTAMP is before that of the line above");
    if (rows.size() == kMaxTraceRows) return fault("more than " + std::to_string(kMaxTraceRows) + " rows");
    rows.push_back(row);
  }
  if (text.bad()) return make_error(ErrorCode::invalid_argument, name + ": " + std::strerror(errno));
  if (rows.empty()) return make_error(ErrorCode::invalid_argument, name + ": it has no rows");
  return rows;
}

Result<std::vector<TraceRow>> read_trace_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) return make_error(ErrorCode::invalid_argument, path + ": " + std::strerror(errno));
  return read_trace(file, path);
}

}  // namespace xgen::client
