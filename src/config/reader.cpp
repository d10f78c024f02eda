// models.yaml and the file of API keys, read and checked: what config.h calls load_….

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/model_source.h"
#include "base/utf8.h"
#include "config/config.h"
#include "config/keys.h"

namespace xgen::config {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 20;
constexpr std::size_t kMaxModels = 256;
constexpr std::size_t kMaxFaults = 50;

class Reader {
 public:
  explicit Reader(std::string file) : file_(std::move(file)) {}

  Result<Config> read(std::string_view yaml) {
    config_.file = file_;
    if (Status status = parse(yaml, [this](const YAML::Node& root) { read_root(root); }); !status)
      return std::move(status).error();
    return std::move(config_);
  }

  // Of the section `server` alone where and how it is spoken to; nothing else need be right.
  Result<Server> read_address(std::string_view yaml) {
    Status status = parse(yaml, [this](const YAML::Node& root) {
      if (!root.IsMap()) return;
      const YAML::Node section = root["server"];
      if (!section || !section.IsMap()) return;
      for (const char* name :
           {"host", "port", "tls_cert_file", "tls_key_file", "tls_client_ca_file", "tls_client_auth"})
        if (const YAML::Node value = section[name]) read_key(server_keys(), config_.server, "server", name, value);
      for (std::string* file :
           {&config_.server.tls_cert_file, &config_.server.tls_key_file, &config_.server.tls_client_ca_file})
        make_absolute(*file);
    });
    if (!status) return std::move(status).error();
    return std::move(config_.server);
  }

  Result<std::vector<ApiKey>> read_keys(std::string_view yaml) {
    std::vector<ApiKey> keys;
    if (Status status = parse(yaml, [&](const YAML::Node& root) { read_api_keys(root, keys); }); !status)
      return std::move(status).error();
    return keys;
  }

 private:
  // Calls use(root) and reports the faults that it has found.
  template <class Use>
  Status parse(std::string_view yaml, Use use) {
    if (yaml.size() > kMaxFileBytes) {
      return make_error(ErrorCode::invalid_argument, file_ + ": larger than " + bytes_text(kMaxFileBytes));
    }
    if (!is_valid_utf8(yaml)) return make_error(ErrorCode::invalid_argument, file_ + ": not valid UTF-8");
    YAML::Node root;
    try {
      if (yaml.find('\0') != std::string_view::npos) {
        return make_error(ErrorCode::invalid_argument, file_ + ": holds a NUL byte; it is no text file");
      }
      const std::string text(yaml);
      if (has_more_than_a_document(text)) {
        return make_error(ErrorCode::invalid_argument,
                          file_ +
                              ": holds more than one document, or something that belongs to none; expected one "
                              "(nothing after a line ---)");
      }
      root = YAML::Load(text);
      use(root);
    } catch (const YAML::Exception& error) {
      syntax_fault(yaml, error);
    }
    if (faults_.empty()) return {};
    std::string all;
    for (std::size_t i = 0; i < faults_.size() && i < kMaxFaults; ++i) all += (i == 0 ? "" : "\n") + faults_[i];
    if (faults_.size() > kMaxFaults) all += "\n… and " + std::to_string(faults_.size() - kMaxFaults) + " more";
    return make_error(ErrorCode::invalid_argument, all);
  }

  // yaml-cpp stops before what cannot begin a document, such as a comma: LoadAll() would read on for ever there, and
  // Load() pass it over.
  static bool has_more_than_a_document(const std::string& text) {
    struct Ignore final : YAML::EventHandler {
      void OnDocumentStart(const YAML::Mark&) override {}
      void OnDocumentEnd() override {}
      void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
      void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
      void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
      void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
      void OnSequenceEnd() override {}
      void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
      void OnMapEnd() override {}
    } ignore;
    std::istringstream in(text);
    YAML::Parser parser(in);
    parser.HandleNextDocument(ignore);
    return static_cast<bool>(parser);
  }

