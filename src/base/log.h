// The one log of the process: every line has a time, a level, a component and a message, plus named fields.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace xgen::log {

// Bytes of a field that may quote a request, or what another server says of one.
inline constexpr std::size_t kMaxQuoted = 256;

enum class Level : std::uint8_t { debug, info, warn, error, off };
enum class Format : std::uint8_t { text, json };

// A number that is written with so many digits after the point.
struct Decimal {
  double value = 0;
  int places = 0;
};

// Text or a number: in JSON a number is one too, so that log viewers can compare and add.
struct Field {
  Field() = default;
  Field(std::string_view name, std::string text) : key(name), value(std::move(text)) {}
  Field(std::string_view name, std::string_view text) : key(name), value(text) {}
  Field(std::string_view name, const char* text) : key(name), value(text) {}
  template <std::integral T>
  requires(!std::same_as<T, bool> && !std::same_as<T, char>) Field(std::string_view name, T number)
      : key(name), value(std::to_string(number)), is_number(true) {}
  Field(std::string_view name, Decimal number);

  std::string_view key;  // "request_id", "model", "trace_id", …
  std::string value;
  bool is_number = false;
};

// Settings may be changed at any time from any thread. Default: info, text, to stderr.
void set_level(Level level);
void set_format(Format format);
bool enabled(Level level);
Format format();
Level level();
std::string_view level_name(Level level);
// Nothing for a name that is none.
std::optional<Level> level_of(std::string_view name);
// Whether prompts and answers may be logged. Default: no.
void set_content(bool logged);
bool content();

// Thread-safe. `component` names the room: "http", "engine", "loader", "server". Who reads stderr too slowly, or not at
// all, holds nobody up for more than a moment: lines are lost then, counted, and told of once there is room again.
void write(Level level, std::string_view component, std::string_view message, std::span<const Field> fields);
inline void write(Level level, std::string_view component, std::string_view message,
                  std::initializer_list<Field> fields = {}) {
  write(level, component, message, std::span<const Field>(fields.begin(), fields.size()));
}

// Lines that were lost.
std::uint64_t lost();
// Bytes of `text` that stderr takes, waiting so long each time that it has no room. Safe in a signal handler.
std::size_t put(std::string_view text, int patience_ms) noexcept;

inline void debug(std::string_view c, std::string_view m, std::initializer_list<Field> f = {}) {
  if (enabled(Level::debug)) write(Level::debug, c, m, f);
}
inline void info(std::string_view c, std::string_view m, std::initializer_list<Field> f = {}) {
  if (enabled(Level::info)) write(Level::info, c, m, f);
}
inline void warn(std::string_view c, std::string_view m, std::initializer_list<Field> f = {}) {
  if (enabled(Level::warn)) write(Level::warn, c, m, f);
}
inline void error(std::string_view c, std::string_view m, std::initializer_list<Field> f = {}) {
  if (enabled(Level::error)) write(Level::error, c, m, f);
}

}  // namespace xgen::log
