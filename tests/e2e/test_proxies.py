"""nginx and HAProxy with the configurations of deploy/proxy, in front of the program: streams, several replicas, drains."""
import contextlib
import re
import shutil
import socket
import subprocess
import time

import httpx
import pytest

from conftest import SCRIPTED, started
from process import PATIENCE, ROOT, Process, free_port

PROXIES = ROOT / "deploy/proxy"
STEP_S = 0.05


def find(program):
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def nginx(tmp_path, ports, listen):
    text = (PROXIES / "nginx.conf").read_text().replace("listen 8080;", f"listen 127.0.0.1:{listen};")
    line = re.search(r"^ *server 127\.0\.0\.1:8000 .*\n", text, re.M)[0]
    text = text.replace(line, "".join(line.replace("8000", str(port)) for port in ports))
    (tmp_path / "xgen-model.conf").write_text(text)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/nginx.pid;\ndaemon off;\nerror_log {tmp_path}/error.log;\nevents {{}}\nhttp {{\n  access_log off;\n" +
        "".join(f"  {kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")) +
        f"  include {tmp_path}/xgen-model.conf;\n}}\n")
    return [find("nginx"), "-p", str(tmp_path), "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")]


def haproxy(tmp_path, ports, listen):
    text = (PROXIES / "haproxy.cfg").read_text().replace("bind :8080", f"bind 127.0.0.1:{listen}")
    text = text.replace("  server local 127.0.0.1:8000\n", "".join(f"  server at-{port} 127.0.0.1:{port}\n" for port in ports))
    (tmp_path / "haproxy.cfg").write_text(text)
    return [find("haproxy"), "-db", "-f", str(tmp_path / "haproxy.cfg")]


@contextlib.contextmanager
def proxy(kind, tmp_path, *ports):
    """The URL of the proxy in front of these ports of 127.0.0.1."""
    listen = free_port()
    with open(tmp_path / "log", "w+") as log:
        child = subprocess.Popen(kind(tmp_path, ports, listen), stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 10 * PATIENCE
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", listen), timeout=1):
                    break
                assert child.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.02)
            yield f"http://127.0.0.1:{listen}"
        finally:
            child.terminate()
            child.wait(20)


both = pytest.mark.parametrize("kind", [nginx, haproxy], ids=["nginx", "haproxy"])


@both
def test_streams_are_not_held_back(kind, tmp_path):
    if not SCRIPTED.exists():
        pytest.skip(f"{SCRIPTED} is not built")
    with started([SCRIPTED, "--quiet", "--step-us", str(int(STEP_S * 1e6))]) as url, \
            proxy(kind, tmp_path, int(url.rsplit(":", 1)[1])) as front:
        body = {"model": "scripted", "stream": True, "max_tokens": 20, "messages": [{"role": "user", "content": " ".join("word" for _ in range(20))}]}
        times = []
        with httpx.stream("POST", front + "/v1/chat/completions", json=body, timeout=60 * PATIENCE) as answer:
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    times.append((time.monotonic(), line))
        assert times[-1][1] == "data: [DONE]" and len(times) > 10
        # A proxy that collects a stream would bring its events together.
        arrivals = [moment for moment, _ in times]
        assert arrivals[-1] - arrivals[0] > STEP_S * (len(times) - 4) / 2


@both
def test_a_client_that_goes_ends_its_request(kind, tmp_path):
    if not SCRIPTED.exists():
        pytest.skip(f"{SCRIPTED} is not built")
    with started([SCRIPTED, "--quiet", "--step-us", str(int(STEP_S * 1e6))]) as url, \
            proxy(kind, tmp_path, int(url.rsplit(":", 1)[1])) as front:
        body = {"model": "scripted", "stream": True, "max_tokens": 2000, "messages": [{"role": "user", "content": "word " * 2000}]}
        with httpx.stream("POST", front + "/v1/chat/completions", json=body, timeout=60 * PATIENCE) as answer:
            next(answer.iter_lines())
        running = lambda: re.search(r'^vllm:num_requests_running\{[^}]*model_name="scripted"[^}]*\} (\S+)', httpx.get(url + "/metrics").text, re.M)[1]
        end = time.monotonic() + 10 * PATIENCE
        while float(running()) > 0:
            assert time.monotonic() < end, "the request goes on without its client"
            time.sleep(0.02)


@both
def test_operators_routes_do_not_pass(kind, tmp_path):
    with Process() as server, proxy(kind, tmp_path, server.port) as front:
        host = {"Host": f"localhost:{server.port}"}  # as somebody would say who passes for this machine
        assert httpx.get(server.url + "/admin/models", headers=host).status_code == 200
        for path in ("/admin/models", "/load", "/loading-status", "/api/management/status", "/api/inference/load",
                     "/api/inference/admin/models", "/api/vllm/loading-status", "/api/inference/api/management/status",
                     "/%61dmin/models", "//admin/models", "/v1/../admin/models"):
            request = httpx.Request("GET", front + "/", headers=host)
            request.url = request.url.copy_with(raw_path=path.encode())
            with httpx.Client() as client:
                assert client.send(request).status_code in (400, 404), path
        assert httpx.get(front + "/v1/models").status_code == 200
        answer = httpx.post(front + "/v1/chat/completions", json={"model": "xgen-demo", "messages": [{"role": "user", "content": "hi"}]},
                            headers={"x-request-id": "mine"}, timeout=60)
        assert answer.status_code == 200 and answer.headers["x-request-id"] == "mine"


@both
def test_a_replica_that_ends_is_not_noticed(kind, tmp_path):
    """Requests one after the other while one of two replicas drains and goes, and comes again."""
    (tmp_path / "models.yaml").write_text("server: {drain_delay: 2s, drain_timeout: 10s}\n")
    body = {"model": "xgen-demo", "messages": [{"role": "user", "content": "How do I add a model?"}]}
    with Process("--config", tmp_path / "models.yaml") as stays:
        goes = Process("--config", tmp_path / "models.yaml")
        with proxy(kind, tmp_path, stays.port, goes.port) as front, httpx.Client(timeout=60) as client:
            ask = lambda: client.post(front + "/v1/chat/completions", json=body).status_code
            answers = [ask() for _ in range(10)]
            goes.signal(15)
            while goes.child.poll() is None:
                answers.append(ask())
            answers += [ask() for _ in range(30)]
            assert goes.child.returncode == 0
            with Process("--config", tmp_path / "models.yaml", port=goes.port):
                answers += [ask() for _ in range(30)]
            assert set(answers) == {200} and len(answers) > 70
