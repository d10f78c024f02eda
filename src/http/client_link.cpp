#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "http/client_loop.h"

namespace xgen::http {

using boost::asio::ip::tcp;
using SysError = boost::system::error_code;

ClientLink::ClientLink(ClientLoop& loop, std::string origin)
    : loop_(loop), socket_(loop.context()), origin_(std::move(origin)) {}

void ClientLink::begin_tls(SSL_CTX* context, const std::string& host) {
  tls_ = std::make_unique<TlsSession>(context, socket_.native_handle(), host);
}

namespace {

IoResult outcome(ssize_t n, IoResult::Kind blocked) {
  if (n >= 0) return {IoResult::Kind::done, static_cast<std::size_t>(n), {}};
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return {blocked, 0, {}};
  return {IoResult::Kind::failed, 0, std::strerror(errno)};
}

}  // namespace

IoResult ClientLink::read(char* data, std::size_t size) {
  if (tls_ != nullptr) return tls_->read(data, size);
  IoResult result = outcome(::recv(socket_.native_handle(), data, size, 0), IoResult::Kind::want_read);
  if (result.kind == IoResult::Kind::done && result.bytes == 0) result.kind = IoResult::Kind::closed;
  return result;
}

IoResult ClientLink::write(std::string_view data) {
  if (tls_ != nullptr) return tls_->write(data);
  return outcome(::send(socket_.native_handle(), data.data(), data.size(), MSG_NOSIGNAL), IoResult::Kind::want_write);
}

void ClientLink::close() {
  if (tls_ != nullptr && socket_.is_open()) tls_->close();
  SysError ignored;
  socket_.close(ignored);
}

void ClientLink::watch() {
  if (watching_) return;
  watching_ = true;
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](SysError error) {
    self->watching_ = false;
    if (error || !self->socket_.is_open()) return;
    if (self->call != nullptr)
      self->call->on_readable();
    else
      self->loop_.on_idle_readable(self);
  });
}

void ClientLink::await_writable() {
  socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](SysError error) {
    if (!error && self->call != nullptr) self->call->on_writable();
  });
}

}  // namespace xgen::http
