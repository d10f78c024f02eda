// YAML inputs: Docker Compose, Kubernetes, Ray Serve, and vLLM's own --config.
#pragma once

#include <string>

#include "import/draft.h"
#include "import/yaml.h"

namespace xgen::importer {

// Each adds the models that it finds to the draft. Errors: invalid_argument with file and line.
Status read_compose(Draft& draft, const ImportOptions& options, const Document& document);
// One manifest.
Status read_manifest(Draft& draft, const ImportOptions& options, const Document& document, const YAML::Node& manifest);
// A Serve config; `label` begins the labels of its parts.
Status read_serve(Draft& draft, const ImportOptions& options, const Document& document, const std::string& label);
// One entry of llm_configs, or such a file.
Status read_llm_config(Draft& draft, const ImportOptions& options, const Document& document, const YAML::Node& config,
                       const std::string& label);
// A file of vLLM's flags.
Status read_vllm_config(Draft& draft, const ImportOptions& options, const Document& document);
// Calls visit(option, rule, node) for every key below `map`: as deep as a rule names it, or to its values.
template <class Visit>
void walk(const Document& document, const YAML::Node& map, Rules rules, Visit visit, const std::string& path = {});

// Whether a rule names something below this path.
bool has_rule_below(Rules rules, std::string_view path);

template <class Visit>
void walk(const Document& document, const YAML::Node& map, Rules rules, Visit visit, const std::string& path) {
  for (const KeyValue& each : entries_of(map)) {
    const std::string name = path.empty() ? each.key : path + "." + each.key;
    const Rule* rule = find_rule(rules, name);
    const bool filled = each.value.IsMap() && each.value.size() > 0;
    if (filled && (rule == nullptr || has_rule_below(rules, name)))
      walk(document, each.value, rules, visit, name);
    else
      visit(Option{name, text_of(each.value), document.place(each.at), false, false}, rule, each.value);
  }
}

}  // namespace xgen::importer
