"""The program as an operator meets it: start, configuration, signals, what it prints."""
import concurrent.futures
import json
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
import urllib.request

import httpx
import pytest

from process import PATIENCE, PROGRAM, ROOT, Process, run


@pytest.fixture(scope="module")
def demo():
    with Process() as process:
        yield process


def test_first_lines_say_how_to_call_it_and_how_to_add_a_model(demo):
    text = demo.output()
    assert "curl" in text and "/v1/chat/completions" in text and "models.yaml" in text
    assert f":{demo.port}" in text


def test_the_printed_curl_command_works(demo):
    command = re.search(r"curl .*", demo.output()).group(0)
    body = json.loads(re.search(r"-d '(.*)'", command).group(1))
    answer = demo.post("/v1/chat/completions", body)
    assert answer.status_code == 200
    assert "models.yaml" in answer.json()["choices"][0]["message"]["content"]


def test_the_printed_curl_command_holds_any_name():
    name = """it's-"a"-\\name"""
    with Process("builtin:xgen-demo", "--name", name) as server:
        words = shlex.split(re.search(r"curl .*", server.output()).group(0))
        body = json.loads(words[words.index("-d") + 1])
        assert body["model"] == name
        assert server.post("/v1/chat/completions", body).status_code == 200


def test_demo_answers_its_own_questions_word_for_word(demo):
    rows = [json.loads(line) for line in (ROOT / "tests/demo/answers.jsonl").read_text().splitlines()]
    assert len(rows) > 500
    step = 1 if PATIENCE == 1 else 25

    def ask(row):
        answer = demo.post("/v1/chat/completions", {"model": "xgen-demo", "messages": [{"role": "user", "content": row["question"]}]})
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, rows[::step]))
    wrong = [(row["question"], answer, row["answer"]) for row, answer in zip(rows[::step], answers) if answer != row["answer"]]
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("name, share", [("reworded", 0.93), ("free", 0.7), ("outside", 0.72)])
def test_demo_answers_questions_it_was_never_trained_on(demo, name, share):
    """Most get the right answer, and nearly every answer is one of those written for it."""
    rows = [json.loads(line) for line in (ROOT / f"tests/demo/{name}.jsonl").read_text().splitlines()]
    written = {json.loads(line)["answer"] for line in (ROOT / "tests/demo/answers.jsonl").read_text().splitlines()}
    answers = []
    for row in rows:
        answer = demo.post("/v1/chat/completions", {"model": "xgen-demo", "messages": [{"role": "user", "content": row["question"]}]})
        answers.append(answer.json()["choices"][0]["message"]["content"])
    assert len(rows) >= 100
    assert sum(answer in written for answer in answers) >= 0.95 * len(rows)
    assert sum(answer == row["answer"] for answer, row in zip(answers, rows)) >= share * len(rows)


def test_health_and_version(demo):
    for path in ("/health", "/health/live", "/health/ready", "/health/startup"):
        assert httpx.get(demo.url + path).status_code == 200
    assert re.match(r"\d+\.\d+\.\d+", httpx.get(demo.url + "/version").json()["version"])


def test_metrics_count_what_was_served(demo):
    def value(name):
        text = httpx.get(demo.url + "/metrics").text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    before = value("vllm:generation_tokens_total")
    usage = demo.post("/v1/completions", {"model": "xgen-demo", "prompt": "a", "max_tokens": 5, "ignore_eos": True}).json()["usage"]
    assert usage["completion_tokens"] == 5
    assert value("vllm:generation_tokens_total") == before + 5
    assert value("vllm:request_success_total") >= 1


def write(folder, text):
    path = folder / "models.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text, want", [
    ("server: {prot: 1}", "server.prot: unknown key"),
    ("server: {port: many}", "server.port: expected an integer"),
    ("models: [{name: a, source: /nonexistent}]", "models[0].source"),
    ("models: [{name: a, source: builtin:xgen-demo, kv_cache: 10000GiB}]", "kv_cache"),
    ("memory: {host: 1MiB}", "MiB"),
])
def test_a_bad_file_ends_with_code_2_and_names_the_place(tmp_path, text, want):
    path = write(tmp_path, text)
    for command in (["serve", "--config", path], ["check", "--config", path]):
        result = run(*command, "--port", "0") if command[0] == "serve" else run(*command)
        assert result.returncode == 2, result
        assert want in result.stderr and str(path) in result.stderr, result.stderr


