"""Models of other engines: one server in front of another, as real processes."""
import http.server
import json
import signal
import socket
import subprocess
import threading
import time

import httpx
import openai
import pytest

from conftest import SCRIPTED
from process import PATIENCE, ROOT, Process, free_port, run


def write(folder, models, **sections):
    path = folder / "models.yaml"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({**sections, "models": models}))  # JSON is YAML
    fresh.rename(path)
    return path


def remote(name, url, **settings):
    return {"name": name, "engine": "openai", "urls": [url + "/v1"], **settings}


def metric(url, name, model, label=""):
    for line in httpx.get(url + "/metrics").text.splitlines():
        if line.startswith(name + "{") and f'model_name="{model}"' in line and label in line:
            return float(line.split()[-1])
    raise AssertionError(f"no {name} of {model}")


def eventually(condition, seconds=10):
    end = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


class Scripted:
    """The controller over a scripted model, one token every `step_us` microseconds."""

    def __init__(self, step_us=0, port=None):
        if not SCRIPTED.exists():
            pytest.skip(f"{SCRIPTED} is not built")
        port = port or free_port()
        self.child = subprocess.Popen([SCRIPTED, "--quiet", "--port", str(port), "--step-us", str(step_us)],
                                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.url = "http://" + self.child.stdout.readline().split()[-1]

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.child.poll() is None:
            self.child.terminate()
        self.child.wait()


def lines_of(front, body):
    """The data of each event of a streamed chat, as it comes."""
    with httpx.stream("POST", front.url + "/v1/chat/completions", json=dict(body, stream=True), timeout=60 * PATIENCE) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield line[6:]


def chat(text, **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def test_a_client_that_leaves_cancels_upstream(tmp_path):
    with Process() as upstream, Process("--config", write(tmp_path, [remote("m", upstream.url, model="xgen-demo")])) as front:
        running = lambda url, model: metric(url, "vllm:num_requests_running", model)
        stream = lines_of(front, chat("Hello", max_tokens=1900, ignore_eos=True))
        next(stream)
        next(stream)
        assert running(upstream.url, "xgen-demo") == 1 and running(front.url, "m") == 1
        stream.close()
        for url, model in ((upstream.url, "xgen-demo"), (front.url, "m")):
            eventually(lambda: running(url, model) == 0)
            assert metric(url, "vllm:request_success_total", model, 'finished_reason="abort"') == 1
        # The engine has stopped: nothing more is made, and not all was.
        made = metric(upstream.url, "vllm:generation_tokens_total", "xgen-demo")
        time.sleep(0.05)
        assert made == metric(upstream.url, "vllm:generation_tokens_total", "xgen-demo") < 1900


def test_a_killed_engine_ends_a_stream_with_an_error(tmp_path):
    with Scripted(step_us=20_000) as upstream, \
            Process("--config", write(tmp_path, [remote("m", upstream.url, model="scripted")])) as front:
        events = []
        for data in lines_of(front, chat("tok", max_tokens=1000)):
            events.append(data)
            if len(events) == 5:
                upstream.kill()
        assert events[-1] == "[DONE]"
        error = json.loads(events[-2])["error"]
        assert "'m'" in error["message"] and upstream.url in error["message"] and "broke off" in error["message"]
        assert error["code"] == "service_unavailable"
        # What has not begun gets its own status.
        answer = front.post("/v1/chat/completions", chat("tok"))
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert "cannot be reached" in answer.json()["error"]["message"] and upstream.url in answer.json()["error"]["message"]


def test_an_engine_may_come_later(tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with Process("--config", write(tmp_path, [remote("m", url, model="scripted", health_interval="100ms")])) as front:
        eventually(lambda: front.get("/health").status_code == 503)
        assert front.get("/health/live").status_code == 200
        assert front.post("/v1/chat/completions", chat("say x")).status_code == 503
        with Scripted(port=port):
            assert front.post("/v1/chat/completions", chat("say x")).json()["choices"][0]["message"]["content"] == "x"
            eventually(lambda: front.get("/health").status_code == 200)


@pytest.mark.parametrize("engine", ["openai", "tgi"])
def test_an_engine_that_never_answers_does_not_hold_up_the_end(tmp_path, engine):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the connections
        models = [{"name": "m", "engine": engine, "urls": [f"http://127.0.0.1:{silent.getsockname()[1]}"], "health_interval": "200ms"},
                  {"name": "n", "engine": engine, "urls": [f"http://127.0.0.1:{silent.getsockname()[1]}/{i}" for i in range(2)],
                   "health_interval": "200ms"}]
        for pause in (0, 0.7):
            with Process("--config", write(tmp_path, models)) as server:
                time.sleep(pause)
                begin = time.monotonic()
                server.child.send_signal(signal.SIGINT)
                assert server.child.wait(30 * PATIENCE) == 0
                assert time.monotonic() - begin < 5 * PATIENCE


def test_tools_reasoning_and_forms_pass_through(tmp_path):
    with Scripted() as upstream, \
            Process("--config", write(tmp_path, [remote("m", upstream.url, model="able")])) as front, \
            openai.OpenAI(base_url=front.url + "/v1", api_key="none", max_retries=0) as client:
        tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("one", "two")]
        body = dict(model="m", messages=[{"role": "user", "content": "call"}], tools=tools, tool_choice="required")
        choice = client.chat.completions.create(**body).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls] == [
            ("call_0", "one", '{"n": 0}'), ("call_1", "two", '{"n": 1}')]
        parts = {0: "", 1: ""}
        for chunk in client.chat.completions.create(**body, stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                parts[call.index] += call.function.arguments or ""
        assert parts == {0: '{"n": 0}', 1: '{"n": 1}'}
        message = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "think so"}], reasoning_effort="low",
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
            extra_body={"chat_template_kwargs": {"x": 1}}).choices[0].message
        assert message.content == "so" and message.reasoning_content == "Let me think."
        # What the engine behind does not offer, it refuses by name.
    with Process() as upstream, Process("--config", write(tmp_path, [remote("m", upstream.url, model="xgen-demo")])) as front:
        answer = front.post("/v1/chat/completions", chat("x", tools=tools))
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "tools"
        assert answer.json()["error"]["code"] == "unsupported_parameter"


