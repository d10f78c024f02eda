"""API keys: who may send requests, how much, and the file's changes."""
import hashlib
import json
import signal
import time

import httpx
import openai
import pytest

from process import PATIENCE, Process, run
from test_models import eventually
from test_remote import Scripted


def sha256(key):
    return hashlib.sha256(key.encode()).hexdigest()


def write_keys(path, *keys):
    path.write_text(json.dumps({"keys": [dict(key, sha256=sha256(key.pop("secret"))) for key in map(dict, keys)]}))
    return path


TEAM = {"name": "team", "secret": "sk-team"}
OPS = {"name": "ops", "secret": "sk-ops", "scopes": ["admin", "metrics"]}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def complete(server, key, **body):
    return httpx.post(server.url + "/v1/completions", headers=bearer(key) if key else {}, timeout=120 * PATIENCE,
                      json=dict({"model": "xgen-demo", "prompt": "hello", "max_tokens": 4, "temperature": 0}, **body))


def test_the_sdk_sends_its_key(tmp_path):
    keys = write_keys(tmp_path / "keys.yaml", TEAM, OPS)
    config = tmp_path / "models.yaml"
    config.write_text("server: {api_keys_file: keys.yaml}\n")  # relative to the file
    with Process("--config", config) as server:
        messages = [{"role": "user", "content": "What is xgen-model?"}]
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="sk-team", max_retries=0)
        answer = client.chat.completions.create(model="xgen-demo", messages=messages)
        assert answer.choices[0].message.content
        parts = client.chat.completions.create(model="xgen-demo", messages=messages, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == answer.choices[0].message.content
        assert [model.id for model in client.models.list()] == ["xgen-demo"]
        with pytest.raises(openai.AuthenticationError) as refused:
            client.with_options(api_key="sk-guess").chat.completions.create(model="xgen-demo", messages=messages)
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.PermissionDeniedError):
            client.with_options(api_key="sk-ops").chat.completions.create(model="xgen-demo", messages=messages)
        assert httpx.get(server.url + "/health/ready").status_code == 200
        assert httpx.get(server.url + "/metrics").status_code == 401
        assert "vllm:" in httpx.get(server.url + "/metrics", headers=bearer("sk-ops")).text
        assert httpx.get(server.url + "/admin/models").status_code == 401  # on this machine as well
        assert httpx.get(server.url + "/admin/models", headers=bearer("sk-ops")).status_code == 200
        log = server.output()
        assert "api_key=team" in log and "sk-" not in log
    assert keys.exists()


def test_requests_and_tokens_a_minute(tmp_path):
    write_keys(tmp_path / "keys.yaml", dict(TEAM, requests_per_minute=3), {"name": "tokens", "secret": "sk-tokens", "tokens_per_minute": 200})
    with Process("--api-keys-file", tmp_path / "keys.yaml") as server:
        assert '-H "Authorization: Bearer $KEY"' in server.output()  # of the command to try
        begin = time.monotonic()
        statuses = [complete(server, "sk-team").status_code for _ in range(4)]
        if time.monotonic() - begin < 15:
            assert statuses == [200, 200, 200, 429]
        refused = complete(server, "sk-team", stream=True)
        if refused.status_code == 429:
            assert 1 <= int(refused.headers["retry-after"]) <= 20 and refused.json()["error"]["code"] == "rate_limit_exceeded"
        # What a stream has cost is known at its end.
        begin, used = time.monotonic(), 0
        while True:
            answer = complete(server, "sk-tokens", stream=True, stream_options={"include_usage": True}, max_tokens=20, ignore_eos=True)
            if answer.status_code != 200:
                break
            used += json.loads(answer.text.split("data: ")[-2])["usage"]["total_tokens"]
        assert answer.status_code == 429 and "200 tokens a minute" in answer.json()["error"]["message"]
        came_back = (time.monotonic() - begin) * 200 / 60
        assert 150 <= used <= 200 + came_back + 40, used


def test_what_a_remote_engine_keeps_to_itself_is_paid(tmp_path):
    write_keys(tmp_path / "keys.yaml", dict(TEAM, tokens_per_minute=600_000), OPS)
    with Scripted() as engine:
        config = tmp_path / "models.yaml"
        config.write_text(json.dumps({"server": {"api_keys_file": "keys.yaml"}, "models": [
            {"name": "m", "engine": "openai", "urls": [engine.url + "/v1"], "model": "scripted"}]}))
        with Process("--config", config) as server:
            ask = lambda prompt, **more: complete(server, "sk-team", model="m", prompt=prompt, **more)
            begin = time.monotonic()
            assert ask("hidden 200000").json()["usage"]["completion_tokens"] == 200_001
            assert ask("hidden 200000", stream=True).status_code == 200
            left = int(ask("say x").headers["x-ratelimit-remaining-tokens"])
            came_back = (time.monotonic() - begin) * 10_000
            assert 190_000 <= left <= 200_000 + came_back, left
            assert server.output().count(" completion_tokens=200001") == 2
            page = httpx.get(server.url + "/metrics", headers=bearer("sk-ops")).text
            made = next(line for line in page.splitlines() if line.startswith("vllm:generation_tokens_total{"))
            assert float(made.split()[-1]) == 400_003


def test_the_file_may_change_while_it_serves(tmp_path):
    path = write_keys(tmp_path / "keys.yaml", TEAM)
    with Process("--api-keys-file", path) as server:
        assert complete(server, "sk-team").status_code == 200
        assert complete(server, "sk-new").status_code == 401
        write_keys(path, {"name": "new", "secret": "sk-new"}, OPS)
        eventually(lambda: complete(server, "sk-new").status_code == 200)
        assert complete(server, "sk-team").status_code == 401
        # What cannot be read changes nothing.
        path.write_text("keys: [{name: x, sha256: nonsense}]")
        eventually(lambda: "not reloaded" in server.output() and "keys[0].sha256" in server.output())
        refused = httpx.post(server.url + "/admin/reload", headers=bearer("sk-ops"))
        assert refused.status_code == 400 and "keys[0].sha256" in refused.json()["error"]["message"]
        path.write_text("")
        eventually(lambda: "cannot be read" in server.output())
        assert complete(server, "sk-new").status_code == 200
        write_keys(path)
        eventually(lambda: complete(server, "sk-new").status_code == 401)


def test_keys_are_read_again_when_asked(tmp_path):
    path = write_keys(tmp_path / "keys.yaml", TEAM, OPS)
    config = tmp_path / "models.yaml"
    config.write_text("server: {api_keys_file: keys.yaml}\n")
    with Process("--config", config) as server:
        reloads = lambda: server.output().count(f"reloaded file={path}")
        assert reloads() == 0
        server.signal(signal.SIGHUP)
        eventually(lambda: reloads() == 1)
        answer = httpx.post(server.url + "/admin/reload", headers=bearer("sk-ops"))
        assert answer.status_code == 200 and answer.json()["status"] == "the models are as before; 2 API keys"
        assert reloads() == 2


def test_a_file_that_is_wrong_or_not_there_stops_the_start(tmp_path):
    missing = run("serve", "--api-keys-file", tmp_path / "nothing.yaml")
    assert missing.returncode == 2 and "server.api_keys_file" in missing.stderr and "nothing.yaml" in missing.stderr
    path = tmp_path / "keys.yaml"
    path.write_text("keys: [{name: x, key: sk-oops}]")
    for command in ["serve", "check"]:
        wrong = run(command, "--api-keys-file", path)
        assert wrong.returncode == 2 and "keys.yaml:1:18: keys[0]: unknown key" in wrong.stderr
        assert "sk-oops" not in wrong.stderr
