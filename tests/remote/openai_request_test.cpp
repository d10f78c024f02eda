#include "remote/openai_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"

namespace xgen::remote {
namespace {

namespace json = boost::json;
using inference::GenerateRequest;
using inference::Message;

json::object body_of(const GenerateRequest& request, Dialect dialect = Dialect::unknown) {
  const auto text = generate_body(request, "their-model", dialect);
  EXPECT_TRUE(text.ok()) << (text.ok() ? "" : text.error().message);
  const auto parsed = parse_json(text.ok() ? *text : "{}");
  EXPECT_TRUE(parsed.ok()) << *text;
  return parsed->get_object();
}

GenerateRequest chat() {
  GenerateRequest request;
  request.prompt = std::vector<Message>{{"user", "Hi \"you\"\n"}};
  return request;
}

GenerateRequest everything() {
  GenerateRequest request = chat();
  request.sampling = {0.5F, 0.9F, 40, 0.1F, 1.1F, 0.2F, 0.3F, 18446744073709551615U, {{7, -1.5F}, {8, 2}}};
  request.stop = {12, 3, true, {"\n", "END"}, {5, 6}};
  request.n = 2;
  request.logprobs = 4;
  request.priority = -3;
  request.tools = {{"look", "Looks.", R"({"type":"object"})", true}, {"plain", "", "", std::nullopt}};
  request.tool_choice = {inference::ToolChoice::Mode::named, "look"};
  request.parallel_tool_calls = false;
  request.response_format = {inference::ResponseFormat::Kind::json_schema, "answer", "An answer.",
                             R"({"type":"string"})", false};
  request.extensions = {{"chat_template_kwargs", R"({"enable_thinking":false})"}};
  return request;
}

TEST(OpenAiRequest, DefaultsAreLeftOut) {
  const json::object body = body_of(chat());
  EXPECT_EQ(json::serialize(body), R"({"model":"their-model","messages":[{"role":"user","content":"Hi \"you\"\n"}],)"
                                   R"("stream":true,"stream_options":{"include_usage":true}})");
  EXPECT_EQ(generate_path(chat()), "/chat/completions");
}

TEST(OpenAiRequest, EveryFieldOfAChat) {
  EXPECT_EQ(json::value(body_of(everything())), json::parse(R"({
    "model": "their-model", "messages": [{"role": "user", "content": "Hi \"you\"\n"}],
    "stream": true, "stream_options": {"include_usage": true},
    "max_tokens": 12, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1,
    "presence_penalty": 0.2, "frequency_penalty": 0.3, "seed": 18446744073709551615,
    "logit_bias": {"7": -1.5, "8": 2}, "n": 2, "stop": ["\n", "END"], "stop_token_ids": [5, 6], "min_tokens": 3,
    "ignore_eos": true, "logprobs": true, "top_logprobs": 4, "priority": -3,
    "tools": [{"type": "function", "function":
                 {"name": "look", "description": "Looks.", "parameters": {"type": "object"}, "strict": true}},
              {"type": "function", "function": {"name": "plain"}}],
    "tool_choice": {"type": "function", "function": {"name": "look"}}, "parallel_tool_calls": false,
    "response_format": {"type": "json_schema", "json_schema":
      {"name": "answer", "description": "An answer.", "schema": {"type": "string"}, "strict": false}},
    "chat_template_kwargs": {"enable_thinking": false}})"));
}

TEST(OpenAiRequest, EveryFieldOfACompletion) {
  GenerateRequest request;
  request.prompt = std::string("Once");
  request.stop.max_tokens = 0;
  request.logprobs = 0;
  request.echo = true;
  request.response_format.kind = inference::ResponseFormat::Kind::json_object;
  EXPECT_EQ(json::value(body_of(request)), json::parse(R"({
    "model": "their-model", "prompt": "Once", "stream": true, "stream_options": {"include_usage": true},
    "max_tokens": 0, "logprobs": 0, "echo": true, "response_format": {"type": "json_object"}})"));
  EXPECT_EQ(generate_path(request), "/completions");
  request.prompt = std::vector<inference::TokenId>{1, 2, 3};
  EXPECT_EQ(body_of(request).at("prompt"), json::parse("[1,2,3]"));
}

TEST(OpenAiRequest, Messages) {
  GenerateRequest request;
  Message image{"user", ""};
  image.name = "ann";
  image.parts = {{inference::ContentPart::Kind::text, "See", ""},
                 {inference::ContentPart::Kind::image, "data:image/png;base64,AA==", "low"}};
  Message called{"assistant", ""};
  called.tool_calls = {{"call_1", "look", R"({"at": 1})"}};
  called.reasoning = "Hm.";
  Message tool{"tool", "seen"};
  tool.tool_call_id = "call_1";
  request.prompt = std::vector<Message>{image, called, tool};
  EXPECT_EQ(body_of(request).at("messages"), json::parse(R"([
    {"role": "user", "name": "ann", "content": [{"type": "text", "text": "See"},
      {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}]},
    {"role": "assistant", "content": null, "reasoning_content": "Hm.", "tool_calls":
      [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{\"at\": 1}"}}]},
    {"role": "tool", "content": "seen", "tool_call_id": "call_1"}])"));
  EXPECT_FALSE(body_of(request, Dialect::openai).at("messages").at(1).as_object().contains("reasoning_content"));
}

