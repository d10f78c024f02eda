#!/usr/bin/env python3
"""Two replicas behind nginx, then behind HAProxy, under a steady load: what their clients notice when each is restarted in turn, and when one is killed.

usage: build/venv/bin/python bench/rolling_bench.py BUILD_FOLDER [--seconds S]

Needs nginx, HAProxy and the packages of tests/e2e/requirements.txt (`./xgen test` makes build/venv); the load and the replicas are those of tests/e2e/rolling.py: the demo model, and one behind both
replicas whose tokens come 20 ms apart, in streams of 1 to 8 s. For S seconds the replicas are restarted one after the other (SIGTERM, its end, start, ready; `server.drain_delay` is the default);
then one is killed with SIGKILL and started again. Only streams that it had begun may fail then, and before that nothing.
"""
import argparse
import contextlib
import os
import pathlib
import sys
import tempfile
import time

QUIET_S = 5  # before the restarts, and after the kill


def tell(what, calls, excuse=None):
    streams = [call for call in calls if call.stream]
    faults = [call for call in calls if call.fault]
    lost = [call for call in faults if excuse and excuse(call)]
    print(f"  {what}: {len(calls)} requests, {len(streams)} of them streams; {len(faults) - len(lost)} failed" +
          (f", and {len(lost)} streams that it had begun" if excuse else "") +
          f"; longest until the first token {max(call.first - call.sent for call in streams if call.first) * 1e3:.0f} ms"
          f", until a plain answer {max(call.ended - call.sent for call in calls if call.kind == 'plain') * 1e3:.0f} ms"
          f", between two tokens {max(call.gap for call in streams) * 1e3:.0f} ms", flush=True)
    for call in faults[:5]:
        if call not in lost:
            print("    FAULT", call)
    return len(faults) == len(lost)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    os.environ["XGEN_BUILD"] = str(args.build.resolve())
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests/e2e"))
    from proxies import haproxy, nginx, proxy
    from rolling import Load, excused, replicas

    well = True
    for kind in (nginx, haproxy):
        with contextlib.ExitStack() as stack:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            two = stack.enter_context(replicas(folder))
            front = stack.enter_context(proxy(kind, folder, *two.ports))
            load = Load({kind.__name__: front}, stream_s=(1, 8), large=["nginx"])
            with load:
                time.sleep(QUIET_S)
                begun, restarts, longest = time.monotonic(), 0, 0
                while restarts % 2 or time.monotonic() - begun < args.seconds:
                    moment = time.monotonic()
                    two.restart(restarts % 2)
                    restarts, longest = restarts + 1, max(longest, time.monotonic() - moment)
                restarted = time.monotonic()
                time.sleep(QUIET_S)
                killed = two.kill(0)
                time.sleep(QUIET_S)
                two.start_again(0)
                time.sleep(QUIET_S)
            print(f"{kind.__name__}: {len(load.threads)} clients, {restarts} restarts in {restarted - begun:.0f} s, the longest of {longest:.1f} s")
            phases = [("before", 0, begun), ("restarts", begun, restarted), ("after", restarted, killed)]
            for name, first, last in phases:
                well &= tell(name, [call for call in load.calls if first <= call.ended < last])
            well &= tell("SIGKILL", [call for call in load.calls if call.ended >= killed], lambda call: excused(call, two.ports[0], killed))
    print("nothing failed but what a killed replica had begun" if well else "NOT WELL")
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
