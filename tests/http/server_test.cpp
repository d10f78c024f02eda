#include "http/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "support/raw_client.h"

namespace xgen::http {
namespace {

using namespace std::chrono_literals;
using scripted::Answer;
using scripted::RawClient;
using ::testing::HasSubstr;

// A server whose paths say what to do:
//   /echo    answers method, path, query and body        /silent  never answers, keeps the exchange
//   /drop    lets go of the exchange                      /stream  three chunks
//   /cut     begins a stream and lets go                  /flood   as much as the client takes, until it is gone
//   /later   answers from another thread           /throw   fails, as do the listeners of /throw-on-wake and
//                                                           /throw-on-close, when they are told
class ServerTest : public ::testing::Test {
 protected:
  struct Listener : ExchangeListener {
    explicit Listener(ServerTest& owner) : test(owner) {}
    void on_wake() override { test.wakes.fetch_add(1); }
    void on_close() override { test.closes.fetch_add(1); }
    ServerTest& test;
  };
  struct Flood : ExchangeListener {
    Flood(ServerTest& owner, std::shared_ptr<Exchange> target) : test(owner), exchange(std::move(target)) {}
    void on_wake() override {
      while (exchange->pending_bytes() <= Exchange::kHighWater) {
        exchange->write(std::string(16 * 1024, 'f'));
        test.flooded.fetch_add(16 * 1024);
      }
    }
    void on_close() override { test.closes.fetch_add(1); }
    ServerTest& test;
    std::shared_ptr<Exchange> exchange;
  };

  struct Thrower : Listener {
    Thrower(ServerTest& owner, bool wake) : Listener(owner), on_wake_too(wake) {}
    void on_wake() override {
      if (on_wake_too) throw std::runtime_error("thrown by on_wake");
    }
    void on_close() override {
      Listener::on_close();
      throw std::runtime_error("thrown by on_close");
    }
    bool on_wake_too;
  };

  void handle(const std::shared_ptr<Exchange>& exchange) {
    handled.fetch_add(1);
    const Request& request = exchange->request();
    if (request.path == "/throw") throw std::runtime_error("thrown by the handler");
    if (request.path.starts_with("/throw-on")) {
      exchange->set_listener(std::make_shared<Thrower>(*this, request.path == "/throw-on-wake"));
      std::lock_guard lock(mutex);
      kept.push_back(exchange);
      exchange->wake();
      return;
    }
    if (request.path == "/drop") return;
    if (request.path == "/cut") {
      exchange->begin_stream(200, "text/plain", {});
      exchange->write("half");
      return;
    }
    if (request.path == "/stream") {
      exchange->begin_stream(200, "text/plain", {{"x-kind", "stream"}});
      for (const char* piece : {"one ", "two ", "three"}) exchange->write(piece);
      exchange->end_stream();
      return;
    }
    if (request.path == "/silent") {
      exchange->set_listener(std::make_shared<Listener>(*this));
      std::lock_guard lock(mutex);
      kept.push_back(exchange);
      return;
    }
    if (request.path == "/flood") {
      exchange->begin_stream(200, "text/plain", {});
      exchange->set_listener(std::make_shared<Flood>(*this, exchange));
      exchange->wake();
      return;
    }
    Response response{.status = 200,
                      .body = request.method + " " + request.path + "?" + request.query + "|" + request.body,
                      .content_type = "text/plain",
                      .headers = {{"x-value", std::string(request.header("X-VALUE"))}}};
    if (request.path == "/later") {
      std::lock_guard lock(mutex);
      threads.emplace_back([exchange, response] { exchange->respond(response); });
      return;
    }
    exchange->respond(std::move(response));
  }

  void start(ServerOptions options = {}) {
    options.host = "127.0.0.1";
    options.port = 0;
    auto bound = Server::bind(
        options, [this](const std::shared_ptr<Exchange>& exchange) { handle(exchange); },
        [this](const Request& request, int status, std::string_view message) {
          if (page_fails) throw std::runtime_error("thrown by the error page");
          return Response{.status = status,
                          .body = std::string(message),
                          .content_type = "text/plain",
                          .headers = {{"x-value", std::string(request.header("X-VALUE"))}}};
        },
        [this](const Request& request) -> std::optional<Response> {
          checked.fetch_add(1);
          if (request.path != "/refused") return {};
          return Response{.status = 401, .body = "who are you, " + std::string(request.header("X-VALUE")) + "?"};
        });
    ASSERT_TRUE(bound.ok()) << bound.error().message;
    server = std::move(bound).value();
    server->start();
  }

  void TearDown() override {
    server.reset();
    std::lock_guard lock(mutex);
    for (auto& thread : threads) thread.join();
    kept.clear();
  }

  // Asks for /silent, and returns the exchange that the server then keeps.
  std::shared_ptr<Exchange> silent(RawClient& client) {
    const auto count = [this] {
      std::lock_guard lock(mutex);
      return kept.size();
    };
    const std::size_t before = count();
    client.get("/silent");
    EXPECT_TRUE(eventually([&] { return count() > before; }));
    std::lock_guard lock(mutex);
    return kept.back();
  }

  template <class Predicate>
  static bool eventually(Predicate predicate, std::chrono::milliseconds wait = 5s) {
    const auto end = std::chrono::steady_clock::now() + wait;
    while (!predicate()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(1ms);
    }
    return true;
  }

