#include "client/figures.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/json.h"
#include "client/report.h"

namespace xgen::client {
namespace {

TEST(Percentile, IsTheSmallestValueThatTheShareDoesNotExceed) {
  std::vector<float> values;
  for (int i = 1; i <= 100; ++i) values.push_back(static_cast<float>(i));
  EXPECT_EQ(percentile(values, 0.5), 50);
  EXPECT_EQ(percentile(values, 0.9), 90);
  EXPECT_EQ(percentile(values, 0.99), 99);
  EXPECT_EQ(percentile(values, 1), 100);
  EXPECT_EQ(percentile(values, 0), 1);
  EXPECT_EQ(percentile({7}, 0.99), 7);
  EXPECT_EQ(percentile({1, 2, 3}, 0.5), 2);
  EXPECT_EQ(percentile({1, 2, 3, 4}, 0.5), 2);
  EXPECT_EQ(percentile({}, 0.5), 0);
}

TEST(Percentile, SummariesSortAndAverage) {
  std::vector<float> values{4, 1, 3, 2};
  const Summary summary = summarize(values);
  EXPECT_EQ(summary.count, 4u);
  EXPECT_EQ(summary.mean, 2.5);
  EXPECT_EQ(summary.p50, 2);
  EXPECT_EQ(summary.max, 4);
}

// One that began at 1 s, had its first text after 0.5 s, gaps of 0.1, 0.3 and 0.2 s, and its end with the last.
Record record(double planned = 1) {
  Record one;
  one.planned = planned;
  one.sent = planned + 0.01;
  one.first = planned + 0.5;
  one.gaps = {0.1F, 0.3F, 0.2F};
  one.last = one.end = planned + 1.1;
  one.events = 4;
  one.input = 10;
  one.output = 6;
  one.has_usage = true;
  one.usage = {12, 3, 7};
  one.counted = true;
  return one;
}

TEST(Figures, OfOneRequestAreAsDefined) {
  const Record one = record();
  EXPECT_NEAR(ttft_of(one), 0.5, 1e-9);
  EXPECT_NEAR(e2e_of(one), 1.1, 1e-9);
  EXPECT_NEAR(*tpot_of(one), 0.6 / 6, 1e-9) << "seven tokens: six after the first";
  Record by_events = one;
  by_events.has_usage = false;
  EXPECT_NEAR(*tpot_of(by_events), 0.6 / 3, 1e-9);
  by_events.events = 1;
  EXPECT_FALSE(tpot_of(by_events).has_value());
}

TEST(Figures, GoodRequestsKeepEveryLimit) {
  const auto kept = [](const char* text, const Record& one) { return parse_slo(text)->kept_by(one); };
  const Record one = record();
  EXPECT_TRUE(kept("ttft=501ms,itl=301ms,tpot=101ms,e2e=1101ms", one));
  EXPECT_FALSE(kept("ttft=499ms", one));
  EXPECT_FALSE(kept("itl=299ms", one)) << "each gap counts";
  EXPECT_FALSE(kept("tpot=99ms", one));
  EXPECT_FALSE(kept("e2e=1s", one));
  Record failed = one;
  failed.fault = Fault::cut;
  EXPECT_FALSE(kept("e2e=1h", failed));
  Record silent = one;
  silent.events = 0;
  EXPECT_FALSE(kept("ttft=1h", silent));
}

TEST(Figures, LimitsAreReadWithTheirUnits) {
  EXPECT_EQ(parse_slo("ttft=200ms,e2e=2s")->text(), "ttft 200 ms, e2e 2000 ms");
  for (const char* text : {"", "ttft", "ttft=", "ttft=200", "ttfb=2s", "ttft=2s,", "itl=fast", "itl=0ms", "itl=-1s"})
    EXPECT_FALSE(parse_slo(text).ok()) << text;
}

LoadResult result_of(const std::vector<Record>& records, double begin, double end) {
  LoadResult result;
  result.records.assign(records.begin(), records.end());
  result.begin = begin;
  result.end = end;
  return result;
}

TEST(Figures, ThroughputIsWhatCameInTheMeasuredTime) {
  // The second one begins inside and ends outside; the third belongs to the warm-up, and ends inside.
  Record warm = record(0.2);
  warm.counted = false;
  const Figures figures = figures_of(result_of({record(1), record(1.9), warm}, 1, 3), {});
  EXPECT_EQ(figures.counted, 2u);
  EXPECT_EQ(figures.succeeded, 2u);
  EXPECT_EQ(figures.ttft.count, 2u);
  EXPECT_EQ(figures.itl.count, 6u);
  EXPECT_NEAR(figures.requests_per_second, 3 / 2.0, 1e-9);
  // Seven tokens over four events each: four of the first; of the second 2.4, 2.5, 2.8 and 3.0; of the third the two
  // at 1.1 and 1.3.
  EXPECT_NEAR(figures.output_per_second, (7 + 7 + 2 * 1.75) / 2, 0.9);
  EXPECT_NEAR(figures.input_per_second, 24 / 2.0, 1e-9);
  EXPECT_NEAR(figures.cached, 0.25, 1e-9);
  EXPECT_NEAR(figures.late.p50, 0.01, 1e-6);
  EXPECT_EQ(figures.with_usage, 2u);
}

TEST(Figures, FaultsAreCountedByKindAndHaveNoLatencies) {
  Record refused = record(), cut = record(), late = record();
  refused.fault = Fault::refused;
  refused.status = 429;
  cut.fault = Fault::cut;
  late.fault = Fault::refused;
  late.status = 503;
  const Figures figures = figures_of(result_of({refused, refused, cut, late, record()}, 0, 4), *parse_slo("e2e=2s"));
  EXPECT_EQ(figures.faults, (std::map<std::string, std::uint64_t>{{"cut", 1}, {"refused 429", 2}, {"refused 503", 1}}));
  EXPECT_EQ(figures.succeeded, 1u);
  EXPECT_EQ(figures.ttft.count, 1u);
  EXPECT_EQ(figures.good, 1u);
  EXPECT_NEAR(figures.good_per_second, 1 / 4.0, 1e-9);
  double failed = 0;
  for (const auto& moment : figures.line) failed += static_cast<double>(moment.failed);
  EXPECT_EQ(failed, 4);
}

TEST(Figures, TheTimeLineAddsUp) {
  const Figures figures = figures_of(result_of({record(1), record(2), record(2.5)}, 0, 4), {});
  double tokens = 0, running = 0;
  for (const auto& moment : figures.line) {
    tokens += moment.output_per_second * figures.step;
    running += moment.running * figures.step;
  }
  EXPECT_NEAR(tokens, 21, 1e-6);
  EXPECT_NEAR(running, 3 * 1.09, 1e-6);
  EXPECT_NEAR(figures.running, 3 * 1.09 / 4, 1e-6);
}

TEST(Figures, OfNothingAreNothing) {
  const Figures figures = figures_of(result_of({}, 5, 3), *parse_slo("e2e=2s"));
  EXPECT_EQ(figures.counted, 0u);
  EXPECT_EQ(figures.ttft.p99, 0);
}

// ---- Reports ----

Subject subject() {
  Subject one;
  one.version = "0";
  one.url = "http://h/v1";
  one.model = "<a & \"b\">\x01\xff";
  one.requests.input = one.requests.output = Lengths{Lengths::Kind::fixed, 5, 5};
  one.load.requests = 3;
  one.slo = *parse_slo("ttft=200ms,itl=50ms");
  return one;
}

// Enough of XML 1.0 for what is drawn here: declaration, elements that are closed, quoted attributes, known entities.
void expect_well_formed(std::string_view text) {
  ASSERT_TRUE(text.starts_with("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"));
  text.remove_prefix(text.find('\n') + 1);
  std::vector<std::string> open;
  while (!text.empty()) {
    const std::size_t begin = text.find('<');
    const std::string_view words = text.substr(0, begin);
    for (std::size_t at = words.find('&'); at != std::string_view::npos; at = words.find('&', at + 1)) {
      const std::string_view rest = words.substr(at);
      EXPECT_TRUE(rest.starts_with("&lt;") || rest.starts_with("&amp;") || rest.starts_with("&quot;")) << rest;
    }
    for (const char c : words) EXPECT_TRUE(static_cast<unsigned char>(c) >= 0x20 || c == '\n');
    if (begin == std::string_view::npos) break;
    const std::size_t end = text.find('>', begin);
    ASSERT_NE(end, std::string_view::npos);
    std::string tag(text.substr(begin + 1, end - begin - 1));
    text.remove_prefix(end + 1);
    if (tag.starts_with('/')) {
      ASSERT_FALSE(open.empty());
      EXPECT_EQ(tag.substr(1), open.back());
      open.pop_back();
      continue;
    }
    const bool closed = tag.ends_with('/');
    if (closed) tag.pop_back();
    EXPECT_EQ(std::count(tag.begin(), tag.end(), '"') % 2, 0) << tag;
    EXPECT_EQ(tag.find("nan"), std::string::npos) << tag;
    EXPECT_EQ(tag.find("inf"), std::string::npos) << tag;
    if (!closed) open.push_back(tag.substr(0, tag.find(' ')));
  }
  EXPECT_TRUE(open.empty());
}

TEST(Report, ThePictureIsWellFormed) {
  Record failed = record(2);
  failed.fault = Fault::timeout;
  Record long_one = record(1.5);
  long_one.gaps = {0.0000001F, 5, 60};
  Record single = record(2);
  single.gaps.clear();
  single.events = 1;
  const std::vector<std::vector<Record>> cases = {
      {}, {record()}, {single}, {failed}, {record(), record(2), failed, long_one, single}};
  for (const auto& records : cases)
    for (const double end : {0.0, 4.0}) {
      const LoadResult result = result_of(records, 0, end);
      expect_well_formed(report_svg(subject(), figures_of(result, subject().slo)));
    }
}

TEST(Report, TheJsonIsJsonAndHoldsTheFigures) {
  Record failed = record();
  failed.fault = Fault::refused;
  failed.status = 500;
  LoadResult result = result_of({record(), failed}, 0, 4);
  result.messages["refused 500"] = "a \"quote\"\n";
  const auto value = parse_json(report_json(subject(), result, figures_of(result, subject().slo)));
  ASSERT_TRUE(value.ok()) << value.error().message;
  EXPECT_EQ(value->at("requests").at("succeeded").as_int64(), 1);
  EXPECT_EQ(value->at("errors").at("refused 500").at("first").as_string(), "a \"quote\"\n");
  EXPECT_NEAR(value->at("ttft_ms").at("p50").to_number<double>(), 500, 0.01);
  EXPECT_EQ(value->at("tokens").at("counted_by").as_string(), "usage");
  EXPECT_EQ(value->at("goodput").at("good").as_int64(), 0);
  EXPECT_TRUE(parse_json(report_json(subject(), {}, figures_of({}, {}))).ok());
}

TEST(Report, AllOfTheSeedIsInTheJson) {
  Subject one = subject();
  one.requests.seed = 12345678901234567890U;
  EXPECT_EQ(parse_json(report_json(one, {}, figures_of({}, {})))->at("load").at("seed").as_uint64(), one.requests.seed);
}

TEST(Report, ABusyThreadIsWarnedOf) {
  LoadResult result = result_of({record()}, 0, 4);
  Subject one = subject();
  one.load.threads = 4;
  const auto text = [&] { return report_text(one, result, figures_of(result, {})); };
  const auto has = [&](const char* words) { return text().find(words) != std::string::npos; };
  result.receiver = result.sender = 4 * 0.8;
  one.load.open = true;
  EXPECT_FALSE(has("of a core: "));
  result.receiver = 4 * 0.9;
  EXPECT_TRUE(has("a thread that receives used 90% of a core"));
  EXPECT_FALSE(has("that sends used"));
  result.receiver = 0;
  result.sender = 4 * 0.95;
  EXPECT_TRUE(has("the thread that sends used 95% of a core"));
  EXPECT_FALSE(has("that receives used"));
}

TEST(Report, TheTextNamesFaultsAndWhoCounted) {
  Record failed = record();
  failed.fault = Fault::refused;
  failed.status = 429;
  Record by_events = record();
  by_events.has_usage = false;
  LoadResult result = result_of({record(), by_events, failed}, 0, 4);
  result.messages["refused 429"] = "the server answered 429: slow\x1b down\xc2\x9b";
  const std::string text = report_text(subject(), result, figures_of(result, subject().slo));
  EXPECT_NE(text.find("1 refused 429, the first: the server answered 429: slow  down"), std::string::npos) << text;
  EXPECT_NE(text.find("(usage) for 1 requests, by events for the others"), std::string::npos) << text;
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_EQ(text.find("\xc2\x9b"), std::string::npos) << "U+009B is CSI too";
  EXPECT_EQ(text.find('\x01'), std::string::npos);
}

TEST(Report, TimesHaveThreeDigits) {
  EXPECT_EQ(time_text(0.0000123), "12 us");
  EXPECT_EQ(time_text(0.00123), "1.23 ms");
  EXPECT_EQ(time_text(0.0123), "12.3 ms");
  EXPECT_EQ(time_text(0.123), "123 ms");
  EXPECT_EQ(time_text(1.23), "1.23 s");
  EXPECT_EQ(time_text(123), "123 s");
}

}  // namespace
}  // namespace xgen::client
