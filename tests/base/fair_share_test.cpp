#include "base/fair_share.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <thread>

#include "base/worker_pool.h"

namespace xgen {
namespace {

using namespace std::chrono_literals;

// Users that have endless work, on a clock of their own.
class FairShareTest : public testing::Test {
 protected:
  struct Worker {
    FairShare::Duration step;
    FairShare::Duration gap;  // from the end of one step to the wish for the next
    std::optional<FairShare::Time> asks_at;
    FairShare::Duration used{};
    FairShare::Duration longest_wait{};
    FairShare::Time asked;
  };
  FairShare::User add(double weight, FairShare::Duration step, FairShare::Duration gap = 50us) {
    const FairShare::User user = turns_.join(weight);
    workers_[user] = {step, gap, now_, {}, {}, now_};
    return user;
  }
  void stop(FairShare::User user) {
    turns_.rest(user);
    workers_[user].asks_at.reset();
  }
  void run(FairShare::Duration time) {
    for (const FairShare::Time end = now_ + time; now_ < end;) {
      for (auto& [user, worker] : workers_) {
        if (!worker.asks_at || *worker.asks_at > now_) continue;
        worker.asked = *worker.asks_at;
        worker.asks_at.reset();
        turns_.ask(user);
      }
      const auto next = turns_.next(now_);
      if (!next) {
        now_ += 10us;
        continue;
      }
      Worker& worker = workers_[*next];
      worker.longest_wait = std::max(worker.longest_wait, now_ - worker.asked);
      now_ += worker.step;
      worker.used += worker.step;
      turns_.end(*next, now_, FairShare::Then::returns);
      worker.asks_at = now_ + worker.gap;
    }
  }
  double ratio(FairShare::User a, FairShare::User b) {
    return std::chrono::duration<double>(workers_[a].used) / std::chrono::duration<double>(workers_[b].used);
  }
  FairShare turns_;
  FairShare::Time now_{1h};
  std::map<FairShare::User, Worker> workers_;
};

TEST_F(FairShareTest, TimeIsSharedByWeight) {
  const auto a = add(3, 1ms);
  const auto b = add(1, 1ms);
  run(2s);
  EXPECT_NEAR(ratio(a, b), 3, 0.1);
}

TEST_F(FairShareTest, LongStepsGetNoMoreThanShortOnes) {
  const auto a = add(1, 30ms);
  const auto b = add(1, 200us);
  run(5s);
  EXPECT_NEAR(ratio(a, b), 1, 0.05);
}

TEST_F(FairShareTest, ManyUsersOfDifferentWeights) {
  const auto a = add(1, 3ms);
  const auto b = add(2, 1ms);
  const auto c = add(5, 700us, 200us);
  run(10s);
  EXPECT_NEAR(ratio(b, a), 2, 0.1);
  EXPECT_NEAR(ratio(c, a), 5, 0.25);
}

TEST_F(FairShareTest, NobodyStarves) {
  add(1000, 1ms);
  const auto b = add(1, 1ms);
  run(5s);
  EXPECT_GT(workers_[b].used, 2ms);
  EXPECT_LT(workers_[b].longest_wait, 2200ms);  // a slice of its own buys the other 1000 of them
}

TEST_F(FairShareTest, WhoRestedHasNothingToCatchUp) {
  const auto a = add(1, 1ms);
  const auto b = add(1, 1ms);
  stop(b);
  run(10s);
  const auto before = workers_[a].used;
  workers_[b].asks_at = now_;
  run(1s);
  EXPECT_GT(workers_[a].used - before, 450ms);
  EXPECT_LT(workers_[b].used, 550ms);
}

TEST_F(FairShareTest, OneAloneNeverWaits) {
  const auto a = add(1, 1ms);
  run(100ms);
  EXPECT_EQ(workers_[a].longest_wait, 0ms);
}

TEST_F(FairShareTest, WhoIsExpectedAndStaysAwayIsNotWaitedForLong) {
  const auto a = add(1000, 3ms);
  const auto b = add(1, 1ms);
  run(20ms);
  workers_[a].gap = 500ms;  // without a word
  run(1s);
  EXPECT_GT(workers_[b].used, 900ms);
}

TEST_F(FairShareTest, ALongTurnEndsForOthersAndGoesOn) {
  const auto a = turns_.join(1);
  const auto b = turns_.join(1);
  turns_.ask(a);
  EXPECT_EQ(turns_.next(now_), a);
  turns_.ask(b);
  EXPECT_EQ(turns_.next(now_), std::nullopt);
  EXPECT_FALSE(turns_.slice_is_over(now_ + 1ms));
  now_ += 3ms;
  EXPECT_TRUE(turns_.slice_is_over(now_));
  turns_.end(a, now_, FairShare::Then::asks);
  EXPECT_EQ(turns_.next(now_), b);
  now_ += 3ms;
  turns_.end(b, now_, FairShare::Then::asks);
  EXPECT_EQ(turns_.next(now_), a);
}

// Three times the weight is about three times the work, with real threads. A turn costs what it lasts, preempted or
// not: on a busy machine not every second shows it.
TEST(WorkerPool, UsersShareByWeight) {
  WorkerPool pool(2);
  WorkerPool heavy(pool, 3);
  WorkerPool light(pool, 1);
  EXPECT_EQ(heavy.size(), 2);
  std::atomic<bool> together{false};
  const auto second = [&] {
    std::atomic<bool> stop{false};
    std::atomic<int> inside{0};
    const auto work = [&](WorkerPool& mine, std::atomic<int>& steps) {
      while (!stop) {
        {
          const WorkerPool::Turn turn(mine);
          if (++inside > 1) together = true;
          const auto end = std::chrono::steady_clock::now() + 300us;
          while (std::chrono::steady_clock::now() < end) {
          }
          --inside;
          mine.run(4, [](int) {});
        }
        ++steps;
      }
      mine.rest();
    };
    std::atomic<int> heavy_steps{0};
    std::atomic<int> light_steps{0};
    std::thread a([&] { work(heavy, heavy_steps); });
    std::thread b([&] { work(light, light_steps); });
    std::this_thread::sleep_for(1s);
    stop = true;
    a.join();
    b.join();
    return static_cast<double>(heavy_steps) / std::max(1, light_steps.load());
  };
  double ratio = 0;
  for (int attempt = 0; attempt < 10 && !(ratio > 2.3 && ratio < 4); ++attempt) ratio = second();
  EXPECT_GT(ratio, 2.3);
  EXPECT_LT(ratio, 4);
  EXPECT_FALSE(together);
}

TEST(WorkerPool, ALongTurnLetsOthersInBetweenItsSections) {
  WorkerPool pool(2);
  WorkerPool other(pool, 1);
  std::atomic<bool> began{false};
  std::atomic<int> done{0};
  std::thread prefill([&] {
    const WorkerPool::Turn turn(pool);
    for (int section = 0; section < 100; ++section) {
      began = true;
      pool.run(2, [](int) { std::this_thread::sleep_for(3ms); });
    }
    EXPECT_GE(done, 10);
  });
  while (!began) std::this_thread::yield();
  for (int step = 0; step < 10; ++step) {
    const WorkerPool::Turn turn(other);
    other.run(2, [](int) {});
    ++done;
  }
  other.rest();
  prefill.join();
}

}  // namespace
}  // namespace xgen
