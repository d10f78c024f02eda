"""Reloading while requests run: not one fails, whichever way the file changes."""
import concurrent.futures
import json
import os
import pathlib
import shutil
import signal
import threading
import time

import pytest

from process import PATIENCE, Process
from test_models import demo, eventually, say, states, write


class Traffic:
    """Requests without pause to some models, short and streamed ones."""

    def __init__(self, server, names):
        self.server, self.names, self.stop, self.failed, self.answered = server, names, threading.Event(), [], 0

    def ask(self, name):
        while not self.stop.is_set():
            answer = say(self.server, name)
            if answer.status_code != 200:
                self.failed.append(answer.text)
            self.answered += 1

    def stream(self, name):
        while not self.stop.is_set():
            events = list(self.server.stream("/v1/completions", {"model": name, "prompt": "hi", "max_tokens": 200, "ignore_eos": True}))
            if any("error" in event for event in events) or events[-1]["choices"][0]["finish_reason"] != "length":
                self.failed.append(events[-1])

    def __enter__(self):
        self.pool = concurrent.futures.ThreadPoolExecutor(4 * len(self.names))
        self.running = [self.pool.submit(how, name) for name in self.names for how in (self.ask, self.ask, self.stream)]
        return self

    def __exit__(self, *_):
        self.stop.set()
        for each in self.running:
            each.result()
        self.pool.shutdown()
        assert self.answered > 0 and not self.failed, self.failed[:3]


class ConfigMap:
    """A folder as the kubelet mounts it: models.yaml -> ..data/models.yaml, ..data -> a folder of each version."""

    def __init__(self, folder):
        self.folder, self.versions = pathlib.Path(folder), 0

    def update(self, models, **sections):
        self.versions += 1
        fresh = self.folder / f"..2026_{self.versions}"
        fresh.mkdir()
        (fresh / "models.yaml").write_text(json.dumps({**sections, "models": models}))
        old = os.readlink(self.folder / "..data") if self.versions > 1 else None
        (self.folder / "..data_tmp").symlink_to(fresh.name)
        (self.folder / "..data_tmp").rename(self.folder / "..data")
        if old is None:
            (self.folder / "models.yaml").symlink_to("..data/models.yaml")
        else:
            shutil.rmtree(self.folder / old)
        return self.folder / "models.yaml"


def test_swaps_of_a_config_map(tmp_path):
    config_map = ConfigMap(tmp_path)
    with Process("--config", config_map.update([demo("a"), demo("b")])) as server, Traffic(server, ["a", "b"]):
        for seqs in range(5, 9):  # again and again: each swap deletes the folder that was watched before
            config_map.update([demo("a"), demo("b", max_num_seqs=seqs), demo(f"c{seqs}")])
            eventually(lambda: set(states(server)) == {"a", "b", f"c{seqs}"})
            eventually(lambda: states(server)["b"]["state"] == "ready")
        config_map.update([{"name": "broken"}])
        time.sleep(1 * PATIENCE)
        assert set(states(server)) == {"a", "b", "c8"}
        config_map.update([demo("a"), demo("b")])
        eventually(lambda: set(states(server)) == {"a", "b"})


def test_a_file_that_has_gone_changes_nothing(tmp_path):
    write(tmp_path, [demo("a")])
    with Process(before=["env", "-C", tmp_path]) as server:  # which finds it there by itself
        (tmp_path / "models.yaml").unlink()
        refused = server.post("/admin/reload", {})
        assert refused.status_code == 400 and "models.yaml: No such file or directory" in refused.text
        assert refused.json()["error"]["code"] != "model_not_found"
        assert set(states(server)) == {"a"}
        assert say(server, "a").status_code == 200


@pytest.mark.parametrize("what", ["folder", "fifo", "unreadable"])
def test_what_is_no_file_changes_nothing_and_holds_nothing_up(tmp_path, what):
    """Docker, for one, makes a folder where a file that is to be mounted is missing."""
    if what == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    file = write(tmp_path, [demo("a")])
    with Process("--config", file) as server:
        file.unlink()
        if what == "fifo":
            os.mkfifo(file)
        elif what == "folder":
            file.mkdir()
        else:
            file.touch(0)
        eventually(lambda: "cannot be read; everything stays as it was" in server.output())
        refused = server.post("/admin/reload", {})
        assert refused.status_code == 400 and str(file) in refused.text
        server.child.send_signal(signal.SIGHUP)
        eventually(lambda: server.output().count("not reloaded") >= 2)
        assert say(server, "a").status_code == 200
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        write(tmp_path, [demo("a"), demo("b")])
        eventually(lambda: set(states(server)) == {"a", "b"})