  std::atomic<int> handled{0};
  std::atomic<int> checked{0};
  std::atomic<bool> page_fails{false};
  std::atomic<int> wakes{0};
  std::atomic<int> closes{0};
  std::atomic<std::size_t> flooded{0};
  std::mutex mutex;
  std::vector<std::shared_ptr<Exchange>> kept;
  std::vector<std::thread> threads;
  std::unique_ptr<Server> server;
};

TEST_F(ServerTest, AnswersRequestsOneAfterAnotherOnOneConnection) {
  start();
  RawClient client(server->port());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(client.post("/echo/a%2Fb?x=1&y", "body" + std::to_string(i)));
    const Answer answer = client.read_answer();
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body, "POST /echo/a%2Fb?x=1&y|body" + std::to_string(i));
    EXPECT_FALSE(answer.headers.contains("connection"));
    EXPECT_TRUE(answer.headers.contains("date"));
  }
  EXPECT_EQ(server->open_connections(), 1U);
}

TEST_F(ServerTest, AThreadThatHangsIsNoticed) {
  start();
  const auto becomes = [&](bool moves) { return eventually([&] { return server->moves() == moves; }); };
  EXPECT_TRUE(becomes(true));
  std::this_thread::sleep_for(50ms);
  EXPECT_TRUE(server->moves());
  RawClient client(server->port());
  {
    std::lock_guard lock(mutex);
    client.get("/later");  // its handler waits for the mutex
    ASSERT_TRUE(eventually([&] { return handled.load() == 1; }));
    server->moves();
    std::this_thread::sleep_for(50ms);
    EXPECT_FALSE(server->moves());
  }
  EXPECT_EQ(client.read_answer().status, 200);
  EXPECT_TRUE(becomes(true));
}

TEST_F(ServerTest, AnswersPipelinedRequestsInOrder) {
  start();
  RawClient client(server->port());
  std::string bytes;
  for (int i = 0; i < 50; ++i)
    bytes +=
        "GET /" + std::string(i % 3 == 0 ? "later" : "echo") + "?" + std::to_string(i) + " HTTP/1.1\r\nHost: t\r\n\r\n";
  ASSERT_TRUE(client.send(bytes));
  for (int i = 0; i < 50; ++i) EXPECT_THAT(client.read_answer().body, HasSubstr("?" + std::to_string(i) + "|")) << i;
}

