#include "config/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

namespace xgen::config {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string error_of(std::string_view text) {
  auto config = load_text(text, "models.yaml");
  return config ? "" : config.error().message;
}

TEST(Config, EmptyFileServesTheDemo) {
  auto config = load_text("", "models.yaml");
  ASSERT_TRUE(config.ok()) << config.error().message;
  ASSERT_EQ(config->models.size(), 1u);
  EXPECT_EQ(config->models[0].name, "xgen-demo");
  EXPECT_EQ(config->server.port, 8000);
}

TEST(Config, SetsSingleKeysAsAFileWould) {
  auto config = load_text("models: [{name: a, source: 'builtin:xgen-demo', max_num_seqs: 8}]", "models.yaml");
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_TRUE(set(*config, "server.port", "9000").ok());
  EXPECT_TRUE(set(*config, "log.level", "warn").ok());
  EXPECT_TRUE(set(*config, "compute.threads", "auto").ok());
  EXPECT_TRUE(set(*config, "defaults.max_num_seqs", "3").ok());
  EXPECT_EQ(config->server.port, 9000);
  EXPECT_EQ(config->log.level, log::Level::warn);
  EXPECT_EQ(config->compute.threads, 0);
  EXPECT_EQ(config->defaults.max_num_seqs, 3);
  EXPECT_EQ(config->models.at(0).settings.max_num_seqs, 3);
  const Status wrong = set(*config, "server.port", "70000");
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.error().message, "expected an integer from 0 to 65535, got '70000'");
  EXPECT_EQ(config->server.port, 9000);
  for (const char* key : {"server", "server.prot", "nothing.port", "models.name", ""})
    EXPECT_FALSE(set(*config, key, "1").ok()) << key;
  EXPECT_EQ(describe_key("server.port"), "TCP port; 0 takes any free one. (an integer from 0 to 65535)");
  EXPECT_EQ(describe_key("server.prot"), "");
}

TEST(Config, ReadsEverySection) {
  auto config = load_text(R"(
server: {host: 127.0.0.1, port: 9000, threads: 2, max_body: 1MiB, drain_delay: 250ms, unknown_fields: warn}
log: {level: warn, format: json}
memory: {host: 50%}
compute: {threads: 3, kernels: scalar}
defaults: {max_model_len: 4096, max_num_seqs: 8}
models:
  - name: a/b
    aliases: [default, other]
    source: builtin:xgen-demo
    max_num_seqs: 16
    kv_cache: 2GiB
    kv_cache_dtype: f16
    prefix_caching: false
    engine: native
    device: auto
)",
                          "models.yaml");
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->server.host, "127.0.0.1");
  EXPECT_EQ(config->server.port, 9000);
  EXPECT_EQ(config->server.max_body, 1u << 20);
  EXPECT_EQ(config->server.drain_delay.count(), 250);
  EXPECT_EQ(config->server.unknown_fields, "warn");
  EXPECT_EQ(config->log.level, log::Level::warn);
  EXPECT_EQ(config->memory.host.of(1000), 500u);
  EXPECT_EQ(config->compute.threads, 3);
  const Model& model = config->models.at(0);
  EXPECT_EQ(model.name, "a/b");
  EXPECT_EQ(model.aliases, (std::vector<std::string>{"default", "other"}));
  EXPECT_EQ(model.settings.max_model_len, 4096);
  EXPECT_EQ(model.settings.max_num_seqs, 16);
  EXPECT_EQ(model.settings.kv_cache, std::uint64_t{2} << 30);
  EXPECT_FALSE(model.settings.prefix_caching);
}

TEST(Config, FaultsNameFileLineKeyAndExpectation) {
  EXPECT_EQ(error_of("server:\n  port: abc\n"),
            "models.yaml:2:9: server.port: expected an integer from 0 to 65535, got 'abc'");
  EXPECT_EQ(error_of("server:\n  prot: 1\n").substr(0, 52), "models.yaml:2:3: server.prot: unknown key; expected ");
  EXPECT_EQ(error_of("serve: {}"),
            "models.yaml:1:1: serve: unknown key; expected one of: server, log, memory, compute, sources, tracing, "
            "defaults, models");
}

