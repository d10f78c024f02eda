#!/usr/bin/env python3
"""Measures the HTTP controller: requests/s, streamed events/s and the memory of idle streams.

usage: bench/http_bench.py BUILD_FOLDER [--model PATH] [--seconds S]

Without --model the answers come from a scripted model, so the figures are the controller's own cost. With --model
(a folder or .gguf, best a tiny one) the whole program is measured; then no stream can be made to idle, and the
memory is not measured.
"""
import argparse
import json
import pathlib
import signal
import socket
import subprocess
import time
import urllib.request


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


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--model")
    parser.add_argument("--seconds", default="5")
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if args.model:
        command = [args.build / "xgen-model", "serve", args.model, "--host", "127.0.0.1", "--port", port, "--log-level", "warn"]
    else:
        command = [args.build / "tests/scripted_server", "--port", port, "--quiet"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_ready(port, child)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
            model = json.load(answer)["data"][0]["id"]
        load = [args.build / "bench/http_load", "--port", port, "--model", model, "--seconds", args.seconds]
        runs = [["--connections", "1"], ["--connections", "16"], ["--connections", "16", "--chat"],
                ["--mode", "stream", "--connections", "16", "--tokens", "256"]]
        if not args.model:
            runs.append(["--mode", "hold", "--connections", "10000", "--pid", str(child.pid)])
        for run in runs:
            subprocess.run(load + run, check=True)
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(30)


if __name__ == "__main__":
    main()
