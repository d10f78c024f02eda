#include "inference/stats.h"

namespace xgen::inference {

void add(ServiceStats& into, const ServiceStats& from) {
  const auto blocks = static_cast<double>(into.kv_blocks + from.kv_blocks);
  if (blocks > 0) {
    into.kv_cache_usage = (into.kv_cache_usage * static_cast<double>(into.kv_blocks) +
                           from.kv_cache_usage * static_cast<double>(from.kv_blocks)) /
                          blocks;
  }
  if (from.kv_block_size != 0) into.kv_block_size = from.kv_block_size;
  if (!from.kv_dtype.empty()) into.kv_dtype = from.kv_dtype;
  into.prefix_caching = into.prefix_caching || from.prefix_caching;
  for (const auto field :
       {&ServiceStats::requests_running, &ServiceStats::requests_waiting, &ServiceStats::kv_blocks,
        &ServiceStats::prefix_cache_queries, &ServiceStats::prefix_cache_hits, &ServiceStats::prompt_tokens,
        &ServiceStats::prompt_tokens_cached, &ServiceStats::generation_tokens, &ServiceStats::preemptions,
        &ServiceStats::finished_stop, &ServiceStats::finished_length, &ServiceStats::finished_abort,
        &ServiceStats::finished_error, &ServiceStats::rejected_queue_full, &ServiceStats::rejected_long_prompts,
        &ServiceStats::rejected_loading})
    into.*field += from.*field;
  for (const auto field :
       {&ServiceStats::time_to_first_token, &ServiceStats::inter_token_latency, &ServiceStats::time_per_output_token,
        &ServiceStats::e2e_latency, &ServiceStats::queue_time, &ServiceStats::prefill_time, &ServiceStats::decode_time,
        &ServiceStats::inference_time, &ServiceStats::request_prompt_tokens, &ServiceStats::request_generation_tokens,
        &ServiceStats::request_max_tokens, &ServiceStats::request_n, &ServiceStats::iteration_tokens})
    (into.*field).add(from.*field);
}

void add_past(ServiceStats& into, ServiceStats from) {
  from.requests_running = from.requests_waiting = from.kv_blocks = from.kv_block_size = 0;
  from.kv_cache_usage = 0;
  from.kv_dtype = {};
  from.prefix_caching = false;
  add(into, from);
}

}  // namespace xgen::inference
