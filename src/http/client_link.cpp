#include "http/client_loop.h"

namespace xgen::http {

using boost::asio::ip::tcp;
using SysError = boost::system::error_code;

ClientLink::ClientLink(ClientLoop& loop, std::string origin)
    : loop_(loop), socket_(loop.context()), origin_(std::move(origin)) {}

void ClientLink::begin_tls(SSL_CTX* context, const std::string& host) {
  tls_ = std::make_unique<TlsSession>(context, socket_.native_handle(), host);
}

IoResult ClientLink::read(char* data, std::size_t size) {
  return tls_ != nullptr ? tls_->read(data, size) : read_socket(socket_.native_handle(), data, size);
}

IoResult ClientLink::write(std::string_view data) {
  return tls_ != nullptr ? tls_->write(data) : write_socket(socket_.native_handle(), data);
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
