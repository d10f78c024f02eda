// What stands around an engine's command: Docker Compose, docker run, Kubernetes, and variables that many programs
// read.
#include "import/option.h"

namespace xgen::importer {
namespace {

using enum Group;
using enum Takes;
using E = Effect;

constexpr std::string_view kStays = "The same for xgen-model: it stays where it is written.";
constexpr std::string_view kGpu = "This version computes on the CPU: no GPU has to be given to it.";
constexpr std::string_view kHealth =
    "/health answers here as well; /health/startup (with the progress of loading), /health/live and /health/ready tell "
    "more. Probes have no keys and need none.";

constexpr Rule kEnvironment[] = {
    {"HF_TOKEN HUGGING_FACE_HUB_TOKEN HUGGINGFACE_HUB_TOKEN HUGGINGFACE_TOKEN HUGGINGFACEHUB_API_TOKEN", one, maps,
     E::secret, "",
     "For private and gated repositories: give it as HF_TOKEN in xgen-model's environment (docs/model-sources.md)."},
    {"HF_HOME HF_HUB_CACHE HF_ENDPOINT HF_HUB_OFFLINE HF_TOKEN_PATH XDG_CACHE_HOME SSL_CERT_FILE SSL_CERT_DIR "
     "AWS_REGION "
     "AWS_DEFAULT_REGION AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3",
     one, maps, E::say, "", "xgen-model reads the same variable (docs/model-sources.md)."},
    {"AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN", one, maps, E::secret, "",
     "xgen-model reads the same variable (docs/model-sources.md)."},
    {"TRANSFORMERS_CACHE HUGGINGFACE_HUB_CACHE", one, changes, E::say, "",
     "An older name: set HF_HUB_CACHE (docs/model-sources.md)."},
    {"TRANSFORMERS_OFFLINE HF_DATASETS_OFFLINE", one, changes, E::say, "",
     "HF_HUB_OFFLINE=1 is what xgen-model reads."},
    {"HF_HUB_ENABLE_HF_TRANSFER HF_HUB_* HF_XET_* HF_*", one, none, E::say, "",
     "Downloads are parallel and resumed without it (`sources.connections`)."},
    {"S3_ENDPOINT_URL", one, changes, E::say, "", "AWS_ENDPOINT_URL is what xgen-model reads."},
    {"http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy", one, none, E::say, "",
     "Proxies are not spoken to: pull models where the Hub is reachable, or set HF_ENDPOINT to a mirror."},
    {"no_proxy NO_PROXY TZ LANG LC_ALL PATH HOME USER PWD OLDPWD LD_LIBRARY_PATH LD_PRELOAD PYTHON* MALLOC_* UV_* "
     "PIP_*",
     one, none, E::say, "", "xgen-model needs and reads nothing of it: there is no Python."},
    {"CUDA_* NVIDIA_* NCCL_* HIP_* ROCR_* ROCM_* HSA_* GPU_* PYTORCH_* TORCH_* TORCHINDUCTOR_* TRITON_* FLASHINFER_* "
     "UCX_* "
     "GLOO_* HABANA_* PT_HPU_* TPU_* LMCACHE_* GGML_*",
     one, none, E::say, "", kGpu},
    // Of libraries beside the engine: what they bound says nothing of how many threads shall compute.
    {"OMP_NUM_THREADS MKL_NUM_THREADS RAYON_NUM_THREADS OPENBLAS_NUM_THREADS OMP_* KMP_* MKL_*", one, none, E::say, "",
     "Threads are xgen-model's own: all usable CPUs compute, or `compute.threads`."},
    {"RAY_* SERVE_*", one, none, E::say, "", "There is no Ray in between."},
    {"PROMETHEUS_MULTIPROC_DIR", one, none, E::say, "", "One process has all metrics, at /metrics."},
    {"OTEL_*", one, changes, E::say, "", "Name the collector as `tracing.endpoint`: OTLP over HTTP, not gRPC."},
    {"DO_NOT_TRACK", one, none, E::say, "", "Nothing is ever reported to anybody."},
    {"POD_IP POD_NAME POD_NAMESPACE NODE_NAME HOST_IP host_ip", one, none, E::say, "",
     "Not needed: nothing has to find others."},
};

constexpr Rule kCompose[] = {
    {"extends", one, maps, E::extends, "", "What the service that it names says was read before."},
    {"image", one, changes, E::image, "", "xgen-model's own image takes its place."},
    {"build", one, none, E::say, "", "xgen-model's own image takes its place."},
    {"entrypoint", one, none, E::entrypoint, "", ""},
    {"command", one, none, E::command, "", ""},
    {"environment", one, none, E::environment, "", ""},
    {"env_file", one, none, E::say, "",
     "Its variables were not read: put those that matter here under `environment` and import again."},
    {"volumes", one, maps, E::volumes, "", ""},
    {"ports", one, maps, E::ports, "server.port", ""},
    {"expose", one, changes, E::say, "", "The port that `server.port` says."},
    {"healthcheck", one, changes, E::say, "", kHealth},
    {"gpus runtime shm_size ipc devices device_cgroup_rules deploy.resources.reservations.devices", one, none, E::say,
     "", "Of GPUs and of several processes that share memory: not needed."},
    {"deploy.resources.limits.memory mem_limit deploy.resources.limits.cpus cpus cpuset", one, changes, E::say, "",
     "Keep it, for xgen-model's size: `memory.host` (80%) and `compute.threads` go by the container's limits."},
    {"deploy.resources.* mem_reservation memswap_limit mem_swappiness cpu_shares", one, changes, E::say, "",
     "Keep it, for xgen-model's size."},
    {"deploy.replicas scale", one, none, E::say, "",
     "Several containers stay several; one xgen-model in front can spread requests over them (`urls`)."},
    {"ulimits", one, none, E::say, "",
     "No memory is locked; for more than some hundred clients allow as many open files (`nofile`)."},
    {"stop_grace_period", one, changes, E::say, "",
     "Must be longer than `server.drain_delay` and `server.drain_timeout` together (35s by default)."},
    {"stop_signal", one, none, E::say, "", "SIGTERM and SIGINT drain and end the server."},
    {"working_dir", one, none, E::say, "", "Relative paths are relative to models.yaml."},
    {"container_name hostname domainname restart networks network_mode depends_on logging labels profiles deploy.* "
     "extra_hosts dns* links platform pull_policy privileged user group_add cap_add cap_drop security_opt read_only "
     "tmpfs init tty stdin_open secrets configs annotations develop sysctls userns_mode pid attach x-*",
     one, none, E::say, "", kStays},
};

constexpr Rule kDockerRun[] = {
    {"-e --env", one, none, E::environment, "", ""},
    {"-v --volume --mount", one, maps, E::volumes, "", ""},
    {"-p --publish", one, maps, E::ports, "server.port", ""},
    {"--entrypoint", one, none, E::entrypoint, "", ""},
    {"--env-file", one, none, E::say, "",
     "Its variables were not read: give those that matter with -e and import again."},
    {"--gpus --runtime --device --shm-size --ipc --ulimit", one, none, E::say, "",
     "Of GPUs and of several processes that share memory: not needed."},
    {"-m --memory --cpus --cpuset-cpus", one, changes, E::say, "",
     "Keep it, for xgen-model's size: `memory.host` (80%) and `compute.threads` go by the container's limits."},
    {"--health-cmd --health-*", one, changes, E::say, "", kHealth},
    {"--name --network --net --restart -u --user -w --workdir --label -l --hostname -h --add-host --log-driver "
     "--log-opt "
     "--cap-add --cap-drop --security-opt --platform --pull --group-add --userns --dns --cidfile --stop-timeout",
     one, none, E::say, "", kStays},
    {"--rm -d --detach -i --interactive -t --tty -it -ti -dit -itd -td --privileged --init --read-only -P "
     "--publish-all",
     nothing, none, E::say, "", kStays},
};

constexpr Rule kWorkload[] = {
    {"apiVersion kind metadata* spec.selector* spec.template.metadata* spec.strategy* spec.updateStrategy* "
     "spec.minReadySeconds spec.revisionHistoryLimit spec.progressDeadlineSeconds spec.serviceName "
     "spec.podManagementPolicy spec.volumeClaimTemplates spec.paused status*",
     one, none, E::say, "", kStays},
    {"spec.replicas", one, none, E::say, "",
     "Several pods stay several, each with all models; autoscaling goes by `vllm:num_requests_waiting` as before "
     "(docs/remote-engines.md)."},
    {"spec*", one, none, E::say, "", kStays},
};

constexpr Rule kPod[] = {
    {"runtimeClassName", one, none, E::say, "", kGpu},
    {"terminationGracePeriodSeconds", one, changes, E::say, "",
     "Must be longer than `server.drain_delay` and `server.drain_timeout` together (35 s by default)."},
    {"volumes", one, none, E::say, "",
     "The same, without one for /dev/shm; a ConfigMap with models.yaml comes to them (MODEL_CONFIG_PATH)."},
    {"initContainers", one, none, E::say, "",
     "Not read. What only downloads a model is done by an hf:// or s3:// source."},
    {"nodeSelector* tolerations affinity* topologySpreadConstraints", one, changes, E::say, "",
     "The same, without what asks for nodes with GPUs."},
    {"restartPolicy serviceAccountName serviceAccount securityContext* imagePullSecrets hostNetwork hostIPC hostPID "
     "hostname "
     "subdomain dnsPolicy dnsConfig* priorityClassName schedulerName automountServiceAccountToken enableServiceLinks "
     "shareProcessNamespace readinessGates setHostnameAsFQDN activeDeadlineSeconds",
     one, none, E::say, "", kStays},
};

constexpr Rule kContainer[] = {
    {"name", one, none, E::say, "", kStays},
    {"image", one, changes, E::image, "", "xgen-model's own image takes its place."},
    {"imagePullPolicy securityContext* terminationMessagePath terminationMessagePolicy tty stdin workingDir "
     "resizePolicy",
     one, none, E::say, "", kStays},
    {"command", one, none, E::entrypoint, "", ""},
    {"args", one, none, E::command, "", ""},
    {"env", one, none, E::environment, "", ""},
    {"envFrom", one, none, E::say, "",
     "Its variables were not read; xgen-model itself reads few (docs/model-sources.md)."},
    {"volumeMounts", one, maps, E::say, "",
     "The same mounts, so that paths in models.yaml are those of the container."},
    {"volumeDevices", one, none, E::say, "", kStays},
    {"ports", one, maps, E::ports, "server.port", ""},
    {"resources.limits.nvidia.com/gpu resources.requests.nvidia.com/gpu resources.limits.amd.com/gpu "
     "resources.requests.amd.com/gpu resources.claims",
     one, none, E::say, "", kGpu},
    {"resources*", one, changes, E::say, "",
     "For xgen-model's size: the memory limit has to hold weights and KV cache, as `memory.host` (80%) goes by it, and "
     "`compute.threads` by the CPU limit."},
    {"livenessProbe* startupProbe* readinessProbe*", one, changes, E::say, "", kHealth},
    {"lifecycle*", one, none, E::say, "",
     "No preStop is needed: after SIGTERM requests are served for `server.drain_delay`."},
};

}  // namespace

Rules environment_rules() { return kEnvironment; }
Rules compose_rules() { return kCompose; }
Rules docker_run_rules() { return kDockerRun; }
Rules workload_rules() { return kWorkload; }
Rules pod_rules() { return kPod; }
Rules container_rules() { return kContainer; }

}  // namespace xgen::importer
