// The cases of tests/cases/import (XGEN_WRITE_CASES=1 writes what they give now), and that nothing given is dropped.
#include "import/import.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "config/config.h"
#include "import/option.h"
#include "import/shell.h"

namespace xgen::importer {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

const fs::path kCases = fs::path(XGEN_SOURCE_DIR) / "tests/cases/import";

std::string read(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Compares with a file, or writes it.
void expect_file(const fs::path& path, const std::string& text) {
  if (std::getenv("XGEN_WRITE_CASES") != nullptr) {
    std::ofstream(path) << text;
  } else {
    EXPECT_EQ(read(path), text) << path;
  }
}

ImportOptions options() {
  ImportOptions made;
  made.home = "/home/me";
  return made;
}

std::vector<fs::path> cases() {
  std::vector<fs::path> all;
  for (const auto& entry : fs::directory_iterator(kCases))
    if (entry.path().filename() != "bad") all.push_back(entry.path());
  std::sort(all.begin(), all.end());
  return all;
}

fs::path input_of(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().stem() == "input") return entry.path();
  return {};
}

TEST(Import, Cases) {
  ASSERT_GE(cases().size(), 12u);
  for (const fs::path& folder : cases()) {
    SCOPED_TRACE(folder.filename());
    const fs::path input = input_of(folder);
    const auto imported = import_text(read(input), input.filename(), options());
    ASSERT_TRUE(imported.ok()) << imported.error().message;
    expect_file(folder / "models.yaml", imported->models_yaml);
    expect_file(folder / "report.md", imported->report);
  }
}

// But for models that are not on this machine.
TEST(Import, WhatItWritesIsAConfiguration) {
  for (const fs::path& folder : cases()) {
    const auto config = config::load_text(read(folder / "models.yaml"), "models.yaml");
    if (config.ok()) continue;
    std::istringstream lines(config.error().message);
    for (std::string line; std::getline(lines, line);)
      EXPECT_THAT(line, testing::ContainsRegex("source: .*: [Nn]o such file")) << folder;
  }
}

TEST(Import, BadInputs) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(kCases / "bad")) {
    if (entry.path().extension() == ".error") continue;
    SCOPED_TRACE(entry.path().filename());
    const auto imported = import_text(read(entry.path()), entry.path().filename(), options());
    ASSERT_FALSE(imported.ok());
    EXPECT_EQ(imported.error().code, ErrorCode::invalid_argument);
    expect_file(entry.path().string() + ".error", imported.error().message + "\n");
    ++count;
  }
  EXPECT_GE(count, 12);
}

TEST(Import, EveryKeyThatIsWrittenIsOneOfTheConfiguration) {
  const std::vector<std::string> known = config::key_names();
  ASSERT_GT(written_keys().size(), 12u);
  for (const std::string& key : written_keys()) EXPECT_THAT(known, testing::Contains(key));
}

TEST(Import, DocsAreFresh) {
  EXPECT_EQ(read(fs::path(XGEN_SOURCE_DIR) / "docs/import.md"), reference_markdown())
      << "run: build/release/xgen-model docs import > docs/import.md";
}

TEST(Import, SecretsAreWrittenNowhere) {
  for (const fs::path& folder : cases())
    for (const char* file : {"models.yaml", "report.md"})
      for (const char* secret : {"hf_Qm", "hf_ray", "hf_this", "sk-", "should-see", "long-key", "another-key"})
        EXPECT_THAT(read(folder / file), Not(HasSubstr(secret))) << folder;
  const auto imported = import_text(
      "vllm serve a/b --api-key token-abc123 --odd-token zzzzzzzzz --chat-template https://me:pass@host/x "
      "--middleware 'Bearer abcdefgh' --root-path /token-abc123",
      "x", options());
  ASSERT_TRUE(imported.ok());
  for (const char* secret : {"abc123", "zzzz", "me:pass", "abcdefgh"})
    EXPECT_THAT(imported->report, Not(HasSubstr(secret)));
}

int count_of(const std::string& text, const std::string& what) {
  int count = 0;
  for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; ++at) ++count;
  return count;
}

std::vector<std::string> names_of(const Rule& rule) {
  std::istringstream words{std::string(rule.names)};
  return {std::istream_iterator<std::string>(words), {}};
}

TEST(Import, EveryFlagOfTheTablesIsReportedOnce) {
  const std::pair<const Engine*, std::string> engines[] = {{&kVllm, "vllm serve a/b"},
                                                           {&kTgi, "text-generation-launcher --model-id a/b"},
                                                           {&kLlamaServer, "llama-server -hf a/b"}};
  int flags = 0;
  for (const auto& [engine, command] : engines) {
    for (const Rule& rule : engine->rules) {
      for (const std::string& name : names_of(rule)) {
        if (name.ends_with('*') || name == "MODEL_TAG" || command.find(" " + name + " ") != std::string::npos) continue;
        const bool variable = name[0] != '-';
        const std::string value = rule.takes == Takes::nothing ? "" : "1";
        const std::string line = variable ? name + "=1 " + command : command + " " + name + " " + value;
        const auto imported = import_text(line, "x", options());
        ASSERT_TRUE(imported.ok()) << line << ": " << imported.error().message;
        const std::string shown = "`" + name + (variable || !value.empty() ? " " : "`");
        EXPECT_EQ(count_of(imported->report, shown), 1) << line << "\n" << imported->report;
        EXPECT_THAT(imported->report, HasSubstr("Options: 2,")) << line;
        ++flags;
      }
    }
  }
  EXPECT_GT(flags, 500);
}