TEST(OpenAiRequest, DialectsHaveTheirOwnNames) {
  GenerateRequest request = chat();
  request.stop.max_tokens = 5;
  EXPECT_TRUE(body_of(request, Dialect::openai).contains("max_completion_tokens"));
  EXPECT_FALSE(body_of(request, Dialect::openai).contains("max_tokens"));
  request.sampling.repetition_penalty = 1.5F;
  EXPECT_EQ(body_of(request, Dialect::llamacpp).at("repeat_penalty"), 1.5);
  request.extensions = {{"include_stop_str_in_output", "true"}};
  EXPECT_EQ(body_of(request, Dialect::sglang).at("no_stop_trim"), true);
  EXPECT_EQ(body_of(request, Dialect::vllm).at("include_stop_str_in_output"), true);
}

TEST(OpenAiRequest, WhatADialectDoesNotKnowIsRefusedByName) {
  const auto refused = [](const GenerateRequest& request, Dialect dialect) {
    const auto body = generate_body(request, "m", dialect);
    if (body.ok()) return std::string();
    EXPECT_EQ(body.error().code, ErrorCode::unsupported);
    EXPECT_THAT(body.error().message, ::testing::HasSubstr("'" + body.error().param + "'"));
    EXPECT_THAT(body.error().message, ::testing::HasSubstr(std::string(dialect_name(dialect))));
    return body.error().param;
  };
  for (const Dialect all : {Dialect::unknown, Dialect::vllm, Dialect::xgen}) EXPECT_EQ(refused(everything(), all), "");
  GenerateRequest request = chat();
  request.sampling.top_k = 5;
  EXPECT_EQ(refused(request, Dialect::openai), "top_k");
  EXPECT_EQ(refused(request, Dialect::llamacpp), "");
  request = chat();
  request.stop.min_tokens = 2;
  EXPECT_EQ(refused(request, Dialect::llamacpp), "min_tokens");
  request = chat();
  request.priority = 1;
  EXPECT_EQ(refused(request, Dialect::sglang), "priority");
  request = chat();
  request.extensions = {{"guided_regex", "\"a+\""}};
  EXPECT_EQ(refused(request, Dialect::sglang), "guided_regex");
  EXPECT_EQ(refused(request, Dialect::xgen), "");
  request = chat();
  request.prompt = std::string("text");
  request.echo = true;
  EXPECT_EQ(refused(request, Dialect::llamacpp), "echo");
}

TEST(OpenAiRequest, Tokens) {
  inference::TokenizeRequest request;
  request.prompt = std::string("text");
  request.add_special_tokens = false;
  EXPECT_EQ(json::parse(*tokenize_body(request, "m", Dialect::vllm)),
            json::parse(R"({"model":"m","prompt":"text","add_special_tokens":false,"return_token_strs":true})"));
  request.prompt = std::vector<Message>{{"user", "Hi"}};
  EXPECT_EQ(json::parse(*tokenize_body(request, "m", Dialect::xgen)),
            json::parse(R"({"model":"m","messages":[{"role":"user","content":"Hi"}],"add_generation_prompt":true,)"
                        R"("return_token_strs":true})"));
  EXPECT_EQ(tokenize_body(request, "m", Dialect::sglang).error().param, "messages");
  EXPECT_EQ(tokenize_body(request, "m", Dialect::openai).error().code, ErrorCode::unsupported);
  EXPECT_EQ(json::parse(*detokenize_body({1, 2}, "m", Dialect::unknown)),
            json::parse(R"({"model":"m","tokens":[1,2]})"));
  EXPECT_EQ(detokenize_body({1}, "m", Dialect::trtllm).error().code, ErrorCode::unsupported);
}

TEST(OpenAiRequest, OwnersNameTheirDialect) {
  EXPECT_EQ(dialect_of_owner("vllm"), Dialect::vllm);
  EXPECT_EQ(dialect_of_owner("tensorrt_llm"), Dialect::trtllm);
  EXPECT_EQ(dialect_of_owner("xgen"), Dialect::xgen);
  EXPECT_EQ(dialect_of_owner("someone"), Dialect::unknown);
  EXPECT_EQ(dialect_of_name("auto"), Dialect::unknown);
  EXPECT_EQ(dialect_of_name("llamacpp"), Dialect::llamacpp);
  EXPECT_FALSE(dialect_of_name("").has_value());
}

}  // namespace
}  // namespace xgen::remote
