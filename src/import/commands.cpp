#include "import/commands.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <utility>

namespace xgen::importer {
namespace {

std::string base_name(std::string_view path) { return std::string(path.substr(path.rfind('/') + 1)); }

bool is_number(std::string_view text) {
  return text.size() > 1 && text[0] == '-' &&
         (std::isdigit(static_cast<unsigned char>(text[1])) != 0 || text[1] == '.');
}
bool is_flag(const Word& word) { return word.text.size() > 1 && word.text[0] == '-' && !is_number(word.text); }

// What a switch may be followed by without a model being taken for it.
bool is_literal(std::string_view text) {
  constexpr std::array<std::string_view, 12> kWords = {"true", "True", "false", "False", "on", "off",
                                                       "auto", "0",    "1",     "yes",   "no", "none"};
  return std::find(kWords.begin(), kWords.end(), text) != kWords.end();
}

std::string place(const std::string& file, const Word& word) {
  return word.line == 0 ? "" : file + ":" + std::to_string(word.line);
}

// The option that begins at words[at], which is moved behind it.
Option read_option(const std::vector<Word>& words, std::size_t& at, Rules rules, const Rule*& rule,
                   const std::string& file) {
  const Word& word = words[at++];
  Option option{word.text, "", place(file, word), word.open, false};
  const std::size_t equals = word.text.find('=');
  bool has_value = equals != std::string::npos;
  if (has_value) {
    option.name = word.text.substr(0, equals);
    option.value = word.text.substr(equals + 1);
  }
  rule = find_rule(rules, option.name);
  // Docker takes -p8000:8000 as well.
  if (rule == nullptr && rules.data() == docker_run_rules().data() && word.text.size() > 2 && word.text[1] != '-') {
    rule = find_rule(rules, word.text.substr(0, 2));
    if (rule != nullptr && rule->takes == Takes::one) {
      option.name = word.text.substr(0, 2);
      option.value = word.text.substr(2);
      return option;
    }
    rule = nullptr;
  }
  if (rule == nullptr && option.name.starts_with("--no-")) {
    rule = find_rule(rules, "--" + option.name.substr(5));
    option.off = rule != nullptr;
  }
  if (has_value || option.off) return option;
  // An unknown flag may have a value as well.
  const Takes takes = rule == nullptr ? Takes::one : rule->takes;
  while (at < words.size() && takes != Takes::nothing) {
    const Word& next = words[at];
    if (is_flag(next) || next.redirect || (takes == Takes::maybe && !is_literal(next.text))) break;
    option.value += (option.value.empty() ? "" : " ") + next.text;
    option.open = option.open || next.open;
    ++at;
    if (takes != Takes::many) break;
  }
  return option;
}

void read_arguments(ModelReader& reader, const Engine& engine, const std::vector<Word>& words, std::size_t at,
                    const std::string& file) {
  // Only vLLM names its model without a flag.
  bool model = engine.name != kVllm.name;
  while (at < words.size()) {
    const Word& word = words[at];
    if (word.redirect) {
      reader.say({word.text, "", place(file, word)}, Group::none,
                 "The log goes to stderr, and what `serve` says once it is ready to stdout.");
      ++at;
    } else if (is_flag(word)) {
      const Rule* rule = nullptr;
      Option option = read_option(words, at, engine.rules, rule, file);
      if (rule != nullptr && rule->names == "--model MODEL_TAG") model = true;
      reader.take(std::move(option), rule);
    } else if (!model) {
      model = true;
      reader.take({"MODEL", word.text, place(file, word), word.open, false}, find_rule(engine.rules, "MODEL_TAG"));
      ++at;
    } else {
      reader.say({word.text, "", place(file, word), word.open}, Group::unknown,
                 word.open ? "What it stands for is not known here: import it with its value put in."
                           : "Neither a flag nor the value of one.");
      ++at;
    }
  }
}

// A line that starts no engine. Its program alone is shown: what follows may hold secrets.
void say_unread(ModelReader& reader, const std::vector<Word>& words, const std::string& file) {
  reader.say({words[0].text, "", place(file, words[0])}, Group::none, "Starts no engine that is known: not read.");
}

// What begins a command without being the engine: nohup, numactl, sudo. Of it, too, the program alone is shown.
void read_wrapper(ModelReader& reader, const std::vector<Word>& words, std::size_t end, const std::string& file) {
  const Word* first = nullptr;
  for (std::size_t i = 0; i < end; ++i) {
    const std::string name = base_name(words[i].text);
    if (is_assignment(words[i].text)) {
      const std::size_t equals = words[i].text.find('=');
      reader.take_variable({words[i].text.substr(0, equals), words[i].text.substr(equals + 1), place(file, words[i]),
                            words[i].open, false});
    } else if (first == nullptr && name != "env" && name != "exec" && !name.starts_with("python") && name != "-u") {
      first = &words[i];
    }
  }
  if (first != nullptr)
    reader.say({first->text, "", place(file, *first)}, Group::none,
               "What starts the process: it can start xgen-model's as well.");
}

// sh -c SCRIPT: the commands in it.
std::optional<Result<std::vector<Command>>> shell_script(const std::vector<Word>& words, const std::string& file,
                                                         const Variables& known) {
  for (std::size_t i = 0; i + 2 < words.size(); ++i) {
    const std::string name = base_name(words[i].text);
    if (name != "sh" && name != "bash") continue;
    for (std::size_t k = i + 1; k + 1 < words.size() && words[k].text.starts_with('-'); ++k)
      if (!words[k].text.starts_with("--") && words[k].text.ends_with('c'))
        return split_script(words[k + 1].text, file, words[k + 1].line, known);
  }
  return {};
}

// The words of docker run: what it is told, from `at` on, and the container that it makes.
Result<Container> read_docker_run(const std::vector<Word>& words, std::size_t at, const std::string& file) {
  Container container;
  container.where = place(file, words[0]);
  while (at < words.size() && is_flag(words[at])) {
    const Rule* rule = nullptr;
    Option option = read_option(words, at, docker_run_rules(), rule, file);
    const Effect effect = rule == nullptr ? Effect::say : rule->effect;
    if (effect == Effect::environment) {
      const std::size_t equals = option.value.find('=');
      container.environment.push_back({option.value.substr(0, equals),
                                       equals == std::string::npos ? "" : option.value.substr(equals + 1), option.where,
                                       option.open, false});
    } else if (effect == Effect::volumes) {
      container.mounts.push_back(parse_volume(option.value));
      container.volume_options.push_back(std::move(option));
    } else if (effect == Effect::ports) {
      container.ports.push_back(parse_port(option.value));
      container.port_options.push_back(std::move(option));
    } else if (effect == Effect::entrypoint) {
      container.entrypoint = {{option.value, words[at - 1].line, option.open, false}};
    } else {
      container.keys.emplace_back(std::move(option), rule);
    }
  }
  if (at == words.size())
    return make_error(ErrorCode::invalid_argument, (container.where.empty() ? file : container.where) + ": `" +
                                                       words[0].text + " run` without an image");
  container.image = words[at].text;
  container.keys.emplace_back(Option{"image", container.image, place(file, words[at]), false, false},
                              find_rule(compose_rules(), "image"));
  container.arguments.assign(words.begin() + static_cast<std::ptrdiff_t>(at) + 1, words.end());
  return container;
}

// Where `docker run` or `docker container run` begins, and what it is told; both the end if there is none.
std::pair<std::size_t, std::size_t> docker_run(const std::vector<Word>& words) {
  for (std::size_t i = 0; i + 1 < words.size(); ++i) {
    if (base_name(words[i].text) != "docker" && base_name(words[i].text) != "podman") continue;
    const std::size_t run = i + (words[i + 1].text == "container" ? 2 : 1);
    if (run < words.size() && words[run].text == "run") return {i, run + 1};
  }
  return {words.size(), words.size()};
}

}  // namespace

const Rule* find_rule(Rules rules, std::string_view name, bool* exact) {
  std::string dashed(name);
  if (name.starts_with("--")) std::replace(dashed.begin(), dashed.end(), '_', '-');
  const Rule* family = nullptr;
  for (const Rule& rule : rules) {
    for (std::string_view names = rule.names; !names.empty();) {
      const std::size_t end = names.find(' ');
      const std::string_view each = names.substr(0, end);
      names = end == std::string_view::npos ? std::string_view() : names.substr(end + 1);
      if (each == dashed) {
        if (exact != nullptr) *exact = true;
        return &rule;
      }
      if (family == nullptr && each.ends_with('*') && dashed.starts_with(each.substr(0, each.size() - 1)))
        family = &rule;
    }
  }
  return family;
}

Found find_engine(const std::vector<Word>& words) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string name = base_name(words[i].text);
    if (name == "vllm" && i + 1 < words.size() && words[i + 1].text == "serve") return {&kVllm, i, i + 2};
    if (words[i].text == "-m" && i + 1 < words.size() && words[i + 1].text.starts_with("vllm.entrypoints.")) {
      if (words[i + 1].text != "vllm.entrypoints.cli.main") return {&kVllm, i, i + 2};
      if (i + 2 < words.size() && words[i + 2].text == "serve") return {&kVllm, i, i + 3};  // as `vllm` is
    }
    if (name == "text-generation-launcher") return {&kTgi, i, i + 1};
    if (name == "llama-server" || name == "llama-server.exe") return {&kLlamaServer, i, i + 1};
  }
  return {};
}

