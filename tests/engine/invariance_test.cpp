// The promise, end to end with real forward passes: a request's tokens and the bits of its log-probabilities depend on
// the request alone, not on its neighbours, on chunking, preemption, prefix hits, nor on the number of threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <sstream>

#include "engine/local_service.h"
#include "engine/service_fixture.h"
#include "support/memory_files.h"
#include "support/stories260k.h"

namespace xgen::engine {
namespace {

using inference::GenerateRequest;

// A small random Llama whose tokens are bytes. Its weights are large enough for its output to depend on all of the
// prefix and to be far from uniform.
std::shared_ptr<const FileSet> random_llama() {
  constexpr int kHidden = 32;
  constexpr int kHeads = 4;
  constexpr int kKvHeads = 2;
  constexpr int kHeadDim = 8;
  constexpr int kInner = 48;
  constexpr int kLayers = 2;
  std::mt19937 random(11);
  std::vector<test::Tensor> tensors;
  const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t cols, float scale, float offset = 0) {
    std::normal_distribution<float> normal(offset, scale);
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    for (float& v : values) v = normal(random);
    tensors.push_back(test::f32_tensor(name, rows == 1 ? make_shape({cols}) : make_shape({rows, cols}), values));
  };
  add("model.embed_tokens.weight", kByteVocab, kHidden, 1);
  for (int layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", 1, kHidden, 0.1f, 1);
    add(prefix + "post_attention_layernorm.weight", 1, kHidden, 0.1f, 1);
    add(prefix + "self_attn.q_proj.weight", kHeads * kHeadDim, kHidden, 0.3f);
    add(prefix + "self_attn.k_proj.weight", kKvHeads * kHeadDim, kHidden, 0.3f);
    add(prefix + "self_attn.v_proj.weight", kKvHeads * kHeadDim, kHidden, 0.4f);
    add(prefix + "self_attn.o_proj.weight", kHidden, kHeads * kHeadDim, 0.4f);
    add(prefix + "mlp.gate_proj.weight", kInner, kHidden, 0.3f);
    add(prefix + "mlp.up_proj.weight", kInner, kHidden, 0.3f);
    add(prefix + "mlp.down_proj.weight", kHidden, kInner, 0.3f);
  }
  add("model.norm.weight", 1, kHidden, 0.1f, 1);
  add("lm_head.weight", kByteVocab, kHidden, 0.5f);
  const std::string config =
      R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":32,"intermediate_size":48,)"
      R"("num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":8,"vocab_size":259,)"
      R"("max_position_embeddings":256,"rms_norm_eps":1e-5,"rope_theta":10000.0,"hidden_act":"silu",)"
      R"("tie_word_embeddings":false,"bos_token_id":256,"eos_token_id":257,"torch_dtype":"float32"})";
  return test::memory_files(
      "random llama",
      {{"config.json", config},
       {"model.safetensors", test::write_safetensors(tensors)},
       {"tokenizer.json", byte_tokenizer_json()},
       {"tokenizer_config.json", R"({"chat_template":"{% for m in messages %}{{ m.content }}{% endfor %}"})"}});
}

Result<MemoryPlan> plan(LocalServiceOptions options, std::uint64_t budget = 0) {
  auto model = LocalModel::open(std::move(options));
  if (!model.ok()) return model.error();
  return (*model)->plan(budget);
}

std::shared_ptr<inference::ModelService> load(LocalServiceOptions options,
                                              const std::function<void(double)>& progress = {}) {
  options.name = "test";
  const auto fault = [](const Error& error) {
    ADD_FAILURE() << error.message;
    return nullptr;
  };
  auto model = LocalModel::open(std::move(options));
  if (!model.ok()) return fault(model.error());
  const auto memory = (*model)->plan(0);
  if (!memory.ok()) return fault(memory.error());
  auto loaded = (*model)->load(*memory, progress);
  if (!loaded.ok()) return fault(loaded.error());
  return *loaded;
}

// Everything of a request's result that must not change, floats by their bits.
struct Choice {
  std::vector<std::uint64_t> tokens;  // ids and bits, alternatives included
  std::string text;
  std::string end;
  bool operator==(const Choice&) const = default;
};
struct Outcome {
  std::vector<Choice> choices;
  std::vector<std::uint64_t> prompt;
  bool operator==(const Outcome&) const = default;
};

// Where two outcomes part, for messages.
std::string difference(const Outcome& a, const Outcome& b) {
  if (a.prompt != b.prompt) return "the prompt's log-probabilities differ";
  if (a.choices.size() != b.choices.size()) return "the number of choices differs";
  for (std::size_t c = 0; c < a.choices.size(); ++c) {
    const Choice& x = a.choices[c];
    const Choice& y = b.choices[c];
    if (x == y) continue;
    std::size_t at = 0;
    while (at < std::min(x.tokens.size(), y.tokens.size()) && x.tokens[at] == y.tokens[at]) ++at;
    return "choice " + std::to_string(c) + " parts at entry " + std::to_string(at) + " of " +
           std::to_string(x.tokens.size()) + " and " + std::to_string(y.tokens.size()) + ", texts \"" + x.text +
           "\" and \"" + y.text + "\", ends " + x.end + " and " + y.end;
  }
  return "";
}

void append(std::vector<std::uint64_t>& out, const inference::TokenLogprob& l) {
  const auto pair = [](TokenId id, float logprob) {
    return std::uint64_t{static_cast<std::uint32_t>(id)} << 32 | std::bit_cast<std::uint32_t>(logprob);
  };
  out.push_back(pair(l.id, l.logprob.value_or(7.0f)));
  for (const inference::TopLogprob& t : l.top) out.push_back(pair(t.id, t.logprob));
}

class Recorder final : public inference::EventSink {
 public:
  void on_event(inference::Event event) override {
    if (const auto* delta = std::get_if<inference::Delta>(&event)) {
      for (const auto& l : delta->logprobs) append(choice(delta->choice).tokens, l);
      choice(delta->choice).text += delta->text;
    } else if (const auto* end = std::get_if<inference::ChoiceFinished>(&event)) {
      choice(end->choice).end = std::to_string(static_cast<int>(end->reason));
    } else if (const auto* start = std::get_if<inference::Started>(&event)) {
      for (const auto& l : start->prompt_logprobs) append(outcome.prompt, l);
    }
    inner.on_event(std::move(event));
  }
  Outcome outcome;
  Collector inner;

