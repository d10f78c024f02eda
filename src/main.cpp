// xgen-model: reads the command line and does what it says. `serve`, `pull`, `import`, `bench` and `chat` have files of
// their own; the small commands are here.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/model_source.h"
#include "bench.h"
#include "chat.h"
#include "complain.h"
#include "config/config.h"
#include "healthcheck.h"
#include "http/url.h"
#include "import/import.h"
#include "import_command.h"
#include "local_models.h"
#include "metrics/metrics.h"
#include "pull.h"
#include "serve.h"
#include "server/app.h"
#include "setup.h"
#include "sources/sources.h"

namespace xgen {
namespace {

// All that `serve` would do before it listens, and the tokenizers and chat templates.
int check(const Flags& flags, bool print_effective) {
  auto config = load_config(flags);
  if (!config) return complain(kMisused, config.error().message);
  auto setup = prepare(*std::move(config));
  if (!setup) return complain(kMisused, setup.error().message);
  if (Status status = check_text(setup->planned.definitions); !status)
    return complain(kMisused, status.error().message);
  if (print_effective) {
    auto settings = source_settings(setup->config.sources);
    if (!settings) return complain(kMisused, settings.error().message);
    setup->config.sources.cache = std::filesystem::path(settings->s3.cache).parent_path().string();
    // What no key says, but the environment.
    std::printf("# hf:// models are kept in %s (HF_HOME, HF_HUB_CACHE)%s.\n", settings->hub.cache.c_str(),
                settings->hub.offline ? ", and no others are downloaded (HF_HUB_OFFLINE)" : "");
    std::fputs(config::effective_yaml(setup->config).c_str(), stdout);
    return 0;
  }
  const std::string& file = setup->config.file;
  std::printf("%s: valid\n%s", file.empty() ? "configuration" : file.c_str(), setup->planned.text.c_str());
  return 0;
}

// The sources that are named, or all of the configuration's; its settings in both cases.
int pull(const Flags& flags, std::vector<std::string> list) {
  auto config = load_config(flags);
  if (!config) return complain(kMisused, config.error().message);
  for (const std::string& source : list) {
    if (!is_remote_source(source))
      return complain(kMisused, "'" + source + "': expected hf://ORG/REPO[@REVISION][/FILE] or s3://BUCKET/PREFIX");
    if (const auto parsed = parse_remote_source(source); !parsed) return complain(kMisused, parsed.error().message);
  }
  if (list.empty()) {
    for (const config::Model& model : config->models)
      if (is_remote_source(model.source) && std::find(list.begin(), list.end(), model.source) == list.end())
        list.push_back(model.source);
    if (list.empty()) {
      return complain(kMisused, (config->file.empty() ? std::string("no SOURCE is given and there is no models.yaml")
                                                      : config->file + ": no model has an hf:// or s3:// source") +
                                    ": nothing to download");
    }
  }
  auto settings = source_settings(config->sources);
  if (!settings) return complain(kMisused, settings.error().message);
  std::signal(SIGPIPE, SIG_IGN);  // a connection that has gone is an error like others
  sources::Sources sources(*std::move(settings));
  return pull_all(sources, list) ? 0 : kFailed;
}

// Asks the server that runs with the same configuration. The exit code is 0 or 1, as Docker wants it.
// `probe` is empty where none was named.
int healthcheck(const Flags& flags, const std::string& named, std::string url) {
  const std::string probe = named.empty() ? "ready" : named;
  HealthTarget target{std::move(url), {}, {}, {}};
  if (const auto parsed = http::parse_url(target.url); !target.url.empty() && parsed) {
    if (parsed->target == "/")
      target.url = parsed->origin() + "/health/" + probe;
    else if (!named.empty())
      return complain(kMisused, target.url + " names what to ask already: leave out '" + named + "', or the path");
  }
  if (target.url.empty()) {
    const std::string path = config_path(flags);
    auto server = path.empty() ? Result<config::Server>(config::Server()) : config::load_address(path);
    if (!server) return complain(kFailed, server.error().message);
    if (server->port == 0)
      return complain(kFailed, path + ": server.port: 0 takes any free port; give the server's address with --url");
    target = health_target(*server, probe);
  }
  const auto answer = ask_health(target, "xgen-model/" XGEN_VERSION);
  if (!answer) return complain(kFailed, answer.error().message);
  std::puts(answer->c_str());
  return 0;
}

int docs(const std::string& topic) {
  const std::string text = topic == "configuration" ? config::reference_markdown()
                           : topic == "import"
                               ? importer::reference_markdown()
                               : server::reference_markdown() + "\n## Metrics\n\n" + metrics::reference_markdown();
  std::fwrite(text.data(), 1, text.size(), stdout);
  return 0;
}

void add_flags(CLI::App& command, Flags& flags, bool serve) {
  command.add_option(
      "source", flags.source,
      "What to serve instead of a models.yaml: a model folder, a .gguf file, hf://ORG/REPO or s3://BUCKET/PREFIX");
  command.add_option("--config", flags.config, "The models.yaml (default: $MODEL_CONFIG_PATH, then ./models.yaml)");
  command.add_option("--name", flags.name, "Name of the model given as SOURCE");
  for (std::size_t i = 0; i < std::size(kKeyFlags); ++i)
    if (serve || !kKeyFlags[i].serve_only)
      command.add_option(kKeyFlags[i].name, flags.keys[i], config::describe_key(kKeyFlags[i].key));
}

// What CLI11 says of a fault, as the beginning of a line of ours.
std::string words_of(const CLI::ParseError& error) {
  std::string words = error.what();
  // It counts and names types: "--port: 1 required TEXT missing".
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ArgumentMismatch) && words.ends_with(" missing"))
    return words.substr(0, words.find(": ")) + ": a value is missing";
  if (!words.empty() && words.front() >= 'A' && words.front() <= 'Z')
    words.front() = static_cast<char>(words.front() - 'A' + 'a');
  return words;
}

