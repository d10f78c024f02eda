// A request that runs on another server.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "inference/model_service.h"
#include "remote/answer_stream.h"
#include "remote/endpoint.h"

namespace xgen::remote {

// A call that brings the answer as a stream of events.
struct GenerationCall {
  std::string target;
  std::string body;
  std::function<std::unique_ptr<AnswerStream>(Upstream upstream)> read;

  // How many tokens the prompt has, asked where the answer does not say.
  struct Count {
    std::string target;
    std::string body;
    std::optional<int> (*read)(std::string_view reply) = nullptr;
  };
  std::optional<Count> count;
  // The same where it is counted on this side; `done` hears it once, possibly at once, from any thread. 0: not known.
  std::function<void(std::function<void(int tokens)> done)> count_here;

  // Sent when the request is given up while the server may be at work; besides, its connection is closed.
  struct Stop {
    std::string target;
    std::string body;
  };
  std::optional<Stop> stop;
};

// Starts it; every event goes to `sink`, refusals included (the handle is null then). `call` may be an error.
std::unique_ptr<inference::RequestHandle> generate(const std::shared_ptr<Endpoint>& endpoint,
                                                   const inference::GenerateRequest& request,
                                                   Result<GenerationCall> call,
                                                   std::shared_ptr<inference::EventSink> sink);

}  // namespace xgen::remote
