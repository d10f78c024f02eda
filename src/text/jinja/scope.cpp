#include "text/jinja/scope.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <unordered_map>

#include "text/jinja/builtins.h"
#include "text/jinja/error.h"

namespace xgen::text::jinja {
namespace {

constexpr std::size_t kMaxSlots = 4096;

// A Python function of the code that jinja2 would generate.
struct Function {
  explicit Function(const Function* outer) : parent(outer) {}
  const Function* parent;
  std::unordered_map<std::string, std::uint16_t> slots;  // by level and name

  std::uint16_t slot(int level, const std::string& name) {
    const auto [it, inserted] =
        slots.emplace(std::to_string(level) + ':' + name, static_cast<std::uint16_t>(slots.size()));
    if (inserted && slots.size() > kMaxSlots) fail_syntax("the template has too many variables", 0);
    return it->second;
  }
  std::uint16_t size() const { return static_cast<std::uint16_t>(slots.size()); }
};

struct Reference {
  const Function* function = nullptr;
  std::uint16_t slot = 0;
};

// jinja2's idtracking.Symbols. A branch of an if gets an overlay of the same level over `base`.
class Symbols {
 public:
  Symbols(Symbols* parent, Function* function) : parent_(parent), function_(function) {
    level_ = parent == nullptr ? 0 : parent->level_ + 1;
  }

  Symbols overlay() {
    Symbols out(parent_, function_);
    out.level_ = level_;
    out.base_ = this;
    return out;
  }

  std::optional<Reference> find(const std::string& name) const {
    if (const Reference* own = find_own(name)) return *own;
    return parent_ != nullptr ? parent_->find(name) : std::nullopt;
  }

  void load(const std::string& name) {
    if (!find(name)) define(name, {SlotInit::Action::resolve, {}, name, false});
  }

  void store(const std::string& name) {
    stores_.insert(name);
    if (find_own(name) != nullptr) return;
    if (parent_ != nullptr) {
      if (const auto outer = parent_->find(name)) {
        define(name, {SlotInit::Action::alias, *outer, "", false});
        return;
      }
    }
    define(name, {SlotInit::Action::clear, {}, "", false});
  }

  std::uint16_t parameter(const std::string& name) {
    stores_.insert(name);
    return define(name, {SlotInit::Action::clear, {}, "", true});
  }

  // Merges the branches of an if: a name assigned in any of them starts as the outer variable.
  void merge(std::vector<Symbols>& branches) {
    std::set<std::string> stored;
    for (const Symbols& branch : branches)
      for (const std::string& name : branch.stores_)
        if (!is_stored(name)) stored.insert(name);
    for (Symbols& branch : branches) {
      for (auto& [name, reference] : branch.references_) references_[name] = reference;
      for (auto& [slot, load] : branch.loads_) loads_[slot] = load;
      stores_.insert(branch.stores_.begin(), branch.stores_.end());
    }
    for (const std::string& name : stored) {
      const Reference target = *find(name);
      const auto outer = parent_ != nullptr ? parent_->find(name) : std::nullopt;
      loads_[target.slot] =
          outer ? Load{SlotInit::Action::alias, *outer, "", false} : Load{SlotInit::Action::resolve, {}, name, false};
    }
  }

  ScopeInit entry() const {
    ScopeInit out;
    for (const auto& [slot, load] : loads_) {
      if (load.parameter) continue;
      SlotInit init;
      init.action = load.action;
      init.slot = slot;
      init.name = load.name;
      if (load.action == SlotInit::Action::alias) init.source = variable(load.source);
      out.push_back(std::move(init));
    }
    return out;
  }

  // How code of this scope reaches `reference`.
  Variable variable(const Reference& reference) const {
    Variable out;
    out.slot = reference.slot;
    for (const Function* function = function_; function != reference.function; function = function->parent) ++out.hops;
    return out;
  }

  Function* function() const { return function_; }

