"""What lies in deploy/: that Docker, Kubernetes, Helm and systemd run the program with one and the same configuration."""
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import ssl
import subprocess

import httpx
import pytest
import yaml

from pki import Authority
from process import BUILD, PATIENCE, ROOT, Process, free_port, run

DEPLOY = ROOT / "deploy"
MODELS = DEPLOY / "config/models.yaml"
BASES = ["config", "k8s/base", "k8s/overlays/cpu", "k8s/overlays/k3s"]
COMPONENTS = ["servicemonitor", "keda", "inferencepool"]
GUARD = ["tls", "keys", "admin-port"]
# What Kubernetes puts into every pod beside a Service named xgen-model.
SERVICE_LINKS = {"XGEN_MODEL_PORT": "tcp://10.43.0.7:8000", "XGEN_MODEL_PORT_8000_TCP_ADDR": "10.43.0.7",
                 "XGEN_MODEL_SERVICE_HOST": "10.43.0.7", "XGEN_MODEL_SERVICE_PORT": "8000"}


def kubectl(components=False):
    """Every kubectl there is: the one found, and those that XGEN_KUBECTL names (an old one, say); or those that know components."""
    found = [shutil.which("kubectl"), *os.environ.get("XGEN_KUBECTL", "").split(":")]
    found = [program for program in found if program]
    if not found:
        pytest.skip("kubectl is not installed")
    if components:
        version = lambda program: subprocess.run([program, "version", "--client", "--output=json"], capture_output=True, text=True).stdout
        found = [program for program in found if '"kustomizeVersion"' in version(program)]
        if not found:
            pytest.skip("no kubectl that knows components is installed")
    return found


