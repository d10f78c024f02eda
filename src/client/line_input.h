// LineInput: lines of stdin, and Ctrl-C as an event rather than the end of the process.
#pragma once

#include <cstdint>
#include <string>

namespace xgen::client {

inline constexpr std::size_t kMaxMessage = 8 << 20;  // bytes of a line

// One at a time; made before other threads, which inherit that SIGINT is blocked.
class LineInput {
 public:
  LineInput();
  ~LineInput();
  LineInput(const LineInput&) = delete;
  LineInput& operator=(const LineInput&) = delete;

  // Whether people type here.
  bool terminal() const { return terminal_; }

  enum class Event : std::uint8_t { line, interrupt, end, too_long };
  // A line without its end; invalid UTF-8 in it has become U+FFFD. After an interrupt what was typed is gone.
  Event next(std::string& line);

  // Readable while there is an interrupt that nobody has taken.
  int interrupts() const { return signals_; }
  // Takes those there are.
  void take_interrupts();

 private:
  const bool terminal_;
  int signals_ = -1;
  std::string buffer_;  // read, not yet given
  std::size_t searched_ = 0;
  bool ended_ = false;
};

}  // namespace xgen::client
