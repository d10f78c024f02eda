// S3's HTTP API (AWS, MinIO and others), as far as downloading models needs it: ListObjectsV2, HeadObject, GetObject.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/model_source.h"
#include "base/result.h"
#include "sources/s3_listing.h"
#include "sources/settings.h"

namespace xgen::sources {

// Where a source's listing begins and what is chosen of it.
struct S3Place {
  std::string list_prefix;  // of ListObjectsV2
  std::string base;         // left out of the files' paths
  std::string path;         // for choose_files
};
S3Place s3_place(const S3Source& source);

class S3 {
 public:
  // Both outlive this.
  S3(http::Client& client, const S3Settings& settings, const Patience& patience)
      : client_(client), settings_(settings), patience_(patience) {}

  // Every object below the source's place, by its path there. Errors name what is missing or refused.
  Result<std::vector<RemoteFile>> list(const S3Source& source, const std::stop_token& stop);
  // Adds what its bytes can be checked against, from HeadObject.
  Status describe(const S3Source& source, RemoteFile& file, const std::stop_token& stop);
  Remote remote(const S3Source& source, const RemoteFile& file);

 private:
  using Query = std::vector<std::pair<std::string, std::string>>;
  Result<http::ClientRequest> request(const std::string& method, const std::string& bucket, const std::string& key,
                                      const Query& query, const http::Headers& headers);
  Result<Answer> call_in_region(const std::string& method, const std::string& bucket, const std::string& key,
                                const Query& query, const http::Headers& headers, const std::stop_token& stop);
  std::string region(const std::string& bucket);
  Error explain(const S3Source& source, const std::string& file, const Answer& answer);

  http::Client& client_;
  const S3Settings& settings_;
  const Patience& patience_;
  std::mutex mutex_;
  std::map<std::string, std::string> regions_;  // of buckets that have said so
};

}  // namespace xgen::sources
