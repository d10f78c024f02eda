#include "crash.h"

#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>
#include <unwind.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <new>
#include <string_view>

#include "base/log.h"

namespace xgen {
namespace {

constexpr std::size_t kMostFrames = 64;

// A line in the making. In a signal handler nothing may be allocated, and hardly anything called.
class Line {
 public:
  void text(std::string_view text) {
    const std::size_t count = std::min(text.size(), data_.size() - size_);
    std::memcpy(data_.data() + size_, text.data(), count);
    size_ += count;
  }
  void number(std::uint64_t value, int digits = 1) {
    std::array<char, 20> reversed{};
    std::size_t count = 0;
    for (; value != 0 || count < static_cast<std::size_t>(digits); value /= 10)
      reversed[count++] = static_cast<char>('0' + value % 10);
    while (count > 0) text({&reversed[--count], 1});
  }
  void hex(std::uint64_t value) {
    text("0x");
    bool begun = false;
    for (int shift = 60; shift >= 0; shift -= 4) {
      const unsigned digit = (value >> static_cast<unsigned>(shift)) & 15;
      begun = begun || digit != 0 || shift == 0;
      if (begun) text({&"0123456789abcdef"[digit], 1});
    }
  }
  // As the log's own lines have it.
  void time() {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    const auto seconds = static_cast<std::uint64_t>(now.tv_sec);
    // Days to a date, counted in eras of 400 years that begin on 1 March (Howard Hinnant's chrono algorithms).
    const std::uint64_t days = seconds / 86400 + 719468;
    const std::uint64_t era = days / 146097;
    const std::uint64_t of_era = days % 146097;
    const std::uint64_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    const std::uint64_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    const std::uint64_t shifted = (5 * of_year + 2) / 153;
    const std::uint64_t month = shifted < 10 ? shifted + 3 : shifted - 9;
    number(year_of_era + era * 400 + (month <= 2 ? 1 : 0), 4);
    text("-");
    number(month, 2);
    text("-");
    number(of_year - (153 * shifted + 2) / 5 + 1, 2);
    text("T");
    number(seconds / 3600 % 24, 2);
    text(":");
    number(seconds / 60 % 60, 2);
    text(":");
    number(seconds % 60, 2);
    text(".");
    number(static_cast<std::uint64_t>(now.tv_nsec) / 1'000'000, 3);
    text("Z");
  }
  void field(std::string_view name) {
    text(json_ ? ",\"" : " ");
    text(name);
    text(json_ ? "\":\"" : "=\"");
  }
  void end_field() { text("\""); }
  void begin(std::string_view message) {
    size_ = 0;
    text(json_ ? "{\"time\":\"" : "");
    time();
    text(json_ ? "\",\"level\":\"error\",\"component\":\"process\",\"message\":\"" : " error process: ");
    text(message);
    text(json_ ? "\"" : "");
  }
  void write() {
    text(json_ ? "}\n" : "\n");
    log::put({data_.data(), size_}, 1000);
  }

