#include "import/model_reader.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <utility>

#include "base/model_source.h"

namespace xgen::importer {
namespace {

constexpr std::int64_t kMost = 100'000'000;  // of a number without a limit of its own below
// What models.yaml takes at most.
constexpr std::pair<std::string_view, std::int64_t> kLimits[] = {{"models[].max_num_seqs", 65536},
                                                                 {"models[].max_num_batched_tokens", 65536},
                                                                 {"models[].max_waiting", 1'000'000},
                                                                 {"compute.threads", 1024}};
constexpr std::string_view kPutValue = " Its value is not known here: put it in.";

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

// "8192", "8k", "1.5K", "40G": as vLLM reads them, small letters are powers of 1000 and capital ones of 1024.
std::optional<std::int64_t> whole_number(std::string_view text) {
  double scale = 1;
  if (!text.empty()) {
    constexpr std::string_view kSmall = "kmgt";
    constexpr std::string_view kCapital = "KMGT";
    if (const auto at = kSmall.find(text.back()); at != std::string_view::npos) scale = std::pow(1000.0, at + 1);
    if (const auto at = kCapital.find(text.back()); at != std::string_view::npos) scale = std::pow(1024.0, at + 1);
    if (scale != 1) text.remove_suffix(1);
  }
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  if (error != std::errc{} || end != text.data() + text.size() || std::abs(value * scale) > 1e15) return {};
  return static_cast<std::int64_t>(value * scale);
}

// "4GiB", or bytes.
std::string size_text(std::int64_t bytes) {
  for (const auto& [shift, unit] : {std::pair(30, "GiB"), std::pair(20, "MiB")})
    if (bytes % (std::int64_t{1} << shift) == 0) return std::to_string(bytes >> shift) + unit;
  return std::to_string(bytes);
}

bool means_no(std::string_view value) {
  const std::string word = lower(value);
  return word == "false" || word == "0" || word == "off" || word == "no";
}

bool has_scheme(std::string_view text) { return text.find("://") != std::string_view::npos; }

// ORG/REPO, as the Hub has it.
bool is_hub_name(std::string_view text) {
  const std::size_t slash = text.find('/');
  return slash != std::string_view::npos && slash > 0 && slash + 1 < text.size() &&
         text.find('/', slash + 1) == std::string_view::npos &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || std::string_view("-_./").find(static_cast<char>(c)) != std::string_view::npos;
         });
}

bool is_path(std::string_view text) {
  return text.starts_with('/') || text.starts_with('.') || text.starts_with('~') || text.starts_with('$') ||
         text.ends_with(".gguf") || std::count(text.begin(), text.end(), '/') > 1;
}

std::string stem(std::string_view path) {
  while (path.ends_with('/')) path.remove_suffix(1);
  std::string_view name = path.substr(path.rfind('/') + 1);
  if (name.ends_with(".gguf")) name.remove_suffix(5);
  return std::string(name);
}

// Whether the rule has the name itself, and not only how it begins; of a key below others, as the flag that it is.
bool is_named(const Rule& rule, std::string_view name) {
  bool exact = false;
  find_rule({&rule, 1}, name, &exact);
  if (!exact) find_rule({&rule, 1}, "--" + std::string(name.substr(name.rfind('.') + 1)), &exact);
  return exact;
}

}  // namespace

std::string published_text(const PublishedPort& port) {
  const std::string address = port.address.find(':') == std::string::npos || port.address.find('$') != std::string::npos
                                  ? port.address
                                  : "[" + port.address + "]";
  return address + (address.empty() ? "" : ":") + port.from + (address.empty() && port.from.empty() ? "" : ":") +
         port.to;
}

ModelReader::ModelReader(Draft& draft, const ImportOptions& options, const Engine* engine, std::string label,
                         std::string where)
    : draft_(draft), options_(options), engine_(engine) {
  model_.label = std::move(label);
  model_.where = std::move(where);
  if (engine == nullptr) return;
  default_port_ = engine->port;
  default_host_ = engine->host;
}

