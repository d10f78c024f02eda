#include "server/rate_limiter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace xgen::server {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

const RateLimiter::Time kStart = RateLimiter::Time() + 24h;

TEST(RateLimiter, RequestsComeBackEvenly) {
  const auto limiter = RateLimiter::create({.requests_per_minute = 60});
  RateLimiter::Left left;
  for (int i = 0; i < 60; ++i) {
    ASSERT_TRUE(limiter->admit("a", 1'000'000, kStart, left).ok());
    EXPECT_EQ(left.requests, 59 - i);
  }
  const auto refused = limiter->admit("a", 0, kStart, left);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::overloaded);
  EXPECT_EQ(refused.error().retry_after_s, 1);
  EXPECT_THAT(refused.error().message, HasSubstr("60 requests"));
  EXPECT_NEAR(left.requests_reset_s, 60, 1e-6);
  EXPECT_TRUE(limiter->admit("b", 0, kStart, left).ok()) << "each has its own";
  EXPECT_FALSE(limiter->admit("a", 0, kStart + 990ms, left).ok());
  EXPECT_TRUE(limiter->admit("a", 0, kStart + 1s, left).ok());
  EXPECT_FALSE(limiter->admit("a", 0, kStart + 1s, left).ok());
  // No more than a minute's worth is saved up.
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(limiter->admit("a", 0, kStart + 1h, left).ok());
  EXPECT_FALSE(limiter->admit("a", 0, kStart + 1h, left).ok());
}

TEST(RateLimiter, TokensAreReservedAndSettled) {
  const auto limiter = RateLimiter::create({.tokens_per_minute = 600});
  RateLimiter::Left left;
  auto first = limiter->admit("a", 400, kStart, left);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(left.tokens, 200);
  const auto second = limiter->admit("a", 400, kStart, left);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.error().message, HasSubstr("600 tokens a minute; this request may take 400"));
  EXPECT_EQ(second.error().retry_after_s, 20);  // 200 more at 10 a second
  (*first)->settle(100);
  (*first)->settle(500);  // once only
  EXPECT_TRUE(limiter->admit("a", 400, kStart, left).ok()) << "500 are there";
  EXPECT_EQ(left.tokens, 100);
}

TEST(RateLimiter, WhatCameToNothingIsPutBack) {
  const auto limiter = RateLimiter::create({.tokens_per_minute = 600});
  RateLimiter::Left left;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(limiter->admit("a", 600, kStart, left).ok());  // each permit goes at once
}

TEST(RateLimiter, AnAnswerLongerThanExpectedIsPaidLater) {
  const auto limiter = RateLimiter::create({.tokens_per_minute = 600});
  RateLimiter::Left left;
  auto permit = limiter->admit("a", 10, kStart, left);
  ASSERT_TRUE(permit.ok());
  (*permit)->settle(1200);
  EXPECT_FALSE(limiter->admit("a", 0, kStart + 60s, left).ok());
  EXPECT_EQ(left.tokens, 0);
  EXPECT_TRUE(limiter->admit("a", 0, kStart + 61s, left).ok());
}

TEST(RateLimiter, ARequestLargerThanTheLimitHasToFindTheBucketFull) {
  const auto limiter = RateLimiter::create({.tokens_per_minute = 600});
  RateLimiter::Left left;
  auto permit = limiter->admit("a", 100'000, kStart, left);
  ASSERT_TRUE(permit.ok());
  (*permit)->settle(1);
  EXPECT_FALSE(limiter->admit("a", 100'000, kStart, left).ok());
  EXPECT_TRUE(limiter->admit("a", 100'000, kStart + 1s, left).ok());
}

TEST(RateLimiter, TheQuietestClientsAreForgotten) {
  const auto limiter = RateLimiter::create({.requests_per_minute = 1});
  RateLimiter::Left left;
  for (int i = 0; i < 70'000; ++i) {
    ASSERT_TRUE(limiter->admit("client " + std::to_string(i), 0, kStart, left).ok());
    if (i % 1000 == 0) {
      EXPECT_FALSE(limiter->admit("client 0", 0, kStart, left).ok());
    }
  }
  EXPECT_EQ(limiter->clients(), 65536u);
}

}  // namespace
}  // namespace xgen::server
