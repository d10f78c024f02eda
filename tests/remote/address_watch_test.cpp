#include "remote/address_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "base/log.h"

namespace xgen::remote {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using Names = std::vector<std::string>;

// What a test says of names. Looked up on threads that nobody joins, so it lives as long as they do.
struct NameServer {
  http::Client::Addresses look_up(const std::string& host) {
    std::unique_lock lock(mutex);
    ++looks;
    changed.notify_all();
    changed.wait(lock, [&] { return host != silent || over; });
    const auto it = answers.find(host);
    return it != answers.end() ? it->second
                               : http::Client::Addresses(make_error(ErrorCode::not_found, host + ": unknown"));
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, http::Client::Addresses> answers;
  std::string silent;  // a host that is never answered
  bool over = false;
  int looks = 0;
};

class AddressWatchTest : public ::testing::Test {
 protected:
  void SetUp() override { log::set_level(log::Level::error); }
  void TearDown() override {
    log::set_level(log::Level::info);
    std::lock_guard lock(names->mutex);
    names->over = true;
    names->changed.notify_all();
  }

  void start(const Names& urls, AddressOptions options = {.interval = 1ms}) {
    options.model = "m";
    for (const std::string& each : urls) options.urls.push_back(*http::parse_url(each));
    watch = std::make_shared<AddressWatch>(std::move(options), client, [this](const std::vector<http::Url>& all) {
      std::lock_guard lock(names->mutex);
      found.clear();
      for (const http::Url& each : all) {
        found.push_back(replica_name(each));
        EXPECT_FALSE(each.address.empty());
        hosts.push_back(each.host);
      }
      ++calls;
      names->changed.notify_all();
    });
    watch->start();
  }
  void set(const std::string& host, http::Client::Addresses answer) {
    std::lock_guard lock(names->mutex);
    names->answers.insert_or_assign(host, std::move(answer));
  }
  // After whole looks with the answers of now.
  Names settled(int more = 3) {
    std::unique_lock lock(names->mutex);
    const int until = names->looks + more * static_cast<int>(names->answers.size() + 1);
    EXPECT_TRUE(names->changed.wait_for(lock, 5s, [&] { return names->looks >= until; }));
    return found;
  }
  int call_count() {
    std::lock_guard lock(names->mutex);
    return calls;
  }

