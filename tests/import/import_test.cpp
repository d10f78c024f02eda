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

int count_of(const std::string& text, const std::string& what) {
  int count = 0;
  for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; ++at) ++count;
  return count;
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
      for (const char* secret : {"hf_Qm",
                                 "hf_ray",
                                 "hf_this",
                                 "sk-",
                                 "should-see",
                                 "long-key",
                                 "another-key",
                                 "p4ss",
                                 "password-of",
                                 "dollar-in-it",
                                 "-of-keys",
                                 "serve-api-key",
                                 "ray-auth-token",
                                 "api-token-of-hf",
                                 "dXNlcj",
                                 "ghp_",
                                 "tinyk",
                                 "word-on-stdin",
                                 "in-a-substitution",
                                 "hunter2",
                                 "key-of-the-proxy"})
        EXPECT_THAT(read(folder / file), Not(HasSubstr(secret))) << folder;
  const auto imported = import_text(
      "vllm serve a/b --api-key token-abc123 --odd-token zzzzzzzzz --chat-template https://me:pass@host/x "
      "--middleware 'Bearer abcdefgh' --root-path /token-abc123",
      "x", options());
  ASSERT_TRUE(imported.ok());
  for (const char* secret : {"abc123", "zzzz", "me:pass", "abcdefgh"})
    EXPECT_THAT(imported->report, Not(HasSubstr(secret)));
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

TEST(Import, RelativePathsOfACommandAreThoseOfWhereItIsGiven) {
  ImportOptions from = options();
  from.folder = "../deploy";
  from.here = "..";
  const auto source = [&](const std::string& text) {
    const auto imported = import_text(text, "x", from);
    EXPECT_TRUE(imported.ok()) << text;
    const std::string& yaml = imported->models_yaml;
    const std::size_t at = yaml.find("source: ") + 8;
    return yaml.substr(at, yaml.find_first_of(" \n", at) - at);
  };
  EXPECT_EQ(source("llama-server -m models/x.gguf"), "../models/x.gguf");
  EXPECT_EQ(source("llama-server -m ./x.gguf"), "../x.gguf");
  EXPECT_EQ(source("llama-server -m /models/x.gguf"), "/models/x.gguf");
  EXPECT_EQ(source("vllm serve a/b"), "hf://a/b");
  EXPECT_EQ(source("docker run -v ./models:/m vllm/vllm-openai --model /m/x"), "../models/x");
  EXPECT_EQ(source("docker run vllm/vllm-openai --model ./x"), "./x") << "of the container";
  from.in_container = true;
  EXPECT_EQ(source("llama-server -m models/x.gguf"), "models/x.gguf");
}

TEST(Import, WhatIsPublishedOnOneAddressIsNotOpenedToAll) {
  for (const auto& [published, host] : {std::pair("127.0.0.1:8001:8000", "127.0.0.1"),
                                        {"[::1]:8001:8000", "\"::1\""},
                                        {"127.0.0.1::8000", "127.0.0.1"},
                                        {"8001:8000", ""}}) {
    for (const char* inner : {"", " --host 0.0.0.0"}) {
      const auto imported = import_text(
          std::string("docker run -p ") + published + " vllm/vllm-openai --model a/b" + inner, "x", options());
      ASSERT_TRUE(imported.ok());
      const std::string line = std::string("host: ") + host + "  # published as " + published + "\n";
      EXPECT_EQ(count_of(imported->models_yaml, line), *host == '\0' ? 0 : 1) << imported->models_yaml;
      EXPECT_THAT(imported->models_yaml, Not(HasSubstr("0.0.0.0")));
    }
  }
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
  EXPECT_EQ(words_of("a $(b $(c) d) `e f`; g && h | i &"), "[a][$(b …)?][`e …`?];[g];[h];[i];") << "the program alone";
  EXPECT_EQ(words_of("a > b 2>&1 &> c </dev/null"), "[a][> b>][2>&1>][&> c>][</dev/null>];");
  EXPECT_EQ(words_of("a\n'b"), "x:2: the quote ' is not closed");
  EXPECT_EQ(words_of("a \"`b c`\" $(d) $(E=f g) $((1 + 2))"), "[a][`b …`?][$(d)?][$(…)?][$((1 + 2))?];");
  EXPECT_EQ(words_of("${" + std::string(100000, '{')), "[${" + std::string(100000, '{') + "?];");
}

