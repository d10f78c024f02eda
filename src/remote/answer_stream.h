// AnswerStream: a server's streamed answer as inference events.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <variant>

#include "base/result.h"
#include "inference/types.h"

namespace xgen::remote {

// The prompt, where the answer is to begin with it.
inline std::string echo_of(const inference::GenerateRequest& request) {
  const auto* text = std::get_if<std::string>(&request.prompt);
  return request.echo && text != nullptr ? *text : std::string();
}

class AnswerStream {
 public:
  virtual ~AnswerStream() = default;

  // Hears Started, Delta and ChoiceFinished in their order; false ends the reading.
  using Emit = std::function<bool(inference::Event)>;
  // One event's data. Errors: what the server says went wrong, or that it cannot be understood.
  virtual Status take(std::string_view data, const Emit& emit) = 0;
  // Every choice is finished, and nothing more is to be read.
  virtual bool done() const = 0;
  // It is done although the server goes on: it did not see the stop string that ends the answer here.
  virtual bool cut() const { return false; }
  // The body has come to its proper end before done(). Errors: unavailable, where the answer is not whole then.
  virtual Status end(const Emit& emit) = 0;
  // The server's count; what was streamed, where it gave none. 0 prompt tokens: it did not say.
  virtual const inference::Usage& usage() const = 0;
};

}  // namespace xgen::remote