TEST_F(ServerTest, KeepsPipelinedBytesBeyondItsBufferInTheSocket) {
  start({.threads = 2});
  RawClient client(server->port());
  std::thread sender([&] {
    for (int i = 0; i < 40; ++i) client.post("/later", std::string(20'000, static_cast<char>('a' + i % 26)));
  });
  for (int i = 0; i < 40; ++i) {
    const Answer answer = client.read_answer();
    ASSERT_EQ(answer.body.size(), std::string("POST /later?|").size() + 20'000) << i;
    EXPECT_EQ(answer.body.back(), static_cast<char>('a' + i % 26)) << i;
  }
  sender.join();
}

TEST_F(ServerTest, TakesRequestsByteByByte) {
  start();
  RawClient client(server->port());
  for (const char c :
       std::string("\r\nPOST /echo HTTP/1.1\r\nHost: t\r\nX-Value: v\r\nTransfer-Encoding: chunked\r\n\r\n"
                   "5;ext=1\r\nhello\r\n3\r\n, w\r\n0\r\nTrailer: x\r\n\r\n")) {
    ASSERT_TRUE(client.send({&c, 1}));
  }
  const Answer answer = client.read_answer();
  EXPECT_EQ(answer.body, "POST /echo?|hello, w");
  EXPECT_EQ(answer.headers.at("x-value"), "v");
}

TEST_F(ServerTest, StreamsInChunks) {
  start();
  RawClient client(server->port());
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(client.get("/stream"));
    const Answer answer = client.read_answer();
    EXPECT_TRUE(answer.complete);
    EXPECT_EQ(answer.body, "one two three");
    EXPECT_EQ(answer.headers.at("transfer-encoding"), "chunked");
  }
}

TEST_F(ServerTest, HeadHasTheHeadOfGetAndNoBody) {
  start();
  RawClient client(server->port());
  ASSERT_TRUE(client.send("HEAD /echo HTTP/1.1\r\nHost: t\r\n\r\n"));
  const Answer answer = client.read_answer(true);
  EXPECT_EQ(answer.headers.at("content-length"), "12");
  ASSERT_TRUE(client.send("HEAD /stream HTTP/1.1\r\nHost: t\r\n\r\n"));
  EXPECT_EQ(client.read_answer(true).headers.at("transfer-encoding"), "chunked");
  ASSERT_TRUE(client.get("/echo"));
  EXPECT_EQ(client.read_answer().body, "GET /echo?|");
}

TEST_F(ServerTest, AFaultyHeadRequestHasNoBodyEither) {
  start();
  RawClient client(server->port());
  ASSERT_TRUE(client.send("HEAD /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: x\r\n\r\n"));
  const Answer answer = client.read_answer(true);
  EXPECT_EQ(answer.status, 400);
  EXPECT_NE(answer.headers.at("content-length"), "0");
  EXPECT_TRUE(client.closed_within(2s));
  EXPECT_EQ(client.input, "");
}

TEST_F(ServerTest, SpeaksHttp10) {
  start();
  {
    RawClient client(server->port());
    ASSERT_TRUE(client.send("GET /stream HTTP/1.0\r\n\r\n"));
    const Answer answer = client.read_answer();
    EXPECT_EQ(answer.body, "one two three");
    EXPECT_FALSE(answer.headers.contains("transfer-encoding"));
  }
  RawClient client(server->port());
  ASSERT_TRUE(client.send("GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
  EXPECT_EQ(client.read_answer().headers.at("connection"), "keep-alive");
  ASSERT_TRUE(client.send("GET /echo HTTP/1.0\r\n\r\n"));
  EXPECT_EQ(client.read_answer().status, 200);
  EXPECT_TRUE(client.closed_within(2s));
}

TEST_F(ServerTest, ClosesWhenAskedTo) {
  start();
  RawClient client(server->port());
  ASSERT_TRUE(client.send("GET /echo HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"));
  EXPECT_EQ(client.read_answer().headers.at("connection"), "close");
  EXPECT_TRUE(client.closed_within(2s));
}

TEST_F(ServerTest, SaysContinueBeforeABody) {
  start();
  RawClient client(server->port());
  ASSERT_TRUE(client.send("POST /echo HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"));
  EXPECT_EQ(client.read_answer().status, 100);
  ASSERT_TRUE(client.send("body"));
  EXPECT_EQ(client.read_answer().body, "POST /echo?|body");
}

// The server's end of a client's connection, which lives in this process too.
int server_end_of(const RawClient& client) {
  for (int fd = 3; fd < 1024; ++fd) {
    sockaddr_in peer{};
    socklen_t size = sizeof(peer);
    if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0 && peer.sin_family == AF_INET &&
        ntohs(peer.sin_port) == client.local_port())
      return fd;
  }
  return -1;
}

// Adds to the answer on its way until the socket takes not one byte more. By the bare system call: the thread sanitizer
// takes descriptors for memory that the server's thread has written.
void fill_up(int fd) {
  const int small = 16 << 10;
  ::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
  const std::string more(4096, 'a');
  std::size_t size = more.size();
  for (int refused = 0; refused < 20;) {
    if (::syscall(SYS_sendto, fd, more.data(), size, MSG_DONTWAIT | MSG_NOSIGNAL, nullptr, 0) > 0) {
      refused = 0;
      continue;
    }
    if (std::exchange(size, 1) == 1) ++refused;
    std::this_thread::sleep_for(10ms);
  }
}

// A client that does not read its first answer sends a second request that wants to hear Continue, and its body
// without hearing it.
TEST_F(ServerTest, AContinueBlockedBehindAnAnswerKeepsItsTimeOut) {
  constexpr auto kTimeout = 1s;
  start({.write_timeout = kTimeout});
  for (const bool reads : {false, true}) {
    handled = closes = 0;
    RawClient client(server->port(), 4096);
    ASSERT_TRUE(client.get("/echo"));
    ASSERT_TRUE(client.has_unread());
    const int fd = server_end_of(client);
    ASSERT_GE(fd, 0);
    fill_up(fd);
    const auto taken_in = [&] {
      int unread = 0;
      return ::ioctl(fd, FIONREAD, &unread) == 0 && unread == 0;
    };
    const auto blocked = std::chrono::steady_clock::now();
    ASSERT_TRUE(client.send("POST /silent HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"));
    ASSERT_TRUE(eventually(taken_in));  // with the body it would be a request that waits for nothing
    ASSERT_TRUE(client.send("body"));
    ASSERT_TRUE(eventually([&] { return handled.load() == 2; }));
    if (reads) {
      ASSERT_TRUE(client.read_until("HTTP/1.1 100 Continue\r\n\r\n"));
      std::this_thread::sleep_for(kTimeout + 500ms);
      EXPECT_EQ(closes.load(), 0) << "the request is being answered";
      std::lock_guard lock(mutex);
      kept.back()->respond({.body = "late"});
      EXPECT_TRUE(client.read_until("late"));
    } else {
      EXPECT_TRUE(eventually([&] { return closes.load() == 1; }));
      EXPECT_GE(std::chrono::steady_clock::now() - blocked, kTimeout);
    }
  }
}

TEST_F(ServerTest, RefusesALargeBodyBeforeItIsSent) {
  start({.max_body_bytes = 1000});
  RawClient client(server->port());
  ASSERT_TRUE(client.send(
      "POST /echo HTTP/1.1\r\nHost: t\r\nX-Value: mine\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n"));
  const Answer answer = client.read_answer();
  EXPECT_EQ(answer.status, 413);
  EXPECT_EQ(answer.headers.at("x-value"), "mine");  // the page is made with the request in hand
  EXPECT_EQ(answer.headers.at("connection"), "close");
  EXPECT_EQ(handled.load(), 0);
}

// Before the client hears 100 Continue, and before a byte of the body is kept.
TEST_F(ServerTest, AHeadThatSaysEnoughIsRefusedBeforeItsBody) {
  start();
  for (const char* framing : {"Content-Length: 100000", "Transfer-Encoding: chunked"}) {
    for (const char* expect : {"Expect: 100-continue\r\n", ""}) {
      RawClient client(server->port());
      ASSERT_TRUE(client.send(std::string("POST /refused HTTP/1.1\r\nHost: t\r\nX-Value: stranger\r\n") + expect +
                              framing + "\r\n\r\n"));
      const Answer answer = client.read_answer();
      EXPECT_EQ(answer.status, 401);
      EXPECT_EQ(answer.body, "who are you, stranger?");
      EXPECT_EQ(answer.headers.at("connection"), "close");
      EXPECT_TRUE(client.closed_within(2s));
    }
  }
  EXPECT_EQ(handled.load(), 0);
  EXPECT_EQ(checked.load(), 4);
  // Once a request, and not at all where it comes whole.
  RawClient client(server->port());
  ASSERT_TRUE(client.post("/echo", "whole"));
  EXPECT_EQ(client.read_answer().status, 200);
  EXPECT_EQ(checked.load(), 4);
  ASSERT_TRUE(client.send("POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\n"));
  for (const char* piece : {"b", "o", "d", "y"}) {
    EXPECT_FALSE(client.read_some(5ms));
    ASSERT_TRUE(client.send(piece));
  }
  EXPECT_EQ(client.read_answer().body, "POST /echo?|body");
  EXPECT_EQ(checked.load(), 5);
}

TEST_F(ServerTest, A100MegabyteBodyGetsItsAnswer) {
  start();
  for (const bool chunked : {false, true}) {
    RawClient client(server->port());
    ASSERT_TRUE(client.send(std::string("POST /echo HTTP/1.1\r\nHost: t\r\n") +
                            (chunked ? "Transfer-Encoding: chunked\r\n\r\n" : "Content-Length: 104857600\r\n\r\n")));
    const std::string megabyte(1 << 20, 'x');
    for (int i = 0; i < 100; ++i) {
      if (chunked && !client.send("100000\r\n")) break;
      if (!client.send(megabyte) || (chunked && !client.send("\r\n"))) break;
    }
    EXPECT_EQ(client.read_answer().status, 413) << chunked;
    EXPECT_TRUE(client.closed_within(10s));
  }
  EXPECT_EQ(handled.load(), 0);
}

TEST_F(ServerTest, LimitsWhatAllBodiesTogetherHold) {
  constexpr std::size_t kBody = 1 << 20;
  start({.max_body_bytes = kBody, .max_total_body_bytes = 3 * kBody});
  const std::string head = "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: " + std::to_string(kBody) + "\r\n\r\n";
  const std::string most(kBody - 1, 'x');
  std::vector<std::unique_ptr<RawClient>> clients;
  int refused = 0;
  for (int i = 0; i < 6; ++i) {
    clients.push_back(std::make_unique<RawClient>(server->port()));
    clients.back()->send(head + most);
    if (clients.back()->read_some(200ms) && clients.back()->read_answer().status == 503) ++refused;
  }
  EXPECT_EQ(refused, 3);
  // Small bodies are taken all the same, even in pieces.
  RawClient small(server->port());
  ASSERT_TRUE(small.send("POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nbo"));
  EXPECT_FALSE(small.read_some(20ms));
  ASSERT_TRUE(small.send("dy"));
  EXPECT_EQ(small.read_answer().body, "POST /echo?|body");
  // Bodies that have arrived, and clients that have gone, make room.
  ASSERT_TRUE(clients[0]->send("x"));
  EXPECT_EQ(clients[0]->read_answer().status, 200);
  clients.clear();
  ASSERT_TRUE(eventually([&] { return server->open_connections() == 1; }));
  RawClient later(server->port());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(later.send(head + most + "x"));
    EXPECT_EQ(later.read_answer().status, 200) << i;
  }
}

// What is made of a body may take as much as it did.
TEST_F(ServerTest, BodiesCountUntilTheirExchangesEnd) {
  constexpr std::size_t kBody = 1 << 20;
  start({.max_body_bytes = kBody, .max_total_body_bytes = 3 * kBody});
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<RawClient>(server->port()));
    ASSERT_TRUE(clients.back()->post("/silent", std::string(kBody, 'x')));
    ASSERT_TRUE(eventually([&] { return handled.load() == i + 1; }));
  }
  const auto ask = [&] {
    RawClient client(server->port());
    client.post("/echo", std::string(kBody, 'x'));
    return client.read_answer().status;
  };
  {
    std::lock_guard lock(mutex);
    for (const auto& exchange : kept) std::string().swap(exchange->request().body);
  }
  EXPECT_EQ(ask(), 503);
  {
    std::lock_guard lock(mutex);
    kept.pop_back();
  }
  EXPECT_EQ(ask(), 200);
  EXPECT_EQ(ask(), 200);
}

