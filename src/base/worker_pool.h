// WorkerPool: a fixed set of compute threads that several engine loops share, one of them at a time and in proportion
// to their weights.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>

namespace xgen {

class WorkerPool {
 public:
  // `threads` >= 1 counts the calling thread: WorkerPool(1) runs everything inline.
  explicit WorkerPool(int threads);
  // Another user of the same threads. Users that compete get time in proportion to their weights (> 0).
  WorkerPool(const WorkerPool& shared, double weight);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int size() const;
  // Whether there are other users.
  bool shared() const { return threads_.use_count() > 1; }
  // Whether one of its users computes now. Takes no lock.
  bool busy() const;

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

  // Several sections of one thread with nobody else's between them, unless they take long: then others get their turn
  // between two of them. One Turn of a user at a time, and no run() of other threads with it meanwhile.
  class Turn {
   public:
    explicit Turn(WorkerPool& pool);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    WorkerPool& pool_;
  };
  // No further Turn follows soon: others need not wait for it.
  void rest();

 private:
  void run_raw(int parts, void (*fn)(void*, int), void* ctx);
  struct Threads;
  struct User;
  std::shared_ptr<Threads> threads_;
  std::unique_ptr<User> user_;
};

}  // namespace xgen
