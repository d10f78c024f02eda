#include "base/model_source.h"

#include <algorithm>
#include <cctype>
#include <optional>

#include "base/utf8.h"

namespace xgen {
namespace {

constexpr std::size_t kMaxPath = 1024;
constexpr std::size_t kMaxPathPart = 255;
constexpr std::size_t kMaxRevision = 255;
constexpr std::string_view kHub = "hf://";
constexpr std::string_view kS3 = "s3://";

Error bad(std::string_view source, const std::string& what) {
  return make_error(ErrorCode::invalid_argument, "'" + std::string(source.substr(0, 300)) + "': " + what);
}

int hex(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<std::string> percent_decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (i + 2 >= text.size() || hex(text[i + 1]) < 0 || hex(text[i + 2]) < 0) return {};
    out += static_cast<char>(hex(text[i + 1]) * 16 + hex(text[i + 2]));
    i += 2;
  }
  return out;
}

// One half of "org/repo", as the Hub names them; "--" would be ambiguous in the cache's folder names.
bool is_repo_name(std::string_view name) {
  if (name.empty() || name.size() > 96 || name.ends_with(".git")) return false;
  const auto edge = [](char c) { return c == '-' || c == '.'; };
  if (edge(name.front()) || edge(name.back())) return false;
  if (name.find("--") != std::string_view::npos || name.find("..") != std::string_view::npos) return false;
  return std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.'; });
}

// Length of a revision that has slashes of its own ("refs/pr/3", "refs/convert/gguf"), or 0.
std::size_t special_revision(std::string_view text) {
  constexpr std::string_view kPr = "refs/pr/";
  constexpr std::string_view kConvert = "refs/convert/";
  const auto extent = [&](std::size_t from, auto member) {
    std::size_t end = from;
    while (end < text.size() && member(static_cast<unsigned char>(text[end]))) ++end;
    return end == from ? 0 : end;
  };
  if (text.starts_with(kPr)) return extent(kPr.size(), [](unsigned char c) { return std::isdigit(c) != 0; });
  if (text.starts_with(kConvert)) {
    return extent(kConvert.size(),
                  [](unsigned char c) { return std::isalnum(c) != 0 || c == '_' || c == '.' || c == '-'; });
  }
  return 0;
}

std::string_view without_last_slash(std::string_view text) {
  while (text.ends_with('/')) text.remove_suffix(1);
  return text;
}

Result<RemoteSource> parse_hub(std::string_view source) {
  constexpr std::string_view kShape = "expected hf://ORG/REPO[@REVISION][/FILE]";
  std::string_view rest = source.substr(kHub.size());
  if (rest.starts_with("models/")) rest.remove_prefix(7);
  for (const std::string_view other : {"datasets/", "spaces/", "kernels/", "buckets/"})
    if (rest.starts_with(other)) return bad(source, "only model repositories can be served");
  const std::size_t slash = rest.find('/');
  if (slash == std::string_view::npos) return bad(source, std::string(kShape));
  const std::size_t end = rest.find_first_of("/@", slash + 1);
  HubSource out;
  const std::string_view org = rest.substr(0, slash);
  const std::string_view name = rest.substr(slash + 1, end == std::string_view::npos ? end : end - slash - 1);
  if (!is_repo_name(org) || !is_repo_name(name)) return bad(source, std::string(kShape));
  out.repo = std::string(org) + "/" + std::string(name);
  if (end != std::string_view::npos && rest[end] == '@') {
    rest.remove_prefix(end + 1);
    std::size_t length = special_revision(rest);
    if (length == 0) length = std::min(rest.find('/'), rest.size());
    const auto revision = percent_decoded(rest.substr(0, length));
    if (!revision || revision->size() > kMaxRevision || !is_safe_relative_path(*revision))
      return bad(source, "not the name of a revision: '" + std::string(rest.substr(0, length)) + "'");
    out.revision = *revision;
    rest.remove_prefix(length);
  } else {
    rest.remove_prefix(std::min(end, rest.size()));
  }
  if (rest.starts_with('/')) rest.remove_prefix(1);
  out.path = without_last_slash(rest);
  if (!out.path.empty() && !is_safe_relative_path(out.path))
    return bad(source, "'" + out.path + "' cannot be a file of a repository");
  return RemoteSource(std::move(out));
}

Result<RemoteSource> parse_s3(std::string_view source) {
  const std::string_view rest = source.substr(kS3.size());
  const std::size_t slash = std::min(rest.find('/'), rest.size());
  S3Source out;
  out.bucket = rest.substr(0, slash);
  const bool plain = std::all_of(out.bucket.begin(), out.bucket.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '.' || c == '_';
  });
  if (out.bucket.size() < 3 || out.bucket.size() > 63 || !plain || out.bucket.front() == '.' ||
      out.bucket.find("..") != std::string::npos)
    return bad(source, "expected s3://BUCKET/PREFIX, with a bucket's name of 3 to 63 letters, digits, '-' and '.'");
  if (slash < rest.size()) out.prefix = without_last_slash(rest.substr(slash + 1));
  if (!out.prefix.empty() && !is_safe_relative_path(out.prefix))
    return bad(source, "'" + out.prefix + "': a prefix with empty parts, '.' or '..' is not supported");
  return RemoteSource(std::move(out));
}

}  // namespace