 private:
  struct Load {
    SlotInit::Action action = SlotInit::Action::clear;
    Reference source;
    std::string name;
    bool parameter = false;
  };

  std::uint16_t define(const std::string& name, Load load) {
    const std::uint16_t slot = function_->slot(level_, name);
    references_[name] = {function_, slot};
    loads_[slot] = std::move(load);
    return slot;
  }
  const Reference* find_own(const std::string& name) const {
    for (const Symbols* layer = this; layer != nullptr; layer = layer->base_)
      if (const auto it = layer->references_.find(name); it != layer->references_.end()) return &it->second;
    return nullptr;
  }
  bool is_stored(const std::string& name) const {
    for (const Symbols* layer = this; layer != nullptr; layer = layer->base_)
      if (layer->stores_.count(name) != 0) return true;
    return false;
  }

  Symbols* parent_;
  Function* function_;
  Symbols* base_ = nullptr;
  int level_ = 0;
  std::unordered_map<std::string, Reference> references_;
  std::map<std::uint16_t, Load> loads_;
  std::set<std::string> stores_;
};

// --- which of some special names a body uses without assigning them first (jinja2's find_undeclared) ---------------

class UndeclaredNames {
 public:
  explicit UndeclaredNames(std::set<std::string> names) : names_(std::move(names)) {}

  std::set<std::string> in(const NodeList& body) {
    scan(body);
    return found_;
  }

 private:
  void assigned(const Node& target) {
    if (target.kind == Kind::name) names_.erase(target.text);
    for (const NodePtr& child : target.children)
      if (child) assigned(*child);
  }

  void scan(const NodeList& nodes) {
    for (const NodePtr& node : nodes)
      if (node) scan(*node);
  }

  void scan(const Node& node) {
    const auto children_from = [&](std::size_t first) {
      for (std::size_t i = first; i < node.children.size(); ++i)
        if (node.children[i]) scan(*node.children[i]);
    };
    switch (node.kind) {
      case Kind::name:
        if (names_.count(node.text) != 0) found_.insert(node.text);
        return;
      case Kind::block:
        return;
      case Kind::set:
      case Kind::set_block:
        assigned(*node.children[0]);
        children_from(1);
        break;
      case Kind::for_loop:
        assigned(*node.children[0]);
        scan(*node.children[1]);
        scan(node.block->body);
        scan(node.block->otherwise);
        if (node.children[2]) scan(*node.children[2]);
        return;
      case Kind::macro:
      case Kind::call_block:
      case Kind::with:
        children_from(0);
        for (const NodePtr& parameter : node.block->parameters) assigned(*parameter);
        scan(node.block->defaults);
        break;
      case Kind::filter_block:
        scan(node.block->body);
        children_from(0);
        return;
      default:
        children_from(0);
        for (const auto& [key, value] : node.named) scan(*value);
        if (node.extra_positional) scan(*node.extra_positional);
        if (node.extra_named) scan(*node.extra_named);
        break;
    }
    if (node.block) {
      scan(node.block->body);
      scan(node.block->branches);
      scan(node.block->otherwise);
    }
  }

  std::set<std::string> names_, found_;
};

// --- binding -------------------------------------------------------------------------------------------------------

// Where code is being bound.
struct Frame {
  Symbols* symbols = nullptr;
  bool toplevel = false;
  bool soft = false;     // in an if or a conditional expression: unknown filters fail only when reached
  int python_loops = 0;  // loops of the same function around: break and continue need one
};

class Binder {
 public:
  Tree run(NodeList body) {
    Tree tree;
    Function function(nullptr);
    Symbols symbols(nullptr, &function);
    declare(body, symbols);
    Frame frame;
    frame.symbols = &symbols;
    frame.toplevel = true;
    bind(body, frame);
    tree.scope = symbols.entry();
    tree.slots = function.size();
    tree.body = std::move(body);
    tree.blocks = std::move(blocks_);
    return tree;
  }

