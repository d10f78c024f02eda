#!/usr/bin/env python3
"""Measures what several models of one process cost each other.

usage: bench/models_bench.py BUILD_FOLDER [--model PATH] [--seconds N] [--runs N]

Loading beside a stream: the gaps between the tokens of one long stream, first with nothing else going on, then while a second model
is loaded and unloaded again and again; in turns, because machines are noisy. The target is a 99th percentile that grows by less than
20%. On demand: the time of a request for a model that is not loaded, with a warm page cache, up to its first token; against the time
of a load by the operator's route plus the time to the first token of a loaded model. The target is 20 ms above that.
Weights: tokens of two equal models of weight 3 and 1 while both have work, and of one alone, which nothing should slow down.
Without --model both models are the built-in demo model; with it, both are that one.
"""
import argparse
import http.client
import json
import pathlib
import re
import statistics
import tempfile
import threading
import time

from serve_bench import Server


class Models(Server):
    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise SystemExit(f"{method} {path}: {answer.status} {text}")
        return text

    def stream(self, model, tokens, times):
        """Appends the time of each event of a stream."""
        body = {"model": model, "prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True}
        for line in self.post(body):
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())

    def first_token_ms(self, model):
        body = {"model": model, "prompt": "Once upon a time", "max_tokens": 2, "ignore_eos": True, "temperature": 0, "stream": True}
        start = time.perf_counter()
        for line in self.post(body):
            if line.startswith(b"data: {"):
                return 1000 * (time.perf_counter() - start)

    def timed_ms(self, what, model):
        start = time.perf_counter()
        self.call("POST", f"/admin/{what}", {"model": model})
        return 1000 * (time.perf_counter() - start)

    def tokens(self):
        text = self.call("GET", "/metrics")
        return {name: float(count) for name, count in re.findall(r'vllm:generation_tokens_total\{[^}]*model_name="(\w+)"[^}]*\} (\S+)', text)}


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def gaps_of_streams(server, seconds, also):
    """Gaps in ms between the tokens of streams, one after the other, while `also(stop)` runs."""
    stop = threading.Event()
    beside = threading.Thread(target=also, args=(stop,))
    beside.start()
    gaps, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        times = []
        server.stream("a", 100, times)
        gaps += [1000 * (b - a) for a, b in zip(times[1:], times[2:-1])]
    stop.set()
    beside.join()
    return gaps


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--model", default="builtin:xgen-demo")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    if "://" not in args.model and not args.model.startswith("builtin:"):
        args.model = str(pathlib.Path(args.model).resolve())  # models.yaml is elsewhere
    folder = tempfile.TemporaryDirectory()
    config = pathlib.Path(folder.name) / "models.yaml"

    def start(**second):
        models = [{"name": "a", "source": args.model, "max_model_len": 2048, "max_num_seqs": 8, "weight": 3},
                  {"name": "b", "source": args.model, "max_model_len": 2048, "max_num_seqs": 8, **second}]
        config.write_text(json.dumps({"models": models}))
        return Models(args.build / "xgen-model", ["--config", str(config)])

    server = start(load="on_demand")
    try:
        server.first_token_ms("b")
        loads = []

        def load_and_unload(stop):
            while not stop.is_set():
                loads.append(server.timed_ms("load", "b"))
                server.timed_ms("unload", "b")

        alone, beside = [], []
        for _ in range(args.runs):
            alone += gaps_of_streams(server, args.seconds / args.runs, lambda stop: None)
            beside += gaps_of_streams(server, args.seconds / args.runs, load_and_unload)
        show = lambda gaps: f"p50 {statistics.median(gaps):.2f} ms, p99 {percentile(gaps, 0.99):.2f} ms, of {len(gaps)}"
        print(f"gaps of a stream alone: {show(alone)}")
        print(f"while another model loads ({len(loads)} loads, {statistics.median(loads):.0f} ms each): {show(beside)}")
        print(f"p99 grows by {100 * (percentile(beside, 0.99) / percentile(alone, 0.99) - 1):.0f}%, "
              f"p50 by {100 * (statistics.median(beside) / statistics.median(alone) - 1):.0f}%")

        extra, cold, warm, load = [], [], [], []
        for _ in range(max(args.runs, 5)):
            server.timed_ms("unload", "b")
            cold.append(server.first_token_ms("b"))
            warm.append(min(server.first_token_ms("b") for _ in range(3)))
            server.timed_ms("unload", "b")
            load.append(server.timed_ms("load", "b"))
            extra.append(cold[-1] - warm[-1] - load[-1])
        print(f"first token on demand: {statistics.median(cold):.1f} ms; a load {statistics.median(load):.1f} ms, "
              f"first token when loaded {statistics.median(warm):.1f} ms; above both {statistics.median(extra):.1f} ms "
              f"({min(extra):.1f} to {max(extra):.1f})")
    finally:
        server.stop()

    server = start(weight=1)
    try:
        def rates(names, seconds):
            stop = threading.Event()

            def ask(name):
                while not stop.is_set():
                    server.post({"model": name, "prompt": "Once upon a time", "max_tokens": 500, "ignore_eos": True}).read()

            threads = [threading.Thread(target=ask, args=(name,)) for name in names]
            for each in threads:
                each.start()
            time.sleep(1)
            before, began = server.tokens(), time.perf_counter()
            time.sleep(seconds)
            after, took = server.tokens(), time.perf_counter() - began
            stop.set()
            for each in threads:
                each.join()
            return {name: (after[name] - before[name]) / took for name in after}

        one, both = rates(["a"], args.seconds / 2), rates(["a", "b"], args.seconds)
        print(f"alone: {one['a']:.1f} tok/s; weights 3 and 1: {both['a']:.1f} and {both['b']:.1f} tok/s, "
              f"{both['a'] / both['b']:.2f} to 1, together {100 * (both['a'] + both['b']) / one['a']:.0f}% of one alone")
    finally:
        server.stop()


if __name__ == "__main__":
    main()
