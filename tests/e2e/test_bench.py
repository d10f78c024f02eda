"""`xgen-model bench`: figures that are right, faults that are counted, and reports that can be read."""
import hashlib
import json
import os
import pty
import re
import signal
import statistics
import subprocess
import threading
import time
import xml.etree.ElementTree

import httpx
import jsonschema
import pytest

import stub
from process import PATIENCE, PROGRAM, ROOT, Process, free_port, run

SCHEMA = json.loads((ROOT / "docs/bench-report.schema.json").read_text())


@pytest.fixture(scope="module")
def demo():
    with Process() as process:
        yield process


def bench(folder, url, *args, code=0, env=None):
    """Runs it; its JSON, which is as its schema says, with the `text` beside."""
    file = folder / "report.json"
    result = run("bench", url, "--json", file, *args, env={"OPENAI_API_KEY": "", **(env or {})})
    assert result.returncode == code, result
    assert result.stderr == "", "the bar is for terminals"
    report = json.loads(file.read_text())
    jsonschema.validate(report, SCHEMA)
    return dict(report, text=result.stdout)


def test_times_agree_with_an_independent_client_and_with_the_server(tmp_path):
    first, gap, count = 0.08, 0.02, 12
    with stub.serving(stub.words(*["a "] * count, first=first, gap=gap)) as server:
        theirs = []

        def other_client():
            with httpx.Client() as client:
                for _ in range(15):
                    begin, times = time.monotonic(), []
                    with client.stream("POST", server.url + "/v1/completions", json={"prompt": "x", "stream": True}) as answer:
                        for line in answer.iter_lines():
                            if '"text"' in line:
                                times.append(time.monotonic())
                    theirs.append((begin, times))

        thread = threading.Thread(target=other_client)
        thread.start()
        report = bench(tmp_path, server.url, "--concurrency", 2, "--requests", 30, "--endpoint", "completions")
        thread.join()
        ours_served = [(came, sent) for came, sent, prompt in server.times if prompt != "x"]
        theirs_served = [(came, sent) for came, sent, prompt in server.times if prompt == "x"]

    def ttft(runs):
        return 1000 * statistics.median(times[0] - begin for begin, times in runs)

    def itl(runs):
        return 1000 * statistics.mean(b - a for _, times in runs for a, b in zip(times, times[1:]))

    assert report["ttft_ms"]["count"] == 30 and report["itl_ms"]["count"] == 30 * (count - 1)
    # The server's own clock begins when it has read the request, a little after the client's.
    tolerance = 5 * PATIENCE
    assert ttft(ours_served) - 1 < report["ttft_ms"]["p50"] < ttft(ours_served) + tolerance
    assert ttft(theirs_served) - 1 < ttft(theirs) < ttft(theirs_served) + 2 * tolerance
    assert abs(report["itl_ms"]["mean"] - itl(ours_served)) < 0.5 * PATIENCE
    assert abs(itl(theirs) - itl(theirs_served)) < 1 * PATIENCE
    # Both clients are served the same, up to what else the machine does.
    assert report["ttft_ms"]["p50"] == pytest.approx(ttft(theirs), rel=0.25 * PATIENCE)
    assert report["itl_ms"]["mean"] == pytest.approx(itl(theirs), rel=0.25 * PATIENCE)
    assert 1000 * first <= report["ttft_ms"]["p50"] and 1000 * gap <= report["itl_ms"]["mean"] + 0.5
    assert report["tpot_ms"]["mean"] == pytest.approx(report["itl_ms"]["mean"], rel=0.02)
    assert report["e2e_ms"]["mean"] == pytest.approx(report["ttft_ms"]["mean"] + (count - 1) * report["itl_ms"]["mean"], abs=tolerance)
    assert report["tokens"]["counted_by"] == "usage" and report["tokens"]["output"]["mean"] == count


