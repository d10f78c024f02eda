"""Who gets in: the operators' listener, proxies in front (a real nginx where there is one), pages of other origins, hostile input."""
import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import types

import httpx
import pytest

from process import PATIENCE, Process, free_port, run
from pki import Authority
from test_api_keys import TEAM, write_keys
from test_models import demo, eventually, write


def raw(server, sent, wait=20):
    """All that comes back for these bytes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait * PATIENCE) as connection:
        connection.sendall(sent)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def get(url, headers=None, **kwargs):
    return httpx.get(url, headers=headers or {}, timeout=30 * PATIENCE, **kwargs).status_code


def answers_health(server):
    try:
        return get(server.url + "/health") == 200
    except httpx.TransportError:  # in the middle of a burst a newcomer may be turned away
        return False


def test_operators_have_a_listener_of_their_own(tmp_path):
    authority = Authority(tmp_path)
    pem, key, _ = authority.issue("server")
    port = free_port()
    for tls in [None, authority.context()]:
        settings = {"admin_port": port, **({"tls_cert_file": str(pem), "tls_key_file": str(key)} if tls else {})}
        with Process("--config", write(tmp_path, [demo("a")], server=settings), tls=tls) as server:
            operators = server.url.replace(str(server.port), str(port))
            ask = lambda base, path: get(base + path, verify=server.verify)
            for path in ["/admin/models", "/metrics", "/api/management/status", "/api/inference/loading-status"]:
                assert ask(server.url, path) == 404 and ask(operators, path) == 200, path
            assert ask(server.url, "/v1/models") == 200 and ask(operators, "/v1/models") == 404
            for path in ["/health", "/health/ready", "/health/live", "/version"]:
                assert ask(server.url, path) == 200 and ask(operators, path) == 200, path
            assert f"operators' listener host=127.0.0.1 port={port}" in server.output()


@pytest.mark.parametrize("settings, message", [
    ({"operators": "gateway"}, "server.operators: gateway needs server.trusted_proxies"),
    ({"admin_port": 8000}, "server.admin_port: the same as server.port"),
    ({"trusted_proxies": ["10.0.0.0/8", "gateway.local"]}, "server.trusted_proxies[1]: expected an address or a range"),
    ({"cors_origins": ["https://a.example/"]}, "server.cors_origins[0]: expected \"*\" or an origin"),
])
def test_wrong_settings_are_told(tmp_path, settings, message):
    wrong = run("check", "--config", write(tmp_path, [demo("a")], server=settings))
    assert wrong.returncode == 2 and message in wrong.stderr, wrong.stderr


@contextlib.contextmanager
def nginx(tmp_path, server, settings):
    """Its URL; it sends everything on from 127.0.0.1."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not program:
        pytest.skip("there is no nginx")
    port = free_port()
    (tmp_path / "nginx.conf").write_text(f"""
        daemon off; pid {tmp_path}/nginx.pid; error_log stderr; events {{}}
        http {{ access_log off; client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p; fastcgi_temp_path {tmp_path}/f;
                uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
                server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{server.port}; {settings} }} }} }}""")
    front = types.SimpleNamespace(url=f"http://127.0.0.1:{port}")
    child = subprocess.Popen([program, "-c", tmp_path / "nginx.conf", "-p", tmp_path], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: answers_health(front))
        yield front.url
    finally:
        child.terminate()
        child.wait()


def test_a_proxy_on_this_machine_makes_nobody_an_operator(tmp_path):
    for trusted in [[], ["127.0.0.1"]]:
        with Process("--config", write(tmp_path, [demo("a")], server={"trusted_proxies": trusted})) as server, \
                nginx(tmp_path, server, "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;") as front:
            # The test comes from this machine; another client would not.
            assert get(front + "/admin/models") == (200 if trusted else 403)
            spoofed = {"X-Forwarded-For": "192.0.2.9"}  # nginx appends 127.0.0.1, which is trusted, if at all
            assert get(front + "/admin/models", spoofed) == 403
            assert get(server.url + "/admin/models", spoofed) == 403
            assert get(server.url + "/admin/models") == 200
            if not trusted:
                assert "server.trusted_proxies" in httpx.get(front + "/admin/models").json()["error"]["message"]


def test_a_proxy_that_adds_no_header_needs_a_port_for_operators(tmp_path):
    """nginx with nothing but proxy_pass, which names this machine as the host, too."""
    port = free_port()
    with Process("--config", write(tmp_path, [demo("a")], server={"admin_port": port})) as server, nginx(tmp_path, server, "") as front:
        assert get(front + "/v1/models") == 200
        for path in ["/admin/models", "/metrics", "/api/management/status"]:
            assert get(front + path) == 404 and get(f"http://127.0.0.1:{port}{path}") == 200, path


