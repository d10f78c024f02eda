// Errors as OpenAI's clients know them: one table from ErrorCode to HTTP status, type and code.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace xgen::api {

struct ErrorKind {
  ErrorCode code;
  int status;             // HTTP
  std::string_view type;  // error.type
  std::string_view name;  // error.code; empty = null
  std::string_view doc;   // when; empty = never answered
};

const ErrorKind& error_kind(ErrorCode code);
// The kind with this error.code; it must be in the table.
const ErrorKind& error_kind(std::string_view name);
// The kind that a fault found by the HTTP server itself belongs to.
const ErrorKind& error_kind_of_status(int status);

// {"error":{"message","type","param","code"}}
std::string error_json(const Error& error);
std::string error_json(const Error& error, const ErrorKind& kind);

// The table as Markdown rows.
std::string errors_markdown();

}  // namespace xgen::api
