// How the models of the configuration come into memory: the registry's loaders for models of this process.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <vector>

#include "base/memory_budget.h"
#include "base/result.h"
#include "base/worker_pool.h"
#include "config/config.h"
#include "engine/local_service.h"
#include "kernels/kernel_table.h"
#include "registry/registry.h"
#include "remote_models.h"
#include "sources/sources.h"

namespace xgen {

// What all models of the process share.
struct Machine {
  std::shared_ptr<WorkerPool> pool;
  const kernels::KernelTable* kernels = nullptr;
  std::shared_ptr<sources::Sources> sources;
  std::shared_ptr<RemoteClient> remotes;
};

class LocalModelLoader final : public registry::ModelLoader {
 public:
  // `borrowable`: what the KV cache could borrow at the very most.
  LocalModelLoader(config::Model model, Machine machine, std::uint64_t borrowable)
      : model_(std::move(model)), machine_(std::move(machine)), borrowable_(borrowable) {}

  bool fetches() const override;
  Status fetch(const std::function<void(double, std::string)>& progress, const std::stop_token& stop) override;
  Result<Need> need() override;
  Result<std::shared_ptr<inference::ModelService>> load(std::shared_ptr<MemoryBudget::Account> account,
                                                        const std::function<void(double)>& progress) override;
  std::uint64_t kept_asleep() const override;
  void release() override;

  std::uint64_t limit() const override { return limit_; }
  void set_limit(std::uint64_t bytes) override { limit_ = bytes; }
  const config::Model& model() const { return model_; }
  // Where its files are. Errors: not_found if they have yet to be fetched.
  Result<std::string> path() const;
  // Of its files, where they come from the Hub or from S3; see Sources::version.
  std::string version() const;
  // Opens the model if need be.
  Result<engine::LocalModel*> opened();

 private:
  const config::Model model_;
  const Machine machine_;
  const std::uint64_t borrowable_;
  std::atomic<std::uint64_t> limit_{UINT64_MAX};
  std::unique_ptr<engine::LocalModel> opened_;
  mutable std::mutex mutex_;
  std::string fetched_;  // where the last fetch() found or put the files; guarded by mutex_
};

// What the registry has to know of the model.
registry::ModelDefinition define(std::shared_ptr<LocalModelLoader> loader);

struct PlannedModels {
  std::vector<registry::ModelDefinition> definitions;
  std::string text;  // the plan, for people
};
// Opens every model of the configuration and plans its memory: what is loaded at start shares the budget, what is
// loaded on demand must fit into it alone, beside what is pinned. A model that has yet to be downloaded is planned when
// it is here; until then an equal share is left for it. Errors name the file's line and the model, with the numbers.
Result<PlannedModels> plan_models(const config::Config& config, const Machine& machine, std::uint64_t budget);
// Reads every model's tokenizer and chat template, as loading does. Errors as above.
Status check_text(const std::vector<registry::ModelDefinition>& models);

}  // namespace xgen
