// Certificates that tests make for themselves. Include it in tests of rooms that link OpenSSL.
#pragma once

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <memory>
#include <stdexcept>
#include <string>

namespace xgen::scripted {

// A key with a certificate that it has signed itself, or that `issuer` has. `names`: "DNS:localhost,IP:127.0.0.1".
class Certificate {
 public:
  explicit Certificate(const std::string& names, long valid_from_s = -3600, long valid_to_s = 3600,
                       const Certificate* issuer = nullptr, const std::string& common = "xgen test")
      : key_(EVP_EC_gen("P-256"), EVP_PKEY_free), certificate_(X509_new(), X509_free) {
    X509* made = certificate_.get();
    X509_set_version(made, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(made), 1);
    X509_gmtime_adj(X509_getm_notBefore(made), valid_from_s);
    X509_gmtime_adj(X509_getm_notAfter(made), valid_to_s);
    X509_set_pubkey(made, key_.get());
    X509_NAME* name = X509_get_subject_name(made);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(common.data()),
                               static_cast<int>(common.size()), -1, 0);
    X509_set_issuer_name(made, issuer != nullptr ? X509_get_subject_name(issuer->get()) : name);
    add_extension(NID_subject_alt_name, names);
    if (issuer == nullptr) add_extension(NID_basic_constraints, "critical,CA:TRUE");
    X509_sign(made, issuer != nullptr ? issuer->key() : key_.get(), EVP_sha256());
  }

  X509* get() const { return certificate_.get(); }
  EVP_PKEY* key() const { return key_.get(); }
  void write_pem(const std::string& path) const {
    const std::unique_ptr<BIO, decltype(&BIO_free)> file(BIO_new_file(path.c_str(), "w"), BIO_free);
    PEM_write_bio_X509(file.get(), get());
  }
  void write_key_pem(const std::string& path, const char* passphrase = nullptr) const {
    const std::unique_ptr<BIO, decltype(&BIO_free)> file(BIO_new_file(path.c_str(), "w"), BIO_free);
    PEM_write_bio_PKCS8PrivateKey(file.get(), key(), passphrase != nullptr ? EVP_aes_128_cbc() : nullptr, nullptr, 0,
                                  nullptr, const_cast<char*>(passphrase));
  }

 private:
  void add_extension(int kind, const std::string& value) {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, kind, value.c_str());
    if (extension == nullptr) throw std::runtime_error("bad extension: " + value);
    X509_add_ext(get(), extension, -1);
    X509_EXTENSION_free(extension);
  }

  std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key_;
  std::unique_ptr<X509, decltype(&X509_free)> certificate_;
};

}  // namespace xgen::scripted
