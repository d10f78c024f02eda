// The bodies that are sent to an OpenAI server, from one table: neutral field, its JSON name, who knows it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "inference/model_service.h"
#include "remote/dialect.h"

namespace xgen::remote {

// "/chat/completions" or "/completions", below the server's /v1.
std::string_view generate_path(const inference::GenerateRequest& request);
// Asks for a stream, with usage at its end. Errors: unsupported, naming the field that this dialect does not know.
Result<std::string> generate_body(const inference::GenerateRequest& request, std::string_view model, Dialect dialect);

// Errors: unsupported, where the server has no such route or cannot do it.
Result<std::string> tokenize_body(const inference::TokenizeRequest& request, std::string_view model, Dialect dialect);
Result<std::string> detokenize_body(const std::vector<inference::TokenId>& ids, std::string_view model,
                                    Dialect dialect);

// The table as Markdown, for docs/remote-engines.md.
std::string fields_markdown();

}  // namespace xgen::remote
