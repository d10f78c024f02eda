// Text-generation-inference: the flags of text-generation-launcher, each also an environment variable.
#include "import/option.h"

namespace xgen::importer {
namespace {

using enum Group;
using enum Takes;
using E = Effect;

constexpr Rule kRules[] = {
    {"--model-id MODEL_ID", one, maps, E::model, "models[].source",
     "A repository of the Hub is downloaded into the cache shared with Python; a path is used as it is."},
    {"--revision REVISION", one, maps, E::revision, "models[].source", "Part of it: `hf://ORG/REPO@REVISION`."},
    {"--max-total-tokens MAX_TOTAL_TOKENS", one, maps, E::integer, "models[].max_model_len",
     "Prompt and answer together, as there."},
    {"--max-input-tokens MAX_INPUT_TOKENS --max-input-length MAX_INPUT_LENGTH", one, none, E::say, "",
     "Prompt and answer have one limit together, `max_model_len`."},
    {"--max-batch-size MAX_BATCH_SIZE", one, maps, E::integer, "models[].max_num_seqs",
     "Sequences that are computed at the same time."},
    {"--max-concurrent-requests MAX_CONCURRENT_REQUESTS", one, changes, E::integer, "models[].max_waiting",
     "There it counts all requests, here those that wait; 429 beyond it in both."},
    {"--max-batch-prefill-tokens MAX_BATCH_PREFILL_TOKENS", one, changes, E::integer, "models[].max_num_batched_tokens",
     "Tokens of one step, decoding ones included; long prompts are computed in chunks, so it limits no prompt."},
    {"--max-batch-total-tokens MAX_BATCH_TOTAL_TOKENS", one, none, E::say, "",
     "Tokens in the KV cache: what `kv_cache` bytes hold, planned within the memory budget by default."},
    {"--waiting-served-ratio WAITING_SERVED_RATIO --max-waiting-tokens MAX_WAITING_TOKENS", one, none, E::say, "",
     "New requests join at the next step; nothing is to be balanced."},
    {"--kv-cache-dtype KV_CACHE_DTYPE", one, maps, E::kv_dtype, "models[].kv_cache_dtype", "The same number format."},
    {"--quantize QUANTIZE", one, none, E::quantization, "models[].quantization",
     "Weights are not quantised while loading, and AWQ, GPTQ, EXL2, FP8 and bitsandbytes files are not read: take the "
     "model's F16 or BF16 files, or a GGUF file (Q8_0, Q4_K_M, …)."},
    {"--dtype DTYPE", one, none, E::say, "", "Weights are used in the number format of their files."},
    {"--num-shard NUM_SHARD --sharded SHARDED --shard-uds-path SHARD_UDS_PATH --master-addr MASTER_ADDR --master-port "
     "MASTER_PORT --cuda-memory-fraction CUDA_MEMORY_FRACTION --cuda-graphs CUDA_GRAPHS",
     one, none, E::say, "",
     "One process on one machine computes a model, with all its CPUs. One that needs GPUs stays in TGI, listed with "
     "`engine: tgi` (docs/remote-engines.md)."},
    {"--speculate SPECULATE", one, none, E::say, "",
     "Speculative decoding is not offered; answers are the same without it."},
    {"--lora-adapters LORA_ADAPTERS", one, none, E::say, "",
     "LoRA is not offered for models computed here: merge adapters into the weights."},
    {"--trust-remote-code --disable-custom-kernels --disable-grammar-support --enable-prefill-logprobs --env -e",
     nothing, none, E::say, "", "There is nothing to set: no code of a model is run, and no grammar is offered."},
    {"TRUST_REMOTE_CODE DISABLE_CUSTOM_KERNELS DISABLE_GRAMMAR_SUPPORT ENABLE_PREFILL_LOGPROBS", one, none, E::say, "",
     "There is nothing to set: no code of a model is run, and no grammar is offered."},
    {"--max-best-of MAX_BEST_OF --max-stop-sequences MAX_STOP_SEQUENCES --max-top-n-tokens MAX_TOP_N_TOKENS "
     "--max-client-batch-size MAX_CLIENT_BATCH_SIZE",
     one, none, E::say, "", "The limits are the API's: up to 128 choices, 16 stop strings, 20 log-probabilities."},
    {"--validation-workers VALIDATION_WORKERS", one, none, E::say, "",
     "Texts are tokenised by the HTTP thread and one more."},
    {"--hostname", one, maps, E::host, "server.host", "The same."},
    {"HOSTNAME", one, none, E::say, "", "In a container its own name; `server.host` says where to listen."},
    {"--port -p PORT", one, maps, E::port, "server.port", "The same."},
    {"--prometheus-port PROMETHEUS_PORT", one, changes, E::say, "",
     "/metrics is on the same port as all else, with vLLM's names."},
    {"--api-key API_KEY", one, changes, E::api_key, "server.api_keys_file",
     "Keys are in a file here, as SHA-256, with scopes and rates (docs/api-keys.md). Without the file everybody may "
     "ask."},
    {"--payload-limit PAYLOAD_LIMIT", one, maps, E::bytes, "server.max_body", "The same: bytes of a request's body."},
    {"--graceful-termination-timeout -g GRACEFUL_TERMINATION_TIMEOUT", one, maps, E::seconds, "server.drain_timeout",
     "Time for running requests to finish."},
    {"--huggingface-hub-cache HUGGINGFACE_HUB_CACHE --weights-cache-override WEIGHTS_CACHE_OVERRIDE", one, changes,
     E::say, "", "The cache has Python's layout: set HF_HUB_CACHE for xgen-model (docs/model-sources.md)."},
    {"--tokenizer-config-path TOKENIZER_CONFIG_PATH", one, none, E::say, "",
     "The tokenizer_config.json of the model's own files is used."},
    {"--rope-scaling ROPE_SCALING --rope-factor ROPE_FACTOR", one, none, E::say, "",
     "The model's files say it: change its config.json."},
    {"--json-output", nothing, maps, E::say, "", "`log.format: json` does the same; text is the default."},
    {"JSON_OUTPUT", one, maps, E::say, "", "`log.format: json` does the same; text is the default."},
    {"LOG_LEVEL", one, changes, E::log_level, "log.level", "One log for all parts of the process (to stderr)."},
    {"--otlp-endpoint OTLP_ENDPOINT", one, changes, E::say, "",
     "Name it as `tracing.endpoint`: OTLP over HTTP (port 4318 of most collectors), not gRPC."},
    {"--otlp-service-name OTLP_SERVICE_NAME", one, none, E::say, "", "The service is called xgen-model in traces."},
    {"--cors-allow-origin CORS_ALLOW_ORIGIN", one, changes, E::say, "",
     "Name the origins in `server.cors_origins`; by default there are none."},
    {"--watermark-gamma WATERMARK_GAMMA --watermark-delta WATERMARK_DELTA", one, none, E::say, "",
     "Watermarks are not offered."},
    {"--ngrok", nothing, none, E::say, "", "Tunnels are not offered."},
    {"NGROK --ngrok-edge NGROK_EDGE", one, none, E::say, "", "Tunnels are not offered."},
    {"--ngrok-authtoken NGROK_AUTHTOKEN", one, none, E::secret, "", "Tunnels are not offered."},
    {"--usage-stats USAGE_STATS", one, none, E::say, "", "Nothing is ever reported to anybody."},
    {"FLASH_* USE_FLASH_* ATTENTION PREFIX_CACHING PREFILL_CHUNKING USE_PREFIX_CACHING", one, none, E::say, "",
     "A matter of TGI's own making; prefix caching and chunks are always there."},
};

}  // namespace

const Engine kTgi{
    "TGI", kRules, "3000", "",
    "TGI answers whatever `model` a request names; here it must be the model's name or one of its aliases, else 404. "
    "The "
    "alias `tgi` is what TGI's own examples send.\n"
    "Clients of /generate and /generate_stream have to move to /v1/completions or /v1/chat/completions: TGI's own "
    "routes are not served."};

}  // namespace xgen::importer
