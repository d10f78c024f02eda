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

// What a request sets beside its prompt: the parameter as clients call it, with its value as OpenAI's JSON. For engines
// that write it otherwise.
struct SetField {
  std::string_view name;
  std::string value;
};
std::vector<SetField> set_fields(const inference::GenerateRequest& request);
// The names that set_fields() knows, in the table's order, each once.
std::vector<std::string_view> field_names();
Error not_supported(std::string_view field, std::string_view engine);

// TGI's grammar {"type": "json", "value": …}, for an answer of this form. Errors: unsupported, where it has no schema.
Result<std::string> tgi_grammar(const inference::ResponseFormat& format);

// The table as Markdown, for docs/remote-engines.md.
std::string fields_markdown();

}  // namespace xgen::remote