const Engine* engine_of_image(std::string_view image) {
  const std::string name = base_name(image);
  // What only stands beside vLLM has its name as well.
  for (const std::string_view other : {"router", "proxy", "exporter", "webui"})
    if (name.find(other) != std::string::npos) return nullptr;
  if (name.starts_with("text-generation-inference")) return &kTgi;
  if (name.starts_with("vllm")) return &kVllm;
  if (name.starts_with("llama.cpp") && name.find("server") != std::string::npos) return &kLlamaServer;
  return nullptr;
}

const Engine* engine_of(const Container& container) {
  std::vector<Word> words = container.entrypoint;
  words.insert(words.end(), container.arguments.begin(), container.arguments.end());
  if (const Found found = find_engine(words); found.engine != nullptr) return found.engine;
  if (const auto script = shell_script(words, "", {}); script && *script)
    for (const Command& command : **script)
      if (const Found found = find_engine(command.words); found.engine != nullptr) return found.engine;
  return engine_of_image(container.image);
}

Status read_container(Draft& draft, const ImportOptions& options, Container container, const std::string& file) {
  const Engine* engine = engine_of(container);
  ImportOptions inside = options;
  inside.here.clear();  // a relative path that is in no volume is one of the container
  ModelReader reader(draft, inside, engine, container.label, container.where);
  // Their images set PORT and LLAMA_ARG_HOST.
  if (engine == &kTgi && engine_of_image(container.image) == &kTgi) reader.use_port("80");
  if (engine == &kLlamaServer && engine_of_image(container.image) == &kLlamaServer) reader.use_host("");
  for (Mount& each : container.mounts)
    for (std::string* path : {&each.from, &each.to})
      while (path->size() > 1 && path->ends_with('/')) path->pop_back();
  for (auto& [option, rule] : container.keys) reader.take(std::move(option), rule);
  for (std::size_t i = 0; i < container.volume_options.size(); ++i)
    reader.say(std::move(container.volume_options[i]), Group::maps,
               volume_text(engine, container.mounts[i], options.in_container));
  for (std::size_t i = 0; i < container.port_options.size(); ++i)
    container.ports[i].entry = reader.say(std::move(container.port_options[i]), Group::maps,
                                          port_text(container.ports[i], options.in_container), "server.port");
  Variables variables;
  for (Option& each : container.environment) {
    if (!each.open) variables[each.name] = each.value;
    for (const std::vector<Word>* words : {&container.entrypoint, &container.arguments})
      for (const Word& word : *words) each.used = each.used || uses_variable(word.text, each.name);
    reader.take_variable(std::move(each));
  }
  std::vector<Word> words = std::move(container.entrypoint);
  words.insert(words.end(), container.arguments.begin(), container.arguments.end());
  if (auto script = shell_script(words, file, variables)) {
    if (!*script) return std::move(*script).error();
    for (const Command& command : **script) {
      for (const Word& each : command.assignments) {
        const std::size_t equals = each.text.find('=');
        reader.take_variable(
            {each.text.substr(0, equals), each.text.substr(equals + 1), place(file, each), each.open, false});
      }
      const Found found = find_engine(command.words);
      if (found.engine == engine) {
        read_wrapper(reader, command.words, found.program, file);
        read_arguments(reader, *engine, command.words, found.begin, file);
      } else if (!command.words.empty()) {
        say_unread(reader, command.words, file);
      }
    }
  } else {
    const Found found = find_engine(words);
    const std::size_t begin = found.engine == nullptr ? 0 : found.begin;
    read_wrapper(reader, words, found.program, file);
    read_arguments(reader, *engine, words, begin, file);
  }
  return reader.finish(container.mounts, container.ports);
}