def test_a_link_that_leads_to_another_folder(tmp_path):
    versions = [tmp_path / name for name in ("one", "two", "three")]
    for folder, name in zip(versions, "abc"):
        folder.mkdir()
        write(folder, [demo(name)])
    link = tmp_path / "models.yaml"
    link.symlink_to(versions[0] / "models.yaml")
    with Process("--config", link) as server:
        for folder, name in zip(versions[1:], "bc"):
            fresh = tmp_path / "fresh"
            fresh.symlink_to(folder / "models.yaml")
            fresh.rename(link)
            eventually(lambda: set(states(server)) == {name})
        write(versions[2], [demo("d")])  # where the link leads now
        eventually(lambda: set(states(server)) == {"d"})


def test_a_change_without_room_for_both_is_swapped_while_requests_wait(tmp_path):
    models = lambda seqs: [demo("a", kv_cache="40MiB", max_num_seqs=seqs)]
    memory = {"host": "70MiB"}
    with Process("--config", write(tmp_path, models(8), memory=memory)) as server, Traffic(server, ["a"]) as traffic:
        for seqs in range(9, 13):
            before = traffic.answered
            write(tmp_path, models(seqs), memory=memory)
            assert server.post("/admin/reload", {}).status_code == 200
            eventually(lambda: traffic.answered > before + 20)
        eventually(lambda: states(server)["a"]["state"] == "ready")
        assert server.get("/metrics").text.count('xgen_model_loads_total{model_name="a"} 1\n') == 0


def test_many_reloads_at_once_end_in_the_last_file(tmp_path):
    with Process("--config", write(tmp_path, [demo("a"), demo("b")])) as server, Traffic(server, ["a"]):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for i in range(40):
                write(tmp_path, [demo("a", max_num_seqs=5 + i % 3), demo(f"x{i}", load="on_demand")])
                pool.submit(server.post, "/admin/reload", {})
        assert server.post("/admin/reload", {}).status_code == 200
        assert set(states(server)) == {"a", "x39"}
        eventually(lambda: states(server)["a"]["state"] == "ready")


def test_a_name_that_passes_to_another_model_fails_no_request(tmp_path):
    first = demo("one", aliases=["default"])
    with Process("--config", write(tmp_path, [first])) as server, Traffic(server, ["default"]):
        for i in range(4):
            write(tmp_path, [demo(f"new{i}", aliases=["default"], max_num_seqs=4)])
            eventually(lambda: set(states(server)) == {f"new{i}"})
            write(tmp_path, [demo("one"), demo(f"new{i}", max_num_seqs=4), demo(f"other{i}", aliases=["default"])])
            eventually(lambda: states(server).get(f"other{i}", {}).get("state") == "ready" and "one" in states(server))


def test_a_new_model_takes_the_room_of_one_that_goes(tmp_path):
    with Process("--config", write(tmp_path, [demo("a")], memory={"host": "70MiB"})) as server:
        assert states(server)["a"]["reserved_bytes"] > 35 << 20
        for name in ["b", "c"]:
            write(tmp_path, [demo(name)], memory={"host": "70MiB"})
            eventually(lambda: set(states(server)) == {name} and states(server)[name]["state"] == "ready")
            # While one answers, too.
            story = server.stream("/v1/completions", {"model": name, "prompt": "hi", "max_tokens": 2000, "ignore_eos": True})
            next(story)
            write(tmp_path, [demo(name + "2")], memory={"host": "70MiB"})
            eventually(lambda: set(states(server)) == {name + "2"})
            assert "error" not in list(story)[-1]
            eventually(lambda: states(server)[name + "2"]["state"] == "ready")


def test_a_hangup_while_the_server_ends_cuts_nothing_off(tmp_path):
    with Process("--config", write(tmp_path, [demo("a")], server={"drain_delay": "1s"})) as server:
        story = server.stream("/v1/completions", {"model": "a", "prompt": "hi", "max_tokens": 2000, "ignore_eos": True})
        next(story)
        server.signal(signal.SIGTERM)
        eventually(lambda: server.get("/health/ready").status_code == 503)
        server.signal(signal.SIGHUP)
        assert list(story)[-1]["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0
        assert "not reloaded; the server is ending" in server.output()


def test_a_model_that_is_added_gets_the_share_that_was_planned(tmp_path):
    with Process("--config", write(tmp_path, [demo("a")], memory={"host": "70MiB"})) as server:
        alone = states(server)["a"]["reserved_bytes"]
        with Traffic(server, ["a"]):
            write(tmp_path, [demo("a"), demo("b")], memory={"host": "70MiB"})
            eventually(lambda: states(server).get("b", {}).get("state") == "ready")
            now = states(server)
            assert now["a"]["reserved_bytes"] < alone
            assert sum(each["reserved_bytes"] + each["borrowed_bytes"] for each in now.values()) <= 70 << 20
        assert "evicting" not in server.output()
