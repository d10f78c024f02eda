#include "systemd.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace xgen {
namespace {

std::optional<std::uint64_t> number(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) return {};
  std::uint64_t result = 0;
  const auto [end, error] = std::from_chars(value, value + std::strlen(value), result);
  if (error != std::errc{} || *end != '\0') return {};
  return result;
}

std::string microseconds(std::chrono::microseconds time) { return std::to_string(time.count()); }

}  // namespace

ServiceManager::ServiceManager() {
  if (const char* value = std::getenv("NOTIFY_SOCKET"); value != nullptr && (*value == '/' || *value == '@'))
    socket_ = value;
  const auto pid = number("WATCHDOG_PID");
  const auto interval = number("WATCHDOG_USEC");
  if (!interval || *interval == 0 || (pid && *pid != static_cast<std::uint64_t>(::getpid()))) return;
  watchdog_ = std::chrono::milliseconds(std::max<std::uint64_t>(*interval / 1000 / 3, 1));
}

void ServiceManager::loading(const std::string& status, bool moves) const {
  tell((moves ? "EXTEND_TIMEOUT_USEC=" + microseconds(kPatience) + "\n" : "") + "STATUS=" + status);
}

void ServiceManager::ready(const std::string& status) const { tell("READY=1\nSTATUS=" + status); }

void ServiceManager::reloading() const {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  tell("RELOADING=1\nMONOTONIC_USEC=" + std::to_string(now.tv_sec * 1'000'000 + now.tv_nsec / 1000) +
       "\nSTATUS=Reading the configuration again");
}

void ServiceManager::stopping(std::chrono::milliseconds within, const std::string& status) const {
  tell("STOPPING=1\nEXTEND_TIMEOUT_USEC=" + microseconds(within) + "\nSTATUS=" + status);
}

void ServiceManager::alive() const { tell("WATCHDOG=1"); }

void ServiceManager::tell(const std::string& state) const {
  if (socket_.empty()) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket_.size() >= sizeof(address.sun_path)) return;
  std::memcpy(address.sun_path, socket_.data(), socket_.size());
  if (address.sun_path[0] == '@') address.sun_path[0] = '\0';
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return;
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + socket_.size());
  ::sendto(fd, state.data(), state.size(), MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&address), size);
  ::close(fd);
}

}  // namespace xgen
