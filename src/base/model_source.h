// Where a model's files come from, as models.yaml and the command line write it: a path, hf://… or s3://….
#pragma once

#include <string>
#include <string_view>
#include <variant>

#include "base/result.h"

namespace xgen {

// hf://ORG/REPO[@REVISION][/PATH], as huggingface_hub reads it: a revision ends at the next '/', except refs/pr/N and
// refs/convert/NAME; another one with slashes is written with %2F.
struct HubSource {
  std::string repo;  // "org/repo"
  std::string revision = "main";
  std::string path;  // a file or folder of the repository; empty: its root
  bool operator==(const HubSource&) const = default;
};

// s3://BUCKET/PREFIX
struct S3Source {
  std::string bucket;
  std::string prefix;  // a "folder" without the last '/', or the key of one object; may be empty
  bool operator==(const S3Source&) const = default;
};

using RemoteSource = std::variant<HubSource, S3Source>;

// It has a scheme ("hf://…"), so it is no path.
bool is_remote_source(std::string_view source);
// Errors: invalid_argument, saying what is expected; unsupported naming the scheme.
Result<RemoteSource> parse_remote_source(std::string_view source);
// What to add to an error about a source that is neither: "; of the Hugging Face Hub: hf://ORG/REPO", where it looks
// like the name or the page of a repository there; else empty.
std::string hub_hint(std::string_view source);
// What a model from there is called if nothing else is said: the last part, without ".gguf".
std::string default_model_name(const RemoteSource& source);

// A relative path without empty parts, "." and "..", control characters and backslashes: it stays inside the folder
// that it is joined to (where no link leads out).
bool is_safe_relative_path(std::string_view path);

}  // namespace xgen
