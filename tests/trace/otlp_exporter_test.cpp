#include "trace/otlp_exporter.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "base/json.h"
#include "base/log.h"
#include "http/server.h"

namespace xgen::trace {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

// A collector, which answers as it is told.
class OtlpExporterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    log::set_level(log::Level::off);
    http::ServerOptions options;
    options.host = "127.0.0.1";
    options.port = 0;
    auto bound = http::Server::bind(
        options,
        [this](const std::shared_ptr<http::Exchange>& exchange) {
          std::lock_guard lock(mutex);
          bodies.push_back(exchange->request().body);
          paths.push_back(exchange->request().path);
          types.emplace_back(exchange->request().header("Content-Type"));
          exchange->respond(
              {.status = failures.exchange(std::max(0, failures - 1)) > 0 ? fault.load() : 200, .body = "{}"});
        },
        [](const http::Request&, int status, std::string_view) { return http::Response{.status = status}; });
    ASSERT_TRUE(bound.ok());
    collector = *std::move(bound);
    collector->start();
  }
  void TearDown() override { log::set_level(log::Level::info); }

  OtlpOptions options() const {
    OtlpOptions result;
    result.url = *http::parse_url("http://127.0.0.1:" + std::to_string(collector->port()) + "/v1/traces");
    result.service = "test";
    result.version = "1.2";
    result.interval = 10ms;
    result.retry = 10ms;
    return result;
  }
  static Span span(const std::string& name = "chat m") {
    Span result;
    result.context = child_of({});
    result.name = name;
    result.kind = Span::Kind::server;
    result.start = std::chrono::system_clock::time_point(1'700'000'000s);
    result.end = result.start + 1500us;
    return result;
  }
  template <class Condition>
  static bool eventually(Condition&& condition) {
    for (int i = 0; i < 5000 && !condition(); ++i) std::this_thread::sleep_for(1ms);
    return condition();
  }
  std::size_t calls() {
    std::lock_guard lock(mutex);
    return bodies.size();
  }

  std::mutex mutex;
  std::vector<std::string> bodies;
  std::vector<std::string> paths;
  std::vector<std::string> types;
  std::atomic<int> failures{0};
  std::atomic<int> fault{503};
  std::unique_ptr<http::Server> collector;
};

TEST_F(OtlpExporterTest, SpansComeAsTheProtocolHasThem) {
  OtlpExporter exporter(options());
  Span one = span("chat \"quoted\"");
  one.parent_id = "b7ad6b7169203331";
  one.attributes = {{"text", std::string("a\nb")},
                    {"count", std::int64_t{7}},
                    {"share", 0.25},
                    {"list", std::vector<std::string>{"stop", "length"}}};
  Span failed = span("call");
  failed.kind = Span::Kind::client;
  failed.failed = true;
  failed.error = "it broke";
  exporter.add(one);
  exporter.add(failed);
  ASSERT_TRUE(eventually([&] { return exporter.counts().sent == 2; }));
  std::lock_guard lock(mutex);
  EXPECT_EQ(paths[0], "/v1/traces");
  EXPECT_EQ(types[0], "application/json");
  std::vector<boost::json::value> spans;
  for (const std::string& body : bodies) {
    const auto value = *parse_json(body);
    const auto& resource = value.at("resourceSpans").at(0);
    EXPECT_EQ(resource.at("resource").at("attributes").at(0).at("key"), "service.name");
    EXPECT_EQ(resource.at("resource").at("attributes").at(0).at("value").at("stringValue"), "test");
    for (const auto& each : resource.at("scopeSpans").at(0).at("spans").as_array()) spans.push_back(each);
  }
  ASSERT_EQ(spans.size(), 2u);
  EXPECT_EQ(spans[0].at("traceId").as_string(), one.context.trace_id);
  EXPECT_EQ(spans[0].at("spanId").as_string(), one.context.span_id);
  EXPECT_EQ(spans[0].at("parentSpanId"), "b7ad6b7169203331");
  EXPECT_EQ(spans[0].at("name"), "chat \"quoted\"");
  EXPECT_EQ(spans[0].at("kind"), 2);
  EXPECT_EQ(spans[0].at("startTimeUnixNano"), "1700000000000000000");
  EXPECT_EQ(spans[0].at("endTimeUnixNano"), "1700000000001500000");
  EXPECT_EQ(boost::json::serialize(spans[0].at("attributes")),
            R"([{"key":"text","value":{"stringValue":"a\nb"}},{"key":"count","value":{"intValue":"7"}},)"
            R"({"key":"share","value":{"doubleValue":2.5E-1}},{"key":"list","value":{"arrayValue":{"values":)"
            R"([{"stringValue":"stop"},{"stringValue":"length"}]}}}])");
  EXPECT_TRUE(spans[0].at("status").as_object().empty());
  EXPECT_FALSE(spans[1].as_object().contains("parentSpanId"));
  EXPECT_EQ(spans[1].at("kind"), 3);
  EXPECT_EQ(spans[1].at("status").at("code"), 2);
  EXPECT_EQ(spans[1].at("status").at("message"), "it broke");
}

