// Mapped files that are cut short while they are read.
#include "base/file_damage.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "base/file_set.h"

namespace xgen {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

std::size_t page() { return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)); }

unsigned sum(const Bytes& bytes, std::size_t begin, std::size_t end) {
  unsigned total = 0;
  for (std::size_t i = begin; i < end; ++i) total += std::to_integer<unsigned>(bytes.data()[i]);
  return total;
}

class FileDamageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // A death test's child starts here again, and dies: its folder is inside its parent's, which removes it.
    const char* const parents = std::getenv(kParents);
    folder = parents != nullptr ? fs::path(parents) / "child"
                                : fs::path(::testing::TempDir()) / ("xgen_file_damage_" + std::to_string(::getpid()));
    fs::remove_all(folder);
    fs::create_directories(folder);
    if (parents == nullptr) ::setenv(kParents, folder.c_str(), 1);
  }
  void TearDown() override {
    fs::remove_all(folder);
    ::unsetenv(kParents);
  }
  std::string put(const std::string& name, std::size_t pages) {
    std::ofstream(folder / name) << std::string(pages * page(), '\1');
    return (folder / name).string();
  }
  static constexpr const char* kParents = "XGEN_FILE_DAMAGE_TEST";
  fs::path folder;
  std::shared_ptr<FileDamage> damage = std::make_shared<FileDamage>();
};

TEST_F(FileDamageTest, WhatIsCutOffReadsAsZerosAndIsTold) {
  const std::string path = put("weights", 8);
  const auto bytes = map_file(path, damage);
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ(sum(*bytes, 0, bytes->size()), 8 * page());
  EXPECT_FALSE(damage->any());
  EXPECT_TRUE(damage->status().ok());
  fs::resize_file(path, page());
  EXPECT_EQ(sum(*bytes, 0, page()), page());
  EXPECT_FALSE(damage->any()) << "nothing was read that is not there";
  EXPECT_EQ(sum(*bytes, 5 * page(), 6 * page()), 0u);
  EXPECT_TRUE(damage->any());
  EXPECT_EQ(damage->status().error().code, ErrorCode::unavailable);
  EXPECT_THAT(damage->status().error().message, HasSubstr(path));
  EXPECT_EQ(sum(*bytes, 0, bytes->size()), page()) << "lower pages too, and what is left stays";
}

TEST_F(FileDamageTest, AFileSetKnowsWhichOfItsFilesItWas) {
  put("a", 2);
  const std::string path = put("b", 2);
  const auto files = open_files(folder.string());
  ASSERT_TRUE(files.ok());
  const auto a = (*files)->open("a");
  const auto b = (*files)->open("b");
  ASSERT_TRUE(a.ok() && b.ok());
  fs::resize_file(path, 0);
  EXPECT_EQ(sum(*a, 0, a->size()), 2 * page());
  EXPECT_TRUE((*files)->damage()->status().ok());
  EXPECT_EQ(sum(*b, 0, b->size()), 0u);
  EXPECT_THAT((*files)->damage()->status().error().message, HasSubstr(path));
  const auto again = open_files(folder.string());
  EXPECT_FALSE((*again)->damage()->any()) << "a set opened later starts afresh";
}

TEST_F(FileDamageTest, SeveralThreadsReadWhileOthersMapAndUnmap) {
  const std::string whole = put("whole", 4);
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (int i = 0; i < 2; ++i) {
    others.emplace_back([&] {
      const auto own = std::make_shared<FileDamage>();
      while (!stop.load()) {
        const auto bytes = map_file(whole, own);
        ASSERT_TRUE(bytes.ok());
        ASSERT_EQ(sum(*bytes, 0, bytes->size()), 4 * page());
      }
      EXPECT_FALSE(own->any());
    });
  }
  for (int round = 0; round < 50; ++round) {
    const std::string path = put("cut", 16);
    const auto mark = std::make_shared<FileDamage>();
    const auto bytes = map_file(path, mark);
    ASSERT_TRUE(bytes.ok());
    fs::resize_file(path, 2 * page());
    std::vector<std::thread> readers;
    for (std::size_t r = 0; r < 4; ++r) {
      readers.emplace_back([&, r] {
        const std::size_t at = (15 - 3 * r) * page();
        EXPECT_EQ(sum(*bytes, at, at + page()), 0u);
        EXPECT_TRUE(mark->any()) << "whoever has read a zero sees the mark";
      });
    }
    for (std::thread& each : readers) each.join();
    EXPECT_EQ(sum(*bytes, 0, bytes->size()), 2 * page());
  }
  stop.store(true);
  for (std::thread& each : others) each.join();
}