 private:
  Choice& choice(int index) {
    if (outcome.choices.size() <= static_cast<std::size_t>(index))
      outcome.choices.resize(static_cast<std::size_t>(index) + 1);
    return outcome.choices[static_cast<std::size_t>(index)];
  }
};

std::vector<GenerateRequest> random_requests(std::mt19937& random, int count) {
  const auto below = [&random](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < count; ++i) {
    // A few common beginnings, so that prefixes are found again.
    std::string prompt(static_cast<std::size_t>(below(100)), static_cast<char>('a' + below(2)));
    prompt += "tail" + std::to_string(below(4));
    GenerateRequest r = ask(prompt);
    r.stop.max_tokens = 1 + below(40);
    r.logprobs = below(4);
    r.sampling.temperature = below(3) == 0 ? 0.0f : 0.7f + 0.1f * static_cast<float>(below(6));
    r.sampling.seed = random();
    if (below(3) == 0) r.sampling.top_p = 0.9f;
    if (below(3) == 0) r.sampling.top_k = 20;
    if (below(4) == 0) r.sampling.min_p = 0.05f;
    if (below(4) == 0) r.sampling.repetition_penalty = 1.2f;
    if (below(4) == 0) r.sampling.frequency_penalty = 0.3f;
    if (below(4) == 0) r.sampling.logit_bias = {{'e', 3.f}};
    if (below(4) == 0) r.stop.min_tokens = 1 + below(*r.stop.max_tokens);
    if (below(4) == 0) r.stop.stop = {"e", "aa"};
    if (below(5) == 0) r.prompt_logprobs = true;
    if (below(4) == 0) r.n = 2 + below(3);
    r.priority = below(3);
    requests.push_back(std::move(r));
  }
  return requests;
}

void expect_same_alone_and_in_mixes(const std::shared_ptr<const FileSet>& files, const std::string& kv_dtype,
                                    int count) {
  std::mt19937 random(5);
  const std::vector<GenerateRequest> requests = random_requests(random, count);
  std::vector<Outcome> alone;
  {
    LocalServiceOptions options;
    options.files = files;
    options.pool = std::make_shared<WorkerPool>(1);
    options.enable_prefix_caching = false;
    options.kv_dtype = kv_dtype;
    const auto service = load(std::move(options));
    ASSERT_TRUE(service);
    for (const GenerateRequest& request : requests) {
      auto sink = std::make_shared<Recorder>();
      const auto handle = service->generate_async(request, sink);
      ASSERT_TRUE(sink->inner.wait());
      ASSERT_FALSE(sink->inner.error.has_value()) << sink->inner.error->message;
      alone.push_back(sink->outcome);
    }
  }
  struct Mix {
    int threads, batched_tokens, seqs, kv_tokens, block_size;
    bool caching;
    bool borrows = false;  // little memory of its own; somebody else wants what it borrows now and then
  };
  std::uint64_t preemptions = 0;
  std::uint64_t hits = 0;
  for (const Mix& mix : {Mix{1, 512, 64, 8192, 16, true}, Mix{2, 24, 8, 272, 16, true}, Mix{3, 7, 5, 192, 32, true},
                         Mix{2, 64, 16, 224, 16, false}, Mix{2, 48, 12, 240, 16, true, true}}) {
    SCOPED_TRACE(std::to_string(mix.threads) + " threads, " + std::to_string(mix.batched_tokens) + " rows a step, " +
                 std::to_string(mix.kv_tokens) + " tokens of KV");
    LocalServiceOptions options;
    options.files = files;
    options.pool = std::make_shared<WorkerPool>(mix.threads);
    options.max_num_seqs = mix.seqs;
    options.max_num_batched_tokens = mix.batched_tokens;
    options.block_size = mix.block_size;
    options.enable_prefix_caching = mix.caching;
    options.kv_dtype = kv_dtype;
    options.max_model_len = 160;
    const auto memory = plan(options);
    ASSERT_TRUE(memory.ok()) << memory.error().message;
    options.kv_cache_bytes = memory->kv_bytes / static_cast<std::uint64_t>(memory->kv_blocks) *
                             static_cast<std::uint64_t>((mix.kv_tokens + mix.block_size - 1) / mix.block_size);
    auto budget = std::make_shared<MemoryBudget>(std::uint64_t{1} << 40);
    std::shared_ptr<inference::ModelService> service;
    if (mix.borrows) {
      const std::uint64_t kv = *std::exchange(options.kv_cache_bytes, std::nullopt);
      const auto model = LocalModel::open(std::move(options));
      ASSERT_TRUE(model.ok());
      const auto whole = (*model)->plan(0);
      ASSERT_TRUE(whole.ok());
      const std::uint64_t total = whole->weights + whole->workspace + kv + (std::uint64_t{1} << 16);
      budget = std::make_shared<MemoryBudget>(total + (std::uint64_t{1} << 20));
      auto account = *budget->reserve("test", total, std::chrono::milliseconds(0));
      const auto tight = (*model)->plan(total, false, std::uint64_t{1} << 20);
      ASSERT_TRUE(tight.ok()) << tight.error().message;
      EXPECT_GT(tight->kv_most_blocks, tight->kv_blocks);
      auto loaded = (*model)->load(*tight, {}, std::move(account));
      ASSERT_TRUE(loaded.ok());
      service = *loaded;
    } else {
      service = load(std::move(options));
    }
    ASSERT_TRUE(service);
    std::vector<std::shared_ptr<Recorder>> sinks;
    std::vector<std::unique_ptr<inference::RequestHandle>> handles;
    std::vector<std::unique_ptr<inference::RequestHandle>> noise;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      sinks.push_back(std::make_shared<Recorder>());
      handles.push_back(service->generate_async(requests[i], sinks.back()));
      if (random() % 4 == 0) {  // comes and goes
        noise.push_back(service->generate_async(requests[random() % requests.size()], std::make_shared<Recorder>()));
      }
      if (random() % 8 == 0 && i > 12) sinks[i - 12]->inner.wait();
      if (mix.borrows && random() % 8 == 0) {
        const auto other = budget->reserve("other", std::uint64_t{1} << (12 + random() % 8), std::chrono::seconds(10));
        EXPECT_TRUE(other.ok()) << other.error().message;
      }
      if (random() % 4 == 0) noise.clear();
    }
    noise.clear();
    for (std::size_t i = 0; i < requests.size(); ++i) {
      ASSERT_TRUE(sinks[i]->inner.wait());
      ASSERT_FALSE(sinks[i]->inner.error.has_value()) << sinks[i]->inner.error->message;
      EXPECT_EQ(difference(sinks[i]->outcome, alone[i]), "") << "request " << i;
    }
    preemptions += service->stats().preemptions;
    hits += service->stats().prefix_cache_hits;
  }
  EXPECT_GT(preemptions, 0u);
  EXPECT_GT(hits, 0u);
}

