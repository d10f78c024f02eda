// Global functions: Jinja's range, dict, cycler, joiner and namespace, transformers' raise_exception and strftime_now.
#include <array>
#include <ctime>
#include <unordered_map>

#include "text/jinja/builtins.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/python.h"

namespace xgen::text::jinja {
namespace {

using GlobalFunction = Value (*)(Interpreter&, Arguments&);

constexpr std::int64_t kMaxRange = 100000;  // jinja2.sandbox.MAX_RANGE

struct FunctionObject : CallableObject {
  FunctionObject(std::string_view function_name, GlobalFunction function) : name(function_name), code(function) {}
  Value call(Interpreter& interpreter, Arguments& arguments) override { return code(interpreter, arguments); }
  std::string repr() const override { return "<function " + name + ">"; }
  const Value* attribute(std::string_view wanted) const override { return attributes.find(wanted); }
  std::string name;
  GlobalFunction code;
  DictObject attributes;
};

Value global_range(Interpreter& interpreter, Arguments& arguments) {
  (void)interpreter;
  const std::size_t count = arguments.positional.size();
  const Bound bound("range", {"start", "stop", "step"}, arguments, 1);
  if (!arguments.named.empty()) fail("range() takes no keyword arguments");
  const std::int64_t start = count == 1 ? 0 : bound.integer(0, 0);
  const std::int64_t stop = bound.integer(count == 1 ? 0 : 1, 0);
  const std::int64_t step = bound.integer(2, 1);
  if (step == 0) fail("range() arg 3 must not be zero");
  Value out = range_value(start, stop, step);
  if (out.get<RangeObject>().size > kMaxRange)
    fail("Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
  return out;
}

// dict(mapping or pairs, **named)
void fill_dict(Interpreter& interpreter, Arguments& arguments, Object& owner, DictObject& out) {
  Budget& budget = interpreter.budget();
  if (arguments.positional.size() > 1)
    fail("dict expected at most 1 argument, got " + std::to_string(arguments.positional.size()));
  const auto set = [&](Value key, Value value) {
    adopt(owner, key);
    adopt(owner, value);
    budget.charge(2 * sizeof(Value));
    out.set(budget, std::move(key), std::move(value));
  };
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional[0];
    if (source.is(Type::dict)) {
      for (const auto& [key, value] : source.get<DictObject>().items) set(key, value);
    } else {
      Cursor cursor(budget, source);
      for (Value item; cursor.next(item);) {
        std::vector<Value> pair = to_vector(budget, item);
        if (pair.size() != 2)
          fail("dictionary update sequence element has length " + std::to_string(pair.size()) + "; 2 is required");
        set(std::move(pair[0]), std::move(pair[1]));
      }
    }
  }
  for (const auto& [key, value] : arguments.named) set(Value(key), value);
}

Value global_dict(Interpreter& interpreter, Arguments& arguments) {
  auto dict = std::make_shared<DictObject>();
  fill_dict(interpreter, arguments, *dict, *dict);
  return Value(Type::dict, std::move(dict));
}

Value dict_fromkeys(Interpreter& interpreter, Arguments& arguments) {
  const Bound bound("fromkeys", {"iterable", "value"}, arguments, 1);
  auto dict = std::make_shared<DictObject>();
  const Value value = bound.get(1, Value::none());
  adopt(*dict, value);
  Cursor cursor(interpreter.budget(), *bound[0]);
  for (Value key; cursor.next(key);) {
    adopt(*dict, key);
    interpreter.budget().charge(2 * sizeof(Value));
    dict->set(interpreter.budget(), key, value);
  }
  return Value(Type::dict, std::move(dict));
}

Value global_namespace(Interpreter& interpreter, Arguments& arguments) {
  auto object = std::make_shared<NamespaceObject>();
  interpreter.budget().charge(256);
  fill_dict(interpreter, arguments, *object, object->attributes);
  for (const auto& [key, value] : object->attributes.items)
    if (key.is(Type::string) && !key.as_string().empty() && key.as_string()[0] == '_')
      fail("Chat templates cannot store underscore-prefixed attributes on a namespace, but got " +
           string_repr(key.as_string()) + ". Please rename the attribute.");
  interpreter.keep(std::shared_ptr<Object>(object));
  return Value(Type::name_space, std::move(object));
}

Value global_cycler(Interpreter& interpreter, Arguments& arguments) {
  if (!arguments.named.empty()) fail("cycler() takes no keyword arguments");
  if (arguments.positional.empty()) fail("at least one item has to be provided");
  interpreter.budget().charge(arguments.positional.size() * sizeof(Value));
  auto cycler = std::make_shared<CyclerObject>();
  for (const Value& item : arguments.positional) adopt(*cycler, item);
  cycler->items = arguments.positional;
  return Value(Type::cycler, std::move(cycler));
}

struct JoinerObject : CallableObject {
  Value call(Interpreter& interpreter, Arguments& arguments) override {
    (void)interpreter;
    const Bound none("joiner", {}, arguments);
    if (used) return separator;
    used = true;
    return "";
  }
  std::string repr() const override { return "<jinja2.utils.Joiner object>"; }
  Value separator;
  bool used = false;
};

Value global_joiner(Interpreter& interpreter, Arguments& arguments) {
  (void)interpreter;
  const Bound bound("joiner", {"sep"}, arguments);
  auto joiner = std::make_shared<JoinerObject>();
  joiner->separator = bound.get(0, ", ");
  adopt(*joiner, joiner->separator);
  return Value(Type::callable, std::move(joiner));
}

Value global_raise_exception(Interpreter& interpreter, Arguments& arguments) {
  const Bound bound("raise_exception", {"message"}, arguments, 1);
  throw TemplateError{Fault::raised, to_str(interpreter.budget(), *bound[0]), 0};
}

Value global_strftime_now(Interpreter& interpreter, Arguments& arguments) {
  const Bound bound("strftime_now", {"format"}, arguments, 1);
  const std::string& format = bound.text(0);
  if (format.empty()) return "";
  if (format.size() > 1024) fail_limit("strftime_now: the format is too long");
  const std::tm now = interpreter.local_time();
  // A leading byte tells an empty result from one that did not fit.
  const std::string marked = "x" + format;
  std::string out(16384, '\0');
  out.resize(std::strftime(out.data(), out.size(), marked.c_str(), &now));
  return out.empty() ? "" : out.substr(1);
}

using Globals = std::unordered_map<std::string_view, Value>;

Globals make_globals() {
  Globals out;
  const auto add = [&out](std::string_view name, GlobalFunction code) {
    auto function = std::make_shared<FunctionObject>(name, code);
    out.emplace(name, Value(Type::callable, function));
    return function;
  };
  add("range", global_range);
  add("dict", global_dict)
      ->attributes.set("fromkeys", Value(Type::callable, std::make_shared<FunctionObject>("fromkeys", dict_fromkeys)));
  add("namespace", global_namespace);
  add("cycler", global_cycler);
  add("joiner", global_joiner);
  add("raise_exception", global_raise_exception);
  add("strftime_now", global_strftime_now);
  return out;
}

}  // namespace

const Value* find_global(std::string_view name) {
  static const Globals kGlobals = make_globals();
  const auto it = kGlobals.find(name);
  return it == kGlobals.end() ? nullptr : &it->second;
}

}  // namespace xgen::text::jinja