void read_vllm_arguments(ModelReader& reader, const std::vector<Word>& words, const std::string& file) {
  read_arguments(reader, kVllm, words, 0, file);
}

PublishedPort parse_port(std::string_view text) {
  text = text.substr(0, text.rfind('/') == std::string_view::npos ? text.size() : text.rfind('/'));
  // A colon within ${PORT:-8000} is none.
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (c == ':' && depth == 0)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  PublishedPort port{"", "", parts.back(), {}};
  if (parts.size() > 1) port.from = parts[parts.size() - 2];
  for (std::size_t i = 0; i + 2 < parts.size(); ++i) port.address += (i == 0 ? "" : ":") + parts[i];
  if (port.address.starts_with('[') && port.address.ends_with(']'))
    port.address = port.address.substr(1, port.address.size() - 2);
  return port;
}

Mount parse_volume(std::string_view text) {
  Mount mount;
  if (text.find("target=") != std::string_view::npos || text.find("dst=") != std::string_view::npos) {  // --mount
    for (std::string_view rest = text; !rest.empty();) {
      const std::size_t comma = rest.find(',');
      const std::string_view part = rest.substr(0, comma);
      const std::string_view value = part.substr(part.find('=') + 1);
      if (part.starts_with("source=") || part.starts_with("src=")) mount.from = value;
      if (part.starts_with("target=") || part.starts_with("dst=") || part.starts_with("destination=")) mount.to = value;
      rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    }
    return mount;
  }
  const std::size_t colon = text.find(":/");
  if (colon == std::string_view::npos) return {"", std::string(text)};
  mount.from = text.substr(0, colon);
  mount.to = text.substr(colon + 1);
  mount.to.resize(std::min(mount.to.find(':'), mount.to.size()));
  return mount;
}