  // The parser's own words, where they would not help, are put as what to do.
  void syntax_fault(std::string_view yaml, const YAML::Exception& error) {
    YAML::Mark mark = error.mark;
    if (const std::optional<int> tab = indenting_tab(yaml, mark)) {
      mark.column = *tab;
      return fault(mark, "", "a tab: YAML forbids tabs in indentation, use spaces");
    }
    const std::pair<std::string_view, std::string_view> words[] = {
        {YAML::ErrorMsg::MAP_VALUE, "a ':' where no key can be: check the indentation, or put the value into quotes"},
        {YAML::ErrorMsg::END_OF_MAP, "indented unlike the keys above"},
        {YAML::ErrorMsg::END_OF_SEQ, "indented unlike the list above"},
        {YAML::ErrorMsg::END_OF_MAP_FLOW, "a '{' or a quote before this is not closed"},
        {YAML::ErrorMsg::END_OF_SEQ_FLOW, "a '[' or a quote before this is not closed"},
        {YAML::ErrorMsg::BAD_FILE, "nested too deeply"},  // of text, nothing else is a bad file
    };
    for (const auto& [theirs, ours] : words)
      if (error.msg == theirs) return fault(mark, "", std::string(ours));
    fault(mark, "", error.msg);
  }

  // The column of a tab among the blanks and dashes that begin the marked line.
  static std::optional<int> indenting_tab(std::string_view yaml, const YAML::Mark& mark) {
    if (mark.is_null()) return {};
    std::size_t begin = 0;
    for (int line = 0; line < mark.line; ++line) {
      begin = yaml.find('\n', begin);
      if (begin == std::string_view::npos) return {};
      ++begin;
    }
    const std::string_view line = yaml.substr(begin);
    const std::size_t tab = line.substr(0, line.find_first_not_of(" \t-")).find('\t');
    if (tab == std::string_view::npos) return {};
    return static_cast<int>(tab);
  }

  std::string place(const YAML::Mark& mark) const {
    if (mark.is_null()) return file_;
    return file_ + ":" + std::to_string(mark.line + 1) + ":" + std::to_string(mark.column + 1);
  }

  void fault(const YAML::Mark& mark, const std::string& key, const std::string& what) {
    faults_.push_back(place(mark) + ": " + (key.empty() ? "" : key + ": ") + what);
  }

  // Calls visit(key, value node) for each entry of a mapping; repeated keys and non-text keys are faults.
  template <class Visit>
  void each_entry(const YAML::Node& map, const std::string& path, Visit visit) {
    if (!map.IsMap()) {
      if (!map.IsNull()) fault(map.Mark(), path, *expected("a mapping", map));
      return;
    }
    std::vector<std::string> seen;
    for (const auto& entry : map) {
      if (!entry.first.IsScalar()) {
        fault(entry.first.Mark(), path, "expected a key");
        continue;
      }
      const std::string& key = entry.first.Scalar();
      if (std::find(seen.begin(), seen.end(), key) != seen.end()) {
        fault(entry.first.Mark(), holds_secrets_ ? path : join(path, key), "given twice");
        continue;
      }
      seen.push_back(key);
      visit(key, entry.first, entry.second);
    }
  }

  static std::string join(const std::string& path, const std::string& key) {
    return path.empty() ? key : path + "." + key;
  }

  // The path with list indexes removed: "models[3].pin" -> "models[].pin".
  static std::string generic(const std::string& path) {
    std::string out;
    bool inside = false;
    for (const char c : path) {
      if (c == ']') inside = false;
      if (!inside) out += c;
      if (c == '[') inside = true;
    }
    return out;
  }

  template <class S>
  bool read_key(const std::vector<Key<S>>& keys, S& section, const std::string& path, const std::string& name,
                const YAML::Node& node) {
    for (const Key<S>& key : keys) {
      if (key.name != name) continue;
      if (Fault what = key.read(section, node))
        fault(node.Mark(), join(path, name), *what);
      else if (key.read_entry)
        read_entries(key, section, join(path, name), node);
      return true;
    }
    return false;
  }

