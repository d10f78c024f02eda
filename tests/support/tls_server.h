// Certificates and TLS connections for RawServer. Include it in tests of rooms that link OpenSSL.
#pragma once

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "support/raw_server.h"

namespace xgen::scripted {

// A key with a certificate that it has signed itself. `names`: "DNS:localhost,IP:127.0.0.1".
class Certificate {
 public:
  explicit Certificate(const std::string& names, long valid_from_s = -3600, long valid_to_s = 3600)
      : key_(EVP_EC_gen("P-256"), EVP_PKEY_free), certificate_(X509_new(), X509_free) {
    X509* made = certificate_.get();
    X509_set_version(made, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(made), 1);
    X509_gmtime_adj(X509_getm_notBefore(made), valid_from_s);
    X509_gmtime_adj(X509_getm_notAfter(made), valid_to_s);
    X509_set_pubkey(made, key_.get());
    X509_NAME* name = X509_get_subject_name(made);
    const std::string common = "xgen test";
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(common.data()),
                               static_cast<int>(common.size()), -1, 0);
    X509_set_issuer_name(made, name);
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, names.c_str());
    if (extension == nullptr) throw std::runtime_error("bad names: " + names);
    X509_add_ext(made, extension, -1);
    X509_EXTENSION_free(extension);
    X509_sign(made, key_.get(), EVP_sha256());
  }

  X509* get() const { return certificate_.get(); }
  EVP_PKEY* key() const { return key_.get(); }
  void write_pem(const std::string& path) const {
    const std::unique_ptr<BIO, decltype(&BIO_free)> file(BIO_new_file(path.c_str(), "w"), BIO_free);
    PEM_write_bio_X509(file.get(), get());
  }

 private:
  std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key_;
  std::unique_ptr<X509, decltype(&X509_free)> certificate_;
};

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
