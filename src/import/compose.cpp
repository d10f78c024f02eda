#include <optional>
#include <set>
#include <utility>

#include "import/commands.h"
#include "import/documents.h"

namespace xgen::importer {
namespace {

constexpr int kMaxExtends = 16;  // services that extend each other in a row

constexpr Rule kFile[] = {{"version name volumes* networks* secrets* configs* x-*", Takes::one, Group::none,
                           Effect::say, "", "Compose's own: it stays as it is."}};

int line_of(const Document& document, const YAML::Node& node) { return document.first_line + node.Mark().line + 1; }

// A text of words, or a list of them, with variables put in as Compose does.
Result<std::vector<Word>> words_of(const Document& document, const YAML::Node& node) {
  std::vector<Word> out;
  if (node.IsSequence()) {
    for (const YAML::Node& each : items_of(node)) {
      if (!each.IsScalar()) return make_error(ErrorCode::invalid_argument, document.place(each) + ": expected a word");
      Word word = expand(each.Scalar(), {}, false);
      word.line = line_of(document, each);
      out.push_back(std::move(word));
    }
    return out;
  }
  if (node.IsMap())
    return make_error(ErrorCode::invalid_argument, document.place(node) + ": expected words, as a text or a list");
  const Word text = expand(text_of(node), {}, false);
  auto commands = split_script(text.text, document.file, line_of(document, node));
  if (!commands) return std::move(commands).error();
  for (const Command& each : *commands) {
    out.insert(out.end(), each.assignments.begin(), each.assignments.end());
    out.insert(out.end(), each.words.begin(), each.words.end());
  }
  for (Word& each : out) each.line = line_of(document, node);
  return out;
}

// A list of NAME=VALUE, or a mapping.
std::vector<Option> variables_of(const Document& document, const YAML::Node& node) {
  std::vector<Option> out;
  const auto add = [&](const std::string& name, const std::string& value, const YAML::Node& at) {
    const Word word = expand(value, {}, false);
    out.push_back({name, word.text, document.place(at), word.open, false});
  };
  for (const KeyValue& each : entries_of(node)) add(each.key, text_of(each.value), each.at);
  if (!node.IsMap())
    for (const YAML::Node& each : items_of(node)) {
      const std::string text = text_of(each);
      const std::size_t equals = text.find('=');
      add(text.substr(0, equals), equals == std::string::npos ? "" : text.substr(equals + 1), each);
    }
  return out;
}

// The service that this one extends, if it is of the same file.
std::string extended_by(const Document& document, const YAML::Node& service) {
  const YAML::Node extends = find(service, "extends");
  const std::string file = text_of(find(extends, "file"));
  if (!file.empty() && file != document.file && file != "./" + document.file) return "";
  return text_of(extends.IsMap() ? find(extends, "service") : extends);
}

// Reads it into the container, after the one that it extends: what is given again counts instead of that, but for
// lists, which are joined.
Status read_service(const Document& document, const YAML::Node& service, Container& container, int depth) {
  const YAML::Node extends = find(service, "extends");
  const std::string other = extended_by(document, service);
  if (!other.empty()) {
    const YAML::Node base = find(find(document.root, "services"), other);
    if (!base.IsMap() || depth == kMaxExtends)
      return make_error(ErrorCode::invalid_argument,
                        document.place(extends) + ": extends: " +
                            (base.IsMap() ? "'" + other + "' extends itself" : "there is no service '" + other + "'"));
    if (Status status = read_service(document, base, container, depth + 1); !status) return status;
  }
  Status status;
  walk(document, service, compose_rules(), [&](Option option, const Rule* rule, const YAML::Node& node) {
    const auto words = [&](std::vector<Word>& into) {
      auto read = words_of(document, node);
      if (read)
        into = *std::move(read);
      else if (status)
        status = std::move(read).error();
    };
    switch (rule == nullptr ? Effect::say : rule->effect) {
      case Effect::extends:
        option.value = other;
        container.keys.emplace_back(std::move(option), rule);
        break;
      case Effect::image: {
        const Word image = expand(option.value, {}, false);
        container.image = option.value = image.text;
        container.keys.emplace_back(std::move(option), rule);
        break;
      }
      case Effect::entrypoint:
        words(container.entrypoint);
        break;
      case Effect::command:
        words(container.arguments);
        break;
      case Effect::environment:
        for (Option& each : variables_of(document, node)) container.environment.push_back(std::move(each));
        break;
      case Effect::volumes:
        for (const YAML::Node& each : items_of(node)) {
          Mount mount =
              each.IsMap() ? Mount{expand(text_of(find(each, "source")), {}, false).text, text_of(find(each, "target"))}
                           : parse_volume(expand(text_of(each), {}, false).text);
          container.volume_options.push_back(
              {"volumes", mount.from + (mount.from.empty() ? "" : ":") + mount.to, document.place(each), false, false});
          container.mounts.push_back(std::move(mount));
        }
        break;
      case Effect::ports:
        for (const YAML::Node& each : items_of(node)) {
          const auto part = [&](const char* key) { return expand(text_of(find(each, key)), {}, false).text; };
          PublishedPort port = each.IsMap() ? PublishedPort{part("host_ip"), part("published"), part("target"), {}}
                                            : parse_port(expand(text_of(each), {}, false).text);
          container.port_options.push_back({"ports", published_text(port), document.place(each), false, false});
          container.ports.push_back(std::move(port));
        }
        break;
      default:
        container.keys.emplace_back(std::move(option), rule);
    }
  });
  if (!status) return status;
  if (extends.IsDefined() && other.empty() && (container.image.empty() || engine_of(container) != nullptr))
    return make_error(ErrorCode::invalid_argument,
                      document.place(extends) +
                          ": extends: the service is in another file: import what `docker compose config` prints");
  return {};
}

}  // namespace

Status read_compose(Draft& draft, const ImportOptions& options, const Document& document) {
  std::optional<Error> faults;
  std::string others;
  const std::size_t before = draft.models();
  const YAML::Node services = find(document.root, "services");
  walk(document, document.root, kFile, [&](Option option, const Rule* rule, const YAML::Node&) {
    if (option.name == "services" || option.name.starts_with("services.")) return;
    ModelReader(draft, options, nullptr, "", "").take(std::move(option), rule);
  });
  std::set<std::string> extended;
  for (const KeyValue& each : entries_of(services)) extended.insert(extended_by(document, each.value));
  for (const KeyValue& each : entries_of(services)) {
    Container container;
    container.label = "services." + each.key;
    container.where = document.place(each.at);
    const Status read = read_service(document, each.value, container, 0);
    const bool part = container.entrypoint.empty() && container.arguments.empty() && extended.contains(each.key);
    if (!read) {
      add_fault(faults, read.error());
    } else if (part || engine_of(container) == nullptr) {
      if (!part) others += (others.empty() ? "" : ", ") + each.key;
      ModelReader(draft, options, nullptr, "", "")
          .say({"services." + each.key, container.image, document.place(each.at)}, Group::none,
               part ? "It has no command: it was read with the services that extend it."
                    : "None of the engines that are read: it stays as it is.");
    } else if (Status status = read_container(draft, options, std::move(container), document.file); !status) {
      add_fault(faults, status.error());
    }
  }
  if (faults) return *std::move(faults);
  if (draft.models() == before)
    return make_error(ErrorCode::invalid_argument,
                      document.place(services) +
                          ": none of the services runs vLLM, TGI or llama-server, by its image or command" +
                          (others.empty() ? "" : ": " + others));
  return {};
}

bool has_rule_below(Rules rules, std::string_view path) {
  const std::string begin = std::string(path) + ".";
  for (const Rule& rule : rules) {
    for (std::size_t at = 0; (at = rule.names.find(begin, at)) != std::string_view::npos; ++at)
      if (at == 0 || rule.names[at - 1] == ' ') return true;
  }
  return false;
}

}  // namespace xgen::importer