def test_the_demo_model(tmp_path, demo):
    report = bench(tmp_path, demo.url, "--concurrency", 4, "--requests", 40, "--output", "8-24", "--ignore-eos", "--warmup", "200ms",
                   "--slo", "ttft=1m,itl=1m", "--svg", tmp_path / "plot.svg")
    assert report["model"] == "xgen-demo" and report["endpoint"] == "chat"
    assert report["requests"] == {"counted": 40, "succeeded": 40, "failed": 0, "shortened": 0} and not report["errors"]
    assert report["tokens"]["counted_by"] == "usage"
    assert report["tokens"]["output"]["mean"] == pytest.approx(report["tokens"]["output_asked"]), "ignore_eos"
    # Its lengths were measured before.
    assert report["tokens"]["input"]["mean"] == pytest.approx(128, rel=0.05)
    assert report["goodput"]["share"] == 1
    assert report["throughput"]["output_tokens_per_s"] > 0
    assert "TTFT" in report["text"] and "40 succeeded" in report["text"]
    picture = xml.etree.ElementTree.parse(tmp_path / "plot.svg").getroot()
    assert picture.tag.endswith("svg") and len(list(picture)) > 50
    assert any("xgen-demo" in (each.text or "") for each in picture.iter())


def test_open_loops_and_shared_prefixes_on_the_demo_model(tmp_path, demo):
    report = bench(tmp_path, demo.url, "--rate", 40, "--arrivals", "constant", "--duration", "1s", "--prefixes", 2, "--prefix-tokens", 200,
                   "--input", 16, "--output", 4)
    assert report["requests"]["counted"] == 40 and report["measured_s"] == 1
    assert report["throughput"]["sent_per_s"] == 40
    assert report["tokens"]["input"]["mean"] == pytest.approx(216, rel=0.05)
    assert report["tokens"]["cached_share"] > 0.5, "the prefixes are found again"
    assert not any("prefix cache" in each for each in report["warnings"])


def test_a_seed_that_the_server_has_seen_is_warned_of(tmp_path, demo):
    for seen in (False, True):
        report = bench(tmp_path, demo.url, "--requests", 10, "--concurrency", 1, "--seed", 77, "--output", 4)
        assert any("it has seen this --seed before" in each for each in report["warnings"]) == seen


def test_the_seed_makes_the_same_requests(tmp_path):
    def bodies(seed):
        with stub.serving(stub.words("a")) as server:
            bench(tmp_path, server.url, "--requests", 20, "--seed", seed, "--input", "sharegpt", "--output", "5-50", "--concurrency", 3)
            return sorted(map(json.dumps, server.streams))

    assert bodies(7) == bodies(7) != bodies(8)


def test_a_trace_gives_arrivals_and_lengths(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"2023-11-16 18:15:4{i}.5000000,{20 + i},{5 + i}\n" for i in range(6)))
    with stub.serving(stub.words("a")) as server:
        report = bench(tmp_path, server.url, "--arrivals", "trace", "--rate", 20, "--trace", trace, "--input", "trace", "--output", "trace")
        bodies = sorted(server.streams, key=lambda body: body["max_tokens"])
    assert [body["max_tokens"] for body in bodies] == [5, 6, 7, 8, 9, 10]
    assert [len(body["messages"][0]["content"].split()) for body in bodies] == [20, 21, 22, 23, 24, 25]
    assert report["requests"]["succeeded"] == 6 and 0.25 < report["measured_s"] < 0.25 + PATIENCE, "a request each 50 ms"


def test_tokens_are_counted_by_events_where_the_server_does_not_say(tmp_path):
    with stub.serving(stub.words("a", "b", "c"), usage=False) as server:
        report = bench(tmp_path, server.url, "--requests", 5)
    assert report["tokens"]["counted_by"] == "events" and report["tokens"]["output"]["mean"] == 3
    assert not report["tokens"]["input_measured"] and "counted by events" in report["text"]
    with stub.serving(stub.words("a", "b", "c")) as server:
        report = bench(tmp_path, server.url, "--requests", 5, "--no-usage")
        assert all("stream_options" not in body for body in server.streams)
    assert report["tokens"]["counted_by"] == "events"


