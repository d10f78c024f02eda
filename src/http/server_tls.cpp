#include "http/server_tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "base/log.h"
#include "http/tls.h"

namespace xgen::http {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kBetweenLooks{1};
constexpr std::size_t kMostCertificates = 1000;  // of one file

constexpr std::string_view kCertKey = "server.tls_cert_file";
constexpr std::string_view kKeyKey = "server.tls_key_file";
constexpr std::string_view kClientCaKey = "server.tls_client_ca_file";

// Of TLS 1.2: those with forward secrecy and authenticated encryption. 1.3 has no others.
constexpr const char* kCiphers = "ECDHE+AESGCM:ECDHE+CHACHA20";

template <auto release>
struct Free {
  template <class T>
  void operator()(T* object) const {
    release(object);
  }
};
using Bio = std::unique_ptr<BIO, Free<BIO_free>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;

Error fault(std::string_view key, const std::string& file, const std::string& what) {
  return make_error(ErrorCode::invalid_argument, std::string(key) + ": " + file + ": " + what, std::string(key));
}

Result<Bio> open(std::string_view key, const std::string& file) {
  errno = 0;
  Bio bio(BIO_new_file(file.c_str(), "r"));
  if (bio == nullptr) {
    const int why = errno;
    ERR_clear_error();
    return fault(key, file, why != 0 ? std::strerror(why) : "cannot be read");
  }
  return bio;
}

// Instead of OpenSSL's own, which would ask on the terminal.
int no_passphrase(char*, int, int, void* asked) {
  if (asked != nullptr) *static_cast<bool*>(asked) = true;
  return -1;
}

Result<std::vector<Certificate>> read_certificates(std::string_view key, const std::string& file) {
  const auto bio = open(key, file);
  if (!bio) return bio.error();
  std::vector<Certificate> list;
  while (X509* one = PEM_read_bio_X509(bio->get(), nullptr, no_passphrase, nullptr)) {
    list.emplace_back(one);
    if (list.size() > kMostCertificates)
      return fault(key, file, "holds more than " + std::to_string(kMostCertificates) + " certificates");
  }
  const bool end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  const std::string reason = last_tls_error();
  if (!end) return fault(key, file, "certificate " + std::to_string(list.size() + 1) + " is damaged: " + reason);
  if (list.empty()) return fault(key, file, "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)");
  return list;
}

Result<Key> read_key(const std::string& file) {
  const auto bio = open(kKeyKey, file);
  if (!bio) return bio.error();
  bool asked = false;
  Key key(PEM_read_bio_PrivateKey(bio->get(), nullptr, no_passphrase, &asked));
  if (key != nullptr) return key;
  const std::string reason = last_tls_error();
  if (asked) return fault(kKeyKey, file, "the key has a passphrase; expected one without");
  return fault(kKeyKey, file, "holds no private key in PEM form (" + reason + ")");
}

std::string time_text(const ASN1_TIME* time) {
  const Bio bio(BIO_new(BIO_s_mem()));
  if (bio == nullptr || ASN1_TIME_print(bio.get(), time) != 1) return "?";
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  return {text, static_cast<std::size_t>(size)};
}

void report(const X509* certificate, const std::string& file) {
  const ASN1_TIME* begin = X509_get0_notBefore(certificate);
  const ASN1_TIME* end = X509_get0_notAfter(certificate);
  if (X509_cmp_current_time(end) < 0)
    log::warn("http", "the TLS certificate has expired", {{"file", file}, {"until", time_text(end)}});
  else if (X509_cmp_current_time(begin) > 0)
    log::warn("http", "the TLS certificate is not valid yet", {{"file", file}, {"from", time_text(begin)}});
  else
    log::info("http", "TLS certificate",
              {{"file", file}, {"subject", subject_of(certificate)}, {"until", time_text(end)}});
}

// HTTP/1.1 is what is spoken here; to a client that offers others alone the handshake says so.
int choose_protocol(SSL*, const unsigned char** chosen, unsigned char* size, const unsigned char* offered,
                    unsigned int offered_size, void*) {
  constexpr std::string_view kHttp = "http/1.1";
  for (unsigned int at = 0; at < offered_size; at += 1U + offered[at]) {
    const std::string_view name(reinterpret_cast<const char*>(offered) + at + 1, offered[at]);
    if (name != kHttp) continue;
    *chosen = offered + at + 1;
    *size = offered[at];
    return SSL_TLSEXT_ERR_OK;
  }
  return SSL_TLSEXT_ERR_ALERT_FATAL;
}

}  // namespace

// A swapped link shows in the file that it leads to.
struct ServerTls::Seen {
  struct File {
    dev_t device = 0;
    ino_t inode = 0;
    off_t size = 0;
    std::int64_t changed_s = 0;
    std::int64_t changed_ns = 0;
    bool operator==(const File&) const = default;
  };
  std::array<File, 3> files;
  bool operator==(const Seen&) const = default;
};

void ServerTls::Free::operator()(ssl_ctx_st* context) const { SSL_CTX_free(context); }

