// The management paths of XGEN's gateway: the same registry as the operators' routes, in the gateway's own words.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "registry/registry.h"

namespace xgen::server {

// A request to load a model, checked against the table of its fields.
struct LoadRequest {
  std::string name;  // empty: after the path
  std::string path;  // empty: a model that is known by its name
  struct Setting {
    std::string key;    // of a model in models.yaml
    std::string value;  // as it would stand there
    std::string field;  // of the request, for messages
  };
  std::vector<Setting> settings;
};

// Errors: invalid_argument or unsupported, naming the field. Unknown fields are refused.
Result<LoadRequest> parse_load_request(std::string_view body);
// The name in {"model_name": NAME}. Errors: invalid_argument.
Result<std::string> parse_unload_request(std::string_view body);

// LOADING, LOADED, UNLOADING or ERROR; UNLOADED where a request or an operator may still load it.
std::string_view gateway_state(const registry::ModelEntry& entry);
// {"model_name", "status", "progress", "error", …}
std::string gateway_model_json(const registry::ModelEntry& entry);
// {"status", "models": [...]}: what is on its way goes before what went wrong.
std::string loading_status_json(const registry::Registry& registry);

// The fields of a load request as Markdown, for docs/api.md.
std::string load_fields_markdown();

}  // namespace xgen::server
