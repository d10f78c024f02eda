// `xgen-model import`: what people run today (vLLM, Ray Serve, Docker Compose, Kubernetes, TGI, llama-server) as a
// models.yaml, and a report of what became of each of its options.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace xgen::importer {

struct Imported {
  std::string models_yaml;
  std::string report;  // Markdown
};

struct ImportOptions {
  // Where xgen-model will run: in a container with the same mounts and ports (of Kubernetes always), or on the machine
  // itself, with the paths and ports that this one has.
  bool in_container = false;
  // As seen from the new file's folder; empty: the same. What relative paths of the machine are relative to: in a file,
  // its folder; in a command, where it is given.
  std::string folder;
  std::string here;
  std::string home;                                // for "~"; empty: it is left as it is
  std::function<bool(const std::string&)> exists;  // whether a path is there; decides whether "a/b" is one
};

// `file` is used for messages. Errors: invalid_argument with the place, one line for each fault.
Result<Imported> import_text(std::string_view text, const std::string& file, const ImportOptions& options);
// The words of one command line.
Result<Imported> import_words(const std::vector<std::string>& words, const ImportOptions& options);

// Every key of models.yaml that may be written ("models[].max_model_len").
std::vector<std::string> written_keys();
// What the tables say, as Markdown.
std::string reference_markdown();

}  // namespace xgen::importer
