#include "client/line_input.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "base/utf8.h"

namespace xgen::client {

LineInput::LineInput() : terminal_(isatty(STDIN_FILENO) == 1) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signals_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  termios settings{};
  if (terminal_ && tcgetattr(STDIN_FILENO, &settings) == 0 && (settings.c_iflag & IUTF8) == 0) {
    settings.c_iflag |= IUTF8;  // the terminal's own erasing takes whole characters
    tcsetattr(STDIN_FILENO, TCSANOW, &settings);
  }
}

LineInput::~LineInput() { close(signals_); }

void LineInput::take_interrupts() {
  signalfd_siginfo info{};
  while (::read(signals_, &info, sizeof(info)) > 0) {
  }
}

LineInput::Event LineInput::next(std::string& line) {
  for (;;) {
    const std::size_t end = buffer_.find('\n', searched_);
    if (end != std::string::npos || (ended_ && !buffer_.empty())) {
      line = buffer_.substr(0, end);
      buffer_.erase(0, end == std::string::npos ? end : end + 1);
      searched_ = 0;
      if (line.ends_with('\r')) line.pop_back();
      line = replace_invalid_utf8(line);
      return Event::line;
    }
    if (ended_) return Event::end;
    searched_ = buffer_.size();
    if (buffer_.size() > kMaxMessage) return Event::too_long;
    pollfd waits[2] = {{signals_, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
    if (::poll(waits, 2, -1) < 0 && errno != EINTR) return Event::end;
    if (waits[0].revents != 0) {
      take_interrupts();
      buffer_.clear();
      searched_ = 0;
      return Event::interrupt;
    }
    if (waits[1].revents == 0) continue;
    char bytes[65536];
    const ssize_t n = ::read(STDIN_FILENO, bytes, sizeof(bytes));
    if (n > 0)
      buffer_.append(bytes, static_cast<std::size_t>(n));
    else if (n == 0 || errno != EINTR)
      ended_ = true;
  }
}

}  // namespace xgen::client