std::size_t ModelReader::say(Option option, Group group, std::string text, std::string_view key) {
  return draft_.report({model_.label, std::move(option), group, std::string(key), std::move(text)});
}

void ModelReader::take_script_variable(Option option, bool report) {
  const Rule* rule = engine_ == nullptr ? nullptr : find_rule(engine_->rules, option.name);
  if (rule == nullptr) rule = find_rule(environment_rules(), option.name);
  if (!report) {
    if (rule != nullptr) apply(option, *rule);
  } else if (rule != nullptr) {
    take(std::move(option), rule);
  } else {
    say_used(std::move(option), "A variable of the script: its value stands where it is used.");
  }
}

void ModelReader::take_variable(Option option, Rules more) {
  const Rule* best = nullptr;
  for (const Rules rules : {engine_ == nullptr ? Rules() : engine_->rules, more, environment_rules()}) {
    bool exact = false;
    const Rule* rule = find_rule(rules, option.name, &exact);
    if (best == nullptr || exact) best = rule;
    if (exact) break;
  }
  if (best == nullptr && option.used) {
    say_used(std::move(option), "A variable: its value stands where it is used.");
    return;
  }
  take(std::move(option), best);
}

void ModelReader::say_used(Option option, std::string text) {
  if (names_secret(option.name))
    hide(option);
  else if (option.value.starts_with('-'))
    option.value = "(…)";  // flags, one of which may be a key: they are options of their own where they are used
  say(std::move(option), Group::maps, std::move(text));
}

// Several of one flag stand with blanks or commas between them. What names a secret, as a variable does, is shown.
void ModelReader::hide(Option& option) {
  const bool name =
      option.open && (option.value.starts_with('(') ||
                      (option.value.starts_with('$') && option.value.find_first_of(":-=+?/ ") == std::string::npos));
  if (option.value.empty() || option.value == kHidden || name) return;
  std::string rest = option.value + " ";
  for (std::size_t end = 0; (end = rest.find_first_of(" ,")) != std::string::npos; rest.erase(0, end + 1))
    draft_.hide(std::string_view(rest).substr(0, end));
  option.value = kHidden;
}

void ModelReader::take(Option option, const Rule* rule) {
  // A rule that names it knows whether it is a secret; one for all that begin so does not.
  if (names_secret(option.name) && (rule == nullptr || !is_named(*rule, option.name))) hide(option);
  if (rule == nullptr) {
    const bool variable = !option.name.starts_with('-');
    say(std::move(option), Group::unknown,
        variable ? "Not known to `xgen-model import`, and not read by xgen-model."
                 : "Not known to `xgen-model import`: look up what it does before you drop it.");
    return;
  }
  Outcome outcome = apply(option, *rule);
  const std::size_t place =
      draft_.report({model_.label, std::move(option), outcome.group, std::move(outcome.key), std::move(outcome.text)});
  if (rule->effect == Effect::context) context_entry_ = place;
  if (rule->effect == Effect::port) port_entry_ = place;
  if (rule->effect == Effect::host) host_entry_ = place;
}

