// LocalService: a model of this process behind the inference contract: validates, renders, tokenises, submits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file_set.h"
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
  std::shared_ptr<WorkerPool> pool;               // shared by all models of the process
  const kernels::KernelTable* kernels = nullptr;  // null: the best for this machine

  std::optional<int> max_model_len;             // tokens of prompt + output; unset: what the model and the memory allow
  int max_num_seqs = 64;                        // sequences computed at the same time
  int max_num_batched_tokens = 512;             // rows of one step
  int max_waiting = 1024;                       // requests that wait; more are refused as overloaded
  std::optional<std::uint64_t> kv_cache_bytes;  // unset: planned
  std::string kv_dtype = "auto";                // auto | f32 | f16 | bf16; see MemoryOptions
  int block_size = 16;                          // tokens; 16 or 32
  bool enable_prefix_caching = true;
  std::uint64_t memory_budget = 0;  // bytes for weights, KV cache and workspace; 0: no limit

  std::function<void(double)> progress;  // 0–1, called while loading, from the calling thread
};

struct LocalPlan {
  model::ModelInfo info;
  MemoryPlan memory;
};

// What load_local_service would take, without its KV cache and workspace. Same errors.
Result<LocalPlan> plan_local_service(const LocalServiceOptions& options);

// Whether the model's tokenizer and chat template can be read. Errors name the file and the reason.
Status check_text(const LocalServiceOptions& options);

struct LoadedService {
  std::shared_ptr<inference::ModelService> service;
  LocalPlan plan;
};

// Loads weights and tokenizer, reserves the planned memory, starts the engine thread. Errors name file and reason, or
// the setting at fault; unavailable with the numbers where the memory does not suffice.
Result<LoadedService> load_local_service(LocalServiceOptions options);

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
  std::unique_ptr<ModelRunner> runner;
};
std::shared_ptr<inference::ModelService> make_local_service(LocalServiceParts parts);

}  // namespace xgen::engine
