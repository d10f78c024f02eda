#include "server/rate_limit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace xgen::server {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

const RateLimit::Time kStart = RateLimit::Time() + 24h;

std::shared_ptr<RateLimit> limit(std::int64_t requests, std::int64_t tokens) {
  return std::make_shared<RateLimit>(RateLimits{requests, tokens});
}

TEST(RateLimit, RequestsComeBackEvenly) {
  const auto limit = server::limit(60, 0);
  RateLimit::Left left;
  for (int i = 0; i < 60; ++i) {
    ASSERT_TRUE(limit->admit(1'000'000, kStart, left).ok());
    EXPECT_EQ(left.requests, 59 - i);
  }
  const auto refused = limit->admit(0, kStart, left);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::overloaded);
  EXPECT_EQ(refused.error().retry_after_s, 1);
  EXPECT_THAT(refused.error().message, HasSubstr("60 requests a minute"));
  EXPECT_NEAR(left.requests_reset_s, 60, 1e-6);
  EXPECT_FALSE(limit->admit(0, kStart + 990ms, left).ok());
  EXPECT_TRUE(limit->admit(0, kStart + 1s, left).ok());
  EXPECT_FALSE(limit->admit(0, kStart + 1s, left).ok());
  // No more than a minute's worth is saved up.
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(limit->admit(0, kStart + 1h, left).ok());
  EXPECT_FALSE(limit->admit(0, kStart + 1h, left).ok());
}

TEST(RateLimit, TokensAreReservedAndSettled) {
  const auto limit = server::limit(0, 600);
  RateLimit::Left left;
  const auto first = limit->admit(400, kStart, left);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(left.tokens, 200);
  const auto second = limit->admit(400, kStart, left);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.error().message, HasSubstr("600 tokens a minute; this request may take 400"));
  EXPECT_EQ(second.error().retry_after_s, 20);  // 200 more at 10 a second
  (*first)->settle(100);
  (*first)->settle(500);  // once only
  EXPECT_TRUE(limit->admit(400, kStart, left).ok()) << "500 are there";
  EXPECT_EQ(left.tokens, 100);
}

TEST(RateLimit, WhatCameToNothingIsPutBack) {
  const auto limit = server::limit(0, 600);
  RateLimit::Left left;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(limit->admit(600, kStart, left).ok());  // each permit goes at once
}

TEST(RateLimit, AnAnswerLongerThanExpectedIsPaidLater) {
  const auto limit = server::limit(0, 600);
  RateLimit::Left left;
  const auto permit = limit->admit(10, kStart, left);
  ASSERT_TRUE(permit.ok());
  (*permit)->settle(1200);
  EXPECT_FALSE(limit->admit(0, kStart + 60s, left).ok());
  EXPECT_EQ(left.tokens, 0);
  EXPECT_TRUE(limit->admit(0, kStart + 61s, left).ok());
}

TEST(RateLimit, ARequestLargerThanTheLimitHasToFindTheBucketFull) {
  const auto limit = server::limit(0, 600);
  RateLimit::Left left;
  const auto permit = limit->admit(100'000, kStart, left);
  ASSERT_TRUE(permit.ok());
  (*permit)->settle(1);
  EXPECT_FALSE(limit->admit(100'000, kStart, left).ok());
  EXPECT_TRUE(limit->admit(100'000, kStart + 1s, left).ok());
}

}  // namespace
}  // namespace xgen::server
