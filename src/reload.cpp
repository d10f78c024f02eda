#include "reload.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "base/log.h"

namespace xgen {
namespace {

// An editor or a ConfigMap swap makes several changes within a moment.
constexpr int kSettleMs = 200;
// In a folder that is never still it is looked at all the same.
constexpr std::chrono::seconds kMostSettling{2};

}  // namespace

Reloader::Reloader(std::string file, Reload reload)
    : file_(std::move(file)), reload_(std::move(reload)), wake_(eventfd(0, EFD_CLOEXEC)) {
  seen_ = content();
  changes_ = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  if (!watch()) log::warn("config", "the file cannot be watched; send SIGHUP after changing it", {{"file", file_}});
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

// Watches the file's folder, and the one that a link leads to: the file may change there. Again after every change,
// for the link may lead elsewhere then.
bool Reloader::watch() {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::absolute(file_, error);
  constexpr std::uint32_t kEvents = IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE | IN_DELETE;
  if (changes_ < 0 || inotify_add_watch(changes_, path.parent_path().c_str(), kEvents) < 0) return false;
  const std::filesystem::path real = std::filesystem::canonical(path, error);
  if (!error && real.parent_path() != path.parent_path())
    inotify_add_watch(changes_, real.parent_path().c_str(), kEvents);
  return true;
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
      const auto end = std::chrono::steady_clock::now() + kMostSettling;
      do {
        while (read(changes_, events, sizeof events) > 0) {
        }
      } while (poll(fds, 2, kSettleMs) > 0 && (fds[0].revents & POLLIN) == 0 && std::chrono::steady_clock::now() < end);
      watch();
      const std::string now = content();
      if (now == seen_) continue;
      if (now.empty()) {  // perhaps about to be written
        log::warn("config", "the file is empty or not there any more; everything stays as it was", {{"file", file_}});
        continue;
      }
    }
    reload_now(waiting);
  }
}

void Reloader::reload_now(const std::vector<Done>& waiting) {
  seen_ = content();
  Result<std::string> outcome = std::string();
  try {
    outcome = reload_();
  } catch (const std::exception& fault) {
    outcome = make_error(ErrorCode::internal, fault.what());
  }
  if (outcome) {
    log::info("config", "reloaded", {{"file", file_}, {"changes", *outcome}});
  } else {
    log::error("config", "not reloaded; everything stays as it was",
               {{"file", file_}, {"reason", outcome.error().message}});
  }
  for (const Done& done : waiting) done(outcome);
}

}  // namespace xgen
