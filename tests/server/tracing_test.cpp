// The spans that a request for inference leaves, with a sink that keeps them.
#include <gmock/gmock.h>

#include <map>
#include <mutex>

#include "server/fixture.h"

namespace xgen::server {
namespace {

using namespace std::chrono_literals;
using scripted::Answer;
using scripted::RawClient;
using ::testing::HasSubstr;
using ::testing::Not;

struct Spans final : trace::Sink {
  void add(trace::Span span) override {
    std::lock_guard lock(mutex);
    all.push_back(std::move(span));
  }
  std::vector<trace::Span> take() {
    std::lock_guard lock(mutex);
    return std::exchange(all, {});
  }
  std::mutex mutex;
  std::vector<trace::Span> all;
};

constexpr const char* kTrace = "0af7651916cd43dd8448eb211c80319c";

class TracingTest : public ControllerTest {
 protected:
  Answer ask(const std::string& path, const std::string& body, const std::string& headers = "") {
    RawClient client(http->port());
    client.send("POST " + path + " HTTP/1.1\r\nHost: t\r\n" + headers +
                "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
    return client.read_answer();
  }
  // Of a request with this many spans, the root last.
  std::vector<trace::Span> spans(std::size_t count) {
    EXPECT_TRUE(eventually([&] {
      std::lock_guard lock(sink->mutex);
      return sink->all.size() >= count;
    }));
    std::vector<trace::Span> all = sink->take();
    EXPECT_EQ(all.size(), count);
    return all;
  }
  static std::string text_of(const trace::Span& span) {
    std::string out;
    for (const auto& [key, value] : span.attributes) {
      out += key + "=";
      if (const auto* text = std::get_if<std::string>(&value)) out += *text;
      if (const auto* number = std::get_if<std::int64_t>(&value)) out += std::to_string(*number);
      if (const auto* real = std::get_if<double>(&value)) out += std::to_string(*real);
      if (const auto* list = std::get_if<std::vector<std::string>>(&value))
        for (const std::string& each : *list) out += each + ",";
      out += "\n";
    }
    return out;
  }
  static std::string caller(bool sampled) {
    return std::string("traceparent: 00-") + kTrace + "-b7ad6b7169203331-0" + (sampled ? "1" : "0") +
           "\r\ntracestate: vendor=1\r\n";
  }

  const std::shared_ptr<Spans> sink = std::make_shared<Spans>();
};

TEST_F(TracingTest, ARequestLeavesItsSpans) {
  start({.version = "1", .tracing = {sink, 1}});
  const Answer answer = ask(
      "/v1/chat/completions",
      R"({"model":"scripted","messages":[{"role":"user","content":"say Hello"}],"max_tokens":9,"temperature":0.5,"top_k":3,)"
      R"("frequency_penalty":0.5,"presence_penalty":0.25})",
      "x-request-id: abc\r\n");
  ASSERT_EQ(answer.status, 200);
  const auto all = spans(4);
  const trace::Span& root = all.back();
  EXPECT_EQ(root.name, "chat scripted");
  EXPECT_EQ(root.kind, trace::Span::Kind::server);
  EXPECT_TRUE(root.parent_id.empty());
  EXPECT_FALSE(root.failed);
  EXPECT_GE(root.end, root.start);
  const std::string text = text_of(root);
  for (const char* each :
       {"gen_ai.operation.name=chat\n", "gen_ai.request.model=scripted\n", "gen_ai.response.model=scripted\n",
        "gen_ai.request.max_tokens=9\n", "gen_ai.request.temperature=0.500000\n", "gen_ai.usage.output_tokens=2\n",
        "gen_ai.request.top_k=3.000000\n", "gen_ai.request.frequency_penalty=0.500000\n",
        "gen_ai.request.presence_penalty=0.250000\n", "gen_ai.response.id=chatcmpl-abc\n",
        "gen_ai.response.finish_reasons=stop,\n", "gen_ai.usage.input_tokens=2\n",
        "gen_ai.usage.cache_read.input_tokens=0\n", "gen_ai.request.id=abc\n", "http.request.method=POST\n",
        "url.path=/v1/chat/completions\n", "http.response.status_code=200\n", "gen_ai.latency.time_to_first_token="})
    EXPECT_THAT(text, HasSubstr(each));
  const char* names[] = {"queue", "prefill", "decode"};
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(all[i].name, names[i]);
    EXPECT_EQ(all[i].context.trace_id, root.context.trace_id);
    EXPECT_EQ(all[i].parent_id, root.context.span_id);
    EXPECT_NE(all[i].context.span_id, root.context.span_id);
    EXPECT_GE(all[i].start, root.start - 1ms);
    EXPECT_EQ(all[i].start, i == 0 ? all[i].start : all[i - 1].end);
  }
}

TEST_F(TracingTest, TheCallersTraceGoesOn) {
  start({.version = "1", .tracing = {sink, 0}});
  const std::string body = R"({"model":"scripted","prompt":"say x"})";
  ASSERT_EQ(ask("/v1/completions", body, caller(true)).status, 200);
  const trace::Span root = spans(4).back();
  EXPECT_EQ(root.context.trace_id, kTrace);
  EXPECT_EQ(root.parent_id, "b7ad6b7169203331");
  EXPECT_EQ(root.name, "text_completion scripted");
  {
    std::lock_guard lock(service->last_mutex);
    EXPECT_EQ(service->last.trace.context.parent(), root.context.parent()) << "engines are told of the request's span";
    EXPECT_EQ(service->last.trace.context.state, "vendor=1");
    EXPECT_EQ(service->last.trace.sink, sink);
  }
  // As the caller wants it: without spans, but not forgotten.
  ASSERT_EQ(ask("/v1/completions", body, caller(false)).status, 200);
  {
    std::lock_guard lock(service->last_mutex);
    EXPECT_EQ(service->last.trace.context.parent(), std::string("00-") + kTrace + "-b7ad6b7169203331-00");
    EXPECT_EQ(service->last.trace.sink, nullptr);
  }
  // A share of 0 of those that nobody has decided.
  ASSERT_EQ(ask("/v1/completions", body).status, 200);
  {
    std::lock_guard lock(service->last_mutex);
    EXPECT_THAT(service->last.trace.context.parent(), ::testing::MatchesRegex("00-.*-.*-00"))
        << "who comes next does not decide it anew";
    EXPECT_EQ(service->last.trace.sink, nullptr);
  }
  get("/v1/models");
  EXPECT_TRUE(sink->take().empty());
}

TEST_F(TracingTest, WithoutACollectorTheTraceIsPassedOn) {
  start();
  ASSERT_EQ(ask("/v1/completions", R"({"model":"scripted","prompt":"say x"})", caller(true)).status, 200);
  std::lock_guard lock(service->last_mutex);
  EXPECT_EQ(service->last.trace.context.parent(), std::string("00-") + kTrace + "-b7ad6b7169203331-01");
  EXPECT_EQ(service->last.trace.sink, nullptr);
}

TEST_F(TracingTest, FailuresSayWhy) {
  start({.version = "1", .tracing = {sink, 1}});
  ask("/v1/completions", R"({"model":"scripted","prompt":"break"})");
  auto all = spans(2);  // how far it came is told all the same
  EXPECT_EQ(all[0].name, "decode");
  EXPECT_EQ(all[0].parent_id, all[1].context.span_id);
  trace::Span root = all.back();
  EXPECT_TRUE(root.failed);
  EXPECT_EQ(root.error, "scripted failure in the middle");
  EXPECT_THAT(text_of(root), HasSubstr("error.type=500\n"));
  ask("/v1/completions", R"({"model":"nobody","prompt":"x"})");
  root = spans(1).back();
  EXPECT_EQ(root.name, "POST /v1/completions");
  EXPECT_THAT(text_of(root), HasSubstr("http.response.status_code=404\n"));
  // What a client has done wrong is no failure of the server, by the conventions of HTTP.
  EXPECT_FALSE(root.failed);
  EXPECT_THAT(text_of(root), Not(HasSubstr("error.type")));
  // One that its client leaves.
  {
    RawClient gone(http->port());
    gone.post("/v1/completions", R"({"model":"scripted","prompt":"hold"})");
    ASSERT_TRUE(eventually([&] { return service->running.load() == 1; }));
    std::this_thread::sleep_for(20ms);
  }
  all = spans(2);
  EXPECT_EQ(all[0].name, "decode");
  EXPECT_GE(all[0].end - all[0].start, 15ms);
  EXPECT_THAT(text_of(all[1]), HasSubstr("http.response.status_code=499\n"));
  ask("/v1/completions", R"({"model":"scripted","prompt":"error 7"})");
  EXPECT_EQ(spans(2)[0].name, "queue") << "it never began";
  // Several prompts: each has its phases.
  ask("/v1/completions", R"({"model":"scripted","prompt":["say a","say b"]})");
  EXPECT_EQ(spans(7).back().name, "text_completion scripted");
}

}  // namespace
}  // namespace xgen::server