def test_pages_of_other_origins(tmp_path):
    with Process("--config", write(tmp_path, [demo("a")], server={"cors_origins": ["https://app.example.com"]})) as server:
        ask = lambda method, path, **headers: httpx.request(method, server.url + path, headers=headers, timeout=30 * PATIENCE)
        question = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        preflight = ask("OPTIONS", "/v1/chat/completions", **question)
        assert preflight.status_code == 204 and preflight.headers["access-control-allow-origin"] == "https://app.example.com"
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        assert ask("GET", "/v1/models", Origin="https://app.example.com").headers["access-control-allow-origin"] == "https://app.example.com"
        assert "access-control-allow-origin" not in ask("GET", "/v1/models", Origin="https://evil.example").headers
        assert ask("OPTIONS", "/admin/load", **question).status_code == 404
        stream = httpx.post(server.url + "/v1/completions", headers={"Origin": "https://app.example.com"}, timeout=30 * PATIENCE,
                            json={"model": "a", "prompt": "hi", "max_tokens": 2, "stream": True})
        assert stream.headers["access-control-allow-origin"] == "https://app.example.com"


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A server with short time limits."""
    settings = {"header_timeout": "1s", "body_timeout": "2s", "write_timeout": "2s", "idle_timeout": "3s", "max_connections": 200}
    with Process("--config", write(tmp_path_factory.mktemp("short"), [demo("a")], server=settings)) as server:
        yield server


def test_slow_clients_are_cut_off(short):
    slow = [b"GET /health HTTP/1.1\r\nHost: t\r\nX-A: ", b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n{"]
    begin = time.monotonic()
    for head in slow:
        with socket.create_connection(("127.0.0.1", short.port), timeout=20 * PATIENCE) as connection:
            connection.sendall(head)
            answer = b""
            try:
                while True:  # a byte now and then does not help
                    connection.settimeout(0.2)
                    try:
                        piece = connection.recv(4096)
                        if not piece:
                            break
                        answer += piece
                    except TimeoutError:
                        connection.sendall(b"a")
                    assert time.monotonic() - begin < 30 * PATIENCE
            except (BrokenPipeError, ConnectionResetError):
                pass
            assert answer.startswith(b"HTTP/1.1 408"), answer
    assert get(short.url + "/health") == 200


def test_a_client_that_does_not_read_is_cut_off(short):
    with socket.create_connection(("127.0.0.1", short.port), timeout=5 * PATIENCE) as lazy:
        lazy.setblocking(False)
        sent = 0
        try:
            while sent < 64 << 20:
                sent += lazy.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n" * 1000)
                time.sleep(0.001)
        except OSError:  # no more is taken up than is answered
            pass
        assert sent < 64 << 20
        eventually(lambda: "a client took no bytes for write_timeout" in short.output(), 60)
    assert get(short.url + "/health") == 200


def test_floods_of_requests_and_connections(short):
    request = b"GET /version HTTP/1.1\r\nHost: t\r\n\r\n"
    answers = raw(short, request * 2000 + b"GET /version HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
    assert answers.count(b"HTTP/1.1 200 OK") == 2001
    held = []
    try:
        for _ in range(600):  # three times as many as may be open
            one = socket.create_connection(("127.0.0.1", short.port), timeout=20 * PATIENCE)
            one.sendall(b"GET / HT")
            held.append(one)
        eventually(lambda: answers_health(short))  # while they are all still open
    finally:
        for one in held:
            one.close()


def half_a_body(server, size, key=None):
    """A connection that has sent all but one byte of a large request."""
    one = socket.create_connection(("127.0.0.1", server.port), timeout=20 * PATIENCE)
    authorization = b"Authorization: Bearer " + key.encode() + b"\r\n" if key else b""
    with contextlib.suppress(OSError):  # refused before all of it was sent
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\n" + authorization + b"Content-Length: %d\r\n\r\n" % size + b"x" * (size - 1))
    return one


def test_bodies_of_strangers_hold_up_nobody(tmp_path):
    write_keys(tmp_path / "keys.yaml", TEAM)
    settings = {"api_keys_file": "keys.yaml", "max_connections": 50}
    with Process("--config", write(tmp_path, [demo("a")], server=settings)) as server:
        ask = lambda: httpx.post(server.url + "/v1/completions", headers={"Authorization": "Bearer sk-team"}, timeout=30 * PATIENCE,
                                 json={"model": "a", "prompt": "hi", "max_tokens": 1, "user": "u" * 300_000}).status_code
        with contextlib.ExitStack() as held:
            for size in [16 << 20] * 17:  # more than all bodies together may be
                assert held.enter_context(half_a_body(server, size)).recv(4096).startswith(b"HTTP/1.1 401 ")
            assert ask() == 200
        with contextlib.ExitStack() as held:
            for key in [None] * 60 + ["sk-team"] * 60:  # more than may be open
                held.enter_context(half_a_body(server, 100, key))
            eventually(lambda: answers_health(server))
            assert ask() == 200


def resident_mb(server):
    return int(next(line for line in open(f"/proc/{server.child.pid}/status") if line.startswith("VmRSS")).split()[1]) >> 10


def test_large_requests_are_bounded_until_their_calls_end(tmp_path):
    """They wait for a server that takes them and does not answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as hole:
        url = f"http://127.0.0.1:{hole.getsockname()[1]}/v1"
        silent = {"name": "silent", "engine": "openai", "urls": [url], "model": "x"}
        with Process("--config", write(tmp_path, [demo("a"), silent])) as server:
            before = resident_mb(server)
            body = json.dumps({"model": "silent", "prompt": "a" * ((16 << 20) - 100)}).encode()

            def send():
                one = socket.create_connection(("127.0.0.1", server.port), timeout=20 * PATIENCE)
                one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                one.settimeout(0.3 * PATIENCE)
                return one

            with contextlib.ExitStack() as held:
                answers = []
                for _ in range(24):
                    with contextlib.suppress(TimeoutError):
                        answers.append(held.enter_context(send()).recv(12))
                assert answers == [b"HTTP/1.1 503"] * 8
                more = resident_mb(server) - before
                assert more < 600 or PATIENCE > 1, more  # twice what is counted, and some more; sanitizers need memory of their own
                assert get(server.url + "/version") == 200
            with pytest.raises(TimeoutError):  # those that have gone have left their room
                eventually(lambda: send().recv(12) != b"HTTP/1.1 503")