TEST_F(OtlpExporterTest, WhatMayGoWellLaterIsTriedAgain) {
  failures = OtlpExporter::kTries - 1;
  OtlpExporter exporter(options());
  exporter.add(span());
  EXPECT_TRUE(eventually([&] { return exporter.counts().sent == 1; }));
  EXPECT_EQ(calls(), static_cast<std::size_t>(OtlpExporter::kTries));
  // And is given up in the end.
  failures = OtlpExporter::kTries;
  exporter.add(span());
  EXPECT_TRUE(eventually([&] { return exporter.counts().dropped == 1; }));
  // What is refused for what it is, is not.
  const std::size_t before = calls();
  fault = 400;
  failures = 1;
  exporter.add(span());
  EXPECT_TRUE(eventually([&] { return exporter.counts().dropped == 2; }));
  EXPECT_EQ(calls(), before + 1);
  exporter.add(span());
  EXPECT_TRUE(eventually([&] { return exporter.counts().sent == 2; }));
}

TEST_F(OtlpExporterTest, TheQueueIsBoundedAndNobodyWaits) {
  OtlpOptions few = options();
  few.max_queue = 10;
  few.interval = 1h;
  few.max_batch = 1000;
  {
    OtlpExporter exporter(few);
    for (int i = 0; i < 25; ++i) exporter.add(span());
    EXPECT_EQ(exporter.counts().dropped, 15u);
    EXPECT_EQ(calls(), 0u);
  }
  EXPECT_EQ(calls(), 1u) << "what is queued at the end is sent";
}

TEST_F(OtlpExporterTest, ACollectorThatIsNotThereHoldsUpNothing) {
  log::set_level(log::Level::warn);
  ::testing::internal::CaptureStderr();
  OtlpOptions gone = options();
  collector.reset();
  gone.at_end = 100ms;
  const auto begun = std::chrono::steady_clock::now();
  {
    OtlpExporter exporter(gone);
    for (int i = 0; i < 3000; ++i) exporter.add(span());
    EXPECT_LT(std::chrono::steady_clock::now() - begun, 2s);
    EXPECT_TRUE(eventually([&] { return exporter.counts().dropped > 0; }));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begun, 5s);
  const std::string lines = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(lines, HasSubstr("the collector does not take spans"));
  EXPECT_EQ(lines.find("the collector"), lines.rfind("the collector")) << "is not said for every batch";
}

TEST_F(OtlpExporterTest, TheEndDoesNotWaitForACollectorThatIsSilent) {
  const int silent = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(silent, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(silent, 10), 0);
  getsockname(silent, reinterpret_cast<sockaddr*>(&address), &size);
  OtlpOptions slow = options();
  slow.url = *http::parse_url("http://127.0.0.1:" + std::to_string(ntohs(address.sin_port)) + "/v1/traces");
  slow.at_end = 200ms;
  std::chrono::steady_clock::time_point begun;
  {
    OtlpExporter exporter(slow);
    exporter.add(span());
    std::this_thread::sleep_for(100ms);  // its call is under way
    begun = std::chrono::steady_clock::now();
  }
  const auto took = std::chrono::steady_clock::now() - begun;
  EXPECT_GE(took, 190ms) << "it has its time";
  EXPECT_LT(took, 3s);
  close(silent);
}

}  // namespace
}  // namespace xgen::trace