  template <class S>
  void read_entries(const Key<S>& key, S& section, const std::string& path, const YAML::Node& node) {
    std::size_t i = 0;
    for (const auto& entry : node) {
      const std::string place = node.IsMap() ? path : path + "[" + std::to_string(i++) + "]";
      const YAML::Node& at = node.IsMap() ? entry.first : entry;
      if (Fault what = key.read_entry(section, entry.first, node.IsMap() ? entry.second : entry))
        fault(at.Mark(), place, *what);
    }
  }

  template <class... S>
  void unknown(const YAML::Node& at, const std::string& path, const std::string& name,
               const std::vector<Key<S>>&... tables) {
    const std::string full = join(path, name);
    std::string wanted = generic(full);
    if (wanted.starts_with("defaults.")) wanted = "models[]" + wanted.substr(8);
    if (const auto it = unsupported_keys().find(wanted); it != unsupported_keys().end()) {
      fault(at.Mark(), full, std::string(it->second));
      return;
    }
    std::string known;
    const auto list = [&](const auto& table) {
      for (const auto& key : table) known.append(known.empty() ? "" : ", ").append(key.name);
    };
    (list(tables), ...);
    fault(at.Mark(), holds_secrets_ ? path : full, "unknown key; expected one of: " + known);
  }

  template <class S>
  void read_section(const std::vector<Key<S>>& keys, S& section, const std::string& path, const YAML::Node& map) {
    each_entry(map, path, [&](const std::string& name, const YAML::Node& at, const YAML::Node& value) {
      if (!read_key(keys, section, path, name, value)) return unknown(at, path, name, keys);
      config_.places[join(path, name)] = place(value.Mark());
    });
  }

  // What stands where something else should may be a key: it is not repeated. An empty list lets nobody in.
  void read_api_keys(const YAML::Node& root, std::vector<ApiKey>& keys) {
    if (!root.IsMap()) return fault(root.Mark(), "", "expected a mapping with keys, a list of {name: …, sha256: …}");
    holds_secrets_ = true;
    YAML::Node list;
    each_entry(root, "", [&](const std::string& name, const YAML::Node& at, const YAML::Node& value) {
      if (name == "keys")
        list.reset(value);
      else
        fault(at.Mark(), "", "unknown key; expected: keys");
    });
    if (!list.IsSequence() || list.size() > kMaxApiKeys)
      return fault(list.Mark(), "keys",
                   "expected a list of at most " + std::to_string(kMaxApiKeys) + " {name: …, sha256: …}");
    std::map<std::string, std::string> names;
    std::map<std::array<std::uint8_t, 32>, std::string> digests;
    for (std::size_t i = 0; i < list.size(); ++i) {
      const YAML::Node& node = list[i];
      const std::string path = "keys[" + std::to_string(i) + "]";
      if (!node.IsMap()) {
        fault(node.Mark(), path, "expected a mapping with name and sha256");
        continue;
      }
      const std::size_t before = faults_.size();
      ApiKey key;
      read_section(api_key_keys(), key, path, node);
      for (const char* required : {"name", "sha256"})
        if (!node[required]) fault(node.Mark(), path + "." + required, "missing");
      if (faults_.size() > before) continue;
      const std::string place = file_ + ":" + std::to_string(node.Mark().line + 1);
      if (const auto [old, fresh] = names.emplace(key.name, place); !fresh)
        fault(node.Mark(), path + ".name", "'" + key.name + "' is already used at " + old->second);
      if (const auto [old, fresh] = digests.emplace(key.sha256, place); !fresh)
        fault(node.Mark(), path + ".sha256", "the same key as at " + old->second);
      keys.push_back(std::move(key));
    }
  }