TEST(Config, SourcesThatAreNoPathsAndTheirCache) {
  const auto cache = [](const std::string& text) {
    const auto config = load_text("sources: {cache: " + text + "}", "/etc/xgen/models.yaml");
    return config ? config->sources.cache : config.error().message;
  };
  EXPECT_EQ(cache("/models"), "/models");
  EXPECT_EQ(cache("models"), "/etc/xgen/models");
  EXPECT_EQ(cache("~/models"), "~/models");
  EXPECT_EQ(cache("$DATA/models"), "$DATA/models");
  const auto config =
      load_text("models: [{name: a, source: 'hf://org/repo@v1/x.gguf'}, {name: b, source: 's3://bucket/x'}]",
                "/etc/xgen/models.yaml");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->models[0].source, "hf://org/repo@v1/x.gguf");
  EXPECT_EQ(config->models[1].source, "s3://bucket/x");
  EXPECT_EQ(single_model_config("hf://Qwen/Qwen3-0.6B")->models[0].name, "Qwen3-0.6B");
  EXPECT_EQ(single_model_config("s3://bucket/a b")->models[0].name, "a-b");
  EXPECT_FALSE(single_model_config("hf://Qwen"));
}

TEST(Config, EveryBadValueIsRefused) {
  const std::pair<const char*, const char*> cases[] = {
      {"server: {port: 70000}", "from 0 to 65535"},
      {"server: {port: -1}", "from 0 to 65535"},
      {"server: {port: 8000.5}", "from 0 to 65535"},
      {"server: {port: 99999999999999999999}", "from 0 to 65535"},
      {"server: {port: [1]}", "got a list"},
      {"server: 5", "expected a mapping"},
      {"server: {max_body: 3 apples}", "expected a size"},
      {"server: {max_body: -1}", "expected a size"},
      {"server: {max_body: 12}", "at least 1KiB"},
      {"server: {idle_timeout: soon}", "expected a duration"},
      {"server: {idle_timeout: 0}", "idle_timeout: expected at least 100ms, got '0'"},
      {"server: {header_timeout: 5ms}", "header_timeout: expected at least 100ms, got '5ms'"},
      {"server: {port: 1, port: 2}", "given twice"},
      {"server: {unknown_fields: maybe}", "expected reject | warn"},
      {"memory: {host: 0%}", "a share"},
      {"memory: {host: 101%}", "a share"},
      {"memory: {gpu: 90%}", "no GPU support"},
      {"compute: {threads: 0}", "expected auto"},
      {"models: []", "each {name: …, source: …}, got an empty list; without the key the built-in demo model"},
      {"models: {}", "at least one model"},
      {"models: [5]", "expected a mapping"},
      {"models: [{source: builtin:xgen-demo}]", "name: missing"},
      {"models: [{name: a}]", "source: missing"},
      {"models: [{name: 'a b', source: builtin:xgen-demo}]", "without spaces"},
      {"models: [{name: a, source: /nonexistent/folder}]", "/nonexistent/folder"},
      {"models: [{name: a, source: 'hf://org'}]", "expected hf://ORG/REPO[@REVISION][/FILE]"},
      {"models: [{name: a, source: 'hf://org/repo/../x'}]", "cannot be a file of a repository"},
      {"models: [{name: a, source: 'gs://bucket/x'}]", "expected a path, hf://ORG/REPO[@REVISION][/FILE] or s3://"},
      {"models: [{name: a, source: builtin:xgen-demo, engine: vllm}]", "native | openai | tgi | triton"},
      {"models: [{name: a, engine: tgi}]", "urls: missing"},
      {"models: [{name: a, engine: tgi, urls: ['http://a'], dialect: vllm}]",
       "models[0].dialect: belongs to models of engine openai; this one's engine is tgi"},
      {"models: [{name: a, engine: tgi, urls: ['http://a'], tokenizer: /}]",
       "models[0].tokenizer: belongs to models of engine triton; this one's engine is tgi"},
      {"models: [{name: a, engine: triton, urls: ['http://a']}]",
       "models[0].tokenizer: missing; engine triton takes only text"},
      {"models: [{name: a, engine: openai, urls: ['http://a'], tokenizer: /}]",
       "models[0].tokenizer: belongs to models of engine triton; this one's engine is openai"},
      {"models: [{name: a, source: builtin:xgen-demo, tokenizer: /}]",
       "models[0].tokenizer: belongs to models that another engine serves"},
      {"models: [{name: a, engine: triton, urls: ['http://a'], tokenizer: /nonexistent}]",
       "models[0].tokenizer: '/nonexistent': "},
      {"models: [{name: a, engine: triton, urls: ['http://a'], tokenizer: /dev/null}]",
       "models[0].tokenizer: '/dev/null': expected a folder, tokenizer.json or a .gguf file"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], api_key_file: /nonexistent/key}]",
       "models[0].api_key_file: '/nonexistent/key': no such file"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], ca_file: /nonexistent/ca.pem}]",
       "models[0].ca_file: '/nonexistent/ca.pem': no such file"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], api_key_file: /}]",
       "models[0].api_key_file: '/': a folder; expected a file"},
      {"models: [{name: a, source: Qwen/Qwen3-0.6B}]",
       "no such file or folder; of the Hugging Face Hub: hf://Qwen/Qwen3-0.6B"},
      {"models: [{name: a, engine: openai}]", "urls: missing"},
      {"models: [{name: a, engine: openai, urls: http://host/v1}]", "a list of 1 to 256 URLs"},
      {"models: [{name: a, engine: openai, urls: []}]", "a list of 1 to 256 URLs"},
      {"models: [{name: a, engine: openai, urls: [host/v1]}]", "urls[0]: expected a URL"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1', 'http://a/v1']}]", "listed twice"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], balance: random}]", "prefix | least_loaded"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], max_attempts: 0}]", "models[0].max_attempts"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], replica_per_address: yes}]", "true or false"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], source: builtin:xgen-demo}]",
       "models[0].source: belongs to models of engine native"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], kv_cache: 1GiB}]",
       "models[0].kv_cache: belongs to models of engine native"},
      {"models: [{name: a, source: builtin:xgen-demo, urls: ['http://a/v1']}]",
       "models[0].urls: belongs to models that another engine serves; this one's engine is native"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], dialect: klingon}]", "auto | openai"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], headers: [x]}]", "header names to values"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], headers: {'a b': c}}]", "is no header name"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], headers: {a: \"b\\nc\"}}]", "'a': expected a text"},
      {"models: [{name: a, engine: openai, urls: ['http://a/v1'], connect_timeout: 1ms}]", "at least 100ms"},
      {"models: [{name: a, source: builtin:xgen-demo, pin: yes}]", "true or false"},
      {"models: [{name: a, source: builtin:xgen-demo, load: later}]", "startup | on_demand"},
      {"models: [{name: a, source: builtin:xgen-demo, idle_unload: -1s}]", "duration"},
      {"models: [{name: a, source: builtin:xgen-demo, colour: red}]", "unknown key"},
      {"models: [{name: a, source: builtin:xgen-demo}, {name: a, source: builtin:xgen-demo}]", "already used"},
      {"models: [{name: a, aliases: [a], source: builtin:xgen-demo}]", "already used"},
      {"models: [{name: a, max_model_len: 0, source: builtin:xgen-demo}]", "from 1 to"},
      {"[1, 2", "models.yaml:1"},
      {"{a: *nothing}", "models.yaml:1"},
      {"server: \xff", "UTF-8"},
      {"- 1", "expected a mapping"},
      {"server: {port: 1}\n---\nserver: {port: 2}", "more than one document"},
      {",", "more than one document"},
      {"{server: {port: 1}} }", "illegal flow end"},
      {"server: {port: 1}\n...\nserver: {port: 2}", "more than one document"},
      {"? [a, b]\n: 1", "expected a key"},
  };
  for (const auto& [text, want] : cases) EXPECT_THAT(error_of(text), HasSubstr(want)) << text;
}

