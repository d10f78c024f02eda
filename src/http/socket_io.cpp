#include "http/socket_io.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace xgen::http {
namespace {

IoResult outcome(ssize_t n, IoResult::Kind blocked) {
  if (n >= 0) return {IoResult::Kind::done, static_cast<std::size_t>(n), {}};
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return {blocked, 0, {}};
  return {IoResult::Kind::failed, 0, std::strerror(errno)};
}

}  // namespace

IoResult read_socket(int socket, char* data, std::size_t size) {
  IoResult result = outcome(::recv(socket, data, size, 0), IoResult::Kind::want_read);
  if (result.kind == IoResult::Kind::done && result.bytes == 0) result.kind = IoResult::Kind::closed;
  return result;
}

IoResult write_socket(int socket, std::string_view data) {
  return outcome(::send(socket, data.data(), data.size(), MSG_NOSIGNAL), IoResult::Kind::want_write);
}

}  // namespace xgen::http
