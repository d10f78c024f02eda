#include <algorithm>
#include <cctype>
#include <optional>

#include "import/commands.h"
#include "import/documents.h"

namespace xgen::importer {
namespace {

// A key of engine_kwargs or of a vLLM config, as the flag that it is.
void take_kwarg(ModelReader& reader, const Document& document, const KeyValue& each, const std::string& path,
                bool application) {
  std::string flag = each.key;
  std::replace(flag.begin(), flag.end(), '_', '-');
  Option option{path + each.key, text_of(each.value), document.place(each.at), false, false};
  const Rule* rule = find_rule(kVllm.rules, "--" + flag);
  if (rule == nullptr && flag.starts_with("no-")) {
    rule = find_rule(kVllm.rules, "--" + flag.substr(3));
    option.off = rule != nullptr;
  }
  if (rule == nullptr && application) {
    std::string upper = each.key;
    std::transform(upper.begin(), upper.end(), upper.begin(),
                   [](unsigned char c) { return c == '-' ? '_' : std::toupper(c); });
    rule = find_rule(ray_env_rules(), upper);
  }
  if (rule == nullptr && application && each.value.IsMap() && each.value.size() > 0) {
    for (const KeyValue& inner : entries_of(each.value))
      take_kwarg(reader, document, inner, path + each.key + ".", application);
    return;
  }
  reader.take(std::move(option), rule);
}

// Of another shape than its place wants: said instead of passed over.
void say_shape(ModelReader& reader, const Document& document, const YAML::Node& node, const std::string& name) {
  if (node.IsDefined() && !node.IsNull())
    reader.say({name, text_of(node), document.place(node)}, Group::unknown, "Not a mapping: nothing was read of it.");
}

void take_variables(ModelReader& reader, const Document& document, const YAML::Node& node, Rules more) {
  if (!node.IsMap()) say_shape(reader, document, node, "env_vars");
  for (const KeyValue& each : entries_of(node))
    reader.take_variable({each.key, text_of(each.value), document.place(each.at)}, more);
}

// One deployment of an application, or what Ray Serve LLM has of it.
void take_deployment(ModelReader& reader, const Document& document, const YAML::Node& node, const std::string& path) {
  if (!node.IsMap()) say_shape(reader, document, node, path.substr(0, path.size() - 1));
  walk(document, node, deployment_rules(), [&](Option option, const Rule* rule, const YAML::Node& value) {
    option.name = path + option.name;
    if (rule != nullptr && rule->effect == Effect::environment)
      return take_variables(reader, document, value, ray_env_rules());
    if (rule == nullptr && option.name.substr(path.size()).starts_with("user_config.")) {
      const std::size_t dot = option.name.rfind('.');
      return take_kwarg(reader, document, {option.name.substr(dot + 1), value, value}, option.name.substr(0, dot + 1),
                        true);
    }
    reader.take(std::move(option), rule);
  });
}

// An application of one's own code: its model may be in args, user_config or the environment.
Status read_application(Draft& draft, const ImportOptions& options, const Document& document, const YAML::Node& node,
                        const std::string& label) {
  ModelReader reader(draft, options, &kVllm, label, document.place(node));
  walk(document, node, application_rules(), [&](Option option, const Rule* rule, const YAML::Node& value) {
    if (rule != nullptr && rule->effect == Effect::environment)
      return take_variables(reader, document, value, ray_env_rules());
    if (option.name == "args" || option.name.starts_with("args.") || option.name == "deployments") return;
    reader.take(std::move(option), rule);
  });
  const YAML::Node args = find(node, "args");
  for (const KeyValue& each : entries_of(args)) take_kwarg(reader, document, each, "args.", true);
  if (!args.IsMap()) {
    std::vector<Word> words;
    for (const YAML::Node& each : items_of(args))
      words.push_back({text_of(each), document.first_line + each.Mark().line + 1});
    read_vllm_arguments(reader, words, document.file);
  }
  for (const YAML::Node& each : items_of(find(node, "deployments")))
    take_deployment(reader, document, each, "deployments.");
  Status status = reader.finish({}, {});
  if (!status)
    return make_error(ErrorCode::invalid_argument,
                      status.error().message + "; it may be in the code that import_path names (" +
                          text_of(find(node, "import_path")) + "): import the vLLM options that it uses");
  return status;
}

}  // namespace

Status read_llm_config(Draft& draft, const ImportOptions& options, const Document& document, const YAML::Node& config,
                       const std::string& label) {
  ModelReader reader(draft, options, &kVllm, label, document.place(config));
  walk(document, config, llm_config_rules(), [&](Option option, const Rule* rule, const YAML::Node& value) {
    if (rule != nullptr && rule->effect == Effect::environment) return take_variables(reader, document, value, {});
    if (rule != nullptr && rule->effect == Effect::engine_kwargs) {
      if (!value.IsMap()) say_shape(reader, document, value, option.name);
      for (const KeyValue& each : entries_of(value)) take_kwarg(reader, document, each, "engine_kwargs.", false);
      return;
    }
    if (option.name == "deployment_config" || option.name.starts_with("deployment_config.")) return;
    reader.take(std::move(option), rule);
  });
  take_deployment(reader, document, find(config, "deployment_config"), "deployment_config.");
  return reader.finish({}, {});
}

Status read_vllm_config(Draft& draft, const ImportOptions& options, const Document& document) {
  ModelReader reader(draft, options, &kVllm, "", document.place(document.root));
  for (const KeyValue& each : entries_of(document.root)) take_kwarg(reader, document, each, "", false);
  return reader.finish({}, {});
}

Status read_serve(Draft& draft, const ImportOptions& options, const Document& document, const std::string& label) {
  std::optional<Error> faults;
  std::optional<Error> no_model;
  const std::size_t before = draft.models();
  const YAML::Node applications = find(document.root, "applications");
  std::vector<YAML::Node> all;
  if (applications.IsDefined())
    all = items_of(applications);
  else if (find(document.root, "import_path").IsDefined())
    all.push_back(document.root);  // the form of one application
  if (all.empty())
    return make_error(ErrorCode::invalid_argument,
                      document.place(document.root) + ": applications: expected a list of Serve's applications");
  if (applications.IsDefined()) {
    ModelReader around(draft, options, nullptr, label, "");
    walk(document, document.root, serve_rules(), [&](Option option, const Rule* rule, const YAML::Node&) {
      if (option.name != "applications") around.take(std::move(option), rule);
    });
  }
  for (const YAML::Node& application : all) {
    const std::string name = text_of(find(application, "name"));
    const std::string called = (label.empty() ? "" : label + "/") + (name.empty() ? "application" : name);
    const YAML::Node configs = find(application, "args.llm_configs");
    if (!configs.IsDefined()) {
      if (Status status = read_application(draft, options, document, application, called); !status) {
        add_fault(no_model, status.error());
        ModelReader(draft, options, nullptr, called, "")
            .say({"application", name, document.place(application)}, Group::none,
                 "No option says which model it serves: it stays where it is. If its code serves one, import the vLLM "
                 "options that it uses.");
      }
      continue;
    }
    ModelReader around(draft, options, nullptr, called, "");
    walk(document, application, application_rules(), [&](Option option, const Rule* rule, const YAML::Node& value) {
      if (rule != nullptr && rule->effect == Effect::environment) return take_variables(around, document, value, {});
      if (option.name == "deployments") {
        for (const YAML::Node& each : items_of(value)) take_deployment(around, document, each, "deployments.");
      } else if (option.name != "args.llm_configs") {
        around.take(std::move(option), rule);
      }
    });
    for (const YAML::Node& config : items_of(configs)) {
      if (config.IsScalar()) {
        around.say({"args.llm_configs", config.Scalar(), document.place(config)}, Group::none,
                   "A file of its own, which was not read: give it to `xgen-model import` too.");
        continue;
      }
      const std::string id = "/" + text_of(find(config, "model_loading_config.model_id"));
      if (Status status = read_llm_config(draft, options, document, config, called + id); !status)
        add_fault(faults, status.error());
    }
  }
  // One without a model is no fault beside others.
  if (no_model && draft.models() == before) add_fault(faults, *no_model);
  if (faults) return *std::move(faults);
  return {};
}

}  // namespace xgen::importer
