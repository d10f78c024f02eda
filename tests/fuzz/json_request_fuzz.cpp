// Bodies of requests: whatever comes in, a valid call or an error that is valid UTF-8 and short comes out.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "api/answer.h"
#include "api/errors.h"
#include "api/requests.h"
#include "base/json.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void check_error(const xgen::Error& error) {
  require(!error.message.empty() && error.message.size() < 2000);
  require(xgen::parse_json(xgen::api::error_json(error)).ok());
}

void check_call(const xgen::api::GenerateCall& call) {
  require(!call.model.empty() && !call.requests.empty());
  for (const auto& request : call.requests) {
    require(request.n >= 1 && request.n <= 128);
    require(request.stop.max_tokens.value_or(0) >= 0 && request.stop.min_tokens >= 0);
    require(!request.sampling.temperature ||
            (*request.sampling.temperature >= 0 && *request.sampling.temperature <= 2));
    require(!request.sampling.top_p || *request.sampling.top_p <= 1);
    require(request.logprobs.value_or(0) >= 0 && request.logprobs.value_or(0) <= 20);
  }
  // The texts of the request through the answer's writer.
  xgen::api::AnswerHead head{.endpoint = call.endpoint, .id = "x", .model = call.model};
  xgen::api::StreamEncoder encoder(head, 1, call.include_usage);
  std::string out;
  encoder.add(0, xgen::inference::Delta{0, 1, call.model, {}}, out);
  require(out.ends_with("\n\n") && xgen::parse_json(std::string_view(out).substr(6)).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  const xgen::api::ParseOptions options{.reject_unknown = (data[0] & 4) != 0};
  switch (data[0] & 3) {
    case 0:
    case 1: {
      const auto endpoint = (data[0] & 1) != 0 ? xgen::api::Endpoint::chat : xgen::api::Endpoint::completions;
      const auto call = xgen::api::parse_generate(endpoint, body, options);
      call.ok() ? check_call(*call) : check_error(call.error());
      break;
    }
    case 2: {
      const auto call = xgen::api::parse_tokenize(body, options);
      if (!call.ok()) check_error(call.error());
      break;
    }
    default: {
      const auto call = xgen::api::parse_detokenize(body, options);
      if (!call.ok()) check_error(call.error());
    }
  }
  return 0;
}
