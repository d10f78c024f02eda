#include "reload.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
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
  if (auto now = content()) seen_ = *std::move(now);
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

// Errors: not_found, or invalid_argument with the reason. What is no file (Docker makes a folder where one is missing)
// must neither end the process nor hold it up.
Result<std::string> Reloader::content() const {
  const int fd = ::open(file_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const ErrorCode code = errno == ENOENT ? ErrorCode::not_found : ErrorCode::invalid_argument;
    return make_error(code, std::strerror(errno));
  }
  struct stat info {};
  std::string text;
  const bool regular = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  ssize_t n = 0;
  if (regular) {
    std::array<char, 65536> part{};
    while ((n = ::read(fd, part.data(), part.size())) > 0) text.append(part.data(), static_cast<std::size_t>(n));
  }
  const int error = errno;
  ::close(fd);
  if (!regular) return make_error(ErrorCode::invalid_argument, "not a regular file");
  if (n < 0) return make_error(ErrorCode::invalid_argument, std::strerror(error));
  return text;
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
      const Result<std::string> now = content();
      if (!now || now->empty()) {  // perhaps about to be written
        log::warn("config", "the file cannot be read; everything stays as it was",
                  {{"file", file_}, {"reason", now ? "it is empty" : now.error().message}});
        continue;
      }
      if (*now == seen_) continue;
    }
    reload_now(waiting);
  }
}

void Reloader::reload_now(const std::vector<Done>& waiting) {
  Result<std::string> outcome = std::string();
  try {
    if (auto now = content()) seen_ = *std::move(now);
    outcome = reload_();
  } catch (const std::exception& fault) {
    outcome = make_error(ErrorCode::internal, fault.what());
  }
  // To who asked for it a file that is missing is a fault of the configuration, not of the request's address.
  if (!outcome && outcome.error().code == ErrorCode::not_found) {
    Error error = std::move(outcome).error();
    error.code = ErrorCode::invalid_argument;
    outcome = std::move(error);
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
