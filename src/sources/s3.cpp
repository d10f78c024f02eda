#include "sources/s3.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <ctime>

#include "base/log.h"
#include "base/split_name.h"
#include "sources/hub.h"

namespace xgen::sources {
namespace {

constexpr std::size_t kMaxPages = 1000;

std::optional<std::uint64_t> number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return {};
  return value;
}

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isxdigit(c) != 0; });
}

std::string raw_of(std::string_view hex) {
  std::string out;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    unsigned value = 0;
    std::from_chars(hex.data() + i, hex.data() + i + 2, value, 16);
    out += static_cast<char>(value);
  }
  return out;
}

std::string source_text(const S3Source& source) {
  return "s3://" + source.bucket + (source.prefix.empty() ? "" : "/" + source.prefix);
}

// A bucket's name that can be a part of a host's name.
bool is_host_label(const std::string& bucket) {
  return std::all_of(bucket.begin(), bucket.end(),
                     [](unsigned char c) { return std::islower(c) != 0 || std::isdigit(c) != 0 || c == '-'; });
}

}  // namespace

S3Place s3_place(const S3Source& source) {
  S3Place place;
  if (!source.prefix.ends_with(".gguf")) {
    place.base = source.prefix.empty() ? "" : source.prefix + "/";
    place.list_prefix = place.base;
    return place;
  }
  place.base = source.prefix.substr(0, source.prefix.rfind('/') + 1);
  place.path = source.prefix.substr(place.base.size());
  // With the other parts, whose names begin alike.
  const std::vector<std::string> parts = all_parts(place.path);
  const auto [a, b] =
      std::mismatch(parts.front().begin(), parts.front().end(), parts.back().begin(), parts.back().end());
  place.list_prefix = place.base + std::string(parts.front().begin(), a);
  return place;
}

std::string S3::region(const std::string& bucket) {
  std::lock_guard lock(mutex_);
  const auto found = regions_.find(bucket);
  return found == regions_.end() ? settings_.region : found->second;
}

Result<http::ClientRequest> S3::request(const std::string& method, const std::string& bucket, const std::string& key,
                                        const Query& query, const http::Headers& headers) {
  const std::string region = this->region(bucket);
  std::string base = settings_.endpoint;
  std::string path = "/" + percent_encoded(key, true);
  if (base.empty()) {
    const std::string domain = "s3." + region + ".amazonaws.com" + (region.starts_with("cn-") ? ".cn" : "");
    const bool in_host = is_host_label(bucket);
    base = "https://" + (in_host ? bucket + "." : "") + domain;
    if (!in_host) path = "/" + bucket + path;
  } else {
    path = "/" + bucket + (key.empty() ? "" : path);
  }
  const std::string encoded = canonical_query(query);
  auto url = http::parse_url(base + path + (encoded.empty() ? "" : "?" + encoded));
  if (!url) return std::move(url).error();
  http::ClientRequest request;
  request.method = method;
  request.url = *std::move(url);
  request.headers = headers;
  if (settings_.keys) {
    SignedRequest to_sign{method, request.url.authority(), request.url.target.substr(0, request.url.target.find('?')),
                          query, headers};
    for (auto& header : sign_v4(to_sign, *settings_.keys, region, "s3", std::time(nullptr)))
      request.headers.push_back(std::move(header));
  }
  return request;
}

Result<Answer> S3::call_in_region(const std::string& method, const std::string& bucket, const std::string& key,
                                  const Query& query, const http::Headers& headers, const std::stop_token& stop) {
  for (bool moved = false;; moved = true) {
    const std::string asked = region(bucket);
    auto answer = call(
        client_, [&] { return request(method, bucket, key, query, headers); }, kMaxApiBody, patience_, stop, asked);
    if (!answer || answer->status == 200 || answer->status == 206 || moved) return answer;
    // A bucket says where it is when it is asked elsewhere.
    std::string there(answer->header(kBucketRegion));
    if (there.empty()) there = xml_field(answer->body, "Region");
    const bool plain =
        !there.empty() && there.size() < 64 &&
        std::all_of(there.begin(), there.end(), [](unsigned char c) { return std::isalnum(c) != 0 || c == '-'; });
    if (!plain || there == asked) return answer;
    std::lock_guard lock(mutex_);
    regions_[bucket] = there;
  }
}

Error S3::explain(const S3Source& source, const std::string& file, const Answer& answer) {
  const std::string code = xml_field(answer.body, "Code");
  const std::string said = xml_field(answer.body, "Message");
  const std::string where = source_text(source) + (file.empty() ? "" : " (" + file + ")") + ": ";
  const std::string what = (settings_.endpoint.empty() ? "S3" : settings_.endpoint) + " answered " +
                           std::to_string(answer.status) + (code.empty() ? "" : " " + code.substr(0, 100)) +
                           (said.empty() ? "" : ": " + said.substr(0, 200));
  if (answer.status == 404) {
    return make_error(ErrorCode::not_found, where + (code == "NoSuchBucket" || (code.empty() && file.empty())
                                                         ? "there is no bucket '" + source.bucket + "' (" + what + ")"
                                                         : "there is no such object (" + what + ")"));
  }
  if (answer.status == 401 || answer.status == 403) {
    return make_error(settings_.keys ? ErrorCode::permission_denied : ErrorCode::unauthenticated,
                      where + what +
                          (settings_.keys ? "; the key of AWS_ACCESS_KEY_ID is not accepted or has no access"
                                          : "; without AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only public objects "
                                            "can be read"));
  }
  if (answer.status == 412) {
    return make_error(ErrorCode::unavailable, where + "the object was replaced while it was downloaded; pull again");
  }
  if (answer.status == 429 || answer.status == 503) return make_error(ErrorCode::overloaded, where + what);
  return make_error(ErrorCode::unavailable, where + what);
}

