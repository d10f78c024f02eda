#!/usr/bin/env python3
"""Measures the HTTP controller: requests/s, streamed events/s and the memory of 10,000 open streams.

usage: bench/http_bench.py BUILD_FOLDER [--model PATH] [--seconds S]

Without --model the answers come from a scripted model, so the figures are the controller's own cost, and the streams are idle.
With --model (a folder or .gguf, best a tiny one) the whole program is measured. No stream of a real engine is idle for long;
10,000 streaming chats are held open in two ways: 64 computed at a time while the rest wait for their turn, and all computed at once,
so that each has its first event and then waits for the next step.
"""
import argparse
import contextlib
import json
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

STREAMS = 10000
KV_MIB = 512


def wait_ready(port, child):
    for _ in range(600):
        if child.poll() is not None:
            raise SystemExit("the server ended")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the server did not become ready")


@contextlib.contextmanager
def serving(command, pass_fds=()):
    """A server started by `command` and a free port: (port, process)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    child = subprocess.Popen([*command, "--port", port], stdout=subprocess.DEVNULL, pass_fds=pass_fds)
    try:
        wait_ready(port, child)
        yield port, child
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            raise SystemExit("the server did not end")


def load_command(build, port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    return [build / "bench/http_load", "--port", port, "--model", model]


def hold_in_program(build, model, title, settings, seconds):
    """10,000 streaming chats against the whole program; prints its memory, and the part of it that keys and values take."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(f"models: [{{name: held, source: {json.dumps(str(pathlib.Path(model).resolve()))}, max_waiting: {STREAMS}, "
                     f"kv_cache: {KV_MIB}MiB, {settings}}}]\n")
        config.flush()
        with serving([build / "xgen-model", "serve", "--config", config.name, "--host", "127.0.0.1", "--log-level", "warn"]) as (port, child):
            load = subprocess.Popen([*load_command(build, port), "--mode", "hold", "--chat", "--prompt", "Hello", "--connections", str(STREAMS),
                                     "--pid", str(child.pid), "--tokens", "1900", "--seconds", str(seconds)])
            used = 0
            while load.poll() is None:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
                    used = max(used, float(re.search(r"^vllm:kv_cache_usage_perc.* (\S+)$", page.read().decode(), re.M).group(1)))
                time.sleep(0.2)
            if load.returncode != 0:
                raise SystemExit("http_load failed")
            print(f"  ({title}; up to {used * KV_MIB * 1.048576:.0f} MB of it keys and values)", flush=True)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--model")
    parser.add_argument("--seconds", default="5")
    args = parser.parse_args()
    if args.model:
        command = [args.build / "xgen-model", "serve", args.model, "--host", "127.0.0.1", "--log-level", "warn"]
    else:
        command = [args.build / "tests/scripted_server", "--quiet"]
    with serving(command) as (port, child):
        load = [*load_command(args.build, port), "--seconds", args.seconds]
        runs = [["--connections", "1"], ["--connections", "16"], ["--connections", "16", "--chat"],
                ["--mode", "stream", "--connections", "16", "--tokens", "256"]]
        if not args.model:
            runs.append(["--mode", "hold", "--connections", str(STREAMS), "--pid", str(child.pid)])
        for run in runs:
            subprocess.run(load + run, check=True)
    if args.model:
        hold_in_program(args.build, args.model, "64 computed at a time, the rest wait", "max_num_seqs: 64", 8)
        hold_in_program(args.build, args.model, "all computed at once", f"max_num_seqs: {STREAMS}, max_num_batched_tokens: 16384", 30)


if __name__ == "__main__":
    main()
