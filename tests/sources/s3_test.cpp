// Where S3's requests go and how they are signed, and buckets that are in another region than is thought.
#include "sources/s3.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <mutex>

#include "support/raw_server.h"

namespace xgen::sources {
namespace {

using scripted::RawConnection;
using scripted::RawRequest;
using scripted::RawServer;
using ::testing::HasSubstr;

const AwsKeys kKeys{"AKIDEXAMPLE", "secret", "session=="};

std::string header(const http::ClientRequest& request, std::string_view name) {
  return std::string(http::find_header(request.headers, name));
}

// The request for one object: what S3::remote() makes is all that a transfer sends.
http::ClientRequest get(S3& s3, const std::string& bucket, const std::string& prefix, const std::string& file) {
  RemoteFile object;
  object.path = file;
  object.id = "etag";
  const auto made = s3.remote({bucket, prefix}, object).request();
  EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().message);
  return made.ok() ? *made : http::ClientRequest();
}

class S3Requests : public testing::Test {
 protected:
  http::Client client;
  Patience patience{0, std::chrono::milliseconds(1), std::chrono::milliseconds(5'000)};
};

TEST_F(S3Requests, OfAwsHaveTheBucketInTheirHost) {
  const struct {
    const char* region;
    const char* bucket;
    const char* url;
  } cases[] = {
      {"eu-west-3", "my-models", "https://my-models.s3.eu-west-3.amazonaws.com/a%20b/x%2By.gguf"},
      {"cn-north-1", "models", "https://models.s3.cn-north-1.amazonaws.com.cn/a%20b/x%2By.gguf"},
      // The certificate is for one label before the domain; upper case is no name of a host's.
      {"us-east-1", "my.models", "https://s3.us-east-1.amazonaws.com/my.models/a%20b/x%2By.gguf"},
      {"us-east-1", "Models", "https://s3.us-east-1.amazonaws.com/Models/a%20b/x%2By.gguf"},
  };
  for (const auto& each : cases) {
    S3Settings settings{"", each.region, kKeys, ""};
    S3 s3(client, settings, patience);
    const auto request = get(s3, each.bucket, "a b", "x+y.gguf");
    EXPECT_EQ(request.url.origin() + request.url.target, each.url);
    EXPECT_EQ(header(request, "If-Match"), "\"etag\"");
    EXPECT_EQ(header(request, "x-amz-security-token"), "session==");
    // Signed for this host, path and region, at its own time.
    std::tm time{};
    ASSERT_NE(::strptime(header(request, "x-amz-date").c_str(), "%Y%m%dT%H%M%SZ", &time), nullptr);
    const SignedRequest same{"GET", request.url.host, request.url.target, {}, {}};
    const auto expected = sign_v4(same, kKeys, each.region, "s3", ::timegm(&time));
    EXPECT_EQ(header(request, "Authorization"), expected.back().second);
    EXPECT_THAT(header(request, "Authorization"), HasSubstr("/" + std::string(each.region) + "/s3/aws4_request"));
  }
}

TEST_F(S3Requests, OfAnEndpointHaveTheBucketInTheirPath) {
  S3Settings settings{"http://minio:9000", "us-east-1", kKeys, ""};
  S3 s3(client, settings, patience);
  const auto request = get(s3, "models", "", "x.gguf");
  EXPECT_EQ(request.url.origin() + request.url.target, "http://minio:9000/models/x.gguf");
  const std::string date = header(request, "x-amz-date");
  std::tm time{};
  ASSERT_NE(::strptime(date.c_str(), "%Y%m%dT%H%M%SZ", &time), nullptr);
  const SignedRequest same{"GET", "minio:9000", "/models/x.gguf", {}, {}};
  EXPECT_EQ(header(request, "Authorization"), sign_v4(same, kKeys, "us-east-1", "s3", ::timegm(&time)).back().second);
}

TEST_F(S3Requests, WithoutKeysAreNotSigned) {
  S3Settings settings{"", "us-east-1", std::nullopt, ""};
  S3 s3(client, settings, patience);
  EXPECT_EQ(get(s3, "models", "", "x.gguf").headers, (http::Headers{{"If-Match", "\"etag\""}}));
}

// ---- Regions ----

constexpr std::string_view kEmptyList = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";

// How S3 says that a bucket is elsewhere.
struct MoveCase {
  const char* name;
  std::string status;
  std::string headers;
  std::string body;
};
void PrintTo(const MoveCase& each, std::ostream* out) { *out << each.name; }

class S3Moves : public S3Requests, public testing::WithParamInterface<MoveCase> {};

TEST_P(S3Moves, ToTheRegionThatTheBucketNames) {
  const MoveCase& move = GetParam();
  std::mutex mutex;
  std::vector<std::string> signatures;
  const RawServer server(scripted::each_request([&](RawConnection& connection, const RawRequest& request) {
    const std::string signature = request.headers.contains("authorization") ? request.headers.at("authorization") : "";
    {
      std::lock_guard lock(mutex);
      signatures.push_back(signature);
    }
    const bool away = request.line.starts_with("GET /away");
    if (away && signature.find("/eu-north-1/s3/") == std::string::npos)
      connection.answer(move.body, move.status, move.headers);
    else
      connection.answer(kEmptyList);
  }));
  S3Settings settings{server.url(""), "us-east-1", kKeys, ""};
  S3 s3(client, settings, patience);
  const auto listed = s3.list({"away", "x"}, {});
  ASSERT_TRUE(listed.ok()) << listed.error().message;
  ASSERT_EQ(signatures.size(), 2u);
  EXPECT_THAT(signatures[0], HasSubstr("/us-east-1/s3/"));
  EXPECT_THAT(signatures[1], HasSubstr("/eu-north-1/s3/"));
  // What follows goes there at once; other buckets stay where they were.
  ASSERT_TRUE(s3.list({"away", "y"}, {}).ok());
  ASSERT_TRUE(s3.list({"here", "x"}, {}).ok());
  ASSERT_TRUE(s3.list({"away", "z"}, {}).ok());
  ASSERT_EQ(signatures.size(), 5u);
  EXPECT_THAT(signatures[2], HasSubstr("/eu-north-1/s3/"));
  EXPECT_THAT(signatures[3], HasSubstr("/us-east-1/s3/"));
  EXPECT_THAT(signatures[4], HasSubstr("/eu-north-1/s3/"));
  // On AWS the region is in the host's name as well.
  settings.endpoint.clear();
  EXPECT_EQ(get(s3, "away", "", "x.gguf").url.host, "away.s3.eu-north-1.amazonaws.com");
  EXPECT_EQ(get(s3, "here", "", "x.gguf").url.host, "here.s3.us-east-1.amazonaws.com");
}

INSTANTIATE_TEST_SUITE_P(
    All, S3Moves,
    testing::Values(
        MoveCase{"permanent_redirect", "301 Moved Permanently", "x-amz-bucket-region: eu-north-1\r\n",
                 "<Error><Code>PermanentRedirect</Code><Endpoint>away.s3.eu-north-1.amazonaws.com</Endpoint></Error>"},
        // Followed without a new signature it would be refused there.
        MoveCase{"temporary_redirect", "307 Temporary Redirect",
                 "x-amz-bucket-region: eu-north-1\r\nLocation: http://127.0.0.1:1/away\r\n",
                 "<Error><Code>TemporaryRedirect</Code></Error>"},
        MoveCase{"wrong_signature", "400 Bad Request", "",
                 "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-north-1</Region></Error>"}),
    [](const auto& each) { return std::string(each.param.name); });

TEST_F(S3Requests, ABucketThatNamesRegionAfterRegionIsGivenUp) {
  std::atomic<int> asked{0};
  const RawServer server(scripted::each_request([&](RawConnection& connection, const RawRequest&) {
    const std::string region = "x-amz-bucket-region: eu-" + std::to_string(++asked) + "\r\n";
    connection.answer("<Error><Code>PermanentRedirect</Code></Error>", "301 Moved Permanently", region);
  }));
  S3Settings settings{server.url(""), "us-east-1", kKeys, ""};
  S3 s3(client, settings, patience);
  const auto listed = s3.list({"away", "x"}, {});
  ASSERT_FALSE(listed.ok());
  EXPECT_THAT(listed.error().message, HasSubstr("301 PermanentRedirect"));
  EXPECT_EQ(asked.load(), 2);
}

TEST_F(S3Requests, ARegionThatIsNoneIsNotAskedThere) {
  std::atomic<int> asked{0};
  const RawServer server(scripted::each_request([&](RawConnection& connection, const RawRequest&) {
    ++asked;
    connection.answer("", "301 Moved Permanently", "x-amz-bucket-region: evil.example/\r\n");
  }));
  S3Settings settings{server.url(""), "us-east-1", kKeys, ""};
  S3 s3(client, settings, patience);
  EXPECT_FALSE(s3.list({"away", "x"}, {}).ok());
  EXPECT_EQ(asked.load(), 1);
  settings.endpoint.clear();
  EXPECT_EQ(get(s3, "away", "", "x").url.host, "away.s3.us-east-1.amazonaws.com");
}

}  // namespace
}  // namespace xgen::sources