def test_a_missing_file_ends_with_code_2():
    for result in (run("serve", "--config", "/nonexistent.yaml"), run("serve", env={"MODEL_CONFIG_PATH": "/nonexistent.yaml"}), run("serve", "/nonexistent")):
        assert result.returncode == 2 and "/nonexistent" in result.stderr, result


@pytest.mark.parametrize("flag, value, want", [
    ("--port", "70000", "an integer from 0 to 65535"),
    ("--log-level", "loud", "debug | info | warn | error | off"),
    ("--max-num-seqs", "0", "an integer from 1"),
    ("--threads", "many", "auto, or an integer"),
])
def test_a_bad_flag_ends_with_code_2_and_says_what_it_takes(flag, value, want):
    result = run("serve", flag, value)
    assert result.returncode == 2 and flag in result.stderr and want in result.stderr and value in result.stderr, result
    page = run("serve", "--help").stdout
    assert flag in page and want in " ".join(page.split())


def test_model_config_path_and_aliases(tmp_path):
    path = write(tmp_path, "models:\n  - {name: one, aliases: [uno], source: 'builtin:xgen-demo', max_model_len: 256}\n  - {name: two, source: 'builtin:xgen-demo'}\n")
    # A Kubernetes Service of our name injects such variables; they are not settings of ours.
    env = {"MODEL_CONFIG_PATH": str(path), "XGEN_MODEL_PORT": "tcp://10.0.0.1:8000", "XGEN_MODEL_SERVICE_HOST": "10.0.0.1"}
    with Process(env=env) as server:
        assert [m["id"] for m in httpx.get(server.url + "/v1/models").json()["data"]] == ["one", "uno", "two"]
        for name in ("one", "uno", "two"):
            assert server.post("/v1/completions", {"model": name, "prompt": "hello", "max_tokens": 2}).status_code == 200
        assert server.post("/v1/completions", {"model": "three", "prompt": "hello"}).status_code == 404
        too_long = server.post("/v1/completions", {"model": "one", "prompt": [5] * 300})
        assert too_long.status_code == 400 and "256" in too_long.json()["error"]["message"]


def test_check_prints_the_memory_plan(tmp_path):
    result = run("check", "--config", write(tmp_path, "models: [{name: a, source: 'builtin:xgen-demo'}]"))
    assert result.returncode == 0, result
    for word in ("weights", "KV", "workspace", "tokens"):
        assert word in result.stdout


def test_a_taken_port_is_a_clear_error():
    with Process() as server:
        result = run("serve", "--host", "127.0.0.1", "--port", server.port)
        assert result.returncode == 1 and str(server.port) in result.stderr


def test_a_low_limit_of_open_files_lowers_max_connections():
    """The server keeps answering, however many connections lie idle."""
    with Process(limit_open_files=200) as server:
        line = next(l for l in server.output().splitlines() if "max_connections is lowered" in l)
        assert "max_connections=16384" in line and "lowered_to=100" in line and "open_file_limit=200" in line
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(400)]
        for _ in range(5):
            answer = server.post("/v1/completions", {"model": "xgen-demo", "prompt": "x", "max_tokens": 1})
            assert answer.status_code == 200
        assert "cannot accept" not in server.output()
        for each in idle:
            each.close()