  const std::shared_ptr<NameServer> names = std::make_shared<NameServer>();
  Names found;  // this and what follows under the mutex of `names`
  Names hosts;
  int calls = 0;
  http::Client client{{.look_up = [names = names](const std::string& host) { return names->look_up(host); }}};
  std::shared_ptr<AddressWatch> watch;
};

TEST_F(AddressWatchTest, AddressesJoinAndLeave) {
  set("pods.test", Names{"10.0.0.2", "10.0.0.1", "10.0.0.2"});
  start({"https://pods.test:8443/v1"});
  EXPECT_EQ(settled(), (Names{"https://10.0.0.1:8443/v1", "https://10.0.0.2:8443/v1"}));
  EXPECT_EQ(hosts, (Names{"pods.test", "pods.test"}));  // the name stays in the URL
  set("pods.test", Names{"10.0.0.1", "10.0.0.2"});      // only their order is another
  settled();
  EXPECT_EQ(call_count(), 1);
  set("pods.test", Names{"10.0.0.3", "10.0.0.2"});
  EXPECT_EQ(settled(), (Names{"https://10.0.0.2:8443/v1", "https://10.0.0.3:8443/v1"}));
  EXPECT_EQ(call_count(), 2);
}

TEST_F(AddressWatchTest, OnlyANameThatIsGoneHasNoAddresses) {
  set("pods.test", Names{"10.0.0.1"});
  start({"http://pods.test/v1"}, {.interval = 1ms});
  EXPECT_EQ(settled(), (Names{"http://10.0.0.1/v1"}));
  set("pods.test", make_error(ErrorCode::unavailable, "pods.test: try again"));
  EXPECT_EQ(settled(), (Names{"http://10.0.0.1/v1"}));
  set("pods.test", make_error(ErrorCode::not_found, "pods.test: not found"));
  EXPECT_EQ(settled(), Names{});
  set("pods.test", Names{"10.0.0.2"});
  EXPECT_EQ(settled(), (Names{"http://10.0.0.2/v1"}));
}

TEST_F(AddressWatchTest, ANameThatIsNotThereYetIsToldAndLookedUpSoon) {
  start({"http://pods.test/v1"}, {.interval = 1h});
  {
    std::unique_lock lock(names->mutex);
    ASSERT_TRUE(names->changed.wait_for(lock, 5s, [&] { return calls == 1; }));
    EXPECT_EQ(found, Names{});
  }
  set("pods.test", Names{"10.0.0.1"});
  std::unique_lock lock(names->mutex);
  ASSERT_TRUE(names->changed.wait_for(lock, 5s, [&] { return calls == 2; }));
  EXPECT_EQ(found, (Names{"http://10.0.0.1/v1"}));
}

TEST_F(AddressWatchTest, OfTwoFamiliesOneCountsAndStays) {
  set("pods.test", Names{"fd00::2", "10.0.0.1", "fd00::1", "10.0.0.2"});
  start({"http://pods.test:8000/v1"});
  EXPECT_EQ(settled(), (Names{"http://[fd00::1]:8000/v1", "http://[fd00::2]:8000/v1"}));
  set("pods.test", Names{"10.0.0.1", "fd00::1", "10.0.0.2"});
  EXPECT_EQ(settled(), (Names{"http://[fd00::1]:8000/v1"}));
  set("pods.test", Names{"10.0.0.1", "10.0.0.2"});
  EXPECT_EQ(settled(), (Names{"http://10.0.0.1:8000/v1", "http://10.0.0.2:8000/v1"}));
  set("pods.test", Names{"fd00::1", "10.0.0.1"});
  EXPECT_EQ(settled(), (Names{"http://10.0.0.1:8000/v1"}));
}

TEST_F(AddressWatchTest, SeveralNamesAndNoServerTwice) {
  set("a.test", Names{"10.0.0.1", "10.0.0.2"});
  set("b.test", Names{"10.0.0.2", "10.0.0.3"});
  start({"http://a.test/v1", "http://b.test/v1", "http://a.test:81/v1", "http://c.test/v1"});
  EXPECT_EQ(settled(), (Names{"http://10.0.0.1/v1", "http://10.0.0.2/v1", "http://10.0.0.3/v1", "http://10.0.0.1:81/v1",
                              "http://10.0.0.2:81/v1"}));
  EXPECT_EQ(call_count(), 2) << "once for each name that has addresses";
}

TEST_F(AddressWatchTest, ASilentNameHoldsUpNoOther) {
  set("good.test", Names{"10.0.0.1"});
  names->silent = "silent.test";
  start({"http://silent.test/v1", "http://good.test/v1"});
  EXPECT_EQ(settled(), (Names{"http://10.0.0.1/v1"}));
  set("good.test", Names{"10.0.0.2"});
  EXPECT_EQ(settled(), (Names{"http://10.0.0.2/v1"}));
}

TEST_F(AddressWatchTest, ThereIsALimit) {
  Names many;
  for (int i = 0; i < 200; ++i) many.push_back("10.0.0." + std::to_string(i));
  set("pods.test", many);
  log::set_level(log::Level::warn);
  ::testing::internal::CaptureStderr();
  start({"http://pods.test/v1"}, {.interval = 1ms, .max_addresses = 3});
  EXPECT_EQ(settled(), (Names{"http://10.0.0.0/v1", "http://10.0.0.1/v1", "http://10.0.0.10/v1"}));
  const std::string lines = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(lines, HasSubstr("addresses=200 used=3"));
  EXPECT_EQ(lines.find("addresses=200"), lines.rfind("addresses=200")) << "is said once";
}

TEST_F(AddressWatchTest, AFaultIsSaidOnceUntilItChanges) {
  log::set_level(log::Level::warn);
  ::testing::internal::CaptureStderr();
  start({"http://pods.test/v1"});
  settled(5);
  set("pods.test", make_error(ErrorCode::unavailable, "pods.test: try again"));
  settled(5);
  const std::string lines = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 2) << lines;
  EXPECT_THAT(lines, HasSubstr("model=m reason=\"pods.test: unknown\""));
  EXPECT_THAT(lines, HasSubstr("reason=\"pods.test: try again\""));
}

TEST_F(AddressWatchTest, NothingIsFoundAfterItsEnd) {
  set("pods.test", Names{"10.0.0.1"});
  start({"http://pods.test/v1"});
  settled();
  watch.reset();
  set("pods.test", Names{"10.0.0.2"});
  std::this_thread::sleep_for(50ms);
  std::lock_guard lock(names->mutex);
  EXPECT_EQ(found, (Names{"http://10.0.0.1/v1"}));
}

}  // namespace
}  // namespace xgen::remote
