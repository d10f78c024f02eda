// How the engine stops a template: thrown inside the room only; ChatTemplate turns it into a Result. Also the budget
// that keeps a hostile template from using unbounded time or memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace xgen::text::jinja {

enum class Fault : std::uint8_t {
  syntax,   // the template cannot be compiled
  raised,   // the template called raise_exception
  runtime,  // Python would raise while rendering
  limit,    // a limit of the budget was met
};

struct TemplateError {
  Fault fault = Fault::runtime;
  std::string message;
  int line = 0;  // 1-based; 0 = not known
};

[[noreturn]] inline void fail(std::string message) { throw TemplateError{Fault::runtime, std::move(message), 0}; }
[[noreturn]] inline void fail_limit(std::string message) { throw TemplateError{Fault::limit, std::move(message), 0}; }
[[noreturn]] inline void fail_syntax(std::string message, int line) {
  throw TemplateError{Fault::syntax, std::move(message), line};
}

struct Limits {
  std::size_t max_source = std::size_t{1} << 20;        // bytes of template
  std::size_t max_output = std::size_t{64} << 20;       // bytes of any one string
  std::uint64_t max_steps = 10'000'000;                 // evaluated nodes, plus one per 32 bytes handled
  std::uint64_t max_memory = std::uint64_t{512} << 20;  // bytes allocated over the whole rendering
  int max_depth = 1500;                                 // nested evaluations
};

// Containers nested deeper than this are refused, so that recursion over a value is bounded.
inline constexpr std::uint32_t kMaxValueDepth = 200;

class Budget {
 public:
  explicit Budget(const Limits& limits) : limits_(limits) {}

  void step(std::uint64_t count = 1) {
    steps_ += count;
    if (steps_ > limits_.max_steps) fail_limit("the template runs for too many steps");
  }
  // Called before `bytes` are allocated or scanned.
  void charge(std::size_t bytes) {
    if (bytes > limits_.max_output) fail_limit("the template makes a string or list that is too large");
    memory_ += bytes;
    if (memory_ > limits_.max_memory) fail_limit("the template uses too much memory");
    step(1 + bytes / 32);
  }
  void enter() {
    if (++depth_ > limits_.max_depth) {
      --depth_;  // the caller's leave() is not reached
      fail_limit("the template recurses too deeply");
    }
  }
  void leave() { --depth_; }
  const Limits& limits() const { return limits_; }

 private:
  Limits limits_;
  std::uint64_t steps_ = 0;
  std::uint64_t memory_ = 0;
  int depth_ = 0;
};

struct DepthGuard {
  explicit DepthGuard(Budget& budget) : budget_(budget) { budget_.enter(); }
  ~DepthGuard() { budget_.leave(); }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  Budget& budget_;
};

}  // namespace xgen::text::jinja
