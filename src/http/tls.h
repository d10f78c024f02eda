// TLS over OpenSSL: one connection's session, of either side, and the certificates that the client trusts (what the
// server shows is in server_tls.h). A header of this room alone: it includes OpenSSL.
#pragma once

#include <openssl/ssl.h>
#include <sys/stat.h>

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "http/socket_io.h"

namespace xgen::http {

struct SslFree {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* session) const { SSL_free(session); }
};

// What OpenSSL says of the last fault on this thread, which is forgotten then.
std::string last_tls_error();
// "CN=client,O=org", in printable ASCII; at most 200 characters.
std::string subject_of(const X509* certificate);
// What TlsSession expects of a context.
void set_io_modes(SSL_CTX* context);

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

// One session over a non-blocking socket that it does not own. A read into kMostOfARecord bytes or more leaves nothing
// behind: what else has come is still in the socket.
class TlsSession {
 public:
  static constexpr std::size_t kMostOfARecord = 16 << 10;

  // The client's side: the certificate must be the host's.
  TlsSession(SSL_CTX* context, int socket, const std::string& host);
  // The server's side.
  TlsSession(SSL_CTX* context, int socket);

  IoResult handshake();
  IoResult read(char* data, std::size_t size);
  IoResult write(std::string_view data);
  // Tells the other side, without waiting for it.
  void close();
  // Whose certificate the other side has shown; empty if it has shown none.
  std::string peer_subject() const;

 private:
  IoResult outcome(int returned);

  std::unique_ptr<SSL, SslFree> session_;
  bool broken_ = false;
};

}  // namespace xgen::http
