#include "api/errors.h"

#include "api/json_writer.h"

namespace xgen::api {
namespace {

// The first row of a code is what it means by itself; the others belong to what only the HTTP side can find.
constexpr ErrorKind kKinds[] = {
    {ErrorCode::invalid_argument, 400, "invalid_request_error", "",
     "The request is malformed: its JSON, a field that is missing or out of range, a prompt that is too long."},
    {ErrorCode::unsupported, 400, "invalid_request_error", "unsupported_parameter",
     "A field or a value that this server does not know or does not offer."},
    {ErrorCode::unauthenticated, 401, "authentication_error", "invalid_api_key",
     "The server asks for API keys (`server.api_keys_file`), and the request has none, or one that it does not know."},
    {ErrorCode::permission_denied, 403, "permission_error", "permission_denied",
     "An operator's route was asked from elsewhere than this machine, or the API key lacks the scope."},
    {ErrorCode::not_found, 404, "invalid_request_error", "model_not_found", "No model has this name."},
    {ErrorCode::not_found, 404, "invalid_request_error", "not_found", "There is no such route."},
    {ErrorCode::invalid_argument, 405, "invalid_request_error", "method_not_allowed",
     "The route does not know this method; the header `Allow` lists those it knows."},
    {ErrorCode::timeout, 408, "timeout_error", "request_timeout",
     "The request did not arrive in time (`server.header_timeout`, `server.body_timeout`), or its answer was not ready "
     "in time (`server.request_timeout`)."},
    {ErrorCode::too_large, 413, "invalid_request_error", "request_too_large",
     "The body is larger than `server.max_body` (64KiB where the method needs none), or a chat would become too "
     "large."},
    {ErrorCode::invalid_argument, 415, "invalid_request_error", "unsupported_content_encoding",
     "The body has a Content-Encoding other than identity."},
    {ErrorCode::overloaded, 429, "rate_limit_error", "rate_limit_exceeded",
     "As many requests wait for the model as it takes (`max_waiting`), or the rate of the API key is used up."},
    {ErrorCode::invalid_argument, 431, "invalid_request_error", "",
     "The head of the request is larger than `server.max_headers`, or has more than 128 headers."},
    {ErrorCode::cancelled, 499, "invalid_request_error", "client_closed_request", ""},
    {ErrorCode::internal, 500, "server_error", "internal_error", "The server's own fault; its log says more."},
    {ErrorCode::unavailable, 503, "server_error", "service_unavailable",
     "The model is loading or cannot be loaded now, or the server is full (`server.max_connections`, "
     "`server.max_body`) "
     "or shutting down."},
    {ErrorCode::invalid_argument, 505, "invalid_request_error", "", "A version of HTTP other than 1.0 and 1.1."},
};

}  // namespace

const ErrorKind& error_kind(ErrorCode code) {
  for (const ErrorKind& kind : kKinds)
    if (kind.code == code) return kind;
  return error_kind(ErrorCode::internal);
}

const ErrorKind& error_kind(std::string_view name) {
  for (const ErrorKind& kind : kKinds)
    if (kind.name == name) return kind;
  return error_kind(ErrorCode::internal);
}

const ErrorKind& error_kind_of_status(int status) {
  for (const ErrorKind& kind : kKinds)
    if (kind.status == status) return kind;
  return error_kind(status >= 500 ? ErrorCode::internal : ErrorCode::invalid_argument);
}

std::string error_json(const Error& error, const ErrorKind& kind) {
  std::string out = R"({"error":{"message":)";
  append_json_string(out, error.message + error.received);
  out += R"(,"type":)";
  append_json_string(out, kind.type);
  out += R"(,"param":)";
  if (error.param.empty())
    out += "null";
  else
    append_json_string(out, error.param);
  out += R"(,"code":)";
  if (kind.name.empty())
    out += "null";
  else
    append_json_string(out, kind.name);
  out += "}}";
  return out;
}

std::string error_json(const Error& error) { return error_json(error, error_kind(error.code)); }

std::string errors_markdown() {
  std::string out = "| status | type | code | when |\n| --- | --- | --- | --- |\n";
  for (const ErrorKind& kind : kKinds) {
    if (kind.doc.empty()) continue;
    out += "| " + std::to_string(kind.status) + " | " + std::string(kind.type) + " | " +
           (kind.name.empty() ? "null" : std::string(kind.name)) + " | " + std::string(kind.doc) + " |\n";
  }
  return out;
}

}  // namespace xgen::api
