#include "api/errors.h"

#include "api/json_writer.h"

namespace xgen::api {
namespace {

constexpr ErrorKind kKinds[] = {
    {ErrorCode::invalid_argument, 400, "invalid_request_error", ""},
    {ErrorCode::unsupported, 400, "invalid_request_error", "unsupported_parameter"},
    {ErrorCode::unauthenticated, 401, "authentication_error", "invalid_api_key"},
    {ErrorCode::permission_denied, 403, "permission_error", "permission_denied"},
    {ErrorCode::not_found, 404, "invalid_request_error", "model_not_found"},
    {ErrorCode::timeout, 408, "timeout_error", "request_timeout"},
    {ErrorCode::too_large, 413, "invalid_request_error", "request_too_large"},
    {ErrorCode::overloaded, 429, "rate_limit_error", "rate_limit_exceeded"},
    {ErrorCode::cancelled, 499, "invalid_request_error", "client_closed_request"},
    {ErrorCode::internal, 500, "server_error", "internal_error"},
    {ErrorCode::unavailable, 503, "server_error", "service_unavailable"},
};

}  // namespace

const ErrorKind& error_kind(ErrorCode code) {
  for (const ErrorKind& kind : kKinds)
    if (kind.code == code) return kind;
  return error_kind(ErrorCode::internal);
}

ErrorCode error_code_of_status(int status) {
  for (const ErrorKind& kind : kKinds)
    if (kind.status == status) return kind.code;
  const bool ours = status >= 500 && status != 505;  // 505: an HTTP version that is not spoken
  return ours ? ErrorCode::internal : ErrorCode::invalid_argument;
}

std::string error_json(const Error& error, std::string_view code) {
  std::string out = R"({"error":{"message":)";
  append_json_string(out, error.message);
  out += R"(,"type":)";
  append_json_string(out, error_kind(error.code).type);
  out += R"(,"param":)";
  if (error.param.empty())
    out += "null";
  else
    append_json_string(out, error.param);
  out += R"(,"code":)";
  if (code.empty())
    out += "null";
  else
    append_json_string(out, code);
  out += "}}";
  return out;
}

std::string error_json(const Error& error) { return error_json(error, error_kind(error.code).name); }

std::string errors_markdown() {
  std::string out = "| status | type | code |\n| --- | --- | --- |\n";
  for (const ErrorKind& kind : kKinds) {
    if (kind.code == ErrorCode::cancelled) continue;  // in the log only: nobody is there to read it
    out += "| " + std::to_string(kind.status) + " | " + std::string(kind.type) + " | " +
           (kind.name.empty() ? "null" : std::string(kind.name)) + " |\n";
  }
  return out;
}

}  // namespace xgen::api
