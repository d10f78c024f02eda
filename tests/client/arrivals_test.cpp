#include "client/arrivals.h"

#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

namespace xgen::client {
namespace {

std::vector<double> times(Arrivals arrivals, std::size_t count) {
  std::vector<double> out;
  while (out.size() < count)
    if (const auto at = arrivals.next())
      out.push_back(*at);
    else
      break;
  return out;
}

TEST(Arrivals, PoissonHasTheRateAndExponentialGaps) {
  constexpr std::size_t kCount = 200'000;
  constexpr double kRate = 50;
  const auto at = times(Arrivals(Arrivals::Kind::poisson, kRate, 7, nullptr), kCount);
  EXPECT_NEAR(kCount / at.back(), kRate, kRate * 0.01);
  // The share of gaps up to t is 1 - exp(-rate t): the largest difference (Kolmogorov and Smirnov) is below 1.63 /
  // sqrt(n) with a probability of 99%.
  std::vector<double> gaps;
  for (std::size_t i = 1; i < at.size(); ++i) gaps.push_back(at[i] - at[i - 1]);
  std::sort(gaps.begin(), gaps.end());
  double largest = 0;
  for (std::size_t i = 0; i < gaps.size(); ++i)
    largest = std::max(
        largest, std::abs(1 - std::exp(-kRate * gaps[i]) - static_cast<double>(i) / static_cast<double>(gaps.size())));
  EXPECT_LT(largest, 1.63 / std::sqrt(static_cast<double>(gaps.size())));
}

// Counts of a Poisson process in equal times have a variance like their mean.
TEST(Arrivals, PoissonCountsVaryLikeTheirMean) {
  std::vector<double> counts(10'000);
  Arrivals arrivals(Arrivals::Kind::poisson, 20, 3, nullptr);
  for (double at = *arrivals.next(); at < 10'000; at = *arrivals.next()) counts[static_cast<std::size_t>(at)] += 1;
  double mean = 0, variance = 0;
  for (const double each : counts) mean += each / 10'000;
  for (const double each : counts) variance += (each - mean) * (each - mean) / 10'000;
  EXPECT_NEAR(mean, 20, 0.3);
  EXPECT_NEAR(variance / mean, 1, 0.06);
}

TEST(Arrivals, TheSeedDecides) {
  const auto draw = [](std::uint64_t seed) { return times(Arrivals(Arrivals::Kind::poisson, 5, seed, nullptr), 100); };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(Arrivals, ConstantOnesComeEvenly) {
  const auto at = times(Arrivals(Arrivals::Kind::constant, 4, 1, nullptr), 5);
  EXPECT_EQ(at, (std::vector<double>{0, 0.25, 0.5, 0.75, 1}));
}

TEST(Arrivals, ATraceKeepsItsPaceOrIsBroughtToARate) {
  const std::vector<TraceRow> trace{{0, 1, 1}, {1, 1, 1}, {1.5, 1, 1}, {6, 1, 1}};
  EXPECT_EQ(times(Arrivals(Arrivals::Kind::trace, 0, 1, &trace), 9), (std::vector<double>{0, 1, 1.5, 6}));
  // Half a request a second by itself: four times as fast.
  EXPECT_EQ(times(Arrivals(Arrivals::Kind::trace, 2, 1, &trace), 9), (std::vector<double>{0, 0.25, 0.375, 1.5}));
}

TEST(Trace, ReadsAzuresFormat) {
  std::istringstream text(
      "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.5,374,44\r\n2023-11-17 "
      "00:00:01.2500000,396,0\n\n");
  const auto rows = read_trace(text, "t.csv");
  ASSERT_TRUE(rows.ok()) << rows.error().message;
  ASSERT_EQ(rows->size(), 2u);
  EXPECT_EQ((*rows)[0].at, 0);
  EXPECT_NEAR((*rows)[1].at, 1.75, 1e-6);
  EXPECT_EQ((*rows)[0].input, 374);
  EXPECT_EQ((*rows)[0].output, 44);
  EXPECT_EQ((*rows)[1].output, 1) << "no request asks for nothing";
}

TEST(Trace, ColumnsMayHaveAnyOrderAndTimesMayBeSeconds) {
  std::istringstream text("\xef\xbb\xbfid,GeneratedTokens,TIMESTAMP,ContextTokens\n1,5,10.5,7\n2,6,11,8\n");
  const auto rows = read_trace(text, "t.csv");
  ASSERT_TRUE(rows.ok()) << rows.error().message;
  EXPECT_EQ((*rows)[1].at, 0.5);
  EXPECT_EQ((*rows)[1].input, 8);
  EXPECT_EQ((*rows)[1].output, 6);
}

TEST(Trace, FaultsNameTheLine) {
  const std::string head = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  const std::pair<std::string, std::string> cases[] = {
      {"", "t.csv: it has no rows"},
      {head, "t.csv: it has no rows"},
      {"TIMESTAMP,ContextTokens\n1,2\n", "t.csv, line 1: there is no column GeneratedTokens"},
      {head + "1,2,3\n1,2\n", "t.csv, line 3: no GeneratedTokens"},
      {head + "yesterday,2,3\n", "t.csv, line 2: TIMESTAMP"},
      {head + "2023-02-30 00:00:00,2,3\n", "t.csv, line 2: TIMESTAMP"},
      {head + "1,-2,3\n", "t.csv, line 2: ContextTokens"},
      {head + "1,2,many\n", "t.csv, line 2: GeneratedTokens"},
      {head + "2,2,3\n1,2,3\n", "t.csv, line 3: TIMESTAMP is before"},
  };
  for (const auto& [text, want] : cases) {
    std::istringstream stream(text);
    const auto rows = read_trace(stream, "t.csv");
    ASSERT_FALSE(rows.ok()) << text;
    EXPECT_TRUE(rows.error().message.starts_with(want)) << rows.error().message;
  }
  EXPECT_NE(read_trace_file("/nonexistent.csv").error().message.find("/nonexistent.csv: No such file"),
            std::string::npos);
}

}  // namespace
}  // namespace xgen::client
