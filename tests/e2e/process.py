"""Starts the built program (or a test's stand-in for it) and talks to it."""
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import tempfile
import time

import httpx

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
BUILD = pathlib.Path(os.environ.get("XGEN_BUILD", ROOT / "build/release"))
PROGRAM = BUILD / "xgen-model"
# Sanitizer builds are several times slower.
PATIENCE = 10 if BUILD.name in ("asan", "tsan") else 1


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def limit(open_files, cgroup):
    """What a child does before it becomes the program. `cgroup`: the folder of a control group."""
    if open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    if cgroup:
        (cgroup / "cgroup.procs").write_text("0")


class Process:
    """`xgen-model serve ARGS…` on a free port of 127.0.0.1, ready when the constructor returns. `before`: a command
    that becomes the program. `tls`: it speaks https, and this is the ssl.SSLContext to ask it with."""

    def __init__(self, *args, env=None, ready=True, limit_open_files=None, cgroup=None, host="127.0.0.1", port=None, before=(), tls=None):
        self.port = port or free_port()
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self.verify = tls or True
        self.log = tempfile.TemporaryFile("w+")
        self.child = subprocess.Popen(
            [*map(str, before), str(PROGRAM), "serve", *map(str, args), "--host", host, "--port", str(self.port)],
            stdout=self.log, stderr=subprocess.STDOUT, env=dict(os.environ, **(env or {})),
            preexec_fn=(limit_open_files or cgroup) and (lambda: limit(limit_open_files, cgroup)))
        if ready:
            self.wait_ready()

    def wait_ready(self, seconds=20):
        end = time.monotonic() + seconds * PATIENCE
        while time.monotonic() < end:
            if self.child.poll() is not None:
                raise AssertionError(f"ended with {self.child.returncode}:\n{self.output()}")
            try:
                if httpx.get(self.url + "/health/ready", timeout=2 * PATIENCE, verify=self.verify).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.01)
        raise AssertionError("not ready:\n" + self.output())

    def output(self):
        self.log.seek(0)
        return self.log.read()

    def get(self, path):
        return httpx.get(self.url + path, timeout=120 * PATIENCE, verify=self.verify)

    def post(self, path, body, **kwargs):
        return httpx.post(self.url + path, json=body, timeout=120 * PATIENCE, verify=self.verify, **kwargs)

    def stream(self, path, body):
        """The JSON of each SSE event before [DONE]."""
        with httpx.stream("POST", self.url + path, json=dict(body, stream=True), timeout=120 * PATIENCE, verify=self.verify) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield json.loads(line[6:])

    def signal(self, number):
        self.child.send_signal(number)

    def wait(self, seconds=30):
        return self.child.wait(seconds * PATIENCE)

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)
            try:
                self.child.wait(15 * PATIENCE)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        code, text = self.child.returncode, self.output()
        self.log.close()
        assert code == 0, f"ended with {code}:\n{text}"

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.stop()
        else:
            print(self.output())
            self.child.kill()
            self.child.wait()


def run(*args, env=None):
    """Runs the program to its end."""
    return subprocess.run([str(PROGRAM), *map(str, args)], capture_output=True, text=True, timeout=60 * PATIENCE,
                          env=dict(os.environ, **(env or {})))
