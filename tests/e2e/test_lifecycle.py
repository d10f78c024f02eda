"""What a service manager and an operator are told of the process: readiness, hangs, reloads, the end, a crash."""
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import httpx
import pytest

from process import BUILD, PATIENCE, PROGRAM, Process


class Manager:
    """The socket that systemd would listen on."""

    def __init__(self, name):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(name)
        self.socket.settimeout(0.1)
        self.heard = []  # (time, {name: value})
        self.over = False
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()

    def listen(self):
        while not self.over:
            try:
                text = self.socket.recv(4096).decode()
            except socket.timeout:
                continue
            self.heard.append((time.monotonic(), dict(line.split("=", 1) for line in text.splitlines())))

    def wait(self, what, seconds=20):
        end = time.monotonic() + seconds * PATIENCE
        while time.monotonic() < end:
            for _, each in list(self.heard):
                if what(each):
                    return each
            time.sleep(0.01)
        raise AssertionError(f"not told; only {self.heard}")

    def close(self):
        self.over = True
        self.thread.join()
        self.socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    name = str(tmp_path / "notify") if request.param == "path" else f"\0xgen-{os.getpid()}-{time.monotonic_ns()}"
    made = Manager(name)
    made.address = name.replace("\0", "@")
    yield made
    made.close()


def serve(manager, tmp_path, settings, ready=True, **env):
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps(settings))
    return Process("--config", file, env={"NOTIFY_SOCKET": manager.address, **env}, ready=ready), file


def test_a_service_manager_is_told(manager, tmp_path):
    program, file = serve(manager, tmp_path, {"server": {"drain_delay": "0s", "drain_timeout": "7s"}})
    with program:
        told = manager.wait(lambda each: "READY" in each)
        assert told == {"READY": "1", "STATUS": "Serving"}
        manager.heard.clear()
        program.child.send_signal(signal.SIGHUP)
        told = manager.wait(lambda each: "RELOADING" in each)
        assert int(told["MONOTONIC_USEC"]) <= time.monotonic() * 1e6
        manager.wait(lambda each: each.get("READY") == "1")
        manager.heard.clear()
        file.write_text("server: [")
        manager.wait(lambda each: "not valid" in each.get("STATUS", ""))
        program.child.send_signal(signal.SIGTERM)
        told = manager.wait(lambda each: "STOPPING" in each)
        assert int(told["EXTEND_TIMEOUT_USEC"]) >= 7_000_000
        assert program.child.wait(20 * PATIENCE) == 0
        program.stop = lambda: None
    assert not [each for _, each in manager.heard if "WATCHDOG" in each], "nobody asked for it"


def reloads(program, count, seconds=20):
    end = time.monotonic() + seconds * PATIENCE
    while program.output().count("config: reloaded") < count:
        assert time.monotonic() < end, program.output()
        time.sleep(0.02)


def test_a_reload_while_models_load_or_requests_finish_is_no_news(manager, tmp_path):
    """READY would end the start before its models are there, and "Serving" is not what a server does that ends."""
    silent = socket.create_server(("127.0.0.1", 0))
    loading = {"models": [{"name": "a", "source": "hf://org/slow"}]}
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "HF_HOME": str(tmp_path / "hf")}
    program, file = serve(manager, tmp_path, loading, ready=False, **env)
    try:
        manager.wait(lambda each: "Loading" in each.get("STATUS", ""))
        file.write_text(json.dumps({"defaults": {"max_num_seqs": 7}, **loading}))
        reloads(program, 1)
        time.sleep(0.2)
        assert not [each for _, each in manager.heard if "READY" in each or "RELOADING" in each]
    finally:
        program.child.kill()
        program.child.wait()
        silent.close()
    manager.heard.clear()
    program, file = serve(manager, tmp_path, {"server": {"drain_delay": "3s"}})
    with program:
        manager.wait(lambda each: "READY" in each)
        program.child.send_signal(signal.SIGTERM)
        manager.wait(lambda each: "STOPPING" in each)
        file.write_text(json.dumps({"server": {"drain_delay": "3s"}, "defaults": {"max_num_seqs": 7}}))
        reloads(program, 1)
        time.sleep(0.2)
        assert "STOPPING" in manager.heard[-1][1], manager.heard
        assert program.child.wait(20 * PATIENCE) == 0
        program.stop = lambda: None


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_ends_the_start_is_said_in_the_logs_form(form):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        program = Process("--log-format", form, ready=False, port=taken.getsockname()[1])
        assert program.child.wait(20 * PATIENCE) == 1
    line = program.output().splitlines()[-1]
    if form == "text":
        assert line.startswith("xgen-model: cannot listen on "), line
    else:
        told = json.loads(line)
        assert (told["level"], told["message"]) == ("error", "not started") and "cannot listen on" in told["reason"]


