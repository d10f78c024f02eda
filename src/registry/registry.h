// Registry: which model answers to which name, and what of them is in memory. It loads, unloads, evicts and replaces
// models within one memory budget.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/memory_budget.h"
#include "base/result.h"
#include "inference/model_service.h"

namespace xgen::registry {

// How one model comes into memory. Called from one thread at a time, fetch(), release() and its limit excepted; main
// makes one for each model.
class ModelLoader {
 public:
  virtual ~ModelLoader() = default;

  // Whether fetch() has to come before every need(), since the model's files may not be here.
  virtual bool fetches() const { return false; }
  // Brings the files here. On a thread that is this call's alone: it may take hours, while other models load. Returns
  // soon once it is asked to stop. `progress`: 0-1, and a few words on what it does; not called if all is here.
  virtual Status fetch(const std::function<void(double, std::string)>& progress, const std::stop_token& stop);

  // Bytes to reserve. With `least` it serves, with `wanted` as well as it may.
  struct Need {
    std::uint64_t least = 0;
    std::uint64_t wanted = 0;
  };
  // Reads the model's headers only. Errors name the file or the setting at fault.
  virtual Result<Need> need() = 0;

  // Loads it into what `account` has reserved, which the service may keep for borrowing more. `progress`: 0-1,
  // called from one thread at a time; it throws where the load is not wanted any more, which should end it.
  virtual Result<std::shared_ptr<inference::ModelService>> load(std::shared_ptr<MemoryBudget::Account> account,
                                                                const std::function<void(double)>& progress) = 0;
  // Bytes that it may have at most, by a plan for all models: a later load wants no more.
  virtual std::uint64_t limit() const { return UINT64_MAX; }
  virtual void set_limit(std::uint64_t /*bytes*/) {}
  // Bytes that stay reserved while the model sleeps (its weights); 0 if it cannot sleep.
  virtual std::uint64_t kept_asleep() const { return 0; }
  // The service is gone and the model does not sleep: lets go of what a later load can read again.
  virtual void release() {}
};

// What each of several models may take so that all fit into `budget`: its least, and what it wants of the rest, shared
// equally where there is too little. Precondition: together the least fit.
std::vector<std::uint64_t> share(std::uint64_t budget, const std::vector<ModelLoader::Need>& needs);

struct ModelDefinition {
  std::string name;
  std::vector<std::string> aliases;
  std::vector<std::string> fallbacks;        // models that stand in for it; the registry only tells who they are
  std::string engine = "native";             // what computes it, as the configuration names it; only told
  bool on_demand = false;                    // loaded by its first request, not at start
  std::chrono::milliseconds idle_unload{0};  // unloaded when unused for so long; 0 = never
  bool pin = false;                          // never evicted for another model
  std::size_t max_waiting = 1024;            // requests that wait for it to load
  std::string fingerprint;                   // of source and settings: a reload replaces a model whose own differs
  std::shared_ptr<ModelLoader> loader;
};

enum class ModelState : std::uint8_t {
  unloaded,  // not in memory; a request loads it, unless an operator unloaded it
  loading,
  ready,
  sleeping,   // weights are kept, nothing else; a request wakes it
  draining,   // running requests finish, new ones are refused or wait
  unloading,  // no request runs any more; its memory is given back
  failed,     // `detail` says why
};
std::string_view state_name(ModelState state);

struct Counts {
  std::uint64_t loads = 0;
  std::uint64_t failures = 0;
  std::uint64_t evictions = 0;
  std::uint64_t unloads = 0;  // services that have gone, whatever the reason
};

// Where the time of a load went, in seconds.
struct LoadTimes {
  double fetch = 0;  // downloading its files
  double wait = 0;   // for its turn, for what it needs to be known, and for room
  double load = 0;   // reading it and making the engine
};

struct ModelEntry {
  std::string name;
  std::vector<std::string> aliases;
  std::vector<std::string> fallbacks;
  std::string engine;
  ModelState state = ModelState::unloaded;
  double progress = 0;       // 0-1 while loading
  std::string detail;        // why it failed, or why its reload did; while it is fetched, how far that is
  std::int64_t created = 0;  // Unix seconds of its definition
  bool on_demand = false;
  bool pin = false;
  bool added = false;    // by Registry::add
  bool retires = false;  // not in the list any more: `aliases` are all names that still lead there
  bool in_use = false;
  bool waits = false;       // while it is absent, requests wait for it and have it loaded
  std::size_t waiting = 0;  // such requests
  Counts counts;
  LoadTimes last_load;                                  // of what was loaded last
  std::uint64_t reserved = 0;                           // bytes
  std::uint64_t borrowed = 0;                           // bytes
  std::shared_ptr<inference::ModelService> service;     // what is loaded; null if nothing is
  std::shared_ptr<const inference::ModelService> slot;  // its stats() are of all that was ever loaded
};

struct RegistryOptions {
  std::chrono::milliseconds drain_timeout{30'000};       // running requests of an unloaded model end after it
  std::chrono::milliseconds replace_timeout{0};          // those of one that a reload replaces or removes; 0 = never
  std::chrono::milliseconds reclaim_timeout{10'000};     // for borrowers to give memory back to a model that loads
  std::chrono::milliseconds retry_failed_after{30'000};  // before a request tries a failed model again
  std::size_t max_fetches = 4;                           // models whose files are fetched at the same time
};

// Thread-safe. One thread decides, one loads, one ends services, and each fetch has its own: a slow load never delays
// the rest, nor a slow download the loads.
class Registry {
 public:
  explicit Registry(std::shared_ptr<MemoryBudget> budget, RegistryOptions options = {});
  // Waiting requests fail; services end when their last request's handle goes, at once if there is none.
  ~Registry();
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  // Makes the definitions the whole list of models: new ones are added (and loaded, unless on demand), missing ones
  // drain and go, changed ones are replaced, beside the old one where the budget allows. No request fails because of
  // it, except those for removed models. Models of add() stay, unless the list has their name. Errors: invalid_argument
  // if a name or alias is used twice; nothing changes then.
  Status apply(std::vector<ModelDefinition> definitions);

  // May be empty. Called once: from the registry's thread, or with unavailable when the registry ends.
  using Done = std::function<void(Status)>;
  // One more model beside the list, whose load begins. A model of that name that is the same is loaded where it is not;
  // a different one is replaced if it was added as well. Errors: invalid_argument if the list has another model of that
  // name.
  void add(ModelDefinition definition, Done done);
  // As unload(), and a model of add() leaves the list.
  void remove(std::string_view name, Done done);
  // Errors: not_found; unavailable with the numbers if it does not fit; what the loader says.
  void load(std::string_view name, Done done);  // also wakes
  // The same, but `done` hears when the load has begun, unless the model is there. Errors: not_found.
  void begin_load(std::string_view name, Done done);
  // Running requests finish within drain_timeout; then it stays unloaded until it is loaded (or, on demand, wanted).
  void unload(std::string_view name, Done done);
  // Keeps the weights. Errors: not_found; unsupported if its engine cannot; unavailable while it loads or drains;
  // invalid_argument if it is not loaded.
  void sleep(std::string_view name, Done done);

  // For a process that ends: every request fails now as unavailable, those that run and those that wait.
  void end_requests();

  // By name or alias. What it returns outlives loading and unloading: requests wait in it for an absent model. Errors:
  // not_found naming the model and what there is; unavailable (with retry_after_s) while a model that should be there
  // from the start loads, after a failure, or when an operator unloaded it.
  Result<std::shared_ptr<inference::ModelService>> find(std::string_view name_or_alias) const;
  Result<ModelEntry> entry(std::string_view name_or_alias) const;
  // Those of its definition; none for a model that does not exist.
  std::vector<std::string> fallbacks(std::string_view name_or_alias) const;
  std::vector<ModelEntry> list() const;  // in the order of the definitions

  Counts counts() const;  // over all models, those that have gone included
  const MemoryBudget& budget() const;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace xgen::registry
