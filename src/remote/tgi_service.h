// TgiService: a model that Hugging Face's text-generation-inference serves, behind the inference contract.
#pragma once

#include <memory>

#include "http/client.h"
#include "inference/model_service.h"
#include "remote/endpoint.h"

namespace xgen::remote {

// Serves at once, as make_openai_service(). `options.model` is a LoRA adapter of the server; empty: none. Its URL may
// end with /v1 or not.
std::shared_ptr<inference::ModelService> make_tgi_service(EndpointOptions options, http::Client& client);

}  // namespace xgen::remote
