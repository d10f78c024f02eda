// What an engine's /metrics say of its load, in vLLM's names.
#pragma once

#include <optional>
#include <string_view>

#include "inference/model_service.h"

namespace xgen::remote {

// From a Prometheus text page: vllm:num_requests_running and _waiting and the KV cache of vllm:cache_config_info, of
// the model `name` where the page tells models apart by it, else of all. Null where the page has none of the first two.
std::optional<inference::Load> read_load(std::string_view page, std::string_view name);

}  // namespace xgen::remote
