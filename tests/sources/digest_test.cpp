// Digests against published values, and files against what is claimed of them.
#include "sources/digest.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

namespace xgen::sources {
namespace {

TEST(Digest, PublishedValues) {
  const struct {
    DigestKind kind;
    const char* of;
    const char* hex;
  } cases[] = {
      // FIPS 180-2, RFC 1321; the CRCs' check values over "123456789" as the CRC catalogue lists them.
      {DigestKind::sha256, "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
      {DigestKind::sha1, "abc", "a9993e364706816aba3e25717850c26c9cd0d89d"},
      {DigestKind::md5, "abc", "900150983cd24fb0d6963f7d28e17f72"},
      {DigestKind::crc32, "123456789", "cbf43926"},
      {DigestKind::crc32c, "123456789", "e3069283"},
      {DigestKind::crc64nvme, "123456789", "ae8b14860a799888"},
      {DigestKind::crc32, "", "00000000"},
  };
  for (const auto& each : cases)
    EXPECT_EQ(to_hex(digest_of(each.kind, each.of)), each.hex) << digest_name(each.kind) << " of " << each.of;
}

TEST(Digest, PiecesGiveWhatTheWholeGives) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>(i * 7 + i / 13);
  for (const DigestKind kind : {DigestKind::sha256, DigestKind::crc32, DigestKind::crc32c, DigestKind::crc64nvme}) {
    for (const std::size_t step : {1u, 3u, 8u, 13u, 999u}) {
      const auto digest = make_digest(kind);
      for (std::size_t at = 0; at < text.size(); at += step) digest->update(std::string_view(text).substr(at, step));
      EXPECT_EQ(to_hex(digest->finish()), to_hex(digest_of(kind, text))) << digest_name(kind) << " by " << step;
    }
  }
}

TEST(Digest, HmacOfRfc4231) {
  EXPECT_EQ(to_hex(hmac_sha256("Jefe", "what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

TEST(Digest, Base64) {
  const auto decoded = [](const char* text) { return from_base64(text).ok() ? *from_base64(text) : "refused"; };
  EXPECT_EQ(decoded(""), "");
  EXPECT_EQ(decoded("Zg=="), "f");
  EXPECT_EQ(decoded("Zm8="), "fo");
  EXPECT_EQ(decoded("Zm9v"), "foo");
  for (const char* text : {"Z", "Zg", "Zg=", "Z=g=", "====", "Zm9v-", "Zm9v-3=="})
    EXPECT_EQ(decoded(text), "refused") << text;
}

TEST(Verifier, GitBlobs) {
  // printf 'hello\n' | git hash-object --stdin
  Expectation expected;
  expected.kind = DigestKind::sha1;
  expected.git_blob = true;
  expected.raw = "\xce\x01\x36\x25\x03\x0b\xa8\xdb\xa9\x06\xf7\x56\x96\x7f\x9e\x9c\xa3\x94\x46\x4a";
  Verifier right({expected}, 6);
  right.update("hello\n");
  EXPECT_TRUE(right.finish());
  Verifier wrong({expected}, 6);
  wrong.update("hullo\n");
  const Status refused = wrong.finish();
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("ce013625030ba8dba906f756967f9e9ca394464a"), std::string::npos);
}

TEST(Verifier, EtagsOfUploadsInParts) {
  const std::string text = "aaaabbbbcc";
  std::string parts;
  for (const char* part : {"aaaa", "bbbb", "cc"}) parts += digest_of(DigestKind::md5, part);
  Expectation expected;
  expected.kind = DigestKind::md5;
  expected.md5_part = 4;
  expected.raw = digest_of(DigestKind::md5, parts);
  for (const std::size_t step : {1u, 3u, 10u}) {
    Verifier verifier({expected}, text.size());
    for (std::size_t at = 0; at < text.size(); at += step) verifier.update(std::string_view(text).substr(at, step));
    EXPECT_TRUE(verifier.finish()) << step;
  }
  // A last part that is whole.
  expected.raw = digest_of(DigestKind::md5, digest_of(DigestKind::md5, "aaaa") + digest_of(DigestKind::md5, "bbbb"));
  Verifier whole({expected}, 8);
  whole.update("aaaabbbb");
  EXPECT_TRUE(whole.finish());
}

TEST(Verifier, EveryClaimMustHold) {
  Expectation sha256;
  sha256.raw = digest_of(DigestKind::sha256, "abc");
  sha256.where = "x-linked-etag";
  Expectation md5;
  md5.kind = DigestKind::md5;
  md5.raw = digest_of(DigestKind::md5, "abd");
  md5.where = "ETag";
  Verifier verifier({sha256, md5}, 3);
  verifier.update("abc");
  const Status outcome = verifier.finish();
  ASSERT_FALSE(outcome);
  EXPECT_NE(outcome.error().message.find("MD5 of its ETag"), std::string::npos) << outcome.error().message;
}

}  // namespace
}  // namespace xgen::sources
