// Watch: whether a server is well, and what it says of itself.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "inference/model_service.h"
#include "remote/endpoint.h"

namespace xgen::remote {

// What a server is asked, and what its answer says is wrong with it (empty: nothing). No connection, 401, 403 and 5xx
// are faults by themselves, and not read.
struct Question {
  std::string target;
  std::function<std::string(const http::ResponseHead& head, std::string_view body)> read;
};

// Asks its questions now and then, one after the other up to the first fault. And, if it is asked to, for the server's
// metrics: what it has to do for all its clients.
class Watch final : public std::enable_shared_from_this<Watch> {
 public:
  Watch(std::shared_ptr<Endpoint> endpoint, std::vector<Question> questions)
      : endpoint_(std::move(endpoint)), questions_(std::move(questions)) {}

  // `once`: asks at least once, even where the interval is 0.
  void start(bool once = false) {
    if (once || endpoint_->options.health_interval.count() > 0) ask(0);
    if (endpoint_->options.load_interval.count() > 0) look_at_load();
  }
  void stop();
  inference::Health health() const;
  // Null as long as the server's metrics have not been read, or say nothing.
  std::optional<inference::Load> load() const;

 private:
  void ask(std::size_t which);
  void look_at_load();

  // What has come of a look, and the next one.
  void note(const std::string& fault);
  void note_load(const std::optional<inference::Load>& load);

  const std::shared_ptr<Endpoint> endpoint_;
  const std::vector<Question> questions_;
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
