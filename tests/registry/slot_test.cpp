// What of a slot only a race would bring about in a registry.
#include "registry/slot.h"

#include <gtest/gtest.h>

#include <optional>

namespace xgen::registry {
namespace {

struct Sink final : inference::EventSink {
  void on_event(inference::Event event) override {
    if (const auto* failed = std::get_if<inference::Failed>(&event)) error = failed->error;
  }
  std::optional<Error> error;
};

class CountingService final : public inference::ModelService {
 public:
  std::unique_ptr<inference::RequestHandle> generate_async(inference::GenerateRequest,
                                                           std::shared_ptr<inference::EventSink>) override {
    ++requests;
    return std::make_unique<inference::RequestHandle>();
  }
  void tokenize_async(inference::TokenizeRequest, std::function<void(Result<inference::Tokenized>)> done) override {
    done(inference::Tokenized{});
  }
  void detokenize_async(inference::DetokenizeRequest, std::function<void(Result<std::string>)> done) override {
    done(std::string());
  }
  inference::Capabilities capabilities() const override { return {}; }
  inference::Health health() const override { return {}; }
  inference::ServiceStats stats() const override { return {}; }
  void close() override {}
  int requests = 0;
};

class SlotTest : public testing::Test {
 protected:
  SlotTest() {
    old_->limit_waiting(10);
    next_->limit_waiting(2);
  }
  std::unique_ptr<inference::RequestHandle> ask(const std::shared_ptr<Sink>& sink) {
    return old_->generate_async({}, sink);
  }
  const Error gone_ = make_error(ErrorCode::not_found, "gone");
  std::shared_ptr<Slot> old_ = std::make_shared<Slot>([] {});
  std::shared_ptr<Slot> next_ = std::make_shared<Slot>([this] { ++wanted_; });
  int wanted_ = 0;
};

TEST_F(SlotTest, WhatWaitsGoesToTheSuccessor) {
  const auto sink = std::make_shared<Sink>();
  auto first = ask(sink);
  auto second = ask(sink);
  auto third = ask(sink);
  EXPECT_EQ(old_->waiting(), 3u);
  old_->pass_on_to(next_);
  EXPECT_EQ(old_->waiting(), 3u);
  old_->refuse(gone_);
  EXPECT_EQ(next_->waiting(), 2u);
  EXPECT_EQ(wanted_, 2);
  ASSERT_TRUE(sink->error);  // of the third: the successor's limit holds
  EXPECT_EQ(sink->error->code, ErrorCode::overloaded);
  // One that is given up is found where it waits now.
  first.reset();
  EXPECT_EQ(next_->waiting(), 1u);
  const auto service = std::make_shared<CountingService>();
  next_->open(service);
  EXPECT_EQ(service->requests, 1);
  EXPECT_TRUE(next_->in_use());
  second.reset();
  EXPECT_FALSE(next_->in_use());
  // And so is who comes later.
  auto late = ask(sink);
  EXPECT_EQ(service->requests, 2);
  bool tokenized = false;
  old_->tokenize_async({}, [&](const Result<inference::Tokenized>& result) { tokenized = result.ok(); });
  EXPECT_TRUE(tokenized);
}

TEST_F(SlotTest, WithoutASuccessorItIsRefused) {
  const auto sink = std::make_shared<Sink>();
  const auto waiting = ask(sink);
  old_->refuse(gone_);
  ASSERT_TRUE(sink->error);
  EXPECT_EQ(sink->error->message, "gone");
}

}  // namespace
}  // namespace xgen::registry
