// Which engine a remote server is: all speak OpenAI's /v1, each with its own set of further fields.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace xgen::remote {

// Values are bits: a field belongs to a set of dialects.
enum class Dialect : std::uint8_t {
  unknown = 0,  // not yet told apart: takes every field, and may refuse it by itself
  openai = 1,   // OpenAI's own
  vllm = 2,
  sglang = 4,
  trtllm = 8,     // trtllm-serve
  llamacpp = 16,  // llama-server
  xgen = 32,      // another xgen-model, which refuses by itself what its engine lacks
  tgi = 64,       // text-generation-inference's chats; what has a text as its prompt goes to its /generate
};

std::string_view dialect_name(Dialect dialect);
// By the name in the configuration: "vllm"; nothing for others. "auto" is Dialect::unknown.
std::optional<Dialect> dialect_of_name(std::string_view name);
// By what a server says of a model in /v1/models ("owned_by"); unknown where that is no server's own word.
Dialect dialect_of_owner(std::string_view owned_by);

}  // namespace xgen::remote