ServerTls::ServerTls(TlsOptions options) : options_(std::move(options)), seen_(std::make_unique<Seen>()) {}
ServerTls::~ServerTls() = default;

ServerTls::Seen ServerTls::look() const {
  Seen seen;
  const std::string* names[] = {&options_.cert_file, &options_.key_file, &options_.client_ca_file};
  for (std::size_t i = 0; i < seen.files.size(); ++i) {
    struct stat now {};
    if (names[i]->empty() || ::stat(names[i]->c_str(), &now) != 0) continue;
    seen.files[i] = {now.st_dev, now.st_ino, now.st_size, now.st_mtim.tv_sec, now.st_mtim.tv_nsec};
  }
  return seen;
}

Result<std::shared_ptr<ServerTls>> ServerTls::load(TlsOptions options) {
  std::shared_ptr<ServerTls> tls(new ServerTls(std::move(options)));
  if (Status status = tls->reload(); !status) return std::move(status).error();
  return tls;
}

Status ServerTls::reload() {
  std::lock_guard lock(mutex_);
  *seen_ = look();
  next_look_ = Clock::now() + kBetweenLooks;
  auto made = make_context();
  fault_ = made ? std::string() : made.error().message;
  if (!made) return std::move(made).error();
  context_ = *std::move(made);
  return {};
}

std::unique_ptr<TlsSession> ServerTls::accept(int socket) {
  std::lock_guard lock(mutex_);
  if (const auto now = Clock::now(); now >= next_look_) {
    next_look_ = now + kBetweenLooks;
    // What is wrong may pass without a change of the files: too many open ones, or a link that leads nowhere yet.
    if (Seen seen = look(); seen != *seen_ || !fault_.empty()) {
      *seen_ = seen;
      auto made = make_context();
      const std::string fault = made ? std::string() : made.error().message;
      if (made)
        context_ = *std::move(made);
      else if (fault != fault_)
        log::error("http", "the TLS files have changed and are not taken; those before stay in force",
                   {{"reason", fault}});
      fault_ = fault;
    }
  }
  return std::make_unique<TlsSession>(context_.get(), socket);
}

Result<ServerTls::Context> ServerTls::make_context() const {
  ERR_clear_error();
  auto certificates = read_certificates(kCertKey, options_.cert_file);
  if (!certificates) return std::move(certificates).error();
  const auto key = read_key(options_.key_file);
  if (!key) return key.error();
  X509* own = certificates->front().get();
  if (X509_check_private_key(own, key->get()) != 1) {
    ERR_clear_error();
    return fault(kKeyKey, options_.key_file, "the key is not that of the (first) certificate in " + options_.cert_file);
  }
  Context context(SSL_CTX_new(TLS_server_method()));
  if (context == nullptr) return make_error(ErrorCode::internal, "TLS cannot be set up: " + last_tls_error());
  SSL_CTX* const made = context.get();
  SSL_CTX_set_min_proto_version(made, options_.tls13_only ? TLS1_3_VERSION : TLS1_2_VERSION);
  SSL_CTX_set_cipher_list(made, kCiphers);
  SSL_CTX_set_options(made, SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
  set_io_modes(made);
  SSL_CTX_set_alpn_select_cb(made, choose_protocol, nullptr);
  // Sessions are resumed from the tickets that clients keep; nothing is kept of them here.
  SSL_CTX_set_session_cache_mode(made, SSL_SESS_CACHE_OFF);
  static constexpr unsigned char kName[] = {'x', 'g', 'e', 'n'};
  SSL_CTX_set_session_id_context(made, kName, sizeof(kName));
  if (SSL_CTX_use_certificate(made, own) != 1)
    return fault(kCertKey, options_.cert_file, "the certificate cannot be used: " + last_tls_error());
  if (SSL_CTX_use_PrivateKey(made, key->get()) != 1)
    return fault(kKeyKey, options_.key_file, "the key cannot be used: " + last_tls_error());
  for (std::size_t i = 1; i < certificates->size(); ++i) {
    if (SSL_CTX_add1_chain_cert(made, (*certificates)[i].get()) != 1)
      return fault(kCertKey, options_.cert_file,
                   "certificate " + std::to_string(i + 1) + " cannot be used: " + last_tls_error());
  }
  if (!options_.client_ca_file.empty()) {
    const auto trusted = read_certificates(kClientCaKey, options_.client_ca_file);
    if (!trusted) return trusted.error();
    X509_STORE* store = SSL_CTX_get_cert_store(made);
    for (const Certificate& each : *trusted) {
      if (X509_STORE_add_cert(store, each.get()) != 1 || SSL_CTX_add_client_CA(made, each.get()) != 1)
        return fault(kClientCaKey, options_.client_ca_file, "a certificate cannot be used: " + last_tls_error());
    }
    // Whoever is named is trusted, though it is no root.
    X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN);
    SSL_CTX_set_verify(made, SSL_VERIFY_PEER | (options_.client_required ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0),
                       nullptr);
  }
  report(own, options_.cert_file);
  return context;
}

}  // namespace xgen::http
