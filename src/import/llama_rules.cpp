// llama.cpp: the flags of llama-server, many of them environment variables as well (LLAMA_ARG_…).
#include "import/option.h"

namespace xgen::importer {
namespace {

using enum Group;
using enum Takes;
using E = Effect;

constexpr std::string_view kGpu = "This version computes on the CPU: there is nothing to set.";
constexpr std::string_view kTuning = "A matter of llama.cpp's own making; there is nothing to set.";
constexpr std::string_view kSampling =
    "A default of sampling: each request says its own, else the model's generation_config.json (of a GGUF file: "
    "OpenAI's "
    "defaults) holds.";

constexpr Rule kRules[] = {
    {"-m --model LLAMA_ARG_MODEL", one, maps, E::model_path, "models[].source", "The same GGUF file, mapped in place."},
    {"-hf -hfr --hf-repo LLAMA_ARG_HF_REPO", one, maps, E::hub_repo, "models[].source",
     "Downloaded into Python's cache, not llama.cpp's."},
    {"-hff --hf-file LLAMA_ARG_HF_FILE", one, maps, E::hub_file, "models[].source",
     "Part of it: `hf://ORG/REPO/FILE`."},
    {"-a --alias LLAMA_ARG_ALIAS", one, maps, E::names, "models[].name",
     "The first name; further ones are `models[].aliases`."},
    {"-c --ctx-size LLAMA_ARG_CTX_SIZE", one, changes, E::context, "models[].max_model_len",
     "Each sequence's limit here; there the tokens of all slots together, so that each has its share (with -kvu each "
     "may "
     "use all)."},
    {"-np --parallel LLAMA_ARG_N_PARALLEL", one, maps, E::slots, "models[].max_num_seqs",
     "Sequences that are computed at the same time; they share the KV cache in blocks, so that more cost nothing when "
     "idle."},
    {"-kvu --kv-unified LLAMA_ARG_KV_UNIFIED", nothing, maps, E::unified, "",
     "The KV cache is always shared by all sequences."},
    {"-no-kvu --no-kv-unified", nothing, none, E::say, "", "The KV cache is always shared by all sequences."},
    {"--kv-unified-per-slot LLAMA_ARG_KV_UNIFIED_PER_SLOT", one, none, E::say, "",
     "The KV cache is always shared by all sequences."},
    {"-t --threads LLAMA_ARG_THREADS", one, maps, E::integer, "compute.threads",
     "For all models of the process together."},
    {"-tb --threads-batch LLAMA_ARG_THREADS_BATCH", one, none, E::say, "",
     "Prompts and answers are computed by the same threads."},
    {"-ctk --cache-type-k LLAMA_ARG_CACHE_TYPE_K", one, maps, E::kv_dtype, "models[].kv_cache_dtype",
     "One number format for keys and values."},
    {"-ctv --cache-type-v LLAMA_ARG_CACHE_TYPE_V", one, none, E::say, "", "Values have the format of the keys."},
    {"-b --batch-size LLAMA_ARG_BATCH", one, changes, E::integer, "models[].max_num_batched_tokens",
     "Tokens of one step for all sequences; smaller ones let others' tokens come sooner."},
    {"-ub --ubatch-size LLAMA_ARG_UBATCH", one, none, E::say, "", "Steps are not cut again."},
    {"--cache-prompt", nothing, maps, E::on, "models[].prefix_caching", "By blocks, for all sequences."},
    {"LLAMA_ARG_CACHE_PROMPT", one, maps, E::on, "models[].prefix_caching", "By blocks, for all sequences."},
    {"--no-cache-prompt", nothing, maps, E::off, "models[].prefix_caching", "The same."},
    {"--cache-reuse -cram --cache-ram --slot-prompt-similarity -sps -ctxcp --ctx-checkpoints --swa-checkpoints -cms "
     "--checkpoint-min-step LLAMA_ARG_CACHE_REUSE LLAMA_ARG_CACHE_RAM LLAMA_ARG_CTX_CHECKPOINTS --slot-save-path",
     one, none, E::say, "", "Prefixes are kept in the KV cache itself, as long as there is room."},
    {"--host LLAMA_ARG_HOST", one, maps, E::host, "server.host", "The same."},
    {"--port LLAMA_ARG_PORT", one, maps, E::port, "server.port", "The same."},
    {"--api-key LLAMA_API_KEY", one, changes, E::api_key, "server.api_keys_file",
     "Keys are in a file here, as SHA-256, with scopes and rates (docs/api-keys.md). Without the file everybody may "
     "ask."},
    {"--api-key-file LLAMA_ARG_API_KEY_FILE", one, changes, E::api_key, "server.api_keys_file",
     "Another form: not the keys but their SHA-256 (docs/api-keys.md). Without the file everybody may ask."},
    {"--threads-http LLAMA_ARG_THREADS_HTTP", one, none, E::say, "",
     "`server.threads`, of which one is enough for most."},
    {"-to --timeout LLAMA_ARG_TIMEOUT", one, changes, E::seconds, "server.write_timeout",
     "A client that takes no bytes for so long is disconnected; a whole request has `server.request_timeout`."},
    {"-hft --hf-token", one, maps, E::secret, "",
     "Give it as HF_TOKEN in the environment, or put it into $HF_HOME/token."},
    {"--offline", nothing, maps, E::say, "", "HF_HUB_OFFLINE=1 in the environment does the same."},
    {"LLAMA_ARG_OFFLINE", one, maps, E::say, "", "HF_HUB_OFFLINE=1 in the environment does the same."},
    {"-mu --model-url LLAMA_ARG_MODEL_URL -dr --docker-repo LLAMA_ARG_DOCKER_REPO", one, none, E::say, "",
     "Not a source that is known here: download the file and give its path, or name it as hf:// or s3://."},
    {"-ngl --gpu-layers --n-gpu-layers LLAMA_ARG_N_GPU_LAYERS -sm --split-mode LLAMA_ARG_SPLIT_MODE -ts --tensor-split "
     "LLAMA_ARG_TENSOR_SPLIT -mg --main-gpu LLAMA_ARG_MAIN_GPU -dev --device LLAMA_ARG_DEVICE -ot --override-tensor "
     "LLAMA_ARG_OVERRIDE_TENSOR -ncmoe --n-cpu-moe LLAMA_ARG_N_CPU_MOE -fit --fit -fitt --fit-target -fitc --fit-ctx "
     "LLAMA_ARG_FIT* --moe-cache-mib -ncffn --n-cpu-ffn LLAMA_ARG_KV_OFFLOAD",
     one, none, E::say, "", kGpu},
    {"-cmoe --cpu-moe -kvo --kv-offload -nkvo --no-kv-offload --op-offload --no-op-offload --no-host", nothing, none,
     E::say, "", kGpu},
    {"--rpc LLAMA_ARG_RPC", one, none, E::say, "",
     "One process on one machine computes a model. What runs elsewhere is listed with `engine: openai`."},
    {"-cb --cont-batching -nocb --no-cont-batching", nothing, maps, E::say, "", "Batching is always continuous."},
    {"LLAMA_ARG_CONT_BATCHING", one, maps, E::say, "", "Batching is always continuous."},
    {"-fa --flash-attn LLAMA_ARG_FLASH_ATTN", maybe, none, E::say, "",
     "There is one kind of attention, which needs no switch."},
    {"--mlock --mmap --no-mmap -dio --direct-io -ndio --no-direct-io --repack -nr --no-repack --check-tensors "
     "--warmup --no-warmup --swa-full --perf --no-perf -e --escape --no-escape --context-shift "
     "--no-context-shift --cache-idle-slots --no-cache-idle-slots --spm-infill -sp --special "
     "--backend-sampling -bs",
     nothing, none, E::say, "",
     "Weights are mapped and used in place; a context that is full ends the answer (`length`)."},
    {"LLAMA_ARG_MLOCK LLAMA_ARG_NO_MMAP LLAMA_ARG_MMAP LLAMA_ARG_REPACK LLAMA_ARG_SWA_FULL LLAMA_ARG_CONTEXT_SHIFT -lm "
     "--load-mode LLAMA_ARG_LOAD_MODE -lzm --lazy-mode LLAMA_ARG_LAZY_MODE",
     one, none, E::say, "", "Weights are mapped and used in place; a context that is full ends the answer (`length`)."},
    {"--numa LLAMA_ARG_NUMA -C --cpu-mask -Cr --cpu-range --cpu-strict --prio --poll -Cb --cpu-mask-batch -Crb "
     "--cpu-range-batch --cpu-strict-batch --prio-batch --poll-batch",
     one, changes, E::say, "", "Bind the process itself with taskset, numactl or its service."},
    {"--keep -dt --defrag-thold LLAMA_ARG_DEFRAG_THOLD", one, none, E::say, "", kTuning},
    {"-n --predict --n-predict LLAMA_ARG_N_PREDICT", one, none, E::say, "",
     "Each request says `max_tokens`; without it a chat goes to the end of the context."},
    {"--temp --temperature --top-k --top-p --min-p --top-nsigma --top-n-sigma --typical --typical-p --repeat-last-n "
     "--repeat-penalty --presence-penalty --frequency-penalty --xtc-* --dry-* --dynatemp-* --mirostat* --adaptive-* "
     "--samplers --sampler-seq --sampling-seq -l --logit-bias -s --seed LLAMA_ARG_TEMPERATURE LLAMA_ARG_TOP_K "
     "LLAMA_ARG_TOP_P LLAMA_ARG_MIN_P LLAMA_ARG_REPEAT_PENALTY LLAMA_ARG_PRESENCE_PENALTY "
     "LLAMA_ARG_FREQUENCY_PENALTY -r --reverse-prompt",
     one, none, E::say, "", kSampling},
    {"--ignore-eos", nothing, none, E::say, "", kSampling},
    {"--grammar --grammar-file -j --json-schema -jf --json-schema-file", one, none, E::say, "",
     "Answers of a given form are not offered for models computed here."},
    {"--jinja --no-jinja", nothing, maps, E::say, "", "Chat templates are always Jinja."},
    {"LLAMA_ARG_JINJA", one, maps, E::say, "", "Chat templates are always Jinja."},
    {"--chat-template --chat-template-file --chat-template-kwargs LLAMA_ARG_CHAT_TEMPLATE* "
     "LLAMA_ARG_CHAT_TEMPLATE_KWARGS",
     one, none, E::say, "", "The template in the model's own file is used."},
    {"--reasoning-format --reasoning-budget --reasoning-budget-message --reasoning-effort -rea --reasoning "
     "LLAMA_ARG_THINK* LLAMA_ARG_REASONING*",
     one, none, E::say, "", "Reasoning is not told from the answer's text."},
    {"--reasoning-preserve --no-reasoning-preserve --prefill-assistant --no-prefill-assistant --skip-chat-parsing "
     "--no-skip-chat-parsing",
     nothing, none, E::say, "", "Messages are rendered as the model's template says."},
    {"--embedding --embeddings --rerank --reranking", nothing, none, E::say, "",
     "Only text generation is offered: no embeddings or scores."},
    {"--pooling --embd-normalize LLAMA_ARG_POOLING LLAMA_ARG_EMBEDDINGS LLAMA_ARG_RERANKING -mm --mmproj --mmproj-url "
     "-mmu "
     "LLAMA_ARG_MMPROJ* --image-* --video-* --media-path --mtmd-* -mmdev --mmproj-device -mv --model-vocoder",
     one, none, E::say, "", "Only text generation is offered: no embeddings, images or sound."},
    {"--no-mmproj --mmproj-auto --no-mmproj-auto --mmproj-offload --no-mmproj-offload", nothing, none, E::say, "",
     "Only text generation is offered: no images."},
    {"--lora --lora-scaled --control-vector --control-vector-scaled", one, none, E::say, "",
     "LoRA is not offered for models computed here: merge adapters into the weights."},
    {"--lora-init-without-apply", nothing, none, E::say, "", "LoRA is not offered for models computed here."},
    {"-md --model-draft -hfd --hf-repo-draft --draft* --spec-* -lcs --lookup-cache-static -lcd --lookup-cache-dynamic "
     "-ngld "
     "-ctkd -ctvd --cache-type-k-draft --cache-type-v-draft -cd -devd LLAMA_ARG_SPEC_* LLAMA_ARG_DRAFT* "
     "LLAMA_ARG_MODEL_DRAFT",
     one, none, E::say, "", "Speculative decoding is not offered; answers are the same without it."},
    {"--rope-* --yarn-* --override-kv LLAMA_ARG_ROPE_* LLAMA_ARG_YARN_*", one, none, E::say, "",
     "The model's file says it."},
    {"--metrics", nothing, maps, E::say, "", "/metrics is always there, with vLLM's names."},
    {"LLAMA_ARG_ENDPOINT_METRICS", one, maps, E::say, "", "/metrics is always there, with vLLM's names."},
    {"--props --slots --no-slots --ui --webui --no-ui --no-webui --log-prefix --no-log-prefix --log-timestamps "
     "--no-log-timestamps --reuse-port -ag --agent -no-ag --no-agent --ui-mcp-proxy --no-ui-mcp-proxy "
     "--cors-credentials --no-cors-credentials",
     nothing, none, E::say, "", "A route or page of llama-server; `GET /admin/models` shows what each model does."},
    {"LLAMA_ARG_ENDPOINT_* LLAMA_ARG_UI* LLAMA_ARG_NO_WEBUI --path --ui-config* --webui-config* --tags --tools "
     "--tools-* "
     "--mcp-* --cors-* --sse-ping-interval LLAMA_ARG_STATIC_PATH",
     one, none, E::say, "", "A route or page of llama-server; `GET /admin/models` shows what each model does."},
    {"--api-prefix LLAMA_ARG_API_PREFIX", one, none, E::say, "",
     "Routes answer at / and under /api/inference: let the proxy strip another prefix."},
    {"--ssl-key-file --ssl-cert-file LLAMA_ARG_SSL_*", one, changes, E::say, "",
     "Name the files as `server.tls_key_file` and `server.tls_cert_file`."},
    {"-v --verbose --log-verbose --log-disable --log-jsonl --no-log-jsonl", nothing, changes, E::say, "",
     "`log.level` and `log.format` say what the log (to stderr) holds."},
    {"-lv --verbosity --log-verbosity --log-file --log-colors LLAMA_ARG_LOG_* LLAMA_LOG_*", one, changes, E::say, "",
     "`log.level` and `log.format` say what the log (to stderr) holds."},
    {"--models-dir --models-preset --models-max LLAMA_ARG_MODELS_*", one, changes, E::say, "",
     "Each model is an entry of `models:`, with `load: on_demand` where it is not needed from the start "
     "(docs/several-models.md)."},
    {"--models-autoload --no-models-autoload", nothing, changes, E::say, "",
     "`load: on_demand` or `startup`, for each model (docs/several-models.md)."},
    {"--sleep-idle-seconds", one, maps, E::idle, "models[].idle_unload",
     "Unloaded when idle, loaded again by the next request."},
};

}  // namespace

const Engine kLlamaServer{
    "llama-server", kRules, "8080", "127.0.0.1",
    "llama-server answers whatever `model` a request names; here it must be the model's name or one of its aliases, "
    "else "
    "404.\n"
    "llama-server's own routes (/completion, /infill, /slots, /props) are not served; /v1, /tokenize, /detokenize, "
    "/health and /metrics are."};

}  // namespace xgen::importer