 private:
  // --- first pass over a scope: which names it loads and stores (jinja2's FrameSymbolVisitor) ----------------------

  void declare(const NodeList& nodes, Symbols& symbols) {
    for (const NodePtr& node : nodes)
      if (node) declare(*node, symbols);
  }

  void declare_target(const Node& target, Symbols& symbols, bool parameter) {
    if (target.kind == Kind::namespace_entry) {
      symbols.load(target.text);
    } else if (target.kind == Kind::name) {
      if (parameter)
        symbols.parameter(target.text);
      else
        symbols.store(target.text);
    }
    for (const NodePtr& child : target.children)
      if (child) declare_target(*child, symbols, parameter);
  }

  void declare_branches(const Node& node, Symbols& symbols) {
    declare(*node.children[0], symbols);
    std::vector<Symbols> branches;
    const std::array<const NodeList*, 3> bodies = {&node.block->body, &node.block->branches, &node.block->otherwise};
    for (const NodeList* body : bodies) {
      branches.push_back(symbols.overlay());
      declare(*body, branches.back());
    }
    symbols.merge(branches);
  }

  void declare(const Node& node, Symbols& symbols) {
    switch (node.kind) {
      case Kind::name:
        symbols.load(node.text);
        return;
      case Kind::if_else:
        declare_branches(node, symbols);
        return;
      case Kind::macro:
        symbols.store(node.text);
        return;
      case Kind::for_loop:
        declare(*node.children[1], symbols);
        return;
      case Kind::with:
        declare(node.block->defaults, symbols);
        return;
      case Kind::set:
        declare(*node.children[1], symbols);
        declare_target(*node.children[0], symbols, false);
        return;
      case Kind::set_block:
        declare_target(*node.children[0], symbols, false);
        return;
      case Kind::block:
      case Kind::generation:
        return;
      default:
        for (const NodePtr& child : node.children)
          if (child) declare(*child, symbols);
        for (const auto& [key, value] : node.named) declare(*value, symbols);
        if (node.extra_positional) declare(*node.extra_positional, symbols);
        if (node.extra_named) declare(*node.extra_named, symbols);
    }
  }

  // --- second pass: names to variables -----------------------------------------------------------------------------

  void bind(NodeList& nodes, const Frame& frame) {
    for (NodePtr& node : nodes)
      if (node) bind(*node, frame);
  }

  static Variable variable(const std::string& name, const Frame& frame) {
    auto reference = frame.symbols->find(name);
    if (!reference) {
      // Only reachable for a set block's filter arguments, which jinja2 forgets to declare.
      frame.symbols->load(name);
      reference = frame.symbols->find(name);
    }
    return frame.symbols->variable(*reference);
  }

  void bind_target(Node& target, const Frame& frame, bool stored = true) {
    if (target.kind == Kind::name || target.kind == Kind::namespace_entry) {
      if (stored && target.kind == Kind::name && target.text == "loop" && for_depth_ > 0)
        fail_syntax("Can't assign to special loop variable in for-loop target", target.line);
      target.variable = variable(target.text, frame);
    }
    for (NodePtr& child : target.children) bind_target(*child, frame, stored);
  }

  static NodePtr clone_target(const Node& target) {
    NodePtr out = std::make_unique<Node>(target.kind, target.line);
    out->text = target.text;
    for (const NodePtr& child : target.children) out->children.push_back(clone_target(*child));
    return out;
  }

  void bind_arguments(Node& node, const Frame& frame) {
    bind(node.children, frame);
    for (auto& [key, value] : node.named) bind(*value, frame);
    if (node.extra_positional) bind(*node.extra_positional, frame);
    if (node.extra_named) bind(*node.extra_named, frame);
  }

