// What the Hub and S3 say in headers and XML, and where redirects may lead.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sources/caller.h"
#include "sources/hub.h"
#include "sources/s3.h"

namespace xgen::sources {
namespace {

using ::testing::HasSubstr;

TEST(Caller, RetryAfter) {
  using std::chrono::seconds;
  constexpr std::time_t kNow = 784111777;  // Sun, 06 Nov 1994 08:49:37 GMT
  const auto of = [&](http::Headers headers) { return retry_after(headers, kNow); };
  EXPECT_EQ(of({{"Retry-After", "120"}}), seconds(120));
  EXPECT_EQ(of({{"retry-after", "Sun, 06 Nov 1994 08:50:37 GMT"}}), seconds(60));
  EXPECT_EQ(of({{"Retry-After", "Sun, 06 Nov 1994 08:00:00 GMT"}}), seconds(0));
  EXPECT_EQ(of({{"RateLimit", "\"resolvers\";r=0;t=55"}}), seconds(55));
  EXPECT_FALSE(of({{"RateLimit", "\"resolvers\";r=10;t=55"}}));
  EXPECT_FALSE(of({{"Retry-After", "soon"}}));
  EXPECT_FALSE(of({}));
}

TEST(Caller, PausesDoubleUpToALimit) {
  const Patience patience;
  EXPECT_EQ(pause_after(1, patience), patience.first_pause);
  EXPECT_EQ(pause_after(3, patience), patience.first_pause * 4);
  EXPECT_EQ(pause_after(1000, patience), kLongestPause);
}

TEST(Caller, TokensStayWithTheirOrigin) {
  http::ClientRequest request;
  request.url = *http::parse_url("https://hub.example/org/repo/resolve/main/x");
  request.headers = {{"Authorization", "Bearer secret"}, {"Accept", "*/*"}};
  const auto has_token = [&](const char* location) {
    const auto next = redirected(request, location);
    EXPECT_TRUE(next) << location;
    return next && !http::find_header(next->headers, "authorization").empty();
  };
  EXPECT_TRUE(has_token("/api/resolve-cache/x"));
  EXPECT_TRUE(has_token("https://hub.example:443/x"));
  EXPECT_FALSE(has_token("https://cdn.example/x?signature=1"));
  EXPECT_FALSE(has_token("https://hub.example.evil/x"));
  EXPECT_FALSE(has_token("//cdn.example/x"));
  EXPECT_FALSE(has_token("https://hub.example:444/x"));
  EXPECT_FALSE(redirected(request, "http://hub.example/x"));  // in the clear
  EXPECT_FALSE(redirected(request, ""));
  EXPECT_FALSE(redirected(request, "ftp://x/y"));

  // With a signature of S3 goes its session token.
  request.headers = {{"x-amz-date", "20130524T000000Z"}, {"X-Amz-Security-Token", "secret"}, {"Accept", "*/*"}};
  EXPECT_EQ(redirected(request, "/x")->headers.size(), 3u);
  EXPECT_EQ(redirected(request, "https://cdn.example/x")->headers, (http::Headers{{"Accept", "*/*"}}));
}

TEST(Hub, Names) {
  EXPECT_EQ(hub_folder_name("Qwen/Qwen3-0.6B"), "models--Qwen--Qwen3-0.6B");
  EXPECT_TRUE(is_commit("0123456789abcdef0123456789abcdef01234567"));
  for (const char* text : {"main", "0123456789ABCDEF0123456789abcdef01234567", "0123456", ""})
    EXPECT_FALSE(is_commit(text));
}

TEST(S3, Listings) {
  const auto page = parse_s3_page(
      "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>"
      "<IsTruncated>true</IsTruncated><NextContinuationToken>1/a+b==</NextContinuationToken>"
      "<Contents><Key>a &amp; b/&#252;&#x1F600;&lt;.gguf</Key><LastModified>x</LastModified>"
      "<ETag>&quot;900150983cd24fb0d6963f7d28e17f72&quot;</ETag><Size>3</Size><Owner><ID>Size</ID></Owner></Contents>"
      "<Contents><Key>c</Key><Size>0</Size><ETag>\"x-2\"</ETag></Contents></ListBucketResult>");
  ASSERT_TRUE(page) << page.error().message;
  ASSERT_EQ(page->objects.size(), 2u);
  EXPECT_EQ(page->objects[0].key, "a & b/ü😀<.gguf");
  EXPECT_EQ(page->objects[0].etag, "900150983cd24fb0d6963f7d28e17f72");
  EXPECT_EQ(page->objects[0].size, 3u);
  EXPECT_EQ(page->objects[1].etag, "x-2");
  EXPECT_EQ(page->next, "1/a+b==");
  for (const char* text :
       {"", "<html>", "<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>a</Key><Size>-1</Size></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>&bad;</Key><Size>1</Size></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>&#xD800;</Key><Size>1</Size></Contents></ListBucketResult>",
        "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"})
    EXPECT_FALSE(parse_s3_page(text)) << text;
}

TEST(S3, Places) {
  const auto place = [](const char* prefix) {
    const S3Place p = s3_place({"bucket", prefix});
    return p.list_prefix + "|" + p.base + "|" + p.path;
  };
  EXPECT_EQ(place(""), "||");
  EXPECT_EQ(place("models/x"), "models/x/|models/x/|");
  EXPECT_EQ(place("models/x.gguf"), "models/x.gguf|models/|x.gguf");
  EXPECT_EQ(place("x-00001-of-00012.gguf"), "x-000||x-00001-of-00012.gguf");
}

}  // namespace
}  // namespace xgen::sources
