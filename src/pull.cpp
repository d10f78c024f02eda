#include "pull.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "base/units.h"

namespace xgen {
namespace {

using Clock = std::chrono::steady_clock;

// One line that is written over on a terminal, now and then a new one elsewhere.
class ProgressLine {
 public:
  void show(const sources::Progress& now) {
    const auto time = Clock::now();
    if (begin_ == Clock::time_point()) begin_ = last_ = time;
    const std::chrono::milliseconds period(terminal_ ? 100 : 5000);
    if (shown_ && time - last_ < period && now.done != now.total) return;
    if (now.total == 0) {
      if (!shown_) write("asking what there is to download");
      return;
    }
    if (!terminal_ && time - last_ < period) return;
    if (first_bytes_ == 0) first_bytes_ = now.done;
    const double seconds = std::max(std::chrono::duration<double>(time - begin_).count(), 1e-3);
    const auto rate = static_cast<std::uint64_t>(static_cast<double>(now.done - first_bytes_) / seconds);
    char text[512];
    std::snprintf(text, sizeof(text), "%3d%%  %s of %s  %s/s  %s%s",
                  static_cast<int>(100.0 * static_cast<double>(now.done) / static_cast<double>(now.total)),
                  format_bytes(now.done).c_str(), format_bytes(now.total).c_str(), format_bytes(rate).c_str(),
                  now.file.c_str(), now.waiting ? " (another process downloads it)" : "");
    write(text);
    last_ = time;
  }
  void end() {
    if (terminal_ && shown_) std::fputs("\r\x1b[K", stderr);
    shown_ = false;
  }

 private:
  void write(std::string text) {
    shown_ = true;
    if (!terminal_) {
      std::fprintf(stderr, "%s\n", text.c_str());
      return;
    }
    winsize window{};
    const std::size_t width =
        ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 1 ? window.ws_col - 1u : 79u;
    if (text.size() > width) text.resize(width);
    // The cursor goes back to the begin: a line of the log in between does not continue this one.
    std::fprintf(stderr, "\r\x1b[K%s\r", text.c_str());
    std::fflush(stderr);
  }

  const bool terminal_ = isatty(STDERR_FILENO) == 1;
  bool shown_ = false;
  Clock::time_point begin_;
  Clock::time_point last_;
  std::uint64_t first_bytes_ = 0;
};

}  // namespace

Result<sources::Settings> source_settings(const config::Sources& config) {
  auto settings = sources::settings_from(sources::process_environment(), config.cache);
  if (!settings) return settings;
  settings->transfer.connections = config.connections;
  settings->transfer.patience.idle_timeout = config.timeout;
  settings->transfer.patience.retries = config.retries;
  return settings;
}

bool pull_all(sources::Sources& sources, const std::vector<std::string>& list) {
  bool fine = true;
  for (const std::string& source : list) {
    ProgressLine line;
    const auto begin = Clock::now();
    const auto pulled = sources.pull(source, [&line](const sources::Progress& now) { line.show(now); }, {});
    line.end();
    if (!pulled) {
      std::fprintf(stderr, "xgen-model: %s\n", pulled.error().message.c_str());
      fine = false;
      continue;
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    std::string what = "here already";
    if (pulled->downloaded > 0) {
      char time[32];
      std::snprintf(time, sizeof(time), "%.1f", seconds);
      what = "downloaded " + format_bytes(pulled->downloaded) + " in " + time + " s";
    }
    std::printf("%s: %s (%s)\n", source.c_str(), pulled->located.path.c_str(), what.c_str());
    std::fflush(stdout);
  }
  return fine;
}

}  // namespace xgen