TEST(Invariance, RandomModelF32) { expect_same_alone_and_in_mixes(random_llama(), "auto", 60); }
TEST(Invariance, RandomModelF16Cache) { expect_same_alone_and_in_mixes(random_llama(), "f16", 40); }

std::shared_ptr<const FileSet> stories() {
  const std::string folder = std::string(XGEN_SOURCE_DIR) + "/../shared/data/stories260K";
  if (!std::filesystem::exists(folder)) return nullptr;
  auto converted = test::convert_stories260k(folder);
  EXPECT_TRUE(converted.ok());
  return converted.ok() ? test::memory_files("stories260K", std::move(*converted)) : nullptr;
}

TEST(Invariance, Stories260K) {
  const auto files = stories();
  if (!files) GTEST_SKIP() << "shared/data/stories260K is not there";
  expect_same_alone_and_in_mixes(files, "auto", 24);
}

TEST(Invariance, Stories260KTellsItsStoryAloneAndBesideOthers) {
  const auto files = stories();
  if (!files) GTEST_SKIP() << "shared/data/stories260K is not there";
  std::ifstream in(std::string(XGEN_SOURCE_DIR) + "/../shared/data/stories260K/golden_greedy.txt");
  std::stringstream golden;
  golden << in.rdbuf();
  std::string story = golden.str();
  while (!story.empty() && story.back() == '\n') story.pop_back();
  ASSERT_GT(story.size(), 100u);

  LocalServiceOptions options;
  options.files = files;
  options.pool = std::make_shared<WorkerPool>(2);
  const auto service = load(std::move(options));
  ASSERT_TRUE(service);
  auto tell = ask("");
  tell.sampling.temperature = 0.0f;
  tell.stop.max_tokens = 200;
  const auto matches = [&](const std::string& text) {
    const std::size_t length = std::min(text.size(), story.size());
    return length > 100 && text.substr(0, length) == story.substr(0, length);
  };
  EXPECT_TRUE(matches(answer(*service, tell)->text())) << answer(*service, tell)->text();
  std::vector<std::shared_ptr<Collector>> others;
  std::vector<std::unique_ptr<inference::RequestHandle>> handles;
  for (int i = 0; i < 15; ++i) {
    auto request = ask("Once upon a time " + std::to_string(i));
    request.stop.max_tokens = 150;
    others.push_back(std::make_shared<Collector>());
    handles.push_back(service->generate_async(request, others.back()));
  }
  EXPECT_TRUE(matches(answer(*service, tell)->text()));
}

