// SlowReaders: what the answers that wait for slow clients hold, of all connections together.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>

namespace xgen::http {

class Connection;

// Thread-safe.
class SlowReaders {
 public:
  explicit SlowReaders(std::size_t limit) : limit_(limit) {}

  // Says how many bytes `connection` holds from now on; 0 if its client has caught up or gone. Where all together hold
  // more than the limit, returns the connection that holds most, which is not counted any more: it must be given up.
  std::shared_ptr<Connection> hold(Connection& connection, std::size_t bytes);

 private:
  struct Entry {
    std::weak_ptr<Connection> connection;
    std::size_t bytes = 0;
  };
  const std::size_t limit_;
  std::mutex mutex_;
  std::size_t total_ = 0;
  std::map<const Connection*, Entry> entries_;
};

}  // namespace xgen::http
