#include <future>
#include <utility>

#include "base/prefetch.h"
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

}  // namespace

Result<std::unique_ptr<LocalModel>> LocalModel::open(LocalServiceOptions options) {
  model::LoadOptions load;
  load.kernels = options.kernels;
  load.max_context = options.max_model_len.value_or(0);
  Result<std::unique_ptr<model::Decoder>> decoder = model::Decoder::load(*options.files, load);
  // What could not be read explains any other fault.
  if (Status read = options.files->damage()->status(); !read.ok()) return std::move(read).error();
  if (!decoder.ok()) return decoder.error();
  std::unique_ptr<LocalModel> model(new LocalModel(std::move(options)));
  model->decoder_ = std::move(*decoder);
  // Settings that contradict the model or each other are found now.
  if (const Result<MemoryPlan> plan = model->plan(0); !plan.ok()) return plan.error();
  return model;
}

LocalModel::~LocalModel() = default;

const model::ModelInfo& LocalModel::info() const { return decoder_->info(); }

Result<MemoryPlan> LocalModel::plan(std::uint64_t budget, bool least, std::uint64_t borrowable) const {
  MemoryOptions memory;
  memory.max_model_len = options_.max_model_len;
  memory.max_num_seqs = options_.max_num_seqs;
  memory.max_num_batched_tokens = options_.max_num_batched_tokens;
  memory.kv_cache_bytes = options_.kv_cache_bytes;
  const Result<std::optional<DType>> dtype = kv_dtype(options_.kv_dtype);
  if (!dtype.ok()) return dtype.error();
  memory.kv_dtype = *dtype;
  memory.block_size = options_.block_size;
  memory.budget = budget;
  memory.least = least;
  memory.borrowable = borrowable;
  const int threads = options_.pool->size();
  return plan_memory(
      decoder_->info(),
      [&](int max_rows, int max_logit_rows) { return decoder_->workspace_bytes(max_rows, max_logit_rows, threads); },
      memory);
}

Status LocalModel::check_text() const {
  const Result<std::shared_ptr<const text::Tokenizer>> tokenizer = load_tokenizer(*options_.files);
  if (Status read = options_.files->damage()->status(); !read.ok()) return read;
  if (!tokenizer.ok()) return tokenizer.error();
  const Result<ChatRenderer> renderer = make_chat_renderer(*tokenizer, options_.files->describe());
  if (!renderer.ok()) return renderer.error();
  return {};
}

Result<std::shared_ptr<inference::ModelService>> LocalModel::load(const MemoryPlan& memory,
                                                                  const std::function<void(double)>& progress,
                                                                  std::shared_ptr<MemoryBudget::Account> account) {
  const auto report = [&progress](double share) {
    if (progress) progress(share);
  };
  report(0);
  // All of this takes processor time, and no more of it than those leave who serve meanwhile. The service's own threads
  // are started below: what gives way once cannot stop doing so.
  struct Prepared {
    std::unique_ptr<model::KvCache> cache;
    ChatRenderer renderer;
  };
  const auto prepare = [&]() -> Result<Prepared> {
    // Their threads have the priority of this one.
    std::future<void> weights = std::async(std::launch::async, [&] {
      Pace pace;
      decoder_->prefetch([&](double share) {
        report(0.05 + 0.85 * share);
        pace.rest(options_.pool->busy());
      });
    });
    std::future<Result<std::shared_ptr<const text::Tokenizer>>> reading;
    if (tokenizer_ == nullptr)
      reading = std::async(std::launch::async, [this] { return load_tokenizer(*options_.files); });
    const int threads = options_.pool->size();
    Status reserved =
        decoder_->reserve(memory.max_num_batched_tokens, memory.max_num_seqs + memory.max_score_rows, threads);
    Result<std::unique_ptr<model::KvCache>> cache =
        model::KvCache::create(decoder_->info(), memory.kv_dtype, memory.block_size, memory.kv_blocks,
                               memory.kv_most_blocks - memory.kv_blocks);
    Result<std::shared_ptr<const text::Tokenizer>> tokenizer = reading.valid() ? reading.get() : tokenizer_;
    weights.get();
    if (Status read = options_.files->damage()->status(); !read.ok()) return std::move(read).error();
    if (!tokenizer.ok()) return tokenizer.error();
    tokenizer_ = std::move(*tokenizer);
    if (!reserved.ok()) return std::move(reserved).error();
    if (!cache.ok()) return cache.error();
    Result<ChatRenderer> renderer = make_chat_renderer(tokenizer_, options_.files->describe());
    if (!renderer.ok()) return renderer.error();
    return Prepared{std::move(*cache), std::move(*renderer)};
  };
  Result<Prepared> prepared = in_background(options_.pool->shared(), prepare);
  if (!prepared.ok()) return prepared.error();
  report(0.95);

  LocalServiceParts parts;
  parts.name = options_.name;
  parts.tokenizer = tokenizer_;
  parts.render_chat = std::move(prepared->renderer);
  parts.defaults = decoder_->generation_defaults();
  parts.vocab_size = decoder_->info().vocab_size;
  parts.max_waiting = options_.max_waiting;
  parts.scheduler.num_blocks = memory.kv_most_blocks;
  parts.scheduler.own_blocks = memory.kv_blocks;
  parts.scheduler.least_blocks = (memory.max_model_len + memory.block_size - 1) / memory.block_size;
  if (!options_.kv_cache_bytes) parts.account = std::move(account);  // an explicit kv_cache neither grows nor shrinks
  parts.block_bytes = model::KvCache::bytes_per_block(decoder_->info(), memory.kv_dtype, memory.block_size);
  parts.kv_dtype = dtype_info(memory.kv_dtype).name;
  parts.scheduler.block_size = memory.block_size;
  parts.scheduler.max_model_len = memory.max_model_len;
  parts.scheduler.max_num_seqs = memory.max_num_seqs;
  parts.scheduler.max_num_batched_tokens = memory.max_num_batched_tokens;
  parts.scheduler.max_score_rows = memory.max_score_rows;
  parts.scheduler.enable_prefix_caching = options_.enable_prefix_caching;
  parts.runner = std::make_unique<DecoderRunner>(decoder_, std::move(prepared->cache),
                                                 std::make_shared<WorkerPool>(*options_.pool, options_.weight),
                                                 options_.files->damage());
  std::shared_ptr<inference::ModelService> service = make_local_service(std::move(parts));
  report(1);
  return service;
}

}  // namespace xgen::engine
