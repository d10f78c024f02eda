#include "sources/digest.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <new>

namespace xgen::sources {
namespace {

class EvpDigest final : public Digest {
 public:
  explicit EvpDigest(const EVP_MD* algorithm) : context_(EVP_MD_CTX_new()) {
    if (context_ == nullptr || EVP_DigestInit_ex(context_, algorithm, nullptr) != 1) throw std::bad_alloc();
  }
  ~EvpDigest() override { EVP_MD_CTX_free(context_); }
  EvpDigest(const EvpDigest&) = delete;
  EvpDigest& operator=(const EvpDigest&) = delete;
  void update(std::string_view data) override { EVP_DigestUpdate(context_, data.data(), data.size()); }
  std::string finish() override {
    std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
    unsigned size = 0;
    EVP_DigestFinal_ex(context_, out.data(), &size);
    return {reinterpret_cast<const char*>(out.data()), size};
  }

 private:
  EVP_MD_CTX* context_;
};

// Eight tables, so that eight bytes are taken at a time ("slicing-by-8"). `poly` is bit-reversed.
template <class Word>
struct CrcTables {
  std::array<std::array<Word, 256>, 8> rows{};
  constexpr explicit CrcTables(Word poly) {
    for (unsigned i = 0; i < 256; ++i) {
      Word value = i;
      for (int bit = 0; bit < 8; ++bit) value = static_cast<Word>((value >> 1) ^ ((value & 1) != 0 ? poly : 0));
      rows[0][i] = value;
    }
    for (unsigned i = 0; i < 256; ++i)
      for (std::size_t row = 1; row < 8; ++row)
        rows[row][i] = static_cast<Word>((rows[row - 1][i] >> 8) ^ rows[0][rows[row - 1][i] & 0xff]);
  }
};

template <class Word>
class Crc final : public Digest {
 public:
  explicit Crc(const CrcTables<Word>& tables) : tables_(tables) {}
  void update(std::string_view data) override {
    const auto& t = tables_.rows;
    while (data.size() >= 8) {
      std::uint64_t block = 0;
      std::memcpy(&block, data.data(), 8);
      if constexpr (std::endian::native == std::endian::big) block = __builtin_bswap64(block);
      block ^= value_;
      value_ = static_cast<Word>(t[7][block & 0xff] ^ t[6][(block >> 8) & 0xff] ^ t[5][(block >> 16) & 0xff] ^
                                 t[4][(block >> 24) & 0xff] ^ t[3][(block >> 32) & 0xff] ^ t[2][(block >> 40) & 0xff] ^
                                 t[1][(block >> 48) & 0xff] ^ t[0][block >> 56]);
      data.remove_prefix(8);
    }
    for (const char c : data)
      value_ = static_cast<Word>((value_ >> 8) ^ t[0][(value_ ^ static_cast<unsigned char>(c)) & 0xff]);
  }
  std::string finish() override {
    const Word value = static_cast<Word>(~value_);
    std::string out;
    for (int shift = static_cast<int>(sizeof(Word)) * 8 - 8; shift >= 0; shift -= 8)
      out += static_cast<char>((value >> shift) & 0xff);
    return out;
  }

