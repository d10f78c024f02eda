// TLS over OpenSSL: one connection's session, of either side, and the certificates that the client trusts (what the
// server shows is in server_tls.h). A header of this room alone: it includes OpenSSL.
#pragma once

#include <openssl/ssl.h>
#include <sys/stat.h>

#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>

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

// What a client trusts and shows: those of ClientRequest.
struct ClientTlsFiles {
  std::string ca_file;
  std::string pinned_cert_file;
  std::string cert_file;
  std::string key_file;
  bool operator<(const ClientTlsFiles& other) const {
    return std::tie(ca_file, pinned_cert_file, cert_file, key_file) <
           std::tie(other.ca_file, other.pinned_cert_file, other.cert_file, other.key_file);
  }
};

// What is trusted and shown, per set of files; those that have changed are read again. Used by one thread.
class TlsContexts {
 public:
  // Errors: unavailable, naming the file, or the places where no store was found.
  Result<SSL_CTX*> get(const ClientTlsFiles& files);

 private:
  struct Seen {
    time_t changed_s = 0;
    long changed_ns = 0;
    off_t size = 0;
    bool operator==(const Seen&) const = default;
  };
  struct Entry {
    std::unique_ptr<SSL_CTX, SslFree> context;
    std::array<Seen, 4> seen;  // as the files were when they were read
  };
  std::map<ClientTlsFiles, Entry> entries_;
};

// One session over a non-blocking socket that it does not own. A read into kMostOfARecord bytes or more leaves nothing
// behind: what else has come is still in the socket.
class TlsSession {
 public:
  static constexpr std::size_t kMostOfARecord = 16 << 10;

  // The client's side: the certificate must be the host's, unless one is pinned.
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
