#!/usr/bin/env python3
"""Decode and prefill beside other engines, with the same GGUF files, in turn.

usage: bench/peers_bench.py BUILD_FOLDER --model PATH… --llama-bench NAME=PATH… [--runs N] [--threads T] [--prompt N] [--tokens N]

NAME=PATH is another engine's llama-bench (llama.cpp, ik_llama.cpp), with its options after a comma: `llama.cpp=build/bin/llama-bench,--repack,0`.
Each round measures every engine once: a prompt of 512 tokens and 64 tokens after it, one sequence. This program is measured from outside, through HTTP, the
others inside their own process. Beside each round the machine's read bandwidth is measured; the floor of a decoded token is reading every matrix once (of models
whose embedding is their last matrix too, as tools/make_model.py makes them, that is the whole file). Medians, and their ratio to the best of the others.
"""
import argparse
import json
import pathlib
import random
import statistics
import subprocess
import time

from serve_bench import Server, ceilings, plan, spread


def ours(server, name, prompt, tokens):
    def ids(n):
        return [random.randrange(1, 250) for _ in range(n)]
    start = time.perf_counter()
    server.post({"model": name, "prompt": ids(prompt), "max_tokens": 1, "ignore_eos": True, "temperature": 0}).read()
    prefill = prompt / (time.perf_counter() - start)
    body = {"model": name, "prompt": ids(16), "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    times = [time.perf_counter() for line in server.post(body) if line.startswith(b"data: {")]
    return prefill, (len(times) - 2) / (times[-2] - times[0])


def theirs(command, model, args):
    out = subprocess.run([*command, "-m", model, "-t", str(args.threads), "-p", str(args.prompt), "-n", str(args.tokens), "-r", "1", "-o", "json"],
                         capture_output=True, text=True)
    if out.returncode != 0:
        return None
    rates = {bool(each["n_prompt"]): each["avg_ts"] for each in json.loads(out.stdout)}
    return rates[True], rates[False]


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument("--llama-bench", nargs="+", default=[])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    random.seed(1)
    peers = {}
    for peer in args.llama_bench:
        name, _, command = peer.partition("=")
        peers[name] = command.split(",")
    for model in args.model:
        serve = [model, "--threads", str(args.threads)]
        weights, _ = plan(args.build / "xgen-model", serve)
        server = Server(args.build / "xgen-model", serve)
        try:
            name = server.model()
            ours(server, name, args.prompt, args.tokens)
            time.sleep(3)  # what is done in the background after a start is done
            results, reads = {"xgen-model": [], **{peer: [] for peer in peers}}, []
            for _ in range(args.runs):
                reads.append(ceilings(args.build)[0])
                results["xgen-model"].append(ours(server, name, args.prompt, args.tokens))
                for peer, command in peers.items():
                    rates = theirs(command, model, args)
                    if rates is not None:
                        results[peer].append(rates)
        finally:
            server.stop()
        floor = statistics.median(reads) * 1e9 / weights
        print(f"{pathlib.Path(model).name}: {weights / 1e6:.0f} MB a token, reading {spread(reads, 1)} GB/s: at most {floor:.1f} tok/s")
        medians = {}
        for engine, rates in results.items():
            if not rates:
                print(f"  {engine}: fails")
                continue
            medians[engine] = tuple(map(statistics.median, zip(*rates)))
            prefill, decode = zip(*rates)
            print(f"  {engine}: prefill {spread(prefill, 1)} tok/s; decode {spread(decode, 1)} tok/s, {100 * statistics.median(decode) / floor:.0f}% of the reading")
        others = [value for engine, value in medians.items() if engine != "xgen-model"]
        if others:
            best = [max(values) for values in zip(*others)]
            print(f"  ratio to the best of them: prefill {medians['xgen-model'][0] / best[0]:.2f}, decode {medians['xgen-model'][1] / best[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
