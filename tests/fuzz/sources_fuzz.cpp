// What users, the Hub and S3 write: sources, and listings in XML. What is accepted stays inside its folder.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/model_source.h"
#include "sources/s3_listing.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void check_inside(const std::string& path) {
  require(xgen::is_safe_relative_path(path));
  require(path.front() != '/' && ("/" + path + "/").find("/../") == std::string::npos);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const char* scheme : {"", "hf://", "s3://"}) {
    const auto source = xgen::parse_remote_source(std::string(scheme) + std::string(text));
    if (!source) {
      require(!source.error().message.empty());
      continue;
    }
    require(!xgen::default_model_name(*source).empty());
    if (const auto* hub = std::get_if<xgen::HubSource>(&*source)) {
      check_inside(hub->revision);
      if (!hub->path.empty()) check_inside(hub->path);
      require(hub->repo.find('/') != std::string::npos && hub->repo.find("--") == std::string::npos);
    } else {
      const auto& s3 = std::get<xgen::S3Source>(*source);
      if (!s3.prefix.empty()) check_inside(s3.prefix);
      require(s3.bucket.find('/') == std::string::npos && s3.bucket != "..");
    }
  }
  if (const auto page = xgen::sources::parse_s3_page(text))
    for (const auto& object : page->objects) require(!object.key.empty());
  return 0;
}
