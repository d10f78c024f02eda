#include "text/jinja/interpreter.h"

#include <algorithm>

#include "text/jinja/builtins.h"
#include "text/jinja/loop.h"
#include "text/jinja/python.h"

namespace xgen::text::jinja {
namespace {

Activation& frame_of(const Variable& variable, Activation& activation) {
  Activation* frame = &activation;
  for (std::uint16_t i = 0; i < variable.hops; ++i) frame = frame->parent.get();
  return *frame;
}

ActivationPtr make_activation(Budget& budget, std::size_t slots, ActivationPtr parent) {
  budget.charge(64 + slots * sizeof(Value));
  auto out = std::make_shared<Activation>();
  out->slots.assign(slots, Value::missing());
  out->parent = std::move(parent);
  return out;
}

Value undefined_attribute(const Value& object, std::string name, bool name_is_string) {
  auto out = std::make_shared<UndefinedObject>();
  out->owner_type = object_type_repr(object);
  out->name = std::move(name);
  out->name_is_string = name_is_string;
  return Value(Type::undefined, std::move(out));
}

Value unsafe_attribute(const Value& object, std::string_view name) {
  return undefined_hint("access to attribute '" + std::string(name) + "' of '" + std::string(type_name(object)) +
                        "' object is unsafe.");
}

struct MethodObject : CallableObject {
  MethodObject(Value object, MethodFunction code, std::string_view method)
      : self(std::move(object)), function(code), name(method) {
    adopt(*this, self);
  }
  Value call(Interpreter& interpreter, Arguments& arguments) override { return function(interpreter, self, arguments); }
  std::string repr() const override {
    return "<built-in method " + name + " of " + std::string(type_name(self)) + " object>";
  }
  Value self;
  MethodFunction function;
  std::string name;
};

struct MacroObject : CallableObject {
  Value call(Interpreter& interpreter, Arguments& arguments) override {
    return make_string(interpreter.budget(), interpreter.call_macro(*node, closure, name, arguments));
  }
  std::string repr() const override { return name.empty() ? "<Macro anonymous>" : "<Macro " + string_repr(name) + ">"; }
  const Value* attribute(std::string_view wanted) const override { return attributes.find(wanted); }
  const Node* node = nullptr;
  ActivationPtr closure;
  std::string name;
  DictObject attributes;
};

// `for target in iterable if condition`: the items for which the condition holds.
struct ConditionIterator : IteratorObject {
  ConditionIterator(Interpreter& owner, const Node& loop, ActivationPtr scope, Value iterable)
      : interpreter(owner), node(loop), activation(std::move(scope)), cursor(owner.budget(), std::move(iterable)) {}

  bool next(Value& out) override {
    if (!entered) {
      entered = true;
      interpreter.enter_scope(node.block->test_scope, *activation);
    }
    while (cursor.next(out)) {
      interpreter.assign(*node.block->test_target, out, *activation);
      if (truthy(interpreter.evaluate(*node.children[2], activation))) return true;
    }
    return false;
  }

  Interpreter& interpreter;
  const Node& node;
  ActivationPtr activation;
  Cursor cursor;
  bool entered = false;
};

}  // namespace

// Collects output for as long as it lives.
class Interpreter::Capture {
 public:
  explicit Capture(Interpreter& interpreter) : interpreter_(interpreter), outer_(interpreter.out_) {
    interpreter_.out_ = &text_;
  }
  ~Capture() { interpreter_.out_ = outer_; }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  std::string take() { return std::move(text_); }

