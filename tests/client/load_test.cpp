#include "client/load.h"

#include <gtest/gtest.h>

#include <thread>

#include "client/figures.h"
#include "support/raw_server.h"

namespace xgen::client {
namespace {

using scripted::RawConnection;
using scripted::RawServer;
using namespace std::chrono_literals;

RequestMaker maker(std::uint64_t seed = 1) {
  const Lengths ten{Lengths::Kind::fixed, 10, 10};
  return RequestMaker({.model = "m", .input = ten, .output = ten, .seed = seed}, nullptr);
}

LoadOptions options_for(int port) {
  LoadOptions options;
  options.api = *make_api("127.0.0.1:" + std::to_string(port), "", "");
  options.api.timeout = 10s;
  return options;
}

constexpr std::string_view kHead =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

void send_token(RawConnection& connection) { connection.send_chunk("data: {\"choices\":[{\"text\":\"a\"}]}\n\n"); }

void send_end(RawConnection& connection) {
  connection.send_chunk(
      "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n");
  connection.send("0\r\n\r\n");
}

void answer(RawConnection& connection) {
  connection.send(kHead);
  send_token(connection);
  send_token(connection);
  send_end(connection);
}

void answer_all(RawConnection& connection) {
  while (!connection.read_request().line.empty()) answer(connection);
}

TEST(Load, AClosedLoopSendsSoManyRequestsAndKeepsItsConnections) {
  std::atomic<int> connections{0};
  RawServer server([&](RawConnection& connection) {
    ++connections;
    answer_all(connection);
  });
  LoadOptions options = options_for(server.port());
  options.concurrency = 3;
  options.requests = 50;
  const RequestMaker requests = maker();
  const LoadResult result = Load(options, requests, nullptr).run();
  ASSERT_EQ(result.records.size(), 50u);
  EXPECT_EQ(connections.load(), 3);
  for (const Record& record : result.records) {
    EXPECT_EQ(record.fault, Fault::none);
    EXPECT_EQ(record.events, 2);
    EXPECT_EQ(record.gaps.size(), 1u);
    EXPECT_EQ(record.tokens(), 3);
    EXPECT_TRUE(record.counted);
    EXPECT_LE(record.planned, record.first);
    EXPECT_LE(record.first, record.end);
  }
  EXPECT_GT(result.end, 0);
}

TEST(Load, SeveralThreadsReceive) {
  RawServer server(answer_all);
  LoadOptions options = options_for(server.port());
  options.threads = 3;
  options.concurrency = 8;
  options.requests = 400;
  const RequestMaker requests = maker();
  const LoadResult result = Load(options, requests, nullptr).run();
  const Figures figures = figures_of(result, {});
  EXPECT_EQ(figures.succeeded, 400u);
  EXPECT_EQ(figures.itl.count, 400u);
}

TEST(Load, TheWarmUpIsNotCounted) {
  RawServer server([](RawConnection& connection) {
    while (!connection.read_request().line.empty()) {
      std::this_thread::sleep_for(10ms);
      answer(connection);
    }
  });
  LoadOptions options = options_for(server.port());
  options.concurrency = 2;
  options.requests = 10;
  options.warmup = 0.2;
  const RequestMaker requests = maker();
  const LoadResult result = Load(options, requests, nullptr).run();
  const Figures figures = figures_of(result, {});
  EXPECT_EQ(figures.counted, 10u);
  EXPECT_GT(result.records.size(), 10u);
  for (const Record& record : result.records) EXPECT_EQ(record.counted, record.planned >= 0.2);
}

TEST(Load, ADurationEndsItAndWhatRunsIsWaitedFor) {
  RawServer server([](RawConnection& connection) {
    while (!connection.read_request().line.empty()) {
      std::this_thread::sleep_for(100ms);
      answer(connection);
    }
  });
  LoadOptions options = options_for(server.port());
  options.open = true;
  options.arrivals = Arrivals::Kind::constant;
  options.rate = 50;
  options.duration = 0.5;
  const RequestMaker requests = maker();
  const LoadResult result = Load(options, requests, nullptr).run();
  EXPECT_EQ(result.records.size(), 25u);
  EXPECT_EQ(result.end, 0.5);
  for (const Record& record : result.records) EXPECT_EQ(record.fault, Fault::none);
}

// A server that answers one request at a time, in 40 ms, while one comes every 20 ms: the n-th waits for n times 20 ms.
// A generator that waited with its next request would see 40 ms each time.
TEST(Load, LatenciesOfAnOpenLoopCountFromThePlannedTime) {
  std::mutex one_at_a_time;
  RawServer server([&](RawConnection& connection) {
    while (!connection.read_request().line.empty()) {
      std::lock_guard lock(one_at_a_time);
      std::this_thread::sleep_for(40ms);
      answer(connection);
    }
  });
  LoadOptions options = options_for(server.port());
  options.open = true;
  options.arrivals = Arrivals::Kind::constant;
  options.rate = 50;
  options.requests = 20;
  const RequestMaker requests = maker();
  const LoadResult result = Load(options, requests, nullptr).run();
  const Figures figures = figures_of(result, {});
  ASSERT_EQ(figures.succeeded, 20u);
  EXPECT_GE(figures.ttft.max, 0.040 + 19 * 0.020);
  EXPECT_GE(figures.ttft.mean, 0.039 + 9.5 * 0.020);
}

TEST(Load, EveryKindOfFaultIsNoted) {
  std::atomic<int> number{0};
  RawServer server([&](RawConnection& connection) {
    while (!connection.read_request().line.empty()) {
      switch (number++ % 5) {
        case 0:
          connection.answer(R"({"error":{"message":"slow down"}})", "429 Too Many Requests", "Retry-After: 1\r\n");
          break;
        case 1:
          connection.send(kHead);
          send_token(connection);
          return;
        case 2:
          connection.send(kHead);
          connection.send_chunk("data: {\"error\":{\"message\":\"broken\"}}\n\ndata: [DONE]\n\n");
          connection.send("0\r\n\r\n");
          break;
        case 3:
          connection.answer("<html>", "200 OK", "Content-Type: text/html\r\n");
          break;
        default:
          answer(connection);
      }
    }
  });
  LoadOptions options = options_for(server.port());
  options.requests = 10;
  const RequestMaker requests = maker();
  const LoadResult result = Load(options, requests, nullptr).run();
  const Figures figures = figures_of(result, {});
  EXPECT_EQ(figures.faults, (std::map<std::string, std::uint64_t>{
                                {"refused 429", 2}, {"cut", 2}, {"stream_error", 2}, {"unreadable", 2}}));
  EXPECT_EQ(figures.succeeded, 2u);
  EXPECT_EQ(result.messages.at("refused 429"), "the server answered 429: slow down");
  EXPECT_EQ(result.messages.at("stream_error"), "broken");
}

TEST(Load, NothingIsTriedAgain) {
  std::atomic<int> requests{0};
  RawServer server([&](RawConnection& connection) {  // each connection has one answer
    for (int i = 0; i < 2; ++i) {
      if (connection.read_request().line.empty()) return;
      ++requests;
      if (i == 0) answer(connection);
    }
  });
  LoadOptions options = options_for(server.port());
  options.requests = 20;
  const RequestMaker made = maker();
  const LoadResult result = Load(options, made, nullptr).run();
  EXPECT_EQ(requests.load(), 20);
  EXPECT_EQ(figures_of(result, {}).succeeded, 10u);
  EXPECT_EQ(figures_of(result, {}).faults.at("cut"), 10u);
}

TEST(Load, AsManyRunAtOnceAsMayRun) {
  RawServer server(answer_all);
  LoadOptions options = options_for(server.port());
  options.concurrency = 3;
  options.max_running = 3;
  options.requests = 50;
  const RequestMaker requests = maker();
  const LoadResult result = Load(options, requests, nullptr).run();
  EXPECT_EQ(figures_of(result, {}).succeeded, 50u);
}

TEST(Load, TheTimeOfEachThreadIsTaken) {
  RawServer server(answer_all);
  LoadOptions options = options_for(server.port());
  options.threads = 2;
  options.open = true;
  options.rate = 2000;
  options.duration = 0.3;
  const RequestMaker requests = maker();
  const LoadResult result = Load(options, requests, nullptr).run();
  EXPECT_GT(result.receiver, 0);
  EXPECT_GT(result.sender, 0);
  // The server is of this process as well.
  EXPECT_LT(result.receiver + result.sender, result.cpu + 0.01);
}

TEST(Load, ARequestHasItsTime) {
  RawServer server([](RawConnection& connection) {
    while (!connection.read_request().line.empty()) {
      connection.send(kHead);
      send_token(connection);
    }
    connection.closed_within(5s);
  });
  LoadOptions options = options_for(server.port());
  options.requests = 2;
  options.api.timeout = 200ms;
  const RequestMaker requests = maker();
  const LoadResult result = Load(options, requests, nullptr).run();
  ASSERT_EQ(result.records.size(), 2u);
  for (const Record& record : result.records) {
    EXPECT_EQ(record.fault, Fault::timeout);
    EXPECT_GE(record.end - record.sent, 0.19);
    EXPECT_LT(record.end - record.sent, 5);
  }
}

TEST(Load, NobodyThereEndsIt) {
  LoadOptions options = options_for(1);
  options.duration = 60;
  const RequestMaker requests = maker();
  const LoadResult result = Load(options, requests, nullptr).run();
  EXPECT_NE(result.ended.find("there was no connection"), std::string::npos);
  EXPECT_EQ(figures_of(result, {}).succeeded, 0u);
}

TEST(Load, CanBeStopped) {
  RawServer server([](RawConnection& connection) {
    connection.read_request();
    connection.send(kHead);
    send_token(connection);
    connection.closed_within(20s);
  });
  LoadOptions options = options_for(server.port());
  options.concurrency = 4;
  options.duration = 60;
  const RequestMaker requests = maker();
  Load load(options, requests, nullptr);
  std::thread other([&] {
    while (load.progress().events < 4) std::this_thread::sleep_for(1ms);
    load.stop("it was interrupted");
    load.stop("twice");
  });
  const LoadResult result = load.run();
  other.join();
  EXPECT_EQ(result.ended, "it was interrupted");
  ASSERT_EQ(result.records.size(), 4u);
  for (const Record& record : result.records) EXPECT_EQ(record.fault, Fault::unfinished);
}

}  // namespace
}  // namespace xgen::client