std::string volume_text(const Engine* engine, const Mount& mount, bool in_container) {
  const bool path = !mount.from.empty() && std::string_view("/.~$").find(mount.from[0]) != std::string_view::npos;
  const std::string& here = in_container || !path ? mount.to : mount.from;
  if (mount.to.find("huggingface") != std::string::npos) {
    const std::string same = "Python's cache of the Hub, which xgen-model shares";
    if (here == "~/.cache/huggingface" || here == "/root/.cache/huggingface") return same + ", at the same place.";
    return same + ": set HF_HOME=" + here + ".";
  }
  std::string text =
      in_container ? "The same mount, so that paths in models.yaml are those of the container."
      : path       ? "Paths below " + mount.to + " are those below " + mount.from + " on this machine."
                   : "A volume: mount it at " + mount.to + " as well, or put paths of this machine into models.yaml.";
  if (engine == &kTgi && mount.to == "/data")
    text += " TGI has the Hub's cache there, too: set HF_HUB_CACHE=" + here + " to use what it downloaded.";
  return text;
}

std::string port_text(const PublishedPort& port, bool in_container) {
  if (in_container && !port.from.empty() && port.from != port.to)
    return "Published the same; `server.port` is " + port.to + ", that of the container.";
  const std::string host =
      port.address.empty() || in_container ? "" : " `server.host` is " + port.address + ", which alone is listened on.";
  if (port.from.empty() || port.from == port.to) return "The same." + host;
  return "`server.port` is " + port.from + ", for a process on the machine itself; in a container it is " + port.to +
         " (--for container)." + host;
}

