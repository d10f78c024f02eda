// The operator's routes: what the models are doing, and loading and unloading them.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "http/server.h"
#include "registry/registry.h"
#include "server/proxies.h"

namespace xgen::server {

// Operators are on this machine: permission_denied for requests from elsewhere, also through a proxy here; for those
// that a web page of another origin sends through a browser here (Origin), and for names that were made to point here
// (Host).
Status check_operator(const http::Request& request, const Proxies& trusted);

// The NAME in {"FIELD": NAME}. Errors: invalid_argument.
Result<std::string> parse_name(std::string_view body, std::string_view field);

// {"models":[{name, aliases, state, progress, ...}], "memory":{"host":{total, reserved, borrowed, "models":[...]}}}
std::string admin_models_json(const registry::Registry& registry);
// One of the models.
// Why the model is as it is, or what its engine says is wrong; empty if nothing is.
std::string detail_of(const registry::ModelEntry& entry);
std::string admin_model_json(const registry::ModelEntry& entry);

}  // namespace xgen::server