 private:
  Interpreter& interpreter_;
  std::string* outer_;
  std::string text_;
};

Interpreter::Interpreter(const Tree& tree, const Value& context, const Limits& limits,
                         std::function<std::tm()> local_time)
    : tree_(tree), context_(context), budget_(limits), local_time_(std::move(local_time)) {}

Interpreter::~Interpreter() {
  // Namespaces, closures and loops may form cycles; all are still held here while each is emptied.
  for (const ActivationPtr& activation : activations_) activation->slots.clear();
  for (const auto& object : objects_) {
    if (auto* name_space = dynamic_cast<NamespaceObject*>(object.get())) name_space->attributes.items.clear();
    if (auto* loop = dynamic_cast<LoopObject*>(object.get())) loop->clear();
  }
}

std::string Interpreter::run() {
  std::string out;
  out_ = &out;
  try {
    const ActivationPtr root = make_activation(budget_, tree_.slots, nullptr);
    keep(root);
    enter_scope(tree_.scope, *root);
    execute(tree_.body, root);
  } catch (TemplateError& error) {
    if (error.line == 0) error.line = line_;
    throw;
  }
  return out;
}

void Interpreter::write(std::string_view text) {
  budget_.charge(text.size());
  out_->append(text);
  if (out_->size() > budget_.limits().max_output) fail_limit("the template's output is too long");
}

Value Interpreter::resolve(const std::string& name) const {
  if (const Value* found = exported_.find(name)) return *found;
  if (context_.is(Type::dict))
    if (const Value* found = context_.get<DictObject>().find(name)) return *found;
  if (const Value* found = find_global(name)) return *found;
  return Value::missing();
}

void Interpreter::enter_scope(const ScopeInit& scope, Activation& activation) {
  for (const SlotInit& init : scope) {
    switch (init.action) {
      case SlotInit::Action::resolve:
        activation.slots[init.slot] = resolve(init.name);
        break;
      case SlotInit::Action::alias:
        activation.slots[init.slot] = frame_of(init.source, activation).slots[init.source.slot];
        break;
      case SlotInit::Action::clear:
        activation.slots[init.slot] = Value::missing();
        break;
    }
  }
}

// --- statements ----------------------------------------------------------------------------------------------------

Interpreter::Flow Interpreter::execute(const NodeList& nodes, const ActivationPtr& activation) {
  for (const NodePtr& node : nodes) {
    const Flow flow = execute(*node, activation);
    if (flow != Flow::normal) return flow;
  }
  return Flow::normal;
}

Interpreter::Flow Interpreter::execute(const Node& node, const ActivationPtr& activation) {
  const DepthGuard guard(budget_);
  budget_.step();
  line_ = node.line;
  switch (node.kind) {
    case Kind::output:
      execute_output(node, activation);
      return Flow::normal;
    case Kind::if_else:
      return execute_if(node, activation);
    case Kind::for_loop:
      return execute_for(node, activation);
    case Kind::set:
      execute_set(node, activation);
      return Flow::normal;
    case Kind::set_block:
      return execute_set_block(node, activation);
    case Kind::macro: {
      Value macro = make_macro(node, activation, node.text);
      if (node.exported && !tree_.blocks.empty()) exported_.set(node.text, macro);
      activation->slots[node.variable.slot] = std::move(macro);
      return Flow::normal;
    }
    case Kind::call_block:
      execute_call_block(node, activation);
      return Flow::normal;
    case Kind::generation: {
      Arguments none;
      write(call_macro(node, activation, "", none));
      return Flow::normal;
    }
    case Kind::filter_block:
      return execute_filter_block(node, activation);
    case Kind::with:
      return execute_with(node, activation);
    case Kind::block:
      execute_block(node);
      return Flow::normal;
    case Kind::loop_break:
      return Flow::loop_break;
    case Kind::loop_continue:
      return Flow::loop_continue;
    default:
      fail("not a statement");
  }
}

void Interpreter::execute_output(const Node& node, const ActivationPtr& activation) {
  for (const NodePtr& child : node.children) {
    if (child->kind == Kind::data) {
      write(child->text);
      continue;
    }
    Value scratch;
    const Value& value = reference(*child, activation, scratch);
    if (value.is(Type::string)) {
      write(value.as_string());
    } else if (!value.is(Type::undefined)) {
      write(to_str(budget_, value));
    }
  }
}

Interpreter::Flow Interpreter::execute_if(const Node& node, const ActivationPtr& activation) {
  Value scratch;
  if (truthy(reference(*node.children[0], activation, scratch))) return execute(node.block->body, activation);
  for (const NodePtr& branch : node.block->branches) {
    line_ = branch->line;
    if (truthy(reference(*branch->children[0], activation, scratch))) return execute(branch->block->body, activation);
  }
  return execute(node.block->otherwise, activation);
}

Interpreter::Flow Interpreter::execute_for(const Node& node, const ActivationPtr& activation) {
  Value iterable = evaluate(*node.children[1], activation);
  if (node.block->recursive) {
    write(run_recursive_loop(node, activation, iterable, 0));
    return Flow::normal;
  }
  return run_loop(node, activation, activation, std::move(iterable), 0);
}

std::string Interpreter::run_recursive_loop(const Node& node, const ActivationPtr& closure, const Value& iterable,
                                            int depth) {
  const DepthGuard guard(budget_);
  const ActivationPtr activation = make_activation(budget_, node.block->slots, closure);
  keep(activation);
  Capture capture(*this);
  run_loop(node, activation, closure, iterable, depth);
  return capture.take();
}

// `activation` holds the body's variables, `outer` the condition's closure.
Interpreter::Flow Interpreter::run_loop(const Node& node, const ActivationPtr& activation, const ActivationPtr& outer,
                                        Value iterable, int depth) {
  const Block& block = *node.block;
  if (node.children[2]) {
    const ActivationPtr test = make_activation(budget_, block.test_slots, outer);
    keep(test);
    iterable = Value(Type::iterator, std::make_shared<ConditionIterator>(*this, node, test, std::move(iterable)));
  }
  std::shared_ptr<LoopObject> loop;
  std::optional<Cursor> cursor;
  if (block.extended) {
    loop = std::make_shared<LoopObject>(*this, std::move(iterable), depth);
    if (block.recursive) {
      loop->node = &node;
      loop->closure = outer;
      keep(outer);
    }
    activation->slots[block.loop.slot] = Value(Type::loop, loop);
  } else {
    cursor.emplace(budget_, std::move(iterable));
  }
  // As in jinja2's generated code, an iteration left by break or continue does not count for the else branch.
  bool iterated = false;
  for (Value value; loop ? loop->next(value) : cursor->next(value);) {
    assign(*node.children[0], value, *activation);
    enter_scope(block.scope, *activation);
    const Flow flow = execute(block.body, activation);
    if (flow == Flow::loop_break) break;
    if (flow == Flow::normal) iterated = true;
  }
  if (iterated || block.otherwise.empty()) return Flow::normal;
  enter_scope(block.otherwise_scope, *activation);
  return execute(block.otherwise, activation);
}

void Interpreter::assign(const Node& target, const Value& value, Activation& activation) {
  if (target.kind == Kind::name) {
    activation.slots[target.variable.slot] = value;
    return;
  }
  if (target.kind == Kind::namespace_entry) {
    const Value& name_space = frame_of(target.variable, activation).slots[target.variable.slot];
    if (!name_space.is(Type::name_space)) fail("cannot assign attribute on non-namespace object");
    const std::string& key = target.value.as_string();
    if (key[0] == '_')
      fail("Chat templates cannot store underscore-prefixed attributes on a namespace, but got '" + key +
           "'. Please rename the attribute.");
    auto& object = name_space.get<NamespaceObject>();
    adopt(object, value);
    budget_.charge(key.size());
    object.attributes.set(key, value);
    return;
  }
  const std::vector<Value> items = to_vector(budget_, value);
  const std::size_t wanted = target.children.size();
  if (items.size() > wanted) fail("too many values to unpack (expected " + std::to_string(wanted) + ")");
  if (items.size() < wanted)
    fail("not enough values to unpack (expected " + std::to_string(wanted) + ", got " + std::to_string(items.size()) +
         ")");
  for (std::size_t i = 0; i < wanted; ++i) assign(*target.children[i], items[i], activation);
}

void Interpreter::export_names(const Node& target, Activation& activation) {
  if (target.kind == Kind::name) exported_.set(target.text, activation.slots[target.variable.slot]);
  for (const NodePtr& child : target.children) export_names(*child, activation);
}

namespace {

// jinja2 checks every namespace of the target before it evaluates the value.
void check_namespaces(const Node& target, Activation& activation) {
  if (target.kind == Kind::namespace_entry &&
      !frame_of(target.variable, activation).slots[target.variable.slot].is(Type::name_space))
    fail("cannot assign attribute on non-namespace object");
  for (const NodePtr& child : target.children) check_namespaces(*child, activation);
}

}  // namespace

void Interpreter::execute_set(const Node& node, const ActivationPtr& activation) {
  const Node& target = *node.children[0];
  if (target.kind != Kind::name) check_namespaces(target, *activation);
  assign(target, evaluate(*node.children[1], activation), *activation);
  if (node.exported && !tree_.blocks.empty()) export_names(target, *activation);
}

Interpreter::Flow Interpreter::execute_set_block(const Node& node, const ActivationPtr& activation) {
  Capture capture(*this);
  enter_scope(node.block->scope, *activation);
  const Flow flow = execute(node.block->body, activation);
  if (flow != Flow::normal) return flow;
  Value value = make_string(budget_, capture.take());
  if (node.children[1]) value = evaluate_filter(*node.children[1], activation, &value);
  assign(*node.children[0], value, *activation);
  if (node.exported && !tree_.blocks.empty()) export_names(*node.children[0], *activation);
  return Flow::normal;
}

Interpreter::Flow Interpreter::execute_with(const Node& node, const ActivationPtr& activation) {
  const Block& block = *node.block;
  enter_scope(block.scope, *activation);
  for (std::size_t i = 0; i < block.parameters.size(); ++i)
    assign(*block.parameters[i], evaluate(*block.defaults[i], activation), *activation);
  return execute(block.body, activation);
}

Interpreter::Flow Interpreter::execute_filter_block(const Node& node, const ActivationPtr& activation) {
  Value text;
  {
    Capture capture(*this);
    enter_scope(node.block->scope, *activation);
    const Flow flow = execute(node.block->body, activation);
    if (flow != Flow::normal) return flow;
    text = make_string(budget_, capture.take());
  }
  write(to_str(budget_, evaluate_filter(*node.children[0], activation, &text)));
  return Flow::normal;
}

void Interpreter::execute_call_block(const Node& node, const ActivationPtr& activation) {
  const Value caller = make_macro(node, activation, "");
  write(to_str(budget_, evaluate_call(*node.children[0], activation, &caller)));
}

void Interpreter::execute_block(const Node& node) {
  const ActivationPtr activation = make_activation(budget_, node.block->slots, nullptr);
  keep(activation);
  enter_scope(node.block->scope, *activation);
  execute(node.block->body, activation);
}

// --- macros --------------------------------------------------------------------------------------------------------

Value Interpreter::make_macro(const Node& node, const ActivationPtr& activation, std::string name) {
  auto macro = std::make_shared<MacroObject>();
  macro->node = &node;
  macro->closure = activation;
  keep(activation);
  macro->name = std::move(name);
  budget_.charge(256);
  std::vector<Value> parameters;
  for (const NodePtr& parameter : node.block->parameters) parameters.emplace_back(parameter->text);
  macro->attributes.set("name", macro->name.empty() ? Value::none() : Value(macro->name));
  macro->attributes.set("arguments", make_tuple(budget_, std::move(parameters)));
  macro->attributes.set("catch_kwargs", node.block->takes_named);
  macro->attributes.set("catch_varargs", node.block->takes_positional);
  macro->attributes.set("caller", node.block->takes_caller);
  return Value(Type::callable, std::move(macro));
}

std::string Interpreter::call_macro(const Node& node, const ActivationPtr& closure, std::string_view name,
                                    Arguments& arguments) {
  const DepthGuard guard(budget_);
  const Block& block = *node.block;
  const ActivationPtr activation = make_activation(budget_, block.slots, closure);
  const std::string label = name.empty() ? "None" : "'" + std::string(name) + "'";
  auto& named = arguments.named;
  const auto take = [&](std::string_view key) -> std::optional<Value> {
    const auto it = std::find_if(named.begin(), named.end(), [&](const auto& item) { return item.first == key; });
    if (it == named.end()) return std::nullopt;
    Value value = std::move(it->second);
    named.erase(it);
    return value;
  };
  const std::size_t count = block.parameters.size();
  std::vector<Value> values(count, Value::missing());
  const std::size_t given = std::min(count, arguments.positional.size());
  for (std::size_t i = 0; i < given; ++i) values[i] = arguments.positional[i];
  for (std::size_t i = given; i < count; ++i)
    if (auto value = take(block.parameters[i]->text)) values[i] = std::move(*value);
  if (block.takes_caller) {
    auto caller = take("caller");
    activation->slots[block.caller.slot] =
        caller && !caller->is(Type::none) ? std::move(*caller) : undefined_hint("No caller defined");
  }
  if (block.takes_named) {
    std::vector<std::pair<std::string, Value>> rest(named.begin(), named.end());
    activation->slots[block.named.slot] = Value::dict(std::move(rest));
  } else if (!named.empty()) {
    fail("macro " + label + " takes no keyword argument '" + named.front().first + "'");
  }
  if (block.takes_positional) {
    std::vector<Value> rest(arguments.positional.begin() + static_cast<std::ptrdiff_t>(given),
                            arguments.positional.end());
    activation->slots[block.positional.slot] = make_tuple(budget_, std::move(rest));
  } else if (arguments.positional.size() > count) {
    fail("macro " + label + " takes not more than " + std::to_string(count) + " argument(s)");
  }
  enter_scope(block.scope, *activation);
  for (std::size_t i = 0; i < count; ++i) activation->slots[block.parameters[i]->variable.slot] = std::move(values[i]);
  const std::size_t first_default = count - block.defaults.size();
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint16_t slot = block.parameters[i]->variable.slot;
    if (!activation->slots[slot].is(Type::missing)) continue;
    activation->slots[slot] = i >= first_default
                                  ? evaluate(*block.defaults[i - first_default], activation)
                                  : undefined_hint("parameter '" + block.parameters[i]->text + "' was not provided");
  }
  Capture capture(*this);
  execute(block.body, activation);
  return capture.take();
}

