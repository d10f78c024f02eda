// The parameter table: one row per field of a request. Parsing, validation and the reference page all read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "api/requests.h"
#include "base/result.h"

namespace boost::json {
class value;
}

namespace xgen::api {

// The most that one request may hold; the reference page lists them.
inline constexpr std::size_t kMaxPrompts = 256;
inline constexpr std::size_t kMaxChoices = 1024;  // prompts times n
inline constexpr std::size_t kMaxMessages = 4096;
inline constexpr std::size_t kMaxParts = 1024;  // of one message's content
inline constexpr std::size_t kMaxNameBytes = 256;
inline constexpr std::size_t kMaxTools = 512;
inline constexpr std::size_t kMaxToolCalls = 512;     // of one message
inline constexpr std::size_t kMaxFunctionName = 128;  // bytes
inline constexpr std::size_t kMaxStops = 16;
inline constexpr std::size_t kMaxStopBytes = 1024;
inline constexpr std::size_t kMaxStopTokens = 256;
inline constexpr std::size_t kMaxLogitBias = 1024;
inline constexpr std::size_t kMaxJsonDepth = 128;

// What the fields of one body have said so far; requests.cpp checks how they fit together.
struct Draft {
  Endpoint endpoint = Endpoint::chat;
  std::string model;
  std::vector<inference::Prompt> prompts;
  std::optional<std::vector<inference::Message>> messages;
  inference::Sampling sampling;
  inference::StopRules stop;
  std::optional<int> max_completion_tokens;
  int n = 1;
  std::optional<int> best_of;
  std::optional<int> logprobs;  // completions
  bool chat_logprobs = false;
  std::optional<int> top_logprobs;
  bool echo = false;
  bool stream = false;
  bool stream_options = false;
  bool include_usage = false;
  int priority = 0;
  std::optional<bool> add_special_tokens;
  bool add_generation_prompt = true;
  bool return_token_strs = false;
  std::optional<std::vector<inference::TokenId>> tokens;
  std::vector<inference::Tool> tools;
  inference::ToolChoice tool_choice;
  std::optional<bool> parallel_tool_calls;
  inference::ResponseFormat response_format;
  std::vector<inference::Extension> extensions;
};

enum class Kind : std::uint8_t { integer, number, boolean, string, structure };
enum class Support : std::uint8_t {
  works,
  no_effect,  // accepted with any value: it means nothing to a server of one's own
  passed,     // for engines that know it (inference::Extension); null and the `no_op` values are not passed
  refused,    // understood, not offered; null and the `no_op` values are accepted
};

struct Parameter {
  std::string_view name;
  unsigned endpoints = 0;  // bits of Endpoint
  Support support = Support::works;
  Kind kind = Kind::structure;
  double min = 0;  // of integer and number
  double max = 0;
  bool above_min = false;          // min itself is not allowed
  std::string_view shape;          // of a structure, in words: "'stop' must be …"
  std::string_view default_value;  // for the reference page
  std::string_view no_op;          // JSON array, if passed or refused
  std::string_view doc;
  // Works only: the value has been checked against kind and range, except for a structure.
  Status (*store)(const boost::json::value& value, Draft& draft) = nullptr;
};

std::span<const Parameter> parameters();
// Null if no specification defines the field for this endpoint.
const Parameter* find_parameter(Endpoint endpoint, std::string_view name);

// Checks one value and stores it. Errors name the parameter.
Status apply_parameter(const Parameter& parameter, const boost::json::value& value, Draft& draft);

}  // namespace xgen::api