ModelReader::Outcome ModelReader::apply(Option& option, const Rule& rule) {
  switch (rule.effect) {
    case Effect::secret:
    case Effect::api_key: {
      if (rule.effect == Effect::api_key) draft_.hint_api_keys();
      if (!option.name.ends_with("-file") && !option.name.ends_with("_FILE")) hide(option);
      break;
    }
    case Effect::model:
      return keep(rule, option, source_);
    case Effect::model_path:
      path_ = true;
      return keep(rule, option, source_);
    case Effect::hub_repo:
      return keep(rule, option, hub_repo_);
    case Effect::hub_file:
      return keep(rule, option, hub_file_);
    case Effect::revision:
      return keep(rule, option, revision_);
    case Effect::slots:
      return keep(rule, option, slots_);
    case Effect::context:
      return keep(rule, option, context_);
    case Effect::unified:
      unified_ = option.value.empty() || !means_no(option.value);
      break;
    case Effect::names: {
      model_.names.clear();
      std::string name;
      for (const char c : option.value + " ") {
        if (c != ' ' && c != ',') {
          name += c;
          continue;
        }
        if (!name.empty() && std::find(model_.names.begin(), model_.names.end(), name) == model_.names.end())
          model_.names.push_back(name);
        name.clear();
      }
      break;
    }
    case Effect::integer:
    case Effect::gib:
    case Effect::bytes:
    case Effect::seconds:
      return number(rule, option);
    case Effect::on:
    case Effect::off: {
      const bool yes = (rule.effect == Effect::on) != (option.off || means_no(option.value));
      return set(rule, option, yes ? "true" : "false");
    }
    case Effect::kv_dtype:
      return format(rule, option);
    case Effect::quantization: {
      const std::string value = lower(option.value);
      if (value == "none" || value == "null" || value.empty())
        return {Group::maps, "", "Weights stay as they are, as there."};
      return {rule.group, "", std::string(rule.text)};
    }
    case Effect::log_level:
      return level(rule, option);
    case Effect::host:
    case Effect::port:
      return listen(rule, option);
    case Effect::scale_to_zero:
      if (option.value != "0") return {Group::none, "", std::string(rule.text)};
      return set({{},
                  Takes::one,
                  Group::changes,
                  Effect::say,
                  rule.key,
                  "Nothing is loaded until the first request, which waits; the process itself stays."},
                 option, "on_demand");
    case Effect::idle: {
      Outcome outcome = number({{}, Takes::one, rule.group, Effect::seconds, rule.key, rule.text}, option);
      return outcome;
    }
    default:
      if (option.off && rule.group == Group::maps) return {Group::none, "", std::string(rule.text)};
      break;
  }
  return {rule.group, std::string(rule.key), std::string(rule.text)};
}

// What finish() needs; given twice, the last counts.
ModelReader::Outcome ModelReader::keep(const Rule& rule, const Option& option, std::optional<Option>& place) {
  Outcome outcome{rule.group, std::string(rule.key), std::string(rule.text)};
  if (place)
    outcome.text +=
        " It counts instead of " + place->name + (place->where.empty() ? "" : " (" + place->where + ")") + ".";
  if (option.open) outcome.text += kPutValue;
  if (!option.value.empty()) place = option;
  return outcome;
}

void ModelReader::add_setting(std::string key, std::string value, const std::string& comment, bool not_yet) {
  const auto found = std::find_if(model_.settings.begin(), model_.settings.end(),
                                  [&](const Setting& each) { return each.key == key; });
  Setting setting{std::move(key), std::move(value), comment, model_.label, not_yet};
  if (found == model_.settings.end())
    model_.settings.push_back(std::move(setting));
  else
    *found = std::move(setting);  // given again: the last counts
}

ModelReader::Outcome ModelReader::set(const Rule& rule, const Option& option, const std::string& value) {
  Outcome outcome{rule.group, std::string(rule.key), std::string(rule.text)};
  if (option.open) outcome.text += kPutValue;
  const std::string comment = option.open ? option.name + ": put its value in" : option.name;
  if (rule.key.starts_with("models[].")) {
    const auto before = std::find_if(model_.settings.begin(), model_.settings.end(),
                                     [&](const Setting& each) { return each.key == rule.key; });
    if (before != model_.settings.end()) outcome.text += " It counts instead of what is said before it.";
    add_setting(outcome.key, value, comment, option.open);
  } else if (const Setting* other = draft_.set({outcome.key, value, comment, model_.label, option.open})) {
    outcome = {Group::changes, outcome.key,
               "One process serves all models: it has the value of " + other->label + ", " + other->value +
                   ", and this one is left out."};
  }
  return outcome;
}