def test_sigterm_drains(tmp_path):
    path = write(tmp_path, "server: {drain_delay: 1500ms, drain_timeout: 60s}\ndefaults: {max_model_len: 1024}\n")
    with Process("--config", path) as server:
        body = {"model": "xgen-demo", "prompt": "hello", "max_tokens": 900, "ignore_eos": True, "temperature": 1, "seed": 1}
        events = server.stream("/v1/completions", body)
        first = next(events)
        rest = []
        reader = threading.Thread(target=lambda: rest.extend(events))
        reader.start()
        server.signal(signal.SIGTERM)
        time.sleep(0.3)
        # Not ready at once, but still serving, and telling clients to go.
        assert httpx.get(server.url + "/health/ready").status_code == 503
        answer = server.post("/v1/completions", {"model": "xgen-demo", "prompt": "x", "max_tokens": 1})
        assert answer.status_code == 200 and answer.headers["connection"] == "close"
        reader.join(60 * PATIENCE)
        tokens = [e for e in [first, *rest] if e["choices"]]
        assert tokens[-1]["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0


def test_requests_after_the_drain_delay_get_503(tmp_path):
    path = write(tmp_path, "server: {drain_delay: 0s, drain_timeout: 5m}\ndefaults: {max_model_len: 2000}\n")
    with Process("--config", path) as server:
        body = {"model": "xgen-demo", "prompt": "hello", "max_tokens": 1900, "ignore_eos": True,
                "n": 16 if PATIENCE == 1 else 2, "temperature": 1, "seed": 1}
        events = server.stream("/v1/completions", body)
        next(events)
        server.signal(signal.SIGTERM)
        time.sleep(0.2)
        answer = server.post("/v1/completions", {"model": "xgen-demo", "prompt": "x", "max_tokens": 1})
        assert answer.status_code == 503 and "retry-after" in answer.headers
        for _ in events:
            pass
        assert server.wait() == 0


def test_what_drain_timeout_cuts_off_ends_with_an_error(tmp_path):
    path = write(tmp_path, "server: {drain_delay: 0s, drain_timeout: 300ms}\n")
    with Process("--config", path) as server:
        body = {"model": "xgen-demo", "prompt": "hello", "max_tokens": 2000, "ignore_eos": True, "n": 32}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            whole = pool.submit(server.post, "/v1/completions", body)
            with httpx.stream("POST", server.url + "/v1/completions", json=dict(body, stream=True), timeout=60 * PATIENCE) as answer:
                lines = answer.iter_lines()
                next(lines)
                server.signal(signal.SIGTERM)
                events = [line for line in lines if line]
            # The same as for any other fault in the midst of a stream.
            error = json.loads(events[-2].removeprefix("data: "))["error"]
            assert events[-1] == "data: [DONE]" and error["code"] and "shutting down" in error["message"]
            refused = whole.result()
            assert refused.status_code == 503 and "shutting down" in refused.json()["error"]["message"]
        assert server.wait() == 0
        assert "drain_timeout cut off running requests" in server.output()
        assert "status=499" not in server.output() and server.output().count("status=503") == 2


def test_a_configuration_is_no_model(tmp_path):
    path = write(tmp_path, "server: {port: 1}\n")
    for command in ["serve", "check"]:
        result = run(command, path)
        assert result.returncode == 2 and f"give it with --config {path}" in result.stderr


def test_faults_of_all_models_are_told_at_once(tmp_path):
    (tmp_path / "bad").mkdir()
    path = write(tmp_path, """models:
  - {name: a, source: bad}
  - {name: b, source: bad}
  - {name: c, engine: openai, urls: ["http://x:99999/v1", "http://y/v1?q=1", "http://z/v1"]}
""")
    result = run("check", "--config", path)
    assert result.returncode == 2
    for each in ["models.yaml:2: model 'a': source: ", "models.yaml:3: model 'b': source: ",
                 "models.yaml:4: model 'c': urls: 'http://x:99999/v1'", "models.yaml:4: model 'c': urls: 'http://y/v1?q=1'"]:
        assert each in result.stderr


def test_a_second_signal_ends_at_once(tmp_path):
    path = write(tmp_path, "server: {drain_delay: 60s}\n")
    server = Process("--config", path)
    server.signal(signal.SIGTERM)
    time.sleep(0.2)
    start = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.wait() != 0
    assert time.monotonic() - start < 2 * PATIENCE


def test_idle_costs_no_cpu(demo):
    demo.post("/v1/completions", {"model": "xgen-demo", "prompt": "x", "max_tokens": 1})
    ticks = lambda: sum(map(int, open(f"/proc/{demo.child.pid}/stat").read().rsplit(")", 1)[1].split()[11:13]))
    time.sleep(0.3)
    before = ticks()
    time.sleep(2)
    assert ticks() - before <= 4  # hundredths of a second


def test_a_disconnect_frees_the_request(demo):
    def running():
        with urllib.request.urlopen(demo.url + "/metrics") as page:
            line = next(l for l in page.read().decode().splitlines() if l.startswith("vllm:num_requests_running"))
        return float(line.rsplit(" ", 1)[1])

    body = {"model": "xgen-demo", "prompt": "x", "max_tokens": 2000, "n": 128, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", demo.url + "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the connection with it
        next(lines)
        assert running() >= 1
    end = time.monotonic() + 2 * PATIENCE
    while running() > 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert running() == 0
    assert "status=499" in demo.output()


def test_the_binary_needs_nothing_but_glibc():
    if PATIENCE != 1:
        pytest.skip("a sanitizer build links its runtime")
    libraries = re.findall(r"NEEDED.*\[(.*?)\]", subprocess.run(["readelf", "-d", PROGRAM], capture_output=True, text=True, check=True).stdout)
    assert set(libraries) <= {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}, libraries


def test_unknown_commands_are_named():
    result = run("srve")
    assert result.returncode == 2 and "unknown command 'srve': serve, check, healthcheck, pull, import, bench, chat or docs" in result.stderr
    result = run()
    assert result.returncode == 2 and "a command is needed" in result.stderr
    for words, named in ((["buidl"], "unknown command 'buidl'"), (["test", "asam"], "'asam'")):
        result = subprocess.run([ROOT / "xgen", *words], capture_output=True, text=True, timeout=60)
        assert result.returncode == 2 and not result.stdout
        assert named in result.stderr.splitlines()[0] and "./xgen build" in result.stderr


@pytest.mark.parametrize("words, want", [
    (["serve", "--nonsense"], "the following argument was not expected: --nonsense; xgen-model serve --help tells more"),
    (["serve", "--port"], "--port: a value is missing; xgen-model serve --help tells more"),
    (["check", "a", "b"], "the following argument was not expected: b; xgen-model check --help tells more"),
    (["healthcheck", "well"], "probe: well not in {ready,live,startup}; xgen-model healthcheck --help tells more"),
    (["docs"], "page is required; xgen-model docs --help tells more"),
    (["bench", "--threads", "many"], "could not convert: --threads = many; xgen-model bench --help tells more"),
    (["--port", "80"], "a command is needed before --port: serve, check, healthcheck, pull, import, bench, chat or docs; xgen-model --help tells more"),
])
def test_errors_of_the_command_line_look_like_all_others(words, want):
    result = run(*words)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"xgen-model: {want}\n")


def test_help_and_version_are_no_errors():
    for words, want in ((["--help"], "healthcheck"), (["serve", "--help"], "--port"), (["--version"], "xgen-model ")):
        result = run(*words)
        assert result.returncode == 0 and want in result.stdout and result.stderr == ""


def test_the_reference_pages_are_current():
    for topic in ("configuration", "api"):
        page = (ROOT / f"docs/{topic}.md").read_text()
        assert run("docs", topic).stdout == page, f"run: build/release/xgen-model docs {topic} > docs/{topic}.md"


def test_a_mistake_does_not_end_in_the_demo_model(tmp_path, monkeypatch):
    assert run("serve", "").returncode == 2
    assert run("check", "--config", "").returncode == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.yaml").symlink_to("nowhere")
    result = run("check")
    assert result.returncode == 2 and "models.yaml" in result.stderr
    (tmp_path / "models.yaml").unlink()
    (tmp_path / "models.yaml").write_bytes(b"\0\0\0")
    result = run("check")
    assert result.returncode == 2 and "NUL" in result.stderr


def test_check_reads_tokenizers_and_plans_for_the_threads_of_serving(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (ROOT / "models/demo").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert run("check", folder).returncode == 0
    (folder / "tokenizer.json").write_text("{")
    result = run("check", folder)
    assert result.returncode == 2 and "tokenizer.json" in result.stderr
    plans = [re.search(r"workspace +(\S+ \S+)", run("check", "--threads", n).stdout).group(1) for n in (1, 16)]
    assert plans[0] != plans[1]


def test_the_printed_command_fits_the_models(tmp_path):
    (tmp_path / "models.yaml").write_text("models: [{name: a, source: builtin:xgen-demo}, {name: b, source: builtin:xgen-demo}]")
    with Process("--config", tmp_path / "models.yaml") as server:
        assert "serves a, b at" in server.output()
