// Renders a bound syntax tree. One Interpreter per rendering; the tree is shared and only read.
#pragma once

#include <ctime>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/error.h"
#include "text/jinja/object.h"

namespace xgen::text::jinja {

// The variables of one running function.
struct Activation {
  std::vector<Value> slots;
  std::shared_ptr<Activation> parent;
};
using ActivationPtr = std::shared_ptr<Activation>;

struct LoopObject;

class Interpreter {
 public:
  // `context`: a dict. `local_time` answers strftime_now.
  Interpreter(const Tree& tree, const Value& context, const Limits& limits, std::function<std::tm()> local_time);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  // Throws TemplateError, with the line.
  std::string run();

  Budget& budget() { return budget_; }
  std::tm local_time() const { return local_time_(); }

  // object.name and object[index] with jinja2's fallbacks and the sandbox's refusals.
  Value attribute(const Value& object, const std::string& name);
  Value item(const Value& object, const Value& index);
  Value call(const Value& callee, Arguments& arguments);
  Value call_filter(const Value& name, const Value& input, const Arguments& arguments);
  bool call_test(const Value& name, const Value& input, const Arguments& arguments);

  // Objects that can come to hold themselves are kept and emptied at the end of the rendering.
  void keep(ActivationPtr activation) { activations_.push_back(std::move(activation)); }
  void keep(std::shared_ptr<Object> object) { objects_.push_back(std::move(object)); }

  // For the engine's own objects.
  std::string call_macro(const Node& node, const ActivationPtr& closure, std::string_view name, Arguments& arguments);
  std::string run_recursive_loop(const Node& node, const ActivationPtr& closure, const Value& iterable, int depth);
  void enter_scope(const ScopeInit& scope, Activation& activation);
  void assign(const Node& target, const Value& value, Activation& activation);
  Value evaluate(const Node& node, const ActivationPtr& activation);

 private:
  enum class Flow : std::uint8_t { normal, loop_break, loop_continue };
  class Capture;

  Flow execute(const NodeList& nodes, const ActivationPtr& activation);
  Flow execute(const Node& node, const ActivationPtr& activation);
  void execute_output(const Node& node, const ActivationPtr& activation);
  Flow execute_if(const Node& node, const ActivationPtr& activation);
  Flow execute_for(const Node& node, const ActivationPtr& activation);
  Flow run_loop(const Node& node, const ActivationPtr& activation, const ActivationPtr& outer, Value iterable,
                int depth);
  Flow execute_with(const Node& node, const ActivationPtr& activation);
  Flow execute_filter_block(const Node& node, const ActivationPtr& activation);
  void execute_set(const Node& node, const ActivationPtr& activation);
  Flow execute_set_block(const Node& node, const ActivationPtr& activation);
  void execute_call_block(const Node& node, const ActivationPtr& activation);
  void execute_block(const Node& node);
  void export_names(const Node& target, Activation& activation);

  // A reference where the value already has a place; otherwise evaluates into `scratch`.
  const Value& reference(const Node& node, const ActivationPtr& activation, Value& scratch);
  const Value& variable(const Node& node, const Activation& activation, Value& scratch);
  Value evaluate_dict(const Node& node, const ActivationPtr& activation);
  Value evaluate_items(const Node& node, const ActivationPtr& activation);
  Value evaluate_item(const Node& node, const ActivationPtr& activation);
  Value evaluate_call(const Node& node, const ActivationPtr& activation, const Value* caller);
  Value evaluate_filter(const Node& node, const ActivationPtr& activation, const Value* input);
  bool evaluate_test(const Node& node, const ActivationPtr& activation);
  bool evaluate_compare(const Node& node, const ActivationPtr& activation);
  Value evaluate_concat(const Node& node, const ActivationPtr& activation);
  Value evaluate_binary(const Node& node, const ActivationPtr& activation);
  Value evaluate_logical(const Node& node, const ActivationPtr& activation);
  Value evaluate_conditional(const Node& node, const ActivationPtr& activation);
  void evaluate_arguments(const Node& node, std::size_t first, const ActivationPtr& activation, Arguments& out);
  Value make_macro(const Node& node, const ActivationPtr& activation, std::string name);
  std::optional<Value> python_attribute(const Value& object, std::string_view name);
  Value resolve(const std::string& name) const;
  void write(std::string_view text);

  const Tree& tree_;
  Value context_;
  Budget budget_;
  std::function<std::tm()> local_time_;
  DictObject exported_;  // what {% block %} bodies see of the top level
  std::string* out_ = nullptr;
  int line_ = 0;
  std::vector<ActivationPtr> activations_;
  std::vector<std::shared_ptr<Object>> objects_;
};

}  // namespace xgen::text::jinja
