"""What lies in deploy/: that Docker, Kubernetes, Helm and systemd run the program with one and the same configuration."""
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from process import ROOT, Process, free_port, run

DEPLOY = ROOT / "deploy"
MODELS = DEPLOY / "config/models.yaml"
BASES = ["config", "k8s/base", "k8s/overlays/cpu", "k8s/overlays/k3s"]
COMPONENTS = ["servicemonitor", "keda", "inferencepool"]
# What Kubernetes puts into every pod beside a Service named xgen-model.
SERVICE_LINKS = {"XGEN_MODEL_PORT": "tcp://10.43.0.7:8000", "XGEN_MODEL_PORT_8000_TCP_ADDR": "10.43.0.7",
                 "XGEN_MODEL_SERVICE_HOST": "10.43.0.7", "XGEN_MODEL_SERVICE_PORT": "8000"}


def kubectl():
    """Every kubectl there is: the newest found, and those that XGEN_KUBECTL names (an old one, say)."""
    found = [shutil.which("kubectl"), *os.environ.get("XGEN_KUBECTL", "").split(":")]
    found = [program for program in found if program]
    if not found:
        pytest.skip("kubectl is not installed")
    return found


def kustomize(folder, program=None):
    result = subprocess.run([program or kubectl()[0], "kustomize", str(folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def with_components(tmp_path, names):
    """The base with components, as an operator's own kustomization has them."""
    if subprocess.run([kubectl()[0], "version", "--client", "--output=json"], capture_output=True, text=True).stdout.find('"kustomizeVersion"') < 0:
        pytest.skip("this kubectl knows no components")
    path = lambda name: os.path.relpath(DEPLOY / "k8s" / name, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(
        {"namespace": "xgen", "resources": [path("base")], "components": [path(f"components/{name}") for name in names]}))
    return kustomize(tmp_path)


def helm(values=None):
    sdk = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
    with sdk.Chart.load(str(DEPLOY / "helm/xgen-model")) as chart:
        files = chart.render(values or {}, name="xgen-model", namespace="xgen")
    return [doc for name, text in files.items() if name.endswith(".yaml") for doc in yaml.safe_load_all(text) if doc]


def of_kind(docs, kind):
    found = [doc for doc in docs if doc["kind"] == kind]
    assert len(found) == 1, f"{kind}: {len(found)}"
    return found[0]


def container(docs):
    return of_kind(docs, "Deployment")["spec"]["template"]["spec"]["containers"][0]


def compose_service():
    return yaml.safe_load((DEPLOY / "docker/services.docker.yaml").read_text())["services"]["xgen-model"]


def image():
    """ENV, ENTRYPOINT, CMD and the copied configuration of the image."""
    text = (DEPLOY / "docker/Dockerfile").read_text().replace("\\\n", " ")
    last = text[text.rindex("\nFROM "):]
    env = dict(pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", last, re.M) for pair in line.split())
    lists = {key: json.loads(value) for key, value in re.findall(r"^(ENTRYPOINT|CMD) (.*)$", last, re.M)}
    copied = re.search(r"^COPY (deploy\S+) (/app/config/models\.yaml)$", last, re.M)
    return env, lists["ENTRYPOINT"], lists["CMD"], {copied[2]: (ROOT / copied[1]).read_text()}


# A way to run it: (environment, command line, files by their paths inside).
def run_by_image():
    env, entry, command, files = image()
    return env, entry + command, files


def run_by_compose():
    env, entry, _, files = image()
    service = compose_service()
    given = service.get("environment", {})
    for source, target in (volume.split(":")[:2] for volume in service["volumes"]):
        if source.startswith("."):
            folder = (DEPLOY / "docker" / source).resolve()
            files.update({f"{target}/{path.name}": path.read_text() for path in folder.iterdir()})
    return {**env, **given}, service.get("entrypoint", entry) + service["command"], files


def run_by_pod(docs):
    env, entry, _, files = image()
    it, config_maps = container(docs), {doc["metadata"]["name"]: doc["data"] for doc in docs if doc["kind"] == "ConfigMap"}
    given = {each["name"]: each["value"] for each in it.get("env", [])}
    volumes = {each["name"]: each for each in of_kind(docs, "Deployment")["spec"]["template"]["spec"]["volumes"]}
    for mount in it["volumeMounts"]:
        if "configMap" in volumes[mount["name"]]:
            data = config_maps[volumes[mount["name"]]["configMap"]["name"]]
            files.update({f"{mount['mountPath']}/{name}": text for name, text in data.items()})
    return {**env, **given}, it.get("command", entry) + it["args"], files


def unit():
    """The lines of the systemd unit by key."""
    lines = {}
    for line in (DEPLOY / "systemd/xgen-model.service").read_text().splitlines():
        if line and line[0] not in "#[":
            key, value = line.split("=", 1)
            lines.setdefault(key, []).append(value)
    return lines


def run_by_systemd():
    env = dict(pair.split("=", 1) for value in unit()["Environment"] for pair in shlex.split(value))
    installed = re.search(r"install\(FILES (deploy/config/models.yaml) DESTINATION (\S+)\)", (ROOT / "cmake/package.cmake").read_text())
    return env, shlex.split(unit()["ExecStart"][0]), {f"{installed[2]}/models.yaml": (ROOT / installed[1]).read_text()}


def effective(way, tmp_path):
    """What `check --print-effective` says in that environment, with the files laid out below a folder."""
    env, command, files = way
    for path, text in files.items():
        target = tmp_path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    assert pathlib.Path(command[0]).name == "xgen-model" and command[1] == "serve", command
    env = dict(env, MODEL_CONFIG_PATH=str(tmp_path / env["MODEL_CONFIG_PATH"].lstrip("/")))
    result = run("check", "--print-effective", *command[2:], env={"HF_HUB_CACHE": "", **env, **SERVICE_LINKS})
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def in_the_image(tmp_path_factory):
    return effective(run_by_image(), tmp_path_factory.mktemp("image"))


def test_compose_is_the_same_configuration(in_the_image, tmp_path):
    assert effective(run_by_compose(), tmp_path) == in_the_image


@pytest.mark.parametrize("folder", BASES[1:])
def test_kubernetes_is_the_same_configuration(in_the_image, tmp_path, folder):
    assert effective(run_by_pod(kustomize(DEPLOY / folder)), tmp_path) == in_the_image


def test_helm_is_the_same_configuration(in_the_image, tmp_path):
    assert effective(run_by_pod(helm()), tmp_path) == in_the_image


def test_systemd_is_the_same_configuration(in_the_image, tmp_path):
    assert effective(run_by_systemd(), tmp_path) == in_the_image


# Keys of models.yaml that mean something else in the files of Compose and Kubernetes.
OTHER_MEANINGS = {"name", "aliases", "source", "host", "port", "level", "format", "cache", "timeout", "retries", "threads",
                  "load", "weight", "pin", "device", "engine", "model", "models", "urls", "headers", "connections", "server",
                  "log", "memory", "compute", "sources", "defaults", "balance", "dialect", "tokenizer", "operators", "kernels",
                  "quantization"}


def setting_names():
    """Every key that models.yaml may hold, from the reference."""
    result = run("docs", "configuration")
    return {key.rsplit(".", 1)[-1] for key in re.findall(r"^\| `([\w.\[\]]+)` \|", result.stdout, re.M)}


def test_no_setting_is_written_twice(tmp_path):
    own = setting_names() - OTHER_MEANINGS
    assert {"drain_delay", "max_model_len", "request_timeout", "kv_cache"} <= own
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and not path.is_symlink() and path != MODELS and not path.name.startswith("test_")]
    assert len(files) > 20
    for path in files:
        text = re.sub(r"#.*", "", path.read_text())  # comments may name settings
        for key in own:
            assert not re.search(rf"\b{key}\b\"?\s*[:=]", text), f"{path} sets {key}"
        # Flags and variables that set what models.yaml sets.
        flags = [key for key in own | {"host", "port", "threads", "kernels"} if re.search(rf"serve\b[^\n]*--{key.replace('_', '-')}\b", text)]
        assert not flags, f"{path} gives {flags}"
        assert not re.search(r"\bXGEN_[A-Z_]+\s*[:=]", text), f"{path} sets variables that nothing reads"
    allowed = {"MODEL_CONFIG_PATH", "HF_HOME", "XDG_CACHE_HOME"}
    for name, (env, command, _) in {"image": run_by_image(), "compose": run_by_compose(), "systemd": run_by_systemd()}.items():
        assert set(env) <= allowed, name
        assert command[1:] == ["serve"], name
    assert not container([doc for doc in yaml.safe_load_all((DEPLOY / "k8s/base/deployment.yaml").read_text())]).get("env")


def seconds(text):
    amount, unit = re.fullmatch(r"(\d+)(ms|s|m|h|)", str(text)).groups()
    return int(amount) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "": 1}[unit]


def test_what_depends_on_a_setting_agrees_with_it(in_the_image):
    """Deployments must name the port and wait for the drain; both follow from models.yaml."""
    server = yaml.safe_load(in_the_image)["server"]
    pod = of_kind(list(yaml.safe_load_all((DEPLOY / "k8s/base/deployment.yaml").read_text())), "Deployment")["spec"]["template"]["spec"]
    graces = {"Compose": compose_service()["stop_grace_period"], "Kubernetes": pod["terminationGracePeriodSeconds"], "systemd": unit()["TimeoutStopSec"][0]}
    drain = seconds(server["drain_delay"]) + seconds(server["drain_timeout"])
    for name, grace in graces.items():
        assert seconds(grace) >= drain + 5, f"{name} kills before the drain ends"
    service = yaml.safe_load((DEPLOY / "k8s/base/service.yaml").read_text())
    pool = yaml.safe_load((DEPLOY / "k8s/components/inferencepool/inferencepool.yaml").read_text())
    ports = {"Compose": compose_service()["ports"][0].split(":")[-1], "Service": service["spec"]["ports"][0]["port"],
             "container": pod["containers"][0]["ports"][0]["containerPort"], "pool": pool["spec"]["targetPorts"][0]["number"],
             "image": re.search(r"^EXPOSE (\d+)$", (DEPLOY / "docker/Dockerfile").read_text(), re.M)[1]}
    assert {int(port) for port in ports.values()} == {server["port"]}, ports
    assert server["port"] == 8000


def test_one_version_everywhere():
    version = re.search(r"project\(xgen-model VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())[1]
    chart = yaml.safe_load((DEPLOY / "helm/xgen-model/Chart.yaml").read_text())
    pod = yaml.safe_load((DEPLOY / "k8s/base/deployment.yaml").read_text())["spec"]["template"]["spec"]
    assert compose_service()["image"] == pod["containers"][0]["image"] == f"xgen-model:{version}"
    assert chart["appVersion"] == version
    assert f"ARG VERSION={version}\n" in (DEPLOY / "docker/Dockerfile").read_text()


def in_order(value):
    """Without the order of lists, which is each kubectl's own."""
    if isinstance(value, dict):
        return {key: in_order(each) for key, each in value.items()}
    if isinstance(value, list):
        return sorted((in_order(each) for each in value), key=lambda each: json.dumps(each, sort_keys=True))
    return value


@pytest.mark.parametrize("folder", BASES)
def test_every_kubectl_renders_the_same(folder):
    rendered = [in_order(kustomize(DEPLOY / folder, program)) for program in kubectl()]
    assert all(each == rendered[0] for each in rendered)
    assert all(doc["kind"] == "Namespace" or doc["metadata"]["namespace"] == "xgen" for doc in rendered[0])


@pytest.mark.parametrize("folder", [*BASES[1:], "components", "helm"])
def test_manifests_fit_the_schemas_of_kubernetes(folder, tmp_path):
    validate = pytest.importorskip("kubernetes_validate")
    if folder == "helm":
        docs = helm({"cache": {"size": "20Gi"}, "keysSecret": "keys", "environmentSecret": "tokens",
                     "imagePullSecrets": [{"name": "registry"}], "nodeSelector": {"a": "b"}})
    else:
        docs = with_components(tmp_path, COMPONENTS) if folder == "components" else kustomize(DEPLOY / folder)
    known = [doc for doc in docs if doc["apiVersion"].partition("/")[0] in ("v1", "apps", "policy", "networking.k8s.io")]
    assert len(known) >= 5
    for doc in known:
        validate.validate(doc, validate.latest_version(), strict=True)


def test_components_add_what_their_operators_read(tmp_path):
    docs = with_components(tmp_path, COMPONENTS)
    labels = of_kind(docs, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert "replicas" not in of_kind(docs, "Deployment")["spec"], "an apply would undo the autoscaler"
    monitor, scaled, pool = of_kind(docs, "ServiceMonitor"), of_kind(docs, "ScaledObject"), of_kind(docs, "InferencePool")
    assert monitor["spec"]["selector"]["matchLabels"] == of_kind(docs, "Service")["metadata"]["labels"]
    assert monitor["spec"]["endpoints"][0]["port"] == of_kind(docs, "Service")["spec"]["ports"][0]["name"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == of_kind(docs, "Deployment")["metadata"]["name"]
    assert "vllm:num_requests_waiting{" in scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1" and set(pool["spec"]) == {"selector", "targetPorts", "endpointPickerRef"}
    assert pool["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert all(doc["metadata"]["namespace"] == "xgen" for doc in (monitor, scaled, pool))


def test_helm_and_kustomize_run_the_same_pod():
    mine, theirs = helm(), kustomize(DEPLOY / "k8s/base")
    assert of_kind(mine, "Deployment")["spec"] == of_kind(theirs, "Deployment")["spec"]
    for kind in ("NetworkPolicy", "PodDisruptionBudget"):
        assert of_kind(mine, kind)["spec"] == of_kind(theirs, kind)["spec"]
    assert of_kind(mine, "Service")["spec"]["ports"] == of_kind(theirs, "Service")["spec"]["ports"]
    own = helm({"models": "models: [{name: mine, source: 'builtin:xgen-demo'}]\n"})
    assert yaml.safe_load(of_kind(own, "ConfigMap")["data"]["models.yaml"])["models"][0]["name"] == "mine"


def test_pods_are_confined():
    pod = of_kind(kustomize(DEPLOY / "k8s/base"), "Deployment")["spec"]["template"]["spec"]
    it = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert it["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
    # memory.host is a share of the limit, so there must be one; less requested than that could be taken away.
    assert it["resources"]["requests"]["memory"] == it["resources"]["limits"]["memory"]
    user = re.search(r"^USER (\d+):(\d+)$", (DEPLOY / "docker/Dockerfile").read_text(), re.M)
    assert [int(user[1]), int(user[2])] == [pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]] and user[1] != "0"
    assert compose_service()["read_only"] and compose_service()["cap_drop"] == ["ALL"]


def test_probes_are_routes_of_the_program():
    it = of_kind(list(yaml.safe_load_all((DEPLOY / "k8s/base/deployment.yaml").read_text())), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    paths = [it[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert paths == ["/health/startup", "/health/live", "/health/ready"]
    assert re.search(r'^HEALTHCHECK .* CMD \["/usr/bin/xgen-model", "healthcheck"\]$', (DEPLOY / "docker/Dockerfile").read_text(), re.M)
    assert "healthcheck" not in compose_service()  # the image's is enough
    with Process("--config", MODELS) as server:
        for path in [*paths, "/metrics"]:
            assert server.get(path).status_code == 200


def test_the_callers_example_names_the_service():
    config = yaml.safe_load((DEPLOY / "config/config.yml").read_text())
    service = yaml.safe_load((DEPLOY / "k8s/base/service.yaml").read_text())
    assert config == {"model_service_url": f"http://{service['metadata']['name']}.xgen.svc.cluster.local:{service['spec']['ports'][0]['port']}"}


def test_examples_in_models_yaml_are_valid(tmp_path):
    text = MODELS.read_text()
    examples = re.sub(r"^#(  .*)$", r"\1", text, flags=re.M).replace("/models/llama-3.2-1b-q8_0.gguf", "builtin:xgen-demo").replace("8192", "1024")
    assert examples.count("- name:") == 4
    (tmp_path / "models.yaml").write_text(examples)
    result = run("check", "--config", tmp_path / "models.yaml", env={"HF_HOME": str(tmp_path)})
    assert result.returncode == 0, result.stderr


def test_the_unit_is_one_that_systemd_takes(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    text = (DEPLOY / "systemd/xgen-model.service").read_text().replace("/usr/bin/xgen-model", shutil.which("true"))
    (tmp_path / "xgen-model.service").write_text(text)
    result = subprocess.run(["systemd-analyze", "verify", tmp_path / "xgen-model.service"], capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result.stderr


def test_a_mounted_config_map_is_taken_up(tmp_path):
    """Kubernetes swaps a link to a new folder when a ConfigMap changes."""
    text = MODELS.read_text()

    def write(version, aliases):
        (tmp_path / version).mkdir()
        (tmp_path / version / "models.yaml").write_text(text.replace("aliases: [default]", f"aliases: [{aliases}]"))
        (tmp_path / "..new").symlink_to(version)
        (tmp_path / "..new").rename(tmp_path / "..data")

    write("..1", "before")
    (tmp_path / "models.yaml").symlink_to("..data/models.yaml")
    with Process("--config", tmp_path / "models.yaml") as server:
        write("..2", "after")
        for _ in range(500):
            if "after" in server.get("/v1/models").text:
                return
        raise AssertionError(server.output())


def test_check_prints_the_effective_configuration(tmp_path):
    secret = "Bearer very-secret"
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({
        "server": {"port": 9001, "max_body": "1MiB"}, "memory": {"host": "62.5%"}, "defaults": {"max_num_seqs": 8},
        "models": [{"name": "true", "source": "builtin:xgen-demo", "aliases": ["a: b".replace(" ", "")], "kv_cache": "8MiB"},
                   {"name": "far", "engine": "openai", "urls": ["http://127.0.0.1:9/v1"], "headers": {"Authorization": secret},
                    "fallbacks": ["true"]}]}))
    command = ("check", "--print-effective", "--config", tmp_path / "models.yaml")
    result = run(*command, "--max-num-seqs", "4", "--log-level", "warn")
    assert result.returncode == 0, result.stderr
    assert secret not in result.stdout
    printed = yaml.safe_load(result.stdout)
    assert printed["server"]["port"] == 9001 and printed["memory"]["host"] == "62.5%" and printed["log"]["level"] == "warn"
    assert [model["name"] for model in printed["models"]] == ["true", "far"]
    assert printed["models"][0]["max_num_seqs"] == 4 and printed["models"][1]["fallbacks"] == ["true"]
    assert printed["models"][1]["headers"] == {"Authorization": "hidden"}
    for section, keys in printed.items():
        if section != "models":
            assert list(keys) == sorted(keys)
    # It is a configuration, and the same one, from wherever it is read.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/printed.yaml").write_text(result.stdout)
    again = run("check", "--print-effective", "--config", tmp_path / "elsewhere/printed.yaml")
    assert again.stdout == result.stdout, again.stderr
    assert run(*command, env=SERVICE_LINKS).stdout == run(*command).stdout
    (tmp_path / "models.yaml").write_text("server: {port: 1}\nmodles: []\n")
    broken = run(*command)
    assert broken.returncode == 2 and broken.stdout == "" and "modles: unknown key" in broken.stderr


def test_healthcheck(tmp_path):
    config = tmp_path / "models.yaml"
    port = free_port()
    config.write_text(f"server: {{host: 0.0.0.0, port: {port}, drain_delay: 1s}}\n")
    down = run("healthcheck", "--config", config)
    assert down.returncode == 1 and f"127.0.0.1:{port}" in down.stderr
    with Process("--config", config, port=port) as server:
        for args in ([], ["live"], ["startup"]):
            assert run("healthcheck", *args, "--config", config).returncode == 0
        assert run("healthcheck", env={"MODEL_CONFIG_PATH": str(config), **SERVICE_LINKS}).returncode == 0
        assert run("healthcheck", "--url", server.url + "/health/ready").returncode == 0
        missing = run("healthcheck", "--url", server.url + "/nothing")
        assert missing.returncode == 1 and "/nothing: 404" in missing.stderr
        # A fault that a reload refuses does not make the server ill.
        config.write_text(f"server: {{host: 127.0.0.1, port: {port}, nonsense: 1}}\nmodels: [{{}}]\n")
        assert run("healthcheck", "--config", config).returncode == 0
        server.signal(15)
        for _ in range(100):
            ending = run("healthcheck", "--config", config)
            if ending.returncode == 1:
                break
        assert ending.returncode == 1 and "/health/ready: 503" in ending.stderr
        assert run("healthcheck", "live", "--config", config).returncode == 0
        assert server.wait() == 0
    config.write_text("server: {port: 0}")
    unknown = run("healthcheck", "--config", config)
    assert unknown.returncode == 1 and "--url" in unknown.stderr
    config.write_text("server: {port: many}")
    assert run("healthcheck", "--config", config).returncode == 1
    assert run("healthcheck", "alive").returncode == 2
    assert run("healthcheck", "--url", "localhost:8000").returncode == 1
