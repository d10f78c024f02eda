#include "base/worker_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "base/fair_share.h"

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
struct WorkerPool::Threads {
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

  // Whose turn it is.
  std::mutex turns_mutex;
  FairShare turns;
  std::vector<User*> users;  // by FairShare::User
  std::atomic<int> asking{0};
  std::atomic<bool> taken{false};  // the turn is somebody's

  ~Threads();
  void section(int count, void (*part_fn)(void*, int), void* part_ctx);
  void take_turn(User& user);
  void end_turn(User& user, FairShare::Then then);
  void pass_on(FairShare::Time now);
  // In the middle of a turn that has been long: goes on when it is this user's again.
  void let_others(User& user);

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

struct WorkerPool::User {
  std::size_t id = 0;
  std::mutex sections;  // of threads that have no Turn
  std::condition_variable turn_came;
  bool granted = false;  // guarded by turns_mutex
  bool in_turn = false;  // of the thread that has a Turn
};

// Gives the turn to whoever should have it. With turns_mutex.
void WorkerPool::Threads::pass_on(FairShare::Time now) {
  if (const auto next = turns.next(now)) {
    users[*next]->granted = true;
    users[*next]->turn_came.notify_one();
  }
  taken.store(!turns.free(), std::memory_order_relaxed);
}

void WorkerPool::Threads::take_turn(User& user) {
  std::unique_lock lock(turns_mutex);
  turns.ask(user.id);
  pass_on(FairShare::Time::clock::now());
  if (user.granted) return;
  asking.fetch_add(1, std::memory_order_relaxed);
  // Looked at again now and then, for one that was expected back may have stayed away.
  while (!user.turn_came.wait_for(lock, FairShare::kGrace, [&] { return user.granted; }))
    pass_on(FairShare::Time::clock::now());
  asking.fetch_sub(1, std::memory_order_relaxed);
}

void WorkerPool::Threads::end_turn(User& user, FairShare::Then then) {
  std::lock_guard lock(turns_mutex);
  const auto now = FairShare::Time::clock::now();
  user.granted = false;
  turns.end(user.id, now, then);
  pass_on(now);
}

void WorkerPool::Threads::let_others(User& user) {
  const auto now = FairShare::Time::clock::now();
  std::unique_lock lock(turns_mutex);
  if (!turns.slice_is_over(now)) return;
  user.granted = false;
  turns.end(user.id, now, FairShare::Then::asks);
  pass_on(now);
  if (user.granted) return;
  asking.fetch_add(1, std::memory_order_relaxed);
  while (!user.turn_came.wait_for(lock, FairShare::kGrace, [&] { return user.granted; }))
    pass_on(FairShare::Time::clock::now());
  asking.fetch_sub(1, std::memory_order_relaxed);
}

WorkerPool::WorkerPool(int threads) : threads_(std::make_shared<Threads>()), user_(std::make_unique<User>()) {
  user_->id = threads_->turns.join(1);
  threads_->users.push_back(user_.get());
  for (int i = 1; i < threads; ++i) threads_->threads.emplace_back([shared = threads_.get()] { shared->loop(); });
}

WorkerPool::WorkerPool(const WorkerPool& shared, double weight)
    : threads_(shared.threads_), user_(std::make_unique<User>()) {
  std::lock_guard lock(threads_->turns_mutex);
  user_->id = threads_->turns.join(weight);
  threads_->users.resize(std::max(threads_->users.size(), user_->id + 1));
  threads_->users[user_->id] = user_.get();
}

WorkerPool::~WorkerPool() {
  {
    std::lock_guard lock(threads_->turns_mutex);
    threads_->turns.leave(user_->id);
    threads_->pass_on(FairShare::Time::clock::now());
  }
}

WorkerPool::Threads::~Threads() {
  {
    std::lock_guard lock(sleep_mutex);
    stop.store(true);
  }
  wake.notify_all();
  for (std::thread& thread : threads) thread.join();
}

bool WorkerPool::busy() const { return threads_->taken.load(std::memory_order_relaxed); }

int WorkerPool::size() const { return static_cast<int>(threads_->threads.size()) + 1; }

WorkerPool::Turn::Turn(WorkerPool& pool) : pool_(pool) {
  pool_.threads_->take_turn(*pool_.user_);
  pool_.user_->in_turn = true;
}

WorkerPool::Turn::~Turn() {
  pool_.user_->in_turn = false;
  pool_.threads_->end_turn(*pool_.user_, FairShare::Then::returns);
}

void WorkerPool::rest() {
  std::lock_guard lock(threads_->turns_mutex);
  threads_->turns.rest(user_->id);
  threads_->pass_on(FairShare::Time::clock::now());
}

void WorkerPool::run_raw(int parts, void (*fn)(void*, int), void* ctx) {
  if (parts <= 0) return;
  Threads& p = *threads_;
  const bool in_turn = user_->in_turn;
  if (in_turn && p.asking.load(std::memory_order_relaxed) > 0) p.let_others(*user_);
  if (p.threads.empty() || parts == 1) {
    for (int part = 0; part < parts; ++part) fn(ctx, part);
    return;
  }
  if (in_turn) return p.section(parts, fn, ctx);
  std::lock_guard lock(user_->sections);
  p.take_turn(*user_);
  p.section(parts, fn, ctx);
  p.end_turn(*user_, FairShare::Then::returns);
  rest();
}

void WorkerPool::Threads::section(int count, void (*part_fn)(void*, int), void* part_ctx) {
  const std::uint32_t generation = static_cast<std::uint32_t>(ticket.load(std::memory_order_relaxed) >> 32) + 1;
  fn = part_fn;
  ctx = part_ctx;
  parts = static_cast<std::uint32_t>(count);
  done.store(0, std::memory_order_relaxed);
  ticket.store((std::uint64_t{generation} << 32) | parts, std::memory_order_seq_cst);
  if (sleepers.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard lock(sleep_mutex); }
    wake.notify_all();
  }
  work(generation);
  for (int spin = 0; done.load(std::memory_order_acquire) != parts; ++spin) {
    // More threads than cores: give the one that is still working the core.
    if (spin < 4 * kSpins) {
      pause_cpu();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace xgen