  void read_root(const YAML::Node& root) {
    YAML::Node models;
    bool has_models = false;
    each_entry(root, "", [&](const std::string& name, const YAML::Node& at, const YAML::Node& value) {
      if (name == "models") {
        models.reset(value);
        has_models = true;
        return;
      }
      bool known = false;
      std::string sections;
      each_section(config_, [&](std::string_view each, const auto& keys, auto& section) {
        sections.append(each).append(", ");
        if (each != name) return;
        read_section(keys, section, name, value);
        known = true;
      });
      if (!known) fault(at.Mark(), name, "unknown key; expected one of: " + sections + "models");
    });
    // "~" and "$NAME" are the user's, and not resolved here.
    std::string& cache = config_.sources.cache;
    if (!cache.empty() && cache.find_first_of("/~$") != 0) cache = (fs::path(file_).parent_path() / cache).string();
    for (std::string* file :
         {&config_.server.api_keys_file, &config_.server.tls_cert_file, &config_.server.tls_key_file,
          &config_.server.tls_client_ca_file, &config_.tracing.ca_file})
      make_absolute(*file);
    const Server& server = config_.server;
    if (server.operators == "gateway" && server.trusted_proxies.empty())
      fault(root["server"]["operators"].Mark(), "server.operators",
            "gateway needs server.trusted_proxies, the addresses of the gateway: x-user-admin counts only from there");
    if (server.admin_port && *server.admin_port != 0 && *server.admin_port == server.port)
      fault(root["server"]["admin_port"].Mark(), "server.admin_port", "the same as server.port");
    if (!has_models) {
      config_.models = demo_config().models;
      config_.models.front().settings = config_.defaults;
      config_.models.front().where = file_;
      config_.lists_models = false;
      return;
    }
    if (!models.IsSequence() || models.size() == 0) {
      fault(models.Mark(), "models",
            *expected("a list of at least one model, each {name: …, source: …}", models) +
                "; without the key the built-in demo model is served");
      return;
    }
    if (models.size() > kMaxModels) {
      fault(models.Mark(), "models", "at most " + std::to_string(kMaxModels) + " models");
      return;
    }
    for (std::size_t i = 0; i < models.size(); ++i) read_model(models[i], "models[" + std::to_string(i) + "]");
    check_names(models);
    check_fallbacks(models);
  }

  void read_model(const YAML::Node& node, const std::string& path) {
    Model model;
    model.settings = config_.defaults;
    model.where = file_ + ":" + std::to_string(node.Mark().line + 1);
    if (!node.IsMap()) {
      fault(node.Mark(), path, *expected("a mapping with name and source", node));
      return;
    }
    std::vector<std::string> native_keys;
    std::vector<std::string> remote_only;
    bool engine_known = true;
    each_entry(node, path, [&](const std::string& name, const YAML::Node& at, const YAML::Node& value) {
      const std::size_t before = faults_.size();
      if (read_key(model_keys(), model, path, name, value)) {
        if (name == "source") native_keys.push_back(name);
      } else if (read_key(settings_keys(), model.settings, path, name, value)) {
        if (name != "engine")
          native_keys.push_back(name);
        else
          engine_known = faults_.size() == before;
      } else if (read_key(remote_keys(), model.remote, path, name, value)) {
        remote_only.push_back(name);
      } else {
        unknown(at, path, name, model_keys(), settings_keys(), remote_keys());
      }
    });
    if (!node["name"]) fault(node.Mark(), path + ".name", "missing; every model needs a name");
    if (!engine_known) {  // so nobody knows what belongs to it
      config_.models.push_back(std::move(model));
      return;
    }
    for (const std::string& name : model.is_remote() ? native_keys : remote_only)
      fault(node[name].Mark(), std::string(path).append(".").append(name),
            model.is_remote() ? "belongs to models of engine native; this one is computed elsewhere"
                              : "belongs to models that another engine serves; this one's engine is native");
    if (model.is_remote()) {
      for (const auto& [name, engine] : kOfOneEngine)
        if (node[std::string(name)] && model.settings.engine != engine)
          fault(
              node[std::string(name)].Mark(), path + "." + std::string(name),
              "belongs to models of engine " + std::string(engine) + "; this one's engine is " + model.settings.engine);
      if (!model.remote.tokenizer.empty())
        if (Fault what = resolve_tokenizer(model.remote.tokenizer))
          fault(node["tokenizer"].Mark(), path + ".tokenizer", *what);
      if (model.settings.engine == "triton" && !node["tokenizer"])
        fault(node.Mark(), path + ".tokenizer",
              "missing; engine triton takes only text, so the model's tokenizer and chat template are needed here");
      if (!node["urls"]) fault(node.Mark(), path + ".urls", "missing; where does the engine answer?");
      const std::pair<const char*, std::string*> files[] = {{"api_key_file", &model.remote.api_key_file},
                                                            {"ca_file", &model.remote.ca_file}};
      for (const auto& [name, file] : files) {
        make_absolute(*file);
        if (file->empty()) continue;
        std::error_code error;
        if (!fs::exists(*file, error))
          fault(node[name].Mark(), path + "." + name, "'" + *file + "': " + (error ? error.message() : "no such file"));
        else if (fs::is_directory(*file, error))
          fault(node[name].Mark(), path + "." + name, "'" + *file + "': a folder; expected a file");
      }
      for (const auto& [name, value] : model.remote.headers)
        if (!model.remote.api_key_file.empty() && lower_case(name) == "authorization")
          fault(node["headers"].Mark(), path + ".headers",
                "'" + name + "' is what api_key_file is for; give one of them");
    } else if (!node["source"]) {
      fault(node.Mark(), path + ".source", "missing; expected a folder, a .gguf file, hf://… or s3://…");
    } else if (!model.source.empty()) {
      if (Fault what = resolve(model.source)) fault(node["source"].Mark(), path + ".source", *what);
    }
    config_.models.push_back(std::move(model));
  }

