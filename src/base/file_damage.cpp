#include "base/file_damage.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>

namespace xgen {

// Written under Handler::mutex, read by the handler without: a place whose version is odd, or changes meanwhile, is not
// that of the fault, whose mapping is in use.
struct GuardedRange::Place {
  std::atomic<std::uint32_t> version{0};
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};  // 0: free
  std::atomic<FileDamage*> damage{nullptr};
  std::atomic<const std::string*> path{nullptr};

  void set(std::uintptr_t begin_in, std::uintptr_t end_in, FileDamage* damage_in, const std::string* path_in) {
    version.fetch_add(1, std::memory_order_relaxed);
    begin.store(begin_in, std::memory_order_release);
    end.store(end_in, std::memory_order_release);
    damage.store(damage_in, std::memory_order_release);
    path.store(path_in, std::memory_order_release);
    version.fetch_add(1, std::memory_order_release);
  }
};

struct GuardedRange::Handler {
  static std::mutex mutex;
  static std::array<Place, kMaxGuardedFiles> places;
  static std::uintptr_t page;
  static struct sigaction before;

  // Under the mutex.
  static void install() {
    if (page != 0) return;
    page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    struct sigaction action {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    ::sigaction(SIGBUS, &action, &before);
  }

  // The handler and what it calls: atomics and system calls only, errno kept.
  static void handle(int signal, siginfo_t* info, void* context) {
    const int error = errno;
    const bool faulted = info->si_code > 0;  // and nobody sent it
    const bool mended = faulted && mend(reinterpret_cast<std::uintptr_t>(info->si_addr));
    if (!mended) pass_on(signal, info, context);
    errno = error;
  }

  static bool mend(std::uintptr_t address) {
    for (Place& place : places) {
      const std::uint32_t version = place.version.load(std::memory_order_acquire);
      const std::uintptr_t begin = place.begin.load(std::memory_order_acquire);
      const std::uintptr_t end = place.end.load(std::memory_order_acquire);
      FileDamage* const damage = place.damage.load(std::memory_order_acquire);
      const std::string* const path = place.path.load(std::memory_order_acquire);
      const bool stands = version % 2 == 0 && place.version.load(std::memory_order_relaxed) == version;
      if (!stands || address < begin || address >= end) continue;
      // The mark first: who reads a zero must find it.
      const std::string* none = nullptr;
      damage->file_.compare_exchange_strong(none, path);
      // All that follows too: it is lost as well, and millions of pages with a signal each would hold the step up.
      // The bare system call, because sanitizers have wrappers around mmap that are not for handlers.
      const std::uintptr_t from = address / page * page;
      constexpr long kFlags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS;
      const long mapped = ::syscall(SYS_mmap, from, end - from, long{PROT_READ}, kFlags, -1L, 0L);
      return mapped == static_cast<long>(from);
    }
    return false;
  }

  static void pass_on(int signal, siginfo_t* info, void* context) {
    if ((before.sa_flags & SA_SIGINFO) != 0) return before.sa_sigaction(signal, info, context);
    const bool sent = info->si_code <= 0;
    if (before.sa_handler == SIG_IGN && sent) return;
    if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(signal);
    struct sigaction standard {};
    standard.sa_handler = SIG_DFL;
    ::sigaction(signal, &standard, nullptr);
    // The faulting instruction runs again and ends the process, with its own registers in the core dump.
    if (sent || info->si_code == BUS_MCEERR_AO) ::raise(signal);
  }
};

std::mutex GuardedRange::Handler::mutex;
std::array<GuardedRange::Place, kMaxGuardedFiles> GuardedRange::Handler::places;
std::uintptr_t GuardedRange::Handler::page = 0;
struct sigaction GuardedRange::Handler::before {};

GuardedRange::GuardedRange(const void* data, std::size_t size, const std::string& path, FileDamage& damage) {
  const std::string* kept = nullptr;
  {
    std::lock_guard lock(damage.mutex_);
    kept = &damage.paths_.emplace_back(path);
  }
  std::lock_guard lock(Handler::mutex);
  Handler::install();
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t end = (begin + size + Handler::page - 1) / Handler::page * Handler::page;
  for (Place& place : Handler::places) {
    if (place.end.load(std::memory_order_relaxed) != 0) continue;
    place.set(begin, end, &damage, kept);
    place_ = &place;
    return;
  }
}

GuardedRange::~GuardedRange() {
  if (place_ == nullptr) return;
  std::lock_guard lock(Handler::mutex);
  place_->set(0, 0, nullptr, nullptr);
}

bool GuardedRange::holds(const void* data, std::size_t size) {
  std::lock_guard lock(Handler::mutex);
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  for (const Place& place : Handler::places) {
    const std::uintptr_t end = place.end.load(std::memory_order_relaxed);
    if (end != 0 && place.begin.load(std::memory_order_relaxed) <= begin && begin + size <= end) return true;
  }
  return false;
}

Status FileDamage::status() const {
  if (!any()) return {};
  return make_error(ErrorCode::unavailable, *file_.load(std::memory_order_acquire) +
                                                ": it cannot be read any more (cut short, or its storage failed)");
}

}  // namespace xgen
