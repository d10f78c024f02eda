#include "import/import.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <set>

#include "base/utf8.h"
#include "import/commands.h"
#include "import/documents.h"
#include "import/draft.h"

namespace xgen::importer {
namespace {

constexpr std::size_t kMaxBytes = std::size_t{1} << 20;

// Whether the first line that says something can only be YAML: "key:", "- ", "---", "{".
bool looks_like_yaml(std::string_view text) {
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.ends_with('\r')) line.remove_suffix(1);
    const std::size_t first = line.find_first_not_of(" \t");
    if (first == std::string_view::npos || line[first] == '#') continue;
    line.remove_prefix(first);
    if (line.starts_with("---") || line.starts_with("- ") || line[0] == '{' || line[0] == '[' || line[0] == '%')
      return true;
    const std::size_t colon = line.find(':');
    return colon != std::string_view::npos && colon > 0 && (colon + 1 == line.size() || line[colon + 1] == ' ') &&
           line.substr(0, colon).find_first_of(" \t=$") == std::string_view::npos;
  }
  return false;
}

Status read_document(Draft& draft, const ImportOptions& options, const Document& document) {
  const YAML::Node& root = document.root;
  const auto has = [&](const char* key) { return find(root, key).IsDefined(); };
  if (has("apiVersion") && has("kind")) return read_manifest(draft, options, document, root);
  if (has("services")) return read_compose(draft, options, document);
  if (has("applications") || has("import_path")) return read_serve(draft, options, document, "");
  if (has("llm_configs")) {
    std::optional<Error> faults;
    for (const YAML::Node& each : items_of(find(root, "llm_configs")))
      if (Status status =
              read_llm_config(draft, options, document, each, text_of(find(each, "model_loading_config.model_id")));
          !status)
        add_fault(faults, status.error());
    if (faults) return *std::move(faults);
    return {};
  }
  if (has("model_loading_config")) return read_llm_config(draft, options, document, root, "");
  if (has("model")) return read_vllm_config(draft, options, document);
  const std::string place = document.place(root);
  if (has("servingEngineSpec"))
    return make_error(ErrorCode::invalid_argument, place +
                                                       ": values of vLLM's Helm chart: import what the chart makes of "
                                                       "them, `helm template … | xgen-model import -`");
  if (has("models") && find(root, "models").IsSequence())
    return make_error(ErrorCode::invalid_argument, place + ": this is a models.yaml already");
  return make_error(ErrorCode::invalid_argument, place +
                                                     ": not an input that is known here: expected Docker Compose "
                                                     "(services), Kubernetes (apiVersion, kind), Ray Serve "
                                                     "(applications, llm_configs) or vLLM's --config (model)");
}

}  // namespace

Result<Imported> import_text(std::string_view text, const std::string& file, const ImportOptions& options) {
  if (text.size() > kMaxBytes) return make_error(ErrorCode::invalid_argument, file + ": larger than 1 MiB");
  if (!is_valid_utf8(text) || text.find('\0') != std::string_view::npos)
    return make_error(ErrorCode::invalid_argument, file + ": no text in UTF-8");
  Draft draft(file);
  if (looks_like_yaml(text)) {
    auto documents = read_documents(text, file);
    if (!documents) return std::move(documents).error();
    std::optional<Error> faults;
    for (const Document& each : *documents) {
      try {
        if (Status status = read_document(draft, options, each); !status) add_fault(faults, status.error());
      } catch (const YAML::Exception& error) {
        add_fault(faults, make_error(ErrorCode::invalid_argument, each.place(error.mark) + ": " + error.msg));
      }
    }
    if (faults) return *std::move(faults);
    if (draft.models() == 0)
      return make_error(ErrorCode::invalid_argument,
                        file + ": nothing in it runs vLLM, TGI or llama-server, by its image or command");
    return draft.finish();
  }
  auto commands = split_script(text, file, 1);
  if (!commands) return std::move(commands).error();
  if (Status status = read_commands(draft, options, *std::move(commands), file); !status)
    return std::move(status).error();
  return draft.finish();
}

Result<Imported> import_words(const std::vector<std::string>& words, const ImportOptions& options) {
  const std::string name = "the command line";
  // One word is a line that was quoted as a whole.
  if (words.size() == 1) return import_text(words[0], name, options);
  Command command;
  for (const std::string& each : words) {
    if (!is_valid_utf8(each)) return make_error(ErrorCode::invalid_argument, name + ": no text in UTF-8");
    const bool assignment = command.words.empty() && is_assignment(each);
    (assignment ? command.assignments : command.words).push_back({each, 0, each.find('$') != std::string::npos, false});
  }
  Draft draft(name);
  if (Status status = read_commands(draft, options, {std::move(command)}, name); !status)
    return std::move(status).error();
  return draft.finish();
}

namespace {

struct Page {
  std::string_view title;
  Rules rules;
};

const std::vector<Page>& pages() {
  static const std::vector<Page> all = {
      {"vLLM", kVllm.rules},
      {"text-generation-inference", kTgi.rules},
      {"llama-server", kLlamaServer.rules},
      {"Environment variables of all", environment_rules()},
      {"Docker Compose: a service", compose_rules()},
      {"docker run", docker_run_rules()},
      {"Kubernetes: a workload", workload_rules()},
      {"Kubernetes: a pod", pod_rules()},
      {"Kubernetes: a container", container_rules()},
      {"Ray Serve", serve_rules()},
      {"Ray Serve: an application", application_rules()},
      {"Ray Serve: a deployment", deployment_rules()},
      {"Ray Serve LLM: an entry of llm_configs (its engine_kwargs are vLLM's flags)", llm_config_rules()},
      {"Ray Serve: variables and args of applications of one's own", ray_env_rules()},
  };
  return all;
}

}  // namespace

std::vector<std::string> written_keys() {
  std::set<std::string> keys = {"models[].name",          "models[].aliases",      "models[].source",
                                "models[].max_model_len", "models[].max_num_seqs", "models[].load",
                                "server.api_keys_file",   "server.port",           "server.host"};
  for (const Page& page : pages())
    for (const Rule& rule : page.rules)
      if (!rule.key.empty()) keys.emplace(rule.key);
  return {keys.begin(), keys.end()};
}

std::string reference_markdown() {
  std::string out = R"(# What `xgen-model import` knows

<!-- Printed by `xgen-model docs import`; the tables are in src/import/. -->

Each option of an input is in one of three groups: it **maps** to a key, it **changes** its meaning, or it has **no** counterpart. A name
that ends in `*` stands for all that begin so. How to use it: [migration.md](migration.md).
)";
  for (const Page& page : pages()) {
    out.append("\n## ").append(page.title).append("\n\n| option | | models.yaml | |\n| --- | --- | --- | --- |\n");
    for (const Rule& rule : page.rules) {
      if (rule.text.empty()) continue;  // its parts are options of their own
      std::string names = "`";
      for (const char c : rule.names) names += c == ' ' ? std::string("` `") : std::string(1, c);
      const std::string_view group = rule.group == Group::maps      ? "maps"
                                     : rule.group == Group::changes ? "changes"
                                                                    : "no";
      std::string_view key = rule.key;
      if (key.starts_with("models[].")) key.remove_prefix(9);
      out.append("| ").append(names).append("` | ").append(group).append(" | ");
      out.append(key.empty() || rule.effect == Effect::quantization ? "" : "`" + std::string(key) + "`")
          .append(" | ")
          .append(rule.text)
          .append(" |\n");
    }
  }
  return out;
}

}  // namespace xgen::importer
