// OpenAiWatch: whether an OpenAI server is well, which engine it is, and what it says of the model.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "inference/model_service.h"
#include "remote/openai_endpoint.h"

namespace boost::json {
class object;
}

namespace xgen::remote {

// Asks for the server's list of models now and then: whether it is there, which engine it is, the model's context. And,
// if it is asked to, for its metrics: what it has to do for all its clients.
class OpenAiWatch final : public std::enable_shared_from_this<OpenAiWatch> {
 public:
  explicit OpenAiWatch(std::shared_ptr<OpenAiEndpoint> endpoint) : endpoint_(std::move(endpoint)) {}

  void start() {
    if (endpoint_->options.health_interval.count() > 0) look();
    if (endpoint_->options.load_interval.count() > 0) look_at_load();
  }
  void stop();
  inference::Health health() const;
  // Null as long as the server's metrics have not been read, or say nothing.
  std::optional<inference::Load> load() const;

 private:
  void look();
  void look_at_load();

  std::string read(std::string_view body);
  void learn(const boost::json::object& card);

  void note(const std::string& fault);

  const std::shared_ptr<OpenAiEndpoint> endpoint_;
  mutable std::mutex mutex_;
  bool stopped_ = false;
  inference::Health health_;
  std::unique_ptr<http::Client::Timer> timer_;
  std::unique_ptr<http::Call> call_;
  std::optional<inference::Load> load_;
  std::unique_ptr<http::Client::Timer> load_timer_;
  std::unique_ptr<http::Call> load_call_;
};

}  // namespace xgen::remote
