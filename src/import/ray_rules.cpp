// Ray Serve: the configuration of serve, of an application and its deployments, and of Ray Serve LLM.
#include "import/option.h"

namespace xgen::importer {
namespace {

using enum Group;
using enum Takes;
using E = Effect;

constexpr std::string_view kNoRay = "There is no Ray in between: one process takes requests and computes them.";
constexpr std::string_view kScale =
    "A process is one replica. Kubernetes runs several and scales them, by `vllm:num_requests_waiting` "
    "(docs/remote-engines.md).";
constexpr std::string_view kQueue =
    "Requests wait in the model's own queue (`max_waiting`, 1024), not at a router; `max_num_seqs` of them are "
    "computed "
    "together.";
constexpr std::string_view kGpu = "This version computes on the CPU: no GPU has to be given to it.";

constexpr Rule kServe[] = {
    {"http_options.host", one, maps, E::host, "server.host", "The same."},
    {"http_options.port", one, maps, E::port, "server.port", "The same."},
    {"http_options.request_timeout_s", one, maps, E::seconds, "server.request_timeout", "The same."},
    {"http_options.keep_alive_timeout_s", one, maps, E::seconds, "server.idle_timeout", "The same."},
    {"http_options.root_path", one, none, E::say, "",
     "Routes answer at / and under /api/inference: let the proxy strip another prefix."},
    {"http_options*", one, none, E::say, "", kNoRay},
    {"logging_config.log_level", one, changes, E::log_level, "log.level",
     "One log for all parts of the process (to stderr)."},
    {"logging_config*", one, none, E::say, "", "`log.format: json` or `text`; to stderr."},
    {"proxy_location grpc_options* controller_options* target_capacity*", one, none, E::say, "", kNoRay},
};

constexpr Rule kApplication[] = {
    {"name import_path external_scaler_enabled", one, none, E::say, "", kNoRay},
    {"route_prefix", one, changes, E::say, "",
     "Routes answer at / (/v1/…) and under /api/inference and /api/vllm: let the proxy strip another prefix."},
    {"runtime_env.env_vars", one, none, E::environment, "", ""},
    {"runtime_env*", one, none, E::say, "", "No packages or code have to be brought to workers."},
    {"logging_config.log_level", one, changes, E::log_level, "log.level",
     "One log for all parts of the process (to stderr)."},
    {"logging_config*", one, none, E::say, "", "`log.format: json` or `text`; to stderr."},
    {"args.ingress_deployment_config* args.ingress_cls_config* args.prefill_config* args.direct_ingress", one, none,
     E::say, "", "There is no ingress to scale: one process takes requests and computes them."},
};

constexpr Rule kDeployment[] = {
    {"name", one, none, E::say, "", kNoRay},
    {"num_replicas autoscaling_config.max_replicas autoscaling_config.initial_replicas "
     "autoscaling_config.target_ongoing_requests autoscaling_config.target_num_ongoing_requests_per_replica "
     "autoscaling_config.* max_replicas_per_node",
     one, none, E::say, "", kScale},
    {"autoscaling_config.min_replicas", one, changes, E::scale_to_zero, "models[].load", kScale},
    {"autoscaling_config.downscale_to_zero_delay_s", one, changes, E::idle, "models[].idle_unload",
     "Unloaded when idle, with `load: on_demand`; the process stays."},
    {"max_ongoing_requests max_concurrent_queries", one, changes, E::say, "", kQueue},
    {"max_queued_requests", one, changes, E::integer, "models[].max_waiting",
     "Of the model; 429 beyond it here, 503 there. -1 was no limit: 1024 here."},
    {"graceful_shutdown_timeout_s", one, maps, E::seconds, "server.drain_timeout",
     "Time for running requests to finish."},
    {"graceful_shutdown_wait_loop_s health_check_* request_router_config* logging_config*", one, none, E::say, "",
     "/health/live tells whether the engine's steps go on, /health/ready whether requests are welcome."},
    {"ray_actor_options.runtime_env.env_vars", one, none, E::environment, "", ""},
    {"ray_actor_options.num_gpus ray_actor_options.accelerator_type", one, none, E::say, "", kGpu},
    {"ray_actor_options.num_cpus", one, changes, E::say, "",
     "All CPUs that the process may use (`compute.threads`); limit them by the container."},
    {"ray_actor_options* placement_group_*", one, none, E::say, "", kNoRay},
};

constexpr Rule kLlmConfig[] = {
    {"model_loading_config.model_id", one, maps, E::names, "models[].name", "What clients send stays the same."},
    {"model_loading_config.model_source model_loading_config.model_source.bucket_uri", one, maps, E::model,
     "models[].source",
     "A repository of the Hub is downloaded into the cache shared with Python; s3:// is read as well."},
    {"model_loading_config.tokenizer_source", one, none, E::say, "",
     "The tokenizer of the model's own files is used: put another one's files into its folder."},
    {"model_loading_config*", one, none, E::say, "",
     "hf:// and s3:// sources are cached on disk (docs/model-sources.md)."},
    {"engine_kwargs", one, none, E::engine_kwargs, "", ""},
    {"accelerator_type accelerator_config* placement_group_config* resources_per_bundle", one, none, E::say, "", kGpu},
    {"runtime_env.env_vars", one, none, E::environment, "", ""},
    {"runtime_env*", one, none, E::say, "", "No packages or code have to be brought to workers."},
    {"lora_config*", one, none, E::say, "",
     "LoRA is not offered for models computed here: merge adapters into the weights."},
    {"llm_engine server_cls callback_config* experimental_configs*", one, none, E::say, "", kNoRay},
    {"log_engine_metrics", one, maps, E::say, "", "/metrics always has them, under vLLM's names."},
};

// Not Ray's: names that are common in applications that read their model from the environment or from `args`.
constexpr Rule kRayEnv[] = {
    {"MODEL_ID MODEL MODEL_PATH MODEL_NAME_OR_PATH HF_MODEL HF_MODEL_ID MODEL_REPO", one, maps, E::model,
     "models[].source",
     "A repository of the Hub is downloaded into the cache shared with Python; a path is used as it is."},
    {"SERVED_MODEL_NAME MODEL_NAME", one, maps, E::names, "models[].name", "What clients send stays the same."},
    {"MAX_MODEL_LEN", one, maps, E::integer, "models[].max_model_len", "The same."},
    {"MAX_NUM_SEQS", one, maps, E::integer, "models[].max_num_seqs", "The same."},
    {"TENSOR_PARALLELISM PIPELINE_PARALLELISM TENSOR_PARALLEL_SIZE PIPELINE_PARALLEL_SIZE GPU_MEMORY_UTILIZATION "
     "NUM_GPUS "
     "DTYPE",
     one, none, E::say, "", kGpu},
};

}  // namespace

Rules serve_rules() { return kServe; }
Rules application_rules() { return kApplication; }
Rules deployment_rules() { return kDeployment; }
Rules llm_config_rules() { return kLlmConfig; }
Rules ray_env_rules() { return kRayEnv; }

}  // namespace xgen::importer
