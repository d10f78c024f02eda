// LocalService: a model of this process behind the inference contract: validates, renders, tokenises, submits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file_set.h"
#include "base/memory_budget.h"
#include "base/result.h"
#include "base/worker_pool.h"
#include "engine/memory_plan.h"
#include "engine/model_runner.h"
#include "engine/scheduler.h"
#include "inference/model_service.h"
#include "model/decoder.h"
#include "text/tokenizer.h"

namespace xgen::kernels {
struct KernelTable;
}

namespace xgen::engine {

struct LocalServiceOptions {
  std::string name;  // what clients call the model
  std::shared_ptr<const FileSet> files;
  std::shared_ptr<WorkerPool> pool;               // threads shared by all models of the process
  double weight = 1;                              // of its steps among those of the others, > 0
  const kernels::KernelTable* kernels = nullptr;  // null: the best for this machine

  std::optional<int> max_model_len;             // tokens of prompt + output; unset: what the model and the memory allow
  int max_num_seqs = 64;                        // sequences computed at the same time
  int max_num_batched_tokens = 512;             // rows of one step
  int max_waiting = 1024;                       // requests that wait; more are refused as overloaded
  std::optional<std::uint64_t> kv_cache_bytes;  // unset: planned
  std::string kv_dtype = "auto";                // auto | f32 | f16 | bf16; see MemoryOptions
  int block_size = 16;                          // tokens; 16 or 32
  bool enable_prefix_caching = true;
};

// A model whose files are open and whose needs are known, with nothing of it allocated: its weights stay in the files.
// Thread-compatible.
class LocalModel {
 public:
  // Errors name the file and the reason, or the setting at fault.
  static Result<std::unique_ptr<LocalModel>> open(LocalServiceOptions options);
  ~LocalModel();

  const model::ModelInfo& info() const;
  // What it takes within `budget` bytes (0: no limit); with `least`, to serve no more than one sequence at a time.
  // Errors: unavailable with the numbers where the budget does not suffice; invalid_argument naming a setting.
  // `borrowable`: bytes that might be lent for more KV cache while it serves.
  Result<MemoryPlan> plan(std::uint64_t budget, bool least = false, std::uint64_t borrowable = 0) const;
  // Whether its tokenizer and chat template can be read. Errors name the file and the reason.
  Status check_text() const;
  // Reads the tokenizer, allocates what is planned, starts the engine thread. One service at a time: the one before
  // must be gone. `progress`: 0-1, called from one thread at a time; what
  // it throws ends the loading. `account` lends the KV cache more than is planned.
  Result<std::shared_ptr<inference::ModelService>> load(const MemoryPlan& plan,
                                                        const std::function<void(double)>& progress = {},
                                                        std::shared_ptr<MemoryBudget::Account> account = {});

 private:
  explicit LocalModel(LocalServiceOptions options) : options_(std::move(options)) {}

  LocalServiceOptions options_;
  std::shared_ptr<model::Decoder> decoder_;
  std::shared_ptr<const text::Tokenizer> tokenizer_;  // once it was needed
};

// Messages to the text of a prompt. Errors: invalid_argument with what the template says of them.
using ChatRenderer =
    std::function<Result<std::string>(const std::vector<inference::Message>& messages, bool add_generation_prompt)>;

// The parts that a service is made of; tests put fakes among them.
struct LocalServiceParts {
  std::string name;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  ChatRenderer render_chat;  // empty: the model has no chat template
  model::GenerationDefaults defaults;
  int vocab_size = 0;  // token ids that the model knows
  SchedulerOptions scheduler;
  int max_waiting = 1024;
  std::shared_ptr<MemoryBudget::Account> account;  // lends memory for more blocks, or asks for some; null: nobody
  std::uint64_t block_bytes = 0;
  std::string_view kv_dtype;  // "F16"; only told; static storage
  std::unique_ptr<ModelRunner> runner;
};
std::shared_ptr<inference::ModelService> make_local_service(LocalServiceParts parts);

}  // namespace xgen::engine
