#include "reload.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "base/log.h"

namespace xgen {
namespace {

// An editor or a ConfigMap swap makes several changes within a moment.
constexpr int kSettleMs = 200;

}  // namespace

Reloader::Reloader(std::string file, Reload reload)
    : file_(std::move(file)), reload_(std::move(reload)), wake_(eventfd(0, EFD_CLOEXEC)) {
  seen_ = content();
  changes_ = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  std::error_code error;
  const std::filesystem::path path = std::filesystem::absolute(file_, error);
  constexpr std::uint32_t kEvents = IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE | IN_DELETE;
  bool watched = changes_ >= 0 && inotify_add_watch(changes_, path.parent_path().c_str(), kEvents) >= 0;
  // A link to somewhere else: the file it names may change there.
  const std::filesystem::path real = std::filesystem::canonical(path, error);
  if (!error && watched && real.parent_path() != path.parent_path())
    inotify_add_watch(changes_, real.parent_path().c_str(), kEvents);
  if (!watched) log::warn("config", "the file cannot be watched; send SIGHUP after changing it", {{"file", file_}});
  thread_ = std::thread([this] { run(); });
}

Reloader::~Reloader() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  eventfd_write(wake_, 1);
  thread_.join();
  for (const int fd : {wake_, changes_})
    if (fd >= 0) close(fd);
}

void Reloader::request(Done done) {
  {
    std::lock_guard lock(mutex_);
    requested_ = true;
    if (done) waiting_.push_back(std::move(done));
  }
  eventfd_write(wake_, 1);
}

std::string Reloader::content() const {
  std::ifstream in(file_, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void Reloader::run() {
  for (;;) {
    pollfd fds[2] = {{wake_, POLLIN, 0}, {changes_, POLLIN, 0}};
    if (poll(fds, changes_ >= 0 ? 2 : 1, -1) < 0) continue;
    bool requested = false;
    std::vector<Done> waiting;
    if ((fds[0].revents & POLLIN) != 0) {
      eventfd_t count = 0;
      eventfd_read(wake_, &count);
    }
    {
      std::lock_guard lock(mutex_);
      if (stop_) return;
      requested = std::exchange(requested_, false);
      waiting.swap(waiting_);
    }
    if (!requested) {
      // Wait until the folder has been still for a moment; a request ends the wait.
      alignas(inotify_event) char events[4096];
      do {
        while (read(changes_, events, sizeof events) > 0) {
        }
      } while (poll(fds, 2, kSettleMs) > 0 && (fds[0].revents & POLLIN) == 0);
      const std::string now = content();
      if (now == seen_ || now.empty()) continue;  // empty: about to be written
    }
    reload_now(std::move(waiting));
  }
}

void Reloader::reload_now(std::vector<Done> waiting) {
  seen_ = content();
  const Result<std::string> outcome = reload_();
  if (outcome) {
    log::info("config", "reloaded", {{"file", file_}, {"changes", *outcome}});
  } else {
    log::error("config", "not reloaded; everything stays as it was",
               {{"file", file_}, {"reason", outcome.error().message}});
  }
  for (const Done& done : waiting) done(outcome);
}

}  // namespace xgen
