#include <future>
#include <utility>

#include "engine/chat_renderer.h"
#include "engine/decoder_runner.h"
#include "engine/load_tokenizer.h"
#include "engine/local_service.h"

namespace xgen::engine {
namespace {

Result<std::optional<DType>> kv_dtype(const std::string& name) {
  if (name == "auto") return std::optional<DType>();
  if (name == "f32") return std::optional(DType::f32);
  if (name == "f16") return std::optional(DType::f16);
  if (name == "bf16") return std::optional(DType::bf16);
  return make_error(ErrorCode::invalid_argument,
                    "kv_cache_dtype is \"" + name + "\"; it may be auto, f32, f16 or bf16.", "kv_cache_dtype");
}

Result<std::unique_ptr<model::Decoder>> load_decoder(const LocalServiceOptions& options) {
  model::LoadOptions load;
  load.kernels = options.kernels;
  load.max_context = options.max_model_len.value_or(0);
  return model::Decoder::load(*options.files, load);
}

Result<LocalPlan> plan_for(const model::Decoder& decoder, const LocalServiceOptions& options) {
  MemoryOptions memory;
  memory.max_model_len = options.max_model_len;
  memory.max_num_seqs = options.max_num_seqs;
  memory.max_num_batched_tokens = options.max_num_batched_tokens;
  memory.kv_cache_bytes = options.kv_cache_bytes;
  const Result<std::optional<DType>> dtype = kv_dtype(options.kv_dtype);
  if (!dtype.ok()) return dtype.error();
  memory.kv_dtype = *dtype;
  memory.block_size = options.block_size;
  memory.budget = options.memory_budget;
  const int threads = options.pool->size();
  Result<MemoryPlan> plan = plan_memory(
      decoder.info(),
      [&](int max_rows, int max_logit_rows) { return decoder.workspace_bytes(max_rows, max_logit_rows, threads); },
      memory);
  if (!plan.ok()) return plan.error();
  return LocalPlan{decoder.info(), *plan};
}

}  // namespace

Result<LocalPlan> plan_local_service(const LocalServiceOptions& options) {
  const Result<std::unique_ptr<model::Decoder>> decoder = load_decoder(options);
  if (!decoder.ok()) return decoder.error();
  return plan_for(**decoder, options);
}

Status check_text(const LocalServiceOptions& options) {
  const Result<std::shared_ptr<const text::Tokenizer>> tokenizer = load_tokenizer(*options.files);
  if (!tokenizer.ok()) return tokenizer.error();
  const Result<ChatRenderer> renderer = make_chat_renderer(*tokenizer, options.files->describe());
  if (!renderer.ok()) return renderer.error();
  return {};
}

Result<LoadedService> load_local_service(LocalServiceOptions options) {
  const auto report = [&options](double progress) {
    if (options.progress) options.progress(progress);
  };
  report(0);
  // The vocabulary takes about as long to read as the weights' headers.
  std::future<Result<std::shared_ptr<const text::Tokenizer>>> reading =
      std::async(std::launch::async, [&options] { return load_tokenizer(*options.files); });
  Result<std::unique_ptr<model::Decoder>> loaded = load_decoder(options);
  Result<std::shared_ptr<const text::Tokenizer>> tokenizer = reading.get();
  if (!loaded.ok()) return loaded.error();
  if (!tokenizer.ok()) return tokenizer.error();
  std::unique_ptr<model::Decoder> decoder = std::move(*loaded);
  report(0.6);

  Result<LocalPlan> plan = plan_for(*decoder, options);
  if (!plan.ok()) return plan.error();
  const MemoryPlan& memory = plan->memory;
  const int threads = options.pool->size();
  if (Status status =
          decoder->reserve(memory.max_num_batched_tokens, memory.max_num_seqs + memory.max_score_rows, threads);
      !status.ok()) {
    return status.error();
  }
  Result<std::unique_ptr<model::KvCache>> cache =
      model::KvCache::create(decoder->info(), memory.kv_dtype, memory.block_size, memory.kv_blocks);
  if (!cache.ok()) return cache.error();
  report(0.8);

  LocalServiceParts parts;
  parts.name = options.name;
  parts.tokenizer = *tokenizer;
  Result<ChatRenderer> renderer = make_chat_renderer(*tokenizer, options.files->describe());
  if (!renderer.ok()) return renderer.error();
  parts.render_chat = std::move(*renderer);
  parts.defaults = decoder->generation_defaults();
  parts.vocab_size = decoder->info().vocab_size;
  parts.max_waiting = options.max_waiting;
  parts.scheduler.num_blocks = memory.kv_blocks;
  parts.scheduler.block_size = memory.block_size;
  parts.scheduler.max_model_len = memory.max_model_len;
  parts.scheduler.max_num_seqs = memory.max_num_seqs;
  parts.scheduler.max_num_batched_tokens = memory.max_num_batched_tokens;
  parts.scheduler.max_score_rows = memory.max_score_rows;
  parts.scheduler.enable_prefix_caching = options.enable_prefix_caching;
  parts.runner = std::make_unique<DecoderRunner>(std::move(decoder), std::move(*cache), options.pool);

  LoadedService service{make_local_service(std::move(parts)), std::move(*plan)};
  report(1);
  return service;
}

}  // namespace xgen::engine