// --- expressions ---------------------------------------------------------------------------------------------------

const Value& Interpreter::variable(const Node& node, const Activation& activation, Value& scratch) {
  const Activation* frame = &activation;
  for (std::uint16_t i = 0; i < node.variable.hops; ++i) frame = frame->parent.get();
  const Value& value = frame->slots[node.variable.slot];
  if (!value.is(Type::missing)) return value;
  scratch = undefined_name(node.text);
  return scratch;
}

const Value& Interpreter::reference(const Node& node, const ActivationPtr& activation, Value& scratch) {
  if (node.kind == Kind::name) {
    budget_.step();
    return variable(node, *activation, scratch);
  }
  if (node.kind == Kind::constant) return node.value;
  scratch = evaluate(node, activation);
  return scratch;
}

Value Interpreter::evaluate(const Node& node, const ActivationPtr& activation) {
  const DepthGuard guard(budget_);
  budget_.step();
  switch (node.kind) {
    case Kind::constant:
      return node.value;
    case Kind::name: {
      Value scratch;
      return variable(node, *activation, scratch);
    }
    case Kind::tuple:
    case Kind::list:
      return evaluate_items(node, activation);
    case Kind::dict:
      return evaluate_dict(node, activation);
    case Kind::attribute: {
      Value scratch;
      const Value& object = reference(*node.children[0], activation, scratch);
      line_ = node.line;
      return attribute(object, node.text);
    }
    case Kind::item:
      return evaluate_item(node, activation);
    case Kind::call:
      return evaluate_call(node, activation, nullptr);
    case Kind::filter:
      return evaluate_filter(node, activation, nullptr);
    case Kind::test:
      return evaluate_test(node, activation);
    case Kind::logical_not: {
      Value scratch;
      return !truthy(reference(*node.children[0], activation, scratch));
    }
    case Kind::negate: {
      Value scratch;
      return negate(reference(*node.children[0], activation, scratch));
    }
    case Kind::plus: {
      Value scratch;
      return plus(reference(*node.children[0], activation, scratch));
    }
    case Kind::binary:
      return evaluate_binary(node, activation);
    case Kind::logical_and:
    case Kind::logical_or:
      return evaluate_logical(node, activation);
    case Kind::compare:
      return evaluate_compare(node, activation);
    case Kind::concat:
      return evaluate_concat(node, activation);
    case Kind::conditional:
      return evaluate_conditional(node, activation);
    default:
      fail("not an expression");
  }
}

