#include "base/memory_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace xgen {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

TEST(MemoryBudget, ReservesAndReturns) {
  MemoryBudget budget(100);
  {
    auto a = budget.reserve("a", 60, 0ms);
    ASSERT_TRUE(a.ok());
    EXPECT_EQ((*a)->reserved(), 60u);
    EXPECT_EQ(budget.unreserved(), 40u);
    const auto b = budget.reserve("b", 41, 0ms);
    ASSERT_FALSE(b.ok());
    EXPECT_EQ(b.error().code, ErrorCode::unavailable);
    EXPECT_THAT(b.error().message, HasSubstr("'b' needs 41 B"));
    EXPECT_THAT(b.error().message, HasSubstr("a 60 B"));
    (*a)->shrink(50);
    EXPECT_TRUE(budget.grow(**a, 50, 0ms).ok());
    EXPECT_FALSE(budget.grow(**a, 1, 0ms).ok());
  }
  EXPECT_EQ(budget.unreserved(), 100u);
  EXPECT_TRUE(budget.uses().empty());
}

TEST(MemoryBudget, AClosedAccountHasNothingHoweverLongSomebodyHoldsIt) {
  MemoryBudget budget(100);
  const auto a = *budget.reserve("a", 60, 0ms);
  EXPECT_TRUE(a->borrow(30));
  a->on_reclaim([](std::uint64_t, bool) { FAIL() << "it has nothing to give"; });
  a->close();
  EXPECT_EQ(budget.unreserved(), 100u);
  EXPECT_TRUE(budget.uses().empty());
  EXPECT_EQ(a->reserved(), 0u);
  EXPECT_TRUE(budget.reserve("b", 100, 0ms).ok());
  a->close();
}

TEST(MemoryBudget, WhatIsNotReservedMayBeBorrowed) {
  MemoryBudget budget(100);
  const auto a = *budget.reserve("a", 60, 0ms);
  EXPECT_TRUE(a->borrow(40));
  EXPECT_FALSE(a->borrow(1));
  EXPECT_EQ(budget.unreserved(), 40u);
  a->give_back(10);
  EXPECT_EQ(a->borrowed(), 30u);
  EXPECT_TRUE(a->borrow(10));
}

TEST(MemoryBudget, WhatIsReservedMayBecomeBorrowed) {
  MemoryBudget budget(100);
  const auto a = *budget.reserve("a", 80, 0ms);
  a->lend(20);
  EXPECT_EQ(a->reserved(), 80u) << "nobody would give it back";
  a->may_lend(45, 10);
  a->on_reclaim([](std::uint64_t, bool) {});
  a->lend(90);
  EXPECT_EQ(a->reserved(), 80u);
  a->lend(20);
  EXPECT_EQ(a->reserved(), 50u);
  EXPECT_EQ(a->borrowed(), 30u);
  EXPECT_EQ(budget.unreserved(), 50u);
  EXPECT_FALSE(budget.reserve("b", 50, 0ms).ok()) << "it has it still";
  std::thread giver;
  a->on_reclaim([&](std::uint64_t bytes, bool) { giver = std::thread([&a, bytes] { a->give_back(bytes); }); });
  EXPECT_TRUE(budget.reserve("b", 50, 5s).ok());
  giver.join();
}

TEST(MemoryBudget, AReservationGetsBorrowedBytesBack) {
  MemoryBudget budget(100);
  const auto a = *budget.reserve("a", 10, 0ms);
  ASSERT_TRUE(a->borrow(90));
  // Nobody gives back: the reservation gives up, and says why.
  const auto refused = budget.reserve("b", 30, 10ms);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("not given back"));

  std::thread giver;
  a->on_reclaim([&](std::uint64_t bytes, bool must) {
    EXPECT_EQ(bytes, 30u);
    EXPECT_TRUE(must);
    giver = std::thread([&a, bytes] { a->give_back(bytes); });
  });
  const auto b = budget.reserve("b", 30, 5s);
  giver.join();
  ASSERT_TRUE(b.ok());
  EXPECT_EQ(a->borrowed(), 60u);
  EXPECT_EQ(budget.unreserved(), 60u);
}

TEST(MemoryBudget, OnlyLargerBorrowersAreAskedForTheSakeOfAnother) {
  MemoryBudget budget(100);
  const auto a = *budget.reserve("a", 0, 0ms);
  const auto b = *budget.reserve("b", 0, 0ms);
  std::uint64_t asked_a = 0;
  std::uint64_t asked_b = 0;
  a->on_reclaim([&](std::uint64_t bytes, bool must) {
    EXPECT_FALSE(must);
    asked_a += bytes;
  });
  b->on_reclaim([&](std::uint64_t bytes, bool) { asked_b += bytes; });
  ASSERT_TRUE(a->borrow(70));
  ASSERT_TRUE(b->borrow(30));
  EXPECT_FALSE(b->borrow(8));
  EXPECT_EQ(asked_a, 8u);
  EXPECT_FALSE(a->borrow(8));
  EXPECT_EQ(asked_b, 0u);
}

}  // namespace
}  // namespace xgen
