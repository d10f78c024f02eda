#include "server/management.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <span>

#include "api/json_writer.h"
#include "base/json.h"
#include "base/model_source.h"

namespace xgen::server {
namespace {

enum class Type : std::uint8_t { text, integer, number, boolean, integers };
constexpr std::string_view kTypeNames[] = {"a string", "an integer", "a number", "true or false", "a list of integers"};

enum class Use : std::uint8_t {
  path,
  name,
  setting,    // `detail` is the key of models.yaml
  only,       // `detail` are the values that are taken, with '|' between them; of a list: none at all
  no_effect,  // taken and not used
};

struct Field {
  std::string_view name;
  Type type;
  Use use;
  std::string_view detail;
  std::string_view doc;
};

constexpr Field kFields[] = {
    {"model_path", Type::text, Use::path, "",
     "A folder or a .gguf file on this machine, by its absolute path, hf://ORG/REPO or s3://BUCKET/PREFIX. Without it, "
     "model_name is one of the models that are known."},
    {"model_name", Type::text, Use::name, "", "What clients put into `model`; by default the last part of the path."},
    {"server_type", Type::text, Use::only, "llm", "There are no embeddings in this version."},
    {"backend", Type::text, Use::only, "auto|native", "What computes the model."},
    {"max_model_len", Type::integer, Use::setting, "max_model_len", ""},
    {"max_num_seqs", Type::integer, Use::setting, "max_num_seqs", ""},
    {"max_num_batched_tokens", Type::integer, Use::setting, "max_num_batched_tokens", ""},
    {"kv_cache_dtype", Type::text, Use::setting, "kv_cache_dtype", ""},
    {"enable_prefix_caching", Type::boolean, Use::setting, "prefix_caching", ""},
    {"quantization", Type::text, Use::only, "auto|none", "Weights keep the format of their files."},
    {"dtype", Type::text, Use::only, "auto", "Weights keep the format of their files."},
    {"gpu_ids", Type::integers, Use::only, "", "This version has no GPU support."},
    {"tensor_parallel_size", Type::integer, Use::only, "1", "A model is computed on one machine."},
    {"pipeline_parallel_size", Type::integer, Use::only, "1", "A model is computed on one machine."},
    {"gpu_memory_utilization", Type::number, Use::no_effect, "", "The budget of all models is `memory.host`."},
    {"swap_space", Type::number, Use::no_effect, "", "Nothing is swapped: sequences are computed again."},
    {"enforce_eager", Type::boolean, Use::no_effect, "", "There are no captured graphs."},
    {"trust_remote_code", Type::boolean, Use::no_effect, "", "Code that comes with a model is never run."},
};

bool is_of_type(const boost::json::value& value, Type type) {
  switch (type) {
    case Type::text:
      return value.is_string();
    case Type::integer:
      return value.is_int64() || value.is_uint64();
    case Type::number:
      return value.is_number();
    case Type::boolean:
      return value.is_bool();
    case Type::integers:
      break;
  }
  const auto* list = value.if_array();
  return list != nullptr && std::all_of(list->begin(), list->end(), [](const auto& each) { return each.is_int64(); });
}

// As it would stand in models.yaml.
std::string plain_text(const boost::json::value& value) {
  if (const auto* text = value.if_string()) return std::string(*text);
  return boost::json::serialize(value);
}

bool is_among(std::string_view value, std::string_view list) {
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find('|', begin), list.size());
    if (list.substr(begin, end - begin) == value) return true;
    begin = end + 1;
  }
  return false;
}

// Says where it leads by itself: an absolute path that goes nowhere up, or hf:// or s3:// (which have their own
// checks).
bool is_plain_source(std::string_view source) {
  const auto control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  if (std::any_of(source.begin(), source.end(), control)) return false;
  if (is_remote_source(source)) return true;
  return source.starts_with('/') && source.find("/../") == std::string_view::npos && !source.ends_with("/..");
}

Result<boost::json::object> parse_object(std::string_view body) {
  auto value = parse_json(body, {.max_depth = 8, .max_size = std::size_t{64} << 10});
  if (!value) {
    Error error = std::move(value).error();
    error.message = "The body of the request: " + error.message;
    return error;
  }
  auto* object = value->if_object();
  if (object == nullptr) return make_error(ErrorCode::invalid_argument, "The body must be a JSON object.");
  return std::move(*object);
}

void field(std::string& out, std::string_view name) {
  if (out.back() != '{' && out.back() != '[') out += ',';
  out.append("\"").append(name).append("\":");
}

}  // namespace