def test_through_two_servers(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with Scripted() as last, Process("--config", write(tmp_path / "a", [remote("m", last.url, model="scripted")])) as middle, \
            Process("--config", write(tmp_path / "b", [remote("m", middle.url)])) as front:
        answer = front.post("/v1/chat/completions", chat("say one two", n=2)).json()
        assert [c["message"]["content"] for c in answer["choices"]] == ["one two", "one two"]
        assert answer["usage"]["prompt_tokens"] == 3
        assert [m["max_model_len"] for m in front.get("/v1/models").json()["data"]] == [4096]


def test_urls_that_lead_in_a_circle_are_noticed(tmp_path):
    port = free_port()
    path = write(tmp_path, [remote("me", f"http://127.0.0.1:{port}"), {"name": "other", "source": "builtin:xgen-demo"}])
    with Process("--config", path, port=port) as server:
        answer = server.post("/v1/completions", {"model": "me", "prompt": "x", "max_tokens": 1})
        assert answer.status_code == 400 and "lead in a circle" in answer.json()["error"]["message"]
        assert server.output().count("path=/v1/completions") == 9
        for path, body in [("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})]:
            answer = server.post(path, {"model": "me", **body})
            assert answer.status_code == 400 and "lead in a circle" in answer.json()["error"]["message"]
            assert server.output().count(f"path={path}") == 9
        assert server.post("/v1/completions", {"model": "other", "prompt": "x", "max_tokens": 1}).status_code == 200


def test_a_wrong_model_or_path_is_said(tmp_path):
    with Process() as engine:
        path = write(tmp_path, [remote("a", engine.url, model="nobody"), dict(remote("b", engine.url, model="xgen-demo"), urls=[engine.url])])
        with Process("--config", path) as server:
            for name, why in [("a", "nobody"), ("b", "/chat/completions")]:
                answer = server.post("/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "x"}]})
                error = answer.json()["error"]
                assert answer.status_code == 400 and "are 'model' and the /v1 of 'urls' right?" in error["message"] and why in error["message"]


def test_a_reload_moves_a_model_to_another_engine(tmp_path):
    with Scripted() as first, Scripted(step_us=30_000) as second:
        path = write(tmp_path, [remote("m", first.url, model="scripted")])
        with Process("--config", path) as front:
            begin = time.monotonic()
            assert front.post("/v1/chat/completions", chat("tok", max_tokens=20)).status_code == 200
            fast = time.monotonic() - begin
            write(tmp_path, [remote("m", second.url, model="scripted")])
            assert front.post("/admin/reload", {}).status_code == 200
            results = []
            def keep_asking():
                results.append(front.post("/v1/chat/completions", chat("tok", max_tokens=20)).status_code)
            threads = [threading.Thread(target=keep_asking) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert results == [200] * 4
            begin = time.monotonic()
            front.post("/v1/chat/completions", chat("tok", max_tokens=20))
            assert time.monotonic() - begin > max(0.5, fast)


def test_a_key_is_sent_from_a_file(tmp_path):
    key = tmp_path / "key"
    key.write_text("sk-test-1234\n")
    seen = []

    class Engine(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.headers["Authorization"], self.headers["X-Team"]))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "Incorrect API key provided: sk-test-1234"}}')

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Engine) as engine:
        threading.Thread(target=engine.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{engine.server_port}"
        model = remote("m", url, api_key_file="key", headers={"X-Team": "blue"}, health_interval=0)
        with Process("--config", write(tmp_path, [model])) as front:
            answer = front.post("/v1/chat/completions", chat("x"))
            assert answer.status_code == 503 and "refused our credentials" in answer.text
            assert "sk-test" not in answer.text and "sk-test" not in front.output()
        engine.shutdown()
    assert seen == [("Bearer sk-test-1234", "blue")]


def test_what_the_configuration_says_of_calls_holds_for_them(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing to trust")

    def begin_an_answer(server, kept):
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # the test is over
                return
            kept.append(connection)
            connection.recv(1 << 16)
            event = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {json.dumps(event)}\n\n".encode())

    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as begins:
        silent_at, begins_at = (f"127.0.0.1:{each.getsockname()[1]}" for each in (silent, begins))  # the kernel takes the connections
        threading.Thread(target=begin_an_answer, args=(begins, []), daemon=True).start()
        models = [remote("connect", f"https://{silent_at}", connect_timeout="100ms", health_interval=0),
                  remote("first", f"http://{silent_at}", first_byte_timeout="100ms", health_interval=0),
                  remote("idle", f"http://{begins_at}", idle_timeout="100ms", health_interval=0),
                  remote("trust", f"https://{silent_at}", ca_file="ca.pem", health_interval=0)]
        with Process("--config", write(tmp_path, models)) as front:
            for name, words in [("connect", "no TLS connection within connect_timeout"), ("first", "no answer within first_byte_timeout"),
                                ("idle", "nothing more of the answer within idle_timeout"), ("trust", f"ca_file {tmp_path}/ca.pem")]:
                # Sooner than by the shortest of the defaults.
                answer = httpx.post(front.url + "/v1/chat/completions", json=dict(chat("x"), model=name), timeout=4)
                assert answer.status_code in (500, 503) and words in answer.json()["error"]["message"], answer.text


def test_more_requests_than_a_remote_model_may_have_are_refused(tmp_path):
    with Scripted(step_us=20_000) as upstream, \
            Process("--config", write(tmp_path, [remote("m", upstream.url, model="scripted", max_requests=1)])) as front:
        stream = lines_of(front, chat("tok", max_tokens=1000))
        next(stream)
        assert front.post("/v1/chat/completions", chat("say x")).status_code == 429
        stream.close()
        eventually(lambda: front.post("/v1/chat/completions", chat("say x")).status_code == 200)


def test_check_shows_remote_models(tmp_path):
    models = [remote("big", "http://vllm-0:8000", model="org/Big"), {"name": "demo", "source": "builtin:xgen-demo"}]
    done = run("check", "--config", write(tmp_path, models))
    assert done.returncode == 0, done.stderr
    assert "big (remote: org/Big at http://vllm-0:8000/v1, openai" in done.stdout and "demo (" in done.stdout
    bad = run("check", "--config", write(tmp_path, [remote("big", "http://vllm-0:99999")]))
    assert bad.returncode == 2 and "models.yaml:" in bad.stderr and "99999" in bad.stderr


def test_a_model_behind_triton(tmp_path):
    asked = []

    class Triton(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = b"" if "config" not in self.path else json.dumps(
                {"input": [], "parameters": {"accumulate_tokens": {"string_value": "true"}}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Connection", "close")
            self.end_headers()
            for text in ("Hel", "Hello", "Hello there"):
                self.wfile.write(b"data: " + json.dumps({"model_name": "ensemble", "text_output": text}).encode() + b"\n\n")
            self.close_connection = True

        def log_message(self, *_):
            pass

    model = {"name": "m", "engine": "triton", "model": "ensemble", "tokenizer": str(ROOT / "models/demo")}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Triton) as engine:
        threading.Thread(target=engine.serve_forever, daemon=True).start()
        path = write(tmp_path, [{**model, "urls": [f"http://127.0.0.1:{engine.server_port}"]}])
        with Process("--config", path) as front:
            eventually(lambda: front.post("/v1/chat/completions", chat("x")).json()["choices"][0]["message"]["content"] == "Hello there")
            chunks = [json.loads(line) for line in lines_of(front, chat("Hi", max_tokens=3)) if line != "[DONE]"]
            assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == "Hello there"
            assert chunks[-1]["choices"][0]["finish_reason"] == "length"
            target, body = asked[-1]
            assert target == "/v2/models/ensemble/generate_stream" and body["max_tokens"] == 3
            assert "<|im_start|>user" in body["text_input"] and body["text_input"].endswith("<|im_start|>assistant\n")
            ids = front.post("/tokenize", {"model": "m", "prompt": "Hello"}).json()["tokens"]
            assert front.post("/detokenize", {"model": "m", "tokens": ids}).json()["prompt"] == "Hello"
            refused = front.post("/v1/completions", {"model": "m", "prompt": "x", "logprobs": 1})
            assert refused.status_code == 400 and refused.json()["error"]["param"] == "logprobs"
        engine.shutdown()


@pytest.mark.parametrize("end", ["unload", "shutdown"])
def test_triton_is_stopped_with_what_has_not_begun(tmp_path, end):
    asked, stopped, going = threading.Event(), threading.Event(), threading.Event()

    class Triton(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"input": []}')

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body.get("stop"):
                stopped.set()
                self.send_response(200)
                self.end_headers()
            else:
                asked.set()
                going.wait(60 * PATIENCE)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Triton) as engine:
        threading.Thread(target=engine.serve_forever, daemon=True).start()
        model = {"name": "m", "engine": "triton", "model": "ensemble", "tokenizer": str(ROOT / "models/demo"),
                 "urls": [f"http://127.0.0.1:{engine.server_port}"]}
        with Process("--config", write(tmp_path, [model], server={"drain_timeout": "200ms"})) as front:
            answers = []
            asking = threading.Thread(target=lambda: answers.append(front.post("/v1/completions", {"model": "m", "prompt": "x"})))
            asking.start()
            assert asked.wait(10 * PATIENCE)
            if end == "unload":
                assert front.post("/admin/unload", {"model": "m"}).status_code == 200
            else:
                front.child.send_signal(signal.SIGINT)
                assert front.child.wait(30 * PATIENCE) == 0
            assert stopped.wait(10 * PATIENCE)
            asking.join()
            assert answers[0].status_code == 503
            going.set()
        engine.shutdown()


def test_check_reads_the_tokenizer_of_a_remote_model(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    model = {"name": "m", "engine": "triton", "urls": ["http://triton:8000"], "tokenizer": str(ROOT / "models/demo")}
    assert run("check", "--config", write(tmp_path, [model])).returncode == 0
    for tokenizer, words in [("tokenizer.json", "tokenizer.json"), ("absent", "No such file or directory")]:
        done = run("check", "--config", write(tmp_path, [{**model, "tokenizer": tokenizer}]))
        assert done.returncode == 2
        assert "models.yaml:1" in done.stderr and "tokenizer: " in done.stderr and words in done.stderr