TEST(Config, WhatBelongsToAnUnknownEngineIsNoFault) {
  EXPECT_EQ(
      error_of("models: [{name: a, engine: vllm, urls: ['http://a/v1'], model: b, kv_cache: 1GiB}]"),
      "models.yaml:1:28: models[0].engine: expected native | openai | tgi | triton, got 'vllm'; it speaks OpenAI's "
      "/v1, which is engine openai");
  EXPECT_EQ(error_of("models: [{name: a, engine: klingon}]"),
            "models.yaml:1:28: models[0].engine: expected native | openai | tgi | triton, got 'klingon'");
}

TEST(Config, MessagesSayWhereAKeyWasSet) {
  auto config = load_text("memory:\n  host: 2GiB\n", "models.yaml");
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->located("memory.host: too much"), "models.yaml:2:9: memory.host: too much");
  EXPECT_EQ(config->located("server.port: taken"), "server.port: taken");
  ASSERT_TRUE(set(*config, "memory.host", "1GiB").ok());  // no longer the file's
  EXPECT_EQ(config->located("memory.host: too much"), "memory.host: too much");
}

TEST(Config, AModelOfAnotherEngine) {
  auto config = load_text(R"(
models:
  - name: big
    aliases: [default]
    engine: openai
    urls: ['https://vllm-0:8000/v1']
    model: org/Big
    dialect: vllm
    api_key_file: ./zero
    ca_file: /dev/null
    headers: {X-Team: blue}
    first_byte_timeout: 30s
    max_requests: 7
  - {name: small, source: 'builtin:xgen-demo'}
)",
                          "/dev/models.yaml");
  ASSERT_TRUE(config.ok()) << config.error().message;
  const Model& model = config->models.at(0);
  EXPECT_TRUE(model.is_remote());
  EXPECT_FALSE(config->models.at(1).is_remote());
  EXPECT_EQ(model.remote.urls, (std::vector<std::string>{"https://vllm-0:8000/v1"}));
  EXPECT_EQ(model.remote.model, "org/Big");
  EXPECT_EQ(model.remote.dialect, "vllm");
  EXPECT_EQ(model.remote.api_key_file, "/dev/zero");  // relative to the file
  EXPECT_EQ(model.remote.ca_file, "/dev/null");
  EXPECT_EQ(model.remote.headers.at(0).second, "blue");
  EXPECT_EQ(model.remote.first_byte_timeout, milliseconds(30'000));
  EXPECT_EQ(model.remote.idle_timeout, milliseconds(60'000));
  EXPECT_EQ(model.remote.max_requests, 7);
  // A reload replaces the model where anything of this differs.
  const std::string before = fingerprint(model);
  EXPECT_EQ(before, fingerprint(config->models.at(0)));
  for (const auto& change : std::vector<std::function<void(Remote&)>>{
           [](Remote& r) { r.urls = {"http://other/v1"}; }, [](Remote& r) { r.model = "x"; },
           [](Remote& r) { r.dialect = "auto"; }, [](Remote& r) { r.headers[0].second = "red"; },
           [](Remote& r) { r.api_key_file = "/other"; }, [](Remote& r) { r.idle_timeout = milliseconds(1); },
           [](Remote& r) { r.max_requests = 8; }, [](Remote& r) { r.replica_per_address = true; }}) {
    Model changed = model;
    change(changed.remote);
    EXPECT_NE(fingerprint(changed), before);
  }
}

TEST(Config, TheTokenizerOfAModelOfAnotherEngine) {
  const std::string folder = ::testing::TempDir() + "config_tokenizer";
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/tokenizer.json") << "{}";
  const auto load = [&](const std::string& path) {
    return load_text("models: [{name: a, engine: triton, urls: ['http://a:8000'], tokenizer: '" + path + "'}]",
                     ::testing::TempDir() + "models.yaml");
  };
  for (const char* path : {"config_tokenizer", "config_tokenizer/tokenizer.json"}) {
    const auto config = load(path);
    ASSERT_TRUE(config.ok()) << config.error().message;
    EXPECT_EQ(std::filesystem::path(config->models.at(0).remote.tokenizer), std::filesystem::path(folder));
  }
  // A reload reads another tokenizer.
  const std::string before = fingerprint(load("config_tokenizer")->models.at(0));
  std::ofstream(folder + "/tokenizer.json") << "{  }";
  EXPECT_NE(fingerprint(load("config_tokenizer")->models.at(0)), before);
  std::filesystem::remove(folder + "/tokenizer.json");
  EXPECT_THAT(load("config_tokenizer/absent").error().message,
              HasSubstr("models.yaml:1:72: models[0].tokenizer: '" + folder + "/absent': No such file or directory"));
}

TEST(Config, FallbacksAreOtherModelsOfTheList) {
  auto config = load_text(R"(
models:
  - {name: a, engine: openai, urls: ['http://a/v1'], fallbacks: [second, c]}
  - {name: b, aliases: [second], source: 'builtin:xgen-demo', fallbacks: [c]}
  - {name: c, source: 'builtin:xgen-demo'}
)",
                          "models.yaml");
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->models.at(0).fallbacks, (std::vector<std::string>{"b", "c"}));  // names, where an alias stood
  EXPECT_EQ(config->models.at(1).fallbacks, (std::vector<std::string>{"c"}));
  EXPECT_EQ(config->models.at(2).fallbacks, (std::vector<std::string>{}));
  // Nothing has to be loaded anew for them.
  Model changed = config->models.at(1);
  changed.fallbacks = {};
  EXPECT_EQ(fingerprint(changed), fingerprint(config->models.at(1)));

  const auto fault = [](const std::vector<std::string>& fallbacks) {
    std::string text = "models:\n";
    for (std::size_t i = 0; i < fallbacks.size(); ++i)
      text += "  - name: " + std::string(1, static_cast<char>('a' + i)) + "\n    aliases: [" +
              std::string(1, static_cast<char>('A' + i)) + "]\n    source: builtin:xgen-demo\n" +
              (fallbacks[i].empty() ? std::string() : "    fallbacks: " + fallbacks[i] + "\n");
    return error_of(text);
  };
  EXPECT_EQ(fault({"[b]", "[c, d]", "[d]", ""}), "");
  EXPECT_EQ(fault({"[b, x]", ""}), "models.yaml:5:20: models[0].fallbacks[1]: 'x' is no model of this list");
  EXPECT_EQ(fault({"[a]"}), "models.yaml:5:17: models[0].fallbacks[0]: 'a' is this model itself");
  EXPECT_EQ(fault({"", "[a, B]"}), "models.yaml:8:20: models[1].fallbacks[1]: 'B' is this model itself");
  EXPECT_EQ(fault({"[b, c, B]", "", ""}), "models.yaml:5:23: models[0].fallbacks[2]: 'B' is listed twice");
  EXPECT_EQ(fault({"[b]", "[a]"}), "models.yaml:5:16: models[0].fallbacks: they lead back to the model: a -> b -> a");
  EXPECT_EQ(fault({"[d]", "[c]", "[a, d]", "[b]"}),  // one circle is one fault, and another another
            "models.yaml:5:16: models[0].fallbacks: they lead back to the model: a -> d -> b -> c -> a\n"
            "models.yaml:9:16: models[1].fallbacks: they lead back to the model: b -> c -> d -> b");
  EXPECT_THAT(fault({"b", ""}), HasSubstr("models[0].fallbacks: expected a list of at most 16 names of models"));
  EXPECT_THAT(fault({"[[b]]", ""}), HasSubstr("models[0].fallbacks[0]: expected a name"));
}

TEST(Config, TabsInIndentationAreNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {"server:\n\tport: 1\n", "models.yaml:2:1: a tab: YAML forbids tabs in indentation, use spaces"},
      {"server:\n  port: 1\n\thost: a\n", "models.yaml:3:1: a tab: "},
      {"server:\n \tport: 1\n", "models.yaml:2:2: a tab: "},
      {"models:\n\t- name: a\n", "models.yaml:2:1: a tab: "},
      {"models:\n  -\tname: a\n    source: b\n", "models.yaml:2:4: a tab: "},
      {"models:\n  - name: a\n    source: b\n\tpin: true\n", "models.yaml:4:1: a tab: "},
  };
  for (const auto& [text, want] : cases) EXPECT_THAT(error_of(text), ::testing::StartsWith(want)) << text;
  // Where YAML takes them they are no fault, and get no blame for others.
  EXPECT_EQ(error_of("server: {\n\tport:\t9000}\n"), "");
  EXPECT_THAT(error_of("server:\tport: 1\n"), ::testing::StartsWith("models.yaml:1:13: a ':' where no key can be"));
}