ModelReader::Outcome ModelReader::number(const Rule& rule, const Option& option) {
  if (option.open) return set(rule, option, option.value);
  if (rule.effect == Effect::seconds) {
    double seconds = 0;
    const char* const last = option.value.data() + option.value.size();
    const auto [end, error] = std::from_chars(option.value.data(), last, seconds);
    if (error != std::errc{} || end != last || seconds < 0.1 || seconds > 1e9)
      return {Group::none, "", "Not a time that `" + std::string(rule.key) + "` takes: see its default."};
    const auto ms = static_cast<std::int64_t>(seconds * 1000);
    return set(rule, option, ms % 1000 == 0 ? std::to_string(ms / 1000) + "s" : std::to_string(ms) + "ms");
  }
  const auto value = whole_number(option.value);
  const std::string word = lower(option.value);
  if ((value && *value <= 0) || word == "auto" || word == "none" || word == "null")
    return {rule.group, "",
            std::string(rule.text) + " Left out, since " + option.value + " leaves it open there: its default holds."};
  if (!value) return {Group::unknown, std::string(rule.key), "Not a number: nothing was written."};
  if (rule.effect == Effect::gib) return set(rule, option, option.value + "GiB");
  if (rule.effect == Effect::bytes) return set(rule, option, size_text(*value));
  std::int64_t most = kMost;
  for (const auto& [key, limit] : kLimits)
    if (key == rule.key) most = limit;
  Outcome outcome = set(rule, option, std::to_string(std::min(*value, most)));
  if (*value > most) {
    outcome.group = Group::changes;
    outcome.text += " The most here is " + std::to_string(most) + ".";
  }
  return outcome;
}

ModelReader::Outcome ModelReader::format(const Rule& rule, const Option& option) {
  constexpr std::pair<std::string_view, std::string_view> kFormats[] = {
      {"auto", "auto"}, {"f32", "f32"},  {"float32", "f32"}, {"float", "f32"}, {"f16", "f16"},
      {"fp16", "f16"},  {"half", "f16"}, {"float16", "f16"}, {"bf16", "bf16"}, {"bfloat16", "bf16"}};
  for (const auto& [theirs, ours] : kFormats)
    if (lower(option.value) == theirs) return set(rule, option, std::string(ours));
  if (option.open) return set(rule, option, option.value);
  return {Group::none, "",
          "Keys and values are kept as f32, f16 or bf16 (`kv_cache_dtype`), not in fewer bits; the default is auto."};
}

ModelReader::Outcome ModelReader::level(const Rule& rule, const Option& option) {
  constexpr std::pair<std::string_view, std::string_view> kLevels[] = {
      {"trace", "debug"},  {"debug", "debug"}, {"info", "info"},      {"warn", "warn"},
      {"warning", "warn"}, {"error", "error"}, {"critical", "error"}, {"off", "off"}};
  for (const auto& [theirs, ours] : kLevels)
    if (lower(option.value) == theirs) return set(rule, option, std::string(ours));
  if (option.open) return set(rule, option, option.value);
  return {Group::none, "", "`log.level` is debug, info, warn, error or off, for all parts together."};
}

ModelReader::Outcome ModelReader::listen(const Rule& rule, const Option& option) {
  Outcome outcome{rule.group, std::string(rule.key), std::string(rule.text)};
  if (option.open) outcome.text += kPutValue;
  if (rule.effect == Effect::host && (option.value.ends_with(".sock") || option.value.find(',') != std::string::npos))
    return {Group::none, "", "One address is listened on, over TCP: `server.host`."};
  if (rule.effect == Effect::port && !option.open) {
    const auto value = whole_number(option.value);
    if (!value || *value < 0 || *value > 65535) return {Group::unknown, outcome.key, "No port: nothing was written."};
  }
  // A server outside of any model, as Ray's, has no finish().
  if (engine_ == nullptr) return set(rule, option, option.value);
  (rule.effect == Effect::host ? host_ : port_) = option;
  return outcome;
}

