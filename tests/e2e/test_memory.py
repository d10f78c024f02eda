"""One memory budget and one set of compute threads for several models: the plan, control groups, loans, shares."""
import concurrent.futures
import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import threading
import time

import pytest

from process import PATIENCE, ROOT, Process, run
from test_models import demo, eventually, say, states, write


def test_check_explains_the_plan_of_five_models(tmp_path):
    models = [demo("chat", pin=True, kv_cache="30MiB"), demo("small", kv_cache="10MiB"),
              demo("spare", load="on_demand", kv_cache="10MiB", max_model_len=512),
              demo("large", load="on_demand", kv_cache="60MiB"), demo("wide", load="on_demand", weight=3)]
    path = write(tmp_path, models, memory={"host": "120MiB"})
    checked = run("check", "--config", path)
    assert checked.returncode == 0, checked.stderr
    text = checked.stdout
    for model in models:
        block = text[text.index(f"{model['name']} ("):]
        assert re.search(r"weights +[\d.]+ \w+\n +KV cache +[\d.]+ \w+ +\d+ tokens guaranteed.*\n +workspace +[\d.]+ \w+\n +total +[\d.]+ \w+", block)
    wide = text[text.index("wide ("):]
    assert re.search(r"tokens guaranteed, up to \d+ while memory is free", wide.split("workspace")[0])
    print(text)
    summary = text[text.index("Memory budget: 120.0 MiB"):]
    line = lambda name: next(line for line in summary.splitlines() if line.split()[0] == name)
    assert "at start, pinned" in line("chat") and "at start" in line("small")
    assert "on demand; fits beside those loaded at start" in line("spare")
    assert "not in use are unloaded for it" in line("large")
    assert "on demand; takes what is left, at least" in line("wide") or "fits beside" in line("wide")
    assert re.search(r"loaded at start [\d.]+ MiB, left [\d.]+ MiB for models on demand and for KV cache", summary)


def test_check_refuses_what_can_never_fit_with_the_numbers(tmp_path):
    refused = run("check", "--config", write(tmp_path, [demo("a", kv_cache="70MiB"), demo("b", kv_cache="70MiB")],
                                             memory={"host": "150MiB"}))
    assert refused.returncode == 2
    assert "memory.host" in refused.stderr and "'a' " in refused.stderr and "150.0 MiB" in refused.stderr


def test_kv_cache_is_lent_and_given_back(tmp_path):
    models = [demo("a", max_model_len=256, max_num_seqs=32),
              demo("b", load="on_demand", kv_cache="20MiB", max_model_len=256)]
    for model in models:
        model["kv_cache_dtype"] = "f32"
    with Process("--config", write(tmp_path, models, memory={"host": "80MiB"})) as server:
        memory = lambda: server.get("/admin/models").json()["memory"]["host"]
        stop = threading.Event()
        failed = []

        def ask(i):
            for turn in range(10**9):  # prompts that are all different: what is kept of them needs more and more blocks
                if stop.is_set():
                    break
                answer = server.post("/v1/completions", {"model": "a", "prompt": f"{i} {turn} " * 20, "max_tokens": 50, "ignore_eos": True})
                if answer.status_code != 200:
                    failed.append(answer.text)

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for i in range(16):
                pool.submit(ask, i)
            try:
                free = lambda: memory()["total_bytes"] - memory()["reserved_bytes"] - memory()["borrowed_bytes"]
                eventually(lambda: free() < 25 << 20, 60)  # too little for the other
                answer = say(server, "b")
                for _ in range(20):
                    now = memory()
                    assert now["reserved_bytes"] + now["borrowed_bytes"] <= now["total_bytes"]
            finally:
                stop.set()
        assert not failed, failed[:2]
        assert answer.status_code == 200, answer.text


@contextlib.contextmanager
def control_group(limit):
    """A folder of the system's control groups with a limit of memory, or the test is skipped."""
    groups = dict(line.rstrip("\n").split(":", 2)[1:] for line in open("/proc/self/cgroup"))
    mount = pathlib.Path("/sys/fs/cgroup")
    version_2 = (mount / "cgroup.controllers").exists()
    parent = mount / groups.get("", "/").lstrip("/") if version_2 else mount / "memory" / groups.get("memory", "/").lstrip("/")
    folder = parent / f"xgen-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (folder / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no limit of memory can be set here: {error}")
        yield folder
    finally:
        for _ in range(100):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.05)


def kills(folder):
    """How often the kernel has ended a process of the group for want of memory."""
    for name in ("memory.events", "memory.oom_control"):
        if (folder / name).exists():
            found = re.search(r"oom_kill (\d+)", (folder / name).read_text())
            if found:
                return int(found[1])
    return 0


@pytest.mark.skipif(PATIENCE > 1, reason="sanitizers need memory of their own")
def test_a_tight_control_group_means_refusals_and_no_killed_process(tmp_path):
    names = [f"m{i}" for i in range(6)]
    models = [demo(name, load="on_demand", kv_cache="40MiB", kv_cache_dtype="f32", max_num_seqs=64) for name in names]
    with control_group(256 << 20) as folder, Process("--config", write(tmp_path, models), cgroup=folder) as server:
        total = server.get("/admin/models").json()["memory"]["host"]["total_bytes"]
        assert total == int(0.8 * (256 << 20))
        # Every model is asked for at once by clients that keep it busy: more than fits.
        def ask(i):
            return server.post("/v1/completions", {"model": names[i % 6], "prompt": f"{i} " * 100, "max_tokens": 400, "ignore_eos": True})
        with concurrent.futures.ThreadPoolExecutor(48) as pool:
            answers = list(pool.map(ask, range(96)))
        codes = {answer.status_code for answer in answers}
        assert codes == {200, 503}, codes
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert "memory budget" in refused.json()["error"]["message"] and int(refused.headers["retry-after"]) > 0
        assert server.child.poll() is None and kills(folder) == 0
        assert server.get("/health/ready").status_code == 200


