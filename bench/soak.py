#!/usr/bin/env python3
"""An hour (or --minutes) of mixed load on one server, on this machine alone: does its memory stay flat, does it lose a descriptor, does a valid request fail?

usage: bench/soak.py BUILD_FOLDER [--minutes M] [--workers N] [--model PATH]

Workers choose at random (seeded) among chats and completions, streamed or not, long and short; clients that go away in the middle; bad JSON,
unknown models, oversized bodies and broken HTTP; several prompts at once; tokenizing; an on-demand model that is unloaded when idle; /metrics. Every few
seconds the configuration is changed and read again, sometimes with a file that is wrong. Every second the resident memory and the open descriptors are read.
The server's own figures decide: memory is the median of the last tenth of the time against that of the second tenth (the first warms up).
"""
import argparse
import collections
import json
import os
import pathlib
import random
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi".split()


class Soak:
    def __init__(self, program, model, workers, minutes):
        self.folder = tempfile.TemporaryDirectory()
        self.file = pathlib.Path(self.folder.name) / "models.yaml"
        self.source = json.dumps(str(pathlib.Path(model).resolve())) if model else "builtin:xgen-demo"
        self.workers, self.seconds = workers, minutes * 60
        self.counts = collections.Counter()
        self.faults = []
        self.lock = threading.Lock()
        self.over = threading.Event()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.write(64)
        self.log = open(pathlib.Path(self.folder.name) / "log", "w")
        self.child = subprocess.Popen([program, "serve", "--config", self.file, "--host", "127.0.0.1", "--port", str(self.port)],
                                      stdout=self.log, stderr=self.log)

    def write(self, seqs, bad=False):
        text = f"memory: {{host: 2GiB}}\nlog: {{format: json, level: {'warn' if seqs % 2 else 'info'}}}\nmodels:\n"
        for name, more in (("main", "aliases: [default]"), ("spare", "load: on_demand, idle_unload: 3s")):
            text += f"  - {{name: {name}, source: {self.source}, kv_cache: 64MiB, max_num_seqs: {seqs}, {more}}}\n"
        new = self.file.with_suffix(".new")
        new.write_text(text + ("nonsense: [" if bad else ""))
        new.rename(self.file)

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def call(self, path, body=None, timeout=120):
        data = None if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
        request = urllib.request.Request(self.url(path), data=data, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def expect(self, what, ok, detail=""):
        with self.lock:
            self.counts[what] += 1
            if not ok:
                self.counts[what + " FAILED"] += 1
                self.faults.append(f"{what}: {str(detail)[:300]}")

    def text(self, dice, most):
        return " ".join(dice.choice(WORDS) for _ in range(dice.randint(1, most)))

    def chat(self, dice, model="default", stream=None):
        stream = dice.random() < 0.5 if stream is None else stream
        body = {"model": model, "messages": [{"role": "user", "content": self.text(dice, 60)}], "max_tokens": dice.randint(1, 40),
                "temperature": dice.random(), "stream": stream, "seed": dice.randint(0, 1000)}
        status, answer = self.call("/v1/chat/completions", body)
        if stream:
            ok = status == 200 and answer.endswith(b"data: [DONE]\n\n") and b'"error"' not in answer
        else:
            ok = status == 200 and json.loads(answer)["choices"][0]["finish_reason"] in ("stop", "length")
        self.expect(f"chat {model}", ok, answer)

    def completions(self, dice):
        prompts = [self.text(dice, 100) for _ in range(dice.randint(1, 4))]
        status, answer = self.call("/v1/completions", {"model": "main", "prompt": prompts, "n": dice.randint(1, 2), "max_tokens": dice.randint(1, 30)})
        self.expect("completions", status == 200, answer)

    def tokenize(self, dice):
        status, answer = self.call("/tokenize", {"model": "main", "prompt": self.text(dice, 300)})
        self.expect("tokenize", status == 200, answer)

    def leave(self, dice):
        body = json.dumps({"model": "main", "prompt": self.text(dice, 200), "max_tokens": 400, "ignore_eos": True, "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as link:
            link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            if dice.random() < 0.7:
                link.recv(dice.randint(1, 2000))
        self.expect("left", True)

    def bad(self, dice):
        path, body, expected = dice.choice([
            ("/v1/chat/completions", b"{", 400), ("/v1/chat/completions", {"model": "nobody", "messages": []}, 400),
            ("/v1/completions", {"model": "nobody", "prompt": "x"}, 404), ("/v1/completions", {"model": "main", "prompt": 7}, 400),
            ("/v1/completions", {"model": "main", "prompt": "x", "temperature": -3}, 400), ("/nowhere", None, 404),
            ("/v1/completions", {"model": "main", "prompt": "x", "frobnicate": 1}, 400),
            ("/v1/completions", {"model": "main", "prompt": "word " * 5000, "max_tokens": 5}, 400)])
        status, answer = self.call(path, body)
        self.expect(f"bad input {expected}", status == expected, answer)

    def broken(self, dice):
        garbage = dice.choice([b"\r\n\r\n\x00\xff", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
                               b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{"])
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as link:
            try:
                link.sendall(garbage)
                link.settimeout(0.2)
                link.recv(1000)
            except OSError:
                pass
        self.expect("broken", True)

    def metrics(self, dice):
        status, page = self.call("/metrics")
        self.expect("metrics", status == 200 and b"vllm:" in page)

    def work(self, seed):
        dice = random.Random(seed)
        kinds = [(self.chat, 40), (self.completions, 15), (lambda d: self.chat(d, "spare"), 3), (self.tokenize, 5), (self.leave, 12),
                 (self.bad, 12), (self.broken, 8), (self.metrics, 5)]
        while not self.over.is_set():
            kind = dice.choices([each for each, _ in kinds], [weight for _, weight in kinds])[0]
            try:
                kind(dice)
            except Exception as fault:  # noqa: BLE001: whatever it is, it counts
                self.expect(getattr(kind, "__name__", "call"), False, repr(fault))

    def reload(self, seed):
        dice = random.Random(seed)
        while not self.over.wait(dice.uniform(2, 8)):
            self.write(dice.randint(32, 64), bad=dice.random() < 0.2)
            if dice.random() < 0.5:
                self.child.send_signal(signal.SIGHUP)
            self.counts["reloads"] += 1

    def sample(self):
        status = pathlib.Path(f"/proc/{self.child.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024, len(os.listdir(f"/proc/{self.child.pid}/fd"))

    def run(self):
        while True:
            try:
                if self.call("/health/ready", timeout=5)[0] == 200:
                    break
            except OSError:
                pass
            if self.child.poll() is not None:
                raise SystemExit("the server ended: " + (pathlib.Path(self.folder.name) / "log").read_text()[-2000:])
            time.sleep(0.05)
        idle = self.sample()
        threads = [threading.Thread(target=self.work, args=(seed,)) for seed in range(self.workers)]
        threads.append(threading.Thread(target=self.reload, args=(1000,)))
        for each in threads:
            each.start()
        begun, samples, told = time.monotonic(), [], 0
        while time.monotonic() - begun < self.seconds and self.child.poll() is None:
            time.sleep(1)
            samples.append(self.sample())
            if len(samples) - told >= 60:
                told = len(samples)
                print(f"  {told // 60} min: {samples[-1][0]:.1f} MiB, {samples[-1][1]} descriptors, {sum(self.counts.values())} calls, "
                      f"{len(self.faults)} faults", flush=True)
        self.over.set()
        for each in threads:
            each.join()
        if self.child.poll() is not None:
            raise SystemExit(f"the server ended with {self.child.returncode}: " + (pathlib.Path(self.folder.name) / "log").read_text()[-2000:])
        self.write(64)  # as it began
        self.child.send_signal(signal.SIGHUP)
        time.sleep(5)
        end = self.sample()
        tenth = max(1, len(samples) // 10)
        early = statistics.median(each[0] for each in samples[tenth:2 * tenth])
        late = statistics.median(each[0] for each in samples[-tenth:])
        self.child.send_signal(signal.SIGINT)
        code = self.child.wait(60)
        for what, count in sorted(self.counts.items()):
            print(f"  {what}: {count}")
        for fault in self.faults[:10]:
            print("  FAULT", fault)
        print(f"resident: {idle[0]:.1f} MiB idle, {early:.1f} early, {late:.1f} late ({(late / early - 1) * 100:+.1f}%), {end[0]:.1f} idle again; "
              f"descriptors: {idle[1]} idle, {end[1]} idle again; faults: {len(self.faults)}; exit status {code}")
        well = late <= early * 1.02 and end[1] <= idle[1] and not self.faults and code == 0
        print("flat, nothing lost, nothing failed" if well else "NOT WELL")
        return 0 if well else 1


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--model")
    args = parser.parse_args()
    raise SystemExit(Soak(args.build / "xgen-model", args.model, args.workers, args.minutes).run())


if __name__ == "__main__":
    main()