Value Interpreter::evaluate_items(const Node& node, const ActivationPtr& activation) {
  std::vector<Value> items;
  items.reserve(node.children.size());
  for (const NodePtr& child : node.children) items.push_back(evaluate(*child, activation));
  return node.kind == Kind::list ? make_list(budget_, std::move(items)) : make_tuple(budget_, std::move(items));
}

Value Interpreter::evaluate_dict(const Node& node, const ActivationPtr& activation) {
  auto dict = std::make_shared<DictObject>();
  budget_.charge(node.children.size() * sizeof(Value));
  for (std::size_t i = 0; i + 1 < node.children.size(); i += 2) {
    Value key = evaluate(*node.children[i], activation);
    Value value = evaluate(*node.children[i + 1], activation);
    adopt(*dict, key);
    adopt(*dict, value);
    dict->set(budget_, std::move(key), std::move(value));
  }
  return Value(Type::dict, std::move(dict));
}

Value Interpreter::evaluate_item(const Node& node, const ActivationPtr& activation) {
  Value scratch, index_scratch;
  const Value& object = reference(*node.children[0], activation, scratch);
  const Node& index = *node.children[1];
  line_ = node.line;
  if (index.kind != Kind::slice) return item(object, reference(index, activation, index_scratch));
  const auto bound = [&](std::size_t i) {
    return index.children[i] ? evaluate(*index.children[i], activation) : Value::none();
  };
  const Value start = bound(0), stop = bound(1), step = bound(2);
  return slice(budget_, object, start, stop, step);
}

