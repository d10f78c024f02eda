"""TLS as clients meet it: the OpenAI SDK over https, client certificates, reloads, many connections, bad handshakes."""
import json
import os
import pathlib
import resource
import signal
import socket
import ssl
import threading
import time
import warnings

import httpx
import openai
import pytest
from cryptography import x509

from pki import Authority
from process import PATIENCE, Process, free_port, run
from test_models import eventually
from test_remote import Scripted


def serve(authority, *args, **kwargs):
    pem, key, _ = authority.issue("server")
    return Process("--tls-cert-file", pem, "--tls-key-file", key, *args, tls=authority.context(), **kwargs)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def server(authority):
    with serve(authority) as one:
        yield one


def connect(server, context, session=None):
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=20 * PATIENCE)
    return context.wrap_socket(plain, server_hostname="localhost", session=session)


def serial(server, context):
    with connect(server, context) as connection:
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True)).serial_number


def test_the_sdk_speaks_https(server, authority):
    with httpx.Client(verify=authority.context()) as http:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, http_client=http)
        messages = [{"role": "user", "content": "What is xgen-model?"}]
        answer = client.chat.completions.create(model="xgen-demo", messages=messages)
        parts = client.chat.completions.create(model="xgen-demo", messages=messages, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == answer.choices[0].message.content
    assert f"https://127.0.0.1:{server.port}/v1" in server.output()
    assert "TLS certificate file=" in server.output()


def test_versions_protocol_and_resumption(server, authority):
    for version in [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]:
        context = authority.context()
        context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        session = None
        for reused in [False, True]:
            with connect(server, context, session) as connection:
                assert connection.selected_alpn_protocol() == "http/1.1"
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
                assert connection.session_reused is reused
                session = connection.session
    old = authority.context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        connect(server, old)


def test_a_client_certificate_is_asked_for(authority, tmp_path):
    authority.issue("team", name="team-a")
    strangers = Authority(tmp_path)
    strangers.issue("stranger")
    ask = lambda server, context: httpx.get(server.url + "/v1/models", verify=context)
    wrong = authority.context()
    wrong.load_cert_chain(tmp_path / "stranger.pem", tmp_path / "stranger.key")
    config = tmp_path / "models.yaml"
    for auth in ["required", "optional"]:
        pem, key, _ = authority.issue("server")
        config.write_text(json.dumps({"server": {"tls_cert_file": str(pem), "tls_key_file": str(key), "tls_client_auth": auth,
                                                 "tls_client_ca_file": str(authority.file)}}))
        with Process("--config", config, tls=authority.context("team")) as server:
            assert ask(server, authority.context("team")).status_code == 200
            assert 'client_cert="CN=team-a"' in server.output()
            with pytest.raises(httpx.TransportError):
                ask(server, wrong)
            eventually(lambda: "the client's certificate is not trusted" in server.output())
            if auth == "optional":
                assert ask(server, authority.context()).status_code == 200
            else:
                with pytest.raises(httpx.TransportError):
                    ask(server, authority.context())
                eventually(lambda: "peer did not return a certificate" in server.output())


def test_a_new_certificate_is_taken_while_streams_run(authority, tmp_path):
    """As Kubernetes changes a Secret: links through ..data, which is swapped."""
    for version in ["1", "2"]:
        (tmp_path / version).mkdir()
    serials = {}
    for version in ["1", "2"]:
        pem, key, serials[version] = authority.issue("server-" + version)
        (tmp_path / version / "tls.crt").write_bytes(pem.read_bytes())
        (tmp_path / version / "tls.key").write_bytes(key.read_bytes())
    (tmp_path / "..data").symlink_to("1")
    for name in ["tls.crt", "tls.key"]:
        (tmp_path / name).symlink_to(f"..data/{name}")
    with Scripted(step_us=20_000) as engine:
        config = tmp_path / "models.yaml"
        config.write_text(json.dumps({
            "server": {"tls_cert_file": "tls.crt", "tls_key_file": "tls.key"},  # relative to the file
            "models": [{"name": "m", "engine": "openai", "urls": [engine.url + "/v1"], "model": "scripted"}]}))
        with Process("--config", config, tls=authority.context()) as server:
            context, tokens = authority.context(), []
            stream = threading.Thread(target=lambda: tokens.extend(
                server.stream("/v1/completions", {"model": "m", "prompt": "x", "max_tokens": 200, "ignore_eos": True})))
            stream.start()
            assert serial(server, context) == serials["1"]
            (tmp_path / "..tmp").symlink_to("2")
            (tmp_path / "..tmp").rename(tmp_path / "..data")
            eventually(lambda: serial(server, context) == serials["2"])
            assert stream.is_alive()
            # A pair that does not fit is not taken, and the log says why.
            (tmp_path / "3").mkdir()
            (tmp_path / "3/tls.crt").write_bytes((tmp_path / "1/tls.crt").read_bytes())
            (tmp_path / "3/tls.key").write_bytes((tmp_path / "2/tls.key").read_bytes())
            (tmp_path / "..tmp").symlink_to("3")
            (tmp_path / "..tmp").rename(tmp_path / "..data")
            server.signal(signal.SIGHUP)
            eventually(lambda: "the key is not that of the (first) certificate" in server.output())
            assert serial(server, context) == serials["2"]
            refused = httpx.post(server.url + "/admin/reload", verify=context)
            assert refused.status_code == 400 and "server.tls_key_file" in refused.json()["error"]["message"]
            stream.join()
            assert sum(len(t["choices"][0]["text"]) > 0 for t in tokens if t["choices"]) >= 200


def test_the_start_says_what_is_wrong(authority, tmp_path):
    pem, key, _ = authority.issue("a")
    _, other, _ = authority.issue("b")
    for command in ["serve", "check"]:
        wrong = run(command, "--tls-cert-file", pem, "--tls-key-file", other)
        assert wrong.returncode == 2 and f"server.tls_key_file: {other}: the key is not that of the (first) certificate in {pem}" in wrong.stderr
        assert "server.tls_key_file: missing" in run(command, "--tls-cert-file", pem).stderr
        assert "server.tls_cert_file: missing" in run(command, "--tls-key-file", key).stderr
        gone = run(command, "--tls-cert-file", tmp_path / "no.pem", "--tls-key-file", key)
        assert gone.returncode == 2 and "no.pem: No such file or directory" in gone.stderr
    old, old_key, _ = authority.issue("old", days=(-30, -1))
    warned = run("check", "--tls-cert-file", old, "--tls-key-file", old_key)
    assert warned.returncode == 0 and "the TLS certificate has expired" in warned.stderr


def test_plain_http_and_garbage_on_the_tls_port(server, authority):
    answer = httpx.get(server.url.replace("https", "http") + "/health")
    assert answer.status_code == 400 and "https://" in answer.json()["error"]["message"]
    for junk in [b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", os.urandom(2000), b"\0" * 100, b"SSH-2.0-x\r\n"]:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20 * PATIENCE) as plain:
            plain.sendall(junk)
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(65536):
                pass
    assert serial(server, authority.context())


def test_a_health_check_trusts_the_certificate_of_the_file(authority, tmp_path):
    """Whatever its name and its time, but no other."""
    pem, key, _ = authority.issue("away", days=(-30, -1), names=["elsewhere.test"])
    config, port = tmp_path / "models.yaml", free_port()
    settings = {"host": "127.0.0.1", "port": port, "tls_cert_file": "tls.crt", "tls_key_file": "tls.key"}
    config.write_text(json.dumps({"server": settings}))
    (tmp_path / "tls.crt").write_bytes(pem.read_bytes() + authority.file.read_bytes())
    (tmp_path / "tls.key").write_bytes(key.read_bytes())
    blind = ssl.create_default_context()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    with Process("--config", config, port=port, tls=blind):
        for probe in ["ready", "live", "startup"]:
            result = run("healthcheck", probe, "--config", config)
            assert result.returncode == 0, result.stderr
        # One of the same name and authority is another one.
        (tmp_path / "elsewhere").mkdir()
        other, _, _ = authority.issue("other", names=["elsewhere.test"])
        (tmp_path / "elsewhere/other.pem").write_bytes(other.read_bytes() + pem.read_bytes())
        elsewhere = tmp_path / "elsewhere/models.yaml"
        elsewhere.write_text(json.dumps({"server": {**settings, "tls_cert_file": "other.pem"}}))
        result = run("healthcheck", "--config", elsewhere)
        assert result.returncode == 1 and "not trusted" in result.stderr and str(tmp_path / "elsewhere/other.pem") in result.stderr
        for text, want in [(None, "No such file"), ("nonsense", "no start line")]:
            if text:
                (tmp_path / "elsewhere/none.pem").write_text(text)
            elsewhere.write_text(json.dumps({"server": {**settings, "tls_cert_file": "none.pem"}}))
            result = run("healthcheck", "--config", elsewhere)
            assert result.returncode == 1 and "elsewhere/none.pem: " + want in result.stderr, result.stderr


def test_a_health_check_shows_the_servers_own_certificate_where_one_is_required(authority, tmp_path):
    strangers = Authority(tmp_path, "strangers")
    pem, key, _ = authority.issue("own")
    both = tmp_path / "both.pem"
    both.write_bytes(strangers.file.read_bytes() + pem.read_bytes())
    friend = authority.context()
    friend.load_cert_chain(*strangers.issue("known")[:2])
    config = tmp_path / "models.yaml"
    for auth, trusted, context, well in [("required", authority.file, authority.context("own"), True),  # it was signed by this one
                                         ("required", both, friend, True),  # it is in it
                                         ("required", strangers.file, friend, False),
                                         ("optional", strangers.file, friend, True)]:
        port = free_port()
        config.write_text(json.dumps({"server": {
            "host": "127.0.0.1", "port": port, "tls_cert_file": str(pem), "tls_key_file": str(key), "tls_client_auth": auth,
            "tls_client_ca_file": str(trusted)}}))
        with Process("--config", config, port=port, tls=context) as server:
            result = run("healthcheck", "--config", config)
            assert (result.returncode == 0) is well, result.stderr
            if not well:
                assert "server.tls_client_ca_file" in result.stderr
                eventually(lambda: "the client's certificate is not trusted" in server.output())


def test_a_health_check_by_url_needs_the_name_of_the_certificate(server, authority):
    result = run("healthcheck", "--url", f"https://localhost:{server.port}/health/ready", env={"SSL_CERT_FILE": str(authority.file)})
    assert result.returncode == 0, result.stderr
    result = run("healthcheck", "--url", f"https://localhost:{server.port}/health/ready")
    assert result.returncode == 1 and "not trusted" in result.stderr


def test_a_slow_handshake_is_cut_off(authority, tmp_path):
    pem, key, _ = authority.issue("server")
    config = tmp_path / "models.yaml"
    config.write_text(json.dumps({"server": {"tls_cert_file": str(pem), "tls_key_file": str(key), "header_timeout": "1s"}}))
    with Process("--config", config, tls=authority.context()) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20 * PATIENCE) as silent:
            begin = time.monotonic()
            assert silent.recv(1) == b"" and 0.8 < time.monotonic() - begin < 5 * PATIENCE
        assert "a TLS handshake did not end within header_timeout" in server.output()


def test_a_thousand_connections(authority):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2500:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context, held = authority.context(), []
    try:
        with serve(authority) as server:
            rss = lambda: next(int(line.split()[1]) for line in pathlib.Path(f"/proc/{server.child.pid}/status").read_text().splitlines()
                               if line.startswith("VmRSS"))
            connect(server, context).close()
            before = rss()
            for _ in range(1000):
                held.append(connect(server, context))
            for connection in held:
                connection.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for connection in held:
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            each = (rss() - before) / len(held)
            print(f"{each:.1f} KiB a connection")
            assert each < 100 or PATIENCE > 1, f"{each:.1f} KiB a connection"  # sanitizers need memory of their own
            while held:
                held.pop().close()
            eventually(lambda: "xgen_http_open_connections 1\n" in server.get("/metrics").text)
    finally:
        for connection in held:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
