"""Two replicas of the program behind proxies, under a steady load, while they are restarted or killed: for test_proxies.py and bench/rolling_bench.py."""
import contextlib
import dataclasses
import http.client
import json
import pathlib
import random
import re
import signal
import socket
import threading
import time
import urllib.parse

from conftest import SCRIPTED, started
from process import PATIENCE, Process

STEP_S = 0.02  # between two tokens of the model `slow`


def fixed_port():
    """A free port that no outgoing connection is given while its server is away."""
    lowest = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randint(lowest // 2, lowest - 1)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class Replicas:
    """Two processes with the demo model, and with `slow`: a scripted server behind both, whose tokens take their time."""

    def __init__(self, folder, slow_url, server):
        self.file = folder / "models.yaml"
        slow = {"name": "slow", "engine": "openai", "urls": [slow_url + "/v1"], "model": "scripted"}
        self.file.write_text(json.dumps({"server": server, "log": {"level": "warn"}, "models": [{"name": "xgen-demo", "source": "builtin:xgen-demo"}, slow]}))
        self.ports = [fixed_port() for _ in range(2)]
        self.processes = [self.start(port) for port in self.ports]

    def start(self, port):
        return Process("--config", self.file, port=port)

    def restart(self, number):
        """As an operator does: SIGTERM, wait for its end, start it, wait until it is ready."""
        self.processes[number].signal(signal.SIGTERM)
        self.processes[number].wait(60)
        self.processes[number].stop()
        self.start_again(number)

    def kill(self, number, hangs_s=0):
        """The moment at which it was killed. Hanging before, it has requests that it did not begin to answer."""
        if hangs_s:
            self.processes[number].signal(signal.SIGSTOP)
            time.sleep(hangs_s)
        moment = time.monotonic()
        self.processes[number].child.kill()
        self.processes[number].wait()
        return moment

    def start_again(self, number):
        self.processes[number] = self.start(self.ports[number])

    def stop(self):
        for each in self.processes:
            each.stop()


@contextlib.contextmanager
def replicas(folder, **server):
    with started([SCRIPTED, "--quiet", "--step-us", str(int(STEP_S * 1e6))]) as url:
        both = Replicas(folder, url, server)
        try:
            yield both
        except BaseException:
            for each in both.processes:
                each.__exit__(AssertionError, None, None)
            raise
        both.stop()


@dataclasses.dataclass
class Call:
    proxy: str
    kind: str
    sent: float
    asked: list = dataclasses.field(default_factory=list)  # the ports that the proxy asked, as far as it says; the last one answered
    begun: float = 0  # when the head of the answer came
    first: float = 0  # when its first event, or all of it, came
    gap: float = 0    # the longest time between two events
    ended: float = 0
    fault: str = ""

    @property
    def stream(self):
        return self.kind.endswith("stream")


class Load:
    """Threads that ask through every proxy, each one request after the other: short answers of the demo model, slow ones, and streams of both."""

    def __init__(self, fronts, stream_s=(1, 2), large=()):
        self.calls, self.over = [], threading.Event()
        self.stream_s = stream_s
        kinds = ["plain", "stream", "slow", "slow", "slow", "slow stream", "slow stream", "slow stream", "slow stream"]
        self.threads = [threading.Thread(target=self.work, args=(proxy, url, kind, random.Random(f"{proxy} {number}")))
                        for proxy, url in fronts.items() for number, kind in enumerate(kinds + ["large"] * (proxy in large))]

    def body(self, kind, dice):
        body = {"model": "slow" if "slow" in kind else "xgen-demo", "stream": kind.endswith("stream"), "max_tokens": 40,
                "messages": [{"role": "user", "content": "How do I add a model?"}]}
        if "slow" in kind:
            body["max_tokens"] = int((dice.uniform(*self.stream_s) if body["stream"] else 0.4) / STEP_S)
        if kind == "large":
            body["user"] = "x" * 200_000
        return json.dumps(body)

    def work(self, proxy, url, kind, dice):
        link = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60 * PATIENCE)
        while not self.over.wait(dice.uniform(0, 0.08)):
            call = Call(proxy, kind, time.monotonic())
            self.calls.append(call)
            try:
                link.request("POST", "/v1/chat/completions", self.body(kind, dice), {"Content-Type": "application/json"})
                self.read(call, link.getresponse())
            except (OSError, http.client.HTTPException) as fault:
                call.fault = repr(fault)
            call.ended = time.monotonic()
            if call.fault:
                link.close()
        link.close()

    def read(self, call, answer):
        call.begun = time.monotonic()
        call.asked = [int(port) for port in re.findall(r"(?::|at-)(\d+)", answer.getheader("x-replica", ""))]
        if answer.status != 200 or not call.stream:
            text = answer.read()
            call.first = time.monotonic()
            if answer.status != 200 or not json.loads(text)["choices"][0]["message"]["content"]:
                call.fault = f"{answer.status} {text[:300]}"
            return
        last, moment = b"", 0
        for line in answer:  # a body that is cut off ends like one that is whole
            if line.startswith(b"data: "):
                last, before, moment = line, moment, time.monotonic()
                call.first = call.first or moment
                call.gap = max(call.gap, moment - (before or moment))
                if b'"error"' in line:
                    call.fault = line.decode()[:300]
        if last.strip() != b"data: [DONE]":
            call.fault = call.fault or f"it ended with {last[:300]}"

    def begun_at(self, port):
        """The proxies that bring a stream of this replica that has long to go."""
        now = time.monotonic()
        return {call.proxy for call in self.calls if call.kind == "slow stream" and not call.ended and call.asked[-1:] == [port] and now - call.begun < self.stream_s[0] / 2}

    def __enter__(self):
        for each in self.threads:
            each.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for each in self.threads:
            each.join()


def excused(call, port, killed):
    """Whether it is a stream that the replica of this port had begun, and that had not ended when that was killed."""
    return call.stream and call.begun and call.asked[-1:] == [port] and call.sent < killed < call.ended
