// A request that runs on an OpenAI server.
#pragma once

#include <memory>
#include <string>

#include "inference/model_service.h"
#include "remote/openai_endpoint.h"

namespace xgen::remote {

// Starts it; every event goes to `sink`, refusals included (the handle is null then).
std::unique_ptr<inference::RequestHandle> generate(const std::shared_ptr<OpenAiEndpoint>& endpoint,
                                                   const inference::GenerateRequest& request,
                                                   std::shared_ptr<inference::EventSink> sink);

}  // namespace xgen::remote
