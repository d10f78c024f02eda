#include "base/bytes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>

namespace xgen {
namespace {

class Mapping {
 public:
  Mapping(void* data, std::size_t size) : data_(data), size_(size) {}
  ~Mapping() {
    range_.reset();
    ::munmap(data_, size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // False: too many are guarded.
  bool guard(const std::string& path, std::shared_ptr<FileDamage> damage) {
    damage_ = std::move(damage);
    range_.emplace(data_, size_, path, *damage_);
    return range_->ok();
  }

 private:
  void* data_;
  std::size_t size_;
  std::shared_ptr<FileDamage> damage_;
  std::optional<GuardedRange> range_;
};

Error os_error(const std::string& path, int error) {
  const ErrorCode code = error == ENOENT || error == ENOTDIR ? ErrorCode::not_found : ErrorCode::invalid_argument;
  return make_error(code, path + ": " + std::strerror(error));
}

}  // namespace

Result<Bytes> map_file(const std::string& path, std::shared_ptr<FileDamage> damage) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer; it is refused below.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return os_error(path, errno);
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    const int error = errno;
    ::close(fd);
    return os_error(path, error);
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    return make_error(ErrorCode::invalid_argument, path + ": not a regular file");
  }
  const auto size = static_cast<std::size_t>(info.st_size);
  if (size == 0) {
    ::close(fd);
    return Bytes{};
  }
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  const int error = errno;
  ::close(fd);
  if (data == MAP_FAILED) return os_error(path, error);
  auto owner = std::make_shared<Mapping>(data, size);
  if (damage != nullptr && !owner->guard(path, std::move(damage))) {
    return make_error(ErrorCode::unavailable,
                      path + ": " + std::to_string(kMaxGuardedFiles) + " files are mapped already, the most at a time");
  }
  return Bytes{{static_cast<const std::byte*>(data), size}, std::move(owner)};
}

void let_pages_go(std::span<const std::byte> range) {
  if (range.empty() || !GuardedRange::holds(range.data(), range.size())) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(range.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(range.data() + range.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace xgen
