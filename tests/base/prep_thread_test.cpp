#include "base/prep_thread.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>

namespace xgen {
namespace {

TEST(PrepThread, RunsWhatIsQueuedBeforeItEnds) {
  std::atomic<int> ran{0};
  {
    PrepThread thread(4);
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(thread.post([&] { ++ran; }));
  }
  EXPECT_EQ(ran.load(), 4);
}

TEST(PrepThread, AFullQueueRefuses) {
  std::promise<void> begun;
  std::promise<void> go;
  PrepThread thread(1);
  ASSERT_TRUE(thread.post([&] {
    begun.set_value();
    go.get_future().wait();
  }));
  begun.get_future().wait();
  EXPECT_TRUE(thread.post([] {}));
  EXPECT_FALSE(thread.post([] {}));
  go.set_value();
}

// The work may hold the last reference to the thread's owner: it ends there, after what is queued.
TEST(PrepThread, MayEndOnItself) {
  struct Owner {
    std::unique_ptr<int> value = std::make_unique<int>(0);
    PrepThread thread{4};  // last
  };
  std::promise<void> posted;
  std::promise<void> done;
  std::atomic<int> ran{0};
  auto owner = std::make_shared<Owner>();
  Owner* const raw = owner.get();
  std::weak_ptr<Owner> gone = owner;
  ASSERT_TRUE(raw->thread.post([&ran, &posted, last = owner] {
    posted.get_future().wait();
    ++ran;
  }));
  ASSERT_TRUE(raw->thread.post([&, raw] {
    ran += 1 + *raw->value;  // the owner is still whole
    done.set_value();
  }));
  owner.reset();
  posted.set_value();
  done.get_future().wait();
  EXPECT_EQ(ran.load(), 2);
  EXPECT_TRUE(gone.expired());
}

}  // namespace
}  // namespace xgen
