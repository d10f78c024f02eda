#include "http/slow_readers.h"

#include <algorithm>

#include "http/connection.h"

namespace xgen::http {

std::shared_ptr<Connection> SlowReaders::hold(Connection& connection, std::size_t bytes) {
  std::lock_guard lock(mutex_);
  if (const auto found = entries_.find(&connection); found != entries_.end()) {
    total_ = total_ - found->second.bytes + bytes;
    if (bytes == 0)
      entries_.erase(found);
    else
      found->second.bytes = bytes;
  } else if (bytes > 0) {
    entries_.emplace(&connection, Entry{connection.weak_from_this(), bytes});
    total_ += bytes;
  }
  while (total_ > limit_ && !entries_.empty()) {
    const auto most = std::max_element(entries_.begin(), entries_.end(),
                                       [](const auto& a, const auto& b) { return a.second.bytes < b.second.bytes; });
    std::shared_ptr<Connection> given_up = most->second.connection.lock();
    total_ -= most->second.bytes;
    entries_.erase(most);
    if (given_up) return given_up;
  }
  return nullptr;
}

}  // namespace xgen::http
