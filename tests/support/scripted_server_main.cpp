// scripted_server [--port N] [--threads N] [--step-us N] [--quiet]: the whole controller over a ScriptedService, for
// the end-to-end tests and the HTTP bench. Models: "scripted" (alias "default"), "org/slashed"
// and "able", which offers what ScriptedService can.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "base/log.h"
#include "server/app.h"
#include "support/scripted_models.h"
#include "support/scripted_service.h"

int main(int argc, char** argv) {
  using namespace xgen;
  http::ServerOptions options{.host = "127.0.0.1", .port = 0, .threads = 1};
  std::chrono::microseconds step{0};
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--quiet") {
      log::set_level(log::Level::warn);
      continue;
    }
    if (i + 1 == argc) return 2;
    const int value = std::atoi(argv[++i]);
    if (name == "--port")
      options.port = static_cast<std::uint16_t>(value);
    else if (name == "--threads")
      options.threads = value;
    else if (name == "--step-us")
      step = std::chrono::microseconds(value);
    else
      return 2;
  }
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  registry::Registry registry(std::make_shared<MemoryBudget>(100));
  server::Lifecycle lifecycle;
  const auto service = std::make_shared<scripted::ScriptedService>(step);
  const auto loader = std::make_shared<scripted::ScriptedLoader>(service);
  const auto able = std::make_shared<scripted::ScriptedLoader>(std::make_shared<scripted::ScriptedService>(step, true));
  if (!registry
           .apply({scripted::scripted_model("scripted", {"default"}, loader),
                   scripted::scripted_model("org/slashed", {}, loader), scripted::scripted_model("able", {}, able)})
           .ok())
    return 1;
  while (registry.entry("able")->state != registry::ModelState::ready)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  server::App app({.version = "0.0-scripted"}, registry, lifecycle);
  auto http = http::Server::bind(options, app.handler(), app.error_page(), app.head_check());
  if (!http) {
    std::fprintf(stderr, "%s\n", http.error().message.c_str());
    return 1;
  }
  (*http)->start();
  lifecycle.set(server::Lifecycle::State::ready);
  std::printf("listening on 127.0.0.1:%d\n", (*http)->port());
  std::fflush(stdout);
  int signal = 0;
  sigwait(&signals, &signal);
  lifecycle.set(server::Lifecycle::State::refusing);
  return (*http)->drain(std::chrono::seconds(5)) ? 0 : 1;
}
