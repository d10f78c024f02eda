// One file over several connections, from a server that cuts them, refuses and is stopped at any moment.
#include "sources/transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>
#include <thread>

#include "support/raw_server.h"

namespace xgen::sources {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using ::testing::HasSubstr;

constexpr std::uint64_t kSize = (1 << 20) + 12345;

std::string content() {
  std::mt19937 random(7);
  std::string out(kSize, '\0');
  for (char& c : out) c = static_cast<char>(random());
  return out;
}

// Sends the ranges of a file; sometimes only a part of one, sometimes 503 or nothing at all.
class Server {
 public:
  explicit Server(unsigned seed, int mischief, std::string text = content())
      : text_(std::move(text)),
        mischief_(mischief),
        random_(seed),
        server_([this](scripted::RawConnection& connection) {
          while (one(connection)) {
          }
        }) {}
  std::string url() const { return server_.url("/file"); }
  std::uint64_t sent() const { return sent_; }

 private:
  unsigned pick(unsigned n) {
    std::lock_guard lock(mutex_);
    return random_() % n;
  }
  bool one(scripted::RawConnection& connection) {
    const scripted::RawRequest request = connection.read_request();
    if (request.line.empty()) return false;
    std::uint64_t first = 0;
    std::uint64_t last = text_.size() - 1;
    const auto range = request.headers.find("range");
    if (range != request.headers.end()) {
      unsigned long long a = 0;
      unsigned long long b = 0;
      if (std::sscanf(range->second.c_str(), "bytes=%llu-%llu", &a, &b) != 2) return false;
      first = a;
      last = b;
    }
    const bool bad = mischief_ > 0 && pick(100) < static_cast<unsigned>(mischief_);
    const unsigned how = bad ? pick(3) : 3;
    if (how == 0) return false;
    if (how == 1) return connection.answer("busy", "503 Service Unavailable", "Retry-After: 0\r\n");
    const std::string part = text_.substr(first, last + 1 - first);
    const std::string head = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes " + std::to_string(first) + "-" +
                             std::to_string(last) + "/" + std::to_string(text_.size()) +
                             "\r\nContent-Length: " + std::to_string(part.size()) + "\r\n\r\n";
    const std::size_t size = how == 2 ? pick(static_cast<unsigned>(part.size())) : part.size();
    sent_ += size;
    return connection.send(head + part.substr(0, size)) && how != 2;
  }

  const std::string text_;
  const int mischief_;
  std::mutex mutex_;
  std::mt19937 random_;
  std::atomic<std::uint64_t> sent_{0};
  scripted::RawServer server_;  // last: its threads use the others
};

class TransferTest : public testing::Test {
 protected:
  TransferTest() : folder_(fs::path(testing::TempDir()) / ("xgen_transfer_" + std::to_string(::getpid()))) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    file_.path = "file";
    file_.size = kSize;
    Expectation sha256;
    sha256.raw = digest_of(DigestKind::sha256, content());
    sha256.where = "listing";
    file_.expectations = {sha256};
    options_.connections = 4;
    options_.chunk = 64 << 10;
    options_.patience.first_pause = 1ms;
    options_.patience.retries = 50;
  }
  ~TransferTest() override { fs::remove_all(folder_); }

  Status get(const Server& server, const std::stop_token& stop = {}, std::function<void(std::uint64_t)> progress = {}) {
    Remote remote;
    remote.name = "test://file";
    remote.request = [url = server.url()]() -> Result<http::ClientRequest> {
      http::ClientRequest request;
      request.url = *http::parse_url(url);
      return request;
    };
    remote.explain = [](const Answer& answer) {
      return make_error(ErrorCode::unavailable, "answered " + std::to_string(answer.status));
    };
    return transfer(client_, remote, file_, (folder_ / "part").string(), (folder_ / "file").string(), options_,
                    progress, stop);
  }
  std::string result() const {
    std::ifstream in(folder_ / "file", std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  const fs::path folder_;
  http::Client client_;
  RemoteFile file_;
  TransferOptions options_;
};

TEST_F(TransferTest, EveryRangeOnceAndProgressToTheEnd) {
  const Server server(0, 0);
  std::uint64_t last = 0;
  ASSERT_TRUE(get(server, {}, [&](std::uint64_t bytes) {
    EXPECT_GE(bytes, last);
    last = bytes;
  }));
  EXPECT_EQ(last, kSize);
  EXPECT_EQ(server.sent(), kSize);
  EXPECT_TRUE(result() == content());
  EXPECT_FALSE(fs::exists(folder_ / "part"));
}

TEST_F(TransferTest, AnythingInBetweenEndsInTheSameBytes) {
  for (unsigned seed = 0; seed < 10; ++seed) {
    const Server server(seed, 40);
    const Status outcome = get(server);
    ASSERT_TRUE(outcome) << outcome.error().message << ", seed " << seed;
    EXPECT_TRUE(result() == content()) << "seed " << seed;
    fs::remove(folder_ / "file");
  }
}

TEST_F(TransferTest, StoppedAtAnyMomentItGoesOnLater) {
  std::mt19937 random(3);
  const Server server(1, 10);
  Status outcome = make_error(ErrorCode::cancelled, "not yet");
  int rounds = 0;
  std::uint64_t before = 0;
  while (!outcome) {
    ASSERT_EQ(outcome.error().code, ErrorCode::cancelled) << outcome.error().message;
    ASSERT_LT(++rounds, 1000);
    std::stop_source stop;
    std::uint64_t reached = 0;
    std::uint64_t stop_at = before + 1 + random() % 200'000;
    outcome = get(server, stop.get_token(), [&](std::uint64_t bytes) {
      reached = bytes;
      if (bytes >= stop_at) stop.request_stop();
    });
    EXPECT_GE(reached, before);
    before = reached;
  }
  EXPECT_TRUE(result() == content());
}

TEST_F(TransferTest, StoppingIsPrompt) {
  const scripted::RawServer silent([](scripted::RawConnection& connection) { connection.closed_within(10s); });
  Remote remote;
  remote.name = "test://file";
  remote.request = [&silent]() -> Result<http::ClientRequest> {
    http::ClientRequest request;
    request.url = *http::parse_url(silent.url());
    return request;
  };
  std::stop_source stop;
  std::thread later([&] {
    std::this_thread::sleep_for(50ms);
    stop.request_stop();
  });
  const auto begin = std::chrono::steady_clock::now();
  const Status outcome = transfer(client_, remote, file_, (folder_ / "part").string(), (folder_ / "file").string(),
                                  options_, {}, stop.get_token());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 3s);
  later.join();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::cancelled);
}

TEST_F(TransferTest, OtherBytesAreRefused) {
  std::string other = content();
  other[kSize / 2] ^= 1;
  const Server server(0, 0, other);
  const Status outcome = get(server);
  ASSERT_FALSE(outcome);
  EXPECT_THAT(outcome.error().message, HasSubstr("test://file: the bytes that came do not match the SHA-256"));
  EXPECT_FALSE(fs::exists(folder_ / "file"));
  EXPECT_FALSE(fs::exists(folder_ / "part"));
}

TEST_F(TransferTest, AnEmptyFileNeedsNoRequest) {
  const Server server(0, 0);
  file_.size = 0;
  file_.expectations[0].raw = digest_of(DigestKind::sha256, "");
  ASSERT_TRUE(get(server));
  EXPECT_EQ(server.sent(), 0u);
  EXPECT_TRUE(fs::exists(folder_ / "file"));
  EXPECT_EQ(fs::file_size(folder_ / "file"), 0u);
}

}  // namespace
}  // namespace xgen::sources
