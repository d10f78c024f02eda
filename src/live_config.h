// LiveConfig: what of the configuration is in force while the server runs, and what a reload changes of it.
#pragma once

#include <map>
#include <mutex>
#include <string>

#include "base/result.h"
#include "config/config.h"
#include "registry/registry.h"
#include "server/app.h"
#include "setup.h"

namespace xgen {

void apply_log(const config::Log& settings);

// Thread-safe; one reload at a time.
class LiveConfig {
 public:
  // What the process has started with; both must outlive this.
  LiveConfig(const Flags& flags, const Setup& start);

  // The model of a load request: as if it stood in the file, with the file's defaults. Errors name the field.
  Result<registry::ModelDefinition> model_of(const server::LoadRequest& request);
  // Reads the file again and applies what a running process can take up: the models and the log's level and form. What
  // has changed, in words. After an error everything is as before.
  Result<std::string> reload(registry::Registry& registry);

  // Each model by name, with all that a reload may change of it.
  using Digests = std::map<std::string, std::string>;

 private:
  const Flags& flags_;
  const Setup& start_;
  std::mutex mutex_;
  config::ModelSettings defaults_;  // of models that are loaded by path
  Digests models_;
};

}  // namespace xgen
