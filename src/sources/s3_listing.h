// S3's answers in XML.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace xgen::sources {

// One page of ListObjectsV2.
struct S3Page {
  struct Object {
    std::string key;
    std::uint64_t size = 0;
    std::string etag;  // without quotes
  };
  std::vector<Object> objects;
  std::string next;  // continuation token; empty: the last page
};
// Errors: invalid_argument, what is not as it should be.
Result<S3Page> parse_s3_page(std::string_view xml);

// The text inside the first <name> of an answer; empty if there is none.
std::string xml_field(std::string_view xml, std::string_view name);
std::string without_quotes(std::string etag);

}  // namespace xgen::sources
