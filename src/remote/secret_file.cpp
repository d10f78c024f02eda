#include "remote/secret_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

namespace xgen::remote {
namespace {

constexpr off_t kMaxSecret = 16 << 10;  // bytes

}  // namespace

Result<std::string> SecretFile::read() {
  if (path_.empty()) return std::string();
  std::lock_guard lock(mutex_);
  const auto fault = [this](const std::string& why) {
    return make_error(ErrorCode::unavailable, name_ + " " + path_ + ": " + why);
  };
  struct stat now {};
  if (::stat(path_.c_str(), &now) != 0) return fault(std::strerror(errno));
  if (now.st_size == size_ && now.st_ino == inode_ && now.st_mtim.tv_sec == changed_.tv_sec &&
      now.st_mtim.tv_nsec == changed_.tv_nsec)
    return value_;
  if (!S_ISREG(now.st_mode)) return fault("not a regular file");
  if (now.st_size > kMaxSecret) return fault("larger than a key can be");
  std::ifstream file(path_, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  if (!file) return fault("cannot be read");
  constexpr const char* kBlanks = " \t\r\n";
  text.erase(0, std::min(text.find_first_not_of(kBlanks), text.size()));
  text.erase(text.find_last_not_of(kBlanks) + 1);
  if (text.empty()) return fault("it is empty");
  if (std::any_of(text.begin(), text.end(), [](char c) { return c <= ' ' || c > '~'; }))
    return fault("expected one line of printable characters");
  changed_ = now.st_mtim;
  inode_ = now.st_ino;
  size_ = now.st_size;
  value_ = text;
  return text;
}

}  // namespace xgen::remote
