// Registry: which model service answers to which name.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "inference/model_service.h"

namespace xgen::registry {

enum class ModelState : std::uint8_t { loading, ready, failed };

struct ModelEntry {
  std::string name;
  std::vector<std::string> aliases;
  ModelState state = ModelState::loading;
  double progress = 0;                               // 0–1 while loading
  std::string detail;                                // why it failed
  std::int64_t created = 0;                          // Unix seconds of becoming ready
  std::shared_ptr<inference::ModelService> service;  // null unless ready
};

// Thread-safe.
class Registry {
 public:
  // invalid_argument if the name or an alias is taken.
  Status add(std::string name, std::vector<std::string> aliases);
  void set_progress(std::string_view name, double progress);
  void set_ready(std::string_view name, std::shared_ptr<inference::ModelService> service);
  void set_failed(std::string_view name, std::string reason);

  // By name or alias. Errors: not_found naming the model and what there is; unavailable (with retry_after_s) while it
  // loads or if it failed to.
  Result<std::shared_ptr<inference::ModelService>> find(std::string_view name_or_alias) const;
  // The canonical entry behind a name or alias; not_found as above.
  Result<ModelEntry> entry(std::string_view name_or_alias) const;
  // In the order of adding.
  std::vector<ModelEntry> list() const;

 private:
  const ModelEntry* find_entry(std::string_view name) const;
  Error unknown(std::string_view name) const;

  mutable std::shared_mutex mutex_;
  std::vector<std::unique_ptr<ModelEntry>> models_;
  std::map<std::string, ModelEntry*, std::less<>> by_name_;
};

}  // namespace xgen::registry