// What bash makes of them, or open.
TEST(Shell, PartsOfVariables) {
  const std::string set = "F=/a/b.c/d.e.gguf\nE=\n";
  const auto value = [&](const std::string& use) {
    return words_of(set + use).substr(std::string("{F=/a/b.c/d.e.gguf};{E=};").size());
  };
  for (const auto& [use, want] :
       std::vector<std::pair<std::string, std::string>>{{"${F##*/}", "d.e.gguf"},
                                                        {"${F#*/}", "a/b.c/d.e.gguf"},
                                                        {"${F%/*}", "/a/b.c"},
                                                        {"${F%%.*}", "/a/b"},
                                                        {"${F%.*}", "/a/b.c/d.e"},
                                                        {"${F%.gguf}", "/a/b.c/d.e"},
                                                        {"${F#/a/}", "b.c/d.e.gguf"},
                                                        {"${F#x}", "/a/b.c/d.e.gguf"},
                                                        {"${F%x*}", "/a/b.c/d.e.gguf"},
                                                        {"${F:?is missing}", "/a/b.c/d.e.gguf"},
                                                        {"${F:=x}", "/a/b.c/d.e.gguf"},
                                                        {"${E:-x}", "x"},
                                                        {"${E:=x}", "x"},
                                                        {"${N=x}", "x"},
                                                        {"${N-${F##*/}}", "d.e.gguf"}})
    EXPECT_EQ(value(use), "[" + want + "];") << use;
  for (const char* use : {"${F:0:3}", "${F/a/b}", "${F^^}", "${F:+x}", "${#F}", "${!F}", "${F%[0-9]*}", "${F#?}",
                          "${F#a*b}", "${F%'x'}", "${F@Q}", "${E:?gone}", "${N:-$M}", "${N:-\"x\"}", "${}"})
    EXPECT_EQ(value(use), std::string("[") + use + "?];");
}

TEST(Shell, Arrays) {
  EXPECT_EQ(words_of("A=(1 '2 3'  # four\n $X)\nb \"${A[@]}\" c${A[*]}d"), "{A=(…)};[b][1][2 3][$X?][c1][2 3][$Xd?];");
  EXPECT_EQ(words_of("A=(1)\nA+=(2)\nb \"${A[@]}\" $A ${A[0]}"), "{A=(…)};{A=(…)};[b][1][2][$A?][${A[0]}?];");
  EXPECT_EQ(words_of("A=()\nb \"${A[@]}\" ${B[@]} c"), "{A=(…)};[b][${B[@]}?][c];");
  EXPECT_EQ(words_of("a\nB=(\n1"), "x:2: the parenthesis ( is not closed");
}

TEST(Shell, HereDocuments) {
  EXPECT_EQ(words_of("a <<E b\nit's\nE\nc"), "[a][<<E>][b];[c];");
  EXPECT_EQ(words_of("a <<-'E'; b <<\\F\n\tit's\n\tE\nhe's\nF\nc"), "[a][<<-E>];[b][<<F>];[c];");
  EXPECT_EQ(words_of("bash <<E\na b\nE\nc <<< 'd e' f"), "[bash][<<E>];[a][b];[c][<<< >][f];");
  EXPECT_EQ(words_of("bash <<E\n\n'\nE"), "x:3: the quote ' is not closed");
  EXPECT_EQ(words_of("(( 1 <<2 ))\na"), "[((][1][<<2>][))];[a];") << "none that ends";
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += "sh <<E\n";
  words_of(deep + "E");
}

TEST(Shell, VariablesDoNotExplode) {
  std::string script = "A=aaaaaaaaaaaaaaaa\n", array = "A=(aaaaaaaaaaaaaaaa)\n", pod;
  for (int i = 0; i < 60; ++i) {
    script += "A=$A$A\n";
    array += "A=(\"${A[@]}\" \"${A[@]}\")\n";
    const std::string before = "$(A" + std::to_string(i) + ")";
    pod += "    - {name: A" + std::to_string(i + 1) + ", value: " + before + before + "}\n";
  }
  EXPECT_LT(words_of(script).size(), 1'000'000);
  EXPECT_LT(words_of(array).size(), 10'000);
  const auto imported = import_text(
      "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: vllm/vllm-openai\n    args: [--model, a/b]\n    "
      "env:\n"
      "    - {name: A0, value: aaaaaaaaaaaaaaaa}\n" +
          pod,
      "x.yaml", options());
  ASSERT_TRUE(imported.ok()) << imported.error().message;
}

}  // namespace
}  // namespace xgen::importer
