// The stream of a remote engine: never a crash; events keep their order, and are the same however the bytes are cut.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "remote/openai_stream.h"
#include "remote/sse.h"

namespace {

using namespace xgen;
using remote::OpenAiStream;
using remote::SseReader;

constexpr int kChoices = 2;

void require(bool holds) {
  if (!holds) std::abort();
}

// What the events say, as text.
std::string read(std::string_view bytes, std::size_t step) {
  std::string said;
  bool started = false;
  bool finished[kChoices] = {};
  SseReader reader(1 << 16);
  OpenAiStream stream(kChoices, {"model", "http://host", "secret"});
  const OpenAiStream::Emit emit = [&](inference::Event event) {
    if (std::holds_alternative<inference::Started>(event)) {
      require(!started);
      started = true;
      said += "started;";
    } else if (const auto* delta = std::get_if<inference::Delta>(&event)) {
      require(started && delta->choice >= 0 && delta->choice < kChoices && !finished[delta->choice]);
      said += std::to_string(delta->choice) + ":" + delta->text + "|" + delta->reasoning + ";";
      for (const auto& token : delta->logprobs) said += token.token + ",";
      for (const auto& call : delta->tool_calls) said += call.id + call.name + call.arguments + ",";
    } else if (const auto* end = std::get_if<inference::ChoiceFinished>(&event)) {
      require(started && !finished[end->choice]);
      finished[end->choice] = true;
      said += "end " + std::to_string(end->choice) + ";";
    } else {
      require(false);
    }
    return true;
  };
  for (std::size_t at = 0; at < bytes.size() && !stream.done(); at += step) {
    const std::string part(bytes.substr(at, step));
    std::string_view input = part;
    std::string_view data;
    for (;;) {
      const SseReader::Step what = reader.next(input, data);
      if (what == SseReader::Step::need_more) break;
      if (what == SseReader::Step::too_large) return said + "too large";
      if (Status status = stream.take(data, emit); !status) {
        require(!status.error().message.empty() && status.error().message.find("secret") == std::string::npos);
        return said + status.error().message;
      }
      if (stream.done()) break;
    }
  }
  require(stream.usage().prompt_tokens >= 0 && stream.usage().completion_tokens >= 0);
  return said + (stream.done() ? "done" : "");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  require(read(bytes, size == 0 ? 1 : size) == read(bytes, 1));
  return 0;
}
