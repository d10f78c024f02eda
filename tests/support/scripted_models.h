// Models for a registry whose services are made beforehand.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "registry/registry.h"

namespace xgen::scripted {

// Loads at once; a model without a service stays in loading, at half its way, until it fails or is let go.
class ScriptedLoader final : public registry::ModelLoader {
 public:
  explicit ScriptedLoader(std::shared_ptr<inference::ModelService> service) : service_(std::move(service)) {}

  Result<Need> need() override { return Need{1, 1}; }
  Result<std::shared_ptr<inference::ModelService>> load(std::shared_ptr<MemoryBudget::Account>,
                                                        const std::function<void(double)>& progress) override {
    if (service_ != nullptr) return service_;
    progress(0.5);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !fault_.empty(); });
    return make_error(ErrorCode::invalid_argument, fault_);
  }
  void fail(std::string fault) {
    {
      std::lock_guard lock(mutex_);
      fault_ = std::move(fault);
    }
    changed_.notify_all();
  }

 private:
  const std::shared_ptr<inference::ModelService> service_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string fault_;
};

inline registry::ModelDefinition scripted_model(std::string name, std::vector<std::string> aliases,
                                                std::shared_ptr<ScriptedLoader> loader) {
  registry::ModelDefinition definition;
  definition.name = std::move(name);
  definition.aliases = std::move(aliases);
  definition.loader = std::move(loader);
  return definition;
}

}  // namespace xgen::scripted