void Interpreter::evaluate_arguments(const Node& node, std::size_t first, const ActivationPtr& activation,
                                     Arguments& out) {
  out.positional.reserve(node.children.size() - first);
  for (std::size_t i = first; i < node.children.size(); ++i)
    out.positional.push_back(evaluate(*node.children[i], activation));
  for (const auto& [key, value] : node.named) out.named.emplace_back(key, evaluate(*value, activation));
  if (node.extra_positional) {
    const Value extra = evaluate(*node.extra_positional, activation);
    for (Value& value : to_vector(budget_, extra)) out.positional.push_back(std::move(value));
  }
  if (node.extra_named) {
    const Value extra = evaluate(*node.extra_named, activation);
    if (!extra.is(Type::dict)) fail("argument after ** must be a mapping, not " + std::string(type_name(extra)));
    for (const auto& [key, value] : extra.get<DictObject>().items) {
      if (!key.is(Type::string)) fail("keywords must be strings");
      for (const auto& item : out.named)
        if (item.first == key.as_string()) fail("got multiple values for keyword argument '" + item.first + "'");
      budget_.charge(key.as_string().size());
      out.named.emplace_back(key.as_string(), value);
    }
  }
}

Value Interpreter::evaluate_call(const Node& node, const ActivationPtr& activation, const Value* caller) {
  const Node& callee = *node.children[0];
  Arguments arguments;
  const auto collect = [&] {
    evaluate_arguments(node, 1, activation, arguments);
    if (caller != nullptr) arguments.named.emplace_back("caller", *caller);
    line_ = node.line;
  };
  Value scratch;
  if (callee.kind == Kind::attribute) {
    // object.method(…) without making a bound method.
    const Value& object = reference(*callee.children[0], activation, scratch);
    line_ = node.line;
    if (const MethodFunction method = find_method(object, callee.text)) {
      collect();
      return method(*this, object, arguments);
    }
    const Value function = attribute(object, callee.text);
    collect();
    return call(function, arguments);
  }
  const Value& function = reference(callee, activation, scratch);
  collect();
  return call(function, arguments);
}

