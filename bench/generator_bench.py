#!/usr/bin/env python3
"""Measures what `xgen-model bench` itself costs, against the scripted model, beside http_load (one thread on epoll).

usage: bench/generator_bench.py BUILD_FOLDER [--seconds S]

The server and its client share the machine's cores. What a request and a streamed token cost the generator is solved from two runs
with answers of 1 and 256 tokens; from that follows the rate at which it would fill half a core. Then open loops: how late requests
leave at a rate, with a server that answers at once. Tokens that come together are read together; those of a server that makes one in a
millisecond are not, and cost what a wake-up of this process does.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

from http_bench import load_command, serving


def measure(build, port, *args):
    with tempfile.NamedTemporaryFile("r") as file:
        command = [build / "xgen-model", "bench", f"127.0.0.1:{port}", "--model", "scripted", "--input", "16", "--json", file.name, *map(str, args)]
        subprocess.run(command, stdout=subprocess.DEVNULL)  # a server that cannot keep up is a result
        return json.load(file)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--seconds", default="4")
    args = parser.parse_args()
    closed = ["--duration", args.seconds + "s", "--warmup", "1s"]
    with serving([args.build / "tests/scripted_server", "--quiet"]) as (port, _):
        load = [*load_command(args.build, port), "--chat", "--mode", "stream", "--seconds", args.seconds]
        for streams, tokens in ((1, 1), (16, 256)):
            print(f"{streams} streams at once, {tokens} tokens each", flush=True)
            subprocess.run([*load, "--connections", str(streams), "--tokens", str(tokens)], check=True)
            report = measure(args.build, port, *closed, "--concurrency", streams, "--output", tokens)
            rate = report["throughput"]
            print(f"  xgen-model bench: {rate['requests_per_s']:.0f} requests/s, {rate['output_tokens_per_s']:.0f} tokens/s, "
                  f"TTFT p50 {report['ttft_ms']['p50']:.3f} ms, {report['generator']['cores']:.2f} cores", flush=True)
        costs = []
        for tokens in (1, 256):
            report = measure(args.build, port, *closed, "--concurrency", 16, "--output", tokens)
            costs.append(1e6 * report["generator"]["cores"] / report["throughput"]["requests_per_s"])
        token = (costs[1] - costs[0]) / 255
        request = costs[0] - token
        print(f"cost: {request:.1f} us a request, {token:.2f} us a token: half a core at {0.5e6 / (request + token):.0f} requests/s of one token, "
              f"or {0.5e6 / token:.0f} tokens/s of long streams", flush=True)
        with serving([args.build / "tests/scripted_server", "--quiet", "--step-us", "1000"]) as (slow, _):
            report = measure(args.build, slow, *closed, "--concurrency", 64, "--output", 256)
            print(f"tokens that come one by one ({report['throughput']['output_tokens_per_s']:.0f}/s): "
                  f"{1e6 * report['generator']['cores'] / report['throughput']['output_tokens_per_s']:.1f} us each", flush=True)
        print("open loop, constant, one token")
        for rate in (100, 1000, 5000, 10000, 20000):
            report = measure(args.build, port, *closed, "--rate", rate, "--arrivals", "constant", "--output", 1)
            late, ttft = report["generator"]["late_ms"], report["ttft_ms"]
            print(f"  {rate}/s: answered {report['throughput']['requests_per_s']:.0f}/s, sent late by {late['p50']:.3f} ms at p50, {late['p99']:.3f} at p99; "
                  f"TTFT p50 {ttft['p50']:.3f} ms, p99 {ttft['p99']:.3f}; {report['generator']['cores']:.2f} cores"
                  + "".join(f"; {fault['count']} {kind}" for kind, fault in report["errors"].items()), flush=True)


if __name__ == "__main__":
    main()
