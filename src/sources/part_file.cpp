#include "sources/part_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/units.h"
#include "sources/cache.h"

namespace xgen::sources {
namespace {

constexpr std::uint64_t kAlign = 4096;
constexpr std::uint64_t kMagic = 0x3154'5241'504e'4758;  // of this record's first version

// Before the chunks' counts.
using Header = std::array<std::uint64_t, 4>;  // magic, size, chunk, count

}  // namespace

PartFile::PartFile(int fd, std::string path, std::uint64_t size, std::uint64_t chunk)
    : fd_(fd),
      path_(std::move(path)),
      size_(size),
      chunk_(chunk),
      done_(static_cast<std::size_t>(size == 0 ? 0 : (size - 1) / chunk + 1)) {}

PartFile::~PartFile() { ::close(fd_); }

std::uint64_t PartFile::record() const { return (size_ + kAlign - 1) / kAlign * kAlign; }

std::uint64_t PartFile::length(std::size_t chunk) const { return std::min(chunk_, size_ - begin(chunk)); }

Error PartFile::failed(int number) const {
  if (number != ENOSPC && number != EDQUOT) return system_error(path_, number);
  const std::string folder = std::filesystem::path(path_).parent_path().string();
  return make_error(ErrorCode::unavailable, path_ + ": " +
                                                (number == EDQUOT ? "the disk quota is used up" : "the disk is full") +
                                                ": the file needs " + format_bytes(size_) + ", " +
                                                format_bytes(free_bytes(folder)) + " are free");
}

Result<std::unique_ptr<PartFile>> PartFile::open(const std::string& path, std::uint64_t size, std::uint64_t chunk) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd < 0) return system_error(path, errno);
  std::unique_ptr<PartFile> file(new PartFile(fd, path, size, chunk));
  struct stat info {};
  if (::fstat(fd, &info) != 0) return file->failed(errno);
  if (Status status = file->resume(static_cast<std::uint64_t>(info.st_size)); !status) return std::move(status).error();
  return file;
}

Status PartFile::resume(std::uint64_t file_size) {
  const std::uint64_t bytes = sizeof(Header) + done_.size() * sizeof(std::uint64_t);
  // Killed between the last check and the publishing.
  if (file_size == size_ && size_ > 0) {
    for (std::size_t i = 0; i < done_.size(); ++i) done_[i].store(length(i));
    return {};
  }
  if (file_size == record() + bytes) {
    std::string raw(bytes, '\0');
    Header header{};
    if (::pread(fd_, raw.data(), raw.size(), static_cast<off_t>(record())) == static_cast<ssize_t>(raw.size())) {
      std::memcpy(header.data(), raw.data(), sizeof header);
      if (header == Header{kMagic, size_, chunk_, done_.size()}) {
        for (std::size_t i = 0; i < done_.size(); ++i) {
          std::uint64_t value = 0;
          std::memcpy(&value, raw.data() + sizeof header + i * sizeof value, sizeof value);
          done_[i].store(std::min(value, length(i)));
        }
        return {};
      }
    }
  }
  return reset();
}

Status PartFile::reset() {
  for (auto& each : done_) each.store(0);
  if (::ftruncate(fd_, 0) != 0) return failed(errno);
  const std::uint64_t whole = record() + sizeof(Header) + done_.size() * sizeof(std::uint64_t);
  // Now rather than in the middle: a disk that is too small. Not every file system can do it.
  if (::fallocate(fd_, 0, 0, static_cast<off_t>(whole)) != 0 && errno != EOPNOTSUPP && errno != ENOSYS)
    return failed(errno);
  if (::ftruncate(fd_, static_cast<off_t>(whole)) != 0) return failed(errno);
  const Header header{kMagic, size_, chunk_, done_.size()};
  return write_at(record(), reinterpret_cast<const char*>(header.data()), sizeof header);
}

Status PartFile::write_at(std::uint64_t offset, const char* data, std::size_t size) {
  while (size > 0) {
    const ssize_t written = ::pwrite(fd_, data, size, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return failed(written == 0 ? ENOSPC : errno);
    data += written;
    size -= static_cast<std::size_t>(written);
    offset += static_cast<std::uint64_t>(written);
  }
  return {};
}

std::uint64_t PartFile::total_done() const {
  std::uint64_t sum = 0;
  for (const auto& each : done_) sum += each.load(std::memory_order_acquire);
  return sum;
}

std::uint64_t PartFile::prefix() const {
  for (std::size_t i = 0; i < done_.size(); ++i)
    if (done(i) < length(i)) return begin(i) + done(i);
  return size_;
}

Status PartFile::write(std::size_t chunk, std::string_view data) {
  const std::uint64_t before = done(chunk);
  if (data.size() > length(chunk) - before)
    return make_error(ErrorCode::internal, path_ + ": more bytes than its part has");
  if (Status status = write_at(begin(chunk) + before, data.data(), data.size()); !status) return status;
  const std::uint64_t now = before + data.size();
  const std::uint64_t place = record() + sizeof(Header) + chunk * sizeof now;
  if (Status status = write_at(place, reinterpret_cast<const char*>(&now), sizeof now); !status) return status;
  done_[chunk].store(now, std::memory_order_release);
  return {};
}

Status PartFile::read(std::uint64_t offset, char* data, std::size_t size) const {
  while (size > 0) {
    const ssize_t got = ::pread(fd_, data, size, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return failed(got == 0 ? EIO : errno);
    data += got;
    size -= static_cast<std::size_t>(got);
    offset += static_cast<std::uint64_t>(got);
  }
  return {};
}

Status PartFile::publish(const std::string& path) {
  if (::ftruncate(fd_, static_cast<off_t>(size_)) != 0 || ::fsync(fd_) != 0) return failed(errno);
  if (::rename(path_.c_str(), path.c_str()) != 0) return system_error(path, errno);
  return sync_folder(std::filesystem::path(path).parent_path().string());
}

}  // namespace xgen::sources