int main_with(int argc, char** argv) {
  const std::string_view first = argc > 1 ? argv[1] : "";
  constexpr std::string_view kCommands[] = {"serve", "check", "healthcheck", "pull", "import", "bench", "chat", "docs"};
  const bool asks = first == "-h" || first == "--help" || first == "--version";
  if (!asks && std::find(std::begin(kCommands), std::end(kCommands), first) == std::end(kCommands)) {
    std::string list;
    for (const std::string_view each : kCommands)
      list.append(list.empty() ? "" : each == kCommands[std::size(kCommands) - 1] ? " or " : ", ").append(each);
    const std::string word(first);
    return complain(kMisused, (word.empty()            ? "a command is needed"
                               : word.starts_with('-') ? "a command is needed before " + word
                                                       : "unknown command '" + word + "'") +
                                  ": " + list + "; xgen-model --help tells more");
  }
  CLI::App command{"xgen-model " XGEN_VERSION ": serves language models over the OpenAI API"};
  command.set_version_flag("--version", "xgen-model " XGEN_VERSION);
  command.require_subcommand(1);
  Flags flags;
  CLI::App* serve_command =
      command.add_subcommand("serve", "Serve models (with neither PATH nor configuration: the built-in demo)");
  add_flags(*serve_command, flags, true);
  CLI::App* check_command =
      command.add_subcommand("check", "Check the configuration and print the memory plan, without serving");
  add_flags(*check_command, flags, false);
  bool print_effective = false;
  check_command->add_flag("--print-effective", print_effective,
                          "Print the whole configuration that is in force instead, flags and defaults included");
  CLI::App* health_command = command.add_subcommand(
      "healthcheck", "Ask the server that runs here whether it is well: exit code 0, or 1 and the reason");
  std::string probe;
  std::string health_at;
  health_command->add_option("probe", probe, "What to ask: ready (the default), live or startup")
      ->check(CLI::IsMember({"ready", "live", "startup"}));
  health_command->add_option("--url", health_at, "Ask this URL instead of the address in the configuration");
  health_command->add_option("--config", flags.config,
                             "The models.yaml (default: $MODEL_CONFIG_PATH, then ./models.yaml)");
  CLI::App* pull_command = command.add_subcommand(
      "pull", "Download models into the cache: the sources given, or all that the configuration names");
  std::vector<std::string> pull_list;
  Flags pull_flags;
  pull_command->add_option("source", pull_list, "hf://ORG/REPO[@REVISION][/FILE] or s3://BUCKET/PREFIX");
  pull_command->add_option("--config", pull_flags.config,
                           "The models.yaml (default: $MODEL_CONFIG_PATH, then ./models.yaml)");
  for (std::size_t i = 0; i < std::size(kKeyFlags); ++i)
    if (std::string_view(kKeyFlags[i].key).starts_with("sources."))
      pull_command->add_option(kKeyFlags[i].name, pull_flags.keys[i], config::describe_key(kKeyFlags[i].key));
  CLI::App* import_command = command.add_subcommand("import",
                                                    "Write a models.yaml for what runs today: a command line of vLLM, "
                                                    "TGI or llama-server, Docker Compose, Kubernetes, "
                                                    "Ray Serve; and report what became of each option");
  ImportArguments import_arguments;
  import_command->add_option("input", import_arguments.input,
                             "A file, or - for stdin; or, after --, the words of a command line");
  import_command->add_option("-o,--output", import_arguments.output, "Where the models.yaml goes (default: stdout)");
  import_command->add_option("--report", import_arguments.report, "Where the report goes (default: stderr)");
  import_command->add_flag("--force", import_arguments.force, "Replace files that are there");
  std::string import_for = "host";
  import_command
      ->add_option("--for", import_for,
                   "Whose paths and ports are written: the machine's, or the container's (default: host; of Kubernetes "
                   "always the container's)")
      ->check(CLI::IsMember({"host", "container"}));
  BenchFlags bench_flags;
  CLI::App* bench_command = add_bench(command, bench_flags);
  ChatFlags chat_flags;
  CLI::App* chat_command = add_chat(command, chat_flags);
  CLI::App* docs_command = command.add_subcommand("docs", "Print a reference page as Markdown");
  std::string topic;
  docs_command->add_option("page", topic, "Which page")
      ->required()
      ->check(CLI::IsMember({"configuration", "api", "import"}));
  if (first == "import")  // the words after "--" are none of ours
    if (char** const end =
            std::find_if(argv, argv + argc, [](const char* word) { return std::string_view(word) == "--"; });
        end != argv + argc) {
      import_arguments.words.assign(end + 1, argv + argc);
      argc = static_cast<int>(end - argv);
    }
  try {
    command.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return command.exit(error);  // --help, --version
    return complain(kMisused,
                    words_of(error) + "; xgen-model " + (asks ? "" : std::string(first) + " ") + "--help tells more");
  }
  if (serve_command->parsed()) return serve(flags);
  if (check_command->parsed()) return check(flags, print_effective);
  if (health_command->parsed()) return healthcheck(flags, probe, health_at);
  if (pull_command->parsed()) return pull(pull_flags, std::move(pull_list));
  if (import_command->parsed()) {
    import_arguments.in_container = import_for == "container";
    const Status status = run_import(import_arguments);
    if (status) return 0;
    return complain(status.error().code == ErrorCode::internal ? kFailed : kMisused, status.error().message);
  }
  if (bench_command->parsed()) return bench(bench_flags, XGEN_VERSION);
  if (chat_command->parsed()) return chat(chat_flags);
  return docs(topic);
}

}  // namespace
}  // namespace xgen

int main(int argc, char** argv) {
  try {
    return xgen::main_with(argc, argv);
  } catch (const std::exception& error) {
    return xgen::complain(xgen::kFailed, error.what());
  }
}