bool is_remote_source(std::string_view source) {
  const std::size_t at = source.find("://");
  return at != std::string_view::npos && at > 0 &&
         std::all_of(source.begin(), source.begin() + static_cast<std::ptrdiff_t>(at),
                     [](unsigned char c) { return std::isalnum(c) != 0 || c == '+' || c == '-' || c == '.'; });
}

Result<RemoteSource> parse_remote_source(std::string_view source) {
  if (!is_valid_utf8(source)) return bad("…", "not valid UTF-8");
  if (source.starts_with(kHub)) return parse_hub(source);
  if (source.starts_with(kS3)) return parse_s3(source);
  return make_error(ErrorCode::unsupported, "'" + std::string(source.substr(0, 300)) +
                                                "': expected a path, hf://ORG/REPO[@REVISION][/FILE] or "
                                                "s3://BUCKET/PREFIX" +
                                                hub_hint(source));
}

std::string hub_hint(std::string_view source) {
  const bool has_scheme = source.find("://") != std::string_view::npos;
  bool page = false;
  for (const std::string_view each : {"https://", "http://", "www.", "huggingface.co/", "hf.co/", "hf:", "hub:"}) {
    if (!source.starts_with(each)) continue;
    source.remove_prefix(each.size());
    page = each.ends_with(".co/") || each.ends_with(':');
  }
  if (has_scheme && !page) return "";
  const std::size_t slash = std::min(source.find('/'), source.size());
  const std::string_view org = source.substr(0, slash);
  std::string_view name = slash < source.size() ? source.substr(slash + 1) : "";
  if (page) name = name.substr(0, name.find_first_of("/?#"));
  if (!is_repo_name(org) || !is_repo_name(name)) return "";
  return "; of the Hugging Face Hub: hf://" + std::string(org) + "/" + std::string(name);
}

std::string default_model_name(const RemoteSource& source) {
  std::string path;
  if (const auto* hub = std::get_if<HubSource>(&source)) {
    path = hub->repo + (hub->path.empty() ? "" : "/" + hub->path);
  } else {
    const auto& s3 = std::get<S3Source>(source);
    path = s3.bucket + (s3.prefix.empty() ? "" : "/" + s3.prefix);
  }
  path.erase(0, path.rfind('/') + 1);
  if (path.size() > 5 && path.ends_with(".gguf")) path.resize(path.size() - 5);
  return path;
}

bool is_safe_relative_path(std::string_view path) {
  if (path.empty() || path.size() > kMaxPath || !is_valid_utf8(path)) return false;
  std::size_t begin = 0;
  while (begin <= path.size()) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part = path.substr(begin, end - begin);
    if (part.empty() || part == "." || part == ".." || part.size() > kMaxPathPart) return false;
    if (std::any_of(part.begin(), part.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f || c == '\\'; }))
      return false;
    begin = end + 1;
  }
  return true;
}

}  // namespace xgen