Value Interpreter::call(const Value& callee, Arguments& arguments) {
  const DepthGuard guard(budget_);
  switch (callee.type()) {
    case Type::callable: {
      // The call may drop what `callee` refers to.
      const auto held = std::static_pointer_cast<CallableObject>(callee.object());
      return held->call(*this, arguments);
    }
    case Type::undefined:
      fail_undefined(callee);
    case Type::loop: {
      const auto loop = std::static_pointer_cast<LoopObject>(callee.object());
      if (loop->node == nullptr) fail("The loop must have the 'recursive' marker to be called recursively.");
      const Bound bound("loop", {"iterable"}, arguments, 1);
      return make_string(budget_, run_recursive_loop(*loop->node, loop->closure, *bound[0], loop->depth0 + 1));
    }
    default:
      fail("'" + std::string(type_name(callee)) + "' object is not callable");
  }
}

Value Interpreter::evaluate_filter(const Node& node, const ActivationPtr& activation, const Value* input) {
  // In a filter block or a filtered set block the innermost filter has no input of its own.
  Value scratch;
  const Value* subject = input;
  if (node.children[0]) {
    if (input != nullptr && node.children[0]->kind == Kind::filter) {
      scratch = evaluate_filter(*node.children[0], activation, input);
      subject = &scratch;
    } else {
      subject = &reference(*node.children[0], activation, scratch);
    }
  }
  Arguments arguments;
  evaluate_arguments(node, 1, activation, arguments);
  line_ = node.line;
  if (node.filter == nullptr) fail("No filter named '" + node.text + "' found.");
  return node.filter(*this, *subject, arguments);
}

