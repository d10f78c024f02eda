// Limits of control groups, read from made-up trees of /proc and /sys.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/units.h"

namespace xgen {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kRam = 1000 * kMiB;
const std::string kNoLimit = "9223372036854771712";  // v1

class MemoryLimit : public testing::Test {
 protected:
  MemoryLimit() : root_(testing::TempDir() + "/memory_limit") { std::filesystem::remove_all(root_); }
  ~MemoryLimit() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text << "\n";
  }
  void limit(const std::string& path, std::uint64_t mib) { write(path, std::to_string(mib * kMiB)); }
  std::uint64_t mib() const { return memory_limit(root_, kRam) / kMiB; }

  const std::string root_;
};

TEST_F(MemoryLimit, WithoutGroupsItIsTheRam) {
  EXPECT_EQ(mib(), 1000u);
  write("/proc/self/cgroup", "0::/");
  EXPECT_EQ(mib(), 1000u);
}

TEST_F(MemoryLimit, TheLeastOfAGroupOfV2AndThoseAboveIt) {
  write("/proc/self/cgroup", "0::/kubepods/pod1/container");
  write("/sys/fs/cgroup/kubepods/memory.max", "max");
  limit("/sys/fs/cgroup/kubepods/pod1/memory.max", 300);
  write("/sys/fs/cgroup/kubepods/pod1/container/memory.max", "max");
  EXPECT_EQ(mib(), 300u);
  limit("/sys/fs/cgroup/kubepods/pod1/container/memory.max", 200);
  EXPECT_EQ(mib(), 200u);
  limit("/sys/fs/cgroup/kubepods/memory.max", 100);
  EXPECT_EQ(mib(), 100u);
  limit("/sys/fs/cgroup/kubepods/memory.max", 5000);
  EXPECT_EQ(mib(), 200u);
}

TEST_F(MemoryLimit, WhatSlowsAGroupDownCountsToo) {
  write("/proc/self/cgroup", "0::/a");
  limit("/sys/fs/cgroup/a/memory.max", 500);
  write("/sys/fs/cgroup/a/memory.high", "max");
  EXPECT_EQ(mib(), 500u);
  limit("/sys/fs/cgroup/a/memory.high", 400);
  EXPECT_EQ(mib(), 400u);
}

TEST_F(MemoryLimit, InAContainerTheRootOfTheMountIsTheGroupItself) {
  write("/proc/self/cgroup", "0::/docker/0123");  // the host's path: it does not exist below the mount
  limit("/sys/fs/cgroup/memory.max", 250);
  EXPECT_EQ(mib(), 250u);
  write("/proc/self/cgroup", "0::/");
  EXPECT_EQ(mib(), 250u);
}

TEST_F(MemoryLimit, GroupsOfV1) {
  write("/proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:/docker/0123\n1:cpu:/\n0::/");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", kNoLimit);
  write("/sys/fs/cgroup/memory/docker/memory.limit_in_bytes", kNoLimit);
  EXPECT_EQ(mib(), 1000u);
  limit("/sys/fs/cgroup/memory/docker/memory.limit_in_bytes", 600);
  limit("/sys/fs/cgroup/memory/docker/0123/memory.limit_in_bytes", 700);
  EXPECT_EQ(mib(), 600u);
}

TEST_F(MemoryLimit, GroupsOfV1AboveAContainerAreInItsStatistics) {
  write("/proc/self/cgroup", "4:memory:/kubepods/pod1/c");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", kNoLimit);
  write("/sys/fs/cgroup/memory/memory.stat",
        "cache 1\nrss 2\nhierarchical_memory_limit " + std::to_string(150 * kMiB) + "\ntotal_cache 5");
  EXPECT_EQ(mib(), 150u);
}

TEST_F(MemoryLimit, OtherControllersDoNotCount) {
  write("/proc/self/cgroup", "4:blkio,cpu:/a\n0::/b");
  limit("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", 10);
  limit("/sys/fs/cgroup/a/memory.max", 10);
  limit("/sys/fs/cgroup/b/memory.max", 900);
  EXPECT_EQ(mib(), 900u);
}

}  // namespace
}  // namespace xgen
