// How models that other engines serve come into the registry: they take no memory here, and serve at once.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/result.h"
#include "config/config.h"
#include "http/client.h"
#include "http/server.h"
#include "registry/registry.h"
#include "remote/model_text.h"

namespace xgen {

// The HTTP client of all remote models, made when the first one is loaded. It must outlive the registry.
class RemoteClient {
 public:
  explicit RemoteClient(http::ClientOptions options) : options_(std::move(options)) {}
  // On the server's threads: before the first model is loaded.
  void run_on(const http::Server& server) { server_ = &server; }
  http::Client& get() {
    std::call_once(once_, [this] {
      client_ = server_ == nullptr ? std::make_unique<http::Client>(options_)
                                   : std::make_unique<http::Client>(options_, *server_);
      made_.store(true);
    });
    return *client_;
  }
  // Calls that have not ended.
  std::size_t running() const { return made_.load() ? client_->counts().running : 0; }

 private:
  const http::ClientOptions options_;
  const http::Server* server_ = nullptr;
  std::once_flag once_;
  std::atomic<bool> made_{false};
  std::unique_ptr<http::Client> client_;
};

class RemoteModelLoader final : public registry::ModelLoader {
 public:
  RemoteModelLoader(config::Model model, std::shared_ptr<RemoteClient> client)
      : model_(std::move(model)), client_(std::move(client)) {}

  // No memory. Errors: invalid_argument, naming the file's line and the URL that is none.
  Result<Need> need() override;
  Result<std::shared_ptr<inference::ModelService>> load(std::shared_ptr<MemoryBudget::Account> account,
                                                        const std::function<void(double)>& progress) override;
  // The line of the memory plan, for people.
  std::string plan_text() const;
  // Whether its tokenizer and chat template can be read, if it has them. Errors name the line, the file and the reason.
  Status check_text() const;

 private:
  Result<std::shared_ptr<const remote::ModelText>> read_text() const;

  const config::Model model_;
  const std::shared_ptr<RemoteClient> client_;
};

}  // namespace xgen
