#include "base/worker_pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace xgen {
namespace {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About 20 microseconds: longer than the gap between two sections of one forward pass, shorter than a wake-up costs.
constexpr int kSpins = 1000;

}  // namespace

// A section is one number in `ticket`: its generation in the upper half, the parts still to be taken in the lower.
// Workers take parts with compare-exchange, so one that arrives late finds either none left or a newer generation, and
// can never touch a section that it does not belong to.
struct WorkerPool::Impl {
  std::mutex turn;  // one section at a time

  std::atomic<std::uint64_t> ticket{0};
  std::atomic<std::uint32_t> done{0};
  // Written between sections only; a worker reads them after it has taken a part, which keeps the section open.
  std::uint32_t parts = 0;
  void (*fn)(void*, int) = nullptr;
  void* ctx = nullptr;

  std::mutex sleep_mutex;
  std::condition_variable wake;
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;

  // Takes parts of section `generation` until none is left.
  void work(std::uint32_t generation) {
    std::uint64_t seen = ticket.load(std::memory_order_acquire);
    while (static_cast<std::uint32_t>(seen >> 32) == generation) {
      const auto left = static_cast<std::uint32_t>(seen);
      if (left == 0) return;
      if (!ticket.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      fn(ctx, static_cast<int>(parts - left));
      done.fetch_add(1, std::memory_order_acq_rel);
      seen = ticket.load(std::memory_order_acquire);
    }
  }

  void loop() {
    std::uint32_t last = 0;
    for (;;) {
      std::uint32_t generation = last;
      for (int spin = 0; spin < kSpins; ++spin) {
        generation = static_cast<std::uint32_t>(ticket.load(std::memory_order_acquire) >> 32);
        if (generation != last || stop.load(std::memory_order_relaxed)) break;
        pause_cpu();
      }
      if (generation == last) {
        std::unique_lock lock(sleep_mutex);
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        wake.wait(lock, [&] {
          generation = static_cast<std::uint32_t>(ticket.load(std::memory_order_seq_cst) >> 32);
          return generation != last || stop.load(std::memory_order_relaxed);
        });
        sleepers.fetch_sub(1, std::memory_order_relaxed);
      }
      if (stop.load(std::memory_order_relaxed)) return;
      work(generation);
      last = generation;
    }
  }
};

WorkerPool::WorkerPool(int threads) : impl_(std::make_unique<Impl>()) {
  for (int i = 1; i < threads; ++i) impl_->threads.emplace_back([impl = impl_.get()] { impl->loop(); });
}

WorkerPool::~WorkerPool() {
  {
    std::lock_guard lock(impl_->sleep_mutex);
    impl_->stop.store(true);
  }
  impl_->wake.notify_all();
  for (std::thread& thread : impl_->threads) thread.join();
}

int WorkerPool::size() const { return static_cast<int>(impl_->threads.size()) + 1; }

void WorkerPool::run_raw(int parts, void (*fn)(void*, int), void* ctx) {
  if (parts <= 0) return;
  Impl& p = *impl_;
  if (p.threads.empty() || parts == 1) {
    for (int part = 0; part < parts; ++part) fn(ctx, part);
    return;
  }
  std::lock_guard turn(p.turn);
  const std::uint32_t generation = static_cast<std::uint32_t>(p.ticket.load(std::memory_order_relaxed) >> 32) + 1;
  p.fn = fn;
  p.ctx = ctx;
  p.parts = static_cast<std::uint32_t>(parts);
  p.done.store(0, std::memory_order_relaxed);
  p.ticket.store((std::uint64_t{generation} << 32) | p.parts, std::memory_order_seq_cst);
  if (p.sleepers.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard lock(p.sleep_mutex); }
    p.wake.notify_all();
  }
  p.work(generation);
  for (int spin = 0; p.done.load(std::memory_order_acquire) != static_cast<std::uint32_t>(parts); ++spin) {
    // More threads than cores: give the one that is still working the core.
    if (spin < 4 * kSpins) {
      pause_cpu();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace xgen
