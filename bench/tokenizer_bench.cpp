// Tokenizers: the time to load one and the speed of encoding, on one thread.
// Usage: tokenizer_bench TEXT_FILE PATH…   (PATH: a folder with tokenizer files, or a .gguf)
// A line a tokenizer: median milliseconds to load, MB/s of text encoded (UTF-8 bytes, best and median of several
// passes), tokens.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/file_set.h"
#include "engine/load_tokenizer.h"

namespace {

using namespace xgen;
using Clock = std::chrono::steady_clock;

constexpr int kLoads = 5;
constexpr std::chrono::milliseconds kEncodeFor{1500};

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The text in pieces of a prompt's size, cut at line ends: nobody encodes a megabyte as one prompt.
std::vector<std::string_view> pieces(std::string_view text) {
  constexpr std::size_t kPiece = 4096;
  std::vector<std::string_view> out;
  while (!text.empty()) {
    std::size_t end = text.size() <= kPiece ? text.size() : text.find('\n', kPiece);
    end = end == std::string_view::npos ? text.size() : std::min(text.size(), end + 1);
    out.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return out;
}

Result<std::shared_ptr<const text::Tokenizer>> load(const std::string& path) {
  auto files = open_files(path);
  if (!files) return std::move(files).error();
  return engine::load_tokenizer(**files);
}

bool measure(const std::string& path, std::string_view text) {
  std::vector<double> loads;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  for (int i = 0; i < kLoads; ++i) {
    const auto begin = Clock::now();
    auto loaded = load(path);
    loads.push_back(1000 * seconds_since(begin));
    if (!loaded) {
      std::printf("%s: %s\n", path.c_str(), loaded.error().message.c_str());
      return false;
    }
    tokenizer = *loaded;
  }
  std::vector<double> passes;
  std::size_t tokens = 0;
  const auto start = Clock::now();
  while (passes.size() < 3 || Clock::now() - start < kEncodeFor) {
    tokens = 0;
    const auto begin = Clock::now();
    for (const std::string_view piece : pieces(text)) {
      auto ids = tokenizer->encode(piece, {.add_special = false, .parse_special = true});
      if (!ids) {
        std::printf("%s: %s\n", path.c_str(), ids.error().message.c_str());
        return false;
      }
      tokens += ids->size();
    }
    passes.push_back(seconds_since(begin));
  }
  const double megabytes = static_cast<double>(text.size()) / 1e6;
  std::printf("%-44s load %7.1f ms  encode %6.2f MB/s (best %6.2f)  %zu tokens\n", path.c_str(), median(loads),
              megabytes / median(passes), megabytes / *std::min_element(passes.begin(), passes.end()), tokens);
  std::fflush(stdout);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: tokenizer_bench TEXT_FILE PATH...\n");
    return 2;
  }
  auto text = map_file(argv[1]);
  if (!text) {
    std::fprintf(stderr, "%s\n", text.error().message.c_str());
    return 1;
  }
  bool good = true;
  for (int i = 2; i < argc; ++i) good = measure(argv[i], text->text()) && good;
  return good ? 0 : 1;
}