def test_faults_are_counted_by_kind(tmp_path):
    def answer(_stub, _body, number):
        if number % 4 == 0:
            return 429, {"error": {"message": "slow down", "type": "rate_limit_error"}}
        if number % 4 == 1:
            return cut()
        return stub.words("a", "b")(None, None, 0)

    def cut():
        yield "a"
        raise stub.Cut

    with stub.serving(answer) as server:
        report = bench(tmp_path, server.url, "--requests", 40, "--slo", "e2e=1m")
    assert report["requests"]["succeeded"] == 20 and report["requests"]["failed"] == 20
    assert report["errors"]["refused 429"] == {"count": 10, "first": "the server answered 429: slow down"}
    assert report["errors"]["cut"]["count"] == 10
    assert report["goodput"]["share"] == 0.5
    assert "10 refused 429, the first: the server answered 429: slow down" in report["text"]


def test_a_request_that_takes_too_long_is_a_timeout(tmp_path):
    with stub.serving(stub.words("a", "b", gap=30)) as server:
        report = bench(tmp_path, server.url, "--requests", 2, "--timeout", "300ms", code=1)
    assert report["errors"]["timeout"]["count"] == 2


def test_a_server_that_dies_in_the_middle(tmp_path):
    with Process() as server:
        killer = threading.Timer(1.0 * PATIENCE, server.child.kill)
        killer.start()
        report = bench(tmp_path, server.url, "--concurrency", 4, "--duration", f"{3 * PATIENCE}s", "--output", 4)
        server.wait()
        server.child.returncode = 0  # it was meant
    assert report["requests"]["succeeded"] > 0 and report["errors"]["connect"]["count"] >= 1000
    assert "there was no connection" in report["ended_early"]


