// `xgen-model pull`: downloads models and says how far it is.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "config/config.h"
#include "sources/sources.h"

namespace xgen {

// What the environment and the configuration say together. Errors name the variable.
Result<sources::Settings> source_settings(const config::Sources& config);

// Downloads each of the sources; false if one of them failed. A line for each goes to stdout, the progress and what
// went wrong to stderr.
bool pull_all(sources::Sources& sources, const std::vector<std::string>& list);

}  // namespace xgen
