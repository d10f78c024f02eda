#include "config/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <system_error>
#include <type_traits>
#include <utility>

#include "base/model_source.h"
#include "base/split_name.h"
#include "config/keys.h"

namespace xgen::config {
namespace {

namespace fs = std::filesystem;

// Calls use(key, section) for the key of a path such as "server.port"; false if there is none.
template <class C, class Use>
bool with_key(C& config, std::string_view path, Use use) {
  const std::size_t dot = path.find('.');
  bool found = false;
  each_section(config, [&](std::string_view name, const auto& keys, auto& section) {
    if (dot == std::string_view::npos || name != path.substr(0, dot)) return;
    for (const auto& key : keys) {
      if (key.name != path.substr(dot + 1)) continue;
      use(key, section);
      found = true;
    }
  });
  return found;
}

template <class S>
void append_reference(std::string& out, std::string_view title, std::string_view path,
                      const std::vector<Key<S>>& keys) {
  const S defaults{};
  out.append("\n## ").append(title).append("\n\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n");
  for (const Key<S>& key : keys) {
    std::string type = key.type;
    for (std::size_t at = 0; (at = type.find('|', at)) != std::string::npos; at += 2) type.insert(at, 1, '\\');
    out.append("| `").append(path).append(key.name).append("` | ").append(type).append(" | ").append(
        key.show(defaults));
    out.append(" | ").append(key.help).append(" |\n");
  }
}

// Lines "KEY: VALUE" by key; one that is not set is a comment.
template <class S>
void add_lines(std::map<std::string_view, std::string>& lines, const std::vector<Key<S>>& keys, const S& section) {
  for (const Key<S>& key : keys) {
    const std::string value = key.yaml ? key.yaml(section) : key.show(section);
    lines[key.name] =
        (value.empty() ? "# " : "") + std::string(key.name) + ": " + (value.empty() ? key.show(section) : value) + "\n";
  }
}

template <class S>
void append_yaml(std::string& out, std::string_view name, const std::vector<Key<S>>& keys, const S& section) {
  std::map<std::string_view, std::string> lines;
  add_lines(lines, keys, section);
  out.append(name).append(":\n");
  for (const auto& [key, line] : lines) out.append("  ").append(line);
}

void append_yaml(std::string& out, const Model& model) {
  std::map<std::string_view, std::string> lines;
  if (model.is_remote()) {
    add_lines(lines, remote_keys(), model.remote);
    for (const auto& [key, engine] : kOfOneEngine)
      if (model.settings.engine != engine) lines.erase(key);
    lines["engine"] = "engine: " + model.settings.engine + "\n";
  } else {
    add_lines(lines, settings_keys(), model.settings);
  }
  add_lines(lines, model_keys(), model);
  if (model.is_remote()) lines.erase("source");
  out.append("  - ").append(lines["name"]);
  lines.erase("name");
  for (const auto& [key, line] : lines) out.append("    ").append(line);
}

template <class S>
void append_names(std::vector<std::string>& out, const std::string& path, const std::vector<Key<S>>& keys) {
  for (const Key<S>& key : keys) out.push_back(path + std::string(key.name));
}

// A file (with its other parts, where it is one of a split .gguf), or the files of a folder, with what tells that
// they have changed.
void add_files(std::string& out, const fs::path& path) {
  std::error_code error;
  std::vector<fs::path> files;
  if (fs::is_directory(path, error)) {
    for (const auto& entry : fs::directory_iterator(path, error)) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
  } else {
    for (const std::string& name : all_parts(path.filename().string())) files.push_back(path.parent_path() / name);
  }
  for (const fs::path& file : files) {
    const auto size = fs::file_size(file, error);
    const auto time = fs::last_write_time(file, error).time_since_epoch().count();
    out += "\n" + file.string() + " " + std::to_string(size) + " " + std::to_string(time);
  }
}

}  // namespace

std::string fingerprint(const Model& model) {
  std::string out = model.source;
  if (model.is_remote()) {
    const Remote& remote = model.remote;
    out = remote.model + "\n" + remote.api_key_file + "\n" + remote.ca_file;
    for (const std::string& url : remote.urls) out += "\n" + url;
    for (const auto& [name, value] : remote.headers) out.append("\n").append(name).append(": ").append(value);
    for (const Key<Remote>& key : remote_keys()) out.append("\n").append(key.name).append("=").append(key.show(remote));
    if (!remote.tokenizer.empty()) add_files(out, remote.tokenizer);
    return out + "\n" + model.settings.engine;
  }
  for (const Key<ModelSettings>& key : settings_keys()) {
    if (key.name == "load" || key.name == "idle_unload" || key.name == "pin") continue;
    out.append("\n").append(key.name).append("=").append(key.show(model.settings));
  }
  if (model.source != kDemoSource && !is_remote_source(model.source)) add_files(out, model.source);
  return out;
}

std::string effective_yaml(const Config& config) {
  std::map<std::string_view, std::string> sections;
  each_section(config, [&](std::string_view name, const auto& keys, const auto& section) {
    append_yaml(sections[name], name, keys, section);
  });
  std::string& models = sections["models"] = "models:\n";
  for (const Model& model : config.models) append_yaml(models, model);
  std::string out;
  for (const auto& [name, text] : sections) out += text;
  return out;
}

Config demo_config() {
  Config config;
  Model model;
  model.name = kDemoName;
  model.source = kDemoSource;
  model.where = "built in";
  config.models.push_back(std::move(model));
  return config;
}

Result<Config> single_model_config(const std::string& source, const std::optional<std::string>& name) {
  Config config;
  Model model;
  model.source = source;
  model.where = "command line";
  if (source == kDemoSource) {
    model.name = kDemoName;
  } else if (is_remote_source(source)) {
    const auto remote = parse_remote_source(source);
    if (!remote) return remote.error();
    model.name = default_model_name(*remote);
  } else {
    std::error_code error;
    const fs::path absolute = fs::absolute(source, error).lexically_normal();
    const bool folder = fs::is_directory(absolute, error);
    if (!fs::exists(absolute, error))
      return make_error(ErrorCode::not_found, source + ": no such file or folder" + hub_hint(source));
    if (!folder && absolute.extension() != ".gguf") {
      return make_error(ErrorCode::invalid_argument, source + ": expected a model folder or a .gguf file");
    }
    model.source = absolute.string();
    const fs::path last = absolute.has_filename() ? absolute.filename() : absolute.parent_path().filename();
    model.name = folder ? last.string() : last.stem().string();
  }
  std::replace_if(
      model.name.begin(), model.name.end(), [](unsigned char c) { return c <= 0x20 || c == 0x7f; }, '-');
  if (name) model.name = *name;
  if (!is_name(model.name))
    return make_error(ErrorCode::invalid_argument,
                      "--name: expected " + std::string(kNameShape) + ", got '" + model.name.substr(0, 100) + "'");
  config.models.push_back(std::move(model));
  return config;
}

Status set(Config& config, std::string_view key, const std::string& value) {
  Fault fault;
  const bool known = with_key(config, key, [&](const auto& found, auto& section) {
    const YAML::Node node(value);
    fault = found.read(section, node);
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(section)>, ModelSettings>)
      for (Model& model : config.models)
        if (!fault) fault = found.read(model.settings, node);
  });
  if (!known) fault = "unknown key";
  if (fault) return make_error(ErrorCode::invalid_argument, *fault, std::string(key));
  config.places.erase(std::string(key));
  return {};
}

