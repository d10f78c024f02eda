// vLLM: the flags of `vllm serve` (and keys of Ray's engine_kwargs), and its environment variables.
#include "import/option.h"

namespace xgen::importer {
namespace {

using enum Group;
using enum Takes;
using E = Effect;

constexpr std::string_view kStay =
    "Not offered by models computed here. Where it is needed, leave the model to vLLM and list it with `engine: "
    "openai` "
    "(docs/remote-engines.md).";
constexpr std::string_view kGpu =
    "This version computes on the CPU: there is nothing to set. A model that needs GPUs stays in vLLM, listed with "
    "`engine: openai` (docs/remote-engines.md).";
constexpr std::string_view kTuning = "A matter of vLLM's own making; there is nothing to set.";

constexpr Rule kRules[] = {
    {"--model MODEL_TAG", one, maps, E::model, "models[].source",
     "A repository of the Hub is downloaded into the cache shared with Python; a path is used as it is."},
    {"--served-model-name", many, maps, E::names, "models[].name",
     "The first name; further ones are `models[].aliases`."},
    {"--revision", one, maps, E::revision, "models[].source", "Part of it: `hf://ORG/REPO@REVISION`."},
    {"--max-model-len", one, maps, E::integer, "models[].max_model_len", "The same; 1k is 1000 and 1K is 1024 there."},
    {"--max-num-seqs", one, maps, E::integer, "models[].max_num_seqs", "The same."},
    {"--max-num-batched-tokens", one, maps, E::integer, "models[].max_num_batched_tokens",
     "The same meaning; the value was chosen for another machine: on a CPU 512 keeps the steps short."},
    {"--kv-cache-memory-bytes --kv-cache-memory", one, changes, E::bytes, "models[].kv_cache",
     "Bytes of host memory here, of each GPU there."},
    {"VLLM_CPU_KVCACHE_SPACE", one, maps, E::gib, "models[].kv_cache", "GiB of host memory, as there."},
    {"--kv-cache-dtype", one, maps, E::kv_dtype, "models[].kv_cache_dtype", "The same number format."},
    {"--enable-prefix-caching", maybe, maps, E::on, "models[].prefix_caching", "The same."},
    {"--disable-prefix-caching", nothing, maps, E::off, "models[].prefix_caching", "The same."},
    {"--host", one, maps, E::host, "server.host", "The same."},
    {"--port", one, maps, E::port, "server.port", "The same."},
    {"--api-key VLLM_API_KEY", many, changes, E::api_key, "server.api_keys_file",
     "Keys are in a file here, as SHA-256, with scopes and rates (docs/api-keys.md), and hold for every route but "
     "/health and /version. Without the file everybody may ask."},
    {"--uvicorn-log-level VLLM_LOGGING_LEVEL", one, changes, E::log_level, "log.level",
     "One log for all parts of the process (to stderr)."},
    {"--quantization -q", one, none, E::quantization, "models[].quantization",
     "Weights are not quantised while loading, and AWQ, GPTQ, FP8 and bitsandbytes files are not read: take the "
     "model's F16 or BF16 files, or a GGUF file (Q8_0, Q4_K_M, …)."},
    {"--dtype", one, none, E::say, "",
     "Weights are used in the number format of their files (F32, F16, BF16, or GGUF's)."},
    {"--load-format", one, none, E::say, "", "The format is found by the files: safetensors or GGUF."},
    {"--download-dir", one, changes, E::say, "",
     "Models of the Hub are in Python's cache: set HF_HOME or HF_HUB_CACHE for xgen-model (docs/model-sources.md)."},
    {"--hf-token", one, maps, E::secret, "", "Give it as HF_TOKEN in the environment, or put it into $HF_HOME/token."},
    {"--tokenizer --tokenizer-revision", one, none, E::say, "",
     "The tokenizer of the model's own files is used: put another one's files into its folder."},
    {"--chat-template", one, none, E::say, "",
     "The template of the model's own files is used: put another one as chat_template.jinja into its folder."},
    {"--generation-config", one, none, E::say, "",
     "The model's generation_config.json gives the defaults of sampling."},
    {"--override-generation-config* --default-sampling-params*", one, none, E::say, "",
     "Put these values into the model's generation_config.json, or into the requests."},
    {"--seed", one, none, E::say, "",
     "Each request has its own `seed`; with it the answer is the same, whatever else is served."},
    {"--max-logprobs", one, none, E::say, "", "The limit is 20."},
    {"--scheduling-policy", one, maps, E::say, "",
     "Requests may always have a `priority`; without one, first come first served."},
    {"--enable-chunked-prefill", maybe, maps, E::say, "",
     "Long prompts are always computed in chunks of `max_num_batched_tokens`."},
    {"--config", one, none, E::say, "",
     "Its keys are options as well, and were not read: write them as flags here and import again. A file with `model:` "
     "can "
     "be imported by itself."},
    {"--gpu-memory-utilization", one, none, E::say, "",
     "This version has no GPU support. `memory.host` (80% of the RAM by default) bounds all models together."},
    {"--tensor-parallel-size -tp --pipeline-parallel-size -pp --data-parallel-size -dp --data-parallel-size-local -dpl "
     "--data-parallel-* --expert-parallel-size --expert-placement-strategy --distributed-executor-backend "
     "--decode-context-parallel-size -dcp --prefill-context-parallel-size -pcp --all2all-backend --eplb-* --dbo-* "
     "--nnodes "
     "-n --node-rank -r --master-addr --master-port --worker-cls --worker-extension-cls --num-redundant-experts",
     one, none, E::say, "",
     "One process on one machine computes a model, with all its CPUs (`compute.threads`). One that needs several GPUs "
     "or machines stays in vLLM, listed with `engine: openai`."},
    {"--enable-expert-parallel -ep --enable-eplb --enable-dbo --data-parallel-hybrid-lb -dph "
     "--data-parallel-external-lb "
     "-dpe --headless --ray-workers-use-nsight",
     maybe, none, E::say, "", "One process on one machine computes a model."},
    {"--enforce-eager --disable-custom-all-reduce --enable-sleep-mode --disable-cascade-attn "
     "--disable-async-output-proc --async-scheduling --disable-hybrid-kv-cache-manager --use-v2-block-manager "
     "--calculate-kv-scales --disable-sliding-window --use-tqdm-on-load --kv-sharing-fast-prefill "
     "--fail-on-environ-validation --multi-step-stream-outputs --kv-cache-metrics --enable-mfu-metrics "
     "--disable-chunked-mm-input --enable-flashinfer-autotune",
     maybe, none, E::say, "", kTuning},
    {"--block-size --swap-space --cpu-offload-* --num-gpu-blocks-override --max-seq-len-to-capture "
     "--max-parallel-loading-workers --compilation-config* -cc* -O* --cudagraph-* --cuda-graph-sizes --attention-* "
     "--kernel-config* --optimization-level --performance-mode --num-scheduler-steps --scheduler-* "
     "--max-num-partial-prefills --max-long-partial-prefills --long-prefill-token-threshold --preemption-mode "
     "--num-lookahead-slots --prefix-caching-hash-algo --additional-config* --model-loader-extra-config* "
     "--safetensors-load-strategy --ignore-patterns --pt-load-map-location --model-impl --stream-interval "
     "--mamba-* --moe-backend --linear-backend --profiler-config* --tokenizer-pool-* --kv-offloading-* "
     "--max-cudagraph-capture-size",
     one, none, E::say, "", kTuning},
    {"--device", one, none, E::say, "", kGpu},
    {"--speculative-* --num-speculative-tokens --spec-* --ngram-* --typical-acceptance-*", one, none, E::say, "",
     "Speculative decoding is not offered; answers are the same without it."},
    {"--lora-modules", many, none, E::say, "",
     "Adapters are not applied here: merge them into the weights, or leave the model to vLLM (`engine: openai`; each "
     "adapter is then a model of the list, with its name under `model`)."},
    {"--enable-lora --enable-lora-bias --fully-sharded-loras --enable-prompt-adapter --specialize-active-lora "
     "--enable-tower-connector-lora",
     maybe, none, E::say, "", "LoRA is not offered for models computed here: merge adapters into the weights."},
    {"--max-loras --max-lora-rank --max-cpu-loras --lora-* --long-lora-* --default-mm-loras --max-prompt-adapter* "
     "--prompt-adapters --qlora-*",
     one, none, E::say, "", "LoRA is not offered for models computed here: merge adapters into the weights."},
    {"--enable-auto-tool-choice --exclude-tools-when-tool-choice-none --enable-reasoning", maybe, none, E::say, "",
     kStay},
    {"--tool-call-parser --tool-parser-plugin --tool-server --reasoning-parser --reasoning-parser-plugin "
     "--reasoning-config* --guided-decoding-* --structured-outputs-* --logits-processor-pattern --logits-processors",
     one, none, E::say, "", kStay},
    {"--disable-mm-preprocessor-cache --interleave-mm-strings --skip-mm-profiling --language-model-only "
     "--enable-mm-embeds --enable-prompt-embeds --enable-flash-late-interaction",
     maybe, none, E::say, "", "Only text generation is offered: no embeddings, scores, images or sound."},
    {"--runner --task --convert --pooler-config* --override-pooler-config* --override-attention-dtype "
     "--limit-mm-per-prompt* --mm-* --media-io-kwargs* --allowed-local-media-path --allowed-media-domains "
     "--video-pruning-rate --io-processor-plugin",
     one, none, E::say, "", "Only text generation is offered: no embeddings, scores, images or sound."},
    {"--kv-transfer-config* --kv-events-config* --ec-transfer-config* --weight-transfer-config*", one, none, E::say, "",
     "Prefill and decode are one process here, and the KV cache stays in it."},
    {"--trust-remote-code", maybe, none, E::say, "", "No code of a model is ever run."},
    {"--config-format --tokenizer-mode --hf-config-path --code-revision --hf-overrides* --rope-scaling* --rope-theta "
     "--override-neuron-config* --generation-tokens --hf-*",
     one, none, E::say, "", "The model's files say it: change its config.json."},
    {"--skip-tokenizer-init --tokens-only --return-tokens-as-token-ids --enable-prompt-tokens-details "
     "--enable-force-include-usage --enable-server-load-tracking --enable-tokenizer-info-endpoint "
     "--trust-request-chat-template --enable-per-request-metrics --enable-request-id-headers "
     "--disable-fastapi-docs --disable-frontend-multiprocessing --enable-offline-docs --grpc",
     maybe, none, E::say, "",
     "A route or field of vLLM. Here usage has cached tokens, streams have it when asked (`include_usage`), and every "
     "answer has x-request-id."},
    {"--chat-template-content-format --default-chat-template-kwargs* --response-role --fingerprint-* --cohere-*", one,
     none, E::say, "", "Templates are rendered as the model's files say."},
    {"--api-server-count -asc", one, changes, E::say, "",
     "One process serves; `server.threads` HTTP threads, of which one is enough for most."},
    {"--uds", one, none, E::say, "", "Only TCP is listened on: `server.host` and `server.port`."},
    {"--root-path", one, none, E::say, "",
     "Routes answer at / and under /api/inference and /api/vllm: let the proxy strip another prefix."},
    {"--ssl-*", one, changes, E::say, "",
     "Name the files as `server.tls_cert_file`, `server.tls_key_file` and, for certificates of clients, "
     "`server.tls_client_ca_file`."},
    {"--enable-ssl-refresh", maybe, maps, E::say, "", "Certificates are read again whenever their files change."},
    {"--allowed-origins", one, changes, E::say, "",
     "Name the origins in `server.cors_origins`; by default there are none."},
    {"--allowed-* --middleware", one, none, E::say, "",
     "With `server.cors_origins` all methods and headers of the API are allowed; there is no middleware."},
    {"--allow-credentials", maybe, none, E::say, "", "Keys are sent as a header, not as cookies."},
    {"--h11-max-incomplete-event-size", one, changes, E::bytes, "server.max_headers",
     "Heads alone here; bodies have `server.max_body`."},
    {"--h11-max-header-count --ws-* --timeout-keep-alive", one, none, E::say, "",
     "See `server.max_headers` and `server.idle_timeout`."},
    {"--shutdown-timeout", one, maps, E::seconds, "server.drain_timeout", "Time for running requests to finish."},
    {"--disable-log-requests --disable-log-stats --disable-uvicorn-access-log --enable-log-requests "
     "--enable-log-outputs --enable-log-deltas --log-error-stack --aggregate-engine-logging "
     "--enable-logging-iteration-details",
     maybe, none, E::say, "",
     "The log has one line a request, and prompts and answers only with `log.content: true`; statistics are at "
     "/metrics, "
     "under vLLM's names."},
    {"--show-hidden-metrics-for-version --kv-cache-metrics-*", one, none, E::say, "",
     "Metrics are at /metrics, under vLLM's names."},
    {"--max-log-len --log-config-file --disable-access-log-for-endpoints", one, none, E::say, "",
     "`log.level`, `log.format` and `log.content` are all there is to set."},
    {"--otlp-traces-endpoint", one, changes, E::say, "",
     "Name it as `tracing.endpoint`: OTLP over HTTP (port 4318 of most collectors), not gRPC."},
    {"--otlp-* --collect-detailed-traces", one, none, E::say, "", "See `tracing` in docs/operations.md."},
    {"VLLM_CPU_OMP_THREADS_BIND VLLM_CPU_NUM_OF_RESERVED_CPU", one, changes, E::say, "",
     "All usable CPUs compute (`compute.threads`); bind the process itself with taskset or numactl."},
    {"VLLM_HOST_IP VLLM_PORT VLLM_RPC_* VLLM_DP_* VLLM_NCCL_* VLLM_WORKER_* VLLM_RAY_* VLLM_USE_RAY_*", one, none,
     E::say, "", "Of vLLM's several processes; here is one."},
    {"VLLM_ALLOW_LONG_MAX_MODEL_LEN", one, none, E::say, "",
     "A `max_model_len` above what the model was trained for is refused by name."},
    {"VLLM_USE_MODELSCOPE", one, none, E::say, "",
     "Models come from the Hub, a mirror of it (HF_ENDPOINT), S3 or a folder."},
    {"VLLM_*", one, none, E::say, "", kTuning},
};

}  // namespace

const Engine kVllm{
    "vLLM", kRules, "8000", "",
    "A field of a request that no API defines is refused with 400 here, where vLLM passes over it: "
    "`server.unknown_fields: warn` relaxes that.\n"
    "By default 64 sequences are computed at the same time, and 512 tokens a step; vLLM has other defaults for each "
    "GPU."};

}  // namespace xgen::importer