TEST_F(ServerTest, RefusesLongHeaders) {
  start({.max_header_bytes = 4096});
  for (const std::string& bytes :
       {"GET /echo HTTP/1.1\r\nHost: t\r\nX: " + std::string(5000, 'x') + "\r\n\r\n",
        "GET /" + std::string(5000, 'x') + " HTTP/1.1\r\nHost: t\r\n\r\n", "GET /echo HTTP/1.1\r\n" + [] {
          std::string many;
          for (int i = 0; i < 200; ++i) many += "a: b\r\n";
          return many;
        }() + "\r\n"}) {
    RawClient client(server->port());
    client.send(bytes);
    EXPECT_EQ(client.read_answer().status, 431);
    EXPECT_TRUE(client.closed_within(2s));
  }
}

struct Malformed {
  const char* name;
  std::string bytes;
  int status = 400;
};

class MalformedTest : public ServerTest, public ::testing::WithParamInterface<Malformed> {};

// What two parsers on the way could read differently is refused, and the connection ends: where the next request would
// begin is not certain.
TEST_P(MalformedTest, IsRefusedAndTheConnectionEnds) {
  start();
  RawClient client(server->port());
  ASSERT_TRUE(client.send(GetParam().bytes + "GET /smuggled HTTP/1.1\r\nHost: t\r\n\r\n"));
  EXPECT_EQ(client.read_answer().status, GetParam().status);
  EXPECT_TRUE(client.closed_within(2s));
  EXPECT_EQ(client.input, "");
  EXPECT_EQ(handled.load(), 0);
}