std::string Config::located(const std::string& message) const {
  const auto found = places.find(message.substr(0, message.find(": ")));
  return found == places.end() ? message : found->second + ": " + message;
}

std::string describe_key(std::string_view key) {
  std::string out;
  Config defaults;
  with_key(defaults, key,
           [&](const auto& found, const auto&) { out.append(found.help).append(" (").append(found.type).append(")"); });
  return out;
}

std::vector<std::string> key_names() {
  std::vector<std::string> out;
  const Config config;
  each_section(config, [&](std::string_view name, const auto& keys, const auto&) {
    append_names(out, std::string(name) + ".", keys);
  });
  append_names(out, "models[].", model_keys());
  append_names(out, "models[].", settings_keys());
  append_names(out, "models[].", remote_keys());
  return out;
}

std::string reference_markdown() {
  std::string out = R"(# models.yaml

<!-- Printed by `xgen-model docs configuration`; the text and the tables are in src/config. -->

The file is looked for in this order: `--config FILE`, the environment variable `MODEL_CONFIG_PATH`, `models.yaml` in the working
directory. Without any, or without a `models` key in it, the built-in model `xgen-demo` is served. `xgen-model serve SOURCE` serves one
model with no file at all. The same file serves a shell, systemd, Docker and Kubernetes; no environment variable but the one above is read
for settings, except for what the Hub's and AWS's own tools read of addresses, keys and folders ([model-sources.md](model-sources.md)).
Flags of the command line (`--host`, `--port`, …) win over the file.

Unknown keys, wrong types, repeated names and missing paths are errors that name file, line, column, key and what was expected; nothing
is started then, and the exit code is 2. `xgen-model check` checks a file and prints the memory plan; `xgen-model check --print-effective`
prints the whole configuration that is in force, flags and defaults included, as a models.yaml, and in a comment where the environment
has models of the Hub kept.

Model files are mapped, not copied: replace them by renaming new ones into place, never by writing into files that are being served.
A file that is cut short while it is served, or whose storage fails, fails its model alone: running requests end with 503, and the model
can be loaded again (`POST /admin/load`) once the file is whole. What is overwritten in place is not noticed.

The log goes to stderr. What `serve` prints once it is ready (the models, the address, a command to try) goes to stdout.

Sizes are written `512MiB`, `2GiB` (powers of 1024) or `2GB` (of 1000); a number alone is bytes. Durations are written `250ms`, `30s`,
`10m`, `2h`, `1d`; a number alone is seconds.

```yaml
server: {port: 8000, drain_delay: 5s}
memory: {host: 80%}
defaults: {max_num_seqs: 64}          # settings for all models
models:
  - name: qwen3-0.6b                  # what clients put into "model"
    aliases: [default]
    source: /models/Qwen3-0.6B        # a folder, or a .gguf file; relative to this file
    kv_cache: 2GiB
  - name: llama-70b                   # computed elsewhere
    engine: openai
    urls: [http://vllm-0:8000/v1]
    model: meta-llama/Llama-3.1-70B-Instruct
  - name: llama-1b                    # downloaded when it is not there yet
    source: hf://unsloth/Llama-3.2-1B-Instruct-GGUF/Llama-3.2-1B-Instruct-Q8_0.gguf
```
)";
  const Config config;
  each_section(config, [&](std::string_view name, const auto& keys, const auto&) {
    if (name != "defaults") append_reference(out, name, std::string(name) + ".", keys);
  });
  append_reference(out, "models", "models[].", model_keys());
  append_reference(out, "Settings of a model (under `models[]`, or for all models under `defaults`)", "",
                   settings_keys());
  append_reference(out, "A model that another engine serves", "", remote_keys());
  out +=
      "\nOf the settings above such a model takes `engine` alone, and it has no `source`. "
      "[remote-engines.md](remote-engines.md) explains it.\n";
  append_reference(out, "The file of API keys (`keys`, a list)", "keys[].", api_key_keys());
  out += "\n## Known, but not in this version\n\n";
  for (const auto& [name, why] : unsupported_keys())
    out.append("- `").append(name).append("`: ").append(why).append(".\n");
  return out;
}

}  // namespace xgen::config
