#!/usr/bin/env python3
"""Measures what prefix affinity gives: conversations over three replicas that together hold 40% of their keys and values.

usage: bench/sessions_bench.py BUILD_FOLDER --model PATH --trace CSV [--seconds S] [--rounds N] [--seed N]

Everything is real: three xgen-model processes with one compute thread each, one more in front of them, and clients that send the
whole conversation with every turn. With `balance: prefix` and `round_robin` in turns, the same conversations at the same times.

The conversations come from a trace of Azure's (TIMESTAMP,ContextTokens,GeneratedTokens) and a seed. They begin at the trace's times,
scaled to LIVE of them at once. The first message has a quarter of the ContextTokens of its line, later ones a sixteenth of other
lines', answers an eighth of the GeneratedTokens. A conversation has 2 + geometric(mean TURNS - 2) turns, with pauses of a lognormal
distribution with mean PAUSE seconds between an answer and the next turn: most people go on soon, some after long. The model's weights
are made up; so that its answers are text that tokenizes as it was made, they are held to digits by `logit_bias`.

The working set is what the conversations that are under way hold in tokens, in the mean of the time after the first third; the
replicas' caches together get 40% of it. Printed: the share of prompt tokens that came from a prefix cache (`usage`), the 99th percentile of
the time in the replicas' queues (their metrics), and of the time to the first token. The first third warms up and is not counted.
"""
import argparse
import contextlib
import csv
import datetime
import http.client
import json
import math
import pathlib
import random
import re
import statistics
import tempfile
import threading
import time
import urllib.request

from http_bench import serving

LIVE, TURNS, PAUSE, SIGMA = 150, 7, 10.0, 1.2
SHARE = 0.4
REPLICAS = 3
MAX_LEN = 3072
TOKEN_SECONDS = 0.01  # assumed for the plan alone: an answer's token