 private:
  const CrcTables<Word>& tables_;
  Word value_ = static_cast<Word>(~Word{0});
};

constexpr CrcTables<std::uint32_t> kCrc32(0xedb88320u);
constexpr CrcTables<std::uint32_t> kCrc32c(0x82f63b78u);
constexpr CrcTables<std::uint64_t> kCrc64Nvme(0x9a6c9329ac4bc9b5u);

}  // namespace

std::string_view digest_name(DigestKind kind) {
  switch (kind) {
    case DigestKind::sha256:
      return "SHA-256";
    case DigestKind::sha1:
      return "SHA-1";
    case DigestKind::md5:
      return "MD5";
    case DigestKind::crc32:
      return "CRC32";
    case DigestKind::crc32c:
      return "CRC32C";
    case DigestKind::crc64nvme:
      return "CRC64NVME";
  }
  return "digest";
}

std::unique_ptr<Digest> make_digest(DigestKind kind) {
  switch (kind) {
    case DigestKind::sha256:
      return std::make_unique<EvpDigest>(EVP_sha256());
    case DigestKind::sha1:
      return std::make_unique<EvpDigest>(EVP_sha1());
    case DigestKind::md5:
      return std::make_unique<EvpDigest>(EVP_md5());
    case DigestKind::crc32:
      return std::make_unique<Crc<std::uint32_t>>(kCrc32);
    case DigestKind::crc32c:
      return std::make_unique<Crc<std::uint32_t>>(kCrc32c);
    case DigestKind::crc64nvme:
      break;
  }
  return std::make_unique<Crc<std::uint64_t>>(kCrc64Nvme);
}

std::string digest_of(DigestKind kind, std::string_view data) {
  const auto digest = make_digest(kind);
  digest->update(data);
  return digest->finish();
}

std::string hmac_sha256(std::string_view key, std::string_view data) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
  unsigned size = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), reinterpret_cast<const unsigned char*>(data.data()),
       data.size(), out.data(), &size);
  return {reinterpret_cast<const char*>(out.data()), size};
}

std::string to_hex(std::string_view raw) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  for (const unsigned char c : raw) {
    out += kDigits[c >> 4];
    out += kDigits[c & 15];
  }
  return out;
}

Result<std::string> from_base64(std::string_view text) {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const auto refused = [] { return make_error(ErrorCode::invalid_argument, "not base64"); };
  if (text.size() % 4 != 0) return refused();
  std::size_t padding = 0;
  while (padding < 2 && text.ends_with('=')) {
    text.remove_suffix(1);
    ++padding;
  }
  std::string out;
  std::uint32_t bits = 0;
  int held = 0;
  for (const char c : text) {
    const std::size_t value = kAlphabet.find(c);
    if (value == std::string_view::npos) return refused();
    bits = (bits << 6) | static_cast<std::uint32_t>(value);
    held += 6;
    if (held < 8) continue;
    held -= 8;
    out += static_cast<char>((bits >> held) & 0xff);
  }
  return out;
}

Verifier::Verifier(const std::vector<Expectation>& expectations, std::uint64_t size) {
  for (const Expectation& each : expectations) {
    Check check{each, make_digest(each.kind), nullptr, each.md5_part};
    if (each.git_blob) {
      const std::string head = "blob " + std::to_string(size);
      check.digest->update(std::string_view(head.c_str(), head.size() + 1));
    }
    if (each.md5_part > 0) check.part = make_digest(DigestKind::md5);
    checks_.push_back(std::move(check));
  }
}

void Verifier::update(std::string_view data) {
  for (Check& check : checks_) {
    if (check.expected.md5_part == 0) {
      check.digest->update(data);
      continue;
    }
    std::string_view rest = data;
    while (!rest.empty()) {
      const std::size_t take = static_cast<std::size_t>(std::min<std::uint64_t>(rest.size(), check.left_of_part));
      check.part->update(rest.substr(0, take));
      rest.remove_prefix(take);
      check.left_of_part -= take;
      if (check.left_of_part > 0) continue;
      check.digest->update(check.part->finish());
      check.part = make_digest(DigestKind::md5);
      check.left_of_part = check.expected.md5_part;
    }
  }
}

Status Verifier::finish() {
  for (Check& check : checks_) {
    if (check.expected.md5_part > 0 && check.left_of_part < check.expected.md5_part)
      check.digest->update(check.part->finish());
    const std::string got = check.digest->finish();
    if (got != check.expected.raw) {
      return make_error(ErrorCode::unavailable, "the bytes that came do not match the " +
                                                    std::string(digest_name(check.expected.kind)) + " of its " +
                                                    check.expected.where + ": expected " + to_hex(check.expected.raw) +
                                                    ", got " + to_hex(got));
    }
  }
  return {};
}

}  // namespace xgen::sources
