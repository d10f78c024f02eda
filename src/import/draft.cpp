#include "import/draft.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <map>
#include <optional>

namespace xgen::importer {
namespace {

constexpr std::size_t kMaxShown = 160;   // bytes of a value in the report
constexpr std::size_t kShortSecret = 8;  // a shorter one may be part of any word
constexpr std::size_t kMaxModels = 256;  // as in a models.yaml

// A YAML scalar.
std::string yaml_text(std::string_view text) {
  const auto plain = [](unsigned char c) {
    return std::isalnum(c) != 0 || c >= 0x80 ||
           std::string_view("_./:@+%~-").find(static_cast<char>(c)) != std::string_view::npos;
  };
  const bool safe = !text.empty() && std::all_of(text.begin(), text.end(), plain) && text.back() != ':' &&
                    std::string_view("-:@%~").find(text.front()) == std::string_view::npos;
  if (safe) return std::string(text);
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n')
      out += "\\n";
    else if (static_cast<unsigned char>(c) < 0x20)
      out += ' ';
    else
      out += c;
  }
  return out + "\"";
}

void append_line(std::string& out, std::string line, std::string_view comment) {
  if (!comment.empty()) line.append("  # ").append(comment);
  std::replace(line.begin(), line.end(), '\n', ' ');
  out += line + "\n";
}

void append_setting(std::string& out, std::string_view indent, const Setting& setting) {
  const std::string name = setting.key.substr(setting.key.rfind('.') + 1);
  append_line(out, std::string(indent) + (setting.not_yet ? "# " : "") + name + ": " + yaml_text(setting.value),
              setting.comment);
}

// As code in Markdown.
std::string code(std::string text) {
  for (char& c : text) {
    if (c == '`') c = '\'';
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
  if (text.size() > kMaxShown) {
    std::size_t end = kMaxShown;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
    text = text.substr(0, end) + "…";
  }
  return "`" + text + "`";
}

std::string short_key(std::string_view key) { return std::string(key.starts_with("models[].") ? key.substr(9) : key); }

void replace_all(std::string& text, std::string_view what, std::string_view with) {
  for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += with.size())
    text.replace(at, what.size(), with);
}

bool ends_word(char c) {
  return std::isspace(static_cast<unsigned char>(c)) != 0 ||
         std::string_view("\"'`,;)}]").find(c) != std::string_view::npos;
}

// Hides the word that begins at `at`; where it ends.
std::size_t hide_word(std::string& text, std::size_t at) {
  std::size_t end = at;
  while (end < text.size() && !ends_word(text[end])) ++end;
  if (end == at || text[at] == '$' || text[at] == '(') return end;  // a variable, or hidden already
  text.replace(at, end - at, kHidden);
  return at + kHidden.size();
}

}  // namespace

bool names_secret(std::string_view name) {
  constexpr std::array<std::string_view, 19> kWords = {
      "key",       "keys",        "apikey", "apikeys", "token", "secret",     "secrets",
      "password",  "passwords",   "passwd", "pass",    "pwd",   "passphrase", "credential",
      "authtoken", "credentials", "auth",   "headers", "header"};
  std::string word;
  for (std::size_t i = 0; i <= name.size(); ++i) {
    const char c = i < name.size() ? name[i] : '-';
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) {
      word += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      continue;
    }
    if (std::find(kWords.begin(), kWords.end(), word) != kWords.end()) return true;
    word.clear();
  }
  return false;
}

std::size_t Draft::report(Entry entry) {
  entries_.push_back(std::move(entry));
  return entries_.size() - 1;
}

void Draft::note(std::string_view lines) {
  while (!lines.empty()) {
    const std::size_t end = lines.find('\n');
    const std::string line(lines.substr(0, end));
    if (std::find(notes_.begin(), notes_.end(), line) == notes_.end()) notes_.push_back(line);
    lines = end == std::string_view::npos ? std::string_view() : lines.substr(end + 1);
  }
}

const Setting* Draft::set(const Setting& setting) {
  const auto found =
      std::find_if(settings_.begin(), settings_.end(), [&](const Setting& each) { return each.key == setting.key; });
  if (found == settings_.end()) {
    settings_.push_back(setting);
    return nullptr;
  }
  if (found->label == setting.label) {  // given again: the last counts
    *found = setting;
    return nullptr;
  }
  return found->value == setting.value ? nullptr : &*found;
}

bool Draft::serves(std::string_view name) const {
  return std::any_of(models_.begin(), models_.end(), [&](const ModelDraft& each) {
    return std::find(each.names.begin(), each.names.end(), name) != each.names.end();
  });
}

void Draft::hide(std::string_view secret) {
  if (secret.size() >= kShortSecret && secret.find('$') == std::string_view::npos) secrets_.emplace_back(secret);
}

