// SecretFile: a key in a file, read again when the file changes (as a mounted Secret does).
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <mutex>
#include <string>

#include "base/result.h"

namespace xgen::remote {

// Thread-safe.
class SecretFile {
 public:
  explicit SecretFile(std::string path) : path_(std::move(path)) {}

  // Its one line, without blanks around it; empty without a path. Errors: unavailable, naming the file.
  Result<std::string> read();

 private:
  const std::string path_;
  std::mutex mutex_;
  timespec changed_{};
  ino_t inode_ = 0;
  off_t size_ = -1;
  std::string value_;
};

}  // namespace xgen::remote