TEST(Config, SyntaxErrorsSayWhatToLookFor) {
  EXPECT_THAT(error_of("server: {port: 1\n"), HasSubstr("a '{' or a quote before this is not closed"));
  EXPECT_THAT(error_of("models: [\n"), HasSubstr("a '[' or a quote before this is not closed"));
  EXPECT_THAT(error_of("server:\n  port: 1\n host: a\n"), HasSubstr("models.yaml:3:2: indented unlike the keys above"));
}

TEST(Config, ReportsAllFaultsAtOnce) {
  EXPECT_THAT(error_of("server: {port: x}\nlog: {level: loud}\n"),
              AllOf(HasSubstr("server.port"), HasSubstr("log.level")));
}

// And each where it stands.
TEST(Config, ReportsEveryBadEntryOfAList) {
  const std::string all = error_of(R"(models:
  - name: a
    engine: openai
    urls: [ftp://x, 'http://a/v1', 12]
    aliases: ['b c', d, '']
    headers: {Transfer-Encoding: chunked, HOST: x, 'a b': c, X-A: 1, x-a: 2, Authorization: z}
    api_key_file: /dev/zero
    fallbacks: ['x y', ghost]
)");
  for (const auto* each :
       {"models.yaml:4:12: models[0].urls[0]: expected a URL", "models.yaml:4:36: models[0].urls[2]: expected a URL",
        "models[0].aliases[0]: expected a name", "models.yaml:5:25: models[0].aliases[2]: expected a name",
        "models.yaml:6:15: models[0].headers: 'Transfer-Encoding' is HTTP's own", "'HOST' is HTTP's own",
        "'a b' is no header name", "'x-a' is given twice", "'Authorization' is what api_key_file is for",
        "models[0].fallbacks[0]: expected a name"})
    EXPECT_THAT(all, HasSubstr(each));
}

TEST(Config, WhoGetsIn) {
  auto config = load_text(R"(
server:
  tls_cert_file: tls/cert.pem
  tls_key_file: /keys/key.pem
  tls_client_ca_file: ca.pem
  tls_client_auth: optional
  tls_min_version: 1.3
  admin_host: 0.0.0.0
  admin_port: 9000
  operators: gateway
  trusted_proxies: [10.0.0.0/8, 'fd00::/8', 192.0.2.1]
  cors_origins: ['*', 'https://app.example.com:8443', 'http://localhost:3000', 'http://[::1]:3000']
)",
                          "/etc/xgen/models.yaml");
  ASSERT_TRUE(config.ok()) << config.error().message;
  const Server& server = config->server;
  EXPECT_EQ(server.tls_cert_file, "/etc/xgen/tls/cert.pem");
  EXPECT_EQ(server.tls_key_file, "/keys/key.pem");
  EXPECT_EQ(server.tls_client_ca_file, "/etc/xgen/ca.pem");
  EXPECT_EQ(server.tls_client_auth, "optional");
  EXPECT_EQ(server.tls_min_version, "1.3");
  EXPECT_EQ(server.admin_host, "0.0.0.0");
  EXPECT_EQ(server.admin_port, 9000);
  ASSERT_EQ(server.trusted_proxies.size(), 3U);
  EXPECT_TRUE(server.trusted_proxies[0].contains(*IpAddress::parse("10.1.1.1")));
  EXPECT_EQ(server.cors_origins.size(), 4U);

  const auto wrong = load_text(R"(server:
  operators: gateway
  admin_port: 8000
  tls_client_auth: none
  tls_min_version: 1.1
  trusted_proxies: [10.0.0.0/33, gateway, {}]
  cors_origins: [app.example.com, 'https://a/b', 'https://*.a', 'HTTPS://A', 'null', 'https://', 'https://u@a']
)",
                               "models.yaml");
  ASSERT_FALSE(wrong.ok());
  const std::string& all = wrong.error().message;
  for (const char* each :
       {"models.yaml:2:14: server.operators: gateway needs server.trusted_proxies",
        "server.admin_port: the same as server.port", "server.tls_client_auth: expected required | optional",
        "server.tls_min_version: expected 1.2 | 1.3",
        "server.trusted_proxies[0]: expected an address or a range such as 10.0.0.0/8 or fd00::/8, got '10.0.0.0/33'",
        "server.trusted_proxies[1]", "server.trusted_proxies[2]", "server.cors_origins[0]", "server.cors_origins[1]",
        "server.cors_origins[2]", "server.cors_origins[3]", "server.cors_origins[4]", "server.cors_origins[5]",
        "server.cors_origins[6]"})
    EXPECT_THAT(all, HasSubstr(each));
}

