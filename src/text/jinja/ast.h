// The syntax tree. The parser builds it; scope.h then fills in where variables live and which functions filters and
// tests are.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/object.h"
#include "text/jinja/python.h"
#include "text/jinja/value.h"

namespace xgen::text::jinja {

class Interpreter;
using FilterFunction = Value (*)(Interpreter&, const Value& input, const Arguments& arguments);
using TestFunction = bool (*)(Interpreter&, const Value& input, const Arguments& arguments);

// Nesting of the tree; CPython refuses what jinja2 generates beyond about 200.
inline constexpr int kMaxTreeDepth = 250;
// Nesting of statements, and of the parser's own calls.
inline constexpr int kMaxStatementDepth = 100;
inline constexpr int kMaxParserDepth = 1000;

enum class Kind : std::uint8_t {
  // Expressions; `children` in the order given.
  constant,         // value
  name,             // text, variable
  tuple,            // items
  list,             // items
  dict,             // key, value, key, value…
  attribute,        // object; text
  item,             // object, index
  slice,            // start, stop, step; each may be null
  call,             // callee, positional arguments…; named, extra_positional, extra_named
  filter,           // input (null in a filter block), arguments as for call; text
  test,             // as filter
  logical_not,      // operand
  negate,           // operand
  plus,             // operand
  binary,           // left, right; operation
  logical_and,      // left, right
  logical_or,       // left, right
  compare,          // first, then one operand per Comparison in `comparisons`
  concat,           // operands
  conditional,      // test, then, else (may be null)
  namespace_entry,  // text.value as an assignment's target; variable
  // Statements; see Node::block.
  data,          // text
  output,        // expressions and data
  for_loop,      // target, iterable, condition (may be null); block: body, otherwise
  if_else,       // condition; block: body, branches (the elifs), otherwise
  macro,         // text, variable; block: body, parameters, defaults
  call_block,    // call; block as for macro
  generation,    // block: body
  filter_block,  // filter; block: body
  with,          // block: parameters (the targets), defaults (the values), body
  set,           // target, expression
  set_block,     // target, filter (may be null); block: body
  loop_break,
  loop_continue,
  block,  // text; block: body
};

enum class Comparison : std::uint8_t { equal, not_equal, less, less_equal, greater, greater_equal, in, not_in };

// A variable's place: so many functions outward, and the slot there.
struct Variable {
  std::uint16_t hops = 0;
  std::uint16_t slot = 0;
};

// What happens to a slot when its scope is entered.
struct SlotInit {
  enum class Action : std::uint8_t { resolve, alias, clear };
  Action action = Action::clear;
  std::uint16_t slot = 0;
  Variable source;   // alias
  std::string name;  // resolve: the context variable
};
using ScopeInit = std::vector<SlotInit>;

struct Node;
using NodePtr = std::unique_ptr<Node>;
using NodeList = std::vector<NodePtr>;

struct Block {
  NodeList body, otherwise, branches;
  NodeList parameters, defaults;  // the defaults belong to the last parameters
  ScopeInit scope, otherwise_scope, test_scope;
  std::uint16_t slots = 0;       // variables of the function this block is (macro, call block, recursive loop, block)
  std::uint16_t test_slots = 0;  // variables of a for loop's condition
  NodePtr test_target;           // the loop's target as the condition sees it
  Variable loop;                 // the special variable
  bool recursive = false;
  bool extended = false;  // the body uses `loop`
  // Of a macro: the special variables its body uses.
  bool takes_caller = false, takes_named = false, takes_positional = false;
  Variable caller, named, positional;
};

struct Node {
  Node(Kind node_kind, int node_line) : kind(node_kind), line(node_line) {}

  Kind kind;
  BinaryOp operation = BinaryOp::add;
  int line;
  int depth = 1;
  Variable variable;
  std::string text;
  Value value;
  NodeList children;
  std::vector<Comparison> comparisons;
  std::vector<std::pair<std::string, NodePtr>> named;
  NodePtr extra_positional, extra_named;
  std::unique_ptr<Block> block;
  FilterFunction filter = nullptr;
  TestFunction test = nullptr;
  bool exported = false;  // a top-level assignment, which {% block %} bodies see
};

struct Tree {
  NodeList body;
  ScopeInit scope;
  std::uint16_t slots = 0;
  std::vector<const Node*> blocks;  // {% block %}: they see top-level variables through the context
};

}  // namespace xgen::text::jinja
