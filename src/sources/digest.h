// Digests of files as they are checked: SHA-2, SHA-1, MD5 and the CRCs that S3 offers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace xgen::sources {

enum class DigestKind : std::uint8_t { sha256, sha1, md5, crc32, crc32c, crc64nvme };
std::string_view digest_name(DigestKind kind);

class Digest {
 public:
  virtual ~Digest() = default;
  virtual void update(std::string_view data) = 0;
  // Raw bytes, most significant first. Nothing may be added after it.
  virtual std::string finish() = 0;
};
std::unique_ptr<Digest> make_digest(DigestKind kind);
std::string digest_of(DigestKind kind, std::string_view data);

std::string hmac_sha256(std::string_view key, std::string_view data);  // raw bytes
std::string to_hex(std::string_view raw);
// Standard base64 with padding. Errors: invalid_argument.
Result<std::string> from_base64(std::string_view text);

// What must hold for a file's bytes, all of it. Without any digest only the size is known.
struct Expectation {
  DigestKind kind = DigestKind::sha256;
  std::string raw;             // the expected digest
  bool git_blob = false;       // of "blob SIZE\0" and the bytes
  std::uint64_t md5_part = 0;  // S3's ETag of an upload in parts of so many bytes: MD5 of the parts' MD5s; 0: not so
  std::string where;           // who claims it: "x-linked-etag", "ETag"
};

// Checks a file's bytes, given in order, against all expectations at once.
class Verifier {
 public:
  Verifier(const std::vector<Expectation>& expectations, std::uint64_t size);
  void update(std::string_view data);
  // Errors: unavailable, naming the digest, what was expected and what came.
  Status finish();

 private:
  struct Check {
    Expectation expected;
    std::unique_ptr<Digest> digest;
    std::unique_ptr<Digest> part;  // of md5_part
    std::uint64_t left_of_part = 0;
  };
  std::vector<Check> checks_;
};

}  // namespace xgen::sources
