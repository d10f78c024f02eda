// The key table: every key of models.yaml and of the file of API keys, with how it is written, read, shown and
// explained. For this room alone.
#pragma once

#include <yaml-cpp/yaml.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/config.h"

namespace xgen::config {

// What was expected instead, or nothing if the value was read.
using Fault = std::optional<std::string>;

// One key of section S.
template <class S>
struct Key {
  std::string_view name;
  std::string type;
  std::string_view help;
  std::function<Fault(S&, const YAML::Node&)> read;
  std::function<std::string(const S&)> show;  // the default in the reference
  // Of a list or a mapping, which `read` has only looked at as a whole: reads one entry (a list's has no key), so that
  // the fault of each is told.
  std::function<Fault(S&, const YAML::Node& key, const YAML::Node& value)> read_entry = {};
  // The value as a file holds it, where that is not what `show` says; empty if none is set.
  std::function<std::string(const S&)> yaml = {};
};

const std::vector<Key<Server>>& server_keys();
const std::vector<Key<Log>>& log_keys();
const std::vector<Key<Memory>>& memory_keys();
const std::vector<Key<Compute>>& compute_keys();
const std::vector<Key<Sources>>& sources_keys();
const std::vector<Key<Tracing>>& tracing_keys();
const std::vector<Key<ModelSettings>>& settings_keys();  // under `defaults` and of each model
const std::vector<Key<Model>>& model_keys();
const std::vector<Key<Remote>>& remote_keys();  // of a model that another engine serves
const std::vector<Key<ApiKey>>& api_key_keys();

// Calls use(name, keys, section) for every section of the file; `config` may be const.
template <class C, class Use>
void each_section(C& config, Use use) {
  use("server", server_keys(), config.server);
  use("log", log_keys(), config.log);
  use("memory", memory_keys(), config.memory);
  use("compute", compute_keys(), config.compute);
  use("sources", sources_keys(), config.sources);
  use("tracing", tracing_keys(), config.tracing);
  use("defaults", settings_keys(), config.defaults);
}

// Keys that models of one engine alone have: key and engine.
inline constexpr std::pair<std::string_view, std::string_view> kOfOneEngine[] = {{"dialect", "openai"},
                                                                                 {"tokenizer", "triton"}};

// Keys of the design that this version does not offer: refused by name with the reason, not as a spelling mistake.
const std::map<std::string_view, std::string_view>& unsupported_keys();

inline constexpr std::size_t kMaxApiKeys = 10'000;
inline constexpr std::string_view kNameShape = "a name of 1 to 200 characters without spaces";
bool is_name(std::string_view text);

// "expected WHAT, got …" of what stands there.
Fault expected(std::string what, const YAML::Node& node);
std::string bytes_text(std::uint64_t value);
// Text as YAML reads it back.
std::string in_quotes(std::string_view text);
std::string lower_case(std::string text);

}  // namespace xgen::config
