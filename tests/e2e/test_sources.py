"""Models from the Hub and from S3: against servers on this machine that speak their protocols and misbehave on demand;
huggingface_hub, botocore and moto judge what is written and said."""
import concurrent.futures
import datetime
import hashlib
import ipaddress
import json
import os
import pathlib
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hub import S3, Cdn, Hub, git_sha1
from process import PATIENCE, PROGRAM, ROOT, Process, run

DEMO = {path.name: path.read_bytes() for path in (ROOT / "models/demo").iterdir()}
NOT_NEEDED = {"README.md": b"# demo", "pytorch_model.bin": b"\x80" * 1000, "onnx/model.onnx": b"onnx", "image.png": b"png"}
BIG = random.Random(1).randbytes(40 << 20)


@pytest.fixture
def cdn():
    with Cdn() as one:
        yield one


@pytest.fixture
def hub(cdn):
    with Hub(cdn) as one:
        one.commit = one.add("org/demo", {**DEMO, **NOT_NEEDED})
        yield one


@pytest.fixture
def env(hub, tmp_path):
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "xdg")}


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "hf/hub"


def settings(tmp_path, **sources):
    path = tmp_path / "models.yaml"
    path.write_text(json.dumps({"sources": sources}))
    return path


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in pathlib.Path(folder).rglob("*") if not p.is_dir())


def python(code, env, *args):
    """Runs huggingface_hub as its users do."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=60 * PATIENCE,
                          env={**os.environ, **env, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                               "HF_HUB_DISABLE_TELEMETRY": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def eventually(condition, seconds=10):
    end = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def write(path, models, **sections):
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({**sections, "models": models}))
    fresh.rename(path)
    return path


def states(server):
    return {model["name"]: model for model in server.get("/admin/models").json()["models"]}


def say(server, model):
    return server.post("/v1/completions", {"model": model, "prompt": "hi", "max_tokens": 3, "temperature": 0})


def certificates(folder):
    """An authority of its own (its file), and a server's context with a certificate of it for 127.0.0.1."""
    now = datetime.datetime.now(datetime.timezone.utc)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("authority", "server")]

    def signed(which, extension):
        return (x509.CertificateBuilder().subject_name(names[which]).issuer_name(names[0]).public_key(keys[which].public_key())
                .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
                .not_valid_after(now + datetime.timedelta(days=1)).add_extension(extension, critical=True)
                .sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    authority, server = folder / "authority.pem", folder / "server.pem"
    authority.write_bytes(signed(0, x509.BasicConstraints(ca=True, path_length=None)))
    server.write_bytes(signed(1, x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])) +
                       keys[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                             serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server)
    return authority, context


# --- One cache with Python.

def test_python_takes_what_was_pulled(hub, env, cache):
    pulled = run("pull", "hf://org/demo", env=env)
    assert pulled.returncode == 0, pulled.stderr
    snapshot = cache / "models--org--demo/snapshots" / hub.commit
    assert str(snapshot) in pulled.stdout
    assert files_below(snapshot) == sorted(DEMO)
    assert {name: (snapshot / name).read_bytes() for name in DEMO} == DEMO
    assert {os.readlink(snapshot / name) for name in DEMO} == {
        "../../blobs/" + (git_sha1(data) if len(data) < hub.lfs_from else hashlib.sha256(data).hexdigest())
        for data in DEMO.values()}

    before = len(hub.requests)
    assert python("import huggingface_hub as h; print(h.snapshot_download('org/demo', local_files_only=True))", env) == str(snapshot)
    assert python("import huggingface_hub as h; print(h.hf_hub_download('org/demo', 'config.json', local_files_only=True))",
                  env) == str(snapshot / "config.json")
    scan = python("import huggingface_hub as h; i = h.scan_cache_dir(); r, = i.repos; "
                  "print(i.warnings, r.repo_id, *r.refs, r.nb_files, len(i.incomplete_files))", env)
    assert scan == f"[] org/demo main {len(DEMO)} 0"
    assert len(hub.requests) == before
    # Online, too: it looks, and finds that nothing is to be done.
    assert python("import huggingface_hub as h; print(h.snapshot_download('org/demo', allow_patterns=['*.json', '*.safetensors']))",
                  env) == str(snapshot)
    assert not [r for r in hub.requests[before:] if "/resolve/" in r[1] and r[0] == "GET"]


