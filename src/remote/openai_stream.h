// OpenAiStream: the chunks of a streamed answer as inference events.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "inference/types.h"
#include "remote/answer_stream.h"
#include "remote/upstream_error.h"
#include "text/stop_matcher.h"

namespace boost::json {
class value;
}

namespace xgen::remote {

// What a server does otherwise than OpenAI.
struct OpenAiStreamQuirks {
  std::vector<std::string> stop;  // it leaves these in the text or reads past them: the text is ended here
  // Calls of tools are complete at [DONE], and have no finish_reason of their own; nor has one that max_tokens has cut
  // before it was told.
  bool calls_end_without_word = false;
  std::optional<int> max_tokens = std::nullopt;
};

class OpenAiStream final : public AnswerStream {
 public:
  // `n`: choices that the request asked for.
  OpenAiStream(int n, Upstream upstream, OpenAiStreamQuirks quirks = {});

  Status take(std::string_view data, const Emit& emit) override;
  // [DONE] has come, or all choices were ended here.
  bool done() const override { return done_; }
  bool cut() const override { return cut_; }
  Status end(const Emit& emit) override;
  const inference::Usage& usage() const override { return usage_; }

 private:
  struct Choice {
    text::StopMatcher stop;
    bool finished = false;
    bool called = false;  // a tool
  };
  Status take_choice(const boost::json::value& value, const Emit& emit, bool& heard);
  bool finish_without_word(const Emit& emit);
  bool all_finished() const;

  const Upstream upstream_;
  const OpenAiStreamQuirks quirks_;
  std::vector<Choice> choices_;
  bool started_ = false;
  bool done_ = false;
  bool cut_ = false;
  bool has_usage_ = false;
  inference::Usage usage_;
};

}  // namespace xgen::remote
