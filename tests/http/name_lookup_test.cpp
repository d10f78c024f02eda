#include "http/name_lookup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <future>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "http/client.h"

namespace xgen::http {
namespace {

using Addresses = NameLookup::Addresses;
using ::testing::ElementsAre;

// Names beginning with "silent" have no answer before answer().
class Names {
 public:
  Addresses ask(const std::string& host) {
    std::unique_lock lock(mutex_);
    asked_.insert(host);
    changed_.notify_all();
    if (host.starts_with("silent")) changed_.wait(lock, [this] { return answered_; });
    if (host == "nobody") return make_error(ErrorCode::not_found, "nobody: Name or service not known");
    return std::vector<std::string>{"127.0.0.1"};
  }
  void answer() {
    std::lock_guard lock(mutex_);
    answered_ = true;
    changed_.notify_all();
  }
  void wait_until_asked(const std::string& host) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return asked_.contains(host); });
  }
  std::size_t times(const std::string& host) {
    std::lock_guard lock(mutex_);
    return asked_.count(host);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::multiset<std::string> asked_;
  bool answered_ = false;
};

struct NameLookupTest : ::testing::Test {
  // The looking threads are not waited for by anybody: they share the names.
  std::shared_ptr<Names> names = std::make_shared<Names>();
  std::function<Addresses(const std::string&)> ask = [names = names](const std::string& host) {
    return names->ask(host);
  };
  std::shared_ptr<NameLookup> lookup = std::make_shared<NameLookup>(ask);

  std::future<Addresses> start(const std::string& host) {
    auto promise = std::make_shared<std::promise<Addresses>>();
    lookup->start(host, [promise](Addresses found) { promise->set_value(std::move(found)); });
    return promise->get_future();
  }
  void TearDown() override { names->answer(); }
};

TEST_F(NameLookupTest, ASilentNameKeepsNoOtherWaiting) {
  auto silent = start("silent");
  names->wait_until_asked("silent");
  EXPECT_THAT(*start("one").get(), ElementsAre("127.0.0.1"));
  EXPECT_EQ(start("nobody").get().error().code, ErrorCode::not_found);
  names->answer();
  EXPECT_THAT(*silent.get(), ElementsAre("127.0.0.1"));
}

TEST_F(NameLookupTest, ANameIsAskedForOnce) {
  auto first = start("silent");
  names->wait_until_asked("silent");
  auto second = start("silent");
  names->answer();
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(second.get().ok());
  EXPECT_EQ(names->times("silent"), 1U);
  EXPECT_TRUE(start("silent").get().ok());
  EXPECT_EQ(names->times("silent"), 2U);
}

TEST_F(NameLookupTest, HasALimit) {
  std::vector<std::future<Addresses>> waiting;
  for (std::size_t i = 0; i < NameLookup::kMostNames; ++i) waiting.push_back(start("silent" + std::to_string(i)));
  const Addresses refused = start("one").get();
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::unavailable);
  EXPECT_EQ(refused.error().message, "one: 64 other names are being looked up");
  names->answer();
  for (auto& each : waiting) EXPECT_TRUE(each.get().ok());
}

TEST_F(NameLookupTest, TheEndOfAClientDoesNotWait) {
  struct Deaf : CallListener {
    void on_head(ResponseHead) override {}
    void on_body(std::string_view) override {}
    void on_end(CallEnd end) override { ended.set_value(std::move(end.status)); }
    std::promise<Status> ended;
  };
  const auto listener = std::make_shared<Deaf>();
  auto client = std::make_unique<Client>(ClientOptions{.look_up = ask});
  const auto call = client->start({.url = *parse_url("http://silent:1/")}, listener);
  client->resolve("silent", [](Addresses) { ADD_FAILURE() << "the client has gone"; });
  names->wait_until_asked("silent");
  client.reset();
  EXPECT_EQ(listener->ended.get_future().get().error().code, ErrorCode::cancelled);
  names->answer();
}

TEST_F(NameLookupTest, ACallSaysWhatIsWrongWithItsName) {
  Client client(ClientOptions{.look_up = ask});
  const Status status = fetch(
      client, {.url = *parse_url("http://nobody:1/")}, [](const ResponseHead&) { return Status(); },
      [](std::string_view) { return Status(); });
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::unavailable);
  EXPECT_EQ(status.error().message, "http://nobody:1: the name is not found: nobody: Name or service not known");
}

TEST(AddressesOf, AnswersAsTheSystemDoes) {
  EXPECT_THAT(*addresses_of("127.0.0.9"), ElementsAre("127.0.0.9"));
  EXPECT_THAT(*addresses_of("::1"), ElementsAre("::1"));
  const Addresses none = addresses_of("-not a name-");
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code, ErrorCode::not_found);
  EXPECT_THAT(none.error().message, ::testing::StartsWith("-not a name-: "));
}

}  // namespace
}  // namespace xgen::http
