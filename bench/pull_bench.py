#!/usr/bin/env python3
"""How fast a model is downloaded: `xgen-model pull` of one file from a Hub on loopback, against what this machine's disk
and its SHA-256 allow.

usage: bench/pull_bench.py BUILD_FOLDER [MIB]     (default: 1024)
"""
import hashlib
import http.server
import json
import multiprocessing
import os
import pathlib
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 5
COMMIT = "0" * 39 + "1"


class Handler(http.server.BaseHTTPRequestHandler):
    """The two calls of the Hub's API, and ranges of one file."""
    protocol_version = "HTTP/1.1"
    file, size, sha256 = None, 0, ""

    def log_message(self, *args):
        pass

    def say(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if "/revision/" in self.path:
            return self.say(json.dumps({"sha": COMMIT}).encode())
        if "/tree/" in self.path:
            entry = {"type": "file", "path": "big.gguf", "size": self.size, "oid": "0" * 40,
                     "lfs": {"oid": self.sha256, "size": self.size, "pointerSize": 134}}
            return self.say(json.dumps([entry]).encode())
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2])) if asked else (0, self.size - 1)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{self.size}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.flush()
        with open(self.file, "rb") as source:
            while first <= last:
                first += os.sendfile(self.connection.fileno(), source.fileno(), first, min(last + 1 - first, 1 << 20))


def serve(path, size, sha256, port):
    Handler.file, Handler.size, Handler.sha256 = path, size, sha256
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_port)
    server.serve_forever()


def best_hash(path, size):
    """MB/s of SHA-256 over a file in the page cache, on one core."""
    begin = time.monotonic()
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        block = bytearray(1 << 20)
        while n := file.readinto(block):
            digest.update(memoryview(block)[:n])
    return size / 1e6 / (time.monotonic() - begin), digest.hexdigest()


def write_speed(folder, size):
    """MB/s of writing a file and having it on the disk."""
    block = os.urandom(1 << 20)
    begin = time.monotonic()
    with open(folder / "written", "wb", buffering=0) as file:
        for _ in range(size >> 20):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.monotonic() - begin
    (folder / "written").unlink()
    return size / 1e6 / seconds


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    program = pathlib.Path(sys.argv[1]).resolve() / "xgen-model"
    size = int(sys.argv[2] if len(sys.argv) > 2 else 1024) << 20
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = pathlib.Path(name)
        source = folder / "big.gguf"
        with open(source, "wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        _, sha256 = best_hash(source, size)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(str(source), size, sha256, theirs), daemon=True)
        server.start()
        env = dict(os.environ, HF_ENDPOINT=f"http://127.0.0.1:{ours.recv()}", HF_HOME=str(folder / "hf"), HF_TOKEN="")
        for connections in (1, 8):
            config = folder / "models.yaml"
            config.write_text(json.dumps({"sources": {"connections": connections}}))
            pulls, cpus, hashes, writes = [], [], [], []
            for _ in range(ROUNDS):
                hashes.append(best_hash(source, size)[0])
                writes.append(write_speed(folder, size))
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                begin = time.monotonic()
                subprocess.run([program, "pull", "hf://org/big", "--config", config], env=env, check=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
                pulls.append(size / 1e6 / (time.monotonic() - begin))
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
                shutil.rmtree(folder / "hf")
            pull, hashing, writing = (statistics.median(each) for each in (pulls, hashes, writes))
            print(f"{connections} connections: {pull:.0f} MB/s (best {max(pulls):.0f}), {statistics.median(cpus):.2f} s of CPU; "
                  f"SHA-256 of the file {hashing:.0f} MB/s (best {max(hashes):.0f}): {100 * pull / hashing:.0f}%; "
                  f"writing it, with fsync, {writing:.0f} MB/s (best {max(writes):.0f}): {100 * pull / writing:.0f}%")
        server.terminate()


if __name__ == "__main__":
    main()