  // Paths are relative to the file's folder.
  void make_absolute(std::string& name) const {
    if (name.empty()) return;
    fs::path path(name);
    if (path.is_relative()) path = fs::path(file_).parent_path() / path;
    std::error_code error;
    name = fs::absolute(path, error).lexically_normal().string();
  }

  // Makes a tokenizer's path absolute and checks that it is there. What lies beside a tokenizer.json belongs to it.
  Fault resolve_tokenizer(std::string& name) const {
    make_absolute(name);
    const fs::path path(name);
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (error || !fs::exists(status)) return "'" + name + "': " + (error ? error.message() : "no such file or folder");
    if (fs::is_directory(status) || path.extension() == ".gguf") return {};
    if (path.filename() != "tokenizer.json") return "'" + name + "': expected a folder, tokenizer.json or a .gguf file";
    name = path.parent_path().string();
    return {};
  }

  // Makes a source absolute and checks that it is there.
  Fault resolve(std::string& source) {
    if (source == kDemoSource) return {};
    if (is_remote_source(source)) {
      const auto remote = parse_remote_source(source);
      return remote ? Fault() : remote.error().message;
    }
    fs::path path(source);
    if (path.is_relative()) path = fs::path(file_).parent_path() / path;
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (status.type() == fs::file_type::not_found)
      return "'" + path.lexically_normal().string() + "': no such file or folder" + hub_hint(source);
    if (error) return "'" + path.lexically_normal().string() + "': " + error.message();
    if (!fs::is_directory(status) && path.extension() != ".gguf") {
      return "'" + source + "': expected a folder or a .gguf file";
    }
    source = fs::absolute(path, error).lexically_normal().string();
    return {};
  }

  void check_names(const YAML::Node& models) {
    std::map<std::string, std::string> seen;
    for (std::size_t i = 0; i < config_.models.size() && config_.models.size() == models.size(); ++i) {
      std::vector<std::string> names = config_.models[i].aliases;
      names.insert(names.begin(), config_.models[i].name);
      for (const std::string& name : names) {
        if (name.empty()) continue;
        const auto [it, fresh] = seen.emplace(name, config_.models[i].where);
        if (!fresh)
          fault(models[i].Mark(), "models[" + std::to_string(i) + "]",
                "the name '" + name + "' is already used at " + it->second);
      }
    }
  }

