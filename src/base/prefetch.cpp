#include "base/prefetch.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <thread>

namespace xgen {
namespace {

// Mapped at a time: others of the process cannot change its mappings meanwhile.
constexpr std::size_t kPopulateBytes = std::size_t{2} << 20;
// Asked of the disk ahead of that.
constexpr std::size_t kReadAheadBytes = std::size_t{32} << 20;

#ifndef MADV_POPULATE_READ
constexpr int MADV_POPULATE_READ = 22;  // of Linux 5.14
#endif

}  // namespace

void prefetch(std::span<const std::byte> range, const std::function<void(std::size_t)>& progress) {
  if (range.empty()) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(range.data());
  const std::uintptr_t end = begin + range.size();
  std::uintptr_t ahead = begin / page * page;
  bool populates = true;
  for (std::uintptr_t at = ahead; at < end;) {
    if (ahead < end && ahead <= at + kReadAheadBytes / 2) {
      const std::size_t bytes = std::min<std::size_t>(kReadAheadBytes, end - ahead);
      ::madvise(reinterpret_cast<void*>(ahead), bytes, MADV_WILLNEED);
      ahead += bytes;
    }
    const std::size_t bytes = std::min<std::size_t>(kPopulateBytes, end - at);
    populates = populates && ::madvise(reinterpret_cast<void*>(at), bytes, MADV_POPULATE_READ) == 0;
    if (!populates) {
      for (std::uintptr_t each = at; each < at + bytes; each += page)
        static_cast<void>(*reinterpret_cast<const volatile std::byte*>(std::max(each, begin)));
    }
    at += bytes;
    progress(std::min(at, end) - begin);
  }
}

void Pace::rest(bool others) {
  constexpr int kRestsPerWork = 9;
  constexpr std::chrono::milliseconds kLongestRest{50};
  const auto used = [] {
    timespec now{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
  };
  if (others)
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>((used() - used_) * kRestsPerWork, kLongestRest));
  used_ = used();
}

// Not by niceness: even one of niceness 19 keeps a processor to itself for milliseconds while two that
// compute share another, because the scheduler looks for an idle one; to SCHED_IDLE it looks like one.
void yield_to_others() {
  const sched_param none{};
  ::sched_setscheduler(0, SCHED_IDLE, &none);  // 0: of this thread alone, on Linux
}

}  // namespace xgen
