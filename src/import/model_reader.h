// One model out of the options of its engine: what each does to models.yaml, and its line of the report.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "import/draft.h"
#include "import/option.h"

namespace xgen::importer {

// A folder or volume of the machine, and where a container has it.
struct Mount {
  std::string from;
  std::string to;
};
struct PublishedPort {
  std::string address;  // of the machine; empty: all
  std::string from;     // of the machine; empty: the same
  std::string to;
  std::optional<std::size_t> entry;  // of the report
};
// "127.0.0.1:8001:8000"
std::string published_text(const PublishedPort& port);

class ModelReader {
 public:
  // `engine`: null where there is none, for variables and keys around it.
  ModelReader(Draft& draft, const ImportOptions& options, const Engine* engine, std::string label, std::string where);

  // Does what the rule says; null: the option is unknown. Reports it in both cases.
  void take(Option option, const Rule* rule);
  // The same for a variable of the environment, found in the engine's table, `more`, and those of all engines.
  void take_variable(Option option, Rules more = {});
  // One that a script sets for what comes after it. Without `report` it only has its effect.
  void take_script_variable(Option option, bool report);
  // Reports an option without doing anything.
  // Its place in the draft.
  std::size_t say(Option option, Group group, std::string text, std::string_view key = {});
  // A name that stands if no option gives one.
  void default_name(std::string name) { default_name_ = std::move(name); }
  // Where it listens if no option says so.
  void use_port(std::string port) { default_port_ = std::move(port); }
  void use_host(std::string host) { default_host_ = std::move(host); }

  // Adds the model to the draft. Errors: invalid_argument, if no option says which one it is.
  Status finish(const std::vector<Mount>& mounts, const std::vector<PublishedPort>& ports);

 private:
  struct Outcome {
    Group group;
    std::string key;
    std::string text;
  };
  Outcome apply(Option& option, const Rule& rule);
  Outcome set(const Rule& rule, const Option& option, const std::string& value);
  Outcome number(const Rule& rule, const Option& option);
  Outcome format(const Rule& rule, const Option& option);
  Outcome level(const Rule& rule, const Option& option);
  Outcome listen(const Rule& rule, const Option& option);
  Outcome keep(const Rule& rule, const Option& option, std::optional<Option>& place);
  void hide(Option& option);
  // A variable whose value is put in.
  void say_used(Option option, std::string text);
  void add_setting(std::string key, std::string value, const std::string& comment, bool not_yet = false);
  void resolve_source(const std::vector<Mount>& mounts);
  void resolve_hub();
  std::string on_this_machine(const std::string& path, const std::vector<Mount>& mounts, std::string& comment) const;
  void resolve_context();
  void resolve_port(const std::vector<PublishedPort>& ports);

  Draft& draft_;
  const ImportOptions& options_;
  const Engine* engine_;
  ModelDraft model_;
  std::string default_name_;
  std::string default_port_;
  std::string default_host_;
  std::optional<Option> source_;
  std::optional<Option> hub_repo_;
  std::optional<Option> hub_file_;
  std::optional<Option> revision_;
  std::optional<Option> context_;
  std::optional<Option> slots_;
  std::optional<Option> port_;
  std::optional<Option> host_;
  bool path_ = false;  // the source is one, whatever it looks like
  bool unified_ = false;
  std::size_t context_entry_ = 0;
  std::optional<std::size_t> port_entry_;
  std::optional<std::size_t> host_entry_;
};

}  // namespace xgen::importer
