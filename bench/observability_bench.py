#!/usr/bin/env python3
"""Measures what the log, the metrics and the traces cost the program while it streams.

usage: bench/observability_bench.py BUILD_FOLDER --model PATH [--rounds N] [--seconds S]

Two servers of the same model, asked in turn: one that logs nothing, is never scraped and sends no spans; and one that logs a JSON line for each
request, sends every span to a collector (here, which throws them away) and is scraped twice a second. 16 streams of 128 tokens.
Printed are the streamed tokens a second and the processor time of the server per token, for each, and the medians' differences.
"""
import argparse
import contextlib
import http.server
import json
import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import threading
import urllib.request

from http_bench import load_command, serving


class Collector(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def scraped(port):
    over = threading.Event()

    def run():
        while not over.wait(0.5):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
                page.read()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", default="5")
    args = parser.parse_args()
    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    program = [args.build / "xgen-model", "serve", "--host", "127.0.0.1"]
    source = json.dumps(str(pathlib.Path(args.model).resolve()))
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, settings in (("nothing", "log: {level: 'off'}"),
                               ("everything", f"log: {{format: json}}\ntracing: {{endpoint: 'http://127.0.0.1:{collector.server_port}'}}")):
            config = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".yaml"))
            config.write(f"{settings}\nmodels: [{{name: m, source: {source}}}]\n")
            config.flush()
            log = stack.enter_context(tempfile.TemporaryFile())
            command = ["bash", "-c", 'exec "$@" 2>&%d' % log.fileno(), "serve", *map(str, program), "--config", config.name]
            os.set_inheritable(log.fileno(), True)
            servers[name] = stack.enter_context(serving(command, pass_fds=(log.fileno(),)))
        results = {name: ([], []) for name in servers}
        for _ in range(args.rounds):
            for name, (port, child) in servers.items():
                with scraped(port) if name == "everything" else contextlib.nullcontext():
                    before = cpu_seconds(child.pid)
                    out = subprocess.run([*load_command(args.build, port), "--seconds", args.seconds, "--mode", "stream",
                                          "--connections", "16", "--tokens", "128"], check=True, capture_output=True, text=True).stdout
                    used = cpu_seconds(child.pid) - before
                rate = float(re.search(r"(\d+) events/s", out).group(1))
                results[name][0].append(rate)
                results[name][1].append(used / (rate * float(args.seconds)) * 1e6)
                print(f"  {name}: {rate:.0f} tokens/s, {results[name][1][-1]:.2f} µs of processor time a token", flush=True)
        rates = {name: statistics.median(each[0]) for name, each in results.items()}
        costs = {name: statistics.median(each[1]) for name, each in results.items()}
        with urllib.request.urlopen(f"http://127.0.0.1:{servers['everything'][0]}/metrics") as page:
            spans = dict(re.findall(r"^(xgen_trace_spans\w+) (\S+)$", page.read().decode(), re.M))
        print(f"medians: {rates['nothing']:.0f} and {rates['everything']:.0f} tokens/s: {(1 - rates['everything'] / rates['nothing']) * 100:.1f}% less; "
              f"{costs['nothing']:.2f} and {costs['everything']:.2f} µs a token: {costs['everything'] - costs['nothing']:.2f} µs more")
        print(f"spans: {spans}")


if __name__ == "__main__":
    main()
