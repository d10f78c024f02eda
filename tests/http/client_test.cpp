#include "http/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <mutex>
#include <optional>
#include <thread>

#include "http/server.h"
#include "support/raw_server.h"

namespace xgen::http {
namespace {

using namespace std::chrono_literals;
using scripted::each_request;
using scripted::RawConnection;
using scripted::RawRequest;
using scripted::RawServer;
using ::testing::HasSubstr;
using Phase = CallEnd::Phase;

// Notes what a call tells, and counts what it must not.
struct Recorder : CallListener {
  void on_head(ResponseHead given) override {
    std::lock_guard lock(mutex);
    ++callbacks;
    EXPECT_FALSE(head.has_value());
    EXPECT_FALSE(end.has_value());
    head = std::move(given);
    changed.notify_all();
  }
  void on_body(std::string_view chunk) override {
    std::lock_guard lock(mutex);
    ++callbacks;
    EXPECT_TRUE(head.has_value());
    EXPECT_FALSE(end.has_value());
    body += chunk;
    changed.notify_all();
  }
  void on_end(CallEnd given) override {
    std::lock_guard lock(mutex);
    ++callbacks;
    EXPECT_FALSE(end.has_value()) << "a second end";
    end = std::move(given);
    changed.notify_all();
  }
  template <class Ready>
  bool wait(Ready ready, std::chrono::milliseconds limit = 10s) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, limit, ready);
  }
  bool wait_end() {
    return wait([this] { return end.has_value(); });
  }
  bool wait_body(std::size_t size) {
    return wait([&] { return body.size() >= size; });
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::optional<ResponseHead> head;
  std::string body;
  std::optional<CallEnd> end;
  int callbacks = 0;
};

ClientRequest request_for(const RawServer& server, std::string_view path = "/") {
  ClientRequest request;
  request.url = *parse_url(server.url(path));
  return request;
}

// The whole answer to one request.
std::shared_ptr<Recorder> call(Client& client, ClientRequest request) {
  auto recorder = std::make_shared<Recorder>();
  const auto handle = client.start(std::move(request), recorder);
  EXPECT_TRUE(recorder->wait_end());
  return recorder;
}

TEST(HttpClient, SendsTheRequestAndReadsACountedBody) {
  RawRequest seen;
  RawServer server([&](RawConnection& connection) {
    seen = connection.read_request();
    connection.answer("hello", "200 OK", "X-Kind: test\r\n");
    connection.closed_within(10s);
  });
  Client client;
  ClientRequest request = request_for(server, "/path?x=1");
  request.method = "POST";
  request.headers = {{"Content-Type", "text/plain"}};
  request.body = "the body";
  const auto got = call(client, request);
  ASSERT_TRUE(got->end->status.ok()) << got->end->status.error().message;
  EXPECT_EQ(got->end->phase, Phase::done);
  EXPECT_EQ(got->head->status, 200);
  EXPECT_EQ(got->head->header("x-kind"), "test");
  EXPECT_EQ(got->body, "hello");
  EXPECT_EQ(seen.line, "POST /path?x=1 HTTP/1.1");
  EXPECT_EQ(seen.headers["host"], "127.0.0.1:" + std::to_string(server.port()));
  EXPECT_EQ(seen.headers["user-agent"], "xgen-model");
  EXPECT_EQ(seen.headers["content-type"], "text/plain");
  EXPECT_EQ(seen.body, "the body");
}

// As one of several servers behind a name: the name stays what it is everywhere else.
TEST(HttpClient, ConnectsToAGivenAddress) {
  std::mutex mutex;
  std::vector<std::string> hosts;
  RawServer server(each_request([&](RawConnection& connection, const RawRequest& request) {
    std::lock_guard lock(mutex);
    hosts.push_back(request.headers.at("host"));
    connection.answer(std::to_string(connection.number));
  }));
  Client client;
  ClientRequest request = request_for(server);
  request.url.host = "pods.test";
  request.url.address = "127.0.0.1";
  const std::string port = std::to_string(server.port());
  EXPECT_EQ(call(client, request)->body, "0");
  EXPECT_EQ(call(client, request)->body, "0");  // and is kept
  EXPECT_EQ(hosts, (std::vector<std::string>{"pods.test:" + port, "pods.test:" + port}));
  // What is kept for one address is not taken for another.
  request.url.address = "127.0.0.2";
  const auto elsewhere = call(client, request);
  ASSERT_FALSE(elsewhere->end->status.ok());
  EXPECT_EQ(elsewhere->end->phase, Phase::connecting);
  EXPECT_EQ(elsewhere->end->status.error().message,
            "http://pods.test:" + port + ": cannot connect to 127.0.0.2: Connection refused");
  request.url.address.clear();
  EXPECT_FALSE(call(client, request)->end->status.ok());  // nobody knows the name
}

TEST(HttpClient, LooksUpAddresses) {
  Client client;
  const auto look = [&client](const std::string& host) {
    std::promise<Client::Addresses> found;
    client.resolve(host, [&](Client::Addresses addresses) { found.set_value(std::move(addresses)); });
    return found.get_future().get();
  };
  EXPECT_EQ(*look("127.0.0.9"), (std::vector<std::string>{"127.0.0.9"}));
  EXPECT_EQ(*look("::1"), (std::vector<std::string>{"::1"}));
  EXPECT_THAT(*look("localhost"), ::testing::Contains(::testing::AnyOf("127.0.0.1", "::1")));
  const auto none = look("nobody.invalid");
  ASSERT_FALSE(none.ok());
  // Whether there is a name server decides which.
  EXPECT_THAT(none.error().code, ::testing::AnyOf(ErrorCode::not_found, ErrorCode::unavailable));
  EXPECT_THAT(none.error().message, HasSubstr("nobody.invalid: "));
}

TEST(HttpClient, PassesChunksOnAsTheyCome) {
  std::atomic<int> step{0};
  RawServer server([&](RawConnection& connection) {
    connection.read_request();
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhel");
    while (step.load() < 1) std::this_thread::sleep_for(1ms);
    connection.send("lo");  // what belongs to the chunk is passed on, although its end has not come
    while (step.load() < 2) std::this_thread::sleep_for(1ms);
    connection.send("\r\n6\r\n world\r\n0\r\nX-Trailer: x\r\n\r\n");
    connection.closed_within(10s);
  });
  Client client;
  auto got = std::make_shared<Recorder>();
  const auto handle = client.start(request_for(server), got);
  ASSERT_TRUE(got->wait_body(3));
  step = 1;
  ASSERT_TRUE(got->wait_body(5));
  step = 2;
  ASSERT_TRUE(got->wait_end());
  EXPECT_TRUE(got->end->status.ok());
  EXPECT_EQ(got->body, "hello world");
}

TEST(HttpClient, ReadsABodyThatEndsWithTheConnection) {
  RawServer server([&](RawConnection& connection) {
    connection.read_request();
    connection.send("HTTP/1.0 200 OK\r\n\r\nto the end");
  });
  Client client;
  const auto got = call(client, request_for(server));
  ASSERT_TRUE(got->end->status.ok()) << got->end->status.error().message;
  EXPECT_EQ(got->body, "to the end");
  EXPECT_EQ(client.counts().idle, 0U);
}

TEST(HttpClient, ReadsPastInterimAnswersAndAnswersWithoutABody) {
  RawServer server(each_request([](RawConnection& connection, const RawRequest& request) {
    if (request.line.starts_with("HEAD"))
      connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
    else if (request.line.starts_with("DELETE"))
      connection.send("HTTP/1.1 204 No Content\r\n\r\n");
    else
      connection.send(
          "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: "
          "2\r\n\r\nok");
  }));
  Client client;
  ClientRequest request = request_for(server);
  EXPECT_EQ(call(client, request)->body, "ok");
  request.method = "HEAD";
  auto got = call(client, request);
  EXPECT_TRUE(got->end->status.ok());
  EXPECT_EQ(got->body, "");
  request.method = "DELETE";
  got = call(client, request);
  EXPECT_TRUE(got->end->status.ok());
  EXPECT_EQ(got->head->status, 204);
  EXPECT_EQ(server.accepted(), 1);  // all on one connection
}

TEST(HttpClient, KeepsConnectionsAndReusesThem) {
  RawServer server(each_request([](RawConnection& connection, const RawRequest&) { connection.answer("ok"); }));
  Client client;
  for (int i = 0; i < 5; ++i) EXPECT_EQ(call(client, request_for(server))->body, "ok");
  EXPECT_EQ(server.accepted(), 1);
  EXPECT_EQ(client.counts().opened, 1U);
  EXPECT_EQ(client.counts().reused, 4U);
  EXPECT_EQ(client.counts().idle, 1U);
  EXPECT_EQ(client.counts().running, 0U);
}

TEST(HttpClient, DoesNotReuseWhatTheServerCloses) {
  RawServer server(each_request([](RawConnection& connection, const RawRequest&) {
    connection.answer("ok", "200 OK", "Connection: close\r\n");
  }));
  Client client;
  EXPECT_EQ(call(client, request_for(server))->body, "ok");
  EXPECT_EQ(call(client, request_for(server))->body, "ok");
  EXPECT_EQ(server.accepted(), 2);
}

TEST(HttpClient, DoesNotReuseAConnectionWithBytesBehindTheAnswer) {
  RawServer server(each_request([](RawConnection& connection, const RawRequest&) {
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
  }));
  Client client;
  EXPECT_EQ(call(client, request_for(server))->body, "ok");
  EXPECT_EQ(call(client, request_for(server))->body, "ok");
  EXPECT_EQ(server.accepted(), 2);
}

TEST(HttpClient, ReplacesAKeptConnectionThatTheServerClosedOnce) {
  std::atomic<int> requests{0};
  // The first connection answers once and closes when the second request comes.
  RawServer server([&](RawConnection& connection) {
    connection.read_request();
    requests.fetch_add(1);
    connection.answer("first");
    if (connection.number == 0) {
      connection.read_some();  // the next request, unread, is dropped
      connection.reset();
      return;
    }
    connection.closed_within(10s);
  });
  Client client;
  EXPECT_EQ(call(client, request_for(server))->body, "first");
  const auto got = call(client, request_for(server));
  ASSERT_TRUE(got->end->status.ok()) << got->end->status.error().message;
  EXPECT_EQ(client.counts().retried, 1U);
  EXPECT_EQ(requests.load(), 2);
}

TEST(HttpClient, ReplacesNoConnectionWhereThatIsNotWanted) {
  RawServer server([&](RawConnection& connection) {
    connection.read_request();
    connection.answer("first");
    connection.read_request();
  });
  Client client;
  EXPECT_EQ(call(client, request_for(server))->body, "first");
  ClientRequest request = request_for(server);
  request.retry_closed = false;
  const auto got = call(client, std::move(request));
  EXPECT_EQ(got->end->status.error().code, ErrorCode::unavailable);
  EXPECT_EQ(server.accepted(), 1);
  EXPECT_EQ(client.counts().retried, 0U);
}

TEST(HttpClient, DoesNotRepeatARequestOnANewConnectionOrAfterTheFirstByte) {
  std::atomic<int> requests{0};
  RawServer server([&](RawConnection& connection) {
    connection.read_request();
    requests.fetch_add(1);
    connection.close();
  });
  Client client;
  auto got = call(client, request_for(server));
  EXPECT_EQ(got->end->status.error().code, ErrorCode::unavailable);
  EXPECT_THAT(got->end->status.error().message, HasSubstr("no answer"));
  EXPECT_EQ(got->end->phase, Phase::waiting);
  EXPECT_EQ(requests.load(), 1);

  RawServer half([&](RawConnection& connection) {
    connection.read_request();
    connection.answer("ok");
    connection.read_request();
    connection.send("H");
  });
  EXPECT_EQ(call(client, request_for(half))->body, "ok");
  got = call(client, request_for(half));
  EXPECT_EQ(got->end->phase, Phase::head);
  EXPECT_THAT(got->end->status.error().message, HasSubstr("closed"));
  EXPECT_EQ(half.accepted(), 1);
  EXPECT_EQ(client.counts().retried, 0U);
}

TEST(HttpClient, ClosesWhatIsUnusedTooLongAndDoesNotReuseWhatIsTooOld) {
  std::atomic<int> closed{0};
  RawServer server([&](RawConnection& connection) {
    while (!connection.read_request().line.empty()) connection.answer("ok");
    closed.fetch_add(1);
  });
  {
    ClientOptions options;
    options.keep_idle = 30ms;
    Client client(options);
    EXPECT_EQ(call(client, request_for(server))->body, "ok");
    for (int i = 0; i < 1000 && closed.load() == 0; ++i) std::this_thread::sleep_for(5ms);
    EXPECT_EQ(closed.load(), 1);
    EXPECT_EQ(client.counts().idle, 0U);
  }
  ClientOptions options;
  options.max_connection_age = 0ms;
  Client client(options);
  EXPECT_EQ(call(client, request_for(server))->body, "ok");
  EXPECT_EQ(call(client, request_for(server))->body, "ok");
  EXPECT_EQ(client.counts().opened, 2U);
  EXPECT_EQ(client.counts().idle, 0U);
}

TEST(HttpClient, NoticesThatAKeptConnectionIsClosed) {
  RawServer server([&](RawConnection& connection) {
    connection.read_request();
    connection.answer("ok");
  });
  Client client;
  EXPECT_EQ(call(client, request_for(server))->body, "ok");
  for (int i = 0; i < 1000 && client.counts().idle > 0; ++i) std::this_thread::sleep_for(5ms);
  EXPECT_EQ(client.counts().idle, 0U);
}

// ---- Faults of the other side ----

struct FaultCase {
  const char* name;
  std::string bytes;  // what is sent before the connection is closed
  const char* message;
};
void PrintTo(const FaultCase& fault, std::ostream* out) { *out << fault.name; }

class HttpClientFaults : public ::testing::TestWithParam<FaultCase> {};

TEST_P(HttpClientFaults, EndTheCallWithAClearError) {
  RawServer server([&](RawConnection& connection) {
    connection.read_request();
    connection.send(GetParam().bytes);
  });
  Client client;
  ClientRequest request = request_for(server);
  request.max_head = 4096;
  request.max_body = 100;
  const auto got = call(client, request);
  ASSERT_FALSE(got->end->status.ok());
  EXPECT_THAT(got->end->status.error().message, HasSubstr(GetParam().message));
  EXPECT_THAT(got->end->status.error().message, HasSubstr("127.0.0.1:" + std::to_string(server.port())));
  EXPECT_EQ(client.counts().running, 0U);
  EXPECT_EQ(client.counts().idle, 0U);
}

INSTANTIATE_TEST_SUITE_P(
    All, HttpClientFaults,
    ::testing::Values(
        FaultCase{"nothing", "", "no answer"}, FaultCase{"half_a_status_line", "HTTP/1.1 2", "closed"},
        FaultCase{"half_a_head", "HTTP/1.1 200 OK\r\nX: y\r\n", "inside the head"},
        FaultCase{"half_a_body", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "4 of 10 bytes"},
        FaultCase{"half_a_chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf",
                  "before the end of the body"},
        FaultCase{"no_last_chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
                  "before the end of the body"},
        FaultCase{"bad_chunk_size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "malformed chunk"},
        FaultCase{"negative_chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-4\r\n", "malformed chunk"},
        FaultCase{"huge_chunk_size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111\r\n",
                  "malformed chunk"},
        FaultCase{"endless_chunk_line",
                  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;" + std::string(2000, 'x'),
                  "malformed chunk"},
        FaultCase{"chunk_without_end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalfXX\r\n",
                  "malformed chunk"},
        FaultCase{"huge_head", "HTTP/1.1 200 OK\r\nX: " + std::string(5000, 'x') + "\r\n\r\n", "larger than 4096"},
        FaultCase{"endless_head_line", "HTTP/1.1 200 OK\r\nX: " + std::string(5000, 'x'), "larger than 4096"},
        FaultCase{"endless_interim",
                  [] {
                    std::string all;
                    for (int i = 0; i < 300; ++i) all += "HTTP/1.1 100 Continue\r\n\r\n";
                    return all;
                  }(),
                  "larger than 4096"},
        FaultCase{"huge_trailer",
                  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + std::string(5000, 'x'),
                  "larger than 4096"},
        FaultCase{"not_http", "SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"},
        FaultCase{"http_2", "HTTP/2 200 OK\r\n\r\n", "not HTTP"},
        FaultCase{"bad_length", "HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n", "Content-Length"},
        FaultCase{"negative_length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "Content-Length"},
        FaultCase{"two_lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "Content-Length"},
        FaultCase{"unknown_coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "Transfer-Encoding"},
        FaultCase{"folded_header", "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", "malformed line"},
        FaultCase{"header_without_colon", "HTTP/1.1 200 OK\r\nnothing\r\n\r\n", "malformed line"},
        FaultCase{"switched", "HTTP/1.1 101 Switching Protocols\r\n\r\n", "switches protocols"},
        FaultCase{"large_body", "HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n" + std::string(200, 'x'),
                  "larger than 100 bytes"}),
    [](const auto& each) { return std::string(each.param.name); });

TEST(HttpClient, ARefusalWhileTheBodyIsBeingSentIsHeard) {
  RawServer server([&](RawConnection& connection) {
    while (connection.input.find("\r\n\r\n") == std::string::npos && connection.read_some()) {
    }
    connection.answer("too large", "413 Payload Too Large", "Connection: close\r\n");
    connection.closed_within(10s);
  });
  Client client;
  ClientRequest request = request_for(server);
  request.method = "POST";
  request.body.assign(32 << 20, 'x');
  const auto got = call(client, std::move(request));
  ASSERT_TRUE(got->end->status.ok()) << got->end->status.error().message;
  EXPECT_EQ(got->head->status, 413);
  EXPECT_EQ(got->body, "too large");
  EXPECT_EQ(client.counts().idle, 0U);
}

TEST(HttpClient, SendsLargeBodiesWhole) {
  std::string seen;
  RawServer server([&](RawConnection& connection) {
    seen = connection.read_request().body;
    connection.answer("ok");
  });
  Client client;
  ClientRequest request = request_for(server);
  request.method = "PUT";
  for (int i = 0; i < 1 << 20; ++i) request.body += std::to_string(i % 10);
  const std::string body = request.body;
  EXPECT_EQ(call(client, std::move(request))->body, "ok");
  EXPECT_EQ(seen, body);
}

// ---- Time-outs ----

TEST(HttpClient, TimesOutInEveryPhase) {
  Client client;
  {
    RawServer server([](RawConnection& connection) { connection.closed_within(10s); });
    ClientRequest request = request_for(server);
    request.first_byte_timeout = 50ms;
    auto got = call(client, request);
    EXPECT_EQ(got->end->status.error().code, ErrorCode::timeout);
    EXPECT_EQ(got->end->phase, Phase::waiting);
    EXPECT_THAT(got->end->status.error().message, HasSubstr("first_byte_timeout"));
    // A body that nobody reads.
    request.method = "POST";
    request.body.assign(64 << 20, 'x');
    request.idle_timeout = 50ms;
    RawServer deaf([](RawConnection&) { std::this_thread::sleep_for(1s); });
    request.url = *parse_url(deaf.url());
    got = call(client, request);
    EXPECT_EQ(got->end->phase, Phase::sending);
    EXPECT_EQ(got->end->status.error().code, ErrorCode::timeout);
  }
  {
    // A head that trickles in does not extend its time.
    RawServer server([](RawConnection& connection) {
      connection.read_request();
      connection.send("HTTP/1.1 200 OK\r\n");
      while (connection.send("X: y\r\n")) std::this_thread::sleep_for(5ms);
    });
    ClientRequest request = request_for(server);
    request.first_byte_timeout = 100ms;
    const auto got = call(client, request);
    EXPECT_EQ(got->end->status.error().code, ErrorCode::timeout);
    EXPECT_EQ(got->end->phase, Phase::head);
  }
  {
    RawServer server([](RawConnection& connection) {
      connection.read_request();
      connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
      for (int i = 0; i < 4; ++i) {  // longer in all than idle_timeout
        connection.send("x");
        std::this_thread::sleep_for(60ms);
      }
      connection.closed_within(10s);
    });
    ClientRequest request = request_for(server);
    request.idle_timeout = 150ms;
    const auto got = call(client, request);
    EXPECT_EQ(got->end->status.error().code, ErrorCode::timeout);
    EXPECT_EQ(got->end->phase, Phase::body);
    EXPECT_EQ(got->body, "xxxx");
    EXPECT_THAT(got->end->status.error().message, HasSubstr("idle_timeout"));
  }
}

TEST(HttpClient, AHeadThatComesAtOnceLeavesTimeToCompute) {
  Client client;
  RawServer server([](RawConnection& connection) {
    connection.read_request();
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    std::this_thread::sleep_for(150ms);
    connection.send("x");
    connection.closed_within(10s);
  });
  ClientRequest request = request_for(server);
  request.first_byte_timeout = 5s;
  request.idle_timeout = 50ms;
  const auto got = call(client, request);
  EXPECT_EQ(got->body, "x");
  EXPECT_THAT(got->end->status.error().message, HasSubstr("idle_timeout"));
  RawServer silent([](RawConnection& connection) {
    connection.read_request();
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    connection.closed_within(10s);
  });
  request.url = *parse_url(silent.url());
  request.first_byte_timeout = 50ms;
  request.idle_timeout = 5s;
  EXPECT_THAT(call(client, request)->end->status.error().message, HasSubstr("first_byte_timeout"));
}

// The first answer of a server that is still being sent to.
TEST(HttpClient, AHeadThatComesWhileTheRequestIsSentLeavesTimeToCompute) {
  Client client;
  RawServer server([](RawConnection& connection) {
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n");
    std::this_thread::sleep_for(300ms);
    connection.read_request();
    connection.send("x");
  });
  ClientRequest request = request_for(server);
  request.method = "POST";
  request.body.assign(8 << 20, 'x');
  request.first_byte_timeout = 20s;
  request.idle_timeout = 150ms;
  const auto got = call(client, request);
  EXPECT_TRUE(got->end->status.ok()) << got->end->status.error().message;
  EXPECT_EQ(got->body, "x");
}

TEST(HttpClient, AConnectionThatIsNeverAcceptedTimesOut) {
  // A listener whose queue is full drops what comes.
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(listener, 0), 0);
  socklen_t size = sizeof(address);
  ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  const int filler = ::socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_EQ(::connect(filler, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  {
    Client client;
    ClientRequest request;
    request.url = *parse_url("http://127.0.0.1:" + std::to_string(ntohs(address.sin_port)));
    request.connect_timeout = 100ms;
    const auto got = call(client, request);
    EXPECT_EQ(got->end->status.error().code, ErrorCode::timeout);
    EXPECT_EQ(got->end->phase, Phase::connecting);
    EXPECT_THAT(got->end->status.error().message, HasSubstr("connect_timeout"));
  }
  ::close(filler);
  ::close(listener);
}

TEST(HttpClient, ARefusedConnectionAndAnUnknownNameAreUnavailable) {
  Client client;
  std::uint16_t port = 0;
  {
    port = RawServer([](RawConnection&) {}).port();
  }
  ClientRequest request;
  request.url = *parse_url("http://127.0.0.1:" + std::to_string(port) + "/secret?key=1");
  auto got = call(client, request);
  EXPECT_EQ(got->end->status.error().code, ErrorCode::unavailable);
  EXPECT_THAT(got->end->status.error().message, HasSubstr("refused"));
  EXPECT_THAT(got->end->status.error().message, ::testing::Not(HasSubstr("key")));
  EXPECT_EQ(got->end->phase, Phase::connecting);
  request.url = *parse_url("http://no-such-host.invalid/");
  got = call(client, request);
  EXPECT_THAT(got->end->status.error().message, HasSubstr("no-such-host.invalid"));
  EXPECT_EQ(got->end->phase, Phase::connecting);
}

TEST(HttpClient, NamesAreLookedUpAndAllTheirAddressesTried) {
  RawServer server(each_request([](RawConnection& connection, const RawRequest&) { connection.answer("ok"); }));
  Client client;
  ClientRequest request;  // "localhost" may be ::1 first, where nobody listens
  request.url = *parse_url("http://localhost:" + std::to_string(server.port()));
  const auto got = call(client, request);
  ASSERT_TRUE(got->end->status.ok()) << got->end->status.error().message;
  EXPECT_EQ(got->body, "ok");
}

TEST(HttpClient, RefusesMalformedRequestsAndMoreCallsThanItMayRun) {
  RawServer server([](RawConnection& connection) { connection.closed_within(10s); });
  ClientOptions options;
  options.max_calls = 1;
  Client client(options);
  ClientRequest request = request_for(server);
  request.headers = {{"X", "a\r\nY: b"}};
  EXPECT_EQ(call(client, request)->end->status.error().code, ErrorCode::invalid_argument);
  request.headers = {{"X Y", "a"}};
  EXPECT_EQ(call(client, request)->end->status.error().code, ErrorCode::invalid_argument);
  request.headers.clear();
  request.method = "GET /x";
  EXPECT_EQ(call(client, request)->end->status.error().code, ErrorCode::invalid_argument);
  request.method = "GET";
  auto running = std::make_shared<Recorder>();
  const auto handle = client.start(request, running);
  EXPECT_EQ(call(client, request)->end->status.error().code, ErrorCode::overloaded);
}

// ---- Cancellation ----

TEST(HttpClient, DestroyingTheCallClosesTheConnectionInEveryPhase) {
  // 0: no answer at all; 1: inside the head; 2: inside the body.
  for (int phase = 0; phase < 3; ++phase) {
    std::atomic<bool> got_request{false};
    std::atomic<int> closed{-1};
    RawServer server([&](RawConnection& connection) {
      connection.read_request();
      if (phase == 1) connection.send("HTTP/1.1 200");
      if (phase == 2) connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
      got_request = true;
      closed = connection.closed_within(10s) ? 1 : 0;
    });
    Client client;
    auto recorder = std::make_shared<Recorder>();
    auto handle = client.start(request_for(server), recorder);
    while (!got_request.load()) std::this_thread::sleep_for(1ms);
    if (phase == 2) {
      ASSERT_TRUE(recorder->wait_body(4));
    }
    handle.reset();
    for (int i = 0; i < 2000 && closed.load() < 0; ++i) std::this_thread::sleep_for(5ms);
    EXPECT_EQ(closed.load(), 1) << phase;
    EXPECT_EQ(client.counts().running, 0U);
    std::lock_guard lock(recorder->mutex);
    EXPECT_FALSE(recorder->end.has_value());
  }
}

TEST(HttpClient, NothingIsToldAfterTheCallIsDestroyed) {
  RawServer server(each_request([](RawConnection& connection, const RawRequest&) {
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 200 && connection.send_chunk("x"); ++i) {
    }
    connection.send("0\r\n\r\n");
  }));
  Client client;
  for (int i = 0; i < 200; ++i) {
    auto recorder = std::make_shared<Recorder>();
    auto handle = client.start(request_for(server), recorder);
    std::this_thread::sleep_for(std::chrono::microseconds(i * 7));
    handle.reset();
    int callbacks = 0;
    {
      std::lock_guard lock(recorder->mutex);
      callbacks = recorder->callbacks;
    }
    std::this_thread::sleep_for(1ms);
    std::lock_guard lock(recorder->mutex);
    EXPECT_LE(recorder->callbacks, callbacks + 1);
  }
}

TEST(HttpClient, ACallbackMayDestroyItsCall) {
  RawServer server(each_request([](RawConnection& connection, const RawRequest&) { connection.answer("ok"); }));
  struct Quitter final : CallListener {
    void on_head(ResponseHead) override {
      while (!ready.load()) std::this_thread::yield();
      call.reset();
      quit = true;
    }
    void on_body(std::string_view) override { told_more = true; }
    void on_end(CallEnd) override { told_more = true; }
    std::unique_ptr<Call> call;
    std::atomic<bool> ready{false};
    std::atomic<bool> quit{false};
    std::atomic<bool> told_more{false};
  };
  Client client;
  auto quitter = std::make_shared<Quitter>();
  quitter->call = client.start(request_for(server), quitter);
  quitter->ready = true;
  for (int i = 0; i < 2000 && client.counts().running > 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_TRUE(quitter->quit.load());
  EXPECT_FALSE(quitter->told_more.load());
  EXPECT_EQ(client.counts().idle, 0U);
}

TEST(HttpClient, WhatAListenerThrowsEndsItsCallAlone) {
  RawServer server(each_request([](RawConnection& connection, const RawRequest&) { connection.answer("ok"); }));
  struct Thrower final : Recorder {
    void on_body(std::string_view) override { throw std::runtime_error("thrown by on_body"); }
  };
  Client client;
  auto thrower = std::make_shared<Thrower>();
  const auto handle = client.start(request_for(server), thrower);
  ASSERT_TRUE(thrower->wait_end());
  EXPECT_EQ(thrower->end->status.error().code, ErrorCode::internal);
  EXPECT_EQ(call(client, request_for(server))->body, "ok");
}

TEST(HttpClient, DestroyingTheClientEndsItsCalls) {
  RawServer server([](RawConnection& connection) { connection.closed_within(10s); });
  auto recorder = std::make_shared<Recorder>();
  std::unique_ptr<Call> handle;
  {
    Client client;
    handle = client.start(request_for(server), recorder);
  }
  ASSERT_TRUE(recorder->end.has_value());
  EXPECT_EQ(recorder->end->status.error().code, ErrorCode::cancelled);
  handle->resume();
}

TEST(HttpClient, ACallMayBeFailedFromOutside) {
  RawServer server([](RawConnection& connection) { connection.closed_within(10s); });
  Client client;
  auto recorder = std::make_shared<Recorder>();
  const auto handle = client.start(request_for(server), recorder);
  handle->fail(make_error(ErrorCode::unavailable, "closing"));
  ASSERT_TRUE(recorder->wait_end());
  EXPECT_EQ(recorder->end->status.error().message, "closing");
  handle->fail(make_error(ErrorCode::unavailable, "again"));
}

TEST(HttpClient, TheDeadlineEndsACallWhateverItDoes) {
  RawServer server([](RawConnection& connection) {
    connection.read_request();
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    while (connection.send_chunk("x")) std::this_thread::sleep_for(5ms);
  });
  Client client;
  ClientRequest request = request_for(server);
  const auto start = std::chrono::steady_clock::now();
  request.deadline = start + 150ms;
  const auto got = call(client, request);
  EXPECT_EQ(got->end->status.error().code, ErrorCode::timeout);
  EXPECT_THAT(got->end->status.error().message, HasSubstr("deadline"));
  EXPECT_GE(std::chrono::steady_clock::now() - start, 150ms);
  EXPECT_GT(got->body.size(), 1U);
}

TEST(HttpClient, TimersRunOnceUnlessTheyAreDestroyed) {
  std::atomic<int> ran{0};
  Client client;
  const auto kept = client.after(20ms, [&] { ran.fetch_add(1); });
  client.after(20ms, [&] { ran.fetch_add(100); }).reset();
  for (int i = 0; i < 1000 && ran.load() == 0; ++i) std::this_thread::sleep_for(1ms);
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(ran.load(), 1);
  auto endless = client.after(1h, [&] { ran.fetch_add(1); });  // the client ends without it
}

// ---- Back-pressure ----

TEST(HttpClient, APausedCallHoldsTheSenderBack) {
  constexpr std::size_t kTotal = 64 << 20;
  std::atomic<std::size_t> sent{0};
  RawServer server([&](RawConnection& connection) {
    connection.read_request();
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(kTotal) + "\r\n\r\n");
    const std::string block(64 << 10, 'x');
    while (sent.load() < kTotal && connection.send(block)) sent.fetch_add(block.size());
    connection.closed_within(10s);
  });
  struct Slow final : Recorder {
    void on_head(ResponseHead given) override {
      while (!ready.load()) std::this_thread::yield();
      handle->pause();
      Recorder::on_head(std::move(given));
    }
    void on_body(std::string_view chunk) override {
      bytes += chunk.size();
      changed.notify_all();
    }
    std::unique_ptr<Call> handle;
    std::atomic<bool> ready{false};
    std::atomic<std::size_t> bytes{0};
  };
  Client client;
  auto slow = std::make_shared<Slow>();
  ClientRequest request = request_for(server);
  request.idle_timeout = 100ms;  // does not run while paused
  slow->handle = client.start(request, slow);
  slow->ready = true;
  ASSERT_TRUE(slow->wait([&] { return slow->head.has_value(); }));
  std::this_thread::sleep_for(300ms);
  EXPECT_LT(sent.load(), kTotal);
  EXPECT_LE(slow->bytes.load(), kClientReadSize);
  EXPECT_FALSE(slow->end.has_value());
  slow->handle->resume();
  ASSERT_TRUE(slow->wait_end());
  EXPECT_TRUE(slow->end->status.ok());
  EXPECT_EQ(slow->bytes.load(), kTotal);
}

// ---- Many at once ----

TEST(HttpClient, ManyCallsAtOnceOverSeveralThreads) {
  RawServer server(each_request([](RawConnection& connection, const RawRequest& request) {
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (const char c : request.body) connection.send_chunk(std::string(1, c));
    connection.send("0\r\n\r\n");
  }));
  ClientOptions options;
  options.threads = 3;
  Client client(options);
  for (int round = 0; round < 3; ++round) {
    std::vector<std::shared_ptr<Recorder>> recorders;
    std::vector<std::unique_ptr<Call>> handles;
    for (int i = 0; i < 60; ++i) {
      ClientRequest request = request_for(server);
      request.method = "POST";
      request.body = "call " + std::to_string(i);
      recorders.push_back(std::make_shared<Recorder>());
      handles.push_back(client.start(request, recorders.back()));
      if (i % 7 == 3) handles.back().reset();
    }
    for (int i = 0; i < 60; ++i) {
      if (i % 7 == 3) continue;
      ASSERT_TRUE(recorders[static_cast<std::size_t>(i)]->wait_end());
      EXPECT_TRUE(recorders[static_cast<std::size_t>(i)]->end->status.ok());
      EXPECT_EQ(recorders[static_cast<std::size_t>(i)]->body, "call " + std::to_string(i));
    }
  }
}

// ---- On a server's threads ----

// A server that answers each request with what `upstream` answers.
struct Relay {
  explicit Relay(const RawServer& upstream, int threads) : upstream_url(*parse_url(upstream.url())) {
    ServerOptions options;
    options.host = "127.0.0.1";
    options.port = 0;
    options.threads = threads;
    server = *Server::bind(
        options, [this](std::shared_ptr<Exchange> exchange) { handle(std::move(exchange)); },
        [](const Request&, int status, std::string_view message) {
          return Response{.status = status, .body = std::string(message)};
        });
    server->start();
    client = std::make_unique<Client>(ClientOptions{}, *server);
  }

  struct Hop final : CallListener {
    void on_head(ResponseHead) override { same_thread = std::this_thread::get_id() == thread; }
    void on_body(std::string_view chunk) override { body += chunk; }
    void on_end(CallEnd end) override {
      const bool good = end.status.ok() && same_thread;
      exchange->respond({.status = good ? 200 : 503, .body = good ? body : "failed"});
    }
    std::shared_ptr<Exchange> exchange;
    std::thread::id thread = std::this_thread::get_id();
    std::string body;
    bool same_thread = false;
  };

  void handle(std::shared_ptr<Exchange> exchange) {
    auto hop = std::make_shared<Hop>();
    hop->exchange = std::move(exchange);
    ClientRequest request;
    request.url = upstream_url;
    std::lock_guard lock(mutex);
    calls.push_back(client->start(std::move(request), std::move(hop)));
  }

  Url upstream_url;
  std::mutex mutex;
  std::vector<std::unique_ptr<Call>> calls;
  std::unique_ptr<Server> server;
  std::unique_ptr<Client> client;
};

TEST(HttpClient, OnAServersThreadsACallStaysOnTheThreadThatStartedIt) {
  RawServer upstream(each_request([](RawConnection& connection, const RawRequest&) { connection.answer("relayed"); }));
  Relay relay(upstream, 3);
  Client outside;
  for (int i = 0; i < 30; ++i) {
    ClientRequest request;
    request.url = *parse_url("http://127.0.0.1:" + std::to_string(relay.server->port()));
    request.headers = {{"Connection", "close"}};
    const auto got = call(outside, request);
    ASSERT_TRUE(got->end->status.ok());
    EXPECT_EQ(got->body, "relayed");
  }
  EXPECT_LE(upstream.accepted(), 3);  // each thread has its own pool
}

TEST(HttpClient, OnAServersThreadsEitherMayGoFirst) {
  RawServer upstream([](RawConnection& connection) { connection.closed_within(10s); });
  for (const bool server_first : {true, false}) {
    Relay relay(upstream, 2);
    std::vector<std::shared_ptr<Recorder>> recorders;
    std::vector<std::unique_ptr<Call>> handles;
    for (int i = 0; i < 4; ++i) {
      recorders.push_back(std::make_shared<Recorder>());
      handles.push_back(relay.client->start(request_for(upstream), recorders.back()));
    }
    const auto timer = relay.client->after(1h, [] {});
    if (server_first) {
      relay.server.reset();
      const auto late = call(*relay.client, request_for(upstream));
      EXPECT_EQ(late->end->status.error().code, ErrorCode::cancelled);
    }
    relay.client.reset();
    for (const auto& recorder : recorders) {
      ASSERT_TRUE(recorder->wait_end());
      EXPECT_EQ(recorder->end->status.error().code, ErrorCode::cancelled);
    }
  }
}

// ---- fetch ----

TEST(HttpFetch, BringsTheBodyToTheCallingThread) {
  RawServer server(each_request([](RawConnection& connection, const RawRequest&) {
    connection.answer(std::string(5 << 20, 'x'), "200 OK", "ETag: abc\r\n");
  }));
  Client client;
  const auto here = std::this_thread::get_id();
  std::size_t bytes = 0;
  std::string etag;
  const Status status = fetch(
      client, request_for(server),
      [&](const ResponseHead& head) {
        EXPECT_EQ(std::this_thread::get_id(), here);
        etag = head.header("etag");
        return Status();
      },
      [&](std::string_view piece) {
        EXPECT_EQ(std::this_thread::get_id(), here);
        bytes += piece.size();
        return Status();
      });
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(etag, "abc");
  EXPECT_EQ(bytes, 5U << 20);
}

TEST(HttpFetch, AnErrorOfAFunctionCancels) {
  RawServer server(
      each_request([](RawConnection& connection, const RawRequest&) { connection.answer("ok", "404 Not Found"); }));
  Client client;
  bool body = false;
  const Status status = fetch(
      client, request_for(server),
      [](const ResponseHead& head) {
        return Status(make_error(ErrorCode::not_found, "status " + std::to_string(head.status)));
      },
      [&](std::string_view) {
        body = true;
        return Status();
      });
  EXPECT_EQ(status.error().message, "status 404");
  EXPECT_FALSE(body);
}

TEST(HttpFetch, ASlowReaderHoldsTheSenderBack) {
  std::atomic<std::size_t> sent{0};
  constexpr std::size_t kTotal = 64 << 20;
  RawServer server([&](RawConnection& connection) {
    connection.read_request();
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(kTotal) + "\r\n\r\n");
    const std::string block(64 << 10, 'x');
    while (sent.load() < kTotal && connection.send(block)) sent.fetch_add(block.size());
    connection.closed_within(10s);
  });
  Client client;
  std::size_t bytes = 0;
  const Status status = fetch(client, request_for(server), {}, [&](std::string_view piece) {
    if (bytes == 0) {
      std::this_thread::sleep_for(200ms);
      EXPECT_LT(sent.load(), kTotal);
    }
    bytes += piece.size();
    return Status();
  });
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(bytes, kTotal);
}

TEST(HttpFetch, IsCancelledFromAnotherThread) {
  std::atomic<bool> closed{false};
  RawServer server([&](RawConnection& connection) {
    connection.read_request();
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx");
    closed = connection.closed_within(10s);
  });
  Client client;
  CancelToken token;
  std::thread other;
  Status status = fetch(
      client, request_for(server), {},
      [&](std::string_view) {
        other = std::thread([&] { token.cancel(); });
        return Status();
      },
      &token);
  other.join();
  EXPECT_EQ(status.error().code, ErrorCode::cancelled);
  for (int i = 0; i < 2000 && !closed.load(); ++i) std::this_thread::sleep_for(1ms);
  EXPECT_TRUE(closed.load());
  status = fetch(client, request_for(server), {}, {}, &token);  // for good
  EXPECT_EQ(status.error().code, ErrorCode::cancelled);
}

}  // namespace
}  // namespace xgen::http
