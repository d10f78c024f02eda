// TLS connections for RawServer. Include it in tests of rooms that link OpenSSL.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "support/certificate.h"
#include "support/raw_server.h"

namespace xgen::scripted {

class TlsConnection final : public RawConnection {
 public:
  TlsConnection(SSL_CTX* context, int fd, int which) : RawConnection(fd, which), session_(SSL_new(context), SSL_free) {
    SSL_set_fd(session_.get(), fd);
    accepted_ = SSL_accept(session_.get()) == 1;
    const char* name = SSL_get_servername(session_.get(), TLSEXT_NAMETYPE_host_name);
    if (name != nullptr) server_name = name;
  }
  // Says that nothing more comes, as an orderly end does; without it the end is a truncation.
  void say_goodbye() { SSL_shutdown(session_.get()); }

  std::string server_name;  // what the client asked for (SNI)

 protected:
  bool readable(std::chrono::milliseconds wait) override {
    return accepted_ && (SSL_pending(session_.get()) > 0 || RawConnection::readable(wait));
  }
  ssize_t receive(char* data, std::size_t size) override {
    return SSL_read(session_.get(), data, static_cast<int>(size));
  }
  ssize_t write_some(std::string_view bytes) override {
    return accepted_ ? SSL_write(session_.get(), bytes.data(), static_cast<int>(bytes.size())) : -1;
  }

 private:
  std::unique_ptr<SSL, decltype(&SSL_free)> session_;
  bool accepted_ = false;
};

// What makes a RawServer speak TLS. Its writes need SIGPIPE to be ignored.
inline RawServer::Wrap speak_tls(const Certificate& certificate, int max_version = 0) {
  const std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  SSL_CTX_use_certificate(context.get(), certificate.get());
  SSL_CTX_use_PrivateKey(context.get(), certificate.key());
  if (max_version != 0) SSL_CTX_set_max_proto_version(context.get(), max_version);
  return [context](int fd, int number) -> std::unique_ptr<RawConnection> {
    return std::make_unique<TlsConnection>(context.get(), fd, number);
  };
}

}  // namespace xgen::scripted
