// `xgen-model import`: reads the input, and writes the models.yaml and the report.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace xgen {

struct ImportArguments {
  std::optional<std::string> input;   // a file, or "-" for stdin
  std::vector<std::string> words;     // of a command line, after "--"
  std::optional<std::string> output;  // instead of stdout
  std::optional<std::string> report;  // instead of stderr
  bool force = false;                 // over files that are there
  bool in_container = false;
};

// Errors: invalid_argument for what the user gave, internal for what could not be written.
Status run_import(const ImportArguments& arguments);

}  // namespace xgen