@pytest.mark.parametrize("body, field", [
    ({"model_path": "../../../etc"}, "model_path"),
    ({"model_path": "/etc/../etc"}, "model_path"),
    ({"model_path": "/etc/passwd"}, "model_path"),
    ({"model_path": "/tmp/x\0.gguf"}, "model_path"),
    ({"model_path": "hf://../../etc/passwd"}, "model_path"),
    ({"model_path": "hf://org/repo/../../x"}, "model_path"),
    ({"model_path": "hf://org/repo@../../x"}, "model_path"),
    ({"model_path": "hf://org/repo@%2e%2e%2fx"}, "model_path"),
    ({"model_path": "s3://bucket/../x"}, "model_path"),
    ({"model_path": "s3://../x"}, "model_path"),
    ({"model_path": "file:///etc"}, "model_path"),
    ({"model_name": "../../etc/passwd"}, "model"),
    ({"model_name": "a\0"}, "model"),
])
def test_paths_that_lead_elsewhere(short, body, field):
    answer = httpx.post(short.url + "/api/management/load", json=body, timeout=30 * PATIENCE)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == field, answer.text
    assert "root:" not in answer.text


def test_a_prober_at_random(short):
    """Damaged copies of a request, many connections at a time: each ends, and the server goes on."""
    import random
    chance = random.Random(7)
    whole = (b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\nX-A: b\r\nConnection: close\r\n\r\n"
             b"2e\r\n" + json.dumps({"model": "a", "prompt": "hi", "max_tokens": 1}).encode().ljust(46) + b"\r\n0\r\n\r\n")
    faults = []

    def probe(seed):
        mine = random.Random(seed)
        for _ in range(12):
            bytes_ = bytearray(whole)
            for _ in range(mine.randint(1, 4)):
                at = mine.randrange(len(bytes_))
                mine.choice([lambda: bytes_.__setitem__(at, mine.randrange(256)), lambda: bytes_.insert(at, mine.randrange(256)),
                             lambda: bytes_.__delitem__(at), lambda: bytes_.insert(at, mine.choice(b"\r\n\0 :;,"))])()
            try:
                answer = raw(short, bytes(bytes_))
                if answer and not answer.startswith(b"HTTP/1.1 "):
                    faults.append((bytes(bytes_), answer))
            except ConnectionResetError:
                pass
    probers = [threading.Thread(target=probe, args=(chance.random(),)) for _ in range(8)]
    for each in probers:
        each.start()
    for each in probers:
        each.join()
    assert not faults
    assert get(short.url + "/health") == 200
    assert " status=500" not in short.output()