  void bind(Node& node, const Frame& frame) {
    switch (node.kind) {
      case Kind::name:
        node.variable = variable(node.text, frame);
        return;
      case Kind::filter:
        node.filter = find_filter(node.text);
        if (node.filter == nullptr && !frame.soft) fail_syntax("No filter named '" + node.text + "'.", node.line);
        bind_arguments(node, frame);
        return;
      case Kind::test:
        node.test = find_test(node.text);
        if (node.test == nullptr && !frame.soft) fail_syntax("No test named '" + node.text + "'.", node.line);
        bind_arguments(node, frame);
        return;
      case Kind::conditional: {
        Frame soft = frame;
        soft.soft = true;
        bind(node.children, soft);
        return;
      }
      case Kind::if_else: {
        Frame soft = frame;
        soft.soft = true;
        bind(node.children, soft);
        bind(node.block->body, soft);
        bind(node.block->branches, soft);
        bind(node.block->otherwise, soft);
        return;
      }
      case Kind::for_loop:
        ++for_depth_;
        bind_for(node, frame);
        --for_depth_;
        return;
      case Kind::macro:
        bind_macro(node, frame);
        node.variable = variable(node.text, frame);
        node.exported = frame.toplevel;
        return;
      case Kind::call_block:
        bind_macro(node, frame);
        bind(*node.children[0], frame);
        return;
      case Kind::generation:
        bind_macro(node, frame);
        return;
      case Kind::filter_block: {
        Symbols symbols(frame.symbols, frame.symbols->function());
        declare(node.block->body, symbols);
        declare(*node.children[0], symbols);
        const Frame inner = inner_frame(frame, symbols);
        bind(node.block->body, inner);
        bind(*node.children[0], inner);
        node.block->scope = symbols.entry();
        return;
      }
      case Kind::with: {
        Symbols symbols(frame.symbols, frame.symbols->function());
        for (const NodePtr& target : node.block->parameters) declare_target(*target, symbols, true);
        declare(node.block->body, symbols);
        const Frame inner = inner_frame(frame, symbols);
        for (NodePtr& target : node.block->parameters) bind_target(*target, inner, false);
        bind(node.block->defaults, frame);
        bind(node.block->body, inner);
        node.block->scope = symbols.entry();
        return;
      }
      case Kind::set:
        bind_target(*node.children[0], frame);
        bind(*node.children[1], frame);
        node.exported = frame.toplevel;
        return;
      case Kind::set_block: {
        Symbols symbols(frame.symbols, frame.symbols->function());
        declare(node.block->body, symbols);
        const Frame inner = inner_frame(frame, symbols);
        bind(node.block->body, inner);
        bind_target(*node.children[0], frame);
        if (node.children[1]) bind(*node.children[1], inner);
        node.block->scope = symbols.entry();
        node.exported = frame.toplevel;
        return;
      }
      case Kind::loop_break:
      case Kind::loop_continue:
        if (frame.python_loops == 0)
          fail_syntax(node.kind == Kind::loop_break ? "'break' outside loop" : "'continue' not properly in loop",
                      node.line);
        return;
      case Kind::block:
        bind_block(node);
        return;
      default:
        bind_arguments(node, frame);
    }
  }

  static Frame inner_frame(const Frame& outer, Symbols& symbols) {
    Frame out;
    out.symbols = &symbols;
    out.python_loops = outer.python_loops;
    return out;
  }

