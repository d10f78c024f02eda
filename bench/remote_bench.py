#!/usr/bin/env python3
"""Measures what a server in front of another adds to it: both on this machine, the other with a scripted model.

usage: bench/remote_bench.py BUILD_FOLDER [--seconds S]

First one stream at a time: directly, through a process that only hands on bytes, and through the program. Then 2,000 at
once: directly, and through the program.
"""
import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import tempfile
import time

from http_bench import serving

STREAMS = 2000
ROUNDS = 5


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def servers(build, step_us):
    """(port of the scripted server, port of the program in front of it, the program)."""
    with serving([build / "tests/scripted_server", "--quiet", "--step-us", str(step_us)]) as (port, _), \
            tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        json.dump({"server": {"host": "127.0.0.1"}, "log": {"level": "warn"},
                   "models": [{"name": "scripted", "engine": "openai", "urls": [f"http://127.0.0.1:{port}/v1"]}]}, config)
        config.flush()
        with serving([build / "xgen-model", "serve", "--config", config.name]) as (front, child):
            yield port, front, child


@contextlib.contextmanager
def relay(build, port):
    """The port of a process that only hands on bytes: what any process in between costs at least."""
    with serving([build / "bench/http_load", "--mode", "relay", "--to", port]) as (front, _):
        yield front


def load(build, port, *options):
    subprocess.run([build / "bench/http_load", "--port", port, "--chat", *map(str, options)], check=True)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--seconds", default="5")
    args = parser.parse_args()
    build = args.build
    # In turns, so that what else the machine does falls on both.
    print("one short stream after the other:", flush=True)
    with servers(build, 0) as (port, front, child), relay(build, port) as bare:
        for name, where in (("direct", port), ("through a bare relay", bare), ("through the program", front)) * ROUNDS:
            print(f"  {name}: ", end="", flush=True)
            load(build, where, "--mode", "stream", "--connections", 1, "--tokens", 2, "--seconds", 2)
    print("one stream, a token every 2 ms:", flush=True)
    with servers(build, 2000) as (port, front, child), relay(build, port) as bare:
        for name, where in (("direct", port), ("through a bare relay", bare), ("through the program", front)) * ROUNDS:
            print(f"  {name}: ", end="", flush=True)
            load(build, where, "--mode", "clock", "--connections", 1, "--tokens", 800, "--seconds", 60)
    print("16 streams as fast as they go:", flush=True)
    with servers(build, 20) as (port, front, child):
        for name, where in (("direct", port), ("through the program", front)):
            print(f"  {name}: ", end="", flush=True)
            before, begin = cpu_seconds(child.pid), time.monotonic()
            load(build, where, "--mode", "stream", "--connections", 16, "--tokens", 256, "--seconds", args.seconds)
            used, took = cpu_seconds(child.pid) - before, time.monotonic() - begin
        print(f"  the program took {used / took * 100:.0f}% of a core")
    print(f"{STREAMS} streams at once, a token of each every 200 ms:", flush=True)
    with servers(build, 200_000) as (port, front, child):
        for name, where in (("direct", port), ("through the program", front)):
            print(f"  {name}: ", end="", flush=True)
            before, begin = cpu_seconds(child.pid), time.monotonic()
            load(build, where, "--mode", "clock", "--connections", STREAMS, "--tokens", 64, "--seconds", 120)
            used, took = cpu_seconds(child.pid) - before, time.monotonic() - begin
        print(f"  the program took {used:.2f} s of {took:.2f} s, {used / (STREAMS * 64) * 1e6:.1f} us per token")


if __name__ == "__main__":
    main()