bool Interpreter::evaluate_test(const Node& node, const ActivationPtr& activation) {
  Value scratch;
  const Value& subject = reference(*node.children[0], activation, scratch);
  Arguments arguments;
  if (node.children.size() > 1 || !node.named.empty() || node.extra_positional || node.extra_named)
    evaluate_arguments(node, 1, activation, arguments);
  line_ = node.line;
  if (node.test == nullptr) fail("No test named '" + node.text + "' found.");
  return node.test(*this, subject, arguments);
}

bool Interpreter::evaluate_compare(const Node& node, const ActivationPtr& activation) {
  Value scratches[2];
  const Value* left = &reference(*node.children[0], activation, scratches[0]);
  for (std::size_t i = 0; i < node.comparisons.size(); ++i) {
    Value& scratch = scratches[(i + 1) % 2];
    const Value* right = &reference(*node.children[i + 1], activation, scratch);
    bool holds = false;
    switch (node.comparisons[i]) {
      case Comparison::equal:
        holds = equal(budget_, *left, *right);
        break;
      case Comparison::not_equal:
        holds = !equal(budget_, *left, *right);
        break;
      case Comparison::less:
        holds = ordered(budget_, *left, *right, "<");
        break;
      case Comparison::less_equal:
        holds = ordered(budget_, *left, *right, "<=");
        break;
      case Comparison::greater:
        holds = ordered(budget_, *left, *right, ">");
        break;
      case Comparison::greater_equal:
        holds = ordered(budget_, *left, *right, ">=");
        break;
      case Comparison::in:
        holds = contains(budget_, *right, *left);
        break;
      case Comparison::not_in:
        holds = !contains(budget_, *right, *left);
        break;
    }
    if (!holds) return false;
    left = right;
  }
  return true;
}

Value Interpreter::evaluate_concat(const Node& node, const ActivationPtr& activation) {
  std::string out;
  for (const NodePtr& child : node.children) {
    Value scratch;
    append_str(budget_, reference(*child, activation, scratch), out);
  }
  return make_string(budget_, std::move(out));
}

Value Interpreter::evaluate_binary(const Node& node, const ActivationPtr& activation) {
  Value left_scratch, right_scratch;
  const Value& left = reference(*node.children[0], activation, left_scratch);
  const Value& right = reference(*node.children[1], activation, right_scratch);
  line_ = node.line;
  return binary(budget_, node.operation, left, right);
}

