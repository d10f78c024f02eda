// Which files of a repository or bucket a model needs, of all that are listed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "sources/digest.h"

namespace xgen::sources {

struct RemoteFile {
  std::string path;  // relative, '/' between folders
  std::uint64_t size = 0;
  std::string id;  // names the content: sha256 or git-sha1 of the Hub, ETag of S3
  std::vector<Expectation> expectations;
};

struct Choice {
  std::vector<RemoteFile> files;  // small ones first
  std::string open;               // what the model is opened by: a folder ("" = the root) or its first .gguf file
};

// `path` as the source says it: a folder, a .gguf file, or "" for the root. Of a folder: config.json with safetensors
// and the tokenizer's files, or its only GGUF model with all parts. Errors, starting with `where` and listing what
// there is: invalid_argument if `path` is no model or several are there, unsupported if none is, not_found if a file is
// not.
Result<Choice> choose_files(const std::vector<RemoteFile>& listed, const std::string& path, const std::string& where);

}  // namespace xgen::sources
