// Methods of Python's types, and how call arguments are bound to parameters.
#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "text/jinja/builtins.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/loop.h"
#include "text/jinja/python.h"
#include "text/jinja/unicode.h"

namespace xgen::text::jinja {

Bound::Bound(std::string_view function, std::initializer_list<std::string_view> names, const Arguments& arguments,
             std::size_t required)
    : function_(function) {
  const auto fail_call = [&](const std::string& what) { fail(std::string(function) + "() " + what); };
  if (arguments.positional.size() > names.size())
    fail_call("takes at most " + std::to_string(names.size()) + " arguments (" +
              std::to_string(arguments.positional.size()) + " given)");
  for (std::size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
  for (const auto& [key, value] : arguments.named) {
    const auto* it = std::find(names.begin(), names.end(), key);
    if (it == names.end()) fail_call("got an unexpected keyword argument '" + key + "'");
    const auto index = static_cast<std::size_t>(it - names.begin());
    if (values_[index] != nullptr) fail_call("got multiple values for argument '" + key + "'");
    values_[index] = &value;
  }
  for (std::size_t i = 0; i < required; ++i)
    if (values_[i] == nullptr) fail_call("missing required argument '" + std::string(names.begin()[i]) + "'");
}

std::int64_t Bound::integer(std::size_t index, std::int64_t otherwise) const {
  if (values_[index] == nullptr) return otherwise;
  const Value& value = *values_[index];
  if (value.is(Type::undefined)) fail_undefined(value);
  if (!is_integral(value))
    fail(std::string(function_) + "(): '" + std::string(type_name(value)) +
         "' object cannot be interpreted as an integer");
  return integral(value);
}

bool Bound::boolean(std::size_t index, bool otherwise) const {
  return values_[index] == nullptr ? otherwise : truthy(*values_[index]);
}

const std::string& Bound::text(std::size_t index) const {
  const Value& value = *values_[index];
  if (value.is(Type::undefined)) fail_undefined(value);
  if (!value.is(Type::string))
    fail(std::string(function_) + "() argument must be str, not " + std::string(type_name(value)));
  return value.as_string();
}

namespace {

using Table = std::unordered_map<std::string_view, MethodFunction>;

// A string result of a method of `self`: Markup stays Markup.
Value same_kind(Interpreter& interpreter, const Value& self, std::string text) {
  return make_string(interpreter.budget(), std::move(text), is_markup(self));
}

// An argument that becomes part of a Markup is escaped first.
std::string adapted(const Value& self, const Value& argument) {
  return is_markup(self) && !is_markup(argument) ? escape_html(argument.as_string()) : argument.as_string();
}

const std::string& text_of(Interpreter& interpreter, const Value& self) {
  interpreter.budget().charge(self.as_string().size());
  return self.as_string();
}

template <std::string (*Function)(std::string_view)>
Value map_text(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound none("str method", {}, arguments);
  return same_kind(interpreter, self, Function(text_of(interpreter, self)));
}

// isalpha() and the like: not empty, and every code point passes.
template <bool (*Function)(char32_t)>
Value all_points(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound none("str method", {}, arguments);
  const std::vector<char32_t> points = decode(text_of(interpreter, self));
  return !points.empty() && std::all_of(points.begin(), points.end(), Function);
}

bool is_alnum(char32_t c) { return is_alpha(c) || is_numeric(c); }

template <bool Upper>
Value all_cased(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound none("str method", {}, arguments);
  bool any = false;
  for (const char32_t c : decode(text_of(interpreter, self))) {
    if (is_title(c) || (Upper ? is_lower(c) : is_upper(c))) return false;
    any = any || is_cased(c);
  }
  return any;
}

Value str_istitle(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound none("istitle", {}, arguments);
  bool any = false, previous_cased = false;
  for (const char32_t c : decode(text_of(interpreter, self))) {
    if (is_upper(c) || is_title(c)) {
      if (previous_cased) return false;
      previous_cased = any = true;
    } else if (is_lower(c)) {
      if (!previous_cased) return false;
      any = true;
    } else {
      previous_cased = false;
    }
  }
  return any;
}

template <bool Left, bool Right>
Value str_strip(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("strip", {"chars"}, arguments);
  std::string_view text = text_of(interpreter, self);
  if (!bound.given(0) || bound[0]->is(Type::none)) {
    if (Left) text = strip_left(text);
    if (Right) text = strip_right(text);
    return same_kind(interpreter, self, std::string(text));
  }
  const std::vector<char32_t> set = decode(bound.text(0));
  const std::vector<char32_t> points = decode(text);
  interpreter.budget().charge(points.size() * (1 + set.size() / 8));
  const auto in_set = [&](char32_t c) { return std::find(set.begin(), set.end(), c) != set.end(); };
  std::size_t first = 0, last = points.size();
  while (Left && first < last && in_set(points[first])) ++first;
  while (Right && last > first && in_set(points[last - 1])) --last;
  return same_kind(interpreter, self, encode(points.data() + first, points.data() + last));
}

// --- splitting and joining -----------------------------------------------------------------------------------------

std::vector<std::string> split_space(std::string_view text, std::int64_t limit, bool from_right) {
  std::vector<std::string> out;
  if (!from_right) {
    text = strip_left(text);
    while (!text.empty()) {
      if (limit >= 0 && static_cast<std::int64_t>(out.size()) == limit) {
        out.emplace_back(strip_right(text));
        return out;
      }
      std::size_t end = 0;
      while (end < text.size()) {
        const CodePoint c = decode_at(text, end);
        if (is_space(c.value)) break;
        end += c.size;
      }
      out.emplace_back(text.substr(0, end));
      text = strip_left(text.substr(end));
    }
    return out;
  }
  const std::vector<char32_t> points = decode(text);
  std::size_t end = points.size();
  while (end > 0) {
    while (end > 0 && is_space(points[end - 1])) --end;
    if (end == 0) break;
    std::size_t begin = end;
    if (limit >= 0 && static_cast<std::int64_t>(out.size()) == limit) {
      begin = 0;
      while (is_space(points[begin])) ++begin;
    } else {
      while (begin > 0 && !is_space(points[begin - 1])) --begin;
    }
    out.push_back(encode(points.data() + begin, points.data() + end));
    if (limit >= 0 && static_cast<std::int64_t>(out.size()) > limit) break;
    end = begin;
  }
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string> split_on(std::string_view text, std::string_view separator, std::int64_t limit,
                                  bool from_right) {
  std::vector<std::string> out;
  const auto more = [&] { return limit < 0 || static_cast<std::int64_t>(out.size()) < limit; };
  if (!from_right) {
    for (std::size_t at = 0; more() && (at = text.find(separator)) != std::string_view::npos;) {
      out.emplace_back(text.substr(0, at));
      text.remove_prefix(at + separator.size());
    }
    out.emplace_back(text);
    return out;
  }
  for (std::size_t at = 0; more() && (at = text.rfind(separator)) != std::string_view::npos;) {
    out.emplace_back(text.substr(at + separator.size()));
    text = text.substr(0, at);
  }
  out.emplace_back(text);
  std::reverse(out.begin(), out.end());
  return out;
}

Value string_list(Interpreter& interpreter, const Value& self, std::vector<std::string> parts) {
  std::vector<Value> out;
  interpreter.budget().charge(parts.size() * (sizeof(Value) + sizeof(StringObject)));
  out.reserve(parts.size());
  for (std::string& part : parts) out.push_back(same_kind(interpreter, self, std::move(part)));
  return make_list(interpreter.budget(), std::move(out));
}

template <bool FromRight>
Value str_split(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("split", {"sep", "maxsplit"}, arguments);
  const std::int64_t limit = bound.integer(1, -1);
  const std::string& text = text_of(interpreter, self);
  if (!bound.given(0) || bound[0]->is(Type::none))
    return string_list(interpreter, self, split_space(text, limit, FromRight));
  const std::string& separator = bound.text(0);
  if (separator.empty()) fail("empty separator");
  return string_list(interpreter, self, split_on(text, separator, limit, FromRight));
}

Value str_splitlines(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("splitlines", {"keepends"}, arguments);
  const bool keep = bound.boolean(0, false);
  const std::string& text = text_of(interpreter, self);
  std::vector<std::string> out;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_at(text, at);
    const std::size_t end = at;
    at += c.size;
    if (!is_line_break(c.value)) continue;
    if (c.value == '\r' && at < text.size() && text[at] == '\n') ++at;
    out.push_back(text.substr(begin, (keep ? at : end) - begin));
    begin = at;
  }
  if (begin < text.size()) out.push_back(text.substr(begin));
  return string_list(interpreter, self, std::move(out));
}

template <bool FromRight>
Value str_partition(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("partition", {"sep"}, arguments, 1);
  const std::string& separator = bound.text(0);
  if (separator.empty()) fail("empty separator");
  const std::string& text = text_of(interpreter, self);
  const std::size_t at = FromRight ? text.rfind(separator) : text.find(separator);
  std::string parts[3];
  if (at == std::string::npos) {
    parts[FromRight ? 2 : 0] = text;
  } else {
    parts[0] = text.substr(0, at);
    parts[1] = separator;
    parts[2] = text.substr(at + separator.size());
  }
  std::vector<Value> out;
  for (std::string& part : parts) out.push_back(same_kind(interpreter, self, std::move(part)));
  return make_tuple(interpreter.budget(), std::move(out));
}

Value str_join(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("join", {"iterable"}, arguments, 1);
  std::string out;
  std::int64_t index = 0;
  Cursor cursor(interpreter.budget(), *bound[0]);
  for (Value item; cursor.next(item); ++index) {
    if (!item.is(Type::string) && !is_markup(self))
      fail("sequence item " + std::to_string(index) + ": expected str instance, " + std::string(type_name(item)) +
           " found");
    if (index > 0) out += self.as_string();
    append_str(interpreter.budget(), is_markup(self) ? escape(interpreter.budget(), item) : item, out);
    interpreter.budget().charge(self.as_string().size());
  }
  return same_kind(interpreter, self, std::move(out));
}

Value str_replace(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("replace", {"old", "new", "count"}, arguments, 2);
  const std::string& text = text_of(interpreter, self);
  const std::string& from = bound.text(0);
  bound.text(1);
  const std::string to = adapted(self, *bound[1]);
  std::int64_t limit = bound.integer(2, -1);
  std::string out;
  const auto grow = [&](std::string_view part) {
    out += part;
    interpreter.budget().charge(part.size());
    if (out.size() > interpreter.budget().limits().max_output) interpreter.budget().charge(out.size());
  };
  if (from.empty()) {
    // The replacement goes before every code point and at the end.
    std::size_t at = 0;
    while (limit != 0) {
      grow(to);
      if (limit > 0) --limit;
      if (at >= text.size()) return same_kind(interpreter, self, std::move(out));
      const std::size_t size = decode_at(text, at).size;
      grow(std::string_view(text).substr(at, size));
      at += size;
    }
    grow(std::string_view(text).substr(at));
    return same_kind(interpreter, self, std::move(out));
  }
  std::size_t at = 0;
  for (std::size_t hit = 0; limit != 0 && (hit = text.find(from, at)) != std::string::npos; at = hit + from.size()) {
    grow(std::string_view(text).substr(at, hit - at));
    grow(to);
    if (limit > 0) --limit;
  }
  grow(std::string_view(text).substr(at));
  return same_kind(interpreter, self, std::move(out));
}

// --- searching -----------------------------------------------------------------------------------------------------

// The part of `text` between two optional code point positions, and the position it begins at.
struct Window {
  std::string_view text;
  std::int64_t start = 0;
  bool valid = true;  // start is not beyond the end
};

Window window(Interpreter& interpreter, const std::string& text, const Bound& bound, std::size_t first) {
  Window out{text, 0, true};
  const bool has_start = bound.given(first) && !bound[first]->is(Type::none);
  const bool has_stop = bound.given(first + 1) && !bound[first + 1]->is(Type::none);
  if (!has_start && !has_stop) return out;
  interpreter.budget().charge(text.size());
  const auto size = static_cast<std::int64_t>(count_code_points(text));
  const auto clamp = [size](std::int64_t at) { return at < 0 ? std::max<std::int64_t>(at + size, 0) : at; };
  const std::int64_t start = has_start ? clamp(bound.integer(first, 0)) : 0;
  const std::int64_t stop = std::min(has_stop ? clamp(bound.integer(first + 1, size)) : size, size);
  if (start > size || start > stop) return {{}, start, start <= size && start <= stop};
  const std::size_t begin = byte_offset(text, static_cast<std::size_t>(start));
  const std::size_t end =
      begin + byte_offset(std::string_view(text).substr(begin), static_cast<std::size_t>(stop - start));
  return {std::string_view(text).substr(begin, end - begin), start, true};
}

template <bool FromRight, bool Fails>
Value str_find(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("find", {"sub", "start", "end"}, arguments, 1);
  const std::string& wanted = bound.text(0);
  const Window in = window(interpreter, text_of(interpreter, self), bound, 1);
  const std::size_t at = !in.valid ? std::string_view::npos : FromRight ? in.text.rfind(wanted) : in.text.find(wanted);
  if (at == std::string_view::npos) {
    if (Fails) fail("substring not found");
    return std::int64_t{-1};
  }
  return in.start + static_cast<std::int64_t>(count_code_points(in.text.substr(0, at)));
}

Value str_count(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("count", {"sub", "start", "end"}, arguments, 1);
  const std::string& wanted = bound.text(0);
  const Window in = window(interpreter, text_of(interpreter, self), bound, 1);
  if (!in.valid) return std::int64_t{0};
  if (wanted.empty()) return static_cast<std::int64_t>(count_code_points(in.text)) + 1;
  std::int64_t count = 0;
  for (std::size_t at = 0; (at = in.text.find(wanted, at)) != std::string_view::npos; at += wanted.size()) ++count;
  return count;
}

template <bool AtStart>
Value str_starts_or_ends(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound(AtStart ? "startswith" : "endswith", {"prefix", "start", "end"}, arguments, 1);
  const Window in = window(interpreter, self.as_string(), bound, 1);
  const auto matches = [&](const Value& affix) {
    if (!affix.is(Type::string)) {
      if (affix.is(Type::undefined)) fail_undefined(affix);
      fail(std::string(AtStart ? "startswith" : "endswith") + " first arg must be str or a tuple of str, not " +
           std::string(type_name(affix)));
    }
    const std::string& wanted = affix.as_string();
    interpreter.budget().step(1 + wanted.size() / 32);
    if (!in.valid || wanted.size() > in.text.size()) return false;
    return AtStart ? in.text.substr(0, wanted.size()) == wanted
                   : in.text.substr(in.text.size() - wanted.size()) == wanted;
  };
  if (!bound[0]->is(Type::tuple)) return matches(*bound[0]);
  for (const Value& affix : items_of(*bound[0]))
    if (matches(affix)) return true;
  return false;
}

template <bool Prefix>
Value str_remove_affix(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("removeprefix", {"prefix"}, arguments, 1);
  const std::string& affix = bound.text(0);
  std::string_view text = text_of(interpreter, self);
  if (!affix.empty() && affix.size() <= text.size()) {
    if (Prefix && text.substr(0, affix.size()) == affix)
      text.remove_prefix(affix.size());
    else if (!Prefix && text.substr(text.size() - affix.size()) == affix)
      text.remove_suffix(affix.size());
  }
  return same_kind(interpreter, self, std::string(text));
}

// --- padding -------------------------------------------------------------------------------------------------------

// 'l' and 'r' put the text left and right, 'c' in the middle as str.center does.
Value pad_text(Interpreter& interpreter, const Value& self, std::int64_t width, const std::string& fill, char where) {
  const std::string& text = text_of(interpreter, self);
  const auto size = static_cast<std::int64_t>(count_code_points(text));
  if (width <= size) return same_kind(interpreter, self, text);
  const auto missing = static_cast<std::size_t>(width - size);
  if (missing > interpreter.budget().limits().max_output / fill.size()) interpreter.budget().charge(missing);
  interpreter.budget().charge(missing * fill.size());
  const std::size_t left = where == 'l'   ? 0
                           : where == 'r' ? missing
                                          : missing / 2 + (missing & static_cast<std::size_t>(width) & 1U);
  std::string out;
  for (std::size_t i = 0; i < left; ++i) out += fill;
  out += text;
  for (std::size_t i = left; i < missing; ++i) out += fill;
  return same_kind(interpreter, self, std::move(out));
}

template <char Where>
Value str_pad(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("center", {"width", "fillchar"}, arguments, 1);
  std::string fill = " ";
  if (bound.given(1)) {
    if (count_code_points(bound.text(1)) != 1) fail("The fill character must be exactly one character long");
    fill = bound.text(1);
  }
  return pad_text(interpreter, self, bound.integer(0, 0), fill, Where);
}

Value str_zfill(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("zfill", {"width"}, arguments, 1);
  const std::string& text = self.as_string();
  const bool has_sign = !text.empty() && (text[0] == '+' || text[0] == '-');
  const Value digits(has_sign ? text.substr(1) : text);
  const Value padded = pad_text(interpreter, digits, bound.integer(0, 0) - (has_sign ? 1 : 0), "0", 'r');
  return same_kind(interpreter, self, (has_sign ? text.substr(0, 1) : "") + padded.as_string());
}

Value str_expandtabs(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("expandtabs", {"tabsize"}, arguments);
  const std::int64_t size = bound.integer(0, 8);
  if (size > 1024) fail_limit("expandtabs: the tab size is too large");
  std::string out;
  std::int64_t column = 0;
  for (const char32_t c : decode(text_of(interpreter, self))) {
    if (c == '\t') {
      const std::int64_t spaces = size > 0 ? size - column % size : 0;
      interpreter.budget().charge(static_cast<std::size_t>(spaces));
      out.append(static_cast<std::size_t>(spaces), ' ');
      column += spaces;
    } else {
      append_utf8(out, c);
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
  }
  return same_kind(interpreter, self, std::move(out));
}

Value str_isidentifier(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound none("isidentifier", {}, arguments);
  const std::vector<char32_t> points = decode(text_of(interpreter, self));
  return !points.empty() && is_identifier_start(points[0]) &&
         std::all_of(points.begin() + 1, points.end(), is_identifier_part);
}

Value str_isascii(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound none("isascii", {}, arguments);
  return is_ascii(text_of(interpreter, self));
}

Value str_isprintable(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound none("isprintable", {}, arguments);
  const std::vector<char32_t> points = decode(text_of(interpreter, self));
  return std::all_of(points.begin(), points.end(), is_printable);
}

Value str_format(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  return same_kind(interpreter, self, format_string(interpreter, self, arguments));
}

Value str_format_map(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("format_map", {"mapping"}, arguments, 1);
  if (!bound[0]->is(Type::dict)) fail("format_map() argument must be a mapping");
  Arguments named;
  for (const auto& [key, value] : bound[0]->get<DictObject>().items)
    if (key.is(Type::string)) named.named.emplace_back(key.as_string(), value);
  return same_kind(interpreter, self, format_string(interpreter, self, named));
}

const Table& string_methods() {
  static const Table kMethods = {
      {"capitalize", map_text<capitalize>},
      {"casefold", map_text<casefold>},
      {"center", str_pad<'c'>},
      {"count", str_count},
      {"endswith", str_starts_or_ends<false>},
      {"expandtabs", str_expandtabs},
      {"find", str_find<false, false>},
      {"format", str_format},
      {"format_map", str_format_map},
      {"index", str_find<false, true>},
      {"isalnum", all_points<is_alnum>},
      {"isalpha", all_points<is_alpha>},
      {"isascii", str_isascii},
      {"isdecimal", all_points<is_decimal>},
      {"isdigit", all_points<is_digit>},
      {"isidentifier", str_isidentifier},
      {"islower", all_cased<false>},
      {"isnumeric", all_points<is_numeric>},
      {"isprintable", str_isprintable},
      {"isspace", all_points<is_space>},
      {"istitle", str_istitle},
      {"isupper", all_cased<true>},
      {"join", str_join},
      {"ljust", str_pad<'l'>},
      {"lower", map_text<to_lower>},
      {"lstrip", str_strip<true, false>},
      {"partition", str_partition<false>},
      {"removeprefix", str_remove_affix<true>},
      {"removesuffix", str_remove_affix<false>},
      {"replace", str_replace},
      {"rfind", str_find<true, false>},
      {"rindex", str_find<true, true>},
      {"rjust", str_pad<'r'>},
      {"rpartition", str_partition<true>},
      {"rsplit", str_split<true>},
      {"rstrip", str_strip<false, true>},
      {"split", str_split<false>},
      {"splitlines", str_splitlines},
      {"startswith", str_starts_or_ends<true>},
      {"strip", str_strip<true, true>},
      {"swapcase", map_text<swapcase>},
      {"title", map_text<titlecase>},
      {"upper", map_text<to_upper>},
      {"zfill", str_zfill},
  };
  return kMethods;
}

// --- dict, list, tuple, range, numbers -----------------------------------------------------------------------------

template <ViewObject::Part Part>
Value dict_view(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound none("dict view", {}, arguments);
  interpreter.budget().charge(sizeof(ViewObject));
  auto view = std::make_shared<ViewObject>();
  view->dict = self;
  view->part = Part;
  adopt(*view, self);
  return Value(Type::view, std::move(view));
}

Value dict_get(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  if (!arguments.named.empty()) fail("dict.get() takes no keyword arguments");
  const Bound bound("get", {"key", "default"}, arguments, 1);
  if (const Value* found = self.get<DictObject>().find(interpreter.budget(), *bound[0])) return *found;
  return bound.get(1, Value::none());
}

Value dict_copy(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  (void)interpreter;
  const Bound none("copy", {}, arguments);
  return self;
}

Value sequence_count(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("count", {"value"}, arguments, 1);
  std::int64_t count = 0;
  Cursor cursor(interpreter.budget(), self);
  for (Value item; cursor.next(item);) count += equal(interpreter.budget(), item, *bound[0]) ? 1 : 0;
  return count;
}

Value sequence_index(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("index", {"value", "start", "stop"}, arguments, 1);
  const std::int64_t size = length(self).value_or(0);
  const auto clamp = [size](std::int64_t at) { return std::clamp<std::int64_t>(at < 0 ? at + size : at, 0, size); };
  const std::int64_t start = clamp(bound.integer(1, 0)), stop = clamp(bound.integer(2, size));
  Cursor cursor(interpreter.budget(), self);
  std::int64_t index = 0;
  for (Value item; cursor.next(item) && index < stop; ++index)
    if (index >= start && equal(interpreter.budget(), item, *bound[0])) return index;
  fail(to_repr(interpreter.budget(), *bound[0]) + " is not in " + std::string(type_name(self)));
}

Value int_bit_length(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  (void)interpreter;
  const Bound none("bit_length", {}, arguments);
  const std::int64_t value = integral(self);
  std::uint64_t rest = value < 0 ? 0 - static_cast<std::uint64_t>(value) : static_cast<std::uint64_t>(value);
  std::int64_t bits = 0;
  for (; rest != 0; rest >>= 1) ++bits;
  return bits;
}

Value float_is_integer(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  (void)interpreter;
  const Bound none("is_integer", {}, arguments);
  const double value = self.as_double();
  return std::isfinite(value) && std::floor(value) == value;
}

Value loop_cycle(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  (void)interpreter;
  if (!arguments.named.empty()) fail("cycle() got an unexpected keyword argument");
  const auto& items = arguments.positional;
  if (items.empty()) fail("no items for cycling given");
  const auto& loop = self.get<LoopObject>();
  return items[static_cast<std::size_t>(loop.index0) % items.size()];
}

Value loop_changed(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  if (!arguments.named.empty()) fail("changed() got an unexpected keyword argument");
  interpreter.keep(self.object());
  return self.get<LoopObject>().changed(arguments.positional);
}

Value cycler_next(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  (void)interpreter;
  const Bound none("next", {}, arguments);
  auto& cycler = self.get<CyclerObject>();
  Value out = cycler.items[cycler.position];
  cycler.position = (cycler.position + 1) % cycler.items.size();
  return out;
}

Value cycler_reset(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  (void)interpreter;
  const Bound none("reset", {}, arguments);
  self.get<CyclerObject>().position = 0;
  return Value::none();
}

const Table* methods_of(Type type) {
  static const Table kDict = {{"get", dict_get},
                              {"items", dict_view<ViewObject::Part::items>},
                              {"keys", dict_view<ViewObject::Part::keys>},
                              {"values", dict_view<ViewObject::Part::values>},
                              {"copy", dict_copy}};
  static const Table kList = {{"count", sequence_count}, {"index", sequence_index}, {"copy", dict_copy}};
  static const Table kTuple = {{"count", sequence_count}, {"index", sequence_index}};
  static const Table kInt = {{"bit_length", int_bit_length}};
  static const Table kFloat = {{"is_integer", float_is_integer}};
  static const Table kLoop = {{"cycle", loop_cycle}, {"changed", loop_changed}};
  static const Table kCycler = {{"next", cycler_next}, {"reset", cycler_reset}};
  switch (type) {
    case Type::string:
      return &string_methods();
    case Type::dict:
      return &kDict;
    case Type::list:
      return &kList;
    case Type::tuple:
    case Type::range:
      return &kTuple;
    case Type::boolean:
    case Type::integer:
      return &kInt;
    case Type::real:
      return &kFloat;
    case Type::loop:
      return &kLoop;
    case Type::cycler:
      return &kCycler;
    default:
      return nullptr;
  }
}

}  // namespace

MethodFunction find_method(const Value& self, std::string_view name) {
  const Table* table = methods_of(self.type());
  if (table == nullptr) return nullptr;
  const auto it = table->find(name);
  return it == table->end() ? nullptr : it->second;
}

bool is_mutating_method(const Value& self, std::string_view name) {
  static constexpr std::string_view kList[] = {"append", "clear", "pop",    "reverse",
                                               "insert", "sort",  "extend", "remove"};
  static constexpr std::string_view kDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  const auto holds = [name](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  return (self.is(Type::list) && holds(kList)) || (self.is(Type::dict) && holds(kDict));
}

// --- str.format ----------------------------------------------------------------------------------------------------

namespace {

class StringFormatter {
 public:
  StringFormatter(Interpreter& interpreter, const Arguments& arguments, bool markup)
      : interpreter_(interpreter), arguments_(arguments), markup_(markup) {}

  std::string run(std::string_view format, int depth) {
    if (depth > 2) fail("Max string recursion exceeded");
    std::string out;
    for (std::size_t at = 0; at < format.size();) {
      const char c = format[at++];
      if (c == '{' && at < format.size() && format[at] != '{') {
        field(format, at, out, depth);
        interpreter_.budget().charge(16);
        if (out.size() > interpreter_.budget().limits().max_output) interpreter_.budget().charge(out.size());
        continue;
      }
      if (c == '{' || c == '}') {
        if (at >= format.size() || format[at] != c)
          fail(std::string("Single '") + c + "' encountered in format string");
        ++at;
      }
      out += c;
    }
    return out;
  }

 private:
  // `at` is after the '{'; on return after the matching '}'.
  void field(std::string_view format, std::size_t& at, std::string& out, int depth) {
    std::size_t end = at;
    int braces = 1;
    bool in_brackets = false;
    for (; end < format.size(); ++end) {
      const char c = format[end];
      if (c == '[') in_brackets = true;
      if (c == ']') in_brackets = false;
      if (in_brackets) continue;
      if (c == '{') ++braces;
      if (c == '}' && --braces == 0) break;
    }
    if (end >= format.size()) fail("expected '}' before end of string");
    const std::string_view body = format.substr(at, end - at);
    at = end + 1;
    std::size_t name_end = 0;
    bool bracket = false;
    while (name_end < body.size() && (bracket || (body[name_end] != '!' && body[name_end] != ':'))) {
      if (body[name_end] == '[') bracket = true;
      if (body[name_end] == ']') bracket = false;
      ++name_end;
    }
    Value value = look_up(body.substr(0, name_end));
    std::string_view rest = body.substr(name_end);
    if (!rest.empty() && rest[0] == '!') {
      if (rest.size() < 2 || (rest.size() > 2 && rest[2] != ':')) fail("expected ':' after conversion specifier");
      if (rest[1] == 'r' || rest[1] == 'a')
        value = make_string(interpreter_.budget(), to_repr(interpreter_.budget(), value));
      else if (rest[1] == 's')
        value = make_string(interpreter_.budget(), to_str(interpreter_.budget(), value));
      else
        fail(std::string("Unknown conversion specifier ") + rest[1]);
      rest.remove_prefix(2);
    }
    const std::string spec = rest.empty() ? "" : run(rest.substr(1), depth + 1);
    if (markup_ && is_markup(value) && !spec.empty()) fail("Format specifier " + spec + " given to Markup");
    const std::string text = format_value(interpreter_.budget(), value, spec);
    out += markup_ && !is_markup(value) ? escape_html(text) : text;
  }

  Value look_up(std::string_view name) {
    std::size_t at = std::min(name.find_first_of(".["), name.size());
    const std::string first(name.substr(0, at));
    Value value = argument(first);
    while (at < name.size()) {
      if (name[at] == '.') {
        const std::size_t end = std::min(name.find_first_of(".[", at + 1), name.size());
        value = interpreter_.attribute(value, std::string(name.substr(at + 1, end - at - 1)));
        at = end;
      } else if (name[at] == '[') {
        const std::size_t end = name.find(']', at);
        if (end == std::string_view::npos) fail("Missing ']' in format string");
        const std::string key(name.substr(at + 1, end - at - 1));
        if (key.empty()) fail("Empty attribute in format string");
        const bool number = key.find_first_not_of("0123456789") == std::string::npos;
        value = interpreter_.item(value, number ? Value(parse_int(key, 10).value_or(0)) : Value(key));
        at = end + 1;
      } else {
        fail("Only '.' or '[' may follow ']' in format field specifier");
      }
    }
    return value;
  }

  Value argument(const std::string& name) {
    const bool number = name.find_first_not_of("0123456789") == std::string::npos;
    if (!number) {
      for (const auto& [key, value] : arguments_.named)
        if (key == name) return value;
      fail(string_repr(name));
    }
    if (name.empty() ? manual_ : automatic_ > 0)
      fail("cannot switch between manual field specification and automatic field numbering");
    if (!name.empty()) manual_ = true;
    const std::size_t index = name.empty() ? automatic_++ : static_cast<std::size_t>(parse_int(name, 10).value_or(0));
    if (index >= arguments_.positional.size())
      fail("Replacement index " + std::to_string(index) + " out of range for positional args tuple");
    return arguments_.positional[index];
  }

  Interpreter& interpreter_;
  const Arguments& arguments_;
  bool markup_;  // formatting a Markup escapes what goes into it
  std::size_t automatic_ = 0;
  bool manual_ = false;
};

}  // namespace

std::string format_string(Interpreter& interpreter, const Value& format, const Arguments& arguments) {
  interpreter.budget().charge(format.as_string().size());
  return StringFormatter(interpreter, arguments, is_markup(format)).run(format.as_string(), 0);
}

}  // namespace xgen::text::jinja