TEST(Import, NoNameStandsTwiceInATable) {
  for (const Rules rules : {kVllm.rules, kTgi.rules, kLlamaServer.rules, environment_rules(), compose_rules(),
                            docker_run_rules(), workload_rules(), pod_rules(), container_rules(), serve_rules(),
                            application_rules(), deployment_rules(), llm_config_rules(), ray_env_rules()}) {
    std::set<std::string> seen;
    for (const Rule& rule : rules)
      for (const std::string& name : names_of(rule)) EXPECT_TRUE(seen.insert(name).second) << name;
  }
}

TEST(Import, WordsOfACommandLine) {
  const auto imported =
      import_words({"HF_HUB_OFFLINE=1", "vllm", "serve", "Qwen/Qwen3-0.6B", "--port", "9000"}, options());
  ASSERT_TRUE(imported.ok()) << imported.error().message;
  EXPECT_THAT(imported->models_yaml, HasSubstr("source: hf://Qwen/Qwen3-0.6B\n"));
  EXPECT_THAT(imported->report, HasSubstr("`HF_HUB_OFFLINE 1`"));
  const auto whole = import_words({"vllm serve 'Qwen/Qwen3-0.6B' --port 9000"}, options());
  ASSERT_TRUE(whole.ok());
  EXPECT_THAT(whole->models_yaml, HasSubstr("port: 9000"));
}

TEST(Import, PathsOfTheMachineAndOfTheContainer) {
  const std::string file =
      "services:\n  a:\n    image: vllm/vllm-openai\n    command: --model /m/x\n    volumes: [./models:/m, ~/y:/y]\n"
      "    ports: ['9001:8000']\n";
  ImportOptions here = options();
  here.folder = "../deploy";
  auto imported = import_text(file, "compose.yaml", here);
  ASSERT_TRUE(imported.ok()) << imported.error().message;
  EXPECT_THAT(imported->models_yaml, HasSubstr("source: ../deploy/models/x "));
  EXPECT_THAT(imported->models_yaml, HasSubstr("port: 9001"));
  here.in_container = true;
  imported = import_text(file, "compose.yaml", here);
  EXPECT_THAT(imported->models_yaml, HasSubstr("source: /m/x\n"));
  EXPECT_THAT(imported->models_yaml, Not(HasSubstr("9001")));
}

TEST(Import, AliasesOfYamlDoNotExplode) {
  std::string file = "services:\n  a0: &a0 [x, x]\n";
  for (int i = 1; i < 40; ++i) {
    const std::string before = "*a" + std::to_string(i - 1);
    file += "  a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + before + ", " + before + "]\n";
  }
  const auto imported = import_text(file, "x.yaml", options());
  ASSERT_FALSE(imported.ok());
  EXPECT_THAT(imported.error().message, HasSubstr("more than 100000 values"));
}

std::string words_of(const std::string& script) {
  const auto commands = split_script(script, "x", 1);
  if (!commands) return commands.error().message;
  std::string out;
  for (const Command& command : *commands) {
    for (const Word& each : command.assignments) out += "{" + each.text + "}";
    for (const Word& each : command.words)
      out += "[" + each.text + (each.open ? "?" : "") + (each.redirect ? ">" : "") + "]";
    out += ";";
  }
  return out;
}

TEST(Shell, WordsAsAShellHasThem) {
  EXPECT_EQ(words_of("a 'b c' \"d \\\"e\" f\\ g # no"), "[a][b c][d \"e][f g];");
  EXPECT_EQ(words_of("a \\\n  b\nc"), "[a][b];[c];");
  EXPECT_EQ(words_of("A=1 B='2 3' c A=4"), "{A=1}{B=2 3}[c][A=4];");
  EXPECT_EQ(words_of("A='1 2'\nb $A \"$A\" ${A}x ${C:-d}${C-e} $F '$A'"),
            "{A=1 2};[b][1][2][1 2][1][2x][de][$F?][$A];");
  EXPECT_EQ(words_of("a $(b $(c) d) `e f`; g && h | i &"), "[a][$(b $(c) d)?][`e f`?];[g];[h];[i];");
  EXPECT_EQ(words_of("a > b 2>&1 &> c </dev/null"), "[a][> b>][2>&1>][&> c>][</dev/null>];");
  EXPECT_EQ(words_of("a\n'b"), "x:2: the quote ' is not closed");
  EXPECT_EQ(words_of("${" + std::string(100000, '{')), "[${" + std::string(100000, '{') + "?];");
}

}  // namespace
}  // namespace xgen::importer