def test_downloads_over_tls(env, cache, tmp_path):
    authority, context = certificates(tmp_path)
    with Cdn(context) as cdn, Hub(cdn, tls=context) as hub:
        commit = hub.add("org/demo", DEMO)
        env = {**env, "HF_ENDPOINT": hub.url}
        stranger = run("pull", "hf://org/demo", env=env)
        assert stranger.returncode == 1 and "certificate" in stranger.stderr, stranger.stderr
        assert not hub.requests and not cdn.requests
        pulled = run("pull", "hf://org/demo", env={**env, "SSL_CERT_FILE": str(authority)})
        assert pulled.returncode == 0, pulled.stderr
        snapshot = cache / "models--org--demo/snapshots" / commit
        assert {name: (snapshot / name).read_bytes() for name in DEMO} == DEMO
        assert cdn.asked("GET", "signature")


@pytest.mark.parametrize("revision", ["main", "feature/x", "refs/pr/1"])
def test_what_python_downloaded_is_served_without_a_download(hub, env, revision):
    hub.add("org/demo", {**DEMO, **NOT_NEEDED, "extra.txt": revision.encode()}, revision)
    python("import huggingface_hub as h, sys; h.snapshot_download('org/demo', revision=sys.argv[1])", env, revision)
    before = len(hub.requests)
    source = "hf://org/demo@" + (revision if revision.startswith("refs/") else revision.replace("/", "%2F"))
    with Process(source, "--name", "m", env=env) as server:
        assert say(server, "m").status_code == 200
    assert len(hub.requests) == before
    assert run("check", source, env={**env, "HF_HUB_OFFLINE": "1"}).returncode == 0


