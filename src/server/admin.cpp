#include "server/admin.h"

#include <utility>

#include "api/json_writer.h"
#include "base/json.h"

namespace xgen::server {
namespace {

// "localhost", "127.0.0.1" and "[::1]", with or without a port.
bool names_this_machine(std::string_view host) {
  constexpr std::string_view kLocal = "localhost";
  if (http::equal_ignoring_case(host.substr(0, kLocal.size()), kLocal)) {
    const std::string_view port = host.substr(kLocal.size());
    return port.empty() || IpAddress::parse_endpoint("127.0.0.1" + std::string(port));
  }
  const auto address = IpAddress::parse_endpoint(host);
  return address && address->is_loopback();
}

void field(std::string& out, std::string_view name) {
  if (out.back() != '{' && out.back() != '[') out += ',';
  out.append("\"").append(name).append("\":");
}

void append_list(std::string& out, const std::vector<std::string>& names) {
  out += '[';
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) out += ',';
    api::append_json_string(out, names[i]);
  }
  out += ']';
}

// The replicas of its gateway; none where one engine serves the model.
void append_replicas(std::string& out, const std::vector<inference::ReplicaState>& replicas) {
  out += '[';
  for (const inference::ReplicaState& each : replicas) {
    if (out.back() != '[') out += ',';
    out += '{';
    field(out, "url");
    api::append_json_string(out, each.name);
    field(out, "healthy");
    out += each.healthy ? "true" : "false";
    field(out, "circuit_open");
    out += each.open ? "true" : "false";
    const std::pair<std::string_view, std::uint64_t> counts[] = {
        {"in_flight", static_cast<std::uint64_t>(each.in_flight)},
        {"requests", each.sent},
        {"failures", each.failures},
        {"ejections", each.ejections}};
    for (const auto& [name, count] : counts) {
      field(out, name);
      api::append_json_int(out, static_cast<std::int64_t>(count));
    }
    out += '}';
  }
  out += ']';
}

}  // namespace

Status check_operator(const http::Request& request, const Proxies& trusted) {
  const auto refuse = [](const std::string& why) {
    return make_error(ErrorCode::permission_denied, "The operator's routes answer on this machine only: " + why);
  };
  if (!is_from_here(request, trusted)) {
    const std::string header(forwarding_header(request).substr(0, 64));
    if (header.empty() || from_trusted_proxy(request, trusted)) return refuse("the request came from elsewhere.");
    return refuse("the request came through a proxy (it has the header " + header +
                  ") that server.trusted_proxies does not list.");
  }
  const std::string_view host = request.header("Host");
  if (!names_this_machine(host)) return refuse("the Host header names another.");
  const std::string_view origin = request.header("Origin");
  if (!origin.empty()) {
    const std::size_t scheme = origin.find("://");
    if (scheme == std::string_view::npos || origin.substr(scheme + 3) != host)
      return refuse("the Origin header names another site.");
  }
  return {};
}

Result<std::string> parse_name(std::string_view body, std::string_view field) {
  const std::string quoted = "'" + std::string(field) + "'";
  auto value = parse_json(body, {.max_depth = 4, .max_size = 65536});
  if (!value) {
    Error error = std::move(value).error();
    error.message = "The body of the request: " + error.message;
    return error;
  }
  const auto* object = value->if_object();
  if (object == nullptr)
    return make_error(ErrorCode::invalid_argument,
                      "The body must be an object: {\"" + std::string(field) + "\": NAME}.");
  std::string name;
  for (const auto& [key, each] : *object) {
    if (key != field) {
      return make_error(ErrorCode::invalid_argument,
                        "Unknown field '" + std::string(key).substr(0, 100) + "'; only " + quoted + " is known.",
                        std::string(key).substr(0, 100));
    }
    if (const auto* text = each.if_string()) name = *text;
  }
  if (name.empty()) return make_error(ErrorCode::invalid_argument, quoted + " must be a name.", std::string(field));
  return name;
}

std::string detail_of(const registry::ModelEntry& entry) {
  if (!entry.detail.empty() || !entry.service) return entry.detail;
  inference::Health health = entry.service->health();
  return health.state == inference::Health::State::ready ? std::string() : std::move(health.detail);
}

std::string admin_model_json(const registry::ModelEntry& entry) {
  std::string out = "{";
  field(out, "name");
  api::append_json_string(out, entry.name);
  field(out, "aliases");
  append_list(out, entry.aliases);
  field(out, "fallbacks");
  append_list(out, entry.fallbacks);
  field(out, "state");
  api::append_json_string(out, registry::state_name(entry.state));
  field(out, "progress");
  api::append_json_float(out, static_cast<float>(entry.progress));
  field(out, "detail");
  if (const std::string detail = detail_of(entry); detail.empty()) {
    out += "null";
  } else {
    api::append_json_string(out, detail);
  }
  field(out, "engine");
  api::append_json_string(out, entry.engine);
  field(out, "replicas");
  append_replicas(out, entry.service ? entry.service->replicas() : std::vector<inference::ReplicaState>());
  field(out, "load");
  api::append_json_string(out, entry.on_demand ? "on_demand" : "startup");
  field(out, "pin");
  out += entry.pin ? "true" : "false";
  field(out, "in_use");
  out += entry.in_use ? "true" : "false";
  field(out, "reserved_bytes");
  api::append_json_int(out, static_cast<std::int64_t>(entry.reserved));
  field(out, "borrowed_bytes");
  api::append_json_int(out, static_cast<std::int64_t>(entry.borrowed));
  out += '}';
  return out;
}

std::string admin_models_json(const registry::Registry& registry) {
  std::string out = "{";
  field(out, "models");
  out += '[';
  bool first = true;
  for (const registry::ModelEntry& entry : registry.list()) {
    if (!std::exchange(first, false)) out += ',';
    out += admin_model_json(entry);
  }
  out += ']';
  const MemoryBudget& budget = registry.budget();
  std::uint64_t reserved = 0;
  std::uint64_t borrowed = 0;
  for (const MemoryBudget::Use& use : budget.uses()) {
    reserved += use.reserved;
    borrowed += use.borrowed;
  }
  field(out, "memory");
  out += "{\"host\":{";
  field(out, "total_bytes");
  api::append_json_int(out, static_cast<std::int64_t>(budget.total()));
  field(out, "reserved_bytes");
  api::append_json_int(out, static_cast<std::int64_t>(reserved));
  field(out, "borrowed_bytes");
  api::append_json_int(out, static_cast<std::int64_t>(borrowed));
  out += "}}}";
  return out;
}

}  // namespace xgen::server
