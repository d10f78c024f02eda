// OpenAiStream: the chunks of a streamed answer as inference events.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "inference/types.h"
#include "remote/upstream_error.h"

namespace xgen::remote {

class OpenAiStream {
 public:
  // `n`: choices that the request asked for.
  OpenAiStream(int n, Upstream upstream) : upstream_(std::move(upstream)), finished_(static_cast<std::size_t>(n)) {}

  // Hears Started, Delta and ChoiceFinished in their order; false ends the reading.
  using Emit = std::function<bool(inference::Event)>;
  // One event's data. Errors: what the server says went wrong, or that it cannot be understood.
  Status take(std::string_view data, const Emit& emit);
  // [DONE] has come.
  bool done() const { return done_; }
  // Once done: whether every choice was finished. Errors: unavailable.
  Status check_end() const;
  // The server's count; what was streamed, where it gave none.
  const inference::Usage& usage() const { return usage_; }

 private:
  Error unreadable(std::string_view why) const;

  Upstream upstream_;
  std::vector<bool> finished_;
  bool started_ = false;
  bool done_ = false;
  bool has_usage_ = false;
  inference::Usage usage_;
};

}  // namespace xgen::remote