TEST(Config, AFileOfApiKeys) {
  auto keys = load_keys_text(R"(keys:
  - name: team-a
    sha256: 00FF0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e
  - {name: ops, sha256: '1111111111111111111111111111111111111111111111111111111111111111',
     scopes: [admin, metrics], requests_per_minute: 60, tokens_per_minute: 100000}
)",
                             "keys.yaml");
  ASSERT_TRUE(keys.ok()) << keys.error().message;
  ASSERT_EQ(keys->size(), 2U);
  EXPECT_EQ(keys->at(0).name, "team-a");
  EXPECT_EQ(keys->at(0).sha256[1], 0xff);
  EXPECT_EQ(keys->at(0).sha256[31], 0x1e);
  EXPECT_EQ(keys->at(0).scopes, std::vector<std::string>{"inference"});
  EXPECT_EQ(keys->at(0).requests_per_minute, 0);
  EXPECT_EQ(keys->at(1).scopes, (std::vector<std::string>{"admin", "metrics"}));
  EXPECT_EQ(keys->at(1).requests_per_minute, 60);
  EXPECT_EQ(keys->at(1).tokens_per_minute, 100000);

  EXPECT_TRUE(load_keys_text("keys: []", "keys.yaml")->empty()) << "nobody";

  const std::string sha = "sha256: '1111111111111111111111111111111111111111111111111111111111111111'";
  const std::pair<std::string, const char*> bad[] = {
      {"", "expected a mapping with keys"},
      {"sk-secret", "expected a mapping with keys"},
      {"[sk-secret]", "expected a mapping with keys"},
      {"keys: sk-secret", "keys: expected a list of at most"},
      {"sk-secret: [1]", "keys.yaml:1:1: unknown key; expected: keys"},
      {"keys: [sk-secret]", "keys[0]: expected a mapping with name and sha256"},
      {"keys: [{name: a}]", "keys[0].sha256: missing"},
      {"keys: [{" + sha + "}]", "keys[0].name: missing"},
      {"keys: [{name: a, sha256: sk-secret}]", "keys.yaml:1:26: keys[0].sha256: expected the 64 hexadecimal digits"},
      {"keys: [{sk-secret: a}]", "keys.yaml:1:9: keys[0]: unknown key; expected one of: name, sha256"},
      {"keys: [{sk-secret: a, sk-secret: b}]", "keys[0]: given twice"},
      {"keys: [{name: a, scopes: [root], " + sha + "}]", "keys[0].scopes[0]: expected inference, metrics or admin"},
      {"keys: [{name: a, scopes: [], " + sha + "}]", "keys[0].scopes: expected a list of"},
      {"keys: [{name: a, requests_per_minute: -1, " + sha + "}]", "requests_per_minute: expected an integer from 0"},
      {"keys:\n- {name: a, " + sha + "}\n- {name: b, " + sha + "}", "keys[1].sha256: the same key as at keys.yaml:2"},
      {"keys:\n- {name: a, " + sha + "}\n- {name: a, sha256: " + std::string(64, '2') + "}",
       "keys[1].name: 'a' is already used at keys.yaml:2"},
  };
  for (const auto& [text, want] : bad) {
    const auto read = load_keys_text(text, "keys.yaml");
    ASSERT_FALSE(read.ok()) << text;
    EXPECT_THAT(read.error().message, HasSubstr(want)) << text;
    EXPECT_THAT(read.error().message, testing::Not(HasSubstr("sk-secret"))) << "a key by mistake is not repeated";
  }
}