Status read_commands(Draft& draft, const ImportOptions& options, std::vector<Command> commands,
                     const std::string& file) {
  ImportOptions inside = options;
  inside.folder = options.here;  // what a command names is relative to where it is given
  std::optional<Error> faults;
  std::vector<Option> exported;  // for every engine after them
  std::size_t told = 0;          // how many of them are in the report
  bool found_one = false;
  const auto variables_of = [&](const Command& command) {
    std::vector<Option> out;
    for (const Word& each : command.assignments) {
      const std::size_t equals = each.text.find('=');
      out.push_back({each.text.substr(0, equals), each.text.substr(equals + 1), place(file, each), each.open, false});
    }
    return out;
  };
  const auto take_all = [&](ModelReader& reader, std::vector<Option> own) {
    for (std::size_t i = 0; i < exported.size(); ++i) reader.take_script_variable(exported[i], i >= told);
    told = exported.size();
    for (Option& each : own) reader.take_variable(std::move(each));
  };
  const auto engines = std::count_if(commands.begin(), commands.end(), [](const Command& each) {
    return find_engine(each.words).engine != nullptr || docker_run(each.words).first < each.words.size();
  });
  for (Command& command : commands) {
    std::vector<Word>& words = command.words;
    std::vector<Option> variables = variables_of(command);
    if (!words.empty() && words[0].text == "export") words.erase(words.begin());
    if (words.empty()) {
      exported.insert(exported.end(), variables.begin(), variables.end());
      continue;
    }
    const std::string label = engines < 2 ? "" : "command " + std::to_string(draft.models() + 1);
    const auto [docker, told_from] = docker_run(words);
    if (docker < words.size()) {
      auto container =
          read_docker_run({words.begin() + static_cast<std::ptrdiff_t>(docker), words.end()}, told_from - docker, file);
      if (!container) return std::move(container).error();
      if (engine_of(*container) != nullptr) {
        found_one = true;
        container->label = label;
        ModelReader around(draft, options, nullptr, label, "");
        take_all(around, std::move(variables));
        read_wrapper(around, words, docker, file);
        if (Status status = read_container(draft, inside, *std::move(container), file); !status)
          add_fault(faults, status.error());
        continue;
      }
    }
    const Found found = docker < words.size() ? Found() : find_engine(words);
    ModelReader reader(draft, options, found.engine, found.engine == nullptr ? "" : label, place(file, words[0]));
    if (found.engine == nullptr) {
      for (Option& each : variables) reader.take_variable(std::move(each));
      say_unread(reader, words, file);
      continue;
    }
    found_one = true;
    take_all(reader, std::move(variables));
    read_wrapper(reader, words, found.program, file);
    read_arguments(reader, *found.engine, words, found.begin, file);
    if (Status status = reader.finish({}, {}); !status) add_fault(faults, status.error());
  }
  ModelReader rest(draft, options, nullptr, "", "");
  take_all(rest, {});
  if (faults) return *std::move(faults);
  if (!found_one)
    return make_error(ErrorCode::invalid_argument,
                      file +
                          ": no command that is known here: expected `vllm serve MODEL`, `python -m "
                          "vllm.entrypoints.openai.api_server`, "
                          "`text-generation-launcher`, `llama-server`, or `docker run` of one of their images");
  return {};
}

}  // namespace xgen::importer
