"""The servers that the OpenAI tests run against: the controller over a scripted model, and the program itself."""
import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time

import httpx
import openai
import pytest

from process import BUILD, PATIENCE, PROGRAM, Process

SCRIPTED = BUILD / "tests/scripted_server"


def pytest_addoption(parser):
    parser.addoption("--server", default=os.environ.get("XGEN_SERVER_CMD"),
                     help="run the OpenAI tests against this instead: the URL of a running server, or a command that "
                          "prints 'listening on HOST:PORT'")
    parser.addoption("--model", default=None, help="the model to ask for there (default: the first of /v1/models)")


@dataclasses.dataclass
class Server:
    url: str
    model: str
    scripted: bool

    def client(self, **kwargs):
        return openai.OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0, timeout=120 * PATIENCE, **kwargs)


@contextlib.contextmanager
def started(command):
    """The URL of a server that says where it listens."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = child.stdout.readline()
        assert line.startswith("listening on "), f"{command} said {line!r}"
        yield "http://" + line.split()[-1]
    finally:
        child.send_signal(signal.SIGTERM)
        code = child.wait(30 * PATIENCE)
    assert code == 0, f"{command} ended with {code}"


def first_model(url):
    with openai.OpenAI(base_url=url + "/v1", api_key="none") as client:
        return client.models.list().data[0].id


@contextlib.contextmanager
def scripted_server():
    if not SCRIPTED.exists():
        pytest.skip(f"{SCRIPTED} is not built")
    with started([SCRIPTED, "--quiet"]) as url:
        yield Server(url, "scripted", True)


@contextlib.contextmanager
def program():
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is not built")
    with Process() as process:
        yield Server(process.url, first_model(process.url), False)


@contextlib.contextmanager
def in_front_of(server, models):
    """The program with these models of another server, which computes them."""
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is not built")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        remote = {"engine": "openai", "urls": [server.url + "/v1"]}
        json.dump({"models": [{"name": name, **remote} for name in models]}, file)  # JSON is YAML
        file.flush()
        with Process("--config", file.name) as process:
            end = time.monotonic() + 20 * PATIENCE
            # What it learns of the other server, it learns soon.
            while any(not m["max_model_len"] for m in httpx.get(process.url + "/v1/models").json()["data"]):
                assert time.monotonic() < end, "the models' contexts were not learned"
                time.sleep(0.01)
            yield Server(process.url, server.model, server.scripted)


@contextlib.contextmanager
def proxied_program():
    with program() as server, in_front_of(server, [server.model]) as front:
        yield front


@contextlib.contextmanager
def proxied_scripted_server():
    with scripted_server() as server, in_front_of(server, ["scripted", "org/slashed", "able"]) as front:
        yield front


@contextlib.contextmanager
def given(option, model):
    if option.startswith("http://"):
        yield Server(option.rstrip("/"), model or first_model(option.rstrip("/")), False)
    else:
        with started(shlex.split(option)) as url:
            yield Server(url, model or first_model(url), False)


SERVERS = {"scripted": scripted_server, "program": program, "proxied": proxied_program, "proxied-scripted": proxied_scripted_server}


def pytest_generate_tests(metafunc):
    if "server" in metafunc.fixturenames and metafunc.module.__name__.endswith("test_openai_sdk"):
        where = ["given"] if metafunc.config.getoption("--server") else ["scripted", "program", "proxied", "proxied-scripted"]
        metafunc.parametrize("server", where, indirect=True, scope="module")
    if "scripted" in metafunc.fixturenames and metafunc.module.__name__.endswith("test_openai_sdk"):
        metafunc.parametrize("scripted", ["scripted", "proxied-scripted"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def server(request):
    option, model = request.config.getoption("--server"), request.config.getoption("--model")
    with {**SERVERS, "given": lambda: given(option, model)}[request.param]() as one:
        yield one


@pytest.fixture(scope="module")
def scripted(request):
    with SERVERS[getattr(request, "param", "scripted")]() as one:
        yield one
