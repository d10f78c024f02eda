#include "base/log.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <iterator>
#include <mutex>

#include "base/json_text.h"

namespace xgen::log {
namespace {

std::atomic<Level> g_level{Level::info};
std::atomic<Format> g_format{Format::text};
std::atomic<bool> g_content{false};

constexpr std::string_view kLevelNames[] = {"debug", "info", "warn", "error", "off"};

void append_time(std::string& out) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
  const auto seconds = static_cast<std::time_t>(ms / 1000);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[64];
  const std::size_t n = std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &utc);
  out.append(text, n);
  std::snprintf(text, sizeof(text), ".%03dZ", static_cast<int>(ms % 1000));
  out += text;
}

bool is_bare(std::string_view value) {
  if (value.empty()) return false;
  for (const char c : value) {
    const auto u = static_cast<unsigned char>(c);
    if (u <= 0x20 || u >= 0x7f || c == '"' || c == '=' || c == '\\') return false;
  }
  return true;
}

}  // namespace

Field::Field(std::string_view name, Decimal number) : key(name), is_number(std::isfinite(number.value)) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", number.places, number.value);
  value = text;
}

void set_level(Level level) { g_level.store(level, std::memory_order_relaxed); }
void set_format(Format format) { g_format.store(format, std::memory_order_relaxed); }
Format format() { return g_format.load(std::memory_order_relaxed); }
Level level() { return g_level.load(std::memory_order_relaxed); }
std::string_view level_name(Level level) { return kLevelNames[static_cast<std::size_t>(level)]; }
std::optional<Level> level_of(std::string_view name) {
  const auto* const found = std::find(std::begin(kLevelNames), std::end(kLevelNames), name);
  if (found == std::end(kLevelNames)) return {};
  return static_cast<Level>(found - std::begin(kLevelNames));
}
void set_content(bool logged) { g_content.store(logged, std::memory_order_relaxed); }
bool content() { return g_content.load(std::memory_order_relaxed); }
bool enabled(Level level) { return level >= g_level.load(std::memory_order_relaxed) && level != Level::off; }

namespace {

std::string line_of(Level level, std::string_view component, std::string_view message, std::span<const Field> fields) {
  std::string line;
  line.reserve(160);
  const std::string_view name = level_name(level);
  if (format() == Format::json) {
    line += "{\"time\":\"";
    append_time(line);
    line += "\",\"level\":\"";
    line += name;
    line += "\",\"component\":\"";
    append_json_escaped(line, component);
    line += "\",\"message\":\"";
    append_json_escaped(line, message);
    line += '"';
    for (const Field& field : fields) {
      line += ",\"";
      append_json_escaped(line, field.key);
      line += "\":";
      if (field.is_number) {
        line += field.value;
      } else {
        line += '"';
        append_json_escaped(line, field.value);
        line += '"';
      }
    }
    line += "}\n";
  } else {
    append_time(line);
    line += ' ';
    line += name;
    line.append(name.size() < 5 ? 6 - name.size() : 1, ' ');
    line += component;
    line += ": ";
    append_json_escaped(line, message);
    for (const Field& field : fields) {
      line += ' ';
      line += field.key;
      line += '=';
      if (is_bare(field.value)) {
        line += field.value;
      } else {
        line += '"';  // escaped, so that no caller-supplied text can forge a line
        append_json_escaped(line, field.value);
        line += '"';
      }
    }
    line += '\n';
  }
  return line;
}

// What a pipe that has room takes without blocking, and without mixing it with what other processes write.
constexpr std::size_t kPiece = PIPE_BUF;
// A reader that is slow for a moment costs no lines; one that stays slow is not waited for again and again.
constexpr int kPatienceMs = 100;
constexpr std::chrono::seconds kBetweenWaits{10};

std::mutex g_mutex;  // guards the following, and keeps threads' lines apart
std::atomic<std::uint64_t> g_lost{0};
std::uint64_t g_told = 0;  // of those lost
bool g_cut = false;        // the last line has begun, and not ended
std::chrono::steady_clock::time_point g_next_wait;

// False if it is lost, or part of it.
bool put_line(std::string_view line) {
  const auto now = std::chrono::steady_clock::now();
  const int patience = now >= g_next_wait ? kPatienceMs : 0;
  if (g_cut) g_cut = put("\n", patience) == 0;
  const std::size_t written = g_cut ? 0 : put(line, patience);
  if (written == line.size()) return true;
  g_cut = g_cut || written > 0;
  if (patience > 0) g_next_wait = now + kBetweenWaits;
  return false;
}

}  // namespace

std::uint64_t lost() { return g_lost.load(std::memory_order_relaxed); }

std::size_t put(std::string_view text, int patience_ms) noexcept {
  std::size_t done = 0;
  while (done < text.size()) {
    pollfd out{STDERR_FILENO, POLLOUT, 0};
    const int ready = ::poll(&out, 1, patience_ms);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) break;
    const ssize_t n = ::write(STDERR_FILENO, text.data() + done, std::min(text.size() - done, kPiece));
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) break;
    done += static_cast<std::size_t>(n);
  }
  return done;
}

void write(Level level, std::string_view component, std::string_view message, std::span<const Field> fields) {
  const std::string line = line_of(level, component, message, fields);
  const std::lock_guard lock(g_mutex);
  const std::uint64_t lost = g_lost.load(std::memory_order_relaxed);
  if (lost != g_told) {
    const Field count("lines", lost - g_told);
    if (put_line(line_of(Level::warn, "log", "lines are lost: stderr took no more", {&count, 1}))) g_told = lost;
  }
  if (!put_line(line)) g_lost.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace xgen::log
