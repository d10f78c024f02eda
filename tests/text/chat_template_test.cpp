// Every chat template of the shared data, rendered over a set of conversations, against what transformers renders.
#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <chrono>
#include <iostream>
#include <map>
#include <thread>

#include "text/jinja_golden.h"

namespace xgen::text {
namespace {

namespace fs = std::filesystem;

// "path", "path#line/key" (JSON lines), or "path#name" (a tokenizer_config.json with several templates).
std::string load_template(const fs::path& root, const std::string& name) {
  const std::size_t hash = name.find('#');
  const fs::path path = root / name.substr(0, hash);
  if (path.extension() == ".jsonl") {
    const std::size_t slash = name.find('/', hash);
    const int wanted = std::stoi(name.substr(hash + 1, slash - hash - 1));
    std::istringstream lines(read_text(path));
    std::string line;
    for (int i = 0; i <= wanted; ++i) std::getline(lines, line);
    return std::string(boost::json::parse(line).at(name.substr(slash + 1)).as_string());
  }
  if (path.extension() != ".json") return read_text(path);
  const auto config = read_json(path);
  const auto& source = config.at("chat_template");
  if (source.is_string()) return std::string(source.as_string());
  for (const auto& entry : source.as_array())
    if (entry.at("name").as_string() == name.substr(hash + 1)) return std::string(entry.at("template").as_string());
  return "";
}

TEST(ChatTemplates, SharedTemplatesRenderAsInTransformers) {
  const fs::path root = fs::path(XGEN_SOURCE_DIR) / ".." / "shared" / "data";
  if (!fs::exists(root / "chat-templates")) GTEST_SKIP() << "no shared data beside the repository";
  std::vector<jinja::Value> contexts;
  std::vector<std::string> context_names;
  const auto inputs = read_json(golden_dir() / "contexts.json");
  for (const auto& input : inputs.as_array()) {
    contexts.push_back(*jinja::from_json(boost::json::serialize(input.at("context"))));
    context_names.emplace_back(input.at("name").as_string());
  }
  const auto golden = read_json(golden_dir() / "rendered.json");
  const auto& texts = golden.at("texts").as_array();
  std::size_t rendered = 0, raised = 0, failed = 0;
  for (const auto& [key, results] : golden.at("templates").as_object()) {
    const std::string name(key);
    const auto parsed = ChatTemplate::parse(load_template(root, name));
    for (std::size_t i = 0; i < contexts.size(); ++i) {
      const auto& expected = results.as_array().at(i);
      const auto actual =
          parsed.ok() ? parsed->render(contexts[i], golden_settings()) : Result<std::string>(parsed.error());
      std::string problem;
      if (expected.is_number()) {
        const std::string text(texts.at(static_cast<std::size_t>(expected.as_int64())).as_string());
        problem = difference(actual, &text, nullptr);
        ++rendered;
      } else {
        problem = difference(actual, nullptr, &expected.as_object());
        ++(expected.as_object().contains("raise") ? raised : failed);
      }
      EXPECT_EQ(problem, "") << name << " with context \"" << context_names[i] << '"';
    }
  }
  std::cout << golden.at("templates").as_object().size() << " templates x " << contexts.size()
            << " contexts: " << rendered << " texts, " << raised << " raised, " << failed << " other errors\n";
}

ChatTemplate parse_ok(const std::string& source) {
  auto parsed = ChatTemplate::parse(source);
  EXPECT_TRUE(parsed.ok()) << (parsed.ok() ? "" : parsed.error().message);
  return *parsed;
}

const std::string kChatMl =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

TEST(RenderChat, BuildsTheContext) {
  const std::vector<ChatMessage> messages = {{"system", "s", ""}, {"user", "안녕", "bob"}};
  RenderOptions options;
  EXPECT_EQ(*render_chat(parse_ok(kChatMl), messages, options),
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n안녕<|im_end|>\n<|im_start|>assistant\n");
  options.add_generation_prompt = false;
  options.bos_token = "<s>";
  options.special_tokens = {{"pad_token", "<pad>"}};
  options.extra = {{"flag", jinja::Value(true)}};
  const auto shown = parse_ok(
      "{{ bos_token }}{{ eos_token is defined }}{{ pad_token }}{{ flag }}{{ tools is none }}{{ documents is none }}"
      "{{ messages[0].name is defined }}{{ messages[1].name }}{{ add_generation_prompt }}");
  EXPECT_EQ(*render_chat(shown, messages, options), "<s>False<pad>TrueTrueTrueFalsebobFalse");
}

TEST(RenderChat, UsesTheClock) {
  RenderOptions options;
  options.settings = golden_settings();
  EXPECT_EQ(*render_chat(parse_ok("{{ strftime_now('%d %B %Y') }}"), {}, options), "26 July 2024");
}

TEST(RenderChat, TemplatesOwnErrorIsTheMessage) {
  const auto result =
      render_chat(parse_ok("{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"),
                  std::vector<ChatMessage>{{"system", "x", ""}}, {});
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(result.error().message, "user first");
  EXPECT_EQ(result.error().param, "messages");
}

TEST(RenderChat, ErrorsNameTheLine) {
  const auto result =
      render_chat(parse_ok("a\n\n{{ messages[0].content + 1 }}"), std::vector<ChatMessage>{{"user", "x", ""}}, {});
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().message, "chat template, line 3: can only concatenate str (not \"int\") to str");
  const auto syntax = ChatTemplate::parse("a\n{% if x %}\n{{ 1 +");
  ASSERT_FALSE(syntax.ok());
  EXPECT_EQ(syntax.error().code, ErrorCode::invalid_argument);
  EXPECT_EQ(syntax.error().message, "chat template, line 3: unexpected 'end of template'");
}

TEST(RenderChat, RefusesBadUtf8) {
  const auto result = render_chat(parse_ok(kChatMl), std::vector<ChatMessage>{{"user", "\xff", ""}}, {});
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().param, "messages");
  EXPECT_FALSE(ChatTemplate::parse("\xc3").ok());
}

TEST(ChatTemplates, OtherTemplatesAreRefusedClearly) {
  for (const std::string tag : {"include 'x'", "import 'x' as y", "from 'x' import y", "extends 'x'"}) {
    const auto parsed = ChatTemplate::parse("{% " + tag + " %}");
    ASSERT_FALSE(parsed.ok());
    EXPECT_NE(parsed.error().message.find("is not supported"), std::string::npos) << parsed.error().message;
  }
}

// Each of these would take unbounded time, memory or stack without a limit.
TEST(ChatTemplates, HostileTemplatesEndWithAnError) {
  const std::string deep(5000, '(');
  std::string nested_ifs, chain = "{{ 1";
  for (int i = 0; i < 5000; ++i) {
    nested_ifs += "{% if 1 %}";
    chain += "+1";
  }
  std::string many_names;
  for (int i = 0; i < 20000; ++i) many_names += "{% set x" + std::to_string(i) + "=1 %}";
  const std::vector<std::string> templates = {
      "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
      "{{ 'x' * 1000000000 }}",
      "{{ [0] * 1000000000 }}",
      "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
      "{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = [ns.l] %}{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(150) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
      "{% set a = namespace(l=[1]) %}{% set b = namespace(l=[1]) %}{% for i in range(150) %}{% set a.l = [a.l, a.l] %}"
      "{% set b.l = [b.l, b.l] %}{% endfor %}{{ a.l == b.l }}",
      "{% set ns = namespace() %}{% set ns.self = ns %}{{ ns }}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(1000) %}{% set ns.l = ns.l|map('string') %}{% endfor %}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% for x in [[]] recursive %}{{ loop([x]) }}{% endfor %}",
      "{{ '%1000000000d' % 1 }}",
      "{{ '{:1000000000}'.format(1) }}",
      "{{ 'x'.center(1000000000) }}",
      "{{ 'abc'.replace('', 'x' * 1000000).replace('x', 'y' * 1000) }}",
      "{{ 2 ** 64 }}",
      "{{ 99999999999999999999 }}",
      "{{ range(100000)|batch(1)|list|tojson(indent=10000) }}",
      "{{ [1]|batch(1000000000, 0)|list }}",
      "{{ []|slice(1000000000)|list }}",
      "{{ 'x'|indent(1000000000) }}",
      "{{ " + deep,
      "{{ [" + deep,
      nested_ifs,
      chain + " }}",
      many_names,
      std::string(std::size_t{2} << 20, 'x'),
  };
  for (const std::string& source : templates) {
    const auto result = render_source(source, jinja::Value::dict({}));
    EXPECT_FALSE(result.ok()) << source.substr(0, 100);
  }
}

TEST(ChatTemplates, CyclesOfNamespacesAndClosuresAreFreed) {
  // The leak sanitizer is what looks at this one.
  EXPECT_EQ(*render_source("{% set ns = namespace() %}{% set ns.self = ns %}{% set ns.list = [ns] %}"
                           "{% macro m() %}{{ ns.self is defined }}{% endmacro %}{% set ns.m = m %}{{ ns.m() }}"
                           "{% for x in [1] %}{{ loop.changed(loop) }}{% set ns.loop = loop %}{% endfor %}",
                           jinja::Value::dict({})),
            "TrueTrue");
}

TEST(ChatTemplates, ThreadsShareOneTemplate) {
  const ChatTemplate shared = parse_ok(kChatMl);
  const std::vector<ChatMessage> messages = {{"user", "hello", ""}};
  const std::string expected = *render_chat(shared, messages, {});
  std::vector<std::thread> threads;
  std::array<bool, 4> equal{};
  for (std::size_t t = 0; t < equal.size(); ++t)
    threads.emplace_back([&, t] {
      equal[t] = true;
      for (int i = 0; i < 200; ++i) equal[t] = equal[t] && *render_chat(shared, messages, {}) == expected;
    });
  for (std::thread& thread : threads) thread.join();
  for (const bool same : equal) EXPECT_TRUE(same);
}

}  // namespace
}  // namespace xgen::text
