// TritonStream: the events of Triton's generate_stream as inference events.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "remote/answer_stream.h"
#include "remote/upstream_error.h"
#include "text/stop_matcher.h"

namespace xgen::remote {

// The engine stops only where whole tokens are those of a stop string, and leaves that in: the answer is ended here.
// There is no word of the end but the end of the body, and none of its reason: it is `length` where as many tokens came
// as were asked for.
class TritonStream final : public AnswerStream {
 public:
  // What the request asks of its answer.
  struct Wanted {
    explicit Wanted(const inference::GenerateRequest& request);
    std::vector<std::string> stop;
    std::optional<int> max_tokens;
    int min_tokens;
    std::string echo;  // the prompt, if it is to be given back
  };
  // `accumulates`: text_output is the whole answer so far.
  TritonStream(Wanted wanted, bool accumulates, Upstream upstream);

  Status take(std::string_view data, const Emit& emit) override;
  bool done() const override { return done_; }
  bool cut() const override { return cut_; }
  Status end(const Emit& emit) override;
  const inference::Usage& usage() const override { return usage_; }

 private:
  // What is new in an event's text. Errors: internal, where what came before has changed.
  Result<std::string> new_text(std::string_view text);

  const Upstream upstream_;
  const Wanted wanted_;
  const bool accumulates_;
  text::StopMatcher matcher_;
  bool started_ = false;
  std::string so_far_;     // of the answer, while the server repeats it
  std::string last_text_;  // the whole of it, with an end that may still change
  bool matched_ = false;   // the choice is finished; the server may go on
  bool done_ = false;
  bool cut_ = false;
  inference::Usage usage_;
};

}  // namespace xgen::remote