def test_what_python_downloaded_in_part_is_completed(hub, env, cache):
    python("import huggingface_hub as h; h.snapshot_download('org/demo', allow_patterns=['config.json', 'model.safetensors'])", env)
    offline = run("check", "hf://org/demo", env={**env, "HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 2 and "HF_HUB_OFFLINE is set" in offline.stderr and "not in the cache" in offline.stderr
    with Process("hf://org/demo", env=env) as server:
        assert say(server, "demo").status_code == 200
    assert len(hub.asked("GET", "/resolve/.*/tokenizer.json")) == 1
    assert not [r for r in hub.asked("GET", "/resolve/.*/model.safetensors") if "xgen" in r[2].get("User-Agent", "")]


def test_a_new_commit_is_pulled_and_taken_up_by_a_reload(hub, env, tmp_path):
    path = write(tmp_path / "models.yaml", [{"name": "m", "source": "hf://org/demo"}])
    with Process("--config", path, env=env) as server:
        loads = lambda: server.get("/metrics").text
        assert say(server, "m").status_code == 200
        # What was downloaded because it was not there is no change.
        assert server.post("/admin/reload", {}).status_code == 200
        assert "model ready" in server.output() and server.output().count("model ready") == 1
        commit = hub.add("org/demo", {**DEMO, "generation_config.json": b"{}"})
        pulled = run("pull", "--config", path, env=env)
        assert pulled.returncode == 0 and commit in pulled.stdout, pulled.stderr
        assert len(hub.asked("GET", "/resolve/.*/model.safetensors")) == 1
        assert server.post("/admin/reload", {}).status_code == 200
        eventually(lambda: server.output().count("model ready") == 2)
        assert say(server, "m").status_code == 200


# --- Serving.

def test_serving_downloads_what_is_missing_while_others_serve(hub, cdn, env, tmp_path):
    cdn.faults.rate = 150_000
    hub.lfs_from = 1 << 20
    models = [{"name": "here", "source": "builtin:xgen-demo"},
              {"name": "late", "source": "hf://org/demo", "load": "on_demand"}]
    with Process("--config", write(tmp_path / "models.yaml", models, sources={"connections": 1}), env=env) as server:
        assert states(server)["late"]["state"] == "unloaded" and not hub.requests
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(say, server, "late")
            eventually(lambda: states(server)["late"]["progress"] > 0.05)
            late = states(server)["late"]
            assert late["state"] == "loading" and "downloading model.safetensors: " in late["detail"]
            assert say(server, "here").status_code == 200
            first = late["progress"]
            eventually(lambda: states(server)["late"]["progress"] > first)
            # An operator's word ends the download at once, and what has come is kept.
            begin = time.monotonic()
            assert server.post("/admin/unload", {"model": "late"}).json()["state"] == "unloaded"
            assert time.monotonic() - begin < 2 * PATIENCE
            asked = len(cdn.requests)
            cdn.faults.rate = None
            assert server.post("/admin/load", {"model": "late"}).json()["state"] == "ready"
            assert waiting.result().status_code == 503 and "operator" in waiting.result().text
        assert cdn.requests[asked][2]["Range"].startswith("bytes=") and not cdn.requests[asked][2]["Range"].startswith("bytes=0-")
        assert say(server, "late").json()["choices"] == say(server, "here").json()["choices"]


def test_a_request_waits_for_a_load_as_long_as_it_may(hub, cdn, env, tmp_path):
    cdn.faults.rate = 300_000
    hub.lfs_from = 1 << 20
    models = [{"name": "late", "source": "hf://org/demo", "load": "on_demand"}]
    path = write(tmp_path / "models.yaml", models, server={"request_timeout": "1s"}, sources={"connections": 1})
    with Process("--config", path, env=env) as server:
        begin = time.monotonic()
        answer = say(server, "late")
        assert 0.9 < time.monotonic() - begin < 1 + 2 * PATIENCE
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0, answer.text
        assert re.search(r"'late' is still being downloaded \(\d+%\)", answer.json()["error"]["message"]), answer.text
        assert states(server)["late"]["state"] == "loading"  # which goes on without it
        cdn.faults.rate = None
        eventually(lambda: states(server)["late"]["state"] == "ready")
        assert say(server, "late").status_code == 200


@pytest.mark.parametrize("how", ["unloaded", "removed"])
def test_a_start_goes_on_without_what_is_not_wanted_any_more(hub, cdn, env, tmp_path, how):
    cdn.faults.rate = 100_000
    hub.lfs_from = 1 << 20
    here = {"name": "here", "source": "builtin:xgen-demo"}
    path = write(tmp_path / "models.yaml", [here, {"name": "late", "source": "hf://org/demo"}], sources={"connections": 1})
    with Process("--config", path, env=env, ready=False) as server:
        eventually(lambda: cdn.requests)
        eventually(lambda: states(server)["late"]["progress"] > 0)
        if how == "unloaded":
            assert server.post("/admin/unload", {"model": "late"}).json()["state"] == "unloaded"
        else:
            write(path, [here], sources={"connections": 1})
        server.wait_ready()
        assert say(server, "here").status_code == 200
        assert "late" not in [model["id"] for model in server.get("/v1/models").json()["data"]]


def test_requests_that_wait_for_a_load_are_counted_while_they_do(hub, cdn, env, tmp_path):
    cdn.faults.rate = 100_000
    hub.lfs_from = 1 << 20
    models = [{"name": "here", "source": "builtin:xgen-demo"},
              {"name": "late", "source": "hf://org/demo", "load": "on_demand"}]
    path = write(tmp_path / "models.yaml", models, sources={"connections": 1})
    waiting = lambda server: re.search(r'^vllm:num_requests_waiting{[^}]*model_name="late"[^}]*} (\S+)$', server.get("/metrics").text, re.M)
    with Process("--config", path, env=env) as server:
        assert float(waiting(server)[1]) == 0
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/v1/completions", json={"model": "late", "prompt": "x"}, timeout=1)
        eventually(lambda: float(waiting(server)[1]) == 0)
        assert not states(server)["late"]["in_use"]
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(say, server, "late") for _ in range(3)]
            eventually(lambda: float(waiting(server)[1]) == 3)
            assert states(server)["late"]["in_use"]
            cdn.faults.rate = None
            assert [each.result().status_code for each in asked] == [200] * 3
        assert float(waiting(server)[1]) == 0


def test_a_model_of_the_start_is_downloaded_before_the_server_is_ready(hub, cdn, env):
    cdn.faults.rate = 300_000
    server = Process("hf://org/demo", "--threads", "1", env=env, ready=False)
    with server:
        eventually(lambda: "listening" in server.output() or cdn.requests)
        eventually(lambda: cdn.requests)
        health = server.get("/health/startup")
        assert health.status_code == 503 and "downloading" in health.text
        answer = say(server, "demo")
        assert answer.status_code == 503 and "being downloaded" in answer.text and answer.headers["retry-after"]
        cdn.faults.rate = None
        server.wait_ready()
        assert say(server, "demo").status_code == 200


def test_the_end_of_the_server_does_not_wait_for_a_download(hub, cdn, env, tmp_path):
    cdn.faults.rate = 50_000
    models = [{"name": "here", "source": "builtin:xgen-demo"},
              {"name": "late", "source": "hf://org/demo", "load": "on_demand"}]
    path = write(tmp_path / "models.yaml", models, server={"drain_timeout": "100ms"})
    with Process("--config", path, env=env) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(say, server, "late")
        eventually(lambda: cdn.requests)
        begin = time.monotonic()
        server.signal(signal.SIGINT)
        assert server.wait() == 0
        assert time.monotonic() - begin < 3 * PATIENCE


@pytest.mark.parametrize("load", ["startup", "on_demand"])
def test_a_download_that_fails_says_why(hub, env, tmp_path, load):
    hub.token = "hf_other"
    models = [{"name": "here", "source": "builtin:xgen-demo"}, {"name": "late", "source": "hf://org/demo", "load": load}]
    path = write(tmp_path / "models.yaml", models)
    if load == "startup":
        ended = run("serve", "--config", path, "--port", "0", "--host", "127.0.0.1", env=env)
        assert ended.returncode == 1 and "HF_TOKEN" in ended.stderr and "models.yaml:1: model 'late'" in ended.stderr
        return
    with Process("--config", path, env=env) as server:
        answer = say(server, "late")
        assert answer.status_code == 503 and "HF_TOKEN" in answer.text
        assert states(server)["late"]["state"] == "failed" and "HF_TOKEN" in states(server)["late"]["detail"]
        assert say(server, "here").status_code == 200


# --- Two processes, and the end of one.

def test_a_killed_pull_goes_on_where_it_was(hub, cdn, env, cache):
    hub.add("org/big", {"big.gguf": BIG})
    cdn.faults.rate = 2_000_000
    pull = subprocess.Popen([PROGRAM, "pull", "hf://org/big"], env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = cache / f"models--org--big/blobs/{hashlib.sha256(BIG).hexdigest()}.xgen.incomplete"
    # The first chunk is there to a good part.
    eventually(lambda: part.exists() and part.stat().st_size > len(BIG) and any(part.open("rb").read(1 << 20)[1 << 19:]))
    pull.kill()
    pull.wait()
    assert not list((cache / "models--org--big/snapshots").iterdir())
    cdn.faults.rate = None
    cdn.requests.clear()
    done = run("pull", "hf://org/big", env=env)
    assert done.returncode == 0, done.stderr
    wanted = 0
    for _, _, headers in cdn.requests:
        first, last = map(int, headers["Range"][len("bytes="):].split("-"))
        wanted += last + 1 - first
    assert 0 < wanted < len(BIG) - (1 << 19)
    assert cdn.most_at_once >= 2  # parts came in parallel
    assert (cache / f"models--org--big/snapshots/{hub.repos['org/big']['main']}/big.gguf").read_bytes() == BIG
    assert not part.exists()


def test_a_killed_server_leaves_what_a_pull_takes_up(hub, cdn, env):
    cdn.faults.rate = 300_000
    server = Process("hf://org/demo", env=env, ready=False)
    eventually(lambda: cdn.requests)
    server.child.kill()
    server.child.wait()
    cdn.faults.rate = None
    assert run("pull", "hf://org/demo", env=env).returncode == 0
    with Process("hf://org/demo", env={**env, "HF_HUB_OFFLINE": "1"}) as server:
        assert say(server, "demo").status_code == 200


def test_two_pulls_at_once_download_once(hub, cdn, env, cache):
    hub.add("org/big", {"big.gguf": BIG[:20 << 20]})
    cdn.faults.rate = 8_000_000
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: run("pull", "hf://org/big", env=env), range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    ranges = [r[2].get("Range") for r in cdn.asked("GET", ".")]
    assert len(ranges) == len(set(ranges)) == 2
    assert "here already" in first.stdout + second.stdout


def test_a_pull_beside_one_of_python(hub, cdn, env, cache):
    hub.add("org/big", {"big.gguf": BIG[:8 << 20]})
    cdn.faults.rate = 8_000_000
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ours = pool.submit(run, "pull", "hf://org/big", env=env)
        theirs = pool.submit(python, "import huggingface_hub as h; print(h.snapshot_download('org/big'))", env)
        assert ours.result().returncode == 0, ours.result().stderr
        assert (pathlib.Path(theirs.result()) / "big.gguf").read_bytes() == BIG[:8 << 20]
    assert len(cdn.asked("GET", ".")) == 1


# --- Weather.

def test_what_may_pass_is_tried_again(hub, cdn, env, cache):
    hub.add("org/big", {"big.gguf": BIG})
    hub.api_answers = [(503, {}), (429, {"Retry-After": "1"})]
    cdn.faults.answers = [(500, {}), (429, {"Retry-After": "1"})]
    cdn.faults.cut_after = [0, 1_000_000, 5_000_000, 100]
    begin = time.monotonic()
    done = run("pull", "hf://org/big", env=env)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin >= 2  # each Retry-After is heard
    assert (cache / f"models--org--big/snapshots/{hub.repos['org/big']['main']}/big.gguf").read_bytes() == BIG


def test_patience_ends(hub, cdn, env, tmp_path):
    path = settings(tmp_path, retries=1)
    hub.api_answers = [(503, {})] * 2
    done = run("pull", "hf://org/demo", "--config", path, env=env)
    assert done.returncode == 1 and "answered 503" in done.stderr and not hub.api_answers
    assert done.stderr.count("trying again") == 1 and "failures=1 retries=1" in done.stderr
    hub.api_answers = [(429, {"Retry-After": "3600"})]
    done = run("pull", "hf://org/demo", "--config", path, env=env)
    assert done.returncode == 1 and "it asks to wait 3600 s" in done.stderr
    cdn.faults.cut_after = [0] * 100
    hub.lfs_from = 1 << 20
    done = run("pull", "hf://org/demo", "--config", settings(tmp_path, retries=0), env=env)
    assert done.returncode == 1 and "hf://org/demo/model.safetensors: " in done.stderr
    hub.close()
    done = run("pull", "hf://org/demo", "--config", settings(tmp_path, retries=0), env=env)
    assert done.returncode == 1 and hub.url in done.stderr


def test_a_silent_server_is_given_up(hub, cdn, env, tmp_path):
    cdn.faults.silent = True
    begin = time.monotonic()
    done = run("pull", "hf://org/demo", "--config", settings(tmp_path, timeout="200ms", retries=0), env=env)
    assert done.returncode == 1 and "org/demo" in done.stderr
    assert time.monotonic() - begin < 20 * PATIENCE


@pytest.mark.parametrize("cuts", [[], [30 << 20]])
def test_a_server_without_ranges(hub, cdn, env, cache, cuts):
    hub.add("org/big", {"big.gguf": BIG})
    cdn.faults.ranges = False
    cdn.faults.cut_after = [1 << 20] * 3 + cuts
    done = run("pull", "hf://org/big", env=env)
    assert done.returncode == 0, done.stderr
    assert (cache / f"models--org--big/snapshots/{hub.repos['org/big']['main']}/big.gguf").read_bytes() == BIG


def test_addresses_that_run_out_are_asked_for_again(hub, cdn, env, cache, tmp_path):
    hub.add("org/big", {"big.gguf": BIG})
    cdn.faults.rate = 20_000_000
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(run, "pull", "hf://org/big", "--config", settings(tmp_path, connections=1), env=env)
        eventually(lambda: cdn.requests)
        cdn.generation = 1
        assert pulling.result().returncode == 0, pulling.result().stderr
    assert cdn.asked("GET", "signature=0") and cdn.asked("GET", "signature=1")


def test_long_listings_have_pages(hub, env, cache):
    hub.page = 2
    assert run("pull", "hf://org/demo", env=env).returncode == 0
    assert files_below(cache / "models--org--demo/snapshots" / hub.commit) == sorted(DEMO)


# --- Lies.

def lies():
    yield "corrupt", lambda hub, cdn: setattr(cdn.faults, "corrupt", True), "do not match the SHA-256"
    yield "corrupt small file", lambda hub, cdn: setattr(hub.faults, "corrupt", True), "do not match the SHA-1"
    yield "longer", lambda hub, cdn: setattr(cdn.faults, "longer", 1), "but the listing says"
    yield "other range", lambda hub, cdn: (setattr(cdn.faults, "wrong_range", True), setattr(cdn.faults, "cut_after", [10])), "another range"
    yield "size", lambda hub, cdn: hub.listed_as.update({"model.safetensors": {"size": 3545729}}), "but the listing says"
    yield "etag", lambda hub, cdn: setattr(hub, "linked_etag", "f" * 64), "x-linked-etag says " + "f" * 64


@pytest.mark.parametrize("lie, said", [pytest.param(lie, said, id=name) for name, lie, said in lies()])
def test_lies_are_found_and_nothing_is_published(hub, cdn, env, cache, tmp_path, lie, said):
    lie(hub, cdn)
    done = run("pull", "hf://org/demo", "--config", settings(tmp_path, retries=1), env=env)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert "hf://org/demo/" in done.stderr
    assert not list((cache / "models--org--demo/snapshots").iterdir())
    assert not (cache / "models--org--demo/refs/main").exists()
    for blob in (cache / "models--org--demo/blobs").iterdir():
        if not blob.name.endswith(".incomplete"):
            data = blob.read_bytes()
            assert blob.name in (git_sha1(data), hashlib.sha256(data).hexdigest())
    assert run("check", "hf://org/demo", env={**env, "HF_HUB_OFFLINE": "1"}).returncode == 2


def test_a_part_file_that_was_spoilt_is_downloaded_anew(hub, cdn, env, cache):
    hub.add("org/big", {"big.gguf": BIG})
    cdn.faults.rate = 4_000_000
    pull = subprocess.Popen([PROGRAM, "pull", "hf://org/big"], env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = cache / f"models--org--big/blobs/{hashlib.sha256(BIG).hexdigest()}.xgen.incomplete"
    eventually(lambda: part.exists() and any(part.open("rb").read(4096)))
    pull.kill()
    pull.wait()
    cdn.faults.rate = None
    with part.open("r+b") as file:
        file.write(b"spoilt by a loss of power")
    done = run("pull", "hf://org/big", env=env)
    assert done.returncode == 0, done.stderr
    assert (cache / f"models--org--big/snapshots/{hub.repos['org/big']['main']}/big.gguf").read_bytes() == BIG


def test_names_never_leave_the_cache(hub, env, cache, tmp_path):
    evil = {"type": "file", "size": 4, "oid": git_sha1(b"evil")}
    hub.extra = [{**evil, "path": path} for path in
                 ["../../../../evil", "/tmp/xgen-evil", "a/../../../evil", "..", "a\\b", "a//b", "evil\nname", "./config.json"]]
    hub.extra += [{**evil, "path": "tokenizer.model", "oid": "../../../evil"}, {**evil, "path": "vocab.json", "lfs": {"oid": "/evil", "size": 4}}]
    done = run("pull", "hf://org/demo", env=env)
    assert done.returncode == 0, done.stderr
    assert files_below(cache / "models--org--demo/snapshots" / hub.commit) == sorted(DEMO)
    assert not [p for p in tmp_path.rglob("*") if "evil" in p.name] and not pathlib.Path("/tmp/xgen-evil").exists()
    # A commit that is none would name a folder.
    hub.repos["org/demo"]["main"] = "../../../evil"
    hub.commits["org/demo", "../../../evil"] = DEMO
    done = run("pull", "hf://org/demo", env=env)
    assert done.returncode == 1 and "names no commit" in done.stderr


def test_links_in_the_cache_are_not_followed(hub, env, cache, tmp_path):
    commit = hub.add("org/sub", {"sub/" + name: data for name, data in DEMO.items()})
    outside = tmp_path / "outside"
    outside.mkdir()
    snapshot = cache / "models--org--sub/snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "sub").symlink_to(outside)
    done = run("pull", "hf://org/sub/sub", env=env)
    assert done.returncode == 1 and "sub" in done.stderr
    assert not list(outside.iterdir())


# --- Access.

def test_the_token_goes_to_the_hub_and_nowhere_else(hub, cdn, env, tmp_path):
    hub.token = "hf_secret"
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/token").write_text("hf_secret\n")
    assert run("pull", "hf://org/demo", env=env).returncode == 0
    assert hub.requests and cdn.requests
    assert all(r[2]["Authorization"] == "Bearer hf_secret" for r in hub.requests)
    assert not [r for r in cdn.requests if "Authorization" in r[2]]
    # The variable before the file.
    done = run("pull", "hf://org/demo", env={**env, "HF_TOKEN": "hf_wrong"})
    assert done.returncode == 1 and "the token of HF_TOKEN is not accepted" in done.stderr and "hf_wrong" not in done.stderr


def test_refusals_name_what_is_missing_or_needed(hub, env):
    said = lambda source, **more: (lambda d: (d.returncode, d.stderr))(run("pull", source, env={**env, **more}))
    code, text = said("hf://org/nothing")
    assert code == 1 and "there is no repository 'org/nothing'" in text and "HF_TOKEN" not in text.split("there is no")[0]
    code, text = said("hf://org/demo@v9")
    assert code == 1 and "has no revision 'v9'" in text
    code, text = said("hf://org/demo@" + "0" * 40)
    assert code == 1 and "has no revision" in text
    code, text = said("hf://org/demo/no.gguf")
    assert code == 1 and "no file or folder 'no.gguf'" in text
    hub.gated.add("org/demo")
    code, text = said("hf://org/demo")
    assert code == 1 and "gated" in text and "set HF_TOKEN" in text and hub.url + "/org/demo" in text
    code, text = said("hf://org/demo", HF_TOKEN="hf_x")
    assert code == 1 and "gated" in text and "has no access yet" in text
    hub.token = "hf_other"
    code, text = said("hf://org/demo")
    assert code == 1 and "a token is needed: set HF_TOKEN" in text
    code, text = said("hf://org/demo", HF_HUB_OFFLINE="1")
    assert code == 1 and "HF_HUB_OFFLINE is set" in text
    code, text = said("hf://org")
    assert code == 2 and "hf://ORG/REPO" in text


def test_a_gguf_repository(hub, env, cache):
    commit = hub.add("org/gguf", {"a-q4.gguf": b"4" * 10, "a-q8-00001-of-00002.gguf": b"8" * 10, "a-q8-00002-of-00002.gguf": b"8" * 9,
                                  "mmproj.gguf": b"m", "README.md": b"x"})
    done = run("pull", "hf://org/gguf", env=env)
    assert done.returncode == 1 and "several GGUF models" in done.stderr
    assert "a-q4.gguf, a-q8-00001-of-00002.gguf" in done.stderr
    assert run("pull", "hf://org/gguf/a-q8-00001-of-00002.gguf", env=env).returncode == 0
    assert files_below(cache / "models--org--gguf/snapshots" / commit) == ["a-q8-00001-of-00002.gguf", "a-q8-00002-of-00002.gguf"]


def test_the_disk_is_full(hub, env, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=20m xgen {disk} && exec "$@"'
    inside = ["unshare", "-rm", "sh", "-c", script, "sh"]
    if shutil.which("unshare") is None or subprocess.run(inside + ["true"], capture_output=True).returncode != 0:
        pytest.skip("no mounts of one's own here")
    hub.add("org/big", {"big.gguf": BIG})
    done = subprocess.run(inside + [PROGRAM, "pull", "hf://org/big"], capture_output=True, text=True, timeout=60 * PATIENCE,
                          env={**os.environ, **env, "HF_HUB_CACHE": str(disk)})
    assert done.returncode == 1 and "free, but 40.0 MiB are to be downloaded" in done.stderr and str(disk) in done.stderr
    small = f'mount -t tmpfs -o size=60m,nr_inodes=8 xgen {disk} && exec "$@"'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", small, "sh", PROGRAM, "pull", "hf://org/big"], capture_output=True, text=True,
                          timeout=60 * PATIENCE, env={**os.environ, **env, "HF_HUB_CACHE": str(disk)})
    assert done.returncode == 1 and "No space left on device" in done.stderr


def test_check_says_what_is_not_here_yet(hub, env, tmp_path, cache):
    path = write(tmp_path / "models.yaml", [{"name": "m", "source": "hf://org/demo"}, {"name": "d", "source": "builtin:xgen-demo"}])
    done = run("check", "--config", path, env=env)
    assert done.returncode == 0 and not hub.requests
    assert "m (not here yet)" in done.stdout and "hf://org/demo" in done.stdout and str(cache / "models--org--demo") in done.stdout
    assert "xgen-model pull" in done.stdout and "at start; not here yet" in done.stdout
    done = run("pull", "--config", path, env=env)
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr
    done = run("check", "--config", path, env=env)
    assert done.returncode == 0 and "not here yet" not in done.stdout and "KV cache" in done.stdout
    write(path, [{"name": "d", "source": "builtin:xgen-demo"}])
    done = run("pull", "--config", path, env=env)
    assert done.returncode == 2 and "nothing to download" in done.stderr


# --- S3.

@pytest.fixture
def s3():
    with S3() as one:
        one.buckets["models"] = {f"some where/demo/{name}": data for name, data in {**DEMO, **NOT_NEEDED}.items()}
        yield one


@pytest.fixture
def s3_env(s3, tmp_path):
    return {"AWS_ENDPOINT_URL": s3.url, "XDG_CACHE_HOME": str(tmp_path / "xdg"), "HF_HOME": str(tmp_path / "hf"),
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret/+", "AWS_SESSION_TOKEN": "session==",
            "AWS_REGION": "eu-west-3"}


def test_s3_is_served_from_a_cache_of_its_own(s3, s3_env, tmp_path):
    s3.page = 3
    with Process("s3://models/some where/demo", env=s3_env) as server:
        assert say(server, "demo").status_code == 200
    blobs = [p for p in (tmp_path / "xdg/xgen-model/s3").rglob("blobs/*")]
    assert sorted(p.read_bytes() for p in blobs) == sorted(DEMO.values())
    s3.close()  # what is there is enough
    with Process("s3://models/some where/demo", "--name", "again", env=s3_env) as server:
        assert say(server, "again").status_code == 200


def test_s3_requests_are_signed_as_botocore_signs_them(s3, s3_env, monkeypatch):
    import botocore.auth
    import botocore.awsrequest
    import botocore.credentials
    assert run("pull", "s3://models/some where/demo", env=s3_env).returncode == 0
    assert {r[0] for r in s3.requests} == {"GET", "HEAD"}
    for method, path, headers in s3.requests:
        signed = headers["Authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
        when = datetime.datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ")
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *a, **k: when)
        request = botocore.awsrequest.AWSRequest(
            method=method, url=s3.url + path,
            headers={k: v for k, v in headers.items() if k.lower() in signed and k.lower() != "host"})
        credentials = botocore.credentials.Credentials("AKIDEXAMPLE", "secret/+", "session==")
        botocore.auth.S3SigV4Auth(credentials, "s3", "eu-west-3").add_auth(request)
        assert request.headers["Authorization"] == headers["Authorization"], (method, path)


def test_s3_without_keys_is_anonymous(s3, s3_env):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        s3_env[name] = ""
    assert run("pull", "s3://models/some where/demo", env=s3_env).returncode == 0
    assert not [r for r in s3.requests if "Authorization" in r[2]]
    s3.denied.add("models")
    done = run("pull", "s3://models/some where/demo", env=s3_env)
    assert done.returncode == 1 and "AccessDenied" in done.stderr and "AWS_ACCESS_KEY_ID" in done.stderr


@pytest.mark.parametrize("shape", ["md5", "parts", "checksum"])
def test_s3_bytes_are_checked(s3, s3_env, tmp_path, shape):
    s3.part = 1 << 20 if shape == "parts" else None
    s3.checksums = shape == "checksum"
    if shape == "checksum":  # then the ETag says nothing
        s3.etag = lambda data: "not-a-digest-" + str(len(data))
    s3.faults.corrupt = True
    done = run("pull", "s3://models/some where/demo", env=s3_env)
    named = {"md5": "MD5 of its ETag", "parts": "MD5 of its ETag", "checksum": "SHA-256 of its x-amz-checksum-sha256"}[shape]
    assert done.returncode == 1 and named in done.stderr, done.stderr
    s3.faults.corrupt = False
    done = run("pull", "s3://models/some where/demo", env=s3_env)
    assert done.returncode == 0, done.stderr


def test_s3_objects_that_change_are_new_versions(s3, s3_env, tmp_path):
    first = run("pull", "s3://models/some where/demo", env=s3_env).stdout
    assert "here already" in run("pull", "s3://models/some where/demo", env=s3_env).stdout
    s3.buckets["models"]["some where/demo/generation_config.json"] = b"{}"
    second = run("pull", "s3://models/some where/demo", env=s3_env)
    assert second.returncode == 0 and "downloaded 2 B" in second.stdout and pathlib.Path(second.stdout.split(" (")[0]) != pathlib.Path(first.split(" (")[0])
    # Replaced between two ranges: If-Match notices.
    s3.buckets["models"]["big.gguf"] = BIG
    s3.faults.rate = 20_000_000
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(run, "pull", "s3://models/big.gguf", "--config", settings(tmp_path, connections=1), env=s3_env)
        eventually(lambda: [r for r in s3.requests if "Range" in r[2]])
        s3.buckets["models"]["big.gguf"] = BIG[::-1]
        assert pulling.result().returncode == 1 and "was replaced while it was downloaded" in pulling.result().stderr


def test_s3_refusals(s3, s3_env):
    done = run("pull", "s3://nothing/x", env=s3_env)
    assert done.returncode == 1 and "there is no bucket 'nothing'" in done.stderr
    done = run("pull", "s3://models/nowhere", env=s3_env)
    assert done.returncode == 1 and "there are no files" in done.stderr
    s3.denied.add("models")
    done = run("pull", "s3://models/some where/demo", env=s3_env)
    assert done.returncode == 1 and "AccessDenied" in done.stderr and "not accepted or has no access" in done.stderr
    assert "secret/+" not in done.stderr and "session==" not in done.stderr
    done = run("pull", "s3://models/x", env={**s3_env, "AWS_SECRET_ACCESS_KEY": ""})
    assert done.returncode == 2 and "AWS_SECRET_ACCESS_KEY: missing" in done.stderr


def test_s3_names_never_leave_the_cache(s3, s3_env, tmp_path):
    objects = s3.buckets["models"]
    objects["some where/demo/../../../../../evil.json"] = objects["some where/demo/a/../evil.safetensors"] = b"evil"
    objects["some where/demo/"] = b""
    assert run("pull", "s3://models/some where/demo", env=s3_env).returncode == 0
    assert not [p for p in tmp_path.rglob("*evil*")]


def test_s3_of_moto_with_an_upload_in_parts(tmp_path):
    import boto3
    import boto3.s3.transfer
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        client = boto3.client("s3", endpoint_url=url, aws_access_key_id="id", aws_secret_access_key="secret", region_name="us-east-1")
        client.create_bucket(Bucket="models")
        in_parts = boto3.s3.transfer.TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
        (tmp_path / "big.gguf").write_bytes(BIG[:12 << 20])
        client.upload_file(str(tmp_path / "big.gguf"), "models", "big/big.gguf", Config=in_parts)
        for name, data in DEMO.items():
            client.put_object(Bucket="models", Key="demo/" + name, Body=data)
        env = {"AWS_ENDPOINT_URL": url, "XDG_CACHE_HOME": str(tmp_path / "xdg"), "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
        done = run("pull", "s3://models/big/big.gguf", "s3://models/demo", env=env)
        assert done.returncode == 0, done.stderr
        big, demo = (pathlib.Path(line.split(": ", 1)[1].rsplit(" (", 1)[0]) for line in done.stdout.splitlines())
        assert big.read_bytes() == BIG[:12 << 20]
        assert {p.name: p.read_bytes() for p in demo.iterdir()} == DEMO
    finally:
        server.stop()
