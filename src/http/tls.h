// TLS for the client's connections, over OpenSSL: the certificates that are trusted, and one connection's session.
// A header of this room alone: it includes OpenSSL.
#pragma once

#include <openssl/ssl.h>
#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace xgen::http {

struct SslFree {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* session) const { SSL_free(session); }
};

// What a non-blocking read, write or handshake came to.
struct IoResult {
  enum class Kind : std::uint8_t { done, want_read, want_write, closed, failed } kind = Kind::done;
  std::size_t bytes = 0;
  std::string reason;  // of failed
};

// The trusted certificates, per ca_file; a file that has changed is read again. Used by one thread.
class TlsContexts {
 public:
  // Errors: unavailable, naming the file, or the places where no store was found.
  Result<SSL_CTX*> get(const std::string& ca_file);

 private:
  struct Entry {
    std::unique_ptr<SSL_CTX, SslFree> context;
    timespec changed{};
    off_t size = 0;
  };
  std::map<std::string, Entry> entries_;
};

// One session over a non-blocking socket that it does not own. TLS 1.2 or later; the host's certificate is checked.
class TlsSession {
 public:
  TlsSession(SSL_CTX* context, int socket, const std::string& host);

  IoResult handshake();
  IoResult read(char* data, std::size_t size);
  IoResult write(std::string_view data);
  // Tells the other side, without waiting for it.
  void close();

 private:
  IoResult outcome(int returned);

  std::unique_ptr<SSL, SslFree> session_;
  bool broken_ = false;
};

}  // namespace xgen::http
