#include <array>
#include <utility>

#include "import/commands.h"
#include "import/documents.h"

namespace xgen::importer {
namespace {

// Where the pod stands in it.
constexpr std::pair<std::string_view, std::string_view> kKinds[] = {
    {"Pod", "spec"},
    {"Deployment", "spec.template.spec"},
    {"StatefulSet", "spec.template.spec"},
    {"DaemonSet", "spec.template.spec"},
    {"ReplicaSet", "spec.template.spec"},
    {"Job", "spec.template.spec"},
};

constexpr std::string_view kOfRay = "Of Ray's cluster: one process takes its place, with no head, workers or gateway.";

std::vector<Word> words_of(const Document& document, const YAML::Node& node, const Variables& variables) {
  std::vector<Word> out;
  for (const YAML::Node& each : items_of(node)) {
    const std::string text = text_of(each);
    Word word = expand(text, variables, true);
    // Lines of a block begin below its '|'.
    word.line = document.first_line + each.Mark().line + 1 + (text.find('\n') != std::string::npos ? 1 : 0);
    out.push_back(std::move(word));
  }
  return out;
}

Option variable_of(const Document& document, const YAML::Node& node, const Variables& known) {
  Option option{text_of(find(node, "name")), "", document.place(node), false, false};
  const YAML::Node from = find(node, "valueFrom");
  if (!from.IsDefined()) {
    const Word word = expand(text_of(find(node, "value")), known, true);
    option.value = word.text;
    option.open = word.open;
    return option;
  }
  option.open = true;
  option.value = "(valueFrom)";
  for (const KeyValue& each : entries_of(from))
    option.value = "(from " + each.key + " " + text_of(find(each.value, "name")) +
                   text_of(find(each.value, "fieldPath")) +
                   (find(each.value, "key").IsDefined() ? "/" + text_of(find(each.value, "key")) : "") + ")";
  return option;
}

Container read_one(const Document& document, const YAML::Node& node, const std::string& label) {
  Container container;
  container.label = label;
  container.where = document.place(node);
  Variables variables;
  for (const YAML::Node& each : items_of(find(node, "env"))) {
    container.environment.push_back(variable_of(document, each, variables));
    if (!container.environment.back().open)
      variables[container.environment.back().name] = container.environment.back().value;
  }
  std::string words;
  for (const char* key : {"command", "args"}) words += text_of(find(node, key)) + " ";
  for (Option& each : container.environment) each.used = uses_variable(words, each.name);
  walk(document, node, container_rules(), [&](Option option, const Rule* rule, const YAML::Node& value) {
    switch (rule == nullptr ? Effect::say : rule->effect) {
      case Effect::environment:
        break;
      case Effect::entrypoint:
        container.entrypoint = words_of(document, value, variables);
        break;
      case Effect::command:
        container.arguments = words_of(document, value, variables);
        break;
      case Effect::ports:
        for (const YAML::Node& each : items_of(value)) {
          PublishedPort port{"", "", text_of(find(each, "containerPort")), {}};
          container.port_options.push_back({"containerPort", port.to, document.place(each), false, false});
          container.ports.push_back(std::move(port));
        }
        break;
      case Effect::image:
        container.image = option.value;
        [[fallthrough]];
      default:
        container.keys.emplace_back(std::move(option), rule);
    }
  });
  return container;
}

}  // namespace

namespace {

Status read_pod(Draft& draft, const ImportOptions& options, const Document& document, const YAML::Node& spec,
                const std::string& label, bool of_ray) {
  ImportOptions inside = options;
  inside.in_container = true;
  std::optional<Error> faults;
  ModelReader around(draft, inside, nullptr, label, "");
  walk(document, spec, pod_rules(), [&](Option option, const Rule* rule, const YAML::Node&) {
    if (option.name != "containers") around.take(std::move(option), rule);
  });
  for (const YAML::Node& each : items_of(find(spec, "containers"))) {
    Container container = read_one(document, each, label + "/" + text_of(find(each, "name")));
    if (!of_ray && engine_of(container) != nullptr) {
      if (Status status = read_container(draft, inside, std::move(container), document.file); !status)
        add_fault(faults, status.error());
      continue;
    }
    ModelReader reader(draft, inside, nullptr, container.label, "");
    reader.say({"image", container.image, container.where}, Group::none,
               of_ray ? std::string(kOfRay) : "None of the engines that are read.");
    for (Option& variable : container.environment) {
      const Rule* rule = of_ray ? find_rule(kVllm.rules, variable.name) : nullptr;
      if (rule != nullptr && rule->key.starts_with("models[]."))
        reader.say(std::move(variable), Group::changes,
                   "Of all that runs on Ray's workers: write it for each model that it is meant for.", rule->key);
      else
        reader.take_variable(std::move(variable), of_ray ? kVllm.rules : Rules());
    }
    for (auto& [option, rule] : container.keys)
      if (option.name != "image") reader.take(std::move(option), rule);
    for (Option& port : container.port_options)
      reader.say(std::move(port), Group::none, "Of a container that runs none of the engines.");
    // Without the words, which may hold secrets.
    for (const auto& [key, words] :
         {std::pair("command", &container.entrypoint), std::pair("args", &container.arguments)})
      if (!words->empty())
        reader.say({key, "", document.file + ":" + std::to_string(words->front().line)}, Group::none,
                   "Of a container that runs none of the engines.");
  }
  if (faults) return *std::move(faults);
  return {};
}

// Of a RayService: only variables say anything of the models.
Status read_cluster(Draft& draft, const ImportOptions& options, const Document& document, const YAML::Node& cluster,
                    const std::string& label) {
  const auto read_group = [&](const YAML::Node& group, const std::string& group_label) -> Status {
    ModelReader reader(draft, options, nullptr, group_label, "");
    Status status;
    for (const KeyValue& each : entries_of(group)) {
      if (each.key == "template")
        status = read_pod(draft, options, document, find(each.value, "spec"), group_label, true);
      else
        reader.say({each.key, text_of(each.value), document.place(each.at)}, Group::none, std::string(kOfRay));
    }
    return status;
  };
  ModelReader reader(draft, options, nullptr, label, "");
  std::optional<Error> faults;
  for (const KeyValue& each : entries_of(cluster)) {
    if (each.key == "headGroupSpec") {
      if (Status status = read_group(each.value, label + "/head"); !status) add_fault(faults, status.error());
    } else if (each.key == "workerGroupSpecs") {
      for (const YAML::Node& group : items_of(each.value))
        if (Status status = read_group(group, label + "/" + text_of(find(group, "groupName"))); !status)
          add_fault(faults, status.error());
    } else {
      reader.say({"rayClusterConfig." + each.key, text_of(each.value), document.place(each.at)}, Group::none,
                 std::string(kOfRay));
    }
  }
  if (faults) return *std::move(faults);
  return {};
}

}  // namespace

Status read_manifest(Draft& draft, const ImportOptions& options, const Document& document, const YAML::Node& manifest) {
  const std::string kind = text_of(find(manifest, "kind"));
  const std::string name = kind + "/" + text_of(find(manifest, "metadata.name"));
  if (kind == "List") {
    std::optional<Error> faults;
    for (const YAML::Node& each : items_of(find(manifest, "items")))
      if (Status status = read_manifest(draft, options, document, each); !status) add_fault(faults, status.error());
    if (faults) return *std::move(faults);
    return {};
  }
  ModelReader around(draft, options, nullptr, name, "");
  if (kind == "RayService") {
    const YAML::Node text = find(manifest, "spec.serveConfigV2");
    if (!text.IsScalar())
      return make_error(ErrorCode::invalid_argument,
                        document.place(manifest) + ": spec.serveConfigV2: expected a text, the configuration of Serve");
    const bool block = text.Scalar().find('\n') != std::string::npos;
    auto inner = read_documents(text.Scalar(), document.file, document.first_line + text.Mark().line + (block ? 1 : 0));
    if (!inner) return std::move(inner).error();
    if (inner->size() != 1)
      return make_error(ErrorCode::invalid_argument,
                        document.place(text) + ": spec.serveConfigV2: expected one document");
    for (const KeyValue& each : entries_of(manifest))
      if (each.key != "spec")
        around.take({each.key, text_of(each.value), document.place(each.at)}, find_rule(workload_rules(), each.key));
    std::optional<Error> faults;
    for (const KeyValue& each : entries_of(find(manifest, "spec"))) {
      Status status;
      if (each.key == "serveConfigV2")
        status = read_serve(draft, options, inner->front(), name);
      else if (each.key == "rayClusterConfig")
        status = read_cluster(draft, options, document, each.value, name);
      else
        around.say({each.key, text_of(each.value), document.place(each.at)}, Group::none, std::string(kOfRay));
      if (!status) add_fault(faults, status.error());
    }
    if (faults) return *std::move(faults);
    return {};
  }
  for (const auto& [known, path] : kKinds) {
    if (kind != known) continue;
    const YAML::Node spec = find(manifest, path);
    if (!find(spec, "containers").IsSequence())
      return make_error(ErrorCode::invalid_argument, document.place(manifest) + ": " + std::string(path) +
                                                         ".containers: expected a list of containers");
    walk(document, manifest, workload_rules(),
         [&, inside = std::string(path)](Option option, const Rule* rule, const YAML::Node&) {
           if (option.name != inside && !option.name.starts_with(inside + ".")) around.take(std::move(option), rule);
         });
    return read_pod(draft, options, document, spec, name, false);
  }
  ModelReader(draft, options, nullptr, "", "")
      .say({name, "", document.place(manifest)}, Group::none,
           kind == "Service" ? "It stays: let it select xgen-model's pods, with the port of `server.port`."
                             : "Not of an engine's pod: it stays as it is.");
  return {};
}

}  // namespace xgen::importer
