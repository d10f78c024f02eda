// Chat: a conversation with a model of an OpenAI server, in a terminal or through pipes.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "client/api.h"

namespace xgen::client {

struct ChatOptions {
  Api api;
  std::string model;  // empty: the server's only one
  std::string system;
  ExtraFields extra;  // temperature, max_tokens and whatever else the server knows
};

// What has been said, as the next request has it.
class Conversation {
 public:
  explicit Conversation(std::string system) : system_(std::move(system)) {}
  void ask(std::string text) { turns_.push_back({false, std::move(text)}); }
  // The last question was answered; or, with nothing, was not, and is forgotten.
  void answered(std::string text);
  void clear() { turns_.clear(); }
  void set_system(std::string text) { system_ = std::move(text); }
  const std::string& system() const { return system_; }
  bool empty() const { return turns_.empty(); }

  // A JSON array of messages.
  std::string messages() const;

 private:
  struct Turn {
    bool by_model;
    std::string text;
  };
  std::string system_;
  std::vector<Turn> turns_;
};

// What a terminal must not be told by a model or a server: control characters other than line breaks and tabs go,
// those of Unicode's C1 among them.
std::string for_terminal(std::string_view text);

// Reads from stdin and answers to stdout until the end of the input or /quit; timing, faults and hints go to stderr.
// The exit code: 1 where the server or stdout cannot be used, or, with input that is no terminal, something failed; 130
// where Ctrl-C ended it.
int run_chat(ChatOptions options);

}  // namespace xgen::client
