#include "live_config.h"

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/prefetch.h"
#include "base/worker_pool.h"
#include "local_models.h"

namespace xgen {
namespace {

using Digests = LiveConfig::Digests;

// The sections that only a new process takes up, where they differ: "server, memory".
std::string needs_restart(const config::Config& before, const config::Config& now) {
  std::string sections;
  const auto compare = [&](const char* name, bool same) {
    if (!same) sections += (sections.empty() ? "" : ", ") + std::string(name);
  };
  compare("server", before.server == now.server);
  compare("memory", before.memory == now.memory);
  compare("compute", before.compute == now.compute);
  compare("sources", before.sources == now.sources);
  compare("tracing", before.tracing == now.tracing);
  return sections;
}

Digests digests_of(const std::vector<registry::ModelDefinition>& models) {
  Digests digests;
  for (const registry::ModelDefinition& each : models) {
    std::string& digest = digests[each.name];
    digest = each.fingerprint + (each.on_demand ? "\non demand" : "") + (each.pin ? "\npinned" : "") + "\n" +
             std::to_string(each.idle_unload.count());
    for (const std::string& alias : each.aliases) digest += "\nalias " + alias;
    for (const std::string& fallback : each.fallbacks) digest += "\nfallback " + fallback;
  }
  return digests;
}

// What differs: "models added: a; changed: b, c; removed: d".
std::string changes(const Digests& before, const Digests& now) {
  std::string added;
  std::string changed;
  std::string removed;
  const auto list = [](std::string& names, const std::string& name) { names += (names.empty() ? "" : ", ") + name; };
  for (const auto& [name, digest] : now) {
    const auto old = before.find(name);
    if (old == before.end())
      list(added, name);
    else if (old->second != digest)
      list(changed, name);
  }
  for (const auto& [name, digest] : before)
    if (!now.contains(name)) list(removed, name);
  std::string text;
  for (const auto& [what, names] : {std::pair{"added: ", &added}, {"changed: ", &changed}, {"removed: ", &removed}})
    if (!names->empty()) text += (text.empty() ? "models " : "; ") + (what + *names);
  return text.empty() ? "the models are as before" : text;
}

}  // namespace

void apply_log(const config::Log& settings) {
  log::set_level(settings.level);
  log::set_format(settings.format);
  log::set_content(settings.content);
}

LiveConfig::LiveConfig(const Flags& flags, const Setup& start)
    : flags_(flags), start_(start), defaults_(start.config.defaults), models_(digests_of(start.planned.definitions)) {}

Result<registry::ModelDefinition> LiveConfig::model_of(const server::LoadRequest& request) {
  auto config = config::single_model_config(
      request.path, request.name.empty() ? std::optional<std::string>() : std::optional(request.name));
  if (!config) {
    Error error = std::move(config).error();
    error.code = ErrorCode::invalid_argument;
    if (error.param.empty()) error.param = "model_path";
    return error;
  }
  {
    std::lock_guard lock(mutex_);
    config->defaults = defaults_;
  }
  config->models.front().settings = config->defaults;
  config->models.front().settings.on_demand = false;
  config->models.front().where = "load request";
  for (const server::LoadRequest::Setting& each : request.settings) {
    if (Status status = config::set(*config, "defaults." + each.key, each.value); !status) {
      Error error = std::move(status).error();
      error.message = "'" + each.field + "': " + error.message;
      error.param = each.field;
      return error;
    }
  }
  return define(std::make_shared<LocalModelLoader>(config->models.front(), start_.machine, start_.budget->total()));
}

Result<std::string> LiveConfig::reload(registry::Registry& registry) {
  const config::Config& started_with = start_.config;
  // A file that was found at the start is not forgotten when it has gone.
  Flags same = flags_;
  if (!same.source && !started_with.file.empty()) same.config = started_with.file;
  auto config = load_config(same);
  if (!config) {
    Error error = std::move(config).error();
    error.code = ErrorCode::invalid_argument;  // whatever it was: the file is what is wrong
    return error;
  }
  // An emptied or half-written file would end every model.
  if (started_with.lists_models && !config->lists_models)
    return make_error(ErrorCode::invalid_argument,
                      config->file + ": models: missing; a reload does not replace the models by the demo");
  if (const auto total = host_budget(*config); !total) return total.error();
  auto planned = plan_models(*config, start_.machine, registry.budget().total());
  if (!planned) return std::move(planned).error();
  Digests models = digests_of(planned->definitions);
  std::vector<registry::ModelDefinition> changed;
  {
    std::lock_guard lock(mutex_);
    for (const registry::ModelDefinition& each : planned->definitions) {
      const auto known = models_.find(each.name);
      if (known == models_.end() || known->second != models[each.name]) changed.push_back(each);
    }
  }
  const Status readable = in_background(start_.machine.pool->shared(), [&] { return check_text(changed); });
  if (!readable) return readable.error();
  changed.clear();
  if (Status status = registry.apply(std::move(planned->definitions)); !status) return std::move(status).error();
  apply_log(config->log);
  const std::string sections = needs_restart(started_with, *config);
  std::lock_guard lock(mutex_);
  std::string text = changes(models_, models);
  if (!sections.empty()) text += "; changes of these sections need a restart: " + sections;
  models_ = std::move(models);
  defaults_ = config->defaults;
  return text;
}

}  // namespace xgen
