// The one log of the process: every line has a time, a level, a component and a message, plus named fields.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

namespace xgen::log {

enum class Level : std::uint8_t { debug, info, warn, error, off };
enum class Format : std::uint8_t { text, json };

struct Field {
  std::string_view key;  // "request_id", "model", "trace_id", …
  std::string value;
};

// Settings may be changed at any time from any thread. Default: info, text, to stderr.
void set_level(Level level);
void set_format(Format format);
bool enabled(Level level);

// Thread-safe. `component` names the room: "http", "engine", "loader", "server".
void write(Level level, std::string_view component, std::string_view message, std::span<const Field> fields);
inline void write(Level level, std::string_view component, std::string_view message,
                  std::initializer_list<Field> fields = {}) {
  write(level, component, message, std::span<const Field>(fields.begin(), fields.size()));
}

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
