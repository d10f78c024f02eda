#include "base/units.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <span>
#include <sstream>

namespace xgen {
namespace {

struct Suffix {
  std::string_view name;
  double factor;
};

// "<number><suffix>" -> number times factor.
Result<double> parse_scaled(std::string_view text, std::span<const Suffix> suffixes, std::string_view expected) {
  const auto fail = [&] {
    return make_error(ErrorCode::invalid_argument,
                      "expected " + std::string(expected) + ", got '" + std::string(text) + "'");
  };
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc{} || number < 0 || !std::isfinite(number)) return fail();
  std::string_view rest(end, static_cast<std::size_t>(text.data() + text.size() - end));
  while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
  for (const Suffix& suffix : suffixes) {
    if (rest == suffix.name) return number * suffix.factor;
  }
  return fail();
}

std::string read_small_file(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The path of this process's cgroup ("/a/b") for a controller of v1, or of v2 (""); empty if there is none.
std::string cgroup_path(std::string_view controller, const std::string& root = {}) {
  std::istringstream lines(read_small_file(root + "/proc/self/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    const auto first = line.find(':');
    const auto second = line.find(':', first == std::string::npos ? first : first + 1);
    if (second == std::string::npos) continue;
    const std::string names = line.substr(first + 1, second - first - 1);
    std::istringstream list(names);
    bool match = controller.empty() && names.empty();
    for (std::string name; std::getline(list, name, ',');) match = match || (!controller.empty() && name == controller);
    if (match) return line.substr(second + 1);
  }
  return {};
}

// Calls visit(folder) for the process's own group and every parent up to the mount's root: each may hold a limit.
// Inside a container the path of /proc/self/cgroup may not exist below the mount, whose root is then the group itself.
template <class Visit>
void for_each_group(const std::string& mount, std::string path, Visit visit) {
  while (!path.empty() && path != "/") {
    visit(mount + path);
    path.resize(path.rfind('/'));
  }
  visit(mount);
}

double number_or(const std::string& text, double otherwise) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} ? value : otherwise;
}

}  // namespace

Result<std::uint64_t> parse_bytes(std::string_view text) {
  static constexpr Suffix kSuffixes[] = {
      {"", 1},      {"B", 1},        {"KB", 1e3},        {"MB", 1e6},           {"GB", 1e9},
      {"TB", 1e12}, {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0}};
  auto value = parse_scaled(text, kSuffixes, "a size such as 512MiB or 2GiB");
  if (!value) return std::move(value).error();
  if (*value > 9e18) return make_error(ErrorCode::invalid_argument, "size too large: '" + std::string(text) + "'");
  return static_cast<std::uint64_t>(*value);
}

Result<std::chrono::milliseconds> parse_duration(std::string_view text) {
  static constexpr Suffix kSuffixes[] = {{"ms", 1}, {"", 1e3}, {"s", 1e3}, {"m", 6e4}, {"h", 3.6e6}, {"d", 8.64e7}};
  auto value = parse_scaled(text, kSuffixes, "a duration such as 250ms, 30s or 10m");
  if (!value) return std::move(value).error();
  if (*value > 1e12) return make_error(ErrorCode::invalid_argument, "duration too long: '" + std::string(text) + "'");
  return std::chrono::milliseconds(static_cast<std::int64_t>(*value));
}

std::string format_bytes(std::uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

std::uint64_t memory_limit(const std::string& root, std::uint64_t ram) {
  auto limit = static_cast<double>(ram);
  // "max" (v2), no file and huge numbers (v1) mean no limit.
  const auto cap = [&](const std::string& text) {
    limit = std::min(limit, number_or(text, std::numeric_limits<double>::infinity()));
  };
  const std::string mount = root + "/sys/fs/cgroup";
  for_each_group(mount, cgroup_path("", root), [&](const std::string& folder) {
    cap(read_small_file(folder + "/memory.max"));
    // Nobody is killed for more than this, but everything becomes slow.
    cap(read_small_file(folder + "/memory.high"));
  });
  for_each_group(mount + "/memory", cgroup_path("memory", root), [&](const std::string& folder) {
    cap(read_small_file(folder + "/memory.limit_in_bytes"));
    // Of groups above a container's root as well, whose folders are out of sight.
    std::istringstream stat(read_small_file(folder + "/memory.stat"));
    for (std::string name, value; stat >> name >> value;)
      if (name == "hierarchical_memory_limit") cap(value);
  });
  return static_cast<std::uint64_t>(limit);
}

std::uint64_t available_host_memory() {
  const auto pages = static_cast<std::uint64_t>(std::max(0L, sysconf(_SC_PHYS_PAGES)));
  return memory_limit("", pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)));
}

int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cpus =
      sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  double quota_cpus = std::numeric_limits<double>::infinity();
  for_each_group("/sys/fs/cgroup", cgroup_path(""), [&](const std::string& folder) {
    std::istringstream text(read_small_file(folder + "/cpu.max"));  // "max 100000" or "150000 100000"
    std::string quota, period;
    if (text >> quota >> period && quota != "max")
      quota_cpus = std::min(quota_cpus, number_or(quota, 1e9) / number_or(period, 1e5));
  });
  for_each_group("/sys/fs/cgroup/cpu", cgroup_path("cpu"), [&](const std::string& folder) {
    const double quota = number_or(read_small_file(folder + "/cpu.cfs_quota_us"), -1);
    const double period = number_or(read_small_file(folder + "/cpu.cfs_period_us"), 1e5);
    if (quota > 0 && period > 0) quota_cpus = std::min(quota_cpus, quota / period);
  });
  if (std::isfinite(quota_cpus)) cpus = std::min(cpus, static_cast<int>(std::ceil(quota_cpus)));
  return std::max(1, cpus);
}

}  // namespace xgen
