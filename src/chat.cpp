#include "chat.h"

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdlib>

#include "base/units.h"
#include "client/chat.h"
#include "complain.h"

namespace xgen {

CLI::App* add_chat(CLI::App& program, ChatFlags& flags) {
  CLI::App* command = program.add_subcommand("chat", "Talk with a model of any OpenAI server, in the terminal");
  command->add_option("url", flags.url, "The server, with or without /v1 (default: " + flags.url + ")");
  command->add_option("--model", flags.model, "The model (default: the server's, if it has one alone)");
  command->add_option("--system", flags.system, "The system prompt");
  command->add_option("--api-key-file", flags.key_file, "A file with the API key (default: $OPENAI_API_KEY)");
  command->add_option("--ca-file", flags.ca_file, "Certificates to trust for https, as PEM (default: the system's)");
  command->add_option("--extra", flags.extra, R"(More fields of each request, as JSON: {"temperature": 0})");
  command->add_option("--timeout", flags.timeout, "Longest time of one answer (default: " + flags.timeout + ")");
  return command;
}

int chat(const ChatFlags& flags) {
  client::ChatOptions options;
  const char* key = std::getenv("OPENAI_API_KEY");
  auto api = client::make_api(flags.url, flags.key_file, key == nullptr ? "" : key);
  if (!api) return complain(kMisused, api.error().message);
  options.api = *std::move(api);
  options.api.ca_file = flags.ca_file;
  const auto timeout = parse_duration(flags.timeout);
  if (!timeout || timeout->count() == 0)
    return complain(kMisused, "--timeout: " + (timeout ? "expected a time above 0" : timeout.error().message));
  options.api.timeout = *timeout;
  auto extra = client::parse_extra(flags.extra);
  if (!extra) return complain(kMisused, "--extra: " + extra.error().message);
  options.extra = *std::move(extra);
  options.model = flags.model;
  options.system = flags.system;
  std::signal(SIGPIPE, SIG_IGN);  // a connection that has gone is an error like others
  return client::run_chat(std::move(options));
}

}  // namespace xgen