def kustomize(folder, program=None):
    result = subprocess.run([program or kubectl()[0], "kustomize", str(folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def page(name="deployment.md"):
    return (ROOT / "docs" / name).read_text()


def examples(beginning, name="deployment.md"):
    """The YAML blocks of a page that begin so."""
    found = [block for block in re.findall(r"^```yaml\n(.*?)^```$", page(name), re.M | re.S) if block.startswith(beginning)]
    assert found, beginning
    return found


def overlay(folder, text):
    """An operator's own overlay, in a folder beside which the checkout is `xgen-model`, as every kubectl that can renders it."""
    folder.mkdir(exist_ok=True)
    (folder / "kustomization.yaml").write_text(text.replace("../xgen-model", os.path.relpath(ROOT, folder.resolve())))
    (folder / "models.yaml").write_text("models: [{name: mine, source: 'builtin:xgen-demo'}]\n")
    rendered = [kustomize(folder, program) for program in kubectl(components=True)]
    assert all(in_order(each) == in_order(rendered[0]) for each in rendered)
    return rendered[0]


def with_components(folder, names):
    return overlay(folder, yaml.safe_dump({"resources": ["../xgen-model/deploy/k8s/base"],
                                           "components": [f"../xgen-model/deploy/k8s/components/{name}" for name in names]}))


def helm(values=None):
    sdk = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
    with sdk.Chart.load(str(DEPLOY / "helm/xgen-model")) as chart:
        files = chart.render(values or {}, name="xgen-model", namespace="xgen")
    return [doc for name, text in files.items() if name.endswith(".yaml") for doc in yaml.safe_load_all(text) if doc]


def of_kind(docs, kind, name=None):
    found = [doc for doc in docs if doc["kind"] == kind and name in (None, doc["metadata"]["name"])]
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


def test_the_images_configuration_says_where_models_are_kept(in_the_image):
    """So that the comparisons below see the variables, which are not settings, as well."""
    mount = [volume.split(":")[1] for volume in compose_service()["volumes"] if volume.startswith("cache:")][0]
    assert re.search(rf"^# hf:// models are kept in {mount}/", in_the_image) and yaml.safe_load(in_the_image)["sources"]["cache"] == mount


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
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and not path.is_symlink() and path != MODELS and not path.name.startswith("test_")
             and path.parent != DEPLOY / "python"]  # a client
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
    graces = {"Compose": compose_service()["stop_grace_period"], "Kubernetes": pod["terminationGracePeriodSeconds"], "systemd": unit()["TimeoutStopSec"][0],
              "Helm": yaml.safe_load((DEPLOY / "helm/xgen-model/values.yaml").read_text())["terminationGracePeriodSeconds"]}
    for name in ("deployment.md", "air-gapped.md"):
        graces[name] = re.search(r"docker run -d [^\n]*--restart unless-stopped --stop-timeout (\d+)", page(name))[1]
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


@pytest.mark.parametrize("name", ["deployment.md", "several-models.md"])
def test_pages_name_the_sections_that_need_a_restart(name):
    sections = re.findall(r'compare\("(\w+)"', (ROOT / "src/live_config.cpp").read_text())
    assert len(sections) >= 5
    sentence = re.search(r"Changes of (.*?) need a restart", page(name))[1]
    assert re.findall(r"`(\w+)`", sentence) == sections


def test_pages_say_who_may_call_operators_routes():
    """`curl localhost:8000/admin/…` as it stands works without keys and on the same machine alone, and not through a container's published port."""
    names = [path.name for path in (ROOT / "docs").glob("*.md") if re.search(r"^    curl .*localhost:8000/admin/", path.read_text(), re.M)]
    assert "several-models.md" in names
    for name in names:
        assert "scope `admin`" in page(name) and ("port-forward" in page(name) or "(several-models.md#states)" in page(name)), name


def test_the_key_reaches_the_python_example():
    """migration.md's program reads KEY from the environment."""
    assert 'os.environ["KEY"]' in page("migration.md") and re.search(r"^ +export KEY=", page("migration.md"), re.M)


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
    if len(kubectl()) == 1:
        pytest.skip("there is one kubectl alone: XGEN_KUBECTL names others")
    rendered = [in_order(kustomize(DEPLOY / folder, program)) for program in kubectl()]
    assert all(each == rendered[0] for each in rendered)


def assert_all_in(namespace, docs):
    for doc in docs:
        assert doc["metadata"].get("namespace") == (None if doc["kind"] == "Namespace" else namespace), doc


# Values of every kind, so that each line of the templates is rendered.
ALL_VALUES = {"cache": {"size": "20Gi", "storageClass": "fast"}, "keysSecret": "keys", "environmentSecret": "tokens", "imagePullSecrets": [{"name": "registry"}],
              "nodeSelector": {"a": "b"}, "tolerations": [{"key": "a", "operator": "Exists"}], "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
              "affinity": {"nodeAffinity": {}}, "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
              "extraVolumes": [{"name": "models", "hostPath": {"path": "/srv/models"}}], "extraVolumeMounts": [{"name": "models", "mountPath": "/models"}],
              "tls": {"enabled": True, "secret": "tls"}, "adminPort": 8001, "service": {"type": "LoadBalancer"}, "terminationGracePeriodSeconds": 600,
              "networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"port": 9000}]}]}}


@pytest.mark.parametrize("folder", [*BASES[1:], "components", "helm"])
def test_manifests_fit_the_schemas_of_kubernetes(folder, tmp_path):
    validate = pytest.importorskip("kubernetes_validate")
    if folder == "helm":
        docs = helm() + helm(ALL_VALUES) + helm({"tls": {"enabled": True, "clientCertificates": True}, "strategy": {"type": "Recreate"}})
    else:
        docs = with_components(tmp_path, COMPONENTS + GUARD) if folder == "components" else kustomize(DEPLOY / folder)
    known = [doc for doc in docs if doc["apiVersion"].partition("/")[0] in ("v1", "apps", "policy", "networking.k8s.io")]
    assert len(known) >= 5
    for doc in known:
        validate.validate(doc, validate.latest_version(), strict=True)


@pytest.mark.parametrize("folder", BASES)
def test_everything_is_in_the_namespace(folder):
    assert_all_in("xgen", kustomize(DEPLOY / folder))


def test_the_pages_overlays_render(tmp_path):
    for number, text in enumerate(examples("# kustomization.yaml\n")):
        docs = overlay(tmp_path / str(number), text)
        assert_all_in("xgen", docs)
        assert "mine" in of_kind(docs, "ConfigMap")["data"]["models.yaml"]
        assert of_kind(docs, "ConfigMap")["metadata"]["name"] == "xgen-model-config", "another name restarts every pod for a changed model"
        assert of_kind(docs, "ServiceMonitor")
        assert of_kind(docs, "Deployment")["spec"]["replicas"] == 2
        images = yaml.safe_load(text).get("images", [{"newName": "xgen-model", "newTag": "0.1.0"}])
        assert container(docs)["image"] == f"{images[0]['newName']}:{images[0]['newTag']}"


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
    assert_all_in("xgen", docs)
    helms = helm({"serviceMonitor": {"enabled": True}, "keda": {"enabled": True}, "inferencePool": {"enabled": True}})
    for kind in ("Deployment", "ServiceMonitor", "ScaledObject", "InferencePool"):
        assert of_kind(helms, kind)["spec"] == of_kind(docs, kind)["spec"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """The page's models.yaml, overlay and values of a server with TLS, keys and a port for operators."""
    server = yaml.safe_load(examples("server:\n  tls_cert_file:")[0])["server"]
    by_overlay = [text for text in examples("# kustomization.yaml\n") if "components/tls" in text]
    by_helm = [yaml.safe_load(text) for text in examples("# values.yaml\n")]
    assert len(by_overlay) == len(by_helm) == 1
    # What the overlay `cpu` sets beside that.
    cpu = yaml.safe_load((DEPLOY / "k8s/overlays/cpu/deployment.yaml").read_text())["spec"]
    pod = cpu["template"]["spec"]
    values = {**by_helm[0], "replicas": cpu["replicas"], "resources": pod["containers"][0]["resources"], "topologySpreadConstraints": pod["topologySpreadConstraints"]}
    return server, overlay(tmp_path_factory.mktemp("guarded"), by_overlay[0]), helm(values)


def test_a_guarded_server_is_asked_as_it_wants(guarded, tmp_path):
    """The server with the page's settings answers the probes and Prometheus as the page's manifests ask it, and not as those without."""
    server, docs, _ = guarded
    authority, key = Authority(tmp_path), "sk-metrics"
    pem, secret, _ = authority.issue("server", names=["localhost", of_kind(docs, "ServiceMonitor")["spec"]["endpoints"][0]["tlsConfig"]["serverName"]])
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"name": "prometheus", "sha256": hashlib.sha256(key.encode()).hexdigest(), "scopes": ["metrics"]}]}))
    mounts = {mount["name"]: mount["mountPath"] for mount in container(docs)["volumeMounts"]}
    assert server["tls_cert_file"] == f"{mounts['tls']}/tls.crt" and server["tls_key_file"] == f"{mounts['tls']}/tls.key"
    assert server["api_keys_file"] == f"{mounts['keys']}/keys.yaml"
    ports = {port["name"]: port["containerPort"] for port in container(docs)["ports"]}
    assert ports == {"http": 8000, "admin": server["admin_port"]}
    here = {"http": free_port(), "admin": free_port()}
    config = tmp_path / "models.yaml"
    config.write_text(yaml.safe_dump({"server": {**server, "tls_cert_file": str(pem), "tls_key_file": str(secret), "api_keys_file": str(keys), "admin_port": here["admin"]},
                                      "models": [{"name": "xgen-demo", "source": "builtin:xgen-demo"}]}))
    endpoint = of_kind(docs, "ServiceMonitor")["spec"]["endpoints"][0]
    ask = lambda scheme, port, path, **kwargs: httpx.get(f"{scheme}://localhost:{here[port]}{path}", timeout=20 * PATIENCE, **kwargs).status_code
    anyone = authority.context()
    anyone.check_hostname = False  # it is asked by its address
    with Process("--config", config, port=here["http"], tls=anyone):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asks = container(docs)[probe]["httpGet"]
            assert ask(asks["scheme"].lower(), asks["port"], asks["path"], verify=False) == 200  # a kubelet does not look at the certificate
            assert ask("http", asks["port"], asks["path"]) == 400
        trusted = ssl.create_default_context(cafile=str(pem))  # tls.crt, as tlsConfig has it
        trusted.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as Go does
        bearer = {"Authorization": f"Bearer {key}"}
        assert endpoint["tlsConfig"] == {"ca": {"secret": {"name": "xgen-model-tls", "key": "tls.crt"}}, "serverName": "xgen-model.xgen.svc.cluster.local"}
        assert endpoint["authorization"] == {"credentials": {"name": "xgen-model-metrics-key", "key": "key"}}
        assert ask(endpoint["scheme"], endpoint["port"], endpoint["path"], verify=trusted, headers=bearer) == 200
        assert ask("https", "admin", "/metrics", verify=False) == 401
        assert ask("https", "http", "/metrics", verify=False, headers=bearer) == 404


