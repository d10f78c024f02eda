#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <sstream>
#include <thread>

#include "base/file_set.h"
#include "base/json.h"
#include "base/log.h"
#include "base/prefetch.h"
#include "base/units.h"
#include "base/utf8.h"
#include "base/worker_pool.h"

namespace xgen {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

TEST(Units, Bytes) {
  EXPECT_EQ(parse_bytes("123").value(), 123u);
  EXPECT_EQ(parse_bytes("4KiB").value(), 4096u);
  EXPECT_EQ(parse_bytes("1.5 GiB").value(), 1610612736u);
  EXPECT_EQ(parse_bytes("2MB").value(), 2000000u);
  for (const char* bad : {"", "x", "-1", "1XB", "1e400", "nan", "inf", "99999999999TiB", "1 GiB x"}) {
    EXPECT_FALSE(parse_bytes(bad).ok()) << bad;
  }
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(7), "7 B");
}

TEST(Units, Durations) {
  EXPECT_EQ(parse_duration("250ms").value().count(), 250);
  EXPECT_EQ(parse_duration("1.5s").value().count(), 1500);
  EXPECT_EQ(parse_duration("10m").value().count(), 600'000);
  EXPECT_EQ(parse_duration("3").value().count(), 3000);
  // The longest still fits into a clock of nanoseconds.
  EXPECT_LT(std::chrono::nanoseconds(parse_duration("11000d").value()).count(), 1e18);
  for (const char* bad : {"", "s", "-1s", "1y", "1e30d", "100000d"}) EXPECT_FALSE(parse_duration(bad).ok()) << bad;
}

TEST(Units, MachineLimitsArePlausible) {
  EXPECT_GE(available_cpus(), 1);
  EXPECT_LE(available_cpus(), static_cast<int>(std::thread::hardware_concurrency()));
  EXPECT_GT(available_host_memory(), std::uint64_t{64} << 20);
}

TEST(Utf8, ValidityFollowsTheUnicodeTable) {
  for (const char* good :
       {"", "abc", "\xC3\xA9", "\xED\x9F\xBF", "\xEE\x80\x80", "\xF0\x9F\x98\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_TRUE(is_valid_utf8(good)) << good;
  }
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
                          "\xF4\x90\x80\x80", "\xF5", "\xE2\x82"}) {
    EXPECT_FALSE(is_valid_utf8(bad));
  }
}

TEST(Utf8, CompletePrefixHoldsBackOnlyUnfinishedCharacters) {
  const std::string text = "a\xE2\x82\xAC\xF0\x9F\x98\x80z";
  // The end of the last whole character at or before each cut.
  const std::size_t want[] = {0, 1, 1, 1, 4, 4, 4, 4, 8, 9};
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    EXPECT_EQ(complete_utf8_prefix(std::string_view(text).substr(0, cut)), want[cut]) << cut;
  }
  EXPECT_EQ(complete_utf8_prefix("a\xFF"), 2u);  // invalid, not unfinished
  EXPECT_EQ(complete_utf8_prefix("\x80\x80"), 2u);
}

TEST(Utf8, ReplacementCountsAsPythonDoes) {
  // python3: bytes.decode("utf-8", errors="replace")
  EXPECT_EQ(replace_invalid_utf8("a\xE2\x82z"), "a\xEF\xBF\xBDz");
  EXPECT_EQ(replace_invalid_utf8("\xC0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x98"), "\xEF\xBF\xBD");
}

