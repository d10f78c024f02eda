#include "local_models.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>

#include "base/log.h"
#include "base/model_source.h"
#include "base/prefetch.h"
#include "base/units.h"
#include "demo_model.h"

namespace xgen {
namespace {

constexpr std::chrono::seconds kLogPeriod{10};  // between two lines on one download

Result<engine::LocalServiceOptions> service_options(const config::Model& model, const Result<std::string>& path,
                                                    const Machine& machine) {
  engine::LocalServiceOptions options;
  options.name = model.name;
  if (model.source == config::kDemoSource) {
    options.files = demo_model_files();
  } else {
    if (!path) return path.error();
    auto files = open_files(*path);
    if (!files) return std::move(files).error();
    options.files = *std::move(files);
  }
  options.pool = machine.pool;
  options.kernels = machine.kernels;
  const config::ModelSettings& settings = model.settings;
  options.weight = settings.weight;
  options.max_model_len = settings.max_model_len;
  options.max_num_seqs = settings.max_num_seqs;
  options.max_num_batched_tokens = settings.max_num_batched_tokens;
  options.max_waiting = static_cast<int>(settings.max_waiting);
  options.kv_cache_bytes = settings.kv_cache;
  options.kv_dtype = settings.kv_cache_dtype;
  options.enable_prefix_caching = settings.prefix_caching;
  return options;
}

// `key`: whose value is at fault unless the error says; empty where no single one is.
Error at(const config::Model& model, Error error, std::string key = {}) {
  if (!error.param.empty()) key = error.param;
  const std::string name = key.empty() || error.message.starts_with(key) ? std::string() : key + ": ";
  error.message = model.where + ": model '" + model.name + "': " + name + error.message;
  return error;
}

std::string plan_text(const config::Model& model, const model::ModelInfo& info, const engine::MemoryPlan& memory) {
  std::string more;
  if (memory.kv_most_blocks > memory.kv_blocks)
    more = ", up to " + std::to_string(static_cast<std::int64_t>(memory.kv_most_blocks) * memory.block_size) +
           " while memory is free";
  std::string text = model.name + " (" + info.architecture + ", " + info.weight_format + ", " +
                     std::to_string(info.num_layers) + " layers, vocabulary " + std::to_string(info.vocab_size) + ")\n";
  const auto line = [&text](const char* what, std::uint64_t bytes, const std::string& rest) {
    char start[64];
    std::snprintf(start, sizeof(start), "  %-10s %12s", what, format_bytes(bytes).c_str());
    text += start + (rest.empty() ? "" : "   " + rest) + "\n";
  };
  line("weights", memory.weights, "");
  line("KV cache", memory.kv_bytes,
       std::to_string(memory.kv_tokens) + " tokens guaranteed" + more + "; blocks of " +
           std::to_string(memory.block_size) + ", " + std::string(dtype_info(memory.kv_dtype).name));
  line("workspace", memory.workspace, "");
  line("total", memory.total,
       "max_model_len " + std::to_string(memory.max_model_len) + ", max_num_seqs " +
           std::to_string(memory.max_num_seqs) + ", max_num_batched_tokens " +
           std::to_string(memory.max_num_batched_tokens));
  return text;
}

std::string missing_text(const config::Model& model, const sources::Sources& sources) {
  const auto folder = sources.folder(model.source);
  return model.name + " (not here yet" + (model.settings.on_demand ? ", on demand" : "") +
         (model.settings.pin ? ", pinned" : "") + ")\n  source     " + model.source + "\n  cache      " +
         (folder ? *folder : folder.error().message) + "\n  it would be downloaded " +
         (model.settings.on_demand ? "for the first request" : "before it is loaded") + ", or now by xgen-model pull\n";
}

// One model's line of the summary: when it is in memory, and how it finds its place.
struct Place {
  std::string name;
  bool on_demand = false;
  bool pinned = false;
  std::uint64_t planned = 0;
  std::uint64_t least = 0;
  bool here = true;  // not: to be downloaded
};
std::string summary(const std::vector<Place>& places, std::uint64_t budget) {
  std::uint64_t at_start = 0;
  std::size_t width = 0;
  for (const Place& each : places) {
    at_start += each.on_demand ? 0 : each.planned;
    width = std::max(width, each.name.size());
  }
  const std::uint64_t left = budget - std::min(budget, at_start);
  std::string text = "Memory budget: " + format_bytes(budget) + "\n";
  for (const Place& each : places) {
    std::string how = each.on_demand ? "on demand" : "at start";
    if (each.pinned) how += ", pinned";
    char size[32];
    std::snprintf(size, sizeof(size), "%12s", each.here ? format_bytes(each.planned).c_str() : "?");
    std::string line = "  " + each.name + std::string(width - each.name.size(), ' ') + size + "   " + how;
    if (!each.here) {
      line += "; not here yet";
    } else if (each.on_demand && each.least <= left) {
      line += each.planned <= left ? "; fits beside those loaded at start"
                                   : "; takes what is left, at least " + format_bytes(each.least);
    } else if (each.on_demand) {
      line += "; needs at least " + format_bytes(each.least) + ", so models that are not in use are unloaded for it";
    }
    text += line + "\n";
  }
  text += "  loaded at start " + format_bytes(at_start) + ", left " + format_bytes(left) +
          " for models on demand and for KV cache that is borrowed\n";
  return text;
}

registry::ModelDefinition definition_of(const config::Model& model, std::shared_ptr<registry::ModelLoader> loader) {
  registry::ModelDefinition definition;
  definition.name = model.name;
  definition.aliases = model.aliases;
  definition.fallbacks = model.fallbacks;
  definition.engine = model.settings.engine;
  definition.on_demand = model.settings.on_demand;
  definition.idle_unload = model.settings.idle_unload;
  definition.pin = model.settings.pin;
  definition.max_waiting = static_cast<std::size_t>(model.settings.max_waiting);
  definition.fingerprint = config::fingerprint(model);
  definition.loader = std::move(loader);
  return definition;
}

}  // namespace

bool LocalModelLoader::fetches() const { return is_remote_source(model_.source); }

Status LocalModelLoader::fetch(const std::function<void(double, std::string)>& progress, const std::stop_token& stop) {
  auto logged = std::chrono::steady_clock::now() - kLogPeriod;
  const auto tell = [&](const sources::Progress& now) {
    const double share = now.total == 0 ? 0 : static_cast<double>(now.done) / static_cast<double>(now.total);
    const std::string what = now.total == 0
                                 ? "asking what there is to download"
                                 : std::string(now.waiting ? "another process downloads " : "downloading ") + now.file +
                                       ": " + format_bytes(now.done) + " of " + format_bytes(now.total);
    progress(share, what);
    if (const auto time = std::chrono::steady_clock::now(); time - logged >= kLogPeriod) {
      log::info("loader", "downloading a model", {{"model", model_.name}, {"source", model_.source}, {"now", what}});
      logged = time;
    }
  };
  auto located = machine_.sources->fetch(model_.source, tell, stop);
  if (!located) return at(model_, std::move(located).error(), "source");
  std::lock_guard lock(mutex_);
  fetched_ = std::move(located->path);
  return {};
}

Result<std::string> LocalModelLoader::path() const {
  if (!fetches()) return model_.source;
  {
    std::lock_guard lock(mutex_);
    if (!fetched_.empty()) return fetched_;
  }
  auto located = machine_.sources->locate(model_.source);
  if (!located) return std::move(located).error();
  return std::move(located->path);
}

std::string LocalModelLoader::version() const { return fetches() ? machine_.sources->version(model_.source) : ""; }

Result<engine::LocalModel*> LocalModelLoader::opened() {
  if (opened_ == nullptr) {
    auto options = service_options(model_, path(), machine_);
    if (!options) return at(model_, std::move(options).error(), "source");
    auto model = in_background(machine_.pool->shared(), [&] { return engine::LocalModel::open(*std::move(options)); });
    if (!model) return at(model_, std::move(model).error(), "source");
    opened_ = *std::move(model);
  }
  return opened_.get();
}

Result<registry::ModelLoader::Need> LocalModelLoader::need() {
  const auto model = opened();
  if (!model) return model.error();
  const auto least = (*model)->plan(0, true);
  if (!least) return at(model_, least.error());
  const auto wanted = (*model)->plan(0);
  if (!wanted) return at(model_, wanted.error());
  return Need{least->total, std::max(least->total, std::min(wanted->total, limit_.load()))};
}

Result<std::shared_ptr<inference::ModelService>> LocalModelLoader::load(std::shared_ptr<MemoryBudget::Account> account,
                                                                        const std::function<void(double)>& progress) {
  const auto start = std::chrono::steady_clock::now();
  const auto model = opened();
  if (!model) return model.error();
  const auto memory = (*model)->plan(account->reserved(), false, borrowable_);
  if (!memory) return at(model_, memory.error());
  auto service = (*model)->load(*memory, progress, std::move(account));
  if (!service) return at(model_, std::move(service).error());
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  log::info("loader", "model ready",
            {{"model", model_.name},
             {"architecture", (*model)->info().architecture},
             {"format", (*model)->info().weight_format},
             {"memory", engine::describe(*memory)},
             {"max_model_len", memory->max_model_len},
             {"load_ms", log::Decimal{ms, 1}}});
  return service;
}

// Unmapping gigabytes keeps a processor for milliseconds.
void LocalModelLoader::release() {
  in_background(machine_.pool->shared(), [this] { opened_.reset(); });
}

std::uint64_t LocalModelLoader::kept_asleep() const {
  return opened_ == nullptr ? 0 : std::max<std::uint64_t>(opened_->info().weight_bytes, 1);
}

registry::ModelDefinition define(std::shared_ptr<LocalModelLoader> loader) {
  const config::Model& model = loader->model();
  const std::string version = loader->version();
  registry::ModelDefinition definition = definition_of(model, std::move(loader));
  if (!version.empty()) definition.fingerprint += "\n" + version;
  return definition;
}

Result<PlannedModels> plan_models(const config::Config& config, const Machine& machine, std::uint64_t budget) {
  const std::string where = config.file.empty() ? std::string() : config.file + ": ";
  struct Entry {
    std::shared_ptr<LocalModelLoader> loader;
    bool here = true;  // not: to be downloaded
    std::size_t share = 0;
  };
  std::vector<Entry> entries;
  std::vector<registry::ModelLoader::Need> at_start;
  std::vector<std::size_t> unknown;  // of at_start
  std::uint64_t least = 0;
  std::uint64_t pinned = 0;
  std::string list;
  std::optional<Error> faults;  // of all models
  const auto fault = [&faults](const Error& error) { add_fault(faults, error); };
  for (const config::Model& model : config.models) {
    if (model.is_remote()) {
      if (const auto need = RemoteModelLoader(model, machine.remotes).need(); !need) fault(need.error());
      continue;
    }
    Entry entry{std::make_shared<LocalModelLoader>(model, machine, budget), true, at_start.size()};
    registry::ModelLoader::Need need;
    if (const auto path = entry.loader->path(); !path) {
      Error why = path.error();
      const bool absent = why.code == ErrorCode::not_found;
      const Status may = absent ? machine.sources->may_pull(model.source) : Status();
      if (!may) why.message += "; " + may.error().message;
      if (!absent || !may) {
        fault(at(model, std::move(why), "source"));
        continue;
      }
      entry.here = false;
      if (!model.settings.on_demand) unknown.push_back(at_start.size());
    } else {
      const auto known = entry.loader->need();
      if (!known) {
        fault(known.error());
        continue;
      }
      need = *known;
      if (need.least > budget) {
        // The plan within the budget says which of its parts is too large.
        const auto refused = (*entry.loader->opened())->plan(budget, true);
        if (!refused) {
          fault(at(model, refused.error()));
          continue;
        }
      }
    }
    if (!model.settings.on_demand) {
      at_start.push_back(need);
      least += need.least;
      if (entry.here) list += (list.empty() ? "" : ", ") + ("'" + model.name + "' " + format_bytes(need.least));
    }
    if (model.settings.pin) pinned += need.least;
    entries.push_back(std::move(entry));
  }
  if (faults) return *faults;
  if (least > budget) {
    return make_error(ErrorCode::unavailable,
                      where + "memory.host: the models that are loaded at start need at least " + format_bytes(least) +
                          " (" + list + "), but the memory budget is " + format_bytes(budget) +
                          ". Load some of them on demand (load: "
                          "on_demand), or give them less (max_model_len, max_num_seqs).");
  }
  for (const std::size_t i : unknown) {
    const std::uint64_t left = std::min(budget / at_start.size(), (budget - least) / unknown.size());
    at_start[i] = {left, left};
  }
  const std::vector<std::uint64_t> shares = registry::share(budget, at_start);

  PlannedModels planned;
  std::vector<Place> places;
  std::size_t next_local = 0;
  for (const config::Model& model : config.models) {
    if (model.is_remote()) {
      auto remote = std::make_shared<RemoteModelLoader>(model, machine.remotes);
      planned.text += remote->plan_text();
      planned.definitions.push_back(definition_of(model, std::move(remote)));
      continue;
    }
    const Entry& entry = entries[next_local++];
    const auto& loader = entry.loader;
    if (!model.settings.on_demand) loader->set_limit(shares[entry.share]);
    Place place{model.name, model.settings.on_demand, model.settings.pin, 0, 0, entry.here};
    if (entry.here) {
      const auto need = loader->need();
      if (!need) return need.error();
      const std::uint64_t others = model.settings.pin ? pinned - need->least : pinned;
      if (need->least + others > budget) {
        return at(model, make_error(ErrorCode::unavailable,
                                    "It can never be loaded: it needs at least " + format_bytes(need->least) +
                                        (others > 0 ? " beside pinned models of " + format_bytes(others) : "") +
                                        ", but the memory budget is " + format_bytes(budget) + "."));
      }
      const auto memory = (*loader->opened())->plan(std::min(need->wanted, budget - others), false, budget);
      if (!memory) return at(model, memory.error());
      planned.text += plan_text(model, (*loader->opened())->info(), *memory);
      place.planned = memory->total;
      place.least = need->least;
    } else {
      planned.text += missing_text(model, *machine.sources);
    }
    places.push_back(std::move(place));
    planned.definitions.push_back(define(loader));
  }
  planned.text += summary(places, budget);
  return planned;
}

Status check_text(const std::vector<registry::ModelDefinition>& models) {
  for (const registry::ModelDefinition& each : models) {
    if (const auto* remote = dynamic_cast<RemoteModelLoader*>(each.loader.get()))
      if (Status status = remote->check_text(); !status) return status;
    auto* loader = dynamic_cast<LocalModelLoader*>(each.loader.get());
    if (loader == nullptr || !loader->path()) continue;  // computed elsewhere, or not here yet
    const auto model = loader->opened();
    if (!model) return model.error();
    if (Status status = (*model)->check_text(); !status) return at(loader->model(), std::move(status).error());
  }
  return {};
}

}  // namespace xgen