def test_a_guarded_servers_ports_are_reached_by_those_who_may(guarded):
    _, docs, by_helm = guarded
    endpoint = of_kind(docs, "ServiceMonitor")["spec"]["endpoints"][0]
    services = {port["name"]: (doc["metadata"]["name"], port) for doc in docs if doc["kind"] == "Service" for port in doc["spec"]["ports"]}
    assert services[endpoint["port"]] == ("xgen-model-admin", {"name": "admin", "port": 8001, "targetPort": "admin"})
    assert of_kind(docs, "Service", "xgen-model")["spec"]["ports"] == [{"name": "http", "port": 8000, "targetPort": "http"}], "a load balancer would open it, too"
    assert of_kind(docs, "Service", "xgen-model-admin")["metadata"]["labels"].items() >= of_kind(docs, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    ingress = of_kind(docs, "NetworkPolicy")["spec"]["ingress"]
    assert ingress[1] == {"ports": [{"port": "admin", "protocol": "TCP"}], "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]}
    # The Secrets are those that the page has made.
    volumes = of_kind(docs, "Deployment")["spec"]["template"]["spec"]["volumes"]
    secrets = {volume["secret"]["secretName"] for volume in volumes if "secret" in volume} | {endpoint["authorization"]["credentials"]["name"]}
    assert secrets == set(re.findall(r"create secret (?:tls|generic) (\S+)", page()))
    # By Helm it is the same.
    for kind, name in (("Deployment", None), ("NetworkPolicy", None), ("ServiceMonitor", None), ("Service", "xgen-model-admin")):
        assert in_order(of_kind(by_helm, kind, name)["spec"]) == in_order(of_kind(docs, kind, name)["spec"]), kind


def test_who_asks_for_client_certificates_is_probed_from_inside():
    it = container(helm({"tls": {"enabled": True, "secret": "tls", "clientCertificates": True}}))
    for probe, what in (("startupProbe", "startup"), ("livenessProbe", "live"), ("readinessProbe", "ready")):
        assert it[probe]["exec"] == {"command": ["/usr/bin/xgen-model", "healthcheck", what]} and "httpGet" not in it[probe]


def test_a_cache_of_one_node_is_not_asked_for_twice():
    """A claim that one node can mount holds up a new pod on another for as long as the old one runs."""
    strategy = lambda values: of_kind(helm(values), "Deployment")["spec"]["strategy"]
    surge = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert strategy({"cache": {"size": "20Gi"}}) == {"type": "Recreate"}
    assert strategy({}) == strategy({"cache": {"size": "20Gi", "accessMode": "ReadWriteMany"}}) == strategy({"cache": {"claim": "mine"}}) == surge
    assert strategy({"strategy": {"type": "Recreate"}}) == {"type": "Recreate"}


def test_an_overlay_may_let_the_old_pod_go_first(tmp_path):
    strategy = re.search(r"`strategy: (\{.*?\})`", page())[1]
    docs = overlay(tmp_path, f"""
resources: [../xgen-model/deploy/k8s/overlays/k3s]
patches:
  - patch: |
      apiVersion: apps/v1
      kind: Deployment
      metadata: {{name: xgen-model, namespace: xgen}}
      spec: {{strategy: {strategy}}}
""")
    assert of_kind(docs, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_the_chart_says_what_an_overlay_can_say():
    docs = helm(ALL_VALUES)
    pod, it = of_kind(docs, "Deployment")["spec"]["template"]["spec"], container(docs)
    assert pod["terminationGracePeriodSeconds"] == 600
    assert pod["topologySpreadConstraints"] == ALL_VALUES["topologySpreadConstraints"]
    assert ALL_VALUES["extraVolumes"][0] in pod["volumes"] and ALL_VALUES["extraVolumeMounts"][0] in it["volumeMounts"]
    assert it["env"] == ALL_VALUES["env"]


def test_the_network_policy_lets_ordinary_traffic_through():
    everywhere = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}  # NodeLocal DNSCache is at 169.254.20.10, of no pod
    from_pods = [{"from": [{"namespaceSelector": {}}], "ports": [{"port": "http", "protocol": "TCP"}]}]
    from_all = [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    policy = lambda docs: of_kind(docs, "NetworkPolicy")["spec"]
    for folder in BASES[1:]:
        assert everywhere in policy(kustomize(DEPLOY / folder))["egress"]
    assert policy(kustomize(DEPLOY / "k8s/base"))["ingress"] == policy(helm())["ingress"] == from_pods
    # A load balancer's clients are no pods.
    assert policy(kustomize(DEPLOY / "k8s/overlays/k3s"))["ingress"] == policy(helm({"service": {"type": "LoadBalancer"}}))["ingress"] == from_all
    office = [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
    assert policy(helm({"service": {"type": "NodePort"}, "networkPolicy": {"from": office}}))["ingress"] == [{**from_all[0], "from": office}]
    own = ALL_VALUES["networkPolicy"]["egress"][0]
    assert policy(helm(ALL_VALUES))["egress"] == policy(helm())["egress"] + [own]
    assert not [doc for doc in helm({"networkPolicy": {"enabled": False}}) if doc["kind"] == "NetworkPolicy"]


def test_models_are_unpacked_into_the_claim_that_is_mounted():
    unpack = yaml.safe_load(examples("# unpack.yaml", "air-gapped.md")[0])
    docs = kustomize(DEPLOY / "k8s/overlays/k3s")
    pod = of_kind(docs, "Deployment")["spec"]["template"]["spec"]
    claim = unpack["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == of_kind(docs, "PersistentVolumeClaim")["metadata"]["name"] == of_kind(helm({"cache": {"size": "1Gi"}}), "PersistentVolumeClaim")["metadata"]["name"]
    assert claim in [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert unpack["spec"]["securityContext"].items() <= pod["securityContext"].items() and unpack["metadata"]["namespace"] == "xgen"
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(unpack, validate.latest_version(), strict=True)


def test_pods_go_where_the_image_runs():
    for docs in [helm(), *(kustomize(DEPLOY / folder) for folder in BASES[1:])]:
        assert of_kind(docs, "Deployment")["spec"]["template"]["spec"]["nodeSelector"] == {"kubernetes.io/arch": "amd64"}


def test_helm_and_kustomize_run_the_same_pod():
    mine, theirs = helm(), kustomize(DEPLOY / "k8s/base")
    assert of_kind(mine, "Deployment")["spec"] == of_kind(theirs, "Deployment")["spec"]
    for kind in ("NetworkPolicy", "PodDisruptionBudget"):
        assert of_kind(mine, kind)["spec"] == of_kind(theirs, kind)["spec"]
    assert of_kind(mine, "Service")["spec"]["ports"] == of_kind(theirs, "Service")["spec"]["ports"]
    own = helm({"models": "models: [{name: mine, source: 'builtin:xgen-demo'}]\n"})
    assert yaml.safe_load(of_kind(own, "ConfigMap")["data"]["models.yaml"])["models"][0]["name"] == "mine"


def test_debians_docker_takes_the_files():
    """Debian 12 has Docker 20.10, whose builder knows no BuildKit, and Compose 1.29."""
    assert not re.search(r"^(RUN|COPY|ADD)\b.*--(mount|network|security|link|parents|exclude|checksum)\b|<<", (DEPLOY / "docker/Dockerfile").read_text(), re.M)
    assert set(yaml.safe_load((DEPLOY / "docker/services.docker.yaml").read_text())) == {"services", "volumes"}
    if shutil.which("docker-compose"):
        result = subprocess.run(["docker-compose", "-p", "xgen", "-f", DEPLOY / "docker/services.docker.yaml", "config"], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert yaml.safe_load(result.stdout)["services"]["xgen-model"]["stop_grace_period"] == compose_service()["stop_grace_period"]


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


def test_the_service_starts_after_what_it_reads_is_there():
    assert {"network-online.target", "remote-fs.target"} <= set(unit()["After"][0].split())


def test_the_package_has_what_its_pages_lead_to(tmp_path):
    cache = BUILD / "CMakeCache.txt"
    if shutil.which("cmake") is None or not cache.exists() or f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
        pytest.skip("there is no build folder of this checkout to install from")
    subprocess.run(["cmake", "--install", BUILD, "--prefix", "/usr"], env=dict(os.environ, DESTDIR=str(tmp_path)), check=True, capture_output=True)
    docs = tmp_path / "usr/share/doc/xgen-model"
    pages = list(docs.rglob("*.md"))
    assert len(pages) > 30
    dead = []
    for each in pages:
        text = re.sub(r"^```.*?^```$", "", each.read_text(), flags=re.M | re.S)
        dead += [f"{each.name}: {link}" for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link and not (each.parent / link).exists()]
    assert not dead
    # Manifests render from there, too, and links lead to what is there.
    assert not [path for path in docs.rglob("*") if path.is_symlink() and not path.exists()]
    for folder in BASES:
        assert in_order(kustomize(docs / "deploy" / folder)) == in_order(kustomize(DEPLOY / folder))


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
    hub = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": "", "HUGGINGFACE_HUB_CACHE": ""}
    result = run(*command, "--max-num-seqs", "4", "--log-level", "warn", env=hub)
    assert result.returncode == 0, result.stderr
    assert secret not in result.stdout
    # Where models of the Hub go no key says.
    assert result.stdout.startswith(f"# hf:// models are kept in {tmp_path}/hf/hub (HF_HOME, HF_HUB_CACHE).\n")
    assert "HF_HUB_OFFLINE" in run(*command, env={"HF_HUB_OFFLINE": "1"}).stdout
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
    again = run("check", "--print-effective", "--config", tmp_path / "elsewhere/printed.yaml", env=hub)
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
        for args in ([], ["live"]):  # an address alone is asked for the probe
            told = run("healthcheck", *args, "--url", server.url)
            assert told.returncode == 0 and "routes" not in told.stdout
        twice = run("healthcheck", "live", "--url", server.url + "/health/ready")
        assert twice.returncode == 2 and "'live'" in twice.stderr
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
        assert run("healthcheck", "--url", server.url).returncode == 1
        assert run("healthcheck", "live", "--config", config).returncode == 0
        assert server.wait() == 0
    config.write_text("server: {port: 0}")
    unknown = run("healthcheck", "--config", config)
    assert unknown.returncode == 1 and "--url" in unknown.stderr
    config.write_text("server: {port: many}")
    assert run("healthcheck", "--config", config).returncode == 1
    assert run("healthcheck", "alive").returncode == 2
    assert run("healthcheck", "--url", "localhost:8000").returncode == 1
