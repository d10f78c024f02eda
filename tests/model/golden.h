// The golden cases of tests/golden/models (made by tools/golden/models.py), their models as files of both formats,
// and a small runner that drives a Decoder the way an engine does.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/file_set.h"
#include "base/worker_pool.h"
#include "kernels/kernel_table.h"
#include "model/decoder.h"
#include "support/memory_files.h"

namespace xgen::model {

using Tokens = std::vector<std::int32_t>;

struct GoldenPrompt {
  Tokens tokens;
  Tokens greedy;              // transformers' continuation
  Tokens positions;           // in tokens + greedy, whose logits are stored
  std::vector<float> logits;  // [positions][vocab]
  int max_context = 0;        // to load the model with
};

struct GoldenCase {
  std::string name;
  boost::json::object config;         // as published checkpoints write it
  boost::json::object saved_config;   // as transformers 5 writes it
  std::vector<test::Tensor> tensors;  // F32, Hugging Face names
  std::vector<GoldenPrompt> prompts;
  std::string architecture() const { return std::string(config.at("model_type").as_string()); }
};

std::vector<std::string> golden_names();
std::vector<std::string> gguf_names();  // those of them that a GGUF file can express
GoldenCase load_golden(const std::string& name);

// Uniform F32 numbers in [-1, 1) from a counter, as tools/golden/models.py makes them.
std::vector<float> counter_uniform(const std::string& key, std::size_t n);

using FilePtr = std::shared_ptr<const FileSet>;
FilePtr hf_files(const boost::json::object& config, const std::vector<test::Tensor>& tensors);
// The model as llama.cpp's converter writes it (tests/golden/gguf, made by tools/golden/gguf_models.py), but for the
// tokenizer: any difference in a tensor fails the test. Added are keys that the converter leaves out and this model
// needs.
struct GgufContents {
  std::map<std::string, test::GgufValue> metadata;
  std::map<std::string, test::Tensor> tensors;
};
GgufContents gguf_contents(const GoldenCase& golden);
FilePtr gguf_files(const GgufContents& contents);

// Loads or fails the test.
std::unique_ptr<Decoder> load_decoder(const FileSet& files, const LoadOptions& options = {});

// One sequence's cache blocks and progress.
struct Sequence {
  std::vector<std::int32_t> blocks;
  int computed = 0;
};

// A decoder with cache, pool and block bookkeeping.
class Runner {
 public:
  Runner(Decoder& decoder, int threads = 1, DType kv = DType::f32, int block_size = 8, int num_blocks = 128,
         std::uint32_t block_seed = 0);

  struct Chunk {
    Sequence* sequence;
    Tokens tokens;  // the next ones of the sequence
    Tokens wanted;  // offsets into `tokens` whose logits are wanted
  };
  // Runs the chunks as one batch; logits per wanted row, in order.
  std::vector<std::vector<float>> run(const std::vector<Chunk>& chunks);
  // All of `tokens` at once; the logits at `positions`.
  std::vector<std::vector<float>> prefill(const Tokens& tokens, const Tokens& positions);
  Tokens greedy(const Tokens& prompt, int count);
  void release(Sequence& sequence);

 private:
  Decoder& decoder_;
  WorkerPool pool_;
  std::unique_ptr<KvCache> cache_;
  std::vector<std::int32_t> free_;
};

// max |a - b| / max |b|
double relative_error(const std::vector<float>& a, const float* b);

}  // namespace xgen::model