TEST(LoadLocalService, RefusesSettingsAndBudgetsThatDoNotFit) {
  LocalServiceOptions options;
  options.name = "test";
  options.files = random_llama();
  options.pool = std::make_shared<WorkerPool>(1);
  const auto expect_error = [](LocalServiceOptions o, ErrorCode code, const char* text, std::uint64_t budget = 0) {
    const Result<MemoryPlan> refused = plan(std::move(o), budget);
    ASSERT_FALSE(refused.ok()) << text;
    EXPECT_EQ(refused.error().code, code) << refused.error().message;
    EXPECT_NE(refused.error().message.find(text), std::string::npos) << refused.error().message;
  };
  LocalServiceOptions o = options;
  o.max_model_len = 257;
  expect_error(o, ErrorCode::invalid_argument, "256");
  o = options;
  o.kv_dtype = "fp8";
  expect_error(o, ErrorCode::invalid_argument, "fp8");
  o = options;
  o.block_size = 5;
  expect_error(o, ErrorCode::invalid_argument, "block_size");
  expect_error(options, ErrorCode::unavailable, "memory budget is", 50000);
  o = options;
  o.max_model_len = 256;
  o.kv_cache_bytes = 10000;
  expect_error(o, ErrorCode::invalid_argument, "kv_cache is too small");
  const Result<MemoryPlan> whole = plan(options);
  ASSERT_TRUE(whole.ok());
  const std::uint64_t budget = whole->weights + whole->workspace + 20000;
  const Result<MemoryPlan> small = plan(options, budget);
  ASSERT_TRUE(small.ok()) << small.error().message;
  EXPECT_LE(small->total, budget);
  EXPECT_LT(small->max_model_len, 256) << "what the memory allows";
  o = options;
  o.max_model_len = 256;
  expect_error(o, ErrorCode::unavailable, "256 tokens of KV cache need", budget);
  o = options;
  o.files = test::memory_files("nothing", {});
  EXPECT_FALSE(plan(o).ok());
}

