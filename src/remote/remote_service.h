// RemoteService: what the services of all engines share: one server, and the watch over it.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "inference/model_service.h"
#include "remote/endpoint.h"
#include "remote/watch.h"

namespace xgen::remote {

class RemoteService : public inference::ModelService {
 public:
  ~RemoteService() override { RemoteService::close(); }
  RemoteService(const RemoteService&) = delete;
  RemoteService& operator=(const RemoteService&) = delete;

  inference::Health health() const override {
    if (endpoint_->is_closed()) return {inference::Health::State::dead, 0, "closed"};
    return watch_->health();
  }
  inference::ServiceStats stats() const override { return endpoint_->stats.snapshot(); }
  inference::Load load() const override {
    const auto told = watch_->load();
    return told ? *told : inference::ModelService::load();
  }
  void close() override {
    watch_->stop();
    endpoint_->close();
  }

 protected:
  explicit RemoteService(std::shared_ptr<Endpoint> endpoint) : endpoint_(std::move(endpoint)) {}
  // By the constructor of what derives from this, once. `once`: as Watch::start().
  void watch(std::vector<Question> questions, bool once = false) {
    watch_ = std::make_shared<Watch>(endpoint_, std::move(questions));
    watch_->start(once);
  }

  const std::shared_ptr<Endpoint> endpoint_;

 private:
  std::shared_ptr<Watch> watch_;
};

}  // namespace xgen::remote
