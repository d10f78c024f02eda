// AWS Signature Version 4 for requests without a body, in the Authorization header, as S3 wants it
// (docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html).
#pragma once

#include <ctime>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace xgen::sources {

struct AwsKeys {
  std::string id;
  std::string secret;
  std::string session_token;  // may be empty
};

struct SignedRequest {
  std::string method;
  std::string host;                                          // as the Host header says it
  std::string path;                                          // percent-encoded
  std::vector<std::pair<std::string, std::string>> query;    // not encoded
  std::vector<std::pair<std::string, std::string>> headers;  // signed, too; beside Host
};

// The headers to add: x-amz-date, x-amz-content-sha256, x-amz-security-token if there is one, and Authorization.
std::vector<std::pair<std::string, std::string>> sign_v4(const SignedRequest& request, const AwsKeys& keys,
                                                         std::string_view region, std::string_view service,
                                                         std::time_t now);

// Everything but A-Z a-z 0-9 - _ . ~ (and '/', if it is kept) as %XX.
std::string percent_encoded(std::string_view text, bool keep_slashes);
// "a=b&c=d", sorted and encoded, as it is signed and sent.
std::string canonical_query(std::vector<std::pair<std::string, std::string>> query);

}  // namespace xgen::sources
