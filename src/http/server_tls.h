// ServerTls: the certificate that a server shows and those that it asks its clients for; read again when the files
// change.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <string>

#include "base/result.h"

// OpenSSL's SSL_CTX, whose header stays out of this one.
struct ssl_ctx_st;

namespace xgen::http {

class TlsSession;

struct TlsOptions {
  std::string cert_file;       // PEM: the server's certificate, then those between it and a root
  std::string key_file;        // PEM, without a passphrase
  std::string client_ca_file;  // PEM: clients show a certificate that one of these has signed; empty: none is asked for
  bool client_required = true;  // false: clients may come without one, but not with a wrong one
  bool tls13_only = false;      // else 1.2 will do
};

// Thread-safe.
class ServerTls {
 public:
  // Errors: invalid_argument, naming the key of the configuration, the file, and what is wrong with it. A certificate
  // whose time is over, or has not come, is taken with a warning.
  static Result<std::shared_ptr<ServerTls>> load(TlsOptions options);
  ~ServerTls();
  ServerTls(const ServerTls&) = delete;
  ServerTls& operator=(const ServerTls&) = delete;

  // Reads the files again. Errors as above; what was read before stays in force then.
  Status reload();

  // The server's side of a new connection, whose socket it does not own. Looks first, once a second at most, whether
  // the files have changed, or could not be read before.
  std::unique_ptr<TlsSession> accept(int socket);

 private:
  struct Seen;
  struct Free {
    void operator()(ssl_ctx_st* context) const;
  };
  using Context = std::unique_ptr<ssl_ctx_st, Free>;

  explicit ServerTls(TlsOptions options);
  Seen look() const;
  Result<Context> make_context() const;

  const TlsOptions options_;
  std::mutex mutex_;
  Context context_;
  std::unique_ptr<Seen> seen_;  // the files as they were when they were read
  std::string fault_;           // why they were not taken; empty: they were
  std::chrono::steady_clock::time_point next_look_{};
};

}  // namespace xgen::http
