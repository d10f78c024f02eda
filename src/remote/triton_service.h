// TritonService: a model of TensorRT-LLM behind NVIDIA's Triton Inference Server, behind the inference contract.
#pragma once

#include <memory>

#include "http/client.h"
#include "inference/model_service.h"
#include "remote/endpoint.h"
#include "remote/model_text.h"

namespace xgen::remote {

// Serves at once, as make_openai_service(). Its URL may end with /v2 or not. `text` may be shared with other services.
std::shared_ptr<inference::ModelService> make_triton_service(EndpointOptions options,
                                                             std::shared_ptr<const ModelText> text,
                                                             http::Client& client);

}  // namespace xgen::remote