def conversations(trace, seconds, seed):
    """[(start, [(pause before, tokens of the message, tokens of the answer)])]"""
    rows = []
    with open(trace) as file:
        for row in csv.DictReader(file):
            stamp = row["TIMESTAMP"].split(".")
            at = datetime.datetime.fromisoformat(stamp[0]).timestamp() + float("0." + stamp[1])
            rows.append((at, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    rand = random.Random(seed)
    life = TURNS * (PAUSE + 0.5)
    count = max(1, round(LIVE * seconds / life))
    begin = rand.randrange(len(rows) - count)
    chosen = rows[begin:begin + count]
    scale = seconds / (chosen[-1][0] - chosen[0][0])
    out = []
    for at, context, generated in chosen:
        turns = [(0.0, max(16, context // 4), max(2, generated // 8))]
        more = 1
        while rand.random() > 1 / (TURNS - 1):
            more += 1
        for _ in range(more):
            _, context, generated = rows[rand.randrange(len(rows))]
            pause = rand.lognormvariate(math.log(PAUSE) - SIGMA * SIGMA / 2, SIGMA)
            turns.append((pause, max(16, context // 16), max(2, generated // 8)))
        while len(turns) > 2 and sum(m + a for _, m, a in turns) > MAX_LEN - 512:
            turns.pop()
        if sum(m + a for _, m, a in turns) <= MAX_LEN - 512:
            out.append(((at - chosen[0][0]) * scale, turns))
    return out


def working_set(plan, seconds):
    """Tokens of the conversations under way, in the mean of the time after the first third."""
    changes = []
    for start, turns in plan:
        now, held = start, 0
        for pause, message, answer in turns:
            now += pause
            changes.append((now, message + answer))
            held += message + answer
            now += answer * TOKEN_SECONDS
        changes.append((now, -held))
    area, held, last = 0.0, 0, 0.0
    for at, change in sorted(changes):
        a, b = max(last, seconds / 3), min(at, seconds)
        if b > a:
            area += held * (b - a)
        held, last = held + change, at
    return area / (seconds * 2 / 3)


def words(rand, tokens):
    """About so many tokens: of these models a token is mostly a byte."""
    out = []
    while tokens > 0:
        word = "".join(rand.choices("abcdefghijklmnopqrstuvwxyz", k=rand.randint(2, 9)))
        out.append(word)
        tokens -= len(word) + 1
    return " ".join(out)


class Run:
    def __init__(self, port, seconds, bias):
        self.port, self.seconds, self.bias, self.begin = port, seconds, bias, time.monotonic()
        self.lock = threading.Lock()
        self.prompt = self.cached = self.requests = 0
        self.first, self.faults = [], []

    def talk(self, start, turns, seed):
        rand = random.Random(seed)
        messages = []
        time.sleep(max(0.0, self.begin + start - time.monotonic()))
        for pause, message, answer in turns:
            if time.monotonic() + pause > self.begin + self.seconds:
                return
            time.sleep(pause)
            messages.append({"role": "user", "content": words(rand, message)})
            text = self.turn(messages, answer)
            if text is None:
                return
            messages.append({"role": "assistant", "content": text})

    def turn(self, messages, answer):
        """The text of the answer; null after a fault."""
        body = {"model": "m", "messages": messages, "max_tokens": answer, "ignore_eos": True, "logit_bias": self.bias, "stream": True,
                "stream_options": {"include_usage": True}}
        start, first, usage, text = time.monotonic(), None, None, ""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            if reply.status != 200:
                raise OSError(f"{reply.status} {reply.read()[:200]}")
            for line in reply:
                if not line.startswith(b"data: {"):
                    continue
                first = first or time.monotonic()
                event = json.loads(line[6:])
                if "error" in event:
                    raise OSError(str(event["error"]))
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
            connection.close()
        except OSError as fault:
            with self.lock:
                self.faults.append(str(fault))
            return None
        if start < self.begin + self.seconds / 3:
            return text
        with self.lock:
            self.requests += 1
            self.prompt += usage["prompt_tokens"]
            self.cached += usage["prompt_tokens_details"]["cached_tokens"]
            self.first.append(first - start)
        return text


def digits(port):
    body = json.dumps({"model": "m", "prompt": "0123456789", "add_special_tokens": False}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


def queue_buckets(ports):
    """{upper bound: count} of the time that requests waited, over all replicas."""
    out = {}
    for port in ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            for bound, count in re.findall(r'vllm:request_queue_time_seconds_bucket\{[^}]*le="([^"]+)"[^}]*\} (\S+)', page.read().decode()):
                bound = math.inf if bound == "+Inf" else float(bound)
                out[bound] = out.get(bound, 0) + float(count)
    return out


def quantile(buckets, share):
    total, below, count_below = buckets[math.inf], 0.0, 0.0
    for bound in sorted(buckets):
        if buckets[bound] >= share * total:
            if math.isinf(bound):
                return below
            inside = buckets[bound] - count_below
            return below + (bound - below) * ((share * total - count_below) / inside if inside else 1)
        below, count_below = bound, buckets[bound]
    return below


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(build, model, balance, plan, kv_bytes, seconds, seed):
    with contextlib.ExitStack() as stack:
        def serve(config):
            file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".yaml"))
            json.dump({"server": {"host": "127.0.0.1"}, "log": {"level": "warn"}, **config}, file)
            file.flush()
            return stack.enter_context(serving([build / "xgen-model", "serve", "--config", file.name]))[0]

        entry = {"name": "m", "source": str(model.resolve()), "max_model_len": MAX_LEN, "kv_cache": kv_bytes}
        ports = [serve({"compute": {"threads": 1}, "models": [entry]}) for _ in range(REPLICAS)]
        front = serve({"models": [{"name": "m", "engine": "openai", "urls": [f"http://127.0.0.1:{port}/v1" for port in ports],
                                   "balance": balance}]})
        run = Run(front, seconds, {str(token): 100 for token in digits(ports[0])})
        threads = [threading.Thread(target=run.talk, args=(start, turns, (seed << 32) + i)) for i, (start, turns) in enumerate(plan)]
        for thread in threads:
            thread.start()
        time.sleep(max(0.0, run.begin + seconds / 3 - time.monotonic()))
        before = queue_buckets(ports)
        for thread in threads:
            thread.join()
        after = queue_buckets(ports)
        if run.faults:
            raise SystemExit(f"{len(run.faults)} requests failed, the first: {run.faults[0]}")
        queued = quantile({bound: after[bound] - before.get(bound, 0) for bound in after}, 0.99)
        return run, queued


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--kv-bytes", type=int, required=True, help="of one token of this model")
    parser.add_argument("--trace", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    plan = conversations(args.trace, args.seconds, args.seed)
    tokens = working_set(plan, args.seconds)
    kv_bytes = int(SHARE * tokens / REPLICAS) * args.kv_bytes
    print(f"{len(plan)} conversations, {statistics.mean(len(turns) for _, turns in plan):.1f} turns, "
          f"{statistics.mean(sum(m + a for _, m, a in turns) for _, turns in plan):.0f} tokens at their end; working set "
          f"{tokens:.0f} tokens, {kv_bytes / args.kv_bytes:.0f} a replica", flush=True)
    shares = {}
    for _ in range(args.rounds):
        for balance in "round_robin", "prefix":
            run, queued = measure(args.build, args.model, balance, plan, kv_bytes, args.seconds, args.seed)
            shares.setdefault(balance, []).append(run.cached / run.prompt)
            print(f"  {balance}: {run.requests} requests, {run.prompt} prompt tokens, {100 * run.cached / run.prompt:.1f}% of them cached; "
                  f"queued p99 {1000 * queued:.0f} ms; first token p50 {1000 * percentile(run.first, 0.5):.0f} ms, "
                  f"p99 {1000 * percentile(run.first, 0.99):.0f} ms", flush=True)
    print(f"cached share: {statistics.median(shares['prefix']) / statistics.median(shares['round_robin']):.2f} times round-robin's")


if __name__ == "__main__":
    main()
