// The whole controller in one process, over a scripted model.
#pragma once

#include <gtest/gtest.h>

#include <thread>

#include "base/json.h"
#include "base/log.h"
#include "server/app.h"
#include "support/raw_client.h"
#include "support/scripted_models.h"
#include "support/scripted_service.h"

namespace xgen::server {

class ControllerTest : public ::testing::Test {
 protected:
  void SetUp() override { log::set_level(log::Level::error); }

  void start(AppOptions options = {.version = "1.2.3"}, http::ServerOptions http_options = {}) {
    service = std::make_shared<scripted::ScriptedService>();
    const auto loader = std::make_shared<scripted::ScriptedLoader>(service);
    std::vector<registry::ModelDefinition> models = more_models;
    models.push_back(scripted::scripted_model("scripted", {"default"}, loader));
    models.push_back(scripted::scripted_model("org/slashed", {}, loader));
    models.push_back(scripted::scripted_model("able", {}, std::make_shared<scripted::ScriptedLoader>(able)));
    models.push_back(scripted::scripted_model("slow", {}, slow));  // the last: others wait for it
    ASSERT_TRUE(registry.apply(std::move(models)).ok());
    ASSERT_TRUE(eventually([this] { return registry.entry("slow")->progress == 0.5; }));
    app = std::make_unique<App>(std::move(options), registry, lifecycle);
    http_options.host = "127.0.0.1";
    http_options.port = 0;
    auto bound = http::Server::bind(http_options, app->handler(), app->error_page(), app->head_check());
    ASSERT_TRUE(bound.ok()) << bound.error().message;
    http = std::move(bound).value();
    http->start();
    lifecycle.set(Lifecycle::State::ready);
  }

  scripted::Answer post(const std::string& path, const std::string& body) {
    scripted::RawClient client(http->port());
    client.post(path, body);
    return client.read_answer();
  }
  scripted::Answer get(const std::string& path) {
    scripted::RawClient client(http->port());
    client.get(path);
    return client.read_answer();
  }
  static boost::json::value parse(const std::string& text) {
    auto value = parse_json(text);
    EXPECT_TRUE(value.ok()) << text;
    return value.ok() ? std::move(value).value() : boost::json::value{};
  }

  template <class Predicate>
  static bool eventually(Predicate predicate, std::chrono::milliseconds wait = std::chrono::seconds(5)) {
    const auto end = std::chrono::steady_clock::now() + wait;
    while (!predicate()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

  void TearDown() override { slow->fail("the test is over"); }

  std::shared_ptr<scripted::ScriptedLoader> slow = std::make_shared<scripted::ScriptedLoader>(nullptr);
  std::vector<registry::ModelDefinition> more_models;
  registry::Registry registry{std::make_shared<MemoryBudget>(100)};
  Lifecycle lifecycle;
  std::shared_ptr<scripted::ScriptedService> service;
  const std::shared_ptr<scripted::ScriptedService> able =
      std::make_shared<scripted::ScriptedService>(std::chrono::microseconds{}, true);
  std::unique_ptr<App> app;
  std::unique_ptr<http::Server> http;
};

}  // namespace xgen::server
