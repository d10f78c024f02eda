// FileDamage: whether mapped files could be read. From where a file was cut short after it was mapped, or its storage
// fails, the process reads zeros instead of being ended by SIGBUS; whoever uses what it has read asks here first.
#pragma once

#include <atomic>
#include <cstddef>
#include <deque>
#include <mutex>
#include <string>

#include "base/result.h"

namespace xgen {

// Thread-safe. Not noticed is what raises no fault: a file that is overwritten in place, or loses less than a page.
class FileDamage {
 public:
  // False: what was read until now, by this thread and those it has waited for, is the files'. One relaxed load.
  bool any() const {
    std::atomic_signal_fence(std::memory_order_seq_cst);  // the reads come first
    return file_.load(std::memory_order_relaxed) != nullptr;
  }
  // Error unavailable, naming the first file that could not be read.
  Status status() const;

 private:
  friend class GuardedRange;
  std::atomic<const std::string*> file_{nullptr};  // one of paths_
  std::mutex mutex_;
  std::deque<std::string> paths_;
};

// Files that are guarded at the same time; more cannot be mapped.
inline constexpr std::size_t kMaxGuardedFiles = 4096;

// The place of one mapping in the table of the SIGBUS handler, which the first of them installs. Faults elsewhere take
// the way they took before.
class GuardedRange {
 public:
  // Pages of a mapping that no other covers. `damage` outlives it.
  GuardedRange(const void* data, std::size_t size, const std::string& path, FileDamage& damage);
  // Before the pages are unmapped.
  ~GuardedRange();
  GuardedRange(const GuardedRange&) = delete;
  GuardedRange& operator=(const GuardedRange&) = delete;

  // False: the table is full.
  bool ok() const { return place_ != nullptr; }
  // Whether all of these bytes are in one guarded mapping.
  static bool holds(const void* data, std::size_t size);

 private:
  struct Place;
  struct Handler;
  Place* place_ = nullptr;
};

}  // namespace xgen
