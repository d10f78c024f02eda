// The bodies of OpenAI's requests, parsed once into valid typed calls or an error that names the field.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "inference/model_service.h"
#include "inference/types.h"

namespace xgen::api {

// Values are bits: a parameter belongs to a set of endpoints.
enum class Endpoint : unsigned char { completions = 1, chat = 2, tokenize = 4, detokenize = 8 };

struct ParseOptions {
  bool reject_unknown = true;  // false: fields that are in no specification are let through and listed in `unknown`
};

struct GenerateCall {
  Endpoint endpoint = Endpoint::chat;
  std::string model;
  std::vector<inference::GenerateRequest> requests;  // one per prompt, equal but for the prompt; request_id is empty
  bool stream = false;
  bool include_usage = false;
  std::vector<std::string> unknown;
};

struct TokenizeCall {
  std::string model;  // may be empty
  inference::TokenizeRequest request;
  bool return_token_strs = false;
  std::vector<std::string> unknown;
};

struct DetokenizeCall {
  std::string model;  // may be empty
  inference::DetokenizeRequest request;
  std::vector<std::string> unknown;
};

// `endpoint` is completions or chat. Errors: invalid_argument or unsupported, with the field as `param`.
Result<GenerateCall> parse_generate(Endpoint endpoint, std::string_view body, const ParseOptions& options = {});
Result<TokenizeCall> parse_tokenize(std::string_view body, const ParseOptions& options = {});
Result<DetokenizeCall> parse_detokenize(std::string_view body, const ParseOptions& options = {});

// The parameters of all endpoints as Markdown, from the table that drives the parsing.
std::string parameters_markdown();
// What one request may hold at most, as Markdown.
std::string limits_markdown();

}  // namespace xgen::api
