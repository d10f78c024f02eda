#include "api/chat_body.h"

#include <algorithm>
#include <set>
#include <utility>

#include "api/field_errors.h"
#include "base/json.h"

namespace xgen::api {
namespace {

namespace json = boost::json;
using inference::ContentPart;
using inference::Message;
using inference::ResponseFormat;
using inference::Tool;
using inference::ToolCall;
using inference::ToolChoice;

bool is_empty(const json::value& value) { return value.is_null() || (value.is_array() && value.get_array().empty()); }

std::string at(const std::string& where, std::size_t index) { return where + "[" + std::to_string(index) + "]"; }
std::string_view name_of(const json::key_value_pair& field) { return {field.key().data(), field.key().size()}; }

// A field's text, or empty where the field is absent or null.
Result<std::string> optional_text(const json::object& object, std::string_view key, const std::string& where) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || value->is_null()) return std::string();
  if (!value->is_string()) return must_be(member(where, key), "a string", *value);
  return std::string(text_of(value->get_string()));
}
Result<std::string> required_text(const json::object& object, std::string_view key, const std::string& where) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_string())
    return invalid("'" + member(where, key) + "' must be a string", member(where, key));
  return std::string(text_of(value->get_string()));
}
Result<std::optional<bool>> optional_bool(const json::object& object, std::string_view key, const std::string& where) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || value->is_null()) return std::optional<bool>();
  if (!value->is_bool()) return must_be(member(where, key), "a boolean", *value);
  return std::optional<bool>(value->get_bool());
}

// Fields that are neither null nor among the known ones.
Status only(const json::object& object, std::initializer_list<std::string_view> known, const std::string& where) {
  for (const auto& field : object) {
    const std::string_view name = name_of(field);
    if (!field.value().is_null() && std::find(known.begin(), known.end(), name) == known.end())
      return not_supported(member(where, name), field.value());
  }
  return {};
}

// As OpenAI has it, and with the dots of servers' namespaces.
bool is_function_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxFunctionName && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.';
  });
}
Result<std::string> function_name(const json::object& function, const std::string& where) {
  auto name = required_text(function, "name", where);
  if (name && !is_function_name(*name))
    return invalid("'" + member(where, "name") + "' must be 1 to " + std::to_string(kMaxFunctionName) +
                       " letters, digits, '_', '-' or '.'",
                   member(where, "name"));
  return name;
}

// {"type": "function", "function": {…}}: the inner object.
Result<const json::object*> function_of(const json::value& value, const std::string& where) {
  const json::object* object = value.if_object();
  if (object == nullptr) return must_be(where, "an object with type and function", value);
  const json::value* type = object->if_contains("type");
  if (type == nullptr || !type->is_string())
    return invalid("'" + member(where, "type") + "' must be a string", member(where, "type"));
  if (type->get_string() != "function") return not_supported(member(where, "type"), *type);
  const json::value* function = object->if_contains("function");
  if (function == nullptr || !function->is_object())
    return invalid("'" + member(where, "function") + "' must be an object", member(where, "function"));
  return &function->get_object();
}

Result<ContentPart> read_image(const json::object& part, const std::string& where) {
  const json::value* image = part.if_contains("image_url");
  const json::object* object = image != nullptr ? image->if_object() : nullptr;
  if (object == nullptr)
    return invalid("'" + member(where, "image_url") + "' must be an object with url", member(where, "image_url"));
  const std::string name = member(where, "image_url");
  auto url = required_text(*object, "url", name);
  if (!url) return std::move(url).error();
  const auto is = [&](std::string_view scheme) { return std::string_view(*url).starts_with(scheme); };
  if (!is("data:") && !is("http://") && !is("https://"))
    return invalid("'" + member(name, "url") + "' must begin with data:, http:// or https://", member(name, "url"));
  auto detail = optional_text(*object, "detail", name);
  if (!detail) return std::move(detail).error();
  if (!detail->empty() && *detail != "low" && *detail != "high" && *detail != "auto")
    return invalid("'" + member(name, "detail") + "' must be low, high or auto", member(name, "detail"));
  if (Status status = only(*object, {"url", "detail"}, name); !status) return std::move(status).error();
  return ContentPart{ContentPart::Kind::image, std::move(*url), std::move(*detail)};
}

