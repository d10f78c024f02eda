// OpenAiService: a model that another engine serves over OpenAI's /v1, behind the inference contract.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

#include "http/client.h"
#include "inference/model_service.h"
#include "remote/dialect.h"

namespace xgen::remote {

struct OpenAiOptions {
  std::string name;                    // what clients call the model
  std::string model;                   // what the server calls it
  http::Url url;                       // its base: "http://vllm-0:8000/v1"
  Dialect dialect = Dialect::unknown;  // unknown: asked of the server
  std::string api_key_file;            // sent as a bearer token; empty: none
  http::Headers headers;               // sent with every request
  std::string ca_file;                 // empty: the system's store
  std::chrono::milliseconds connect_timeout{5'000};
  std::chrono::milliseconds first_byte_timeout{300'000};  // to the head of the answer: queueing and the prompt
  std::chrono::milliseconds idle_timeout{60'000};         // between parts of the answer
  std::chrono::milliseconds health_interval{10'000};      // between looks at the server's list of models; 0: never
  std::size_t max_requests = 4096;                        // at once; more are refused as overloaded
};

// Serves at once: whether the server can be reached shows in health() and in each request. `client` must outlive the
// service and its requests.
std::shared_ptr<inference::ModelService> make_openai_service(OpenAiOptions options, http::Client& client);

}  // namespace xgen::remote