TEST(Config, DeepNestingAndAliasesAreHarmless) {
  EXPECT_THAT(error_of(std::string(100'000, '[')), HasSubstr("nested too deeply"));
  EXPECT_NE(error_of("a: &a [x,x]\nb: &b [*a,*a,*a,*a]\nserver: {host: *b}"), "");
}

TEST(Config, RelativeSourcesAreRelativeToTheFile) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(::testing::TempDir()) / "xgen_config_test";
  fs::create_directories(folder / "m");
  std::ofstream(folder / "models.yaml") << "models: [{name: m, source: m}]\n";
  auto config = load_file((folder / "models.yaml").string());
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_EQ(config->models[0].source, fs::absolute(folder / "m").string());
  fs::remove_all(folder);
}

TEST(Config, AFileThatIsCutShortWhileItIsReadIsRefused) {
  const auto path = std::filesystem::path(::testing::TempDir()) / ("xgen_cut_" + std::to_string(::getpid()) + ".yaml");
  std::string text;
  while (text.size() < std::size_t{1} << 18) text += "# A comment that takes the reader some time.\n";
  std::atomic<bool> over{false};
  std::thread editor([&] {
    while (!over.load()) {
      std::ofstream(path) << text;
      std::filesystem::resize_file(path, 1);
    }
  });
  bool refused = false;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!refused && std::chrono::steady_clock::now() < end) {
    const auto config = load_file(path.string());
    refused = !config.ok() && config.error().message.find("cut short") != std::string::npos;
  }
  over.store(true);
  editor.join();
  std::filesystem::remove(path);
  EXPECT_TRUE(refused);
}

TEST(Config, ASinglePathNeedsNoFile) {
  EXPECT_FALSE(single_model_config("/nonexistent").ok());
  auto config = single_model_config(::testing::TempDir());
  ASSERT_TRUE(config.ok());
  EXPECT_THAT(config->models[0].name, Not(HasSubstr("/")));
  EXPECT_FALSE(config->models[0].name.empty());
  EXPECT_EQ(single_model_config(::testing::TempDir(), "org/name").value().models[0].name, "org/name");
  for (const char* bad : {"", "a b", "a\nb", "\xff"})
    EXPECT_FALSE(single_model_config(::testing::TempDir(), bad).ok()) << bad;
  EXPECT_FALSE(single_model_config("/").ok());  // nothing to name it after
}

TEST(Config, TheEffectiveConfigurationHasEveryKeyAndReadsBackAsItIs) {
  const std::string folder = ::testing::TempDir();
  for (const char* name : {"keys.yaml", "key", "ca.pem"}) std::ofstream(folder + name) << "x";
  const std::string file = folder + "models.yaml";
  const auto config = load_text(R"(
server: {host: "::1", port: 9000, max_body: 1500, drain_delay: 250ms, request_timeout: 0, api_keys_file: keys.yaml}
log: {level: off, format: json}
memory: {host: 29%}
compute: {threads: 3}
sources: {cache: '$HOME/"models"'}
defaults: {max_model_len: 1000, idle_unload: 90s}
models:
  - {name: "on:{é", source: 'builtin:xgen-demo', aliases: [a, 'b"c'], kv_cache: 3MiB, load: on_demand, pin: true}
  - name: far
    engine: openai
    urls: [http://a/v1, http://b/v1]
    dialect: vllm
    headers: {X-Key: secret, X-Other: secret}
    ca_file: ca.pem
    fallbacks: [a]
  - {name: tgi, engine: tgi, urls: [http://c], api_key_file: key, model: lora}
)",
                                file);
  ASSERT_TRUE(config.ok()) << config.error().message;
  const std::string text = effective_yaml(*config);
  EXPECT_THAT(text, Not(HasSubstr("secret")));
  EXPECT_THAT(text,
              AllOf(HasSubstr("\n  port: 9000\n"), HasSubstr("\n  max_body: 1500\n"), HasSubstr("\n  host: 29%\n"),
                    HasSubstr("\n  idle_unload: 90s\n"), HasSubstr("\n    max_model_len: 1000\n"),
                    HasSubstr("\n    # model: the model's name\n"), HasSubstr("\n  # kv_cache: planned\n")));
  for (const std::string& key : key_names()) {
    if (key == "models[].tokenizer") continue;  // of engine triton
    EXPECT_THAT(text, HasSubstr(" " + key.substr(key.rfind('.') + 1) + ": ")) << key;
  }
  const auto again = load_text(text, "/elsewhere/printed.yaml");
  ASSERT_TRUE(again.ok()) << again.error().message << "\n" << text;
  EXPECT_EQ(effective_yaml(*again), text);
  EXPECT_EQ(again->models[0].name, "on:{é");
  EXPECT_EQ(again->models[0].aliases.at(1), "b\"c");
  EXPECT_EQ(again->server, config->server);
  EXPECT_EQ(again->memory, config->memory);
  EXPECT_EQ(again->sources, config->sources);
  EXPECT_EQ(fingerprint(again->models[0]), fingerprint(config->models[0]));
  // What is served without a file is written down, too.
  const std::string demo = effective_yaml(demo_config());
  EXPECT_THAT(demo, HasSubstr("source: \"builtin:xgen-demo\""));
  EXPECT_TRUE(load_text(demo, "models.yaml").ok());
}

TEST(Config, TheAddressIsReadWhateverElseIsWrong) {
  const auto address = load_address_text("server: {port: 9000, host: '::1', threads: many}\nmodles: 3", "models.yaml");
  ASSERT_TRUE(address.ok()) << address.error().message;
  EXPECT_EQ(address->port, 9000);
  EXPECT_EQ(address->host, "::1");
  for (const char* text : {"", "server:", "server: 3", "[]", "models: []"}) {
    const auto defaults = load_address_text(text, "models.yaml");
    ASSERT_TRUE(defaults.ok()) << text;
    EXPECT_EQ(defaults->port, 8000);
  }
  const auto tls = load_address_text(
      "server: {tls_cert_file: a/tls.crt, tls_key_file: /b/tls.key, tls_client_auth: optional, max_body: much}",
      "/etc/xgen/models.yaml");
  ASSERT_TRUE(tls.ok()) << tls.error().message;
  EXPECT_EQ(tls->tls_cert_file, "/etc/xgen/a/tls.crt");
  EXPECT_EQ(tls->tls_key_file, "/b/tls.key");
  EXPECT_EQ(tls->tls_client_ca_file, "");
  EXPECT_EQ(tls->tls_client_auth, "optional");
  const auto wrong = load_address_text("server: {port: many}", "models.yaml");
  ASSERT_FALSE(wrong.ok());
  EXPECT_THAT(wrong.error().message, HasSubstr("models.yaml:1:16: server.port: expected an integer"));
  EXPECT_FALSE(load_address_text("server: {", "models.yaml").ok());
  EXPECT_FALSE(load_address("/nonexistent").ok());
}

TEST(Config, TheReferenceDocumentIsCurrent) {
  std::ifstream file(XGEN_SOURCE_DIR "/docs/configuration.md");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  EXPECT_EQ(text, reference_markdown()) << "run: build/release/xgen-model docs configuration > docs/configuration.md";
}

}  // namespace
}  // namespace xgen::config
