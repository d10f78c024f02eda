// convert_stories260k FROM TO: writes the stories260K checkpoint in FROM as a Hugging Face model folder TO.
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "support/stories260k.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: convert_stories260k FROM TO\n");
    return 2;
  }
  const auto files = xgen::test::convert_stories260k(argv[1]);
  if (!files) {
    std::fprintf(stderr, "%s\n", files.error().message.c_str());
    return 1;
  }
  std::error_code error;
  std::filesystem::create_directories(argv[2], error);
  for (const auto& [name, contents] : *files) {
    std::ofstream out(std::filesystem::path(argv[2]) / name, std::ios::binary);
    if (!out.write(contents.data(), static_cast<std::streamsize>(contents.size()))) {
      std::fprintf(stderr, "%s/%s: cannot write\n", argv[2], name.c_str());
      return 1;
    }
  }
}
