// PartFile: a file while it is downloaded, in chunks and in any order, with a record of what is there already, so that
// another process can go on after this one was killed.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace xgen::sources {

// Behind the data, at the next multiple of 4096 bytes, the file holds a header and 8 bytes a chunk: how many of its
// bytes are written. They are written after the data, so they never claim too much while the system stays up; after a
// loss of power the digest at the end says so.
class PartFile {
 public:
  // Takes up what is there of the same size and chunks, else begins anew. Only one process may have it open: the caller
  // holds the blob's lock. Errors: unavailable, naming the file and, if the disk is full, the numbers.
  static Result<std::unique_ptr<PartFile>> open(const std::string& path, std::uint64_t size, std::uint64_t chunk);
  ~PartFile();
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;

  std::uint64_t size() const { return size_; }
  std::size_t chunks() const { return done_.size(); }
  std::uint64_t begin(std::size_t chunk) const { return chunk * chunk_; }
  std::uint64_t length(std::size_t chunk) const;
  std::uint64_t done(std::size_t chunk) const { return done_[chunk].load(std::memory_order_acquire); }
  std::uint64_t total_done() const;
  // Bytes from the beginning without a gap.
  std::uint64_t prefix() const;

  // Appends to what is done of the chunk. One thread a chunk. Errors: as open.
  Status write(std::size_t chunk, std::string_view data);
  // Precondition: below prefix().
  Status read(std::uint64_t offset, char* data, std::size_t size) const;
  // Forgets everything.
  Status reset();
  // Makes it the file `path`, which appears as a whole or not at all.
  Status publish(const std::string& path);

 private:
  PartFile(int fd, std::string path, std::uint64_t size, std::uint64_t chunk);
  Status resume(std::uint64_t file_size);
  Status write_at(std::uint64_t offset, const char* data, std::size_t size);
  std::uint64_t record() const;  // where it begins
  Error failed(int number) const;

  const int fd_;
  const std::string path_;
  const std::uint64_t size_;
  const std::uint64_t chunk_;
  std::vector<std::atomic<std::uint64_t>> done_;
};

}  // namespace xgen::sources
