#include "client/answer.h"

#include <gtest/gtest.h>

#include <vector>

namespace xgen::client {
namespace {

struct Heard {
  std::vector<std::string> texts;
  std::vector<std::string> thoughts;
  int calls = 0;
};

Heard feed(Answer& answer, std::string_view bytes, std::size_t at_once = 1 << 20, int status = 200,
           const char* type = "text/event-stream; charset=utf-8") {
  Heard heard;
  answer.head({status, {{"Content-Type", type}}});
  for (; !bytes.empty(); bytes.remove_prefix(std::min(at_once, bytes.size())))
    answer.body(bytes.substr(0, at_once), [&](const Answer::Piece& piece) {
      if (!piece.text.empty()) heard.texts.emplace_back(piece.text);
      if (!piece.reasoning.empty()) heard.thoughts.emplace_back(piece.reasoning);
      heard.calls += piece.has_call ? 1 : 0;
    });
  return heard;
}

constexpr std::string_view kChat =
    ": a comment\n\n"
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\r\n\r\n"
    "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n"
    "data:{\"choices\":[{\"delta\":{\"content\":\"gr\xc3\xbc\xc3\x9f\"}}],\"usage\":null}\n\n"
    "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0}]}}]}\n\n"
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
    "data: "
    "{\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4,\"prompt_tokens_details\":{\"cached_"
    "tokens\":8}}}\n\n"
    "data: [DONE]\n\n";

TEST(Answer, ReadsAStreamHoweverItIsCut) {
  for (const std::size_t at_once : {1, 2, 7, 64, 4096}) {
    Answer answer;
    const Heard heard = feed(answer, kChat, at_once);
    EXPECT_EQ(heard.texts, std::vector<std::string>{"gr\xc3\xbc\xc3\x9f"});
    EXPECT_EQ(heard.thoughts, std::vector<std::string>{"hm"});
    EXPECT_EQ(heard.calls, 1);
    EXPECT_TRUE(answer.end({{}, http::CallEnd::Phase::done}));
    ASSERT_TRUE(answer.has_usage());
    EXPECT_EQ(answer.usage().prompt_tokens, 9);
    EXPECT_EQ(answer.usage().cached_tokens, 8);
    EXPECT_EQ(answer.usage().completion_tokens, 4);
    EXPECT_EQ(answer.finish_reason(), "stop");
  }
}

TEST(Answer, ReadsCompletions) {
  Answer answer;
  const Heard heard = feed(answer,
                           "data: {\"choices\":[{\"text\":\" a\"}]}\n\ndata: "
                           "{\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n");
  EXPECT_EQ(heard.texts, std::vector<std::string>{" a"});
  EXPECT_TRUE(answer.end({{}, http::CallEnd::Phase::done})) << "some servers have no [DONE]";
  EXPECT_FALSE(answer.has_usage());
}

TEST(Answer, SaysHowItFailed) {
  using Phase = http::CallEnd::Phase;
  const auto ended = [](ErrorCode code, Phase phase) { return http::CallEnd{make_error(code, "why"), phase}; };
  const http::CallEnd fine{{}, Phase::done};
  const std::string token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
  struct Case {
    std::string body;
    int status;
    http::CallEnd end;
    Fault fault;
    std::string message;
  };
  const Case cases[] = {
      {"", 0, ended(ErrorCode::unavailable, Phase::connecting), Fault::connect, "why"},
      {"", 0, ended(ErrorCode::timeout, Phase::connecting), Fault::connect, "why"},
      {"", 0, ended(ErrorCode::timeout, Phase::waiting), Fault::timeout, "why"},
      {"", 0, ended(ErrorCode::unavailable, Phase::waiting), Fault::cut, "why"},
      {"", 0, ended(ErrorCode::overloaded, Phase::connecting), Fault::not_sent, "why"},
      {token, 200, ended(ErrorCode::cancelled, Phase::body), Fault::unfinished, "why"},
      {token, 200, ended(ErrorCode::unavailable, Phase::body), Fault::cut, "why"},
      {token, 200, fine, Fault::cut, "the stream ended without [DONE]"},
      {"", 200, fine, Fault::cut, "the stream ended without [DONE]"},
      {R"({"error":{"message":"slow down"}})", 429, fine, Fault::refused, "the server answered 429: slow down"},
      {token + "data: {\"error\":{\"message\":\"broken\"}}\n\ndata: [DONE]\n\n", 200, fine, Fault::stream_error,
       "broken"},
      {"data: {\"choices\":[{\"delta\"\n\n", 200, fine, Fault::unreadable,
       "an event of the stream is not a JSON object"},
      {"data: {\"choices\":[7]}\n\n", 200, fine, Fault::unreadable, "a choice of the stream is not an object"},
      {"data: " + std::string(5 << 20, 'x'), 200, fine, Fault::unreadable, "an event of the stream is too large"},
  };
  for (const Case& each : cases) {
    Answer answer;
    if (each.status != 0) feed(answer, each.body, 1000, each.status);
    EXPECT_FALSE(answer.end(each.end));
    EXPECT_EQ(fault_name(answer.fault()), fault_name(each.fault)) << each.body;
    EXPECT_EQ(answer.message(), each.message);
    EXPECT_EQ(answer.status(), each.status);
  }
  Answer whole;
  feed(whole, R"({"choices":[{"message":{"content":"not streamed"}}]})", 100, 200, "application/json");
  EXPECT_FALSE(whole.end(fine));
  EXPECT_EQ(whole.message(), "the answer is no event stream");
}

}  // namespace
}  // namespace xgen::client
