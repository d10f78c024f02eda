// ServiceManager: what systemd, or whatever else speaks its protocol, is told of this process (sd_notify(3)).
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace xgen {

class ServiceManager {
 public:
  // By NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
  ServiceManager();

  // Nothing is said without a socket, and nothing is waited for. `status`: for people.
  void loading(const std::string& status, bool moves) const;  // if it moves, it may take another kPatience
  void ready(const std::string& status) const;
  void reloading() const;  // ready() follows
  void stopping(std::chrono::milliseconds within, const std::string& status) const;
  void alive() const;

  // How often alive() is to be called, to be on the safe side; nothing: never.
  std::optional<std::chrono::milliseconds> watchdog() const { return watchdog_; }

  static constexpr std::chrono::seconds kPatience{30};

 private:
  void tell(const std::string& state) const;

  std::string socket_;
  std::optional<std::chrono::milliseconds> watchdog_;
};

}  // namespace xgen