// Parts of type text are joined by line breaks where there are no others.
Status read_content(const json::value& value, const std::string& where, Message& message) {
  if (const json::string* text = value.if_string()) {
    message.content = text_of(*text);
    return {};
  }
  const json::array* list = value.if_array();
  if (list == nullptr) return must_be(where, "a string or a list of parts", value);
  if (list->size() > kMaxParts)
    return invalid("'" + where + "' may hold at most " + std::to_string(kMaxParts) + " parts", where);
  std::vector<ContentPart> parts;
  bool images = false;
  for (std::size_t i = 0; i < list->size(); ++i) {
    const std::string part_name = at(where, i);
    const json::object* part = (*list)[i].if_object();
    if (part == nullptr) return must_be(part_name, "an object with type and text", (*list)[i]);
    const json::value* type = part->if_contains("type");
    if (type == nullptr || !type->is_string())
      return invalid("'" + part_name + ".type' must be a string", part_name + ".type");
    if (type->get_string() == "image_url") {
      auto image = read_image(*part, part_name);
      if (!image) return std::move(image).error();
      if (Status status = only(*part, {"type", "image_url"}, part_name); !status) return status;
      parts.push_back(*std::move(image));
      images = true;
      continue;
    }
    if (type->get_string() != "text") return not_supported(part_name + ".type", *type);
    auto text = required_text(*part, "text", part_name);
    if (!text) return std::move(text).error();
    if (Status status = only(*part, {"type", "text"}, part_name); !status) return status;
    parts.push_back({ContentPart::Kind::text, *std::move(text), {}});
  }
  if (images) {
    message.parts = std::move(parts);
    return {};
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) message.content += '\n';
    message.content += parts[i].value;
  }
  return {};
}

Status read_tool_calls(const json::value& value, const std::string& where, std::vector<ToolCall>& out) {
  const json::array* list = value.if_array();
  if (list == nullptr) return must_be(where, "a list of calls", value);
  if (list->size() > kMaxToolCalls)
    return invalid("'" + where + "' may hold at most " + std::to_string(kMaxToolCalls) + " calls", where);
  for (std::size_t i = 0; i < list->size(); ++i) {
    const std::string name = at(where, i);
    const auto function = function_of((*list)[i], name);
    if (!function) return function.error();
    ToolCall call;
    auto id = required_text((*list)[i].get_object(), "id", name);
    if (!id) return std::move(id).error();
    auto called = function_name(**function, member(name, "function"));
    if (!called) return std::move(called).error();
    auto arguments = optional_text(**function, "arguments", member(name, "function"));
    if (!arguments) return std::move(arguments).error();
    out.push_back({*std::move(id), *std::move(called), *std::move(arguments)});
  }
  return {};
}

Status read_message(const json::value& value, const std::string& where, Message& message) {
  const json::object* object = value.if_object();
  if (object == nullptr) return must_be(where, "an object with role and content", value);
  const json::value* role = object->if_contains("role");
  if (role == nullptr || !role->is_string() || role->get_string().empty() || role->get_string().size() > kMaxNameBytes)
    return invalid("'" + where + ".role' must be a string such as system, user or assistant", where + ".role");
  message.role = text_of(role->get_string());
  const json::value* content = object->if_contains("content");
  if (content == nullptr || content->is_null()) {
    // OpenAI's own answers carry null where an assistant only called tools.
    if (message.role != "assistant")
      return invalid("'" + where + ".content' must be a string or a list of parts", where + ".content");
  } else if (Status status = read_content(*content, where + ".content", message); !status) {
    return status;
  }
  for (const auto& each : *object) {
    const std::string_view key = name_of(each);
    const json::value& field = each.value();
    if (key == "role" || key == "content" || is_empty(field)) continue;
    const std::string name = member(where, key);
    if (key == "tool_calls") {
      if (message.role != "assistant") return invalid("'" + name + "' belongs to messages of the assistant", name);
      if (Status status = read_tool_calls(field, name, message.tool_calls); !status) return status;
      continue;
    }
    if (key == "tool_call_id" && message.role != "tool")
      return invalid("'" + name + "' belongs to messages of role tool", name);
    if (key == "reasoning_content" || key == "reasoning") {
      if (!field.is_string()) return must_be(name, "a string", field);
      message.reasoning = text_of(field.get_string());
      continue;
    }
    if (key != "name" && key != "tool_call_id") return not_supported(name, field);
    if (!field.is_string() || field.get_string().size() > kMaxNameBytes) return must_be(name, "a short string", field);
    (key == "name" ? message.name : message.tool_call_id) = text_of(field.get_string());
  }
  return {};
}

}  // namespace

Status store_messages(const json::value& value, Draft& draft) {
  const json::array* list = value.if_array();
  if (list == nullptr) return must_be("messages", "a list of messages", value);
  if (list->empty()) return invalid("'messages' must hold at least one message", "messages");
  if (list->size() > kMaxMessages)
    return invalid("'messages' may hold at most " + std::to_string(kMaxMessages) + " messages, got " +
                       std::to_string(list->size()),
                   "messages");
  std::vector<Message> messages(list->size());
  for (std::size_t i = 0; i < list->size(); ++i)
    if (Status status = read_message((*list)[i], at("messages", i), messages[i]); !status) return status;
  draft.messages = std::move(messages);
  return {};
}