def hang(program):
    """A call whose one step takes many seconds with the scalar kernels, and then ends well."""
    def run():
        prompts = [f"{i} " + "word " * 800 for i in range(24)]
        answers.append(httpx.post(program.url + "/v1/completions", timeout=300 * PATIENCE,
                                  json={"model": "xgen-demo", "prompt": prompts, "max_tokens": 1}))
    answers = []
    thread = threading.Thread(target=run)
    thread.start()
    return thread, answers


def test_a_step_that_hangs_turns_the_probe_red_and_silences_the_watchdog(manager, tmp_path):
    settings = {"server": {"stall_limit": "1s"}, "compute": {"kernels": "scalar", "threads": 1},
                "defaults": {"max_num_batched_tokens": 24576, "prefix_caching": False}}
    program, _ = serve(manager, tmp_path, settings, WATCHDOG_USEC="300000")
    with program:
        assert program.get("/health/live").status_code == 200
        manager.wait(lambda each: "WATCHDOG" in each)
        begun = time.monotonic()
        thread, answers = hang(program)
        looks = []  # (time, whether it was red)
        while thread.is_alive():
            live = httpx.get(program.url + "/health/live", timeout=20 * PATIENCE)
            looks.append((time.monotonic(), live.status_code == 503))
            if looks[-1][1] and not looks[-2][1]:
                assert live.json()["status"] == "hanging"
                # Whoever looks at the rest still gets an answer.
                assert program.get("/health/ready").status_code == 200
            time.sleep(0.02)
        reds = [when for when, red in looks if red]
        assert reds, f"no step took a second? the call took {looks[-1][0] - begun:.1f} s"
        assert reds[0] - begun < 1 + 4 * PATIENCE
        assert answers[0].status_code == 200
        for when, each in manager.heard:
            if "WATCHDOG" not in each or not begun < when < looks[-1][0]:
                continue
            # What was red for a while before and after was red at that time.
            around = [red for at, red in looks if abs(at - when) < 0.2]
            assert not all(around), "the watchdog was told that all is well"
        # And well again.
        assert program.get("/health/live").status_code == 200
        manager.heard.clear()
        manager.wait(lambda each: "WATCHDOG" in each)


def test_a_watchdog_of_another_process_is_not_served(manager, tmp_path):
    program, _ = serve(manager, tmp_path, {}, WATCHDOG_USEC="100000", WATCHDOG_PID="1")
    with program:
        manager.wait(lambda each: "READY" in each)
        time.sleep(0.5)
        assert not [each for _, each in manager.heard if "WATCHDOG" in each]


@pytest.mark.skipif(BUILD.name in ("asan", "tsan"), reason="sanitizers tell of crashes themselves")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE])
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_crash_leaves_its_stack_in_the_log(number, form):
    program = Process("--log-format", form)
    try:
        program.child.send_signal(number)
        assert program.child.wait(20 * PATIENCE) == -number, "the status is that of the signal"
        line, last = program.output().splitlines()[-2:]
        if form == "json":
            told = json.loads(line)
            assert (told["level"], told["component"], told["message"]) == ("error", "process", "crashed")
            assert told["signal"] == number.name
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told["time"])
            assert abs(time.time() - time.mktime(time.strptime(told["time"][:19], "%Y-%m-%dT%H:%M:%S")) + time.timezone) < 60 * PATIENCE
            stack = json.loads(last)["stack"]
        else:
            assert re.match(rf'\S+Z error process: crashed signal="{number.name}" ', line), line
            stack = re.search(r'stack of the crash stack="(.*)"', last)[1]
        places = re.findall(r"xgen-model\+(0x[0-9a-f]+)", stack)
        assert len(places) >= 3, stack
        # The places are those of the program's file.
        if subprocess.run(["which", "addr2line"], capture_output=True).returncode == 0:
            names = subprocess.run(["addr2line", "-Cfe", PROGRAM, *places], capture_output=True, text=True).stdout
            assert "main" in names.split(), names
    finally:
        program.child.kill()
        program.child.wait()
