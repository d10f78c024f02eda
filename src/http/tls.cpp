#include "http/tls.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/sslerr.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

namespace xgen::http {
namespace {

// Where distributions keep their trusted certificates: Debian, Alpine, Arch; Fedora, RHEL (two); openSUSE; BSDs.
constexpr const char* kCaFiles[] = {"/etc/ssl/certs/ca-certificates.crt",
                                    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
                                    "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"};
constexpr const char* kCaFolders[] = {"/etc/ssl/certs", "/etc/pki/tls/certs"};

Error no_trust(const std::string& why) {
  return make_error(ErrorCode::unavailable, "cannot check the server's certificate: " + why);
}

Status trust_system(SSL_CTX* context) {
  if (std::getenv("SSL_CERT_FILE") != nullptr || std::getenv("SSL_CERT_DIR") != nullptr) {
    if (SSL_CTX_set_default_verify_paths(context) == 1) return {};
    return no_trust("SSL_CERT_FILE or SSL_CERT_DIR: " + last_tls_error());
  }
  std::error_code ignored;
  for (const char* file : kCaFiles)
    if (std::filesystem::exists(file, ignored) && SSL_CTX_load_verify_file(context, file) == 1) return {};
  for (const char* folder : kCaFolders)
    if (std::filesystem::exists(folder, ignored) && SSL_CTX_load_verify_dir(context, folder) == 1) return {};
  std::string places;
  for (const char* file : kCaFiles) places += (places.empty() ? "" : ", ") + std::string(file);
  ERR_clear_error();
  return no_trust("no store of trusted certificates was found (" + places +
                  "); install ca-certificates, or set ca_file or SSL_CERT_FILE");
}

Status trust(SSL_CTX* context, const std::string& ca_file) {
  if (SSL_CTX_load_verify_file(context, ca_file.c_str()) == 1) return {};
  return no_trust("ca_file " + ca_file + ": " + last_tls_error());
}

// Instead of OpenSSL's own, which would ask on the terminal.
int no_passphrase(char*, int, int, void*) { return -1; }

// Whether the other side has shown the very certificate; that it has the key, the handshake proves.
int is_pinned(X509_STORE_CTX* shown, void* pinned) {
  const bool same = X509_cmp(X509_STORE_CTX_get0_cert(shown), static_cast<const X509*>(pinned)) == 0;
  X509_STORE_CTX_set_error(shown, same ? X509_V_OK : X509_V_ERR_APPLICATION_VERIFICATION);
  return same ? 1 : 0;
}

Status pin(SSL_CTX* context, const std::string& file) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new_file(file.c_str(), "r"), BIO_free);
  const std::unique_ptr<X509, decltype(&X509_free)> first(
      bio == nullptr ? nullptr : PEM_read_bio_X509(bio.get(), nullptr, no_passphrase, nullptr), X509_free);
  // The store keeps it for as long as the context, and with it a session, needs it.
  if (first == nullptr || X509_STORE_add_cert(SSL_CTX_get_cert_store(context), first.get()) != 1)
    return no_trust(file + ": " + last_tls_error());
  SSL_CTX_set_cert_verify_callback(context, is_pinned, first.get());
  return {};
}

Error no_certificate(const std::string& why) {
  return make_error(ErrorCode::unavailable, "no certificate can be shown to the server: " + why);
}

Status show(SSL_CTX* context, const std::string& cert_file, const std::string& key_file) {
  SSL_CTX_set_default_passwd_cb(context, no_passphrase);
  if (SSL_CTX_use_certificate_chain_file(context, cert_file.c_str()) != 1)
    return no_certificate(cert_file + ": " + last_tls_error());
  if (SSL_CTX_use_PrivateKey_file(context, key_file.c_str(), SSL_FILETYPE_PEM) != 1)
    return no_certificate(key_file + ": " + last_tls_error());
  return {};
}

// OpenSSL's own socket BIO writes without MSG_NOSIGNAL, which would end a process that does not ignore SIGPIPE.
int bio_fd(BIO* bio) { return static_cast<int>(reinterpret_cast<std::intptr_t>(BIO_get_data(bio))); }

