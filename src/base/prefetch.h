// Prefetch: brings the pages of mapped files in before they are needed.
#pragma once

#include <cstddef>
#include <functional>
#include <future>
#include <span>
#include <type_traits>
#include <utility>

namespace xgen {

// Reads what is not in memory yet and maps it, so that whoever reads the bytes later waits for neither. `progress` is
// called now and then with the bytes of `range` that are there; what it throws ends it. No error: pages that cannot be
// read are met again by whoever needs them.
void prefetch(std::span<const std::byte> range, const std::function<void(std::size_t)>& progress);

// Makes the calling thread yield to the others of the process where processors are short.
void lower_priority();

// Runs `work` on a thread of its own that yields to others.
template <class Work>
std::future<std::invoke_result_t<Work>> in_background(Work work) {
  return std::async(std::launch::async, [work = std::move(work)]() mutable {
    lower_priority();
    return work();
  });
}

}  // namespace xgen