std::string Draft::hidden(std::string text, bool words) const {
  for (const std::string& secret : secrets_) replace_all(text, secret, kHidden);
  // What looks like a key or token, wherever it stands.
  constexpr std::array<std::string_view, 6> kBegins = {"hf_", "ghp_", "sk-", "Bearer ", "bearer ", "Basic "};
  for (const std::string_view begin : kBegins) {
    if (!words) break;
    for (std::size_t at = 0; (at = text.find(begin, at)) != std::string::npos;) {
      const bool alone = at == 0 || std::isalnum(static_cast<unsigned char>(text[at - 1])) == 0;
      const bool after = begin.back() == ' ';
      if (!alone || (!after && at + begin.size() + 8 > text.size()))
        at += begin.size();
      else
        at = hide_word(text, after ? at + begin.size() : at);
    }
  }
  // user:password@ of a URL.
  for (std::size_t at = 0; (at = text.find("://", at)) != std::string::npos;) {
    at += 3;
    const std::size_t end = text.find_first_of("/ \"'`\n", at);
    const std::size_t sign = text.substr(at, end == std::string::npos ? end : end - at).rfind('@');
    if (sign == std::string::npos || text.substr(at, sign).find(':') == std::string::npos) continue;
    text.replace(at, sign, kHidden);
  }
  return text;
}

Result<Imported> Draft::finish() const {
  std::optional<Error> faults;
  std::map<std::string, const ModelDraft*> seen;
  if (models_.size() > kMaxModels)
    return make_error(ErrorCode::invalid_argument, input_ + ": more than " + std::to_string(kMaxModels) + " models");
  for (const ModelDraft& model : models_) {
    for (const std::string& name : model.names) {
      const auto [found, fresh] = seen.emplace(name, &model);
      if (fresh || found->second == &model) continue;
      const auto called = [&](const ModelDraft& one) {
        return one.label.empty() ? one.where : one.label + (one.where.empty() ? "" : " (" + one.where + ")");
      };
      add_fault(
          faults,
          make_error(
              ErrorCode::invalid_argument,
              hidden(called(*found->second) + " and " + called(model) + " serve the same name '" + name +
                         "': in one models.yaml each model needs its own; give one of them another served name, or "
                         "import them one by one",
                     true)));
    }
  }
  if (faults) return *std::move(faults);
  return Imported{hidden(models_yaml(), false), hidden(report_text(), true)};
}

std::string Draft::models_yaml() const {
  std::string out = "# Made by `xgen-model import` from " + input_ + "; its report says what became of each option.\n";
  for (const std::string_view section : {"server", "log", "memory", "compute"}) {
    std::string lines;
    for (const Setting& each : settings_)
      if (each.key.starts_with(std::string(section) + ".")) append_setting(lines, "  ", each);
    if (section == "server" && api_keys_)
      lines +=
          "  # api_keys_file: keys.yaml  # clients had to have a key: see docs/api-keys.md; without it everybody may "
          "ask\n";
    // A section of comments alone has no value.
    const bool empty = std::none_of(settings_.begin(), settings_.end(), [&](const Setting& each) {
      return !each.not_yet && each.key.starts_with(std::string(section) + ".");
    });
    if (!lines.empty()) out.append(section).append(empty ? ": {}\n" : ":\n").append(lines);
  }
  out += "models:\n";
  for (const ModelDraft& model : models_) {
    append_line(out, "  - name: " + yaml_text(model.names.front()), model.label);
    if (model.names.size() > 1) {
      std::string list;
      for (std::size_t i = 1; i < model.names.size(); ++i) list += (i == 1 ? "" : ", ") + yaml_text(model.names[i]);
      out += "    aliases: [" + list + "]\n";
    }
    append_line(out, "    source: " + yaml_text(model.source), model.source_comment);
    for (const Setting& each : model.settings) append_setting(out, "    ", each);
  }
  return out;
}

std::string Draft::report_text() const {
  constexpr std::array<std::pair<Group, std::string_view>, 4> kGroups = {{{Group::maps, "What maps"},
                                                                          {Group::changes, "What changes meaning"},
                                                                          {Group::none, "What has no counterpart"},
                                                                          {Group::unknown, "Unknown"}}};
  const auto count = [&](Group group) {
    return std::to_string(
        std::count_if(entries_.begin(), entries_.end(), [&](const Entry& each) { return each.group == group; }));
  };
  std::string out = "# Import of " + input_ + "\n\nModels: " + std::to_string(models_.size()) +
                    ". Options: " + std::to_string(entries_.size()) + ", of which " + count(Group::maps) + " map, " +
                    count(Group::changes) + " change meaning, " + count(Group::none) +
                    " have no counterpart; unknown: " + count(Group::unknown) + ".\n";
  for (const auto& [group, title] : kGroups) {
    bool first = true;
    for (const Entry& each : entries_) {
      if (each.group != group) continue;
      if (first) out.append("\n## ").append(title).append("\n\n");
      first = false;
      out += "- " + (each.label.empty() ? "" : each.label + ": ") +
             // Hidden before it is cut: a part of a secret is not known as one.
             code(hidden(each.option.name + (each.option.value.empty() ? "" : " " + each.option.value), true));
      if (!each.option.where.empty()) out += " (" + each.option.where + ")";
      if (!each.key.empty()) out += " -> `" + short_key(each.key) + "`";
      if (!each.text.empty()) out += ": " + each.text;
      out += "\n";
    }
  }
  for (std::size_t i = 0; i < notes_.size(); ++i)
    out += (i == 0 ? "\n## To know besides\n\n- " : "- ") + notes_[i] + "\n";
  return out;
}

}  // namespace xgen::importer
