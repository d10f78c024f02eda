#include "registry/registry.h"

#include <chrono>
#include <mutex>

namespace xgen::registry {

Status Registry::add(std::string name, std::vector<std::string> aliases) {
  std::unique_lock lock(mutex_);
  for (const std::string* each = &name; each != nullptr;) {
    if (by_name_.contains(*each))
      return make_error(ErrorCode::invalid_argument, "the model name '" + *each + "' is used twice");
    const std::size_t next = each == &name ? 0 : static_cast<std::size_t>(each - aliases.data()) + 1;
    each = next < aliases.size() ? &aliases[next] : nullptr;
  }
  auto entry = std::make_unique<ModelEntry>();
  entry->name = std::move(name);
  entry->aliases = std::move(aliases);
  by_name_[entry->name] = entry.get();
  for (const std::string& alias : entry->aliases) by_name_[alias] = entry.get();
  models_.push_back(std::move(entry));
  return {};
}

void Registry::set_progress(std::string_view name, double progress) {
  std::unique_lock lock(mutex_);
  if (auto it = by_name_.find(name); it != by_name_.end()) it->second->progress = progress;
}

void Registry::set_ready(std::string_view name, std::shared_ptr<inference::ModelService> service) {
  std::unique_lock lock(mutex_);
  auto it = by_name_.find(name);
  if (it == by_name_.end()) return;
  ModelEntry& entry = *it->second;
  entry.state = ModelState::ready;
  entry.progress = 1;
  entry.service = std::move(service);
  entry.created =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

void Registry::set_failed(std::string_view name, std::string reason) {
  std::unique_lock lock(mutex_);
  auto it = by_name_.find(name);
  if (it == by_name_.end()) return;
  it->second->state = ModelState::failed;
  it->second->detail = std::move(reason);
}

const ModelEntry* Registry::find_entry(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : it->second;
}

Error Registry::unknown(std::string_view name) const {
  std::string known;
  for (const auto& model : models_) {
    if (known.size() > 500) {
      known += ", …";
      break;
    }
    known += (known.empty() ? "'" : ", '") + model->name + "'";
  }
  std::string shown(name.substr(0, 200));
  return make_error(ErrorCode::not_found,
                    "The model '" + shown + "' does not exist. Served here: " + (known.empty() ? "none" : known) + ".",
                    "model");
}

Result<std::shared_ptr<inference::ModelService>> Registry::find(std::string_view name_or_alias) const {
  std::shared_lock lock(mutex_);
  const ModelEntry* entry = find_entry(name_or_alias);
  if (entry == nullptr) return unknown(name_or_alias);
  if (entry->state == ModelState::ready) return entry->service;
  Error error = make_error(ErrorCode::unavailable,
                           entry->state == ModelState::loading
                               ? "The model '" + entry->name + "' is still loading (" +
                                     std::to_string(static_cast<int>(entry->progress * 100)) + "%)."
                               : "The model '" + entry->name + "' failed to load: " + entry->detail,
                           "model");
  error.retry_after_s = entry->state == ModelState::loading ? 1 : 30;
  return error;
}

Result<ModelEntry> Registry::entry(std::string_view name_or_alias) const {
  std::shared_lock lock(mutex_);
  const ModelEntry* entry = find_entry(name_or_alias);
  if (entry == nullptr) return unknown(name_or_alias);
  return *entry;
}

std::vector<ModelEntry> Registry::list() const {
  std::shared_lock lock(mutex_);
  std::vector<ModelEntry> out;
  for (const auto& model : models_) out.push_back(*model);
  return out;
}

}  // namespace xgen::registry
