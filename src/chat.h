// `xgen-model chat`: talks with a model of any OpenAI server.
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace xgen {

// As given on the command line.
struct ChatFlags {
  std::string url = "http://127.0.0.1:8000";
  std::string model;
  std::string key_file;
  std::string ca_file;
  std::string system;
  std::string extra;
  std::string timeout = "10m";
};

CLI::App* add_chat(CLI::App& program, ChatFlags& flags);

// The exit code: 1 for what went wrong, 2 for what the user wrote.
int chat(const ChatFlags& flags);

}  // namespace xgen
