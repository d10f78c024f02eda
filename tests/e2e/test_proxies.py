"""nginx and HAProxy with the configurations of deploy/proxy, in front of the program: streams, several replicas, drains."""
import contextlib
import json
import re
import socket
import time

import httpx
import pytest

from conftest import SCRIPTED, started
from process import PATIENCE, Process
from proxies import haproxy, nginx, proxy
from rolling import Load, excused, fixed_port, replicas

STEP_S = 0.05

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
        # A proxy that collects a stream, or a part of it, would bring its events together.
        assert sum(later - earlier > STEP_S / 2 for (earlier, _), (later, _) in zip(times, times[1:])) > len(times) / 2


@both
def test_a_client_that_goes_ends_its_request(kind, tmp_path):
    if not SCRIPTED.exists():
        pytest.skip(f"{SCRIPTED} is not built")
    with started([SCRIPTED, "--quiet", "--step-us", str(int(STEP_S * 1e6))]) as url:
        (tmp_path / "models.yaml").write_text(json.dumps({"models": [{"name": "far", "engine": "openai", "urls": [f"{url}/v1"], "model": "scripted"}]}))
        with Process("--config", tmp_path / "models.yaml") as server, proxy(kind, tmp_path, server.port) as front:
            running = lambda: float(re.search(r'^vllm:num_requests_running\{[^}]*model_name="far"[^}]*\} (\S+)', httpx.get(server.url + "/metrics").text, re.M)[1])
            body = {"model": "far", "stream": True, "max_tokens": 2000, "messages": [{"role": "user", "content": "word " * 2000}]}
            with httpx.stream("POST", front + "/v1/chat/completions", json=body, timeout=60 * PATIENCE) as answer:
                lines = answer.iter_lines()  # kept: without it the answer is closed
                next(lines)
                assert running() == 1
            end = time.monotonic() + 10 * PATIENCE
            while running() > 0:
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
def test_what_clients_say_of_themselves_does_not_pass(kind, tmp_path):
    """The server trusts the proxy here, and the proxy nobody."""
    (tmp_path / "models.yaml").write_text("server: {trusted_proxies: [127.0.0.1]}\n")
    said = {"Forwarded": "for=192.0.2.1", "X-Forwarded-For": "192.0.2.2", "X-User-Id": "forged", "X-User-Name": "forged", "X-User-Admin": "true"}
    with Process("--config", tmp_path / "models.yaml") as server, proxy(kind, tmp_path, server.port) as front:
        assert httpx.get(front + "/version", headers=said).status_code == 200
        line = next(line for line in server.output().splitlines() if "path=/version" in line)
        assert " remote=192.0.2.2" in line and "forged" not in line, line  # what the proxy has written is of one mind


def test_replicas_are_restarted_one_after_the_other_and_one_is_killed(tmp_path):
    """Nobody notices a restart; of a replica that is killed, only those whose streams it had begun."""
    if not SCRIPTED.exists():
        pytest.skip(f"{SCRIPTED} is not built")
    with replicas(tmp_path, drain_delay="2s", drain_timeout="20s") as two, \
            proxy(nginx, tmp_path, *two.ports) as by_nginx, proxy(haproxy, tmp_path, *two.ports) as by_haproxy, \
            Load({"nginx": by_nginx, "haproxy": by_haproxy}, large=["nginx"]) as load:
        for number in (0, 1, 0, 1):
            two.restart(number)
        before = len(load.calls)
        end = time.monotonic() + 20 * PATIENCE
        while not all(len(load.begun_at(port)) == 2 for port in two.ports):
            assert time.monotonic() < end, "no streams through both proxies at both replicas"
            time.sleep(0.01)
        killed = two.kill(0, hangs_s=0.4)
        time.sleep(1)
        two.start_again(0)
        time.sleep(1)
    assert [call for call in load.calls if call.fault and not excused(call, two.ports[0], killed)] == []
    assert {call.proxy for call in load.calls if call.fault} == {"nginx", "haproxy"}  # who had to notice
    moved = [call for call in load.calls if call.sent < killed < call.ended and {*two.ports} == {*call.asked}]
    assert [call for call in moved if call.asked[-1] == two.ports[1]]  # of which nginx tells
    for name in ("nginx", "haproxy"):
        kinds = [call.kind for call in load.calls[:before] if call.proxy == name]
        assert min(kinds.count(kind) for kind in ("plain", "stream", "slow", "slow stream")) > 10


def test_a_replica_that_came_back_is_asked_when_no_other_is_left(tmp_path):
    """nginx leaves one alone for two seconds that it could not reach, but not where there is no other."""
    body = {"model": "xgen-demo", "messages": [{"role": "user", "content": "How do I add a model?"}]}
    with contextlib.ExitStack() as stack:
        came, goes = Process(port=fixed_port()), Process(port=fixed_port())
        for each in (came, goes):  # those that a fault, or a machine without nginx, leaves
            stack.callback(each.child.kill)
        front = stack.enter_context(proxy(nginx, tmp_path, came.port, goes.port))
        client = stack.enter_context(httpx.Client(timeout=60 * PATIENCE))
        ask = lambda: client.post(front + "/v1/chat/completions", json=body).status_code
        came.stop()
        assert [ask() for _ in range(5)] == [200] * 5
        with Process(port=came.port):
            goes.stop()
            assert [ask() for _ in range(5)] == [200] * 5


@both
def test_a_machine_that_does_not_answer_is_passed_over(kind, tmp_path):
    body = {"model": "xgen-demo", "messages": [{"role": "user", "content": "How do I add a model?"}]}
    with socket.socket() as silent, contextlib.ExitStack() as stack, Process() as server:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(4):  # its queue is full: the system drops what else would connect
            link = stack.enter_context(socket.socket())
            link.setblocking(False)
            link.connect_ex(silent.getsockname())
        with proxy(kind, tmp_path, silent.getsockname()[1], server.port) as front, httpx.Client(timeout=60 * PATIENCE) as client:
            assert [client.post(front + "/v1/chat/completions", json=body).status_code for _ in range(4)] == [200] * 4


@both
def test_a_broken_model_takes_no_replica_from_the_others(kind, tmp_path):
    """503 for a model that is out of order, at every replica, does not keep requests for another model from them."""
    broken = {"name": "broken", "engine": "openai", "urls": [f"http://127.0.0.1:{fixed_port()}/v1"]}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": [{"name": "xgen-demo", "source": "builtin:xgen-demo"}, broken]}))
    ask = lambda model: client.post(front + "/v1/chat/completions", json={"model": model, "messages": [{"role": "user", "content": "hi"}]}).status_code
    with Process("--config", tmp_path / "models.yaml") as one, Process("--config", tmp_path / "models.yaml") as other, \
            proxy(kind, tmp_path, one.port, other.port) as front, httpx.Client(timeout=60 * PATIENCE) as client:
        assert [ask(model) for model in ["broken", "xgen-demo"] * 4] == [503, 200] * 4
