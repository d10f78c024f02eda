// TlsClient: a RawClient that speaks TLS. Include it in tests of rooms that link OpenSSL.
#pragma once

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "support/certificate.h"
#include "support/raw_client.h"

namespace xgen::scripted {

struct TlsClientOptions {
  const Certificate* shows = nullptr;  // null: none
  int max_version = 0;
  std::string protocols;  // of ALPN, each with its length before it
  SSL_SESSION* resumes = nullptr;
  int receive_buffer = 0;
};

class TlsClient final : public RawClient {
 public:
  explicit TlsClient(std::uint16_t port, const TlsClientOptions& options = {})
      : RawClient(port, options.receive_buffer), context_(SSL_CTX_new(TLS_client_method()), SSL_CTX_free) {
    if (options.shows != nullptr) {
      SSL_CTX_use_certificate(context_.get(), options.shows->get());
      SSL_CTX_use_PrivateKey(context_.get(), options.shows->key());
    }
    if (options.max_version != 0) SSL_CTX_set_max_proto_version(context_.get(), options.max_version);
    session_.reset(SSL_new(context_.get()));
    if (!options.protocols.empty())
      SSL_set_alpn_protos(session_.get(), reinterpret_cast<const unsigned char*>(options.protocols.data()),
                          static_cast<unsigned>(options.protocols.size()));
    if (options.resumes != nullptr) SSL_set_session(session_.get(), options.resumes);
    SSL_set_fd(session_.get(), fd());
    SSL_clear_mode(session_.get(), SSL_MODE_AUTO_RETRY);
    timeval patience{10, 0};
    ::setsockopt(fd(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    shaken = SSL_connect(session_.get()) == 1;
    if (!shaken) note_fault();
  }

  SSL* session() { return session_.get(); }
  // SHA-256 of the certificate that the server has shown; empty without one.
  std::string certificate_digest() const {
    X509* shown = SSL_get0_peer_certificate(session_.get());
    if (shown == nullptr) return {};
    unsigned char digest[32];
    unsigned size = 0;
    X509_digest(shown, EVP_sha256(), digest, &size);
    return {reinterpret_cast<char*>(digest), size};
  }
  // Says that nothing more comes, and keeps the connection.
  void say_goodbye() { SSL_shutdown(session_.get()); }

  bool shaken = false;
  std::string fault;  // OpenSSL's word for why the server went

 protected:
  // Tickets and the like are no bytes to read.
  bool readable(std::chrono::milliseconds wait) const override {
    const auto end = std::chrono::steady_clock::now() + wait;
    while (SSL_pending(session_.get()) == 0) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
      if (left.count() < 0 || !RawClient::readable(left)) return false;
      char byte = 0;
      const int n = SSL_peek(session_.get(), &byte, 1);
      if (n > 0 || SSL_get_error(session_.get(), n) != SSL_ERROR_WANT_READ) return true;
    }
    return true;
  }
  ssize_t receive(char* data, std::size_t size) override {
    const int n = SSL_read(session_.get(), data, static_cast<int>(size));
    if (n <= 0) note_fault();
    return n;
  }
  ssize_t write_some(std::string_view bytes) override {
    ERR_clear_error();
    return SSL_write(session_.get(), bytes.data(), static_cast<int>(bytes.size()));
  }

 private:
  void note_fault() {
    const char* reason = ERR_reason_error_string(ERR_peek_last_error());
    if (reason != nullptr) fault = reason;
    ERR_clear_error();
  }

  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context_;
  std::unique_ptr<SSL, decltype(&SSL_free)> session_{nullptr, SSL_free};
};

}  // namespace xgen::scripted
