// FallbackRoute: where one call goes: to the model that it names, and from there to those that stand in for it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/trace.h"
#include "inference/model_service.h"
#include "registry/registry.h"

namespace xgen::server {

// How often calls for one model went to another. Thread-safe.
class FallbackCounts {
 public:
  void add(const std::string& model, const std::string& target);
  std::uint64_t count(const std::string& model, const std::string& target) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, std::string>, std::uint64_t> counts_;
};

// Not thread-safe; of one call. The registry must outlive it.
class FallbackRoute {
 public:
  // `request_id` and `trace` are for the log.
  FallbackRoute(const registry::Registry& registry, std::shared_ptr<FallbackCounts> counts, std::string model,
                std::string request_id, trace::Context trace,
                std::optional<std::chrono::steady_clock::time_point> deadline);

  // The service to try: that of the model named (`failure` is null), or the next after one that has failed before its
  // first token. Errors: what the client gets. That is the first failure of all, or a time-out that came after it. What
  // a fallback does not offer, it does not have: only the first model's refusals are the client's.
  Result<std::shared_ptr<inference::ModelService>> next(const Error* failure);

  const std::string& asked() const { return model_; }
  // The model that next() has found last, by the name that the client used or by its own.
  const std::string& model() const { return tried_ == 0 ? model_ : fallbacks_[tried_ - 1]; }
  bool fell_back() const { return tried_ > 0; }
  bool has_fallbacks() const { return !fallbacks_.empty(); }
  // Whether next() may have a further one after a failure.
  bool more() const { return tried_ < fallbacks_.size(); }

 private:
  const registry::Registry* registry_;
  std::shared_ptr<FallbackCounts> counts_;
  std::string model_;
  std::string request_id_;
  trace::Context trace_;
  std::optional<std::chrono::steady_clock::time_point> deadline_;
  std::vector<std::string> fallbacks_;
  std::size_t tried_ = 0;  // of fallbacks_
  std::optional<Error> first_;
};

}  // namespace xgen::server
