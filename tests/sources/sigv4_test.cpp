// Signatures against AWS's own examples
// (docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html) and against botocore's.
#include "sources/sigv4.h"

#include <gtest/gtest.h>

namespace xgen::sources {
namespace {

constexpr std::time_t kMidnight = 1369353600;  // 2013-05-24T00:00:00Z

std::string signature(const SignedRequest& request, std::string_view region = "us-east-1", std::string token = {}) {
  const AwsKeys keys{"AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", std::move(token)};
  for (const auto& [name, value] : sign_v4(request, keys, region, "s3", kMidnight))
    if (name == "Authorization") return value;
  return {};
}

TEST(SigV4, ExamplesOfAws) {
  EXPECT_EQ(signature({"GET", "examplebucket.s3.amazonaws.com", "/test.txt", {}, {{"Range", "bytes=0-9"}}}),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
            "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
            "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
  EXPECT_EQ(signature({"GET", "examplebucket.s3.amazonaws.com", "/", {{"lifecycle", ""}}, {}}),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
            "SignedHeaders=host;x-amz-content-sha256;x-amz-date, "
            "Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
  EXPECT_EQ(signature({"GET", "examplebucket.s3.amazonaws.com", "/", {{"prefix", "J"}, {"max-keys", "2"}}, {}}),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
            "SignedHeaders=host;x-amz-content-sha256;x-amz-date, "
            "Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

TEST(SigV4, SessionTokensStrangeKeysAndOtherRegionsAsBotocoreSignsThem) {
  EXPECT_EQ(signature({"HEAD",
                       "127.0.0.1:9000",
                       "/bucket/" + percent_encoded("models/a b+ü~(x).gguf", true),
                       {},
                       {{"x-amz-checksum-mode", "ENABLED"}}},
                      "eu-central-1", "a/session+token=="),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/eu-central-1/s3/aws4_request, "
            "SignedHeaders=host;x-amz-checksum-mode;x-amz-content-sha256;x-amz-date;x-amz-security-token, "
            "Signature=513b59c65544abd944a9e4eb31e08bb57216db8ef043312eff4427e14114ab8f");
  EXPECT_EQ(
      signature(
          {"GET",
           "my-bucket.s3.eu-west-3.amazonaws.com",
           "/",
           {{"list-type", "2"}, {"max-keys", "1000"}, {"prefix", "models/a b/"}, {"continuation-token", "1/ab+c=="}},
           {}},
          "eu-west-3"),
      "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/eu-west-3/s3/aws4_request, "
      "SignedHeaders=host;x-amz-content-sha256;x-amz-date, "
      "Signature=72bd1630947b08d0c5defda424dfd547ffec025f6970b1e8c65cbe8368119575");
}

TEST(SigV4, Encoding) {
  EXPECT_EQ(percent_encoded("a/b c+ü~", true), "a/b%20c%2B%C3%BC~");
  EXPECT_EQ(percent_encoded("feature/x", false), "feature%2Fx");
  EXPECT_EQ(canonical_query({{"b", "2 3"}, {"a", ""}, {"B", "1"}}), "B=1&a=&b=2%203");
}

}  // namespace
}  // namespace xgen::sources
