"""A real Prometheus scrapes the program, and finds what the dashboard, the rules and the alerts ask for."""
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time

import httpx
import pytest
import yaml

from process import BUILD, PATIENCE, ROOT, Process, free_port

MONITORING = ROOT / "deploy/monitoring"
RULES = [MONITORING / "recording-rules.yml", MONITORING / "alerts.yml"]
# What a program that has answered some requests must have of the dashboard.
EMPTY_BY_NATURE = {"Calls that went to another model", "Replicas that are well", "Requests there", "Failures",
                   "Prompts sent where their beginning is"}


@pytest.fixture(scope="module")
def prometheus():
    """The folder of Debian's prometheus and promtool: installed, or unpacked beside the build."""
    if shutil.which("promtool"):
        return pathlib.Path(shutil.which("promtool")).parent
    folder = BUILD.parent / "prometheus"
    if not (folder / "usr/bin/promtool").exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "prometheus"], cwd=folder, check=True, capture_output=True, timeout=300)
            package, = folder.glob("prometheus_*.deb")
            subprocess.run(["dpkg", "-x", package, folder], check=True, capture_output=True)
            package.unlink()
        except (OSError, ValueError, subprocess.SubprocessError) as fault:
            pytest.skip(f"Debian's package prometheus cannot be had: {fault}")
    return folder / "usr/bin"


def promtool(prometheus, *arguments, **kwargs):
    run = subprocess.run([prometheus / "promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, **kwargs)
    return run.returncode, run.stdout + run.stderr


def expressions():
    """(panel, expression) of the dashboard, as Grafana would send them."""
    board = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            text = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$model", ".*")
            assert "$" not in text, text
            yield panel["title"], text


def test_the_dashboard_is_what_its_script_prints():
    made = subprocess.run([sys.executable, ROOT / "tools/dashboard/make.py"], capture_output=True, text=True, check=True)
    assert made.stdout == (MONITORING / "grafana-dashboard.json").read_text()


def test_the_rules_are_valid_and_alert_when_they_should(prometheus):
    code, text = promtool(prometheus, "check", "rules", *RULES)
    assert code == 0, text
    code, text = promtool(prometheus, "test", "rules", ROOT / "tests/cases/monitoring/alerts_test.yml")
    assert code == 0, text


def test_the_page_is_well_formed(prometheus):
    with Process() as program:
        program.post("/v1/completions", {"model": "xgen-demo", "prompt": "x", "max_tokens": 2})
        program.get("/admin/log-level")
        assert httpx.put(program.url + "/admin/log-level", json={"level": "info"}).status_code == 200
        page = program.get("/metrics").text
    series = [line.rsplit(" ", 1)[0] for line in page.splitlines() if not line.startswith("#")]
    assert [each for each in set(series) if series.count(each) > 1] == []
    _, text = promtool(prometheus, "check", "metrics", input=page)
    # vLLM's names are not to Prometheus' taste; ours are.
    ours = [line for line in text.splitlines() if not line.startswith("vllm:")]
    assert ours == []


def test_prometheus_finds_what_the_dashboard_asks_for(prometheus, tmp_path):
    port = free_port()
    rules = []
    for each in RULES:
        rules.append(tmp_path / each.name)
        rules[-1].write_text(each.read_text().replace("interval: 30s", "interval: 1s"))
    with Process() as program:
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(each) for each in rules],
            "scrape_configs": [{"job_name": "xgen-model", "static_configs": [{"targets": [f"127.0.0.1:{program.port}"]}]}],
        }))
        server = subprocess.Popen(
            [prometheus / "prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def query(text):
            answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": text}, timeout=20 * PATIENCE)
            if answer.status_code == 503:  # it is starting
                return []
            assert answer.status_code == 200, f"{text}: {answer.text}"
            return answer.json()["data"]["result"]

        def wait_for(what, found, seconds=60):
            end = time.monotonic() + seconds * PATIENCE
            while time.monotonic() < end:
                try:
                    if found():
                        return
                except httpx.TransportError:
                    pass
                # Rates need samples that differ.
                program.post("/v1/chat/completions",
                             {"model": "xgen-demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3})
                time.sleep(0.2)
            raise AssertionError(f"Prometheus never had {what}")

        try:
            wait_for("a scrape", lambda: query("up") and query("up")[0]["value"][1] == "1")
            for title, text in expressions():
                if title in EMPTY_BY_NATURE:
                    query(text)  # valid all the same
                else:
                    wait_for(f"{title}: {text}", lambda: query(text))
            for group in yaml.safe_load(RULES[0].read_text())["groups"]:
                for rule in group["rules"]:
                    wait_for(rule["record"], lambda: query(rule["record"]))
            # An alert that fires on a program that is well would be noise. Some ask for changes from scrape to scrape.
            scrapes = "count_over_time(process_start_time_seconds[5m])"
            wait_for("six scrapes", lambda: query(scrapes) and int(query(scrapes)[0]["value"][1]) >= 6)
            assert [each["value"][1] for each in query("changes(process_start_time_seconds[5m])")] == ["0"]
            assert query("ALERTS") == []
            assert int(float(query("xgen_model_loads_total")[0]["value"][1])) == 1
        finally:
            server.terminate()
            server.wait(20)


def test_only_metrics_that_exist_are_asked_for():
    with Process() as program:
        known = set(re.findall(r"^# TYPE (\S+)", program.get("/metrics").text, re.M))
    asked = " ".join(text for _, text in expressions()) + " ".join(each.read_text() for each in RULES)
    records = set(re.findall(r"record: (\S+)", asked))
    names = set(re.findall(r"\b(?:vllm:|xgen_|process_|(?:model|instance):)[a-z0-9_:]+", asked)) - records
    assert len(names) > 40
    for name in names:
        assert re.sub(r"_(bucket|sum|count)$", "", name) in known or name in known, name
