// TgiStream: the events of TGI's /generate_stream as inference events.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "remote/answer_stream.h"
#include "remote/upstream_error.h"
#include "text/stop_matcher.h"

namespace xgen::remote {

// TGI stops only where the text of a token ends with a stop string, and leaves that in: the answer is ended here.
class TgiStream final : public AnswerStream {
 public:
  // What the request asks of its answer.
  struct Wanted {
    explicit Wanted(const inference::GenerateRequest& request);
    std::vector<std::string> stop;
    bool logprobs;
    std::string echo;  // the prompt, if it is to be given back
  };
  TgiStream(Wanted wanted, Upstream upstream);

  Status take(std::string_view data, const Emit& emit) override;
  // The event with the whole text has come, or a stop string.
  bool done() const override { return done_; }
  bool cut() const override { return cut_; }
  Status end(const Emit& emit) override;
  const inference::Usage& usage() const override { return usage_; }

 private:
  const Upstream upstream_;
  const Wanted wanted_;
  text::StopMatcher matcher_;
  bool started_ = false;
  bool done_ = false;
  bool cut_ = false;
  inference::Usage usage_;
};

}  // namespace xgen::remote
