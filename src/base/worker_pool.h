// WorkerPool: a fixed set of compute threads that several engine loops share, one parallel section at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>

namespace xgen {

class WorkerPool {
 public:
  // `threads` >= 1 counts the calling thread: WorkerPool(1) runs everything inline.
  explicit WorkerPool(int threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int size() const;

  // Calls fn(part) for every part in [0, parts), on the workers and the calling thread, and returns when all are done.
  // Parts are handed out dynamically, so results must not depend on which thread ran a part. Workers spin for a few
  // microseconds between sections, then sleep: an idle pool costs no CPU. fn must not throw and must not call run()
  // again. Callers from different threads take turns.
  template <class F>
  void run(int parts, F&& fn) {
    using Fn = std::remove_reference_t<F>;
    run_raw(
        parts, [](void* ctx, int part) { (*static_cast<Fn*>(ctx))(part); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  void run_raw(int parts, void (*fn)(void*, int), void* ctx);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace xgen
