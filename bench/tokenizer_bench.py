#!/usr/bin/env python3
"""Measures loading and encoding of tokenizers on one thread, beside Hugging Face's `tokenizers` where that is installed.

usage: bench/tokenizer_bench.py BUILD_FOLDER [PATH…]

PATH is a folder with tokenizer files, one of these files, or a .gguf; by default the demo model's, and those under ../shared/data where
there are any. The text is this repository's: documentation and sources (English), and the demo model's questions and answers (half
of them Korean), in pieces of about 4 KB. The library reads tokenizer.json alone; where it makes another number of tokens, that is said.
"""
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = ("tokenizer.json", "tokenizer.model")


def text():
    files = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")) + sorted(ROOT.glob("src/**/*.cpp")) + [ROOT / "tests/demo/answers.jsonl"]
    return "".join(f.read_text() for f in files)


def default_paths():
    shared = ROOT.parent / "shared/data"
    folders = {f.parent for name in FILES for f in (shared / "tokenizers").rglob(name)}
    return [ROOT / "models/demo", *sorted(folders), *sorted((shared / "llama.cpp-vocab").glob("*.gguf"))]


def pieces(whole):
    """As tokenizer_bench cuts them: the first line end after 4096 bytes."""
    data, out = whole.encode(), []
    while data:
        end = len(data) if len(data) <= 4096 else data.find(b"\n", 4096) + 1
        end = end or len(data)
        out.append(data[:end].decode())
        data = data[end:]
    return out


def library(folder, whole):
    """A line about `tokenizers` on the same files and text; nothing if it is not there or does not read the folder."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        import tokenizers
    except ImportError:
        return None
    path = folder / "tokenizer.json" if folder.is_dir() else folder
    if path.name != "tokenizer.json" or not path.exists():
        return None
    loads, passes, parts = [], [], pieces(whole)
    for _ in range(3):
        start = time.perf_counter()
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        loads.append(1000 * (time.perf_counter() - start))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    begin = time.perf_counter()
    while len(passes) < 2 or time.perf_counter() - begin < 1:
        start = time.perf_counter()
        tokens = sum(len(tokenizer.encode(part, add_special_tokens=False).ids) for part in parts)
        passes.append(time.perf_counter() - start)
    rate = len(whole.encode()) / 1e6 / statistics.median(passes)
    return f"{'  tokenizers ' + tokenizers.__version__:44} load {statistics.median(loads):7.1f} ms  encode {rate:6.2f} MB/s                {tokens} tokens"


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    program = pathlib.Path(sys.argv[1]).resolve() / "bench/tokenizer_bench"
    paths = [pathlib.Path(p) for p in sys.argv[2:]] or default_paths()
    whole, failed = text(), 0
    print(f"text: {len(whole.encode()) / 1e6:.2f} MB")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(whole)
        file.flush()
        for path in paths:
            folder = path.parent if path.name in FILES else path
            run = subprocess.run([program, file.name, os.path.relpath(folder, ROOT.parent)], capture_output=True, text=True, cwd=ROOT.parent)
            failed += run.returncode != 0
            print((run.stdout + run.stderr).rstrip(), flush=True)
            line = library(folder, whole)
            if line:
                print(line, flush=True)
    sys.exit(1 if failed == len(paths) else 0)


if __name__ == "__main__":
    main()