std::string ModelReader::on_this_machine(const std::string& path, const std::vector<Mount>& mounts,
                                         std::string& comment) const {
  std::string found = path;
  const Mount* best = nullptr;
  for (const Mount& each : mounts) {
    const bool inside =
        path == each.to || (path.starts_with(each.to) && (each.to.ends_with('/') || path[each.to.size()] == '/'));
    if (inside && (best == nullptr || each.to.size() > best->to.size())) best = &each;
  }
  if (best != nullptr && !options_.in_container) {
    if (!is_path(best->from) && !has_scheme(best->from)) {
      comment = "in the volume " + best->from + ": mount it at the same place, or put its path in";
      return path;
    }
    found = best->from + path.substr(best->to.size());
    comment = path + " in the container" + (found.starts_with('$') ? "; the variable is not put in" : "");
  }
  if (found.starts_with("~/") && !options_.home.empty()) found = options_.home + found.substr(1);
  const std::string& folder = best == nullptr ? options_.here : options_.folder;
  if (options_.in_container || found.starts_with('/') || found.starts_with('~') || found.starts_with('$')) return found;
  if (found.starts_with("./") && (best != nullptr || !folder.empty())) found.erase(0, 2);
  return folder.empty() ? found : folder + "/" + found;
}

void ModelReader::resolve_hub() {
  std::string repo = hub_repo_->value;
  const std::size_t colon = repo.find(':');
  const std::string quant = colon == std::string::npos ? "" : repo.substr(colon + 1);
  repo.resize(std::min(colon, repo.size()));
  model_.source = "hf://" + repo;
  if (default_name_.empty()) default_name_ = stem(repo);
  if (hub_file_) {
    model_.source += "/" + hub_file_->value;
  } else {
    model_.source_comment =
        (quant.empty() ? "" : "with the " + quant + " file: ") +
        std::string("if it has several .gguf files, add the one: /NAME.gguf (`xgen-model pull` lists them)");
  }
}

void ModelReader::resolve_source(const std::vector<Mount>& mounts) {
  if (hub_repo_ && !source_) return resolve_hub();
  const std::string& given = source_->value;
  std::string& source = model_.source;
  if (default_name_.empty()) default_name_ = path_ ? stem(given) : given;
  const bool here = options_.exists && options_.exists(given);
  const std::size_t colon = given.rfind(':');
  if (source_->open) {
    source = given;
    model_.source_comment = "a variable is not put in: write the path or hf://ORG/REPO";
  } else if (given.starts_with("hf://") || given.starts_with("s3://")) {
    source = given;
  } else if (has_scheme(given)) {
    source = given;
    model_.source_comment = "not a source that is known here: download it, and write the path";
  } else if (path_ || here || is_path(given)) {
    source = on_this_machine(given, mounts, model_.source_comment);
  } else if (is_hub_name(given)) {
    source = "hf://" + given;
  } else if (colon != std::string::npos && is_hub_name(given.substr(0, colon))) {  // vLLM's org/repo:QUANT
    hub_repo_ = *source_;
    resolve_hub();
  } else {
    source = given;
    model_.source_comment = "a folder of that name, or write hf://ORG/" + given;
  }
  if (revision_ && source.starts_with("hf://")) {
    std::string revision = revision_->value;
    if (!revision.starts_with("refs/"))
      for (std::size_t at = 0; (at = revision.find('/', at)) != std::string::npos; at += 3)
        revision.replace(at, 1, "%2F");
    source += "@" + revision;
  }
}

void ModelReader::resolve_context() {
  const auto slots = slots_ && !slots_->open ? whole_number(slots_->value) : std::optional<std::int64_t>();
  if (slots_ && (slots_->open || (slots && *slots > 0)))
    add_setting("models[].max_num_seqs", slots_->value, slots_->name, slots_->open);
  if (!context_) return;
  const auto tokens = context_->open ? std::optional<std::int64_t>() : whole_number(context_->value);
  Entry& entry = draft_.entry(context_entry_);
  if (!context_->open && (!tokens || *tokens <= 0)) {
    entry.key.clear();
    entry.text += " Left out, since " + context_->value + " leaves it open there.";
    return;
  }
  std::string value = context_->value;
  std::string comment = context_->name;
  if (tokens && slots && *slots > 1 && !unified_) {
    value = std::to_string(*tokens / *slots);
    comment += " " + context_->value + " for " + std::to_string(*slots) + " slots";
    entry.text += " " + context_->value + " for " + std::to_string(*slots) + " slots is " + value + " for each.";
  }
  add_setting("models[].max_model_len", value, comment, context_->open);
}