TEST(Json, LimitsAndFaults) {
  EXPECT_TRUE(parse_json(" {\"a\": [1, 2.5, \"x\"]} \n").ok());
  for (const char* bad : {"", "{", "[1,]", "{\"a\":1} x", "nul", "\"\xFF\"", "01", "NaN"})
    EXPECT_FALSE(parse_json(bad).ok()) << bad;
  EXPECT_FALSE(parse_json(std::string(65, '[') + std::string(65, ']')).ok());
  EXPECT_TRUE(parse_json(std::string(60, '[') + std::string(60, ']')).ok());
  EXPECT_THAT(parse_json(std::string(100'000, '[')).error().message, HasSubstr("deeper than 64"));
  EXPECT_FALSE(parse_json("[1]", {.max_depth = 8, .max_size = 2}).ok());
  for (const char* bad : {"\"\xFF\"", "\"\xE2\x82\"", "\"\xE2\x82", "\xC0", "\"\xED\xA0\x80\""})
    EXPECT_EQ(parse_json(std::string("[1,") + bad).error().message,
              "not valid UTF-8 at byte " + std::to_string(*bad == '"' ? 4 : 3))
        << bad;
  EXPECT_THAT(parse_json("[x, \"\xFF\"]").error().message, HasSubstr("invalid JSON at byte 1")) << "what comes first";
}

class FileSetTest : public ::testing::Test {
 protected:
  fs::path folder = fs::path(::testing::TempDir()) / "xgen_file_set_test";
  void SetUp() override { fs::create_directories(folder / "sub"); }
  void TearDown() override { fs::remove_all(folder); }
  void put(const std::string& name, const std::string& text) { std::ofstream(folder / name) << text; }
};

TEST_F(FileSetTest, FolderListsAndMapsRegularFiles) {
  put("b.txt", "two");
  put("a.txt", "");
  auto files = open_files(folder.string());
  ASSERT_TRUE(files.ok());
  EXPECT_THAT((*files)->list(), ElementsAre("a.txt", "b.txt"));
  EXPECT_EQ((*files)->open("b.txt")->text(), "two");
  EXPECT_EQ((*files)->open("a.txt")->size(), 0u);
  EXPECT_THAT((*files)->open("c.txt").error().message, HasSubstr("c.txt: no such file"));
  for (const char* bad : {"", ".", "..", "../x", "/etc/passwd", "sub/x"}) EXPECT_FALSE((*files)->open(bad).ok()) << bad;
}

TEST_F(FileSetTest, ASingleFileBringsItsOtherParts) {
  for (const char* name : {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf", "other.gguf"})
    put(name, "x");
  auto parts = open_files((folder / "m-00001-of-00003.gguf").string());
  ASSERT_TRUE(parts.ok());
  EXPECT_EQ((*parts)->list().size(), 3u);
  auto one = open_files((folder / "other.gguf").string());
  ASSERT_TRUE(one.ok());
  EXPECT_THAT((*one)->list(), ElementsAre("other.gguf"));
}

TEST_F(FileSetTest, FaultsNameThePath) {
  EXPECT_THAT(open_files((folder / "nope").string()).error().message, HasSubstr("nope"));
  EXPECT_FALSE(open_files("/dev/null").ok());
}

TEST(FileSet, Embedded) {
  auto files = embedded_files("built-in:x", {{"b", "2"}, {"a", "1"}});
  EXPECT_THAT(files->list(), ElementsAre("a", "b"));
  EXPECT_EQ(files->open("a")->text(), "1");
  EXPECT_THAT(files->open("c").error().message, HasSubstr("built-in:x/c"));
}

TEST(WorkerPool, EveryPartRunsExactlyOnce) {
  for (const int threads : {1, 2, 3, 5}) {
    WorkerPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (int round = 0; round < 300; ++round) {
      const int parts = round % 17;
      std::vector<std::atomic<int>> hits(static_cast<std::size_t>(parts));
      pool.run(parts, [&](int part) { hits[static_cast<std::size_t>(part)].fetch_add(1); });
      for (const auto& hit : hits) ASSERT_EQ(hit.load(), 1);
    }
  }
}

TEST(WorkerPool, CallersFromSeveralThreadsTakeTurns) {
  WorkerPool pool(3);
  std::vector<std::thread> callers;
  std::atomic<std::int64_t> total{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        std::vector<int> out(64);
        pool.run(64, [&](int part) { out[static_cast<std::size_t>(part)] = part; });
        total += std::accumulate(out.begin(), out.end(), 0);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total.load(), 4 * 200 * 64 * 63 / 2);
}

TEST(WorkerPool, KnowsWhetherOthersShareIt) {
  WorkerPool pool(2);
  EXPECT_FALSE(pool.shared());
  {
    const WorkerPool other(pool, 1);
    EXPECT_TRUE(pool.shared());
  }
  EXPECT_FALSE(pool.shared());
}

TEST(Background, GivesWayWhereOthersCompute) {
  const auto policy = [] { return ::sched_getscheduler(0); };
  const int own = policy();
  EXPECT_EQ(in_background(true, policy), SCHED_IDLE);
  EXPECT_EQ(in_background(false, policy), own);
  EXPECT_EQ(policy(), own);
}

TEST(Background, APaceRestsOnlyWhereOthersCompute) {
  using Clock = std::chrono::steady_clock;
  const auto paced = [](bool others) {
    const auto computed = [] { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; };
    Pace pace;
    pace.rest(false);
    const auto begin = Clock::now();
    const double until = computed() + 0.003;  // of this process, whose only busy thread this is
    while (computed() < until) {
    }
    pace.rest(others);
    return Clock::now() - begin;
  };
  EXPECT_GE(paced(true), std::chrono::milliseconds(25));
  const auto least = std::min({paced(false), paced(false), paced(false)});
  EXPECT_LT(least, std::chrono::milliseconds(25));
}

TEST(WorkerPool, TellsWhetherAUserComputes) {
  WorkerPool pool(2);
  WorkerPool user(pool, 1);
  EXPECT_FALSE(pool.busy());
  {
    const WorkerPool::Turn turn(user);
    EXPECT_TRUE(pool.busy());
  }
  EXPECT_FALSE(pool.busy());
}

TEST(WorkerPool, AnIdlePoolSleeps) {
  WorkerPool pool(2);
  pool.run(2, [](int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC, 0.02);
}

TEST(Log, NoValueCanForgeALineOrAField) {
  const auto written = [](log::Format format) {
    log::set_format(format);
    ::testing::internal::CaptureStderr();
    log::info("http", "a\nb \"c\"\x7f",
              {{"path", "/x status=200\r\n2030 info forged\xff"}, {"csi", "\xc2\x9b\xc2\xa0"}, {"id", "bare"}});
    log::set_format(log::Format::text);
    return ::testing::internal::GetCapturedStderr();
  };
  const std::string text = written(log::Format::text);
  EXPECT_NE(text.find(R"( http: a\nb \"c\"\u007f path="/x status=200\r\n2030 info forged)"
                      "\xEF\xBF\xBD\" csi=\"\\u009b\xc2\xa0\" id=bare\n"),
            std::string::npos)
      << text;
  const std::string line = written(log::Format::json);
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  const auto parsed = parse_json(line);
  ASSERT_TRUE(parsed.ok()) << line;
  EXPECT_EQ(parsed.value().at("message").as_string(), "a\nb \"c\"\x7f");
  EXPECT_EQ(parsed.value().at("id").as_string(), "bare");
}

TEST(Log, WhoDoesNotReadItHoldsNobodyUp) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const int real = dup(STDERR_FILENO);
  dup2(ends[1], STDERR_FILENO);
  const std::uint64_t before = log::lost();
  const auto begun = std::chrono::steady_clock::now();
  const std::string text(9000, 'x');  // more than a pipe takes in one go
  std::thread other([&] {
    for (int i = 0; i < 1000; ++i) log::info("test", "other", {{"text", text}});
  });
  for (int i = 0; i < 1000; ++i) log::info("test", "line");
  other.join();
  const auto took = std::chrono::steady_clock::now() - begun;
  const std::uint64_t lost = log::lost() - before;
  std::string read_back;
  std::array<char, 65536> part{};
  const auto drain = [&] {
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    for (ssize_t n = 0; (n = read(ends[0], part.data(), part.size())) > 0;)
      read_back.append(part.data(), static_cast<std::size_t>(n));
  };
  drain();
  log::info("test", "there is room again");
  drain();
  dup2(real, STDERR_FILENO);
  for (const int fd : {ends[0], ends[1], real}) close(fd);

  EXPECT_LT(took, std::chrono::seconds(5));
  EXPECT_GT(lost, 500u);
  std::istringstream lines(read_back);
  std::vector<std::string> all;
  for (std::string line; std::getline(lines, line);) all.push_back(line);
  ASSERT_GE(all.size(), 3u);
  EXPECT_THAT(all.back(), ::testing::EndsWith("test: there is room again"));
  EXPECT_THAT(all[all.size() - 2],
              ::testing::EndsWith("warn  log: lines are lost: stderr took no more lines=" + std::to_string(lost)));
  // What was cut off is a line of its own, and the only one of its kind.
  int cut = 0;
  for (const std::string& line : all) {
    ASSERT_GT(line.size(), 24u);
    EXPECT_EQ(line[23], 'Z') << line.substr(0, 40);
    cut += line.find("other") != std::string::npos && !line.ends_with(text);
  }
  EXPECT_LE(cut, 1);
  EXPECT_EQ(log::lost() - before, lost);
}

TEST(Log, NumbersAreNumbersInJson) {
  const auto written = [](log::Format format) {
    log::set_format(format);
    ::testing::internal::CaptureStderr();
    log::info("http", "m",
              {{"status", 404},
               {"bytes", std::uint64_t{1} << 63},
               {"least", std::int64_t{-5}},
               {"ms", log::Decimal{1.005, 2}},
               {"share", log::Decimal{std::numeric_limits<double>::quiet_NaN(), 1}},
               {"text", "7"}});
    log::set_format(log::Format::text);
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_THAT(written(log::Format::text),
              ::testing::EndsWith(" m status=404 bytes=9223372036854775808 least=-5 ms=1.00 share=nan text=7\n"));
  const std::string line = written(log::Format::json);
  const auto parsed = parse_json(line);
  ASSERT_TRUE(parsed.ok()) << line;
  EXPECT_EQ(parsed.value().at("status"), 404);
  EXPECT_EQ(parsed.value().at("bytes"), std::uint64_t{1} << 63);
  EXPECT_EQ(parsed.value().at("least"), -5);
  EXPECT_EQ(parsed.value().at("ms"), 1.00);
  EXPECT_EQ(parsed.value().at("share"), "nan");  // no number of JSON
  EXPECT_EQ(parsed.value().at("text"), "7");
}

}  // namespace
}  // namespace xgen
