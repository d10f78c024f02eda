#include "server/fallback_route.h"

#include "base/log.h"
#include "inference/failover.h"

namespace xgen::server {

void FallbackCounts::add(const std::string& model, const std::string& target) {
  std::lock_guard lock(mutex_);
  ++counts_[{model, target}];
}

std::uint64_t FallbackCounts::count(const std::string& model, const std::string& target) const {
  std::lock_guard lock(mutex_);
  const auto found = counts_.find({model, target});
  return found == counts_.end() ? 0 : found->second;
}

FallbackRoute::FallbackRoute(const registry::Registry& registry, std::shared_ptr<FallbackCounts> counts,
                             std::string model, std::string request_id, trace::Context trace,
                             std::optional<std::chrono::steady_clock::time_point> deadline)
    : registry_(&registry),
      counts_(std::move(counts)),
      model_(std::move(model)),
      request_id_(std::move(request_id)),
      trace_(std::move(trace)),
      deadline_(deadline),
      fallbacks_(registry.fallbacks(model_)) {}

Result<std::shared_ptr<inference::ModelService>> FallbackRoute::next(const Error* failure) {
  Error error;
  if (failure != nullptr) {
    error = *failure;
  } else {
    auto service = registry_->find(model_);
    if (service) return service;
    error = std::move(service).error();
  }
  if (!first_) {
    first_ = error;
    if (!inference::another_may_do(error)) return error;
  }
  if (deadline_ && std::chrono::steady_clock::now() >= *deadline_)
    return error.code == ErrorCode::timeout ? error : *first_;
  while (more()) {
    const std::string& target = fallbacks_[tried_++];
    auto service = registry_->find(target);
    if (!service) continue;
    const auto asked = registry_->entry(model_);
    const std::string& name = asked ? asked->name : model_;  // which may be an alias
    counts_->add(name, target);
    log::warn("server", trace::with_id("a request goes to another model", trace_),
              {{"model", name},
               {"target", target},
               {"request_id", request_id_},
               {"reason", error.message.substr(0, log::kMaxQuoted)}});
    return service;
  }
  return *first_;
}

}  // namespace xgen::server
