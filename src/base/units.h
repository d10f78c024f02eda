// Byte sizes and durations as people write them: "2GiB", "512MB", "80%", "10m", "250ms".
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace xgen {

// "123", "4KiB", "2GiB", "1.5GB" (KB/MB/GB are powers of 1000, KiB/MiB/GiB of 1024).
Result<std::uint64_t> parse_bytes(std::string_view text);
// "250ms", "30s", "10m", "2h", "1d"; a bare number is seconds.
Result<std::chrono::milliseconds> parse_duration(std::string_view text);
// 1536 -> "1.5 KiB".
std::string format_bytes(std::uint64_t bytes);
// Memory that this process may use: the smaller of RAM and the limits of its cgroup and those above it (v1 and v2).
std::uint64_t available_host_memory();
// The same for `ram` bytes and the files below `root` ("" is the system's own /proc and /sys).
std::uint64_t memory_limit(const std::string& root, std::uint64_t ram);
// CPUs that this process may use: the affinity mask, capped by the cgroup's quota (rounded up), at least 1.
int available_cpus();

}  // namespace xgen
