#!/usr/bin/env python3
"""Measures the whole program with one model, as a client sees it: start-up, memory, decode and prefill.

usage: bench/serve_bench.py BUILD_FOLDER [--model PATH] [--shape NAME] [--runs N] [--pairs N] [--threads T]

Start-up is the time from exec to the first 200 of /health/ready; memory is what is resident after one answer, and how much of
it is not weights: those are mapped from their files, or laid out anew in memory. Decode is the rate of one stream after its first token; prefill is
512 tokens over the time of a request for one token. Every figure is a median, of --pairs for decode and of --runs for the rest.
The machine's ceilings (read bandwidth, FP32 multiply-adds) change from minute to minute, so each measurement is compared with the mean
of those measured right before and right after it; a share is the median of these ratios. Decode reads every matrix once a token,
prefill multiplies every matrix but the last once a token.
Without --model it is the built-in demo model, which fits a cache: only its start-up and memory are worth reading.
"""
import argparse
import http.client
import json
import pathlib
import random
import re
import signal
import socket
import statistics
import subprocess
import time


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ready(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False


class Server:
    def __init__(self, program, args):
        self.port = free_port()
        start = time.perf_counter()
        self.child = subprocess.Popen([program, "serve", *args, "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warn"],
                                      stdout=subprocess.DEVNULL)
        while not ready(self.port):
            if self.child.poll() is not None:
                raise SystemExit("the server ended")
            time.sleep(0.0005)
        self.startup_ms = 1000 * (time.perf_counter() - start)

    def post(self, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(answer.read().decode())
        return answer

    def model(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", "/v1/models")
        return json.load(connection.getresponse())["data"][0]["id"]

    def private_bytes(self):
        """Anonymous resident memory: not the mapped files."""
        with open(f"/proc/{self.child.pid}/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        return int(fields["RssAnon"].split()[0]) * 1024, int(fields["VmRSS"].split()[0]) * 1024

    def stop(self):
        self.child.send_signal(signal.SIGINT)
        self.child.wait(30)


def plan(program, args):
    """Bytes of weights and of KV cache by the program's own plan."""
    text = subprocess.run([program, "check", *args], capture_output=True, text=True, check=True).stdout
    units = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    return [float(number) * units[unit] for number, unit in
            (re.search(name + r"\s+([\d.]+) (\w+)", text).groups() for name in ("weights", "KV cache"))]


def ceilings(build):
    """This machine's read bandwidth in GB/s and FP32 multiply-adds in G/s, now."""
    text = subprocess.run([build / "bench/kernels_bench", "--ceilings", "--quick"], capture_output=True, text=True, check=True).stdout
    return tuple(map(float, re.search(r"read ([\d.]+) GB/s, FP32 multiply-adds ([\d.]+) G/s", text).groups()))


def paired(count, measure, ceiling):
    """Measurements, each with the mean of the ceilings right before and right after it."""
    pairs, before = [], ceiling()
    for _ in range(count):
        value, after = measure(), ceiling()
        pairs.append((value, (before + after) / 2))
        before = after
    return pairs


def spread(values, digits=0):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def show_shares(what, pairs):
    if pairs:
        print(f"  {what}: {spread([100 * value / ceiling for value, ceiling in pairs])} %, {len(pairs)} pairs")


# Where the machine has two speeds, those of its fast minutes; GB/s.
FAST = 60


# Bytes of the matrices that one decoded token reads, and multiply-adds of one prompt token (without the last matrix, which only
# sampled rows need), of shapes that tools/make_model.py writes.
COSTS = {"llama1b-Q8_0": (1235746816 * 34 / 32, 973078528)}


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--threads")
    parser.add_argument("--shape", choices=COSTS, help="what the model is, to state shares of the machine's ceilings")
    args = parser.parse_args()
    program = args.build / "xgen-model"
    serve_args = ([args.model] if args.model else []) + (["--threads", args.threads] if args.threads else [])
    random.seed(1)

    startups = []
    for _ in range(args.runs):
        server = Server(program, serve_args)
        startups.append(server.startup_ms)
        server.stop()
    print(f"exec to ready: {statistics.median(startups):.0f} ms (of {args.runs}: {', '.join(f'{s:.0f}' for s in startups)})")

    server = Server(program, serve_args)
    try:
        name = server.model()
        prompt = lambda n: [random.randrange(1, 250) for _ in range(n)]
        server.post({"model": name, "prompt": prompt(64), "max_tokens": 16, "ignore_eos": True}).read()
        anonymous, resident = server.private_bytes()
        weights, kv = plan(program, serve_args)
        print(f"resident after one answer: {resident / 2**20:.1f} MiB, of it not mapped from files {anonymous / 2**20:.1f} MiB "
              f"and not weights {(resident - weights) / 2**20:.1f} MiB (planned: weights {weights / 2**20:.1f} MiB, KV cache {kv / 2**20:.1f} MiB, touched as it is used)")

        def decode():
            body = {"model": name, "prompt": prompt(16), "max_tokens": 64, "ignore_eos": True, "temperature": 0, "stream": True}
            times = [time.perf_counter() for line in server.post(body) if line.startswith(b"data: {")]
            return (len(times) - 2) / (times[-2] - times[0])

        def prefill():
            start = time.perf_counter()
            server.post({"model": name, "prompt": prompt(512), "max_tokens": 1, "ignore_eos": True, "temperature": 0}).read()
            return 512 / (time.perf_counter() - start)

        decodes = paired(args.pairs, decode, lambda: ceilings(args.build)[0])
        prefills = paired(args.runs, prefill, lambda: ceilings(args.build)[1])
        bytes_per_token, multiply_adds = COSTS.get(args.shape, (0, 0))
        print(f"decode, one stream: {spread([rate for rate, _ in decodes], 1)} tok/s; reading {spread([c for _, c in decodes], 1)} GB/s")
        if args.shape:
            decodes = [(rate * bytes_per_token / 1e9, ceiling) for rate, ceiling in decodes]
            print("  GB/s of GB/s: " + ", ".join(f"{value:.1f}/{ceiling:.1f}" for value, ceiling in decodes))
            show_shares("share of the reading", decodes)
            show_shares(f"share where it was above {FAST} GB/s", [pair for pair in decodes if pair[1] > FAST])
            show_shares("share where it was not", [pair for pair in decodes if pair[1] <= FAST])
        print(f"prefill, 512 tokens: {spread([rate for rate, _ in prefills], 1)} tok/s; "
              f"FP32 multiply-adds {spread([c for _, c in prefills], 1)} G/s")
        if args.shape:
            show_shares("share of the multiply-adds", [(rate * multiply_adds / 1e9, ceiling) for rate, ceiling in prefills])
    finally:
        server.stop()


if __name__ == "__main__":
    main()