int bio_result(BIO* bio, ssize_t n, int retry) {
  BIO_clear_retry_flags(bio);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
    BIO_set_flags(bio, retry | BIO_FLAGS_SHOULD_RETRY);
  return static_cast<int>(n);
}
int bio_write(BIO* bio, const char* data, int size) {
  return bio_result(bio, ::send(bio_fd(bio), data, static_cast<std::size_t>(size), MSG_NOSIGNAL), BIO_FLAGS_WRITE);
}
int bio_read(BIO* bio, char* data, int size) {
  const ssize_t n = ::recv(bio_fd(bio), data, static_cast<std::size_t>(size), 0);
  const int result = bio_result(bio, n, BIO_FLAGS_READ);
  if (n == 0) BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
  return result;
}
long bio_ctrl(BIO* bio, int command, long, void*) {
  if (command == BIO_CTRL_EOF) return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0 ? 1 : 0;
  return command == BIO_CTRL_FLUSH ? 1 : 0;
}

const BIO_METHOD* socket_method() {
  static BIO_METHOD* const method = [] {
    BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "socket");
    BIO_meth_set_write(made, bio_write);
    BIO_meth_set_read(made, bio_read);
    BIO_meth_set_ctrl(made, bio_ctrl);
    return made;
  }();
  return method;
}

std::unique_ptr<SSL, SslFree> session_over(SSL_CTX* context, int socket) {
  std::unique_ptr<SSL, SslFree> session(SSL_new(context));
  BIO* bio = BIO_new(socket_method());
  if (session == nullptr || bio == nullptr) {
    BIO_free(bio);
    throw std::bad_alloc();
  }
  BIO_set_data(bio, reinterpret_cast<void*>(static_cast<std::intptr_t>(socket)));
  BIO_set_init(bio, 1);
  SSL_set_bio(session.get(), bio, bio);
  return session;
}

}  // namespace

std::string last_tls_error() {
  const unsigned long code = ERR_peek_last_error();
  ERR_clear_error();
  const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  return reason != nullptr ? reason : "unknown TLS fault";
}

std::string subject_of(const X509* certificate) {
  constexpr std::size_t kMost = 200;
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new(BIO_s_mem()), BIO_free);
  if (bio == nullptr) throw std::bad_alloc();
  X509_NAME_print_ex(bio.get(), X509_get_subject_name(certificate), 0, XN_FLAG_RFC2253);
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  return {text, std::min(static_cast<std::size_t>(size), kMost)};
}

void set_io_modes(SSL_CTX* context) {
  SSL_CTX_set_mode(context,
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
}

Result<SSL_CTX*> TlsContexts::get(const ClientTlsFiles& files) {
  std::array<Seen, 4> seen;
  const std::string* names[] = {&files.ca_file, &files.pinned_cert_file, &files.cert_file, &files.key_file};
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (names[i]->empty()) continue;
    struct stat now {};
    if (::stat(names[i]->c_str(), &now) != 0 || ::access(names[i]->c_str(), R_OK) != 0) {
      const std::string why = *names[i] + ": " + std::strerror(errno);
      return i == 0 ? no_trust("ca_file " + why) : i == 1 ? no_trust(why) : no_certificate(why);
    }
    seen[i] = {now.st_mtim.tv_sec, now.st_mtim.tv_nsec, now.st_size};
  }
  Entry& entry = entries_[files];
  if (entry.context != nullptr && seen == entry.seen) return entry.context.get();
  ERR_clear_error();
  std::unique_ptr<SSL_CTX, SslFree> context(SSL_CTX_new(TLS_client_method()));
  if (context == nullptr) return make_error(ErrorCode::internal, "TLS cannot be set up: " + last_tls_error());
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  set_io_modes(context.get());
  static constexpr unsigned char kProtocols[] = {8, 'h', 't', 't', 'p', '/', '1', '.', '1'};
  SSL_CTX_set_alpn_protos(context.get(), kProtocols, sizeof(kProtocols));
  Status status = !files.pinned_cert_file.empty() ? pin(context.get(), files.pinned_cert_file)
                  : files.ca_file.empty()         ? trust_system(context.get())
                                                  : trust(context.get(), files.ca_file);
  if (status && !files.cert_file.empty()) status = show(context.get(), files.cert_file, files.key_file);
  if (!status) return std::move(status).error();
  entry = {std::move(context), seen};
  return entry.context.get();
}

