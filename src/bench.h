// `xgen-model bench`: measures any OpenAI server under load.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace CLI {
class App;
}

namespace xgen {

// As given on the command line.
struct BenchFlags {
  std::string url = "http://127.0.0.1:8000";
  std::string model;
  std::string key_file;
  std::string ca_file;
  std::optional<int> concurrency;
  std::optional<double> rate;
  std::optional<std::string> arrivals;
  std::string trace;
  std::string input = "128";
  std::string output = "64";
  int prefixes = 0;
  int prefix_tokens = 256;
  std::string endpoint = "chat";
  bool ignore_eos = false;
  bool no_usage = false;
  std::string extra;
  std::uint64_t seed = 1;
  std::optional<std::uint64_t> requests;
  std::string duration;
  std::string warmup = "0";
  std::string timeout = "10m";
  int max_len = 0;
  int threads = 1;
  std::string slo;
  std::string json;
  std::string svg;
};

CLI::App* add_bench(CLI::App& program, BenchFlags& flags);

// The exit code: 1 if no request succeeded, 2 for what the user wrote.
int bench(const BenchFlags& flags, const std::string& version);

}  // namespace xgen
