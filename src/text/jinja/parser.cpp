#include "text/jinja/parser.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>

#include "text/jinja/error.h"
#include "text/jinja/lexer.h"

namespace xgen::text::jinja {
namespace {

using Names = std::initializer_list<std::string_view>;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  NodeList run() { return statements_until({}); }

 private:
  struct Nesting {
    explicit Nesting(Parser& owner) : parser(owner) {
      if (++parser.nesting_ > kMaxParserDepth) fail_syntax("the template is nested too deeply", parser.current().line);
    }
    ~Nesting() { --parser.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;
    Parser& parser;
  };

  // --- tokens ------------------------------------------------------------------------------------------------------

  const Token& current() const { return tokens_[at_]; }
  const Token& look() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  const Token& next() {
    const Token& token = tokens_[at_];
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool is_name(std::string_view text) const { return current().type == TokenType::name && current().text == text; }
  bool is_op(std::string_view text) const { return current().type == TokenType::op && current().text == text; }
  bool is_any_name(const Names& names) const {
    return std::any_of(names.begin(), names.end(), [this](std::string_view name) { return is_name(name); });
  }
  bool skip_name(std::string_view text) {
    if (!is_name(text)) return false;
    next();
    return true;
  }
  bool skip_op(std::string_view text) {
    if (!is_op(text)) return false;
    next();
    return true;
  }
  [[noreturn]] void fail_here(std::string message) const { fail_syntax(std::move(message), current().line); }
  [[noreturn]] void fail_expected(std::string_view what) const {
    if (current().type == TokenType::end)
      fail_here("unexpected end of template, expected '" + std::string(what) + "'.");
    fail_here("expected token '" + std::string(what) + "', got '" + describe(current()) + "'");
  }
  void expect_op(std::string_view text) {
    if (!skip_op(text)) fail_expected(text);
  }
  const Token& expect_name() {
    if (current().type != TokenType::name) fail_expected("name");
    return next();
  }
  void expect(TokenType type) {
    if (current().type != type) fail_expected(describe(Token{type, 0, "", Value()}));
    next();
  }

  // --- nodes -------------------------------------------------------------------------------------------------------

  static NodePtr make(Kind kind, int line) { return std::make_unique<Node>(kind, line); }

  static void deepen(Node& node, const NodePtr& child) {
    if (!child) return;
    node.depth = std::max(node.depth, child->depth + 1);
    if (node.depth > kMaxTreeDepth) fail_syntax("an expression is nested too deeply", node.line);
  }
  static void add(Node& node, NodePtr child) {
    deepen(node, child);
    node.children.push_back(std::move(child));
  }
  static NodePtr make_with(Kind kind, int line, NodePtr first) {
    NodePtr node = make(kind, line);
    add(*node, std::move(first));
    return node;
  }
  static NodePtr make_with(Kind kind, int line, NodePtr first, NodePtr second) {
    NodePtr node = make_with(kind, line, std::move(first));
    add(*node, std::move(second));
    return node;
  }
  static NodePtr make_constant(Value value, int line) {
    NodePtr node = make(Kind::constant, line);
    node->value = std::move(value);
    return node;
  }

  // --- statements --------------------------------------------------------------------------------------------------

  // Statements until one of the tags named; that tag's name is then the current token. With no names: until the end.
  NodeList statements_until(const Names& ends) {
    const Nesting nesting(*this);
    if (++statement_depth_ > kMaxStatementDepth) fail_here("the template's statements are nested too deeply");
    NodeList out;
    NodePtr output;
    const auto flush = [&] {
      if (output) out.push_back(std::move(output));
    };
    const auto emit = [&](NodePtr node) {
      if (!output) output = make(Kind::output, node->line);
      output->children.push_back(std::move(node));
    };
    while (current().type != TokenType::end) {
      const Token& token = current();
      if (token.type == TokenType::data) {
        NodePtr node = make(Kind::data, token.line);
        node->text = token.text;
        emit(std::move(node));
        next();
      } else if (token.type == TokenType::variable_begin) {
        next();
        emit(parse_tuple(true, {}, false));
        expect(TokenType::variable_end);
      } else {
        flush();
        next();
        if (is_any_name(ends)) {
          --statement_depth_;
          return out;
        }
        out.push_back(statement());
        expect(TokenType::block_end);
      }
    }
    flush();
    if (ends.size() != 0) {
      std::string wanted;
      for (const std::string_view name : ends) wanted += (wanted.empty() ? "'" : " or '") + std::string(name) + "'";
      fail_here("Unexpected end of template. Jinja was looking for the following tags: " + wanted + ".");
    }
    return out;
  }

  // After a tag's head: ":" may stand there, then the tag ends and its body follows.
  NodeList body_until(const Names& ends) {
    skip_op(":");
    expect(TokenType::block_end);
    return statements_until(ends);
  }
  NodeList body_until_dropping(std::string_view end) {
    NodeList out = body_until({end});
    next();
    return out;
  }

  NodePtr statement() {
    if (current().type != TokenType::name) fail_here("tag name expected");
    const std::string& tag = current().text;
    const int line = current().line;
    if (tag == "for") return for_loop();
    if (tag == "if") return if_else();
    if (tag == "set") return set();
    if (tag == "macro") return macro();
    if (tag == "call") return call_block();
    if (tag == "filter") return filter_block();
    if (tag == "with") return with();
    if (tag == "print") return print();
    if (tag == "block") return block();
    if (tag == "break" || tag == "continue") {
      const Kind kind = tag == "break" ? Kind::loop_break : Kind::loop_continue;
      next();
      return make(kind, line);
    }
    if (tag == "generation") {
      next();
      NodePtr node = make(Kind::generation, line);
      node->block = std::make_unique<Block>();
      node->block->body = body_until_dropping("endgeneration");
      return node;
    }
    if (tag == "include" || tag == "import" || tag == "from" || tag == "extends")
      fail_here("{% " + tag + " %} is not supported: a chat template stands alone");
    if (tag == "autoescape") fail_here("{% autoescape %} is not supported");
    fail_here("Encountered unknown tag '" + tag + "'.");
  }

  NodePtr for_loop() {
    NodePtr node = make(Kind::for_loop, next().line);
    node->block = std::make_unique<Block>();
    add(*node, assign_target(false, {"in"}));
    if (!skip_name("in")) fail_expected("in");
    add(*node, parse_tuple(false, {"recursive"}, false));
    add(*node, skip_name("if") ? expression() : nullptr);
    node->block->recursive = skip_name("recursive");
    node->block->body = body_until({"endfor", "else"});
    if (next().text == "else") node->block->otherwise = body_until_dropping("endfor");
    return node;
  }

  NodePtr if_else() {
    NodePtr result = make(Kind::if_else, next().line);
    Node* node = result.get();
    for (;;) {
      node->block = std::make_unique<Block>();
      add(*node, parse_tuple(false, {}, false));
      node->block->body = body_until({"elif", "else", "endif"});
      const std::string tag = next().text;
      if (tag == "elif") {
        result->block->branches.push_back(make(Kind::if_else, current().line));
        node = result->block->branches.back().get();
        continue;
      }
      if (tag == "else") result->block->otherwise = body_until_dropping("endif");
      return result;
    }
  }

  NodePtr set() {
    NodePtr node = make(Kind::set, next().line);
    add(*node, assign_target(true, {}));
    if (skip_op("=")) {
      add(*node, parse_tuple(true, {}, false));
      return node;
    }
    node->kind = Kind::set_block;
    node->block = std::make_unique<Block>();
    add(*node, filters(nullptr, false));
    node->block->body = body_until_dropping("endset");
    return node;
  }

  void signature(Block& block) {
    expect_op("(");
    while (!is_op(")")) {
      if (!block.parameters.empty()) expect_op(",");
      NodePtr parameter = name_target();
      for (const NodePtr& other : block.parameters)
        if (other->text == parameter->text)
          fail_syntax("duplicate argument '" + parameter->text + "'", parameter->line);
      if (skip_op("="))
        block.defaults.push_back(expression());
      else if (!block.defaults.empty())
        fail_here("non-default argument follows default argument");
      block.parameters.push_back(std::move(parameter));
    }
    expect_op(")");
  }

  NodePtr macro() {
    NodePtr node = make(Kind::macro, next().line);
    node->block = std::make_unique<Block>();
    node->text = name_target()->text;
    signature(*node->block);
    node->block->body = body_until_dropping("endmacro");
    return node;
  }

  NodePtr call_block() {
    NodePtr node = make(Kind::call_block, next().line);
    node->block = std::make_unique<Block>();
    if (is_op("(")) signature(*node->block);
    NodePtr call = expression();
    if (call->kind != Kind::call) fail_syntax("expected call", node->line);
    add(*node, std::move(call));
    node->block->body = body_until_dropping("endcall");
    return node;
  }

  NodePtr filter_block() {
    NodePtr node = make(Kind::filter_block, next().line);
    node->block = std::make_unique<Block>();
    add(*node, filters(nullptr, true));
    node->block->body = body_until_dropping("endfilter");
    return node;
  }

  NodePtr with() {
    NodePtr node = make(Kind::with, next().line);
    node->block = std::make_unique<Block>();
    Block& block = *node->block;
    while (current().type != TokenType::block_end) {
      if (!block.parameters.empty()) expect_op(",");
      block.parameters.push_back(assign_target(false, {}));
      expect_op("=");
      block.defaults.push_back(expression());
    }
    block.body = body_until_dropping("endwith");
    return node;
  }

  NodePtr print() {
    NodePtr node = make(Kind::output, next().line);
    while (current().type != TokenType::block_end) {
      if (!node->children.empty()) expect_op(",");
      add(*node, expression());
    }
    return node;
  }

  NodePtr block() {
    NodePtr node = make(Kind::block, next().line);
    node->block = std::make_unique<Block>();
    node->text = expect_name().text;
    if (is_any_name({"scoped", "required"})) fail_here("{% block %} does not support '" + current().text + "'");
    node->block->body = body_until_dropping("endblock");
    skip_name(node->text);
    return node;
  }

  // --- assignment targets ------------------------------------------------------------------------------------------

  NodePtr name_target() {
    const Token& token = expect_name();
    NodePtr node = make(Kind::name, token.line);
    node->text = token.text;
    check_target(*node);
    return node;
  }

  NodePtr assign_target(bool with_namespace, const Names& ends) {
    NodePtr target = parse_tuple(false, ends, false, true, with_namespace);
    check_target(*target);
    return target;
  }

  static void check_target(const Node& node) {
    if (node.kind == Kind::namespace_entry) return;
    if (node.kind == Kind::name) {
      static constexpr std::array<std::string_view, 6> kConstants = {"true", "false", "none", "True", "False", "None"};
      if (std::find(kConstants.begin(), kConstants.end(), node.text) == kConstants.end()) return;
    }
    if (node.kind == Kind::tuple) {
      for (const NodePtr& item : node.children) check_target(*item);
      return;
    }
    fail_syntax("can't assign to this expression", node.line);
  }

  // --- expressions -------------------------------------------------------------------------------------------------

  bool at_tuple_end(const Names& ends) const {
    return current().type == TokenType::variable_end || current().type == TokenType::block_end || is_op(")") ||
           is_any_name(ends);
  }

  NodePtr parse_tuple(bool with_conditional, const Names& ends, bool in_parentheses, bool simplified = false,
                      bool with_namespace = false) {
    const Nesting nesting(*this);
    NodePtr node = make(Kind::tuple, current().line);
    bool is_tuple = false;
    for (;;) {
      if (!node->children.empty()) expect_op(",");
      if (at_tuple_end(ends)) break;
      add(*node, simplified ? primary(with_namespace) : expression(with_conditional));
      if (!is_op(",")) break;
      is_tuple = true;
    }
    if (!is_tuple) {
      if (!node->children.empty()) return std::move(node->children.front());
      if (!in_parentheses) fail_here("Expected an expression, got '" + describe(current()) + "'");
    }
    return node;
  }

  NodePtr expression(bool with_conditional = true) {
    const Nesting nesting(*this);
    return with_conditional ? conditional() : logical_or();
  }

  NodePtr conditional() {
    const Nesting nesting(*this);
    int line = current().line;
    NodePtr out = logical_or();
    while (skip_name("if")) {
      NodePtr test = logical_or();
      NodePtr otherwise = skip_name("else") ? conditional() : nullptr;
      NodePtr node = make_with(Kind::conditional, line, std::move(test), std::move(out));
      add(*node, std::move(otherwise));
      out = std::move(node);
      line = current().line;
    }
    return out;
  }

  NodePtr logical_or() {
    NodePtr left = logical_and();
    while (is_name("or")) {
      const int line = next().line;
      left = make_with(Kind::logical_or, line, std::move(left), logical_and());
    }
    return left;
  }

  NodePtr logical_and() {
    NodePtr left = logical_not();
    while (is_name("and")) {
      const int line = next().line;
      left = make_with(Kind::logical_and, line, std::move(left), logical_not());
    }
    return left;
  }

  NodePtr logical_not() {
    if (!is_name("not")) return compare();
    const Nesting nesting(*this);
    const int line = next().line;
    return make_with(Kind::logical_not, line, logical_not());
  }

  std::optional<Comparison> comparison() {
    if (current().type == TokenType::op) {
      const std::string& op = current().text;
      if (op == "==") return Comparison::equal;
      if (op == "!=") return Comparison::not_equal;
      if (op == "<") return Comparison::less;
      if (op == "<=") return Comparison::less_equal;
      if (op == ">") return Comparison::greater;
      if (op == ">=") return Comparison::greater_equal;
      return std::nullopt;
    }
    if (is_name("in")) return Comparison::in;
    if (is_name("not") && look().type == TokenType::name && look().text == "in") {
      next();
      return Comparison::not_in;
    }
    return std::nullopt;
  }

  NodePtr compare() {
    const int line = current().line;
    NodePtr first = additive();
    std::optional<Comparison> op = comparison();
    if (!op) return first;
    NodePtr node = make_with(Kind::compare, line, std::move(first));
    for (; op; op = comparison()) {
      next();
      node->comparisons.push_back(*op);
      add(*node, additive());
    }
    return node;
  }

  NodePtr make_binary(BinaryOp op, int line, NodePtr left, NodePtr right) {
    NodePtr node = make_with(Kind::binary, line, std::move(left), std::move(right));
    node->operation = op;
    return node;
  }

  NodePtr additive() {
    NodePtr left = concat();
    while (is_op("+") || is_op("-")) {
      const BinaryOp op = is_op("+") ? BinaryOp::add : BinaryOp::sub;
      const int line = next().line;
      left = make_binary(op, line, std::move(left), concat());
    }
    return left;
  }

  NodePtr concat() {
    const int line = current().line;
    NodePtr first = multiplicative();
    if (!is_op("~")) return first;
    NodePtr node = make_with(Kind::concat, line, std::move(first));
    while (skip_op("~")) add(*node, multiplicative());
    return node;
  }

  NodePtr multiplicative() {
    NodePtr left = power();
    for (;;) {
      BinaryOp op = BinaryOp::mul;
      if (is_op("/"))
        op = BinaryOp::div;
      else if (is_op("//"))
        op = BinaryOp::floor_div;
      else if (is_op("%"))
        op = BinaryOp::mod;
      else if (!is_op("*"))
        return left;
      const int line = next().line;
      left = make_binary(op, line, std::move(left), power());
    }
  }

  NodePtr power() {
    NodePtr left = unary(true);
    while (is_op("**")) {
      const int line = next().line;
      left = make_binary(BinaryOp::pow, line, std::move(left), unary(true));
    }
    return left;
  }

  NodePtr unary(bool with_filters) {
    const Nesting nesting(*this);
    NodePtr node;
    if (is_op("-") || is_op("+")) {
      const Kind kind = is_op("-") ? Kind::negate : Kind::plus;
      const int line = next().line;
      node = make_with(kind, line, unary(false));
    } else {
      node = primary(false);
    }
    node = postfix(std::move(node));
    return with_filters ? filter_expression(std::move(node)) : std::move(node);
  }

  NodePtr primary(bool with_namespace) {
    const Nesting nesting(*this);
    const Token& token = current();
    switch (token.type) {
      case TokenType::name: {
        next();
        if (token.text == "true" || token.text == "True") return make_constant(true, token.line);
        if (token.text == "false" || token.text == "False") return make_constant(false, token.line);
        if (token.text == "none" || token.text == "None") return make_constant(Value::none(), token.line);
        NodePtr node = make(Kind::name, token.line);
        node->text = token.text;
        if (with_namespace && skip_op(".")) {
          node->kind = Kind::namespace_entry;
          node->value = Value(expect_name().text);
        }
        return node;
      }
      case TokenType::string: {
        std::string text;
        while (current().type == TokenType::string) text += next().text;
        return make_constant(Value(std::move(text)), token.line);
      }
      case TokenType::integer:
      case TokenType::real:
        next();
        return make_constant(token.value, token.line);
      case TokenType::op:
        if (token.text == "(") {
          next();
          NodePtr node = parse_tuple(true, {}, true);
          expect_op(")");
          return node;
        }
        if (token.text == "[") return list_literal();
        if (token.text == "{") return dict_literal();
        break;
      default:
        break;
    }
    fail_here("unexpected '" + describe(token) + "'");
  }

  NodePtr list_literal() {
    NodePtr node = make(Kind::list, next().line);
    while (!is_op("]")) {
      if (!node->children.empty()) expect_op(",");
      if (is_op("]")) break;
      add(*node, expression());
    }
    expect_op("]");
    return node;
  }

  NodePtr dict_literal() {
    NodePtr node = make(Kind::dict, next().line);
    while (!is_op("}")) {
      if (!node->children.empty()) expect_op(",");
      if (is_op("}")) break;
      add(*node, expression());
      expect_op(":");
      add(*node, expression());
    }
    expect_op("}");
    return node;
  }

  NodePtr postfix(NodePtr node) {
    for (;;) {
      if (is_op(".") || is_op("["))
        node = subscript(std::move(node));
      else if (is_op("("))
        node = call(std::move(node));
      else
        return node;
    }
  }

  NodePtr filter_expression(NodePtr node) {
    for (;;) {
      if (is_op("|"))
        node = filters(std::move(node), false);
      else if (is_name("is"))
        node = test(std::move(node));
      else if (is_op("("))
        node = call(std::move(node));
      else
        return node;
    }
  }

  NodePtr subscript(NodePtr object) {
    const Token& token = next();
    if (token.text == ".") {
      const Token& attribute = next();
      if (attribute.type == TokenType::name) {
        NodePtr node = make_with(Kind::attribute, token.line, std::move(object));
        node->text = attribute.text;
        return node;
      }
      if (attribute.type != TokenType::integer) fail_syntax("expected name or number", attribute.line);
      return make_with(Kind::item, token.line, std::move(object), make_constant(attribute.value, attribute.line));
    }
    NodePtr index = make(Kind::tuple, token.line);
    while (!is_op("]")) {
      if (!index->children.empty()) expect_op(",");
      add(*index, subscript_part());
    }
    expect_op("]");
    if (index->children.size() == 1) {
      NodePtr only = std::move(index->children.front());
      return make_with(Kind::item, token.line, std::move(object), std::move(only));
    }
    for (const NodePtr& part : index->children)
      if (part->kind == Kind::slice) fail_syntax("a slice inside a tuple is not supported", token.line);
    return make_with(Kind::item, token.line, std::move(object), std::move(index));
  }

  NodePtr subscript_part() {
    const int line = current().line;
    NodePtr start;
    if (!is_op(":")) {
      start = expression();
      if (!is_op(":")) return start;
    }
    next();
    const auto at_part_end = [this] { return is_op("]") || is_op(","); };
    NodePtr stop, step;
    if (!is_op(":") && !at_part_end()) stop = expression();
    if (skip_op(":") && !at_part_end()) step = expression();
    NodePtr node = make_with(Kind::slice, line, std::move(start), std::move(stop));
    add(*node, std::move(step));
    return node;
  }

  void call_arguments(Node& node) {
    const int line = current().line;
    expect_op("(");
    bool first = true;
    const auto ensure = [line](bool valid) {
      if (!valid) fail_syntax("invalid syntax for function call expression", line);
    };
    while (!is_op(")")) {
      if (!first) {
        expect_op(",");
        if (is_op(")")) break;
      }
      first = false;
      if (skip_op("*")) {
        ensure(!node.extra_positional && !node.extra_named);
        node.extra_positional = expression();
        deepen(node, node.extra_positional);
      } else if (skip_op("**")) {
        ensure(!node.extra_named);
        node.extra_named = expression();
        deepen(node, node.extra_named);
      } else if (current().type == TokenType::name && look().type == TokenType::op && look().text == "=") {
        ensure(!node.extra_named);
        const std::string key = next().text;
        next();
        for (const auto& [other, value] : node.named)
          if (other == key) fail_syntax("keyword argument repeated: " + key, line);
        node.named.emplace_back(key, expression());
        deepen(node, node.named.back().second);
      } else {
        ensure(!node.extra_positional && !node.extra_named && node.named.empty());
        add(node, expression());
      }
    }
    expect_op(")");
  }

  NodePtr call(NodePtr callee) {
    NodePtr node = make_with(Kind::call, current().line, std::move(callee));
    call_arguments(*node);
    return node;
  }

  std::string dotted_name() {
    std::string name = expect_name().text;
    while (skip_op(".")) name += "." + expect_name().text;
    return name;
  }

  NodePtr filters(NodePtr node, bool inline_start) {
    while (inline_start || is_op("|")) {
      if (!inline_start) next();
      inline_start = false;
      const int line = current().line;
      std::string name = dotted_name();
      node = make_with(Kind::filter, line, std::move(node));
      node->text = std::move(name);
      if (is_op("(")) call_arguments(*node);
    }
    return node;
  }

  bool starts_test_argument() const {
    switch (current().type) {
      case TokenType::name:
        return !is_any_name({"else", "or", "and"});
      case TokenType::string:
      case TokenType::integer:
      case TokenType::real:
        return true;
      case TokenType::op:
        return is_op("[") || is_op("{");
      default:
        return false;
    }
  }

  NodePtr test(NodePtr subject) {
    const int line = next().line;
    const bool negated = skip_name("not");
    std::string name = dotted_name();
    NodePtr node = make_with(Kind::test, line, std::move(subject));
    node->text = std::move(name);
    if (is_op("(")) {
      call_arguments(*node);
    } else if (starts_test_argument()) {
      if (is_name("is")) fail_here("You cannot chain multiple tests with is");
      add(*node, postfix(primary(false)));
    }
    return negated ? make_with(Kind::logical_not, line, std::move(node)) : std::move(node);
  }

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int nesting_ = 0;
  int statement_depth_ = 0;
};

}  // namespace

NodeList parse(std::string_view source) { return Parser(source).run(); }

}  // namespace xgen::text::jinja
