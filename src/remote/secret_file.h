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
  // `name`: what it is called in messages.
  explicit SecretFile(std::string path, std::string name = "api_key_file")
      : path_(std::move(path)), name_(std::move(name)) {}

  // Its one line, without blanks around it; empty without a path. Errors: unavailable, naming the file.
  Result<std::string> read();

 private:
  const std::string path_;
  const std::string name_;
  std::mutex mutex_;
  timespec changed_{};
  ino_t inode_ = 0;
  off_t size_ = -1;
  std::string value_;
};

}  // namespace xgen::remote