def test_an_interrupt_ends_it_with_a_report(tmp_path):
    with stub.serving(stub.words(*["a"] * 10, gap=0.05)) as server:
        child = subprocess.Popen([PROGRAM, "bench", server.url, "--duration", "60s", "--json", tmp_path / "report.json"], stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + 20 * PATIENCE
        while len(server.times) < 10 and time.monotonic() < end:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        text, _ = child.communicate(timeout=20 * PATIENCE)
    assert child.returncode == 0, text
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ended_early"] == "it was interrupted" and report["requests"]["succeeded"] > 0


def test_a_terminal_gets_a_bar(tmp_path):
    with stub.serving(stub.words("a", "b", gap=0.3)) as server:
        ours, theirs = pty.openpty()
        child = subprocess.Popen([PROGRAM, "bench", server.url, "--requests", "16", "--concurrency", "4"], stdout=subprocess.DEVNULL, stderr=theirs)
        os.close(theirs)
        seen = b""
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:
                break
            if not data:
                break
            seen += data
        os.close(ours)
        assert child.wait(20 * PATIENCE) == 0
    assert re.search(rb"\[#*\.*\] +\d+%  \d+ done, 0 failed, \d+ under way", seen), seen
    assert seen.endswith(b"\r\x1b[K"), "and it goes at the end"


def test_keys(tmp_path):
    keys, secret = tmp_path / "keys.yaml", tmp_path / "secret"
    keys.write_text(f"keys:\n  - name: bench\n    sha256: {hashlib.sha256(b'right').hexdigest()}\n    scopes: [inference]\n")
    secret.write_text("right\n")
    with Process("--api-keys-file", keys) as server:
        refused = run("bench", server.url, "--requests", "2", env={"OPENAI_API_KEY": "wrong"})
        assert refused.returncode == 1 and "the server answered 401: " in refused.stderr and refused.stdout == ""
        assert bench(tmp_path, server.url, "--requests", 2, "--api-key-file", secret)["requests"]["succeeded"] == 2
        assert bench(tmp_path, server.url, "--requests", 2, env={"OPENAI_API_KEY": "right"})["requests"]["succeeded"] == 2


def test_the_model_is_chosen_where_there_is_one(tmp_path):
    with stub.serving(stub.words("a"), models=("one", "two")) as server:
        result = run("bench", server.url)
        assert result.returncode == 1 and "has several models; choose one with --model: one, two" in result.stderr
        assert bench(tmp_path, server.url, "--requests", 1, "--model", "two")["model"] == "two"
        assert server.streams[0]["model"] == "two"


def test_several_names_of_one_model_are_one_model(tmp_path):
    config = tmp_path / "models.yaml"
    config.write_text("models: [{name: demo, aliases: [default], source: builtin:xgen-demo}]\n")
    with Process("--config", config) as server:
        assert len(server.get("/v1/models").json()["data"]) == 2
        assert bench(tmp_path, server.url, "--requests", 1)["model"] == "demo"


def test_a_report_that_cannot_be_written_is_known_before_the_load():
    with stub.serving(stub.words("a")) as server:
        result = run("bench", server.url, "--json", "/nonexistent/x")
        assert result.returncode == 2 and "--json /nonexistent/x: No such file" in result.stderr and not server.streams


def test_an_older_report_is_kept_until_there_is_a_new_one(tmp_path):
    file = tmp_path / "report.json"
    file.write_text("older, and longer than what it takes to see that it is cut off" * 500)
    with stub.serving(stub.words(*["a"] * 10, gap=0.05)) as server:
        child = subprocess.Popen([PROGRAM, "bench", server.url, "--duration", "60s", "--json", file], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 20 * PATIENCE
        while len(server.times) < 10 and time.monotonic() < end:
            time.sleep(0.05)
        assert file.read_text().startswith("older")
        child.send_signal(signal.SIGINT)
        assert child.wait(20 * PATIENCE) == 0
    assert json.loads(file.read_text())["requests"]["succeeded"] > 0


def test_a_full_stdout_is_a_fault(tmp_path):
    with stub.serving(stub.words("a")) as server, open("/dev/full", "w") as full:
        done = subprocess.run([PROGRAM, "bench", server.url, "--requests", "1", "--json", tmp_path / "report.json"], stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=60 * PATIENCE)
    assert done.returncode == 1 and "stdout: No space left" in done.stderr
    assert json.loads((tmp_path / "report.json").read_text())["requests"]["succeeded"] == 1, "the other report is there"


def test_requests_are_shortened_to_the_context_that_the_server_tells(tmp_path):
    with stub.serving(stub.words("a"), max_len=256) as server:
        report = bench(tmp_path, server.url, "--requests", 4, "--input", 1000, "--output", 1000)
        for body in server.streams:
            assert len(body["messages"][0]["content"].split()) + body["max_tokens"] <= 256
    assert report["requests"]["shortened"] == 4 and "4 requests were shortened" in report["text"]


@pytest.mark.parametrize("args, want", [
    (["ftp://127.0.0.1"], "http"),
    (["--concurrency", "0"], "--concurrency: expected 1 to 16384"),
    (["--concurrency", "4", "--rate", "2"], "give one or the other"),
    (["--rate", "0"], "--rate: expected a number of requests a second above 0"),
    (["--arrivals", "constant"], "--arrivals constant needs a --rate"),
    (["--arrivals", "trace"], "needs a --trace FILE"),
    (["--arrivals", "trace", "--trace", "/nonexistent.csv"], "--trace /nonexistent.csv: No such file"),
    (["--trace", "/nonexistent.csv"], "--trace is not used"),
    (["--input", "many"], "--input: 'many': expected a number of tokens"),
    (["--output", "9-3"], "--output: '9-3'"),
    (["--requests", "0"], "--requests: expected 1 to"),
    (["--duration", "0"], "--duration: expected a time above 0"),
    (["--duration", "soon"], "--duration: expected"),
    (["--slo", "ttft=200"], "--slo: 'ttft=200': the time needs a unit"),
    (["--slo", "speed=2s"], "--slo: 'speed=2s': expected ttft="),
    (["--extra", "[1]"], "--extra: expected a JSON object"),
    (["--api-key-file", "/nonexistent"], "--api-key-file /nonexistent: No such file"),
    (["--threads", "0"], "--threads: expected 1 to 64"),
])
def test_what_is_misused_is_named(args, want):
    result = run("bench", *args)
    assert result.returncode == 2 and want in result.stderr and result.stdout == "", result


def test_nobody_there():
    result = run("bench", f"127.0.0.1:{free_port()}")
    assert result.returncode == 1 and "cannot connect: Connection refused" in result.stderr and result.stdout == ""