TEST(LocalModel, TheLeastIsOneSequence) {
  LocalServiceOptions options;
  options.files = random_llama();
  options.pool = std::make_shared<WorkerPool>(1);
  const auto model = LocalModel::open(options);
  ASSERT_TRUE(model.ok());
  const auto least = (*model)->plan(0, true);
  const auto whole = (*model)->plan(0);
  ASSERT_TRUE(least.ok() && whole.ok());
  EXPECT_EQ(least->kv_tokens, 256);
  EXPECT_EQ(least->max_model_len, 256);
  EXPECT_GT(whole->kv_tokens, 256);
}

TEST(LocalModel, LoadsAgainWhenItsServiceIsGone) {
  LocalServiceOptions options;
  options.name = "test";
  options.files = random_llama();
  options.pool = std::make_shared<WorkerPool>(1);
  const auto model = LocalModel::open(options);
  ASSERT_TRUE(model.ok());
  const auto memory = (*model)->plan(0);
  ASSERT_TRUE(memory.ok());
  std::string first;
  for (int i = 0; i < 3; ++i) {
    const auto service = (*model)->load(*memory);
    ASSERT_TRUE(service.ok());
    auto request = ask("again");
    request.sampling.temperature = 0.0f;
    const std::string text = answer(**service, request)->text();
    if (i == 0) first = text;
    EXPECT_EQ(text, first);
  }
}

TEST(LocalModel, AFileCutShortFailsItsServiceAndTheNextLoad) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(::testing::TempDir()) / ("xgen_cut_short_" + std::to_string(::getpid()));
  fs::create_directories(folder);
  const auto source = random_llama();
  for (const std::string& name : source->list()) std::ofstream(folder / name) << source->open(name)->text();
  LocalServiceOptions options;
  options.name = "test";
  options.files = *open_files(folder.string());
  options.pool = std::make_shared<WorkerPool>(2);
  const auto model = LocalModel::open(options);
  ASSERT_TRUE(model.ok());
  const auto memory = (*model)->plan(0);
  ASSERT_TRUE(memory.ok());
  {
    const auto service = (*model)->load(*memory);
    ASSERT_TRUE(service.ok());
    auto request = ask("again");
    request.stop.ignore_eos = true;
    request.stop.max_tokens = 4;
    EXPECT_FALSE(answer(**service, request)->error.has_value());
    fs::resize_file(folder / "model.safetensors", 4096);
    const auto cut = answer(**service, request);
    ASSERT_TRUE(cut->error.has_value());
    EXPECT_EQ(cut->error->code, ErrorCode::unavailable);
    EXPECT_THAT(cut->error->message, ::testing::HasSubstr((folder / "model.safetensors").string()));
    EXPECT_EQ(cut->tokens, 0) << "nothing of what was computed from zeros";
  }
  const auto again = (*model)->load(*memory);
  ASSERT_FALSE(again.ok());
  EXPECT_THAT(again.error().message, ::testing::HasSubstr((folder / "model.safetensors").string()));
  fs::remove_all(folder);
}

TEST(LoadLocalService, ServesAModelThroughItsTemplate) {
  LocalServiceOptions options;
  options.files = random_llama();
  options.pool = std::make_shared<WorkerPool>(1);
  std::vector<double> progress;
  const auto service = load(std::move(options), [&progress](double p) { progress.push_back(p); });
  ASSERT_TRUE(service);
  EXPECT_TRUE(std::is_sorted(progress.begin(), progress.end()));
  EXPECT_EQ(progress.back(), 1);
  EXPECT_TRUE(service->capabilities().chat);
  EXPECT_EQ(service->capabilities().max_model_len, 256);
  auto chat = ask(std::vector<inference::Message>{{"user", "hello", ""}});
  chat.sampling.temperature = 0.0f;
  chat.stop.max_tokens = 12;
  auto plain = chat;
  plain.prompt = "hello";
  EXPECT_EQ(answer(*service, chat)->text(), answer(*service, plain)->text());
  EXPECT_EQ(answer(*service, chat)->usage.prompt_tokens, 5);
}

}  // namespace
}  // namespace xgen::engine
