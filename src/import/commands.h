// Command lines that start an engine: in a script, behind `docker run`, or in a container.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "import/draft.h"
#include "import/model_reader.h"
#include "import/option.h"
#include "import/shell.h"

namespace xgen::importer {

// A container that may run an engine.
struct Container {
  std::string label;
  std::string where;
  std::string image;
  std::vector<Word> entrypoint;
  std::vector<Word> arguments;
  std::vector<Option> environment;
  std::vector<Mount> mounts;
  std::vector<PublishedPort> ports;
  std::vector<Option> port_options;
  std::vector<Option> volume_options;
  // Further keys, with their rules.
  std::vector<std::pair<Option, const Rule*>> keys;
};

// An engine's command: which one, and its arguments.
struct Found {
  const Engine* engine = nullptr;
  std::size_t program = 0;  // its own first word
  std::size_t begin = 0;    // of the arguments
};
// In the words of a command line; engine null if they start none.
Found find_engine(const std::vector<Word>& words);
// What an image runs; null if it is none of an engine.
const Engine* engine_of_image(std::string_view image);

// The engine of a container, by its command or image; null if it is none.
const Engine* engine_of(const Container& container);
// Reads a container of which engine_of() says something. `file`: where line numbers of words belong to.
Status read_container(Draft& draft, const ImportOptions& options, Container container, const std::string& file);

// The flags of vLLM alone, without a command.
void read_vllm_arguments(ModelReader& reader, const std::vector<Word>& words, const std::string& file);

// "8001:8000", "127.0.0.1:8001:8000/tcp", "[::1]:8001:8000", "8000".
PublishedPort parse_port(std::string_view text);
// "./models:/models:ro"
Mount parse_volume(std::string_view text);
std::string volume_text(const Engine* engine, const Mount& mount, bool in_container);
std::string port_text(const PublishedPort& port, bool in_container);

// Reads all commands of a script (a line, mostly). Errors: invalid_argument, if none of them starts an engine.
Status read_commands(Draft& draft, const ImportOptions& options, std::vector<Command> commands,
                     const std::string& file);

}  // namespace xgen::importer
