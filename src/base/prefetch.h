// Prefetch: brings the pages of mapped files in before they are needed; and who gives way while that goes on.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <future>
#include <span>
#include <type_traits>

namespace xgen {

// Reads what is not in memory yet and maps it, so that whoever reads the bytes later waits for neither. `progress` is
// called now and then with the bytes of `range` that are there; what it throws ends it. No error: pages that cannot be
// read are met again by whoever needs them.
void prefetch(std::span<const std::byte> range, const std::function<void(std::size_t)>& progress);

// Spreads work over time where others compute: a thread that only takes what they leave still delays one of them that
// waits for a moment, by as long as the system needs to take the processor back.
class Pace {
 public:
  // Between pieces of the calling thread's work. If `others` compute, it rests until it has used no more than a tenth
  // of a processor since the last call; what it waited for (a disk) does not count.
  void rest(bool others);

 private:
  std::chrono::nanoseconds used_{0};
};

// Makes the calling thread, and those that it starts, take only what processor time all others leave. It cannot go
// back.
void yield_to_others();

// Runs `work`; if `others` have something better to do with the processors, on a thread that yields to them.
template <class Work>
std::invoke_result_t<Work> in_background(bool others, Work work) {
  if (!others) return work();
  return std::async(std::launch::async,
                    [&work] {
                      yield_to_others();
                      return work();
                    })
      .get();
}

}  // namespace xgen