Status store_tools(const json::value& value, Draft& draft) {
  const json::array* list = value.if_array();
  if (list == nullptr) return must_be("tools", "a list of functions", value);
  if (list->size() > kMaxTools)
    return invalid(
        "'tools' may hold at most " + std::to_string(kMaxTools) + " functions, got " + std::to_string(list->size()),
        "tools");
  std::set<std::string> names;
  for (std::size_t i = 0; i < list->size(); ++i) {
    const std::string where = at("tools", i);
    const auto function = function_of((*list)[i], where);
    if (!function) return function.error();
    const std::string inner = member(where, "function");
    auto name = function_name(**function, inner);
    if (!name) return std::move(name).error();
    if (!names.insert(*name).second)
      return invalid("'" + member(inner, "name") + "' is used by an earlier function already", member(inner, "name"));
    auto description = optional_text(**function, "description", inner);
    if (!description) return std::move(description).error();
    auto strict = optional_bool(**function, "strict", inner);
    if (!strict) return std::move(strict).error();
    Tool tool{*std::move(name), *std::move(description), {}, *strict};
    if (const json::value* parameters = (*function)->if_contains("parameters");
        parameters != nullptr && !parameters->is_null()) {
      if (!parameters->is_object())
        return must_be(member(inner, "parameters"), "a JSON Schema (an object)", *parameters);
      tool.parameters = json::serialize(*parameters);
    }
    if (Status status = only(**function, {"name", "description", "parameters", "strict"}, inner); !status)
      return status;
    draft.tools.push_back(std::move(tool));
  }
  return {};
}

Status store_tool_choice(const json::value& value, Draft& draft) {
  using Mode = ToolChoice::Mode;
  if (const json::string* text = value.if_string()) {
    for (const auto& [word, mode] :
         {std::pair{"none", Mode::none}, {"auto", Mode::automatic}, {"required", Mode::required}})
      if (*text == word) {
        draft.tool_choice.mode = mode;
        return {};
      }
    return must_be("tool_choice", "none, auto, required or a function of 'tools'", value);
  }
  const auto function = function_of(value, "tool_choice");
  if (!function) return function.error();
  auto name = function_name(**function, "tool_choice.function");
  if (!name) return std::move(name).error();
  draft.tool_choice = {Mode::named, *std::move(name)};
  return {};
}

Status check_tools(const Draft& draft) {
  const ToolChoice& choice = draft.tool_choice;
  if (choice.mode != ToolChoice::Mode::required && choice.mode != ToolChoice::Mode::named) return {};
  if (draft.tools.empty()) return invalid("'tool_choice' asks for a call, but 'tools' has no function", "tool_choice");
  if (choice.mode == ToolChoice::Mode::named &&
      std::none_of(draft.tools.begin(), draft.tools.end(), [&](const Tool& tool) { return tool.name == choice.name; }))
    return invalid("'tool_choice' names a function that is not among 'tools'", "tool_choice");
  return {};
}

Status store_response_format(const json::value& value, Draft& draft) {
  const std::string where = "response_format";
  const json::object* object = value.if_object();
  if (object == nullptr) return must_be(where, "an object with type", value);
  auto type = required_text(*object, "type", where);
  if (!type) return std::move(type).error();
  ResponseFormat& format = draft.response_format;
  if (*type == "text" || *type == "json_object") {
    format.kind = *type == "text" ? ResponseFormat::Kind::text : ResponseFormat::Kind::json_object;
    return only(*object, {"type"}, where);
  }
  if (*type != "json_schema") return not_supported(member(where, "type"), *object->if_contains("type"));
  const std::string inner = member(where, "json_schema");
  const json::value* spec = object->if_contains("json_schema");
  if (spec == nullptr || !spec->is_object())
    return invalid("'" + inner + "' must be an object with name and schema", inner);
  const json::object& given = spec->get_object();
  format.kind = ResponseFormat::Kind::json_schema;
  auto name = function_name(given, inner);
  if (!name) return std::move(name).error();
  format.name = *std::move(name);
  auto description = optional_text(given, "description", inner);
  if (!description) return std::move(description).error();
  format.description = *std::move(description);
  auto strict = optional_bool(given, "strict", inner);
  if (!strict) return std::move(strict).error();
  format.strict = *strict;
  if (const json::value* schema = given.if_contains("schema"); schema != nullptr && !schema->is_null()) {
    if (!schema->is_object()) return must_be(member(inner, "schema"), "a JSON Schema (an object)", *schema);
    format.schema = json::serialize(*schema);
  }
  if (Status status = only(given, {"name", "description", "schema", "strict"}, inner); !status) return status;
  return only(*object, {"type", "json_schema"}, where);
}

}  // namespace xgen::api
