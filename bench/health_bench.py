#!/usr/bin/env python3
"""Measures how soon /health answers while the program has all that it can do.

usage: bench/health_bench.py BUILD_FOLDER --model PATH [--seconds S]

A probe asks /health/live every 20 ms, on a connection of its own each time, as Kubernetes does: alone; beside 64 streams that keep every compute thread busy; and beside
these and calls with bodies of 8 MiB, which are parsed on the same thread that answers the probe.
"""
import argparse
import contextlib
import json
import pathlib
import socket
import statistics
import subprocess
import threading
import time

from http_bench import load_command, serving


def probe(port, seconds):
    """Seconds that each probe took."""
    took = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as link:
            link.sendall(b"GET /health/live HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
            answer = b""
            while part := link.recv(4096):
                answer += part
        assert answer.startswith(b"HTTP/1.1 200"), answer
        took.append(time.monotonic() - begun)
        time.sleep(0.02)
    return took


def tell(what, took):
    took.sort()
    print(f"  {what}: p50 {statistics.median(took) * 1e3:.2f} ms, p99 {took[int(len(took) * 0.99)] * 1e3:.2f} ms, "
          f"longest {took[-1] * 1e3:.2f} ms of {len(took)}", flush=True)


@contextlib.contextmanager
def bodies(port):
    """Large bodies, one after the other: valid JSON that is refused in the end."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "word " * 20} for _ in range(50_000)]}).encode()
    over = threading.Event()

    def run():
        while not over.is_set():
            with socket.create_connection(("127.0.0.1", int(port)), timeout=60) as link:
                link.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                while link.recv(65536):
                    pass
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield len(body)
    finally:
        over.set()
        thread.join()


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    with serving([args.build / "xgen-model", "serve", args.model, "--name", "m", "--host", "127.0.0.1", "--log-level", "warn"]) as (port, _):
        tell("alone", probe(port, args.seconds))
        load = subprocess.Popen([*load_command(args.build, port), "--seconds", str(args.seconds * 3), "--mode", "stream", "--connections", "64",
                                 "--tokens", "256"], stdout=subprocess.DEVNULL)
        time.sleep(1)
        tell("beside 64 streams", probe(port, args.seconds))
        with bodies(port) as size:
            tell(f"beside them and bodies of {size / 2**20:.1f} MiB", probe(port, args.seconds))
        load.wait()


if __name__ == "__main__":
    main()
