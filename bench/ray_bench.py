#!/usr/bin/env python3
"""The controller that this program replaces, side by side with ours: Ray Serve with FastAPI in front of an engine that costs nothing.

usage: bench/ray_bench.py SCRIPTED_SERVER --ray-python PYTHON [--requests N]

SCRIPTED_SERVER is our controller over a scripted model (build/bench/tests/scripted_server); PYTHON one that has ray[serve] and fastapi from PyPI. Both sides answer
`say Hello` at once over /v1/chat/completions, so what is measured is the stack in between: time from the command to the first answer, memory of all its
processes (proportional set size: shared pages count once), and the time of one request after the other, streamed and not.
"""
import argparse
import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import tempfile
import time

# As such stacks are written: an OpenAI route in FastAPI as the ingress, a deployment of one replica behind it.
RAY_APP = '''
import json, sys
import ray
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from ray import serve

class Body(BaseModel):
    model: str
    messages: list
    max_tokens: int = 16
    stream: bool = False

app = FastAPI()

@serve.deployment
class Engine:
    async def generate(self, body):
        for piece in ("Hell", "o"):
            yield piece

@serve.deployment
@serve.ingress(app)
class Gateway:
    def __init__(self, engine):
        self.engine = engine.options(stream=True)

    @app.post("/v1/chat/completions")
    async def chat(self, body: Body):
        pieces = self.engine.generate.remote(body.model_dump())
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": body.model}
        if body.stream:
            async def events():
                async for piece in pieces:
                    yield "data: " + json.dumps({**head, "choices": [{"index": 0, "delta": {"content": piece}}]}) + "\\n\\n"
                yield "data: [DONE]\\n\\n"
            return StreamingResponse(events(), media_type="text/event-stream")
        text = "".join([piece async for piece in pieces])
        return {**head, "object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}

ray.init(include_dashboard=False, logging_level="ERROR", num_cpus=2)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Gateway.bind(Engine.bind()))
import time
while True:
    time.sleep(1)
'''
BODY = {"model": "scripted", "messages": [{"role": "user", "content": "say Hello"}], "max_tokens": 16}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(link, stream=False):
    link.request("POST", "/v1/chat/completions", json.dumps({**BODY, "stream": stream}), {"Content-Type": "application/json"})
    answer = link.getresponse()
    first = answer.readline() if stream else b""
    at_first = time.perf_counter()
    text = first + answer.read()
    assert answer.status == 200 and b"Hell" in text, (answer.status, text)
    return at_first


def memory_mib(session):
    """Of all processes of a session."""
    total = 0
    for each in pathlib.Path("/proc").iterdir():
        if not each.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, StopIteration):
            if int((each / "stat").read_text().rsplit(")", 1)[1].split()[3]) == session:
                total += next(int(line.split()[1]) for line in (each / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return total / 1024


def measure(name, command, requests):
    port = free_port()
    begun = time.perf_counter()
    child = subprocess.Popen([*map(str, command), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while True:
            try:
                ask(http.client.HTTPConnection("127.0.0.1", port, timeout=30))
                break
            except (OSError, AssertionError, http.client.HTTPException):
                if child.poll() is not None or time.perf_counter() - begun > 180:
                    raise SystemExit(f"{name} did not answer")
                time.sleep(0.005)
        ready = time.perf_counter() - begun
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        whole, first = [], []
        for i in range(requests):
            begun = time.perf_counter()
            ask(link)
            whole.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            first.append(ask(link, stream=True) - begun)
        warm = requests // 10
        return ready, memory_mib(child.pid), statistics.median(whole[warm:]), statistics.median(first[warm:])
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("scripted_server", type=pathlib.Path)
    parser.add_argument("--ray-python", required=True)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".py") as app:
        app.write(RAY_APP)
        app.flush()
        sides = {"Ray Serve and FastAPI": [args.ray_python, app.name], "xgen-model's controller": [args.scripted_server, "--quiet", "--port"]}
        results = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, command in sides.items():
                results[name].append(measure(name, command, args.requests))
                ready, memory, whole, first = results[name][-1]
                print(f"  {name}: first answer after {ready:.3f} s, {memory:.1f} MiB, an answer {whole * 1e3:.3f} ms, first event {first * 1e3:.3f} ms", flush=True)
    for name, rows in results.items():
        ready, memory, whole, first = (statistics.median(column) for column in zip(*rows))
        print(f"{name}: first answer after {ready:.3f} s, {memory:.1f} MiB, an answer {whole * 1e3:.3f} ms, first event {first * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