def tokens(server):
    text = server.get("/metrics").text
    return {name: float(count) for name, count in re.findall(r'vllm:generation_tokens_total\{[^}]*model_name="(\w+)"[^}]*\} (\S+)', text)}


def test_models_share_the_compute_threads_by_weight(tmp_path):
    models = [demo("heavy", weight=3), demo("light", weight=1)]
    with Process("--config", write(tmp_path, models)) as server:
        stop = threading.Event()

        def ask(name):
            while not stop.is_set():
                assert server.post("/v1/completions", {"model": name, "prompt": "hi", "max_tokens": 1000, "ignore_eos": True,
                                                       "n": 4}).status_code == 200

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for name in ["heavy", "light"] * 2:
                pool.submit(ask, name)
            try:
                eventually(lambda: min(tokens(server).values()) > 0)
                # A turn costs what it lasts, preempted or not: on a busy machine not every span of time shows the weights.
                for _ in range(10):
                    before = tokens(server)
                    time.sleep(1.5)
                    after = tokens(server)
                    ratio = (after["heavy"] - before["heavy"]) / (after["light"] - before["light"])
                    if 2.2 < ratio < 4:
                        break
            finally:
                stop.set()
        assert 2.2 < ratio < 4


def test_metrics_tell_memory_and_states(tmp_path):
    with Process("--config", write(tmp_path, [demo("a"), demo("b"), demo("c", load="on_demand")])) as server:
        assert server.post("/admin/sleep", {"model": "b"}).status_code == 200
        text = server.get("/metrics").text
        value = lambda name, labels: float(re.search(rf"^{re.escape(name)}\{{{re.escape(labels)}\}} (\S+)$", text, re.M)[1])
        assert value("xgen_model_state", 'model_name="a",state="ready"') == 1
        assert value("xgen_model_state", 'model_name="b",state="sleeping"') == 1
        assert value("vllm:engine_sleep_state", 'model_name="b",engine="0",sleep_state="weights_offloaded"') == 1
        assert value("vllm:engine_sleep_state", 'model_name="a",engine="0",sleep_state="awake"') == 1
        assert value("vllm:engine_sleep_state", 'model_name="c",engine="0",sleep_state="discard_all"') == 1
        assert value("xgen_model_loads_total", 'model_name="a"') == 1
        assert value("xgen_model_unloads_total", 'model_name="b"') == 1
        assert value("xgen_model_load_failures_total", 'model_name="a"') == 0
        memory = server.get("/admin/models").json()["memory"]["host"]
        assert value("xgen_memory_budget_bytes", 'memory="host"') == memory["total_bytes"]
        assert value("xgen_memory_reserved_bytes", 'memory="host"') == memory["reserved_bytes"]
        assert value("xgen_model_reserved_bytes", 'model_name="a"') == states(server)["a"]["reserved_bytes"]


def large_model(folder, hidden=2048, layers=4):
    """A model like the demo but of half a gigabyte, all of it zero: a file with holes."""
    folder.mkdir()
    demo = ROOT / "models/demo"
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(demo / name, folder)
    config = json.loads((demo / "config.json").read_text())
    config.update(hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=hidden // config["head_dim"],
                  num_key_value_heads=2, layer_types=["full_attention"] * layers)
    (folder / "config.json").write_text(json.dumps(config))
    head, kv = config["head_dim"], 2 * config["head_dim"]
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for layer in range(layers):
        parts = {"input_layernorm": [hidden], "post_attention_layernorm": [hidden], "self_attn.q_proj": [hidden, hidden],
                 "self_attn.k_proj": [kv, hidden], "self_attn.v_proj": [kv, hidden], "self_attn.o_proj": [hidden, hidden],
                 "self_attn.q_norm": [head], "self_attn.k_norm": [head], "mlp.gate_proj": [4 * hidden, hidden],
                 "mlp.up_proj": [4 * hidden, hidden], "mlp.down_proj": [hidden, 4 * hidden]}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


def idle_threads(server):
    """How many threads of the process take only what processor time others leave."""
    count = 0
    for task in pathlib.Path(f"/proc/{server.child.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            count += (task / "stat").read_text().rpartition(")")[2].split()[38] == "5"  # SCHED_IDLE
    return count


@pytest.mark.skipif(os.sched_getscheduler(0) == os.SCHED_IDLE, reason="everything gives way here")
def test_a_load_takes_only_the_time_that_others_leave(tmp_path):
    size = large_model(tmp_path / "large")
    models = [demo("a"), {"name": "large", "source": str(tmp_path / "large"), "load": "on_demand", "max_model_len": 256}]
    with Process("--config", write(tmp_path, models)) as server:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            for _ in range(3):
                loading = pool.submit(server.post, "/admin/load", {"model": "large"})
                seen = []
                while not loading.done():
                    seen.append(idle_threads(server))
                assert loading.result().json()["state"] == "ready", loading.result().text
                assert states(server)["large"]["reserved_bytes"] > size
                # A few threads load, all of them give way, and what serves then does not.
                assert 1 <= max(seen) <= 4, seen
                assert idle_threads(server) == 0
                assert server.post("/admin/unload", {"model": "large"}).json()["state"] == "unloaded"
