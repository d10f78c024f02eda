// OpenAiService: a model that another engine serves over OpenAI's /v1, behind the inference contract.
#pragma once

#include <memory>

#include "http/client.h"
#include "inference/model_service.h"
#include "remote/dialect.h"
#include "remote/endpoint.h"

namespace xgen::remote {

struct OpenAiOptions : EndpointOptions {
  Dialect dialect = Dialect::unknown;  // unknown: asked of the server
};

// Serves at once: whether the server can be reached shows in health() and in each request. `client` must outlive the
// service and its requests.
std::shared_ptr<inference::ModelService> make_openai_service(OpenAiOptions options, http::Client& client);

}  // namespace xgen::remote
