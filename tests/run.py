#!/usr/bin/env python3
"""Runs every test program of a build folder and the end-to-end tests, and ends in one line:
N passed, M failed, K skipped.

usage: tests/run.py BUILD_FOLDER [NAME…]     (NAME: a room such as "text", or "e2e")
"""
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMIT_S = 2700  # for one test program (the end-to-end tests, with the slowest sanitizer); a hang must not stop the others


def run(command, log, env=None):
    """Exit status of a command whose output goes to a file; 'timeout' if it did not end."""
    with open(log, "w") as out:
        try:
            return subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=LIMIT_S, env=env, cwd=ROOT).returncode
        except subprocess.TimeoutExpired:
            return "timeout"


def show_tail(log, lines=80):
    text = log.read_text(errors="replace").splitlines()
    print("\n".join("    " + line for line in text[-lines:]))


def unit(program, build):
    report, log = build / "reports" / f"{program.name}.json", build / "reports" / f"{program.name}.log"
    report.unlink(missing_ok=True)
    start = time.monotonic()
    status = run([str(program), f"--gtest_output=json:{report}"], log)
    seconds = time.monotonic() - start
    passed = failed = 0
    skipped, failures = [], []
    if report.exists():
        for suite in json.loads(report.read_text())["testsuites"]:
            for case in suite["testsuite"]:
                name = f"{program.name}: {case['classname']}.{case['name']}"
                if case.get("failures"):
                    failures.append(name)
                elif case["result"] == "SKIPPED":
                    skipped.append(name)
                elif case["status"] == "RUN":
                    passed += 1
    if status != 0 and not failures:
        failures.append(f"{program.name}: ended with {status}")
    if passed == 0 and not failures and not skipped:
        failures.append(f"{program.name}: ran no test")
    return program.name, seconds, passed, failures, skipped, log


def venv():
    """A Python with the packages of tests/e2e/requirements.txt, made once per list of packages."""
    folder, wanted = ROOT / "build" / "venv", (ROOT / "tests/e2e/requirements.txt").read_text()
    stamp = folder / "requirements.txt"
    if not (stamp.exists() and stamp.read_text() == wanted):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([str(folder / "bin/pip"), "install", "-q", "--disable-pip-version-check", "-r", str(ROOT / "tests/e2e/requirements.txt")], check=True)
        stamp.write_text(wanted)
    return folder / "bin/python"


def end_to_end(build):
    report, log = build / "reports" / "e2e.xml", build / "reports" / "e2e.log"
    report.unlink(missing_ok=True)
    start = time.monotonic()
    try:
        python = venv()
    except (subprocess.CalledProcessError, OSError) as error:
        # Air-gapped: said aloud and counted, and in CI a failure.
        message = f"e2e: the Python packages of tests/e2e/requirements.txt cannot be installed ({error})"
        if os.environ.get("CI"):
            return "e2e", 0, 0, [message], [], log
        return "e2e", 0, 0, [], [message], log
    env = dict(os.environ, XGEN_BUILD=str(build), PYTHONDONTWRITEBYTECODE="1")
    status = run([str(python), "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", f"--junitxml={report}", "tests/e2e"], log, env)
    seconds = time.monotonic() - start
    passed = 0
    skipped, failures = [], []
    if report.exists():
        for case in ET.parse(report).iter("testcase"):
            name = f"e2e: {case.get('classname')}.{case.get('name')}"
            if case.find("failure") is not None or case.find("error") is not None:
                failures.append(name)
            elif case.find("skipped") is not None:
                skipped.append(name + " (" + case.find("skipped").get("message", "") + ")")
            else:
                passed += 1
    if status != 0 and not failures:
        failures.append(f"e2e: pytest ended with {status}")
    return "e2e", seconds, passed, failures, skipped, log


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    build, names = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:]
    (build / "reports").mkdir(exist_ok=True)
    programs = sorted(p for p in (build / "tests").glob("test_*") if p.is_file() and os.access(p, os.X_OK))
    if names:
        programs = [p for p in programs if p.name[len("test_"):] in names]
    passed, failures, skipped = 0, [], []

    def take(result):
        nonlocal passed
        name, seconds, good, bad, left_out, log = result
        print(f"{name}: {good} passed, {len(bad)} failed, {len(left_out)} skipped in {seconds:.1f} s", flush=True)
        if bad:
            for failure in bad[:20]:
                print("  FAILED " + failure)
            if log.exists():
                show_tail(log)
        passed += good
        failures.extend(bad)
        skipped.extend(left_out)

    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for result in pool.map(lambda p: unit(p, build), programs):
            take(result)
    if (not names or "e2e" in names) and (ROOT / "tests/e2e/requirements.txt").exists():
        take(end_to_end(build))

    for case in skipped:
        print("skipped " + case)
    for case in failures:
        print("FAILED  " + case)
    print(f"{passed} passed, {len(failures)} failed, {len(skipped)} skipped")
    sys.exit(1 if failures or passed == 0 else 0)


if __name__ == "__main__":
    main()