TlsSession::TlsSession(SSL_CTX* context, int socket) : session_(session_over(context, socket)) {
  SSL_set_accept_state(session_.get());
}

TlsSession::TlsSession(SSL_CTX* context, int socket, const std::string& host)
    : session_(session_over(context, socket)) {
  in6_addr address{};
  if (inet_pton(AF_INET, host.c_str(), &address) == 1 || inet_pton(AF_INET6, host.c_str(), &address) == 1) {
    X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(session_.get()), host.c_str());
  } else {
    // As the macro SSL_set_tlsext_host_name does, whose cast is not accepted here.
    SSL_ctrl(session_.get(), SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name, const_cast<char*>(host.c_str()));
    SSL_set_hostflags(session_.get(), X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    SSL_set1_host(session_.get(), host.c_str());
  }
  SSL_set_connect_state(session_.get());
}

IoResult TlsSession::outcome(int returned) {
  const int system = errno;
  IoResult result;
  switch (SSL_get_error(session_.get(), returned)) {
    case SSL_ERROR_NONE:
      break;
    case SSL_ERROR_WANT_READ:
      result.kind = IoResult::Kind::want_read;
      break;
    case SSL_ERROR_WANT_WRITE:
      result.kind = IoResult::Kind::want_write;
      break;
    case SSL_ERROR_ZERO_RETURN:
      result.kind = IoResult::Kind::closed;
      break;
    case SSL_ERROR_SYSCALL:
      broken_ = true;
      result.kind = IoResult::Kind::failed;
      result.reason = system == 0 ? "the connection was closed" : std::strerror(system);
      ERR_clear_error();
      break;
    default:
      broken_ = true;
      // A server knows by the framing whether a request is whole; many clients leave without a farewell.
      if (SSL_is_server(session_.get()) != 0 &&
          ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
        result.kind = IoResult::Kind::closed;
        ERR_clear_error();
        break;
      }
      result.kind = IoResult::Kind::failed;
      if (const long verdict = SSL_get_verify_result(session_.get()); verdict != X509_V_OK)
        result.reason = std::string(SSL_is_server(session_.get()) != 0 ? "the client's" : "the server's") +
                        " certificate is not trusted: " +
                        (verdict == X509_V_ERR_APPLICATION_VERIFICATION ? "it is not that of pinned_cert_file"
                                                                        : X509_verify_cert_error_string(verdict));
      else
        result.reason = "TLS: " + last_tls_error();
      ERR_clear_error();
  }
  return result;
}

IoResult TlsSession::handshake() {
  ERR_clear_error();
  errno = 0;
  return outcome(SSL_do_handshake(session_.get()));
}

IoResult TlsSession::read(char* data, std::size_t size) {
  ERR_clear_error();
  errno = 0;
  std::size_t bytes = 0;
  IoResult result = outcome(SSL_read_ex(session_.get(), data, size, &bytes));
  result.bytes = bytes;
  return result;
}

IoResult TlsSession::write(std::string_view data) {
  ERR_clear_error();
  errno = 0;
  std::size_t bytes = 0;
  IoResult result = outcome(SSL_write_ex(session_.get(), data.data(), data.size(), &bytes));
  result.bytes = bytes;
  return result;
}

void TlsSession::close() {
  if (broken_ || SSL_in_init(session_.get()) != 0) return;
  SSL_shutdown(session_.get());
  ERR_clear_error();
}

std::string TlsSession::peer_subject() const {
  const X509* certificate = SSL_get0_peer_certificate(session_.get());
  return certificate == nullptr ? std::string() : subject_of(certificate);
}

}  // namespace xgen::http