  void bind_for(Node& node, const Frame& frame) {
    Block& block = *node.block;
    Function own(frame.symbols->function());
    Function* function = block.recursive ? &own : frame.symbols->function();
    Symbols symbols(frame.symbols, function);
    block.extended = block.recursive || !UndeclaredNames({"loop"}).in(block.body).empty();
    std::uint16_t loop_slot = 0;
    if (block.extended) loop_slot = symbols.parameter("loop");
    declare_target(*node.children[0], symbols, true);
    declare(block.body, symbols);
    Frame inner = inner_frame(frame, symbols);
    inner.python_loops = block.recursive ? 1 : frame.python_loops + 1;

    if (node.children[2]) {
      Function test_function(frame.symbols->function());
      Symbols test_symbols(frame.symbols, &test_function);
      declare_target(*node.children[0], test_symbols, true);
      declare(*node.children[2], test_symbols);
      block.test_target = clone_target(*node.children[0]);
      Frame test_frame;
      test_frame.symbols = &test_symbols;
      bind_target(*block.test_target, test_frame);
      bind(*node.children[2], test_frame);
      block.test_scope = test_symbols.entry();
      block.test_slots = test_function.size();
    }

    bind_target(*node.children[0], inner);
    bind(*node.children[1], frame);
    bind(block.body, inner);
    block.scope = symbols.entry();
    if (block.extended) block.loop.slot = loop_slot;

    if (!block.otherwise.empty()) {
      Symbols else_symbols(frame.symbols, function);
      declare(block.otherwise, else_symbols);
      Frame else_frame = inner_frame(frame, else_symbols);
      if (block.recursive) else_frame.python_loops = 0;
      bind(block.otherwise, else_frame);
      block.otherwise_scope = else_symbols.entry();
    }
    block.slots = own.size();
  }

  // The function of a macro, a call block or a generation block.
  void bind_macro(Node& node, const Frame& frame) {
    Block& block = *node.block;
    Function function(frame.symbols->function());
    Symbols symbols(frame.symbols, &function);
    const auto analyze = [&] {
      for (const NodePtr& parameter : block.parameters) declare_target(*parameter, symbols, true);
      declare(block.defaults, symbols);
      declare(block.body, symbols);
    };
    analyze();
    if (node.kind != Kind::generation) {
      const std::set<std::string> used = UndeclaredNames({"caller", "kwargs", "varargs"}).in(block.body);
      const auto is_parameter = [&](std::string_view name) {
        return std::any_of(block.parameters.begin(), block.parameters.end(),
                           [&](const NodePtr& parameter) { return parameter->text == name; });
      };
      if (used.count("caller") != 0) {
        if (!is_parameter("caller")) {
          block.caller.slot = symbols.parameter("caller");
          block.takes_caller = true;
        } else {
          const std::size_t without_default = block.parameters.size() - block.defaults.size();
          for (std::size_t i = 0; i < without_default; ++i)
            if (block.parameters[i]->text == "caller")
              fail_syntax(
                  "When defining macros or call blocks the special \"caller\" argument must be omitted or be "
                  "given a default.",
                  node.line);
        }
      }
      if (used.count("kwargs") != 0 && !is_parameter("kwargs")) {
        block.named.slot = symbols.parameter("kwargs");
        block.takes_named = true;
      }
      if (used.count("varargs") != 0 && !is_parameter("varargs")) {
        block.positional.slot = symbols.parameter("varargs");
        block.takes_positional = true;
      }
      analyze();
    }
    Frame inner;
    inner.symbols = &symbols;
    for (NodePtr& parameter : block.parameters) bind_target(*parameter, inner, false);
    bind(block.defaults, inner);
    bind(block.body, inner);
    block.scope = symbols.entry();
    block.slots = function.size();
  }

  void bind_block(Node& node) {
    for (const Node* other : blocks_)
      if (other->text == node.text) fail_syntax("block '" + node.text + "' defined twice", node.line);
    blocks_.push_back(&node);
    Function function(nullptr);
    Symbols symbols(nullptr, &function);
    declare(node.block->body, symbols);
    Frame frame;
    frame.symbols = &symbols;
    bind(node.block->body, frame);
    node.block->scope = symbols.entry();
    node.block->slots = function.size();
  }

  std::vector<const Node*> blocks_;
  int for_depth_ = 0;
};

}  // namespace

Tree bind_names(NodeList body) { return Binder().run(std::move(body)); }

}  // namespace xgen::text::jinja