Result<LoadRequest> parse_load_request(std::string_view body) {
  auto object = parse_object(body);
  if (!object) return std::move(object).error();
  LoadRequest request;
  for (const auto& [key, value] : *object) {
    const std::string name(std::string_view(key).substr(0, 100));
    const std::string_view whole = key;
    const auto* known =
        std::find_if(std::begin(kFields), std::end(kFields), [whole](const Field& each) { return each.name == whole; });
    if (known == std::end(kFields))
      return make_error(ErrorCode::invalid_argument, "Unknown field '" + name + "'.", name);
    if (value.is_null()) continue;
    if (!is_of_type(value, known->type)) {
      return make_error(
          ErrorCode::invalid_argument,
          "'" + name + "' must be " + std::string(kTypeNames[static_cast<std::size_t>(known->type)]) + ".", name);
    }
    const std::string text = plain_text(value);
    switch (known->use) {
      case Use::path:
        if (!is_plain_source(text))
          return make_error(
              ErrorCode::invalid_argument,
              "'model_path' must be an absolute path without '..', or hf://ORG/REPO or s3://BUCKET/PREFIX.", name);
        request.path = text;
        break;
      case Use::name:
        request.name = text;
        break;
      case Use::setting:
        request.settings.push_back({std::string(known->detail), text, name});
        break;
      case Use::only: {
        const bool taken = known->type == Type::integers ? value.get_array().empty() : is_among(text, known->detail);
        if (taken) break;
        std::string values(known->detail);
        for (std::size_t at = 0; (at = values.find('|', at)) != std::string::npos;) values.replace(at, 1, " or ");
        return make_error(
            ErrorCode::unsupported,
            "'" + name + "' may only be " + (values.empty() ? "empty" : values) + ": " + std::string(known->doc), name);
      }
      case Use::no_effect:
        break;
    }
  }
  if (request.path.empty() && request.name.empty())
    return make_error(ErrorCode::invalid_argument, "'model_path' or 'model_name' is required.", "model_path");
  if (request.path.empty() && !request.settings.empty()) {
    const std::string& first = request.settings.front().field;
    return make_error(ErrorCode::invalid_argument,
                      "'" + first + "' needs 'model_path': a model that is known by its name has its settings.", first);
  }
  return request;
}

Result<std::string> parse_unload_request(std::string_view body) {
  auto object = parse_object(body);
  if (!object) return std::move(object).error();
  std::string name;
  for (const auto& [key, value] : *object) {
    if (key != "model_name") {
      const std::string unknown(std::string_view(key).substr(0, 100));
      return make_error(ErrorCode::invalid_argument, "Unknown field '" + unknown + "'; only 'model_name' is known.",
                        unknown);
    }
    if (const auto* text = value.if_string()) name = *text;
  }
  if (name.empty())
    return make_error(ErrorCode::invalid_argument, "'model_name' must be the name of a model.", "model_name");
  return name;
}

std::string_view gateway_state(const registry::ModelEntry& entry) {
  using registry::ModelState;
  switch (entry.state) {
    case ModelState::loading:
      return "LOADING";
    case ModelState::ready:
    case ModelState::sleeping:  // the next request wakes it
      return "LOADED";
    case ModelState::draining:
    case ModelState::unloading:
      return "UNLOADING";
    case ModelState::failed:
      return "ERROR";
    case ModelState::unloaded:
      break;
  }
  return "UNLOADED";
}

std::string gateway_model_json(const registry::ModelEntry& entry) {
  std::string out = "{";
  field(out, "model_name");
  api::append_json_string(out, entry.name);
  field(out, "status");
  api::append_json_string(out, gateway_state(entry));
  field(out, "progress");
  api::append_json_float(out, static_cast<float>(entry.progress));
  field(out, "error");
  if (entry.detail.empty()) {
    out += "null";
  } else {
    api::append_json_string(out, entry.detail);
  }
  field(out, "server_type");
  out += "\"llm\"";
  field(out, "backend");
  api::append_json_string(out, entry.engine);
  field(out, "configured");
  out += entry.added ? "false" : "true";
  field(out, "max_model_len");
  if (entry.service) {
    api::append_json_int(out, entry.service->capabilities().max_model_len);
  } else {
    out += "null";
  }
  field(out, "reserved_bytes");
  api::append_json_int(out, static_cast<std::int64_t>(entry.reserved));
  out += '}';
  return out;
}

std::string loading_status_json(const registry::Registry& registry) {
  std::string models = "[";
  bool loading = false;
  bool failed = false;
  for (const registry::ModelEntry& entry : registry.list()) {
    if (models.back() != '[') models += ',';
    models += gateway_model_json(entry);
    loading = loading || entry.state == registry::ModelState::loading;
    failed = failed || entry.state == registry::ModelState::failed;
  }
  std::string out = "{";
  field(out, "status");
  api::append_json_string(out, loading ? "LOADING" : failed ? "ERROR" : "LOADED");
  field(out, "models");
  return out + models + "]}";
}

std::string load_fields_markdown() {
  std::string out = "| field | value | what it does |\n| --- | --- | --- |\n";
  for (const Field& each : kFields) {
    std::string what(each.doc);
    if (each.use == Use::setting) what = std::string("`models[].").append(each.detail).append("`");
    if (each.use == Use::no_effect) what.insert(0, "Taken without effect. ");
    if (each.use == Use::only) {
      std::string values(each.detail);
      for (std::size_t at = 0; (at = values.find('|', at)) != std::string::npos;) values.replace(at, 1, "` or `");
      what.insert(0, values.empty() ? "Only an empty one. " : "Only `" + values + "`. ");
    }
    out.append("| `").append(each.name).append("` | ");
    out.append(kTypeNames[static_cast<std::size_t>(each.type)]).append(" | ").append(what).append(" |\n");
  }
  return out;
}

}  // namespace xgen::server
