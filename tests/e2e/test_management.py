"""The management paths of XGEN's gateway."""
import shutil

import httpx
import pytest

from process import ROOT, Process
from test_models import demo, eventually, say, write


@pytest.fixture
def folder(tmp_path):
    """A model on disk."""
    target = tmp_path / "models" / "copy-of-demo"
    shutil.copytree(ROOT / "models/demo", target)
    return target


def status(server):
    return {model["model_name"]: model for model in server.get("/api/management/status").json()["models"]}


def test_loads_by_path_beside_the_file_and_unloads(tmp_path, folder):
    path = write(tmp_path, [demo("a"), demo("b", load="on_demand")])
    with Process("--config", path) as server:
        assert {name: model["status"] for name, model in status(server).items()} == {"a": "LOADED", "b": "UNLOADED"}
        answer = server.post("/api/inference/load", {
            "model_path": str(folder), "model_name": "org/copy", "server_type": "llm", "backend": "auto",
            "gpu_memory_utilization": 0.9, "max_model_len": 256, "max_num_seqs": 8, "quantization": None, "dtype": "auto",
            "enable_prefix_caching": False, "gpu_ids": None})
        assert answer.status_code in (200, 202), answer.text
        assert answer.json()["status"] in ("LOADING", "LOADED")
        eventually(lambda: status(server)["org/copy"]["status"] == "LOADED")
        assert server.get("/api/inference/loading-status").json()["status"] == "LOADED"
        assert status(server)["org/copy"]["max_model_len"] == 256
        # A slash in the body, in the path, and as %2F.
        assert say(server, "org/copy").status_code == 200
        for where in ["/v1/models/", "/api/inference/v1/models/", "/api/vllm/v1/models/"]:
            for name in ["org/copy", "org%2Fcopy"]:
                assert server.get(where + name).json()["id"] == "org/copy"
        assert server.post("/api/inference/v1/completions", {"model": "org/copy", "prompt": "hi", "max_tokens": 2}).status_code == 200
        # The same again is nothing new; a reload of the file leaves it alone.
        again = {"model_path": str(folder), "model_name": "org/copy", "max_model_len": 256, "max_num_seqs": 8,
                 "enable_prefix_caching": False}
        assert server.post("/api/management/load", again).status_code == 200
        write(tmp_path, [demo("a"), demo("c")])
        assert server.post("/admin/reload", {}).status_code == 200
        assert {"a", "c", "org/copy"} == set(status(server))
        assert say(server, "org/copy").status_code == 200
        # By its name alone: what is known.
        assert server.post("/api/management/unload", {"model_name": "a"}).json() == {"model_name": "a", "status": "UNLOADING"}
        eventually(lambda: status(server)["a"]["status"] == "UNLOADED")
        answer = server.post("/api/management/load", {"model_name": "a"})
        assert answer.status_code == 202 and answer.json()["status"] == "LOADING"
        eventually(lambda: status(server)["a"]["status"] == "LOADED")
        # What was loaded by path is forgotten with its memory.
        assert server.post("/api/management/unload", {"model_name": "org/copy"}).status_code == 202
        eventually(lambda: "org/copy" not in status(server))
        assert say(server, "org/copy").status_code == 404
        assert server.post("/api/management/unload", {"model_name": "org/copy"}).status_code == 404


@pytest.mark.parametrize("body, code, field", [
    ({"model_path": "/nowhere"}, 400, "model_path"),
    ({"model_name": "nobody"}, 404, "model"),
    ({}, 400, "model_path"),
    ({"model_path": 7}, 400, "model_path"),
    ({"model_path": "MODEL", "server_type": "embedding"}, 400, "server_type"),
    ({"model_path": "MODEL", "backend": "vllm"}, 400, "backend"),
    ({"model_path": "MODEL", "quantization": "awq"}, 400, "quantization"),
    ({"model_path": "MODEL", "dtype": "bfloat16"}, 400, "dtype"),
    ({"model_path": "MODEL", "gpu_ids": [0]}, 400, "gpu_ids"),
    ({"model_path": "MODEL", "tensor_parallel_size": 2}, 400, "tensor_parallel_size"),
    ({"model_path": "MODEL", "max_num_seqs": 0}, 400, "max_num_seqs"),
    ({"model_path": "MODEL", "max_model_len": "long"}, 400, "max_model_len"),
    ({"model_path": "MODEL", "tokenizer_mode": "slow"}, 400, "tokenizer_mode"),
    ({"model_name": "a", "max_num_seqs": 3}, 400, "max_num_seqs"),
    ({"model_path": "MODEL", "model_name": "a"}, 400, "model"),
])
def test_refuses_by_field(refusing, folder, body, code, field):
    body = {key: str(folder) if value == "MODEL" else value for key, value in body.items()}
    answer = refusing.post("/api/inference/load", body)
    assert answer.status_code == code, answer.text
    assert answer.json()["error"]["param"] == field
    assert set(status(refusing)) == {"a"}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    with Process("--config", write(tmp_path_factory.mktemp("refusing"), [demo("a")])) as server:
        yield server


def test_a_model_that_cannot_be_loaded_is_an_error_with_its_reason(tmp_path, folder):
    (folder / "config.json").write_text("{}")
    with Process("--config", write(tmp_path, [demo("a")])) as server:
        assert server.post("/api/inference/load", {"model_path": str(folder)}).status_code in (202, 400)
        eventually(lambda: status(server).get("copy-of-demo", {}).get("status") == "ERROR")
        assert "config.json" in status(server)["copy-of-demo"]["error"]
        assert server.get("/health").status_code == 200  # the others are well
        assert server.get("/api/inference/loading-status").json()["status"] == "ERROR"
        assert server.post("/api/management/unload", {"model_name": "copy-of-demo"}).status_code == 202
        eventually(lambda: set(status(server)) == {"a"})


def test_who_may_manage(tmp_path):
    elsewhere = {"Host": "xgen-model.xgen.svc.cluster.local:8000"}
    admin = dict(elsewhere, **{"x-user-admin": "true"})
    get = lambda server, headers: httpx.get(server.url + "/api/management/status", headers=headers).status_code
    with Process("--config", write(tmp_path, [demo("a")])) as server:
        assert get(server, elsewhere) == 403 and get(server, admin) == 403
        assert httpx.get(server.url + "/api/management/health", headers=elsewhere).status_code == 200
        assert httpx.get(server.url + "/api/management/gpus", headers=elsewhere).json() == {"count": 0, "gpus": []}
    with Process("--config", write(tmp_path, [demo("a")], server={"operators": "gateway", "trusted_proxies": ["127.0.0.1"]})) as server:
        assert get(server, elsewhere) == 403 and get(server, admin) == 200
        assert get(server, dict(elsewhere, **{"x-user-admin": "false"})) == 403