  // Puts the models' names where aliases were written.
  void check_fallbacks(const YAML::Node& models) {
    if (config_.models.size() != models.size()) return;  // some could not be read
    std::map<std::string, std::size_t> places;
    for (std::size_t i = 0; i < config_.models.size(); ++i) {
      places.emplace(config_.models[i].name, i);
      for (const std::string& alias : config_.models[i].aliases) places.emplace(alias, i);
    }
    std::vector<std::vector<std::size_t>> ways(config_.models.size());
    for (std::size_t i = 0; i < config_.models.size(); ++i) {
      std::vector<std::string>& fallbacks = config_.models[i].fallbacks;
      if (!fallbacks.empty() && fallbacks.size() != models[i]["fallbacks"].size()) continue;  // some could not be read
      for (std::size_t k = 0; k < fallbacks.size(); ++k) {
        const auto refuse = [&](const std::string& why) {
          fault(models[i]["fallbacks"][k].Mark(),
                "models[" + std::to_string(i) + "].fallbacks[" + std::to_string(k) + "]",
                "'" + fallbacks[k] + "' " + why);
        };
        const auto found = places.find(fallbacks[k]);
        if (found == places.end()) {
          refuse("is no model of this list");
        } else if (found->second == i) {
          refuse("is this model itself");
        } else if (std::find(ways[i].begin(), ways[i].end(), found->second) != ways[i].end()) {
          refuse("is listed twice");
        } else {
          ways[i].push_back(found->second);
          fallbacks[k] = config_.models[found->second].name;
        }
      }
    }
    for (std::size_t i = 0; i < ways.size(); ++i) {
      std::vector<bool> seen(ways.size());
      std::string text;
      if (leads_back(ways, i, i, seen, text))
        fault(models[i]["fallbacks"].Mark(), "models[" + std::to_string(i) + "].fallbacks",
              "they lead back to the model: " + config_.models[i].name + text);
    }
  }

  // Whether one comes from `at` to `start` through models that stand after `start`, so that every circle is found once;
  // `text` is the way then.
  bool leads_back(const std::vector<std::vector<std::size_t>>& ways, std::size_t at, std::size_t start,
                  std::vector<bool>& seen, std::string& text) const {
    for (const std::size_t next : ways[at]) {
      if (next < start || seen[next]) continue;
      seen[next] = true;
      if (next != start && !leads_back(ways, next, start, seen, text)) continue;
      text.insert(0, " -> " + config_.models[next].name);
      return true;
    }
    return false;
  }

  std::string file_;
  bool holds_secrets_ = false;  // names are not repeated in messages
  Config config_;
  std::vector<std::string> faults_;
};

template <class T>
Result<T> read_file(const std::string& path, Result<T> (*read)(std::string_view text, const std::string& file)) {
  const auto damage = std::make_shared<FileDamage>();
  auto bytes = map_file(path, damage);
  if (!bytes) return std::move(bytes).error();
  auto read_one = read(bytes->text(), path);
  // An editor that rewrites it in place may have cut it short meanwhile.
  if (Status whole = damage->status(); !whole) return std::move(whole).error();
  return read_one;
}

}  // namespace

Result<Config> load_text(std::string_view text, const std::string& file) { return Reader(file).read(text); }

Result<Config> load_file(const std::string& path) { return read_file<Config>(path, load_text); }

Result<Server> load_address_text(std::string_view text, const std::string& file) {
  return Reader(file).read_address(text);
}

Result<Server> load_address(const std::string& path) { return read_file<Server>(path, load_address_text); }

Result<std::vector<ApiKey>> load_keys_text(std::string_view text, const std::string& file) {
  return Reader(file).read_keys(text);
}

Result<std::vector<ApiKey>> load_keys(const std::string& path) {
  return read_file<std::vector<ApiKey>>(path, load_keys_text);
}

}  // namespace xgen::config