void ModelReader::resolve_port(const std::vector<PublishedPort>& ports) {
  const std::string theirs = std::string(engine_->name) + "'s default";
  Setting port{"server.port", port_ ? port_->value : default_port_, port_ ? port_->name : theirs, model_.label,
               port_ && port_->open};
  Setting host{"server.host", host_ ? host_->value : default_host_, host_ ? host_->name : theirs, model_.label,
               host_ && host_->open};
  const auto published = std::find_if(ports.begin(), ports.end(), [&](const PublishedPort& each) {
    return !options_.in_container && each.to == port.value;
  });
  if (published != ports.end()) {
    // What the container listens on is reached through this alone.
    host.value = published->address;
    host.not_yet = host.value.find('$') != std::string::npos;
    port.comment = host.comment = "published as " + published_text(*published);
    if (host_entry_)
      draft_.entry(*host_entry_) = {model_.label, *host_, Group::changes, host.key,
                                    "Of the container. For a process on the machine itself the address counts that the "
                                    "port is published on: " +
                                        (host.value.empty() ? "all of them." : host.value + ".")};
    host_entry_.reset();
    if (!published->from.empty()) {
      port.value = published->from;
      port.not_yet = port.value.find('$') != std::string::npos;
      port_entry_ = published->entry;
    }
  }
  const auto set_or_tell = [&](const Setting& setting, const std::optional<std::size_t>& place,
                               const std::string& what) {
    const Setting* other = draft_.set(setting);
    if (other == nullptr) return;
    const std::string text = "One process listens on one " + what + ": clients of this model go to " +
                             (other->label.empty() ? "" : "that of " + other->label + ", ") + other->value + ".";
    if (place) {
      draft_.entry(*place).group = Group::changes;
      draft_.entry(*place).text = text;
    } else {
      draft_.note((model_.label.empty() ? "" : model_.label + ", ") + what + " " + setting.value + " (" +
                  setting.comment + "): " + text);
    }
  };
  // What 8000 and everywhere are anyhow, only where they are said or another one is set.
  if (port_ || port.value != "8000" || draft_.models() > 0) set_or_tell(port, port_entry_, "port");
  if (!host.value.empty()) set_or_tell(host, host_entry_, "address");
}

Status ModelReader::finish(const std::vector<Mount>& mounts, const std::vector<PublishedPort>& ports) {
  if (!source_ && !hub_repo_ && !model_.names.empty() && is_hub_name(model_.names.front()))
    source_ = Option{"name", model_.names.front(), model_.where, false, false};  // Ray's model_id alone
  if (!source_ && !hub_repo_)
    return make_error(ErrorCode::invalid_argument,
                      (model_.where.empty() ? "" : model_.where + ": ") +
                          (model_.label.empty() ? "" : model_.label + ": ") + "no option says which model " +
                          std::string(engine_ == nullptr ? "it" : engine_->name) + " serves");
  resolve_source(mounts);
  if (model_.names.empty()) model_.names.push_back(default_name_);
  if (engine_ == &kTgi && !draft_.serves("tgi") && model_.names.front() != "tgi") model_.names.emplace_back("tgi");
  for (std::string& name : model_.names) std::replace(name.begin(), name.end(), ' ', '-');
  resolve_context();
  resolve_port(ports);
  draft_.note(engine_->notes);
  draft_.add_model() = std::move(model_);
  return {};
}

}  // namespace xgen::importer