 private:
  const bool json_ = log::format() == log::Format::json;
  std::array<char, 16384> data_{};
  std::size_t size_ = 0;
};

struct Frames {
  std::array<std::uintptr_t, kMostFrames> places{};
  std::size_t count = 0;
};

_Unwind_Reason_Code take_frame(_Unwind_Context* context, void* argument) {
  auto& frames = *static_cast<Frames*>(argument);
  int before_call = 0;
  const std::uintptr_t place = _Unwind_GetIPInfo(context, &before_call);
  // A return address is that of the next line.
  if (place != 0) frames.places[frames.count++] = before_call != 0 ? place : place - 1;
  return frames.count == kMostFrames ? _URC_END_OF_STACK : _URC_NO_REASON;
}

void add_stack(Line& line) {
  Frames frames;
  _Unwind_Backtrace(take_frame, &frames);
  for (std::size_t i = 0; i < frames.count; ++i) {
    const std::uintptr_t place = frames.places[i];
    Dl_info info{};
    if (i > 0) line.text(" ");
    if (dladdr(reinterpret_cast<void*>(place), &info) == 0 || info.dli_fbase == nullptr) {
      line.hex(place);
      continue;
    }
    const char* slash = std::strrchr(info.dli_fname, '/');
    line.text(slash != nullptr ? slash + 1 : info.dli_fname);
    line.text("+");
    line.hex(place - reinterpret_cast<std::uintptr_t>(info.dli_fbase));
    if (info.dli_sname == nullptr) continue;
    line.text("(");
    line.text(info.dli_sname);
    line.text(")");
  }
}

std::atomic<bool> g_crashing{false};
thread_local bool t_crashing = false;
sigjmp_buf g_unwinding;            // where a fault in the unwinder leads
std::array<char, 256> g_reason{};  // of an exception that nobody caught

void on_fatal_signal(int signal, siginfo_t* info, void* /*context*/) {
  if (t_crashing) siglongjmp(g_unwinding, 1);  // the stack was no stack any more
  t_crashing = true;
  // The first has the word; the process ends with it.
  while (g_crashing.exchange(true)) ::pause();
  static Line line;  // the stack may be what is left over
  line.begin("crashed");
  line.field("signal");
  line.text("SIG");
  line.text(sigabbrev_np(signal) != nullptr ? sigabbrev_np(signal) : "?");
  line.end_field();
  if (info->si_code > 0) {
    line.field("address");
    line.hex(reinterpret_cast<std::uintptr_t>(info->si_addr));
    line.end_field();
  }
  if (g_reason[0] != '\0') {
    line.field("reason");
    line.text(g_reason.data());
    line.end_field();
  }
  std::array<char, 16> name{};
  if (pthread_getname_np(pthread_self(), name.data(), name.size()) == 0) {
    line.field("thread");
    line.text(name.data());
    line.end_field();
  }
  // Before the stack is walked: that may fail, or never end.
  line.write();
  line.begin("stack of the crash");
  line.field("stack");
  if (sigsetjmp(g_unwinding, 0) == 0) add_stack(line);
  line.end_field();
  line.write();
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  ::sigaction(signal, &standard, nullptr);
  // A fault happens again, with its own registers in the core dump.
  if (info->si_code <= 0) ::raise(signal);
}

[[noreturn]] void on_terminate() {
  const char* what = "an exception that is none of the standard library's";
  if (const std::exception_ptr thrown = std::current_exception()) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::exception& fault) {
      what = fault.what();
    } catch (...) {
    }
  }
  // In quotes there: what would end them is left out.
  std::size_t at = 0;
  for (; *what != '\0' && at + 1 < g_reason.size(); ++what)
    if (*what >= ' ' && *what != '"' && *what != '\\') g_reason[at++] = *what;
  std::abort();
}

// A handler on the stack that has overflown would never begin. What is never touched takes no memory.
void use_another_stack() {
  alignas(16) static thread_local std::array<std::byte, 64 << 10> stack;
  stack_t other{};
  other.ss_sp = stack.data();
  other.ss_size = stack.size();
  sigaltstack(&other, nullptr);
}

struct Start {
  void* (*run)(void*);
  void* argument;
};

void* run_with_another_stack(void* given) {
  const Start start = *static_cast<Start*>(given);
  delete static_cast<Start*>(given);
  use_another_stack();
  return start.run(start.argument);
}

}  // namespace

// The linker has every thread of the program begin here, those of libraries too (--wrap=pthread_create).
// NOLINTBEGIN(bugprone-reserved-identifier): the linker's names
extern "C" int __real_pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                                     void* argument);
extern "C" int __wrap_pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                                     void* argument) {
  auto* start = new (std::nothrow) Start{run, argument};
  if (start == nullptr) return EAGAIN;
  const int error = __real_pthread_create(thread, attributes, run_with_another_stack, start);
  if (error != 0) delete start;
  return error;
}
// NOLINTEND(bugprone-reserved-identifier)

void log_crashes() {
  // Called for the first time in a handler, the unwinder would allocate.
  Frames frames;
  _Unwind_Backtrace(take_frame, &frames);
  use_another_stack();
  struct sigaction action {};
  action.sa_sigaction = on_fatal_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) ::sigaction(signal, &action, nullptr);
  std::set_terminate(on_terminate);
}

}  // namespace xgen
