#include "remote/dialect.h"

namespace xgen::remote {
namespace {

struct Row {
  Dialect dialect;
  std::string_view name;
  std::string_view owner;  // in /v1/models
};
constexpr Row kRows[] = {
    {Dialect::unknown, "auto", ""},
    {Dialect::openai, "openai", "openai"},
    {Dialect::vllm, "vllm", "vllm"},
    {Dialect::sglang, "sglang", "sglang"},
    {Dialect::trtllm, "trtllm", "tensorrt_llm"},
    {Dialect::llamacpp, "llamacpp", "llamacpp"},
    {Dialect::xgen, "xgen", "xgen"},
    {Dialect::tgi, "tgi", ""},
};

}  // namespace

std::string_view dialect_name(Dialect dialect) {
  for (const Row& row : kRows)
    if (row.dialect == dialect) return row.name;
  return {};
}

std::optional<Dialect> dialect_of_name(std::string_view name) {
  for (const Row& row : kRows)
    if (row.name == name) return row.dialect;
  return std::nullopt;
}

Dialect dialect_of_owner(std::string_view owned_by) {
  for (const Row& row : kRows)
    if (!row.owner.empty() && row.owner == owned_by) return row.dialect;
  return Dialect::unknown;
}

}  // namespace xgen::remote