Value Interpreter::evaluate_logical(const Node& node, const ActivationPtr& activation) {
  Value left = evaluate(*node.children[0], activation);
  if (truthy(left) == (node.kind == Kind::logical_or)) return left;
  return evaluate(*node.children[1], activation);
}

Value Interpreter::evaluate_conditional(const Node& node, const ActivationPtr& activation) {
  Value scratch;
  if (truthy(reference(*node.children[0], activation, scratch))) return evaluate(*node.children[1], activation);
  if (node.children[2]) return evaluate(*node.children[2], activation);
  return undefined_hint("the inline if-expression on line " + std::to_string(node.line) +
                        " evaluated to false and no else section was defined.");
}

// --- attributes ----------------------------------------------------------------------------------------------------

// getattr(object, name) of Python; empty where it raises AttributeError.
std::optional<Value> Interpreter::python_attribute(const Value& object, std::string_view name) {
  if (name.size() > 4 && name.substr(0, 2) == "__" && name.substr(name.size() - 2) == "__")
    return unsafe_attribute(object, name);
  switch (object.type()) {
    case Type::undefined:
      fail_undefined(object);
    case Type::name_space:
      if (const Value* found = object.get<NamespaceObject>().attributes.find(name)) return *found;
      return std::nullopt;
    case Type::loop:
      if (auto value = object.get<LoopObject>().attribute(name)) return value;
      break;
    case Type::callable:
      if (const Value* found = object.get<CallableObject>().attribute(name)) return *found;
      return std::nullopt;
    case Type::cycler:
      if (name == "current") {
        const auto& cycler = object.get<CyclerObject>();
        return cycler.items[cycler.position];
      }
      break;
    case Type::tuple:
      if (object.get<ListObject>().group && name == "grouper") return items_of(object)[0];
      if (object.get<ListObject>().group && name == "list") return items_of(object)[1];
      break;
    case Type::range:
      if (name == "start") return object.get<RangeObject>().start;
      if (name == "stop") return object.get<RangeObject>().stop;
      if (name == "step") return object.get<RangeObject>().step;
      break;
    case Type::boolean:
    case Type::integer:
      if (name == "real" || name == "numerator") return plus(object);
      if (name == "imag") return std::int64_t{0};
      if (name == "denominator") return std::int64_t{1};
      break;
    case Type::real:
      if (name == "real") return object;
      if (name == "imag") return 0.0;
      break;
    default:
      break;
  }
  if (const MethodFunction method = find_method(object, name)) {
    budget_.charge(sizeof(MethodObject));
    return Value(Type::callable, std::make_shared<MethodObject>(object, method, name));
  }
  if (is_mutating_method(object, name)) return unsafe_attribute(object, name);
  return std::nullopt;
}

Value Interpreter::attribute(const Value& object, const std::string& name) {
  if (auto found = python_attribute(object, name)) return std::move(*found);
  if (object.is(Type::dict))
    if (const Value* found = object.get<DictObject>().find(name)) return *found;
  return undefined_attribute(object, name, true);
}

Value Interpreter::item(const Value& object, const Value& index) {
  if (auto found = subscript(budget_, object, index)) return std::move(*found);
  if (index.is(Type::string)) {
    if (auto found = python_attribute(object, index.as_string())) return std::move(*found);
    return undefined_attribute(object, index.as_string(), true);
  }
  return undefined_attribute(object, to_repr(budget_, index), false);
}

Value Interpreter::call_filter(const Value& name, const Value& input, const Arguments& arguments) {
  const FilterFunction filter = name.is(Type::string) ? find_filter(name.as_string()) : nullptr;
  if (filter == nullptr) fail("No filter named " + to_repr(budget_, name) + ".");
  return filter(*this, input, arguments);
}

bool Interpreter::call_test(const Value& name, const Value& input, const Arguments& arguments) {
  const TestFunction test = name.is(Type::string) ? find_test(name.as_string()) : nullptr;
  if (test == nullptr) fail("No test named " + to_repr(budget_, name) + ".");
  return test(*this, input, arguments);
}

}  // namespace xgen::text::jinja
