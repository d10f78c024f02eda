"""A model's file that is cut short while it is served fails that model, and nothing else."""
import concurrent.futures
import re
import shutil

from process import ROOT, Process
from test_models import demo, eventually, say, states, write

DEMO = ROOT / "models/demo"


def copied(folder):
    return shutil.copytree(DEMO, folder / "copy") / "model.safetensors"


def damage(server, weights, name="b"):
    """Cuts the file under a running stream. The events that came."""
    story = server.stream("/v1/completions", {"model": name, "prompt": "hi", "max_tokens": 2000, "ignore_eos": True, "temperature": 0})
    events = [next(story)]
    with open(weights, "r+b") as file:
        file.truncate(4096)
    return events + list(story)


def restore(weights):
    with open(DEMO / weights.name, "rb") as source, open(weights, "wb") as target:
        shutil.copyfileobj(source, target)


def test_a_file_cut_short_fails_one_model_until_it_is_loaded_again(tmp_path):
    weights = copied(tmp_path)
    models = [demo("a"), {"name": "b", "source": str(weights.parent)}]
    with Process("--config", write(tmp_path, models)) as server:
        expected = say(server, "a", max_tokens=200, ignore_eos=True).json()["choices"][0]["text"]
        events = damage(server, weights)
        error = events[-1]["error"]
        assert error["code"] and str(weights) in error["message"] and "cut short" in error["message"]
        sent = "".join(e["choices"][0]["text"] for e in events[:-1] if e["choices"])
        whole = say(server, "a", max_tokens=2000, ignore_eos=True).json()["choices"][0]["text"]
        assert whole.startswith(sent) and len(sent) < len(whole), "what was sent is what the whole file gives"

        eventually(lambda: states(server)["b"]["state"] == "failed")
        assert str(weights) in states(server)["b"]["detail"]
        refused = say(server, "b")
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert str(weights) in refused.json()["error"]["message"]
        assert say(server, "a", max_tokens=200, ignore_eos=True).json()["choices"][0]["text"] == expected
        assert server.get("/health/live").status_code == 200
        assert server.get("/health").status_code == 503 and server.get("/health/ready").status_code == 200
        assert states(server)["a"]["state"] == "ready" and states(server)["b"]["reserved_bytes"] == 0

        still = server.post("/admin/load", {"model": "b"})
        assert still.status_code != 200 and str(weights) in still.json()["error"]["message"]
        restore(weights)
        assert server.post("/admin/load", {"model": "b"}).json()["state"] == "ready"
        assert say(server, "b", max_tokens=200, ignore_eos=True).json()["choices"][0]["text"] == expected
        assert server.get("/health").status_code == 200


def test_every_request_of_the_model_gets_503(tmp_path):
    weights = copied(tmp_path)
    with Process(weights.parent, "--name", "b", "--max-num-seqs", "4") as server:
        long = lambda: say(server, "b", max_tokens=2000, ignore_eos=True)
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            answers = [pool.submit(long) for _ in range(12)]  # some run, the others wait
            eventually(lambda: re.search(r"vllm:num_requests_running\{.*\} [1-9]", server.get("/metrics").text))
            with open(weights, "r+b") as file:
                file.truncate(4096)
            answers = [a.result() for a in answers]
        failed = [a for a in answers if a.status_code != 200]
        assert failed and {a.status_code for a in failed} == {503}
        assert all(int(a.headers["retry-after"]) > 0 and str(weights) in a.json()["error"]["message"] for a in failed)
        # There is nothing else here to send requests to.
        eventually(lambda: server.get("/health/ready").status_code == 503)
        assert server.get("/health/ready").json()["status"] == "failed"
        assert server.get("/health/live").status_code == 200


def test_again_and_again(tmp_path):
    weights = copied(tmp_path)
    models = [demo("a"), {"name": "b", "source": str(weights.parent)}]
    with Process("--config", write(tmp_path, models)) as server:
        for _ in range(5):
            assert "error" in damage(server, weights)[-1]
            eventually(lambda: states(server)["b"]["state"] == "failed")
            restore(weights)
            assert server.post("/admin/load", {"model": "b"}).status_code == 200
        assert say(server, "b").json()["choices"][0]["text"] == say(server, "a").json()["choices"][0]["text"]


def test_a_model_that_was_cut_short_while_it_slept_is_not_woken(tmp_path):
    weights = copied(tmp_path)
    with Process("--config", write(tmp_path, [{"name": "b", "source": str(weights.parent)}])) as server:
        assert server.post("/admin/sleep", {"model": "b"}).json()["state"] == "sleeping"
        with open(weights, "r+b") as file:
            file.truncate(4096)
        answer = say(server, "b")
        assert answer.status_code == 503 and str(weights) in answer.json()["error"]["message"]
        eventually(lambda: states(server)["b"]["state"] == "failed")
        restore(weights)
        assert server.post("/admin/wake", {"model": "b"}).json()["state"] == "ready"
        assert say(server, "b").status_code == 200