const std::string kPost = "POST /echo HTTP/1.1\r\nHost: t\r\n";
INSTANTIATE_TEST_SUITE_P(
    Framing, MalformedTest,
    ::testing::Values(
        Malformed{"BothLengths", kPost + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
        Malformed{"BothLengthsReversed", kPost + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"},
        Malformed{"TwoLengths", kPost + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd"},
        Malformed{"TwoEqualLengths", kPost + "Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd"},
        Malformed{"ListOfLengths", kPost + "Content-Length: 4, 4\r\n\r\nabcd"},
        Malformed{"NegativeLength", kPost + "Content-Length: -4\r\n\r\n"},
        Malformed{"SignedLength", kPost + "Content-Length: +4\r\n\r\nabcd"},
        Malformed{"HexLength", kPost + "Content-Length: 0x4\r\n\r\nabcd"},
        Malformed{"HugeLength", kPost + "Content-Length: 99999999999999999999999\r\n\r\n"},
        Malformed{"EmptyLength", kPost + "Content-Length:\r\n\r\n"},
        Malformed{"OtherCoding", kPost + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
        Malformed{"UnknownCoding", kPost + "Transfer-Encoding: identity\r\n\r\n"},
        Malformed{"CodingTwice", kPost + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
        Malformed{"CodingOnHttp10", "POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
        Malformed{"FoldedHeader", kPost + "X: a\r\n b\r\n\r\n"},
        Malformed{"FoldedCoding", kPost + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"},
        Malformed{"BlankBeforeColon", kPost + "Content-Length : 4\r\n\r\nabcd"},
        Malformed{"BareLineFeed", "POST /echo HTTP/1.1\nHost: t\n\n"},
        Malformed{"ControlInValue", kPost + std::string("X: a\0b\r\n\r\n", 10)},
        Malformed{"NoHost", "GET /echo HTTP/1.1\r\n\r\n"},
        Malformed{"TwoHosts", "GET /echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"},
        Malformed{"BadChunkSize", kPost + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n"},
        Malformed{"NegativeChunkSize", kPost + "Transfer-Encoding: chunked\r\n\r\n-1\r\n"},
        Malformed{"HugeChunkSize", kPost + "Transfer-Encoding: chunked\r\n\r\n1ffffffffffffffff\r\n"},
        Malformed{"LongChunkHeader", kPost + "Transfer-Encoding: chunked\r\n\r\n1;" + std::string(5000, 'x')},
        Malformed{"LongChunkHeaderAtOnce",
                  kPost + "Transfer-Encoding: chunked\r\n\r\n1;" + std::string(5000, 'x') + "\r\na\r\n0\r\n\r\n"},
        Malformed{"BlankInTarget", "GET /a b HTTP/1.1\r\nHost: t\r\n\r\n"},
        Malformed{"ChunkTooLong", kPost + "Transfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n"},
        Malformed{"HugeChunk", kPost + "Transfer-Encoding: chunked\r\n\r\n7fffffff\r\n", 413},
        Malformed{"Garbage", std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 15)},
        Malformed{"NotAPath", "GET echo HTTP/1.1\r\nHost: t\r\n\r\n"},
        Malformed{"Version2", "GET /echo HTTP/2.0\r\nHost: t\r\n\r\n", 505}),
    [](const auto& each) { return each.param.name; });

TEST_F(ServerTest, SlowHeadersAndBodiesAreCutOff) {
  start({.header_timeout = 100ms, .body_timeout = 200ms});
  RawClient slow_head(server->port());
  RawClient slow_body(server->port());
  ASSERT_TRUE(slow_head.send("GET /echo HT"));
  ASSERT_TRUE(slow_body.send(kPost + "Content-Length: 10\r\n\r\nabc"));
  EXPECT_EQ(slow_head.read_answer().status, 408);
  EXPECT_EQ(slow_body.read_answer().status, 408);
  EXPECT_TRUE(slow_head.closed_within(2s));
  EXPECT_TRUE(slow_body.closed_within(2s));

  // Dripping does not help.
  RawClient dripping(server->port());
  const auto begin = std::chrono::steady_clock::now();
  while (dripping.send("G") && dripping.input.empty()) dripping.read_some(20ms);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 3s);
  EXPECT_EQ(handled.load(), 0);
}

TEST_F(ServerTest, IdleConnectionsAreClosed) {
  start({.idle_timeout = 100ms});
  RawClient fresh(server->port());
  RawClient used(server->port());
  ASSERT_TRUE(used.get("/echo"));
  EXPECT_EQ(used.read_answer().status, 200);
  EXPECT_TRUE(fresh.closed_within(3s));
  EXPECT_TRUE(used.closed_within(3s));
  EXPECT_TRUE(eventually([&] { return server->open_connections() == 0; }));
}

TEST_F(ServerTest, ARunningRequestIsNotIdle) {
  start({.header_timeout = 50ms, .idle_timeout = 50ms});
  RawClient client(server->port());
  const auto exchange = silent(client);
  EXPECT_FALSE(client.closed_within(400ms));
  exchange->respond({.body = "late"});
  EXPECT_EQ(client.read_answer().body, "late");
}

TEST_F(ServerTest, AClientThatGoesAwayIsNoticedAtOnce) {
  start();
  for (const bool pipelined : {false, true}) {
    closes = 0;
    std::shared_ptr<Exchange> exchange;
    {
      RawClient client(server->port());
      exchange = silent(client);
      if (pipelined) {
        ASSERT_TRUE(client.get("/echo"));
        // More than the server takes in: the end of the connection lies behind bytes that nobody reads.
        ASSERT_TRUE(client.send(std::string(150'000, 'x')));
      }
      EXPECT_EQ(closes.load(), 0);
    }
    EXPECT_TRUE(eventually([&] { return closes.load() == 1; }, 2s)) << pipelined;
    EXPECT_TRUE(exchange->closed());
    exchange->respond({.body = "nobody reads this"});
  }
  EXPECT_TRUE(eventually([&] { return server->open_connections() <= 2; }));
}

TEST_F(ServerTest, AListenerThatComesLateIsToldAtOnce) {
  start();
  std::shared_ptr<Exchange> exchange;
  {
    RawClient client(server->port());
    exchange = silent(client);
  }
  ASSERT_TRUE(eventually([&] { return closes.load() == 1; }));
  exchange->set_listener(std::make_shared<Listener>(*this));
  EXPECT_EQ(closes.load(), 2);
}

TEST_F(ServerTest, AClientThatDoesNotReadIsBoundedAndThenClosed) {
  start({.write_timeout = 300ms});
  RawClient client(server->port(), 4096);
  ASSERT_TRUE(client.get("/flood"));
  EXPECT_TRUE(eventually([&] { return closes.load() == 1; }, 10s));
  // What the kernel's buffers took, and no more than the high-water mark beyond.
  EXPECT_LT(flooded.load(), 16U << 20);
}

// Every one of them stays below the limit of one answer.
TEST_F(ServerTest, SlowReadersTogetherAreBoundedAndTheLargestIsCut) {
  constexpr std::size_t kMegabyte = 1 << 20;
  start({.threads = 2, .max_unsent_bytes = 45 * kMegabyte});
  std::vector<std::unique_ptr<RawClient>> clients;
  std::vector<std::shared_ptr<Exchange>> exchanges;
  const auto add = [&](std::size_t megabytes) {
    clients.push_back(std::make_unique<RawClient>(server->port(), 4096));
    exchanges.push_back(silent(*clients.back()));
    exchanges.back()->begin_stream(200, "text/plain", {});
    exchanges.back()->write("first");
    ASSERT_TRUE(clients.back()->read_until("first"));
    // The kernel's buffers take the first few megabytes.
    exchanges.back()->write(std::string(8 * kMegabyte, 'x'));
    ASSERT_TRUE(eventually([&] { return exchanges.back()->pending_bytes() < 8 * kMegabyte; }));
    for (std::size_t i = 0; i < megabytes; ++i) exchanges.back()->write(std::string(kMegabyte, 'x'));
  };
  add(1);
  add(12);
  add(5);
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(closes.load(), 0);
  add(6);
  EXPECT_TRUE(eventually([&] { return closes.load() == 1; }));
  EXPECT_TRUE(exchanges[1]->closed());
  for (const std::size_t i : {0, 2, 3}) EXPECT_FALSE(exchanges[i]->closed()) << i;
  // Who reads at last gets everything, and makes room.
  exchanges[2]->end_stream();
  const Answer whole = clients[2]->read_answer();
  EXPECT_TRUE(whole.complete);
  EXPECT_EQ(whole.body.size(), 5 + 13 * kMegabyte);
  for (int i = 0; i < 16; ++i) exchanges[0]->write(std::string(kMegabyte, 'x'));
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(closes.load(), 1);
  // A finished answer counts, and is cut like any other.
  exchanges[0]->end_stream();
  for (int i = 0; i < 8; ++i) exchanges[3]->write(std::string(kMegabyte, 'x'));
  EXPECT_TRUE(eventually([&] { return exchanges[0]->closed(); }));
  EXPECT_FALSE(exchanges[3]->closed());
}

TEST_F(ServerTest, AFloodFlowsWhileItIsRead) {
  start({.write_timeout = 300ms});
  RawClient client(server->port());
  ASSERT_TRUE(client.get("/flood"));
  std::size_t received = 0;
  while (received < (64U << 20) && client.read_some()) {
    received += client.input.size();
    client.input.clear();
  }
  EXPECT_GE(received, 64U << 20);
  EXPECT_EQ(closes.load(), 0);
}

TEST_F(ServerTest, ManyWakesBecomeFew) {
  start();
  RawClient client(server->port());
  const auto exchange = silent(client);
  for (int i = 0; i < 100'000; ++i) exchange->wake();
  EXPECT_TRUE(eventually([&] { return wakes.load() >= 1; }));
  EXPECT_LT(wakes.load(), 90'000);
  exchange->respond({});
}

TEST_F(ServerTest, AForgottenExchangeGets500AndAForgottenStreamIsCut) {
  start();
  RawClient client(server->port());
  ASSERT_TRUE(client.get("/drop"));
  EXPECT_EQ(client.read_answer().status, 500);
  ASSERT_TRUE(client.get("/echo"));
  EXPECT_EQ(client.read_answer().status, 200);
  ASSERT_TRUE(client.get("/cut"));
  const Answer cut = client.read_answer();
  EXPECT_FALSE(cut.complete);
}

// Whatever is thrown ends one connection, and the next request is served.
TEST_F(ServerTest, FaultsEndTheirConnectionOnly) {
  log::set_level(log::Level::off);
  start({.header_timeout = 100ms});
  const auto still_serves = [&] {
    RawClient client(server->port());
    client.get("/echo");
    return client.read_answer().status == 200;
  };
  {
    RawClient client(server->port());
    ASSERT_TRUE(client.get("/throw"));
    EXPECT_EQ(client.read_answer().status, 500);
  }
  {
    RawClient client(server->port());
    ASSERT_TRUE(client.get("/throw-on-wake"));
    EXPECT_TRUE(client.closed_within(2s));
    EXPECT_TRUE(eventually([&] { return closes.load() == 1; }));
    EXPECT_TRUE(still_serves());
  }
  {
    RawClient client(server->port());
    ASSERT_TRUE(client.get("/throw-on-close"));
    ASSERT_TRUE(eventually([&] { return handled.load() == 4; }));
  }
  EXPECT_TRUE(eventually([&] { return closes.load() == 2; }));
  EXPECT_TRUE(still_serves());

  page_fails = true;
  for (const std::string_view bytes : {
           "GET /throw HTTP/1.1\r\nHost: t\r\n\r\n",  // inside the read
           "GET /drop HTTP/1.1\r\nHost: t\r\n\r\n",   // inside the exchange's destructor
           "GET echo HTTP/1.1\r\nHost: t\r\n\r\n",    // inside the parser's fault
           "GET /echo HT",                            // inside the timer
       }) {
    RawClient client(server->port());
    ASSERT_TRUE(client.send(bytes));
    EXPECT_TRUE(client.closed_within(2s)) << bytes;
    EXPECT_EQ(client.input, "");
    EXPECT_TRUE(still_serves());
  }
  {
    // On a thread that is not the server's.
    RawClient client(server->port());
    auto exchange = silent(client);
    {
      std::lock_guard lock(mutex);
      kept.clear();
    }
    exchange.reset();
    EXPECT_TRUE(client.closed_within(2s));
  }
  EXPECT_TRUE(still_serves());
  // And the end of it all.
  RawClient last(server->port());
  ASSERT_TRUE(last.get("/throw-on-close"));
  ASSERT_TRUE(eventually([&] {
    std::lock_guard lock(mutex);
    return !kept.empty();
  }));
  server.reset();
  log::set_level(log::Level::info);
}

// A client that closes its side alone cannot be told from one that has gone, until something is sent to it. An answer
// that is complete goes out; a model does not go on computing for it.
TEST_F(ServerTest, AHalfClosedConnectionGetsWhatIsCompleteAndNoMore) {
  start();
  for (const bool together : {true, false}) {
    RawClient client(server->port());
    ASSERT_TRUE(client.get("/echo"));
    if (!together) {
      ASSERT_TRUE(client.read_until("\r\n\r\n"));
    }
    client.shut_writing();
    EXPECT_EQ(client.read_answer().body, "GET /echo?|");
    EXPECT_TRUE(client.closed_within(2s));
  }
  {
    // An answer that is complete, but too long for the socket at once.
    RawClient client(server->port(), 4096);
    const auto exchange = silent(client);
    exchange->respond({.body = std::string(16 << 20, 'x')});
    client.shut_writing();
    EXPECT_EQ(client.read_answer().body.size(), 16U << 20);
  }
  RawClient client(server->port());
  const auto exchange = silent(client);
  client.shut_writing();
  EXPECT_TRUE(client.closed_within(2s));
  EXPECT_TRUE(eventually([&] { return closes.load() == 1; }));
  EXPECT_TRUE(exchange->closed());
}

TEST_F(ServerTest, HeaderValuesCannotMakeHeaders) {
  start();
  RawClient client(server->port());
  ASSERT_TRUE(client.send("GET /echo HTTP/1.1\r\nHost: t\r\nX-Value: a\tb\r\n\r\n"));
  EXPECT_EQ(client.read_answer().headers.at("x-value"), "a b");
}

TEST_F(ServerTest, WhereAllConnectionsAreBusyANewcomerIsRefused) {
  start({.max_connections = 2});
  RawClient first(server->port());
  RawClient second(server->port());
  silent(first);
  silent(second);
  {
    RawClient third(server->port());
    EXPECT_EQ(third.read_answer().status, 503);
    EXPECT_TRUE(third.closed_within(2s));
  }
  EXPECT_EQ(closes.load(), 0);
  first.close();
  ASSERT_TRUE(eventually([&] { return server->open_connections() == 1; }));
  RawClient fourth(server->port());
  ASSERT_TRUE(fourth.get("/echo"));
  EXPECT_EQ(fourth.read_answer().status, 200);
}

TEST_F(ServerTest, TheConnectionThatIsIdleLongestGivesWay) {
  start({.threads = 2, .max_connections = 4});
  RawClient busy(server->port());
  silent(busy);
  RawClient half(server->port());
  ASSERT_TRUE(half.send("GET /echo HTTP/1.1\r\nHost:"));
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < 2; ++i) {
    idle.push_back(std::make_unique<RawClient>(server->port()));
    ASSERT_TRUE(idle.back()->get("/echo"));
    EXPECT_EQ(idle.back()->read_answer().status, 200);
    std::this_thread::sleep_for(5ms);
  }
  // What counts is the time since the last answer, not since the connection was made.
  ASSERT_TRUE(idle[0]->get("/echo"));
  EXPECT_EQ(idle[0]->read_answer().status, 200);

  RawClient newcomer(server->port());
  const auto exchange = silent(newcomer);
  EXPECT_TRUE(idle[1]->closed_within(2s));
  EXPECT_FALSE(idle[0]->closed_within(50ms));
  RawClient second(server->port());
  silent(second);
  EXPECT_TRUE(idle[0]->closed_within(2s));
  // With nobody idle it is the one that has not sent its first head.
  EXPECT_FALSE(half.closed_within(50ms));
  RawClient third(server->port());
  silent(third);
  EXPECT_TRUE(half.closed_within(2s));
  EXPECT_EQ(half.input, "");
  // All that is left is busy, and stays.
  RawClient refused(server->port());
  EXPECT_EQ(refused.read_answer().status, 503);
  EXPECT_EQ(closes.load(), 0);
  exchange->respond({.body = "still here"});
  EXPECT_EQ(newcomer.read_answer().body, "still here");
}

TEST_F(ServerTest, AFloodOfSilentConnectionsKeepsNobodyOut) {
  for (const std::size_t limit : {std::size_t{1}, std::size_t{2}, std::size_t{20}}) {
    for (const int io_threads : {1, 2, 4}) {
      start({.threads = io_threads, .max_connections = limit});
      std::vector<std::unique_ptr<RawClient>> flood;
      for (int i = 0; i < 100; ++i) flood.push_back(std::make_unique<RawClient>(server->port()));
      // A newcomer may be out of luck until the threads have closed what the flood has left over; not for long.
      for (int i = 0; i < 20; ++i) {
        const auto served = [&] {
          RawClient client(server->port());
          return client.get("/echo") && client.read_answer().status == 200;
        };
        ASSERT_TRUE(eventually(served, 10s)) << limit << " connections, " << io_threads << " threads, " << i;
      }
      EXPECT_LE(server->open_connections(), 2 * limit + 1) << io_threads << " threads";
      server.reset();
    }
  }
}

TEST_F(ServerTest, AFloodOfHalfRequestsKeepsNobodyOut) {
  for (const char* half :
       {"GET /echo HTTP/1.1\r\nHost:", "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nhalf"}) {
    start({.max_connections = 10});
    std::vector<std::unique_ptr<RawClient>> flood;
    RawClient busy(server->port());
    const auto exchange = silent(busy);
    for (int i = 0; i < 9; ++i) {
      flood.push_back(std::make_unique<RawClient>(server->port()));
      ASSERT_TRUE(flood.back()->get("/echo"));
      EXPECT_EQ(flood.back()->read_answer().status, 200);
      ASSERT_TRUE(flood.back()->send(half));
      EXPECT_FALSE(flood.back()->read_some(5ms));
    }
    RawClient client(server->port());
    ASSERT_TRUE(client.get("/echo"));
    EXPECT_EQ(client.read_answer().status, 200) << half;
    EXPECT_TRUE(flood.front()->closed_within(2s));
    EXPECT_FALSE(flood.back()->closed_within(20ms));
    exchange->respond({.body = "still here"});
    EXPECT_EQ(busy.read_answer().body, "still here");
  }
}

TEST_F(ServerTest, AClientThatGoesAfterABlockedWriteIsNoticed) {
  start();
  auto client = std::make_unique<RawClient>(server->port(), 4096);
  const auto exchange = silent(*client);
  exchange->begin_stream(200, "text/plain", {});
  for (int i = 0; i < 300; ++i) exchange->write(std::string(30'000, 'x'));
  ASSERT_TRUE(eventually([&] { return exchange->pending_bytes() > 0; }));
  // More of later requests than the server reads ahead.
  for (int i = 0; i < 12; ++i) client->send(std::string(8192, 'G'));
  while (exchange->pending_bytes() > 0) ASSERT_TRUE(client->read_some(1s));
  client.reset();
  EXPECT_TRUE(eventually([&] { return closes.load() == 1; }, 3s));
}

TEST_F(ServerTest, DrainingDoesNotWaitForHalfARequest) {
  start();
  RawClient half(server->port());
  ASSERT_TRUE(half.send("POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\nhalf"));
  EXPECT_EQ(half.read_answer().status, 100);  // by then it has been taken up
  EXPECT_TRUE(server->drain(10s));
  EXPECT_EQ(half.read_answer().status, 503);
  EXPECT_EQ(handled.load(), 0);
}

TEST_F(ServerTest, DrainingLetsRunningRequestsFinish) {
  start();
  RawClient idle(server->port());
  RawClient busy(server->port());
  ASSERT_TRUE(idle.get("/echo"));
  EXPECT_EQ(idle.read_answer().status, 200);
  const auto exchange = silent(busy);
  EXPECT_FALSE(server->drain(50ms));
  EXPECT_TRUE(idle.closed_within(2s));
  std::thread drainer([&] { EXPECT_TRUE(server->drain(10s)); });
  std::this_thread::sleep_for(20ms);
  exchange->respond({.body = "done"});
  const Answer answer = busy.read_answer();
  EXPECT_EQ(answer.body, "done");
  EXPECT_EQ(answer.headers.at("connection"), "close");
  EXPECT_TRUE(busy.closed_within(2s));
  drainer.join();
  RawClient late(server->port());
  EXPECT_TRUE(!late.connected() || late.closed_within(2s));
}

TEST_F(ServerTest, AnnouncesTheEndOnEveryAnswer) {
  start();
  RawClient client(server->port());
  server->close_connections_after_answers();
  ASSERT_TRUE(client.get("/stream"));
  EXPECT_EQ(client.read_answer().headers.at("connection"), "close");
  EXPECT_TRUE(client.closed_within(2s));
}

TEST_F(ServerTest, ExchangesMayOutliveTheServer) {
  start();
  RawClient client(server->port());
  const auto exchange = silent(client);
  server.reset();
  EXPECT_EQ(closes.load(), 1);
  exchange->wake();
  exchange->respond({.body = "too late"});
}

TEST_F(ServerTest, ManyClientsOnSeveralThreads) {
  start({.threads = 3});
  std::vector<std::thread> clients;
  std::atomic<int> good{0};
  for (int c = 0; c < 8; ++c) {
    clients.emplace_back([&, c] {
      RawClient client(server->port());
      for (int i = 0; i < 200; ++i) {
        const std::string body = std::to_string(c * 1000 + i);
        client.post(i % 2 == 0 ? "/echo" : "/stream", body);
        const Answer answer = client.read_answer();
        if (answer.complete && (i % 2 != 0 || answer.body.ends_with("|" + body))) good.fetch_add(1);
      }
    });
  }
  for (auto& client : clients) client.join();
  EXPECT_EQ(good.load(), 1600);
}

TEST_F(ServerTest, BindErrorsSayWhere) {
  start();
  const auto handler = [](const std::shared_ptr<Exchange>&) {};
  const auto page = [](const Request&, int status, std::string_view) { return Response{.status = status}; };
  const auto taken = Server::bind({.host = "127.0.0.1", .port = server->port()}, handler, page);
  ASSERT_FALSE(taken.ok());
  EXPECT_THAT(taken.error().message, HasSubstr("127.0.0.1:" + std::to_string(server->port())));
  EXPECT_THAT(taken.error().message, HasSubstr("another program"));
  const auto nowhere = Server::bind({.host = "not an address", .port = 1}, handler, page);
  ASSERT_FALSE(nowhere.ok());
  EXPECT_THAT(nowhere.error().message, HasSubstr("not an address"));
  const auto foreign = Server::bind({.host = "192.0.2.1", .port = 0}, handler, page);
  ASSERT_FALSE(foreign.ok());
}

}  // namespace
}  // namespace xgen::http