Result<std::vector<RemoteFile>> S3::list(const S3Source& source, const std::stop_token& stop) {
  const S3Place place = s3_place(source);
  std::vector<RemoteFile> files;
  std::string token;
  for (std::size_t page_number = 0;; ++page_number) {
    Query query = {{"list-type", "2"}, {"max-keys", "1000"}, {"prefix", place.list_prefix}};
    if (!token.empty()) query.emplace_back("continuation-token", token);
    const auto answer = call_in_region("GET", source.bucket, "", query, {}, stop);
    if (!answer) return make_error(answer.error().code, source_text(source) + ": " + answer.error().message);
    if (answer->status != 200) return explain(source, "", *answer);
    auto page = parse_s3_page(answer->body);
    if (!page) {
      return make_error(ErrorCode::unavailable,
                        source_text(source) + ": the listing cannot be read: " + page.error().message);
    }
    for (S3Page::Object& object : page->objects) {
      if (!object.key.starts_with(place.base) || object.key.ends_with('/')) continue;
      RemoteFile file;
      file.path = object.key.substr(place.base.size());
      file.size = object.size;
      file.id = object.etag;
      if (!is_safe_relative_path(file.path)) {
        log::warn("sources", "an object's key is not accepted", {{"source", source_text(source)}, {"key", file.path}});
        continue;
      }
      files.push_back(std::move(file));
    }
    if (files.size() > kMaxListedFiles || page_number >= kMaxPages) {
      return make_error(ErrorCode::too_large, source_text(source) + ": there are more than " +
                                                  std::to_string(kMaxListedFiles) + " objects below it");
    }
    if (page->next.empty()) return files;
    token = std::move(page->next);
  }
}

Status S3::describe(const S3Source& source, RemoteFile& file, const std::stop_token& stop) {
  const std::string key = s3_place(source).base + file.path;
  const auto answer = call_in_region("HEAD", source.bucket, key, {}, {{"x-amz-checksum-mode", "ENABLED"}}, stop);
  if (!answer) return make_error(answer.error().code, source_text(source) + ": " + answer.error().message);
  if (answer->status != 200) return explain(source, file.path, *answer);
  if (without_quotes(std::string(answer->header("etag"))) != file.id) {
    return make_error(ErrorCode::unavailable, source_text(source) + " (" + file.path +
                                                  "): the object was replaced while it was looked at; pull again");
  }
  const std::size_t dash = std::min(file.id.find('-'), file.id.size());
  // Of the whole object; that of an upload in parts may be one over the parts' own.
  const bool of_parts = dash == 32 && dash < file.id.size() && answer->header("x-amz-checksum-type") != "FULL_OBJECT";
  constexpr std::array<std::pair<std::string_view, DigestKind>, 5> kChecksums = {
      {{"x-amz-checksum-sha256", DigestKind::sha256},
       {"x-amz-checksum-crc64nvme", DigestKind::crc64nvme},
       {"x-amz-checksum-crc32c", DigestKind::crc32c},
       {"x-amz-checksum-crc32", DigestKind::crc32},
       {"x-amz-checksum-sha1", DigestKind::sha1}}};
  for (const auto& [name, kind] : kChecksums) {
    auto raw = from_base64(answer->header(name));
    if (!raw || raw->size() != digest_of(kind, "").size() || (of_parts && kind != DigestKind::crc64nvme)) continue;
    Expectation expected;
    expected.kind = kind;
    expected.raw = *std::move(raw);
    expected.where = std::string(name);
    file.expectations.push_back(std::move(expected));
    break;
  }
  // The ETag is an MD5 unless the object is encrypted with a key of somebody's own.
  const std::string encryption(answer->header("x-amz-server-side-encryption"));
  if (encryption.starts_with("aws:") || !answer->header("x-amz-server-side-encryption-customer-algorithm").empty())
    return {};
  if (dash != 32 || !is_hex(std::string_view(file.id).substr(0, 32))) return {};
  Expectation expected;
  expected.kind = DigestKind::md5;
  expected.raw = raw_of(std::string_view(file.id).substr(0, 32));
  expected.where = "ETag";
  if (dash < file.id.size()) {
    const auto parts = number(std::string_view(file.id).substr(dash + 1));
    const auto first = call_in_region("HEAD", source.bucket, key, {{"partNumber", "1"}}, {}, stop);
    if (!first) return first.error().code == ErrorCode::cancelled ? Status(first.error()) : Status();
    const auto size = number(first->header("content-length"));
    const bool fits = (first->status == 200 || first->status == 206) && parts && *parts > 0 && size && *size > 0 &&
                      (file.size + *size - 1) / *size == *parts;
    if (!fits) return {};
    expected.md5_part = *size;
  }
  file.expectations.push_back(std::move(expected));
  return {};
}

Remote S3::remote(const S3Source& source, const RemoteFile& file) {
  Remote remote;
  const std::string key = s3_place(source).base + file.path;
  remote.name = "s3://" + source.bucket + "/" + key;
  remote.request = [this, bucket = source.bucket, key, etag = file.id]() -> Result<http::ClientRequest> {
    auto made = request("GET", bucket, key, {}, {});
    if (made && !etag.empty()) made->headers.emplace_back("If-Match", "\"" + etag + "\"");
    return made;
  };
  remote.explain = [this, source, path = file.path](const Answer& answer) { return explain(source, path, answer); };
  return remote;
}

}  // namespace xgen::sources
