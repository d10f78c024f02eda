#!/usr/bin/env python3
"""Runs the fuzz programs of a build folder one after the other and ends in one line: N targets, M failed.
Inputs are kept in BUILD/corpus/TARGET; one that fails, in BUILD/failures.

usage: tests/fuzz/run.py BUILD_FOLDER [TARGET|all] [SECONDS]     (60 seconds for each target)
"""
import pathlib
import re
import subprocess
import sys

from seeds import SEEDS, write_seeds


def fuzz(program, target, build, seconds):
    """Whether the target stood, and one line about it."""
    corpus, failures = build / "corpus" / target, build / "failures"
    write_seeds(target, corpus)
    failures.mkdir(exist_ok=True)
    log = build / f"{target}.log"
    command = [program, corpus, f"-max_total_time={seconds}", "-rss_limit_mb=1024", "-timeout=10", "-print_final_stats=1",
               f"-artifact_prefix={failures}/{target}-"]
    with open(log, "w") as out:
        status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT).returncode
    text = log.read_text(errors="replace")
    runs = re.findall(r"stat::number_of_executed_units:\s*(\d+)", text)
    reached = re.findall(r"INITED cov: (\d+)", text)[-1:] + re.findall(r"cov: (\d+)", text)[-1:]
    line = f"{target}: {runs[-1] if runs else 0} inputs, code points reached {' -> '.join(reached) or 'none'}"
    if status == 0:
        return True, line
    summary = re.findall(r"^(?:SUMMARY|==\d+== ?ERROR|.*runtime error): .*", text, re.MULTILINE)[-1:]
    unit = re.findall(r"Test unit written to (\S+)", text)
    return False, "\n  ".join([f"{line}, FAILED", *summary, f"log: {log}", *(f"input: {path}" for path in unit)])


def main():
    arguments = sys.argv[1:] + ["all", "60"][len(sys.argv) - 2:]
    if len(sys.argv) < 2 or len(arguments) != 3 or not arguments[2].isdigit():
        sys.exit(__doc__)
    build, name, seconds = pathlib.Path(arguments[0]).resolve(), arguments[1], arguments[2]
    programs = {path.name.removeprefix("fuzz_"): path for path in sorted((build / "tests/fuzz").glob("fuzz_*"))}
    if name != "all" and name not in programs:
        sys.exit(f"fuzz: no target '{name}'; there are: {' '.join(programs)}")
    if missing := programs.keys() - SEEDS.keys():
        sys.exit(f"fuzz: tests/fuzz/seeds.py makes no input for: {' '.join(sorted(missing))}")
    chosen = [name] if name != "all" else list(programs)
    failed = 0
    for target in chosen:
        stood, line = fuzz(programs[target], target, build, seconds)
        failed += not stood
        print(line, flush=True)
    print(f"{len(chosen)} targets, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