TEST_F(FileDamageTest, AForkedChildIsGuardedToo) {
  const std::string path = put("weights", 2);
  const auto bytes = map_file(path, damage);
  ASSERT_TRUE(bytes.ok());
  fs::resize_file(path, 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) ::_exit(sum(*bytes, 0, bytes->size()) == 0 && damage->any() ? 7 : 8);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << status;
  EXPECT_FALSE(damage->any()) << "of the child alone";
}

TEST_F(FileDamageTest, OneFileTooManyIsRefused) {
  const std::string path = put("small", 1);
  std::vector<Bytes> mapped;
  Result<Bytes> last = map_file(path, damage);
  while (last.ok() && mapped.size() < kMaxGuardedFiles) {
    mapped.push_back(*std::move(last));
    last = map_file(path, damage);
  }
  EXPECT_EQ(mapped.size(), kMaxGuardedFiles);
  ASSERT_FALSE(last.ok());
  EXPECT_EQ(last.error().code, ErrorCode::unavailable);
  EXPECT_THAT(last.error().message, HasSubstr(std::to_string(kMaxGuardedFiles) + " files"));
  fs::resize_file(path, 0);
  EXPECT_EQ(sum(mapped.back(), 0, page()), 0u) << "the last place counts";
  mapped.pop_back();
  EXPECT_TRUE(map_file(put("other", 1), damage).ok());
}

// What the process did before on a fault that is not ours.
using FileDamageDeathTest = FileDamageTest;

Bytes cut_off(const std::string& path, std::shared_ptr<FileDamage> damage) {
  auto bytes = map_file(path, std::move(damage));
  fs::resize_file(path, 0);
  return *std::move(bytes);
}

bool killed_by_sigbus(int status) {
  return kSanitized ? status != 0 : WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS;
}

TEST_F(FileDamageDeathTest, AFileThatNobodyGuardsEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const Bytes guarded = cut_off(put("a", 1), damage);
        const Bytes bare = cut_off(put("b", 1), nullptr);
        if (sum(guarded, 0, page()) != 0) std::_Exit(0);
        std::_Exit(static_cast<int>(sum(bare, 0, page())));
      },
      killed_by_sigbus, "");
}

TEST_F(FileDamageDeathTest, ASentSignalEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const auto bytes = map_file(put("a", 1), damage);
        ::kill(::getpid(), SIGBUS);
        std::_Exit(0);
      },
      killed_by_sigbus, "");
}

TEST_F(FileDamageDeathTest, AnotherHandlerGetsWhatIsNotOurs) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        std::signal(SIGBUS, [](int) { ::_exit(42); });
        const Bytes guarded = cut_off(put("a", 1), damage);
        const Bytes bare = cut_off(put("b", 1), nullptr);
        if (sum(guarded, 0, page()) != 0) std::_Exit(0);
        std::_Exit(static_cast<int>(sum(bare, 0, page())));
      },
      ::testing::ExitedWithCode(42), "");
}

// The place of an unmapped file is free: what lies at its address next is not guarded by it.
TEST_F(FileDamageDeathTest, AnUnmappedFileGuardsNothing) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        auto first = map_file(put("a", 1), damage);
        void* const at = const_cast<std::byte*>(first->data());
        first = Bytes();
        const std::string path = put("b", 1);
        const int fd = ::open(path.c_str(), O_RDONLY);
        void* const again = ::mmap(at, page(), PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
        fs::resize_file(path, 0);
        if (again != at) std::_Exit(0);
        std::_Exit(static_cast<int>(*static_cast<const volatile unsigned char*>(again)));
      },
      killed_by_sigbus, "");
}

}  // namespace
}  // namespace xgen
