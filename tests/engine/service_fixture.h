// What the tests of services share: a byte-level tokenizer, a scripted runner and a sink that collects events.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/local_service.h"
#include "text/tokenizer.h"

namespace xgen::engine {

// Token id = byte for 0-255; <s> = 256, </s> = 257 (special), "<end>" = 258 (special).
inline constexpr TokenId kBos = 256;
inline constexpr TokenId kEos = 257;
inline constexpr int kByteVocab = 259;

inline std::string utf8_of(int code) {
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
}

// tokenizer.json of it.
inline std::string byte_tokenizer_json() {
  // GPT-2's table: printable bytes stand for themselves, the others for code points from 256.
  std::string vocab;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int code = printable ? byte : next++;
    std::string piece = utf8_of(code);
    if (piece == "\"" || piece == "\\") piece = "\\" + piece;
    vocab += (byte == 0 ? "\"" : ",\"") + piece + "\":" + std::to_string(byte);
  }
  const auto special = [](int id, const char* content) {
    return "{\"id\":" + std::to_string(id) + ",\"content\":\"" + content +
           "\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}";
  };
  return "{\"version\":\"1.0\",\"added_tokens\":[" + special(kBos, "<s>") + "," + special(kEos, "</s>") + "," +
         special(258, "<end>") +
         "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
         "\"trim_offsets\":true,\"use_regex\":false},\"post_processor\":null,\"decoder\":{\"type\":"
         "\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
         "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
         "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"vocab\":{" +
         vocab + "},\"merges\":[]}}";
}

inline std::shared_ptr<const text::Tokenizer> byte_tokenizer() {
  auto tokenizer = text::Tokenizer::from_json(byte_tokenizer_json(), "byte tokenizer");
  EXPECT_TRUE(tokenizer.ok()) << (tokenizer.ok() ? "" : tokenizer.error().message);
  return tokenizer.ok() ? *tokenizer : nullptr;
}

// Answers with what `next` says; log-probabilities are -token / 256.
class ScriptedRunner final : public ModelRunner {
 public:
  using Next = std::function<Result<TokenId>(const Sequence&)>;
  explicit ScriptedRunner(Next next) : next_(std::move(next)) {}

  static TokenScore score(TokenId token) {
    return {token, -static_cast<float>(token) / 256, {{0, -0.5f}, {token, -static_cast<float>(token) / 256}}};
  }

  void run(const StepPlan& plan, StepResult& result) override {
    result.items.clear();
    result.items.resize(plan.items.size());
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
      const ScheduledSequence& item = plan.items[i];
      for (int p = item.score_begin; p < item.score_end; ++p) {
        result.items[i].prompt_scores.push_back(score(item.sequence->token(p + 1)));
      }
      if (!item.sample) continue;
      Result<TokenId> token = next_(*item.sequence);
      if (!token.ok()) {
        result.items[i].error = token.error();
        continue;
      }
      result.items[i].token = *token;
      if (item.sequence->request->sampling.logprobs >= 0) result.items[i].score = score(*token);
    }
  }

 private:
  Next next_;
};

// The bytes of `text` one after another, then eos.
inline ScriptedRunner::Next spell(std::string text) {
  return [text = std::move(text)](const Sequence& s) -> Result<TokenId> {
    const std::size_t at = s.output.size();
    return at < text.size() ? static_cast<TokenId>(static_cast<unsigned char>(text[at])) : kEos;
  };
}

class Collector final : public inference::EventSink {
 public:
  void on_event(inference::Event event) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(done_) << "an event after the terminal one";
    if (const auto* delta = std::get_if<inference::Delta>(&event)) {
      EXPECT_TRUE(started_);
      if (texts.size() <= static_cast<std::size_t>(delta->choice))
        texts.resize(static_cast<std::size_t>(delta->choice) + 1);
      texts[static_cast<std::size_t>(delta->choice)] += delta->text;
      tokens += delta->tokens;
      for (const auto& l : delta->logprobs) logprobs.push_back(l);
    } else if (const auto* started = std::get_if<inference::Started>(&event)) {
      EXPECT_FALSE(started_);
      started_ = true;
      start = *started;
    } else if (const auto* end = std::get_if<inference::ChoiceFinished>(&event)) {
      ends.push_back(*end);
    } else if (const auto* finished = std::get_if<inference::Finished>(&event)) {
      usage = finished->usage;
      timings = finished->timings;
      done_ = true;
    } else {
      error = std::get<inference::Failed>(event).error;
      done_ = true;
    }
    ++events;
    changed_.notify_all();
  }
  // False: nothing terminal within a time that no healthy test needs.
  bool wait() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), [this] { return done_; });
  }
  bool wait_for_events(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), [&] { return events >= count; });
  }
  int count() {
    std::lock_guard lock(mutex_);
    return events;
  }
  bool done() {
    std::lock_guard lock(mutex_);
    return done_;
  }
  std::string text() const { return texts.empty() ? "" : texts[0]; }

  inference::Started start;
  std::vector<std::string> texts;  // by choice
  std::vector<inference::TokenLogprob> logprobs;
  std::vector<inference::ChoiceFinished> ends;
  inference::Usage usage;
  inference::Timings timings;
  std::optional<Error> error;
  int tokens = 0;
  int events = 0;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool started_ = false;
  bool done_ = false;
};

inline LocalServiceParts parts_with(std::unique_ptr<ModelRunner> runner) {
  LocalServiceParts parts;
  parts.name = "scripted";
  parts.tokenizer = byte_tokenizer();
  parts.render_chat = [](const std::vector<inference::Message>& messages,
                         bool add_generation_prompt) -> Result<std::string> {
    std::string text = "<s>";
    for (const inference::Message& m : messages) {
      if (m.role == "nobody") return make_error(ErrorCode::invalid_argument, "Unknown role nobody.");
      text += m.role + ":" + m.content + ";";
    }
    if (add_generation_prompt) text += "assistant:";
    return text;
  };
  parts.defaults.eos_ids = {kEos};
  parts.vocab_size = kByteVocab;
  parts.scheduler.num_blocks = 64;
  parts.scheduler.block_size = 16;
  parts.scheduler.max_model_len = 512;
  parts.scheduler.max_num_seqs = 8;
  parts.scheduler.max_num_batched_tokens = 64;
  parts.max_waiting = 100;
  parts.runner = std::move(runner);
  return parts;
}
inline std::shared_ptr<inference::ModelService> scripted(ScriptedRunner::Next next) {
  return make_local_service(parts_with(std::make_unique<ScriptedRunner>(std::move(next))));
}

inline inference::GenerateRequest ask(inference::Prompt prompt) {
  inference::GenerateRequest request;
  request.prompt = std::move(prompt);
  return request;
}

// Runs one request to its end.
inline std::shared_ptr<Collector> answer(inference::ModelService& service, inference::GenerateRequest request) {
  auto sink = std::make_shared<Collector>();
  const auto handle = service.generate_async(std::move(request), sink);
  EXPECT_TRUE(sink->wait()) << "no terminal event";
  return sink;
}

}  // namespace xgen::engine
