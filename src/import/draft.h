// What an import has made so far: the new models.yaml and the report.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "import/import.h"
#include "import/option.h"

namespace xgen::importer {

// A key of the new file; `key` is a whole path.
struct Setting {
  std::string key;  // "models[].max_model_len", "server.port"
  std::string value;
  std::string comment;
  std::string label;     // what it came from
  bool not_yet = false;  // the value is not known: it is written as a comment
};

struct ModelDraft {
  std::string label;
  std::string where;
  std::vector<std::string> names;  // the name and aliases
  std::string source;
  std::string source_comment;
  std::vector<Setting> settings;
};

class Draft {
 public:
  explicit Draft(std::string input) : input_(std::move(input)) {}

  // A line of the report; its place.
  std::size_t report(Entry entry);
  Entry& entry(std::size_t place) { return entries_[place]; }
  // A remark on what no option says.
  void note(std::string_view lines);
  // A key outside of the models. Null if it has this value now, else what holds it with another one.
  const Setting* set(const Setting& setting);
  void hint_api_keys() { api_keys_ = true; }
  void hide(std::string_view secret);
  ModelDraft& add_model() { return models_.emplace_back(); }
  std::size_t models() const { return models_.size(); }
  bool serves(std::string_view name) const;

  // Checks names. Errors: invalid_argument, one line for each clash.
  Result<Imported> finish() const;

 private:
  std::string models_yaml() const;
  std::string report_text() const;
  // Without secrets; with `words` also without what looks like one.
  std::string hidden(std::string text, bool words) const;

  std::string input_;
  std::vector<Setting> settings_;
  std::vector<ModelDraft> models_;
  std::vector<Entry> entries_;
  std::vector<std::string> notes_;
  std::vector<std::string> secrets_;
  bool api_keys_ = false;
};

// What is shown where a secret stood.
inline constexpr std::string_view kHidden = "(hidden)";
// Whether a name says that its value is a secret, such as API_KEY or --foo-token.
bool names_secret(std::string_view name);

}  // namespace xgen::importer
