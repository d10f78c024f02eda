#include "crash.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>

namespace xgen {
namespace {

using ::testing::HasSubstr;

struct End {
  int signal = 0;  // that the process died of
  std::string log;
};

// In a process of its own.
End crash(const std::function<void()>& work) {
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core{};
    setrlimit(RLIMIT_CORE, &no_core);
    dup2(ends[1], STDERR_FILENO);
    log_crashes();
    work();
    _exit(0);
  }
  close(ends[1]);
  End end;
  std::array<char, 4096> part{};
  for (ssize_t n = 0; (n = read(ends[0], part.data(), part.size())) > 0;)
    end.log.append(part.data(), static_cast<std::size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  end.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  return end;
}

class Crash : public ::testing::Test {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "sanitizers tell of crashes themselves";
#endif
  }
};

[[gnu::noinline]] int overflow(int depth) {
  volatile char room[4096];
  room[0] = static_cast<char>(depth);
  return depth < 0 ? 0 : overflow(depth + 1) + room[0];
}

TEST_F(Crash, AnOverflowOfAThreadsStackIsTold) {
  const End end = crash([] { std::thread([] { overflow(0); }).join(); });
  EXPECT_EQ(end.signal, SIGSEGV);
  EXPECT_THAT(end.log, HasSubstr("error process: crashed signal=\"SIGSEGV\""));
  EXPECT_THAT(end.log, HasSubstr("stack of the crash stack=\"test_crash+0x"));
}

#ifdef __x86_64__
TEST_F(Crash, AStackPointerThatLeadsNowhereKeepsTheReasonAndTheSignal) {
  const End end = crash([] {
    asm volatile(
        "mov $64, %%rsp\n"
        "push %%rax\n" ::
            : "memory");
  });
  EXPECT_EQ(end.signal, SIGSEGV);
  EXPECT_THAT(end.log, HasSubstr("error process: crashed signal=\"SIGSEGV\""));
  EXPECT_THAT(end.log, HasSubstr("thread="));
  EXPECT_TRUE(end.log.ends_with("\"\n")) << end.log;
}
#endif

}  // namespace
}  // namespace xgen
