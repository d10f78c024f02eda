"""Spans as a collector gets them, read by OpenTelemetry's own definition of the protocol."""
import base64
import http.server
import json
import re
import threading
import time

import httpx
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from process import PATIENCE, Process

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE}-b7ad6b7169203331-01"


class Collector:
    """Takes spans, or answers with `status`."""

    def __init__(self, status=200):
        self.status = status
        self.spans = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Content-Type"] == "application/json" and self.path == "/v1/traces"
                # The protocol's one difference from protobuf's JSON: ids are hexadecimal.
                for resource in body["resourceSpans"]:
                    for scope in resource["scopeSpans"]:
                        for span in scope["spans"]:
                            for key in ("traceId", "spanId", "parentSpanId"):
                                if key in span:
                                    span[key] = base64.b64encode(bytes.fromhex(span[key])).decode()
                request = json_format.ParseDict(body, ExportTraceServiceRequest())
                if collector.status == 200:
                    for resource in request.resource_spans:
                        service = {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"]
                        collector.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
                self.send_response(collector.status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, count):
        end = time.monotonic() + 20 * PATIENCE
        while len(self.spans) < count and time.monotonic() < end:
            time.sleep(0.02)
        assert len(self.spans) == count, [span.name for _, span in self.spans]
        spans, self.spans = self.spans, []
        return [span for _, span in spans]


@pytest.fixture
def collector():
    made = Collector()
    yield made
    made.server.shutdown()


def serve(tmp_path, name, settings):
    file = tmp_path / f"{name}.yaml"
    file.write_text(json.dumps(settings))
    return Process("--config", file)


def attributes(span):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_one_trace_goes_through_two_servers(tmp_path, collector):
    tracing = {"tracing": {"endpoint": collector.url}}
    chat = {"messages": [{"role": "user", "content": "What is xgen-model?"}], "max_tokens": 8, "temperature": 0}
    with serve(tmp_path, "back", tracing) as back:
        models = [{"name": "far", "engine": "openai", "model": "xgen-demo", "urls": [back.url + "/v1"]}]
        with serve(tmp_path, "front", {**tracing, "models": models}) as front:
            answer = front.post("/v1/chat/completions", {"model": "far", **chat},
                                headers={"traceparent": CALLER, "tracestate": "vendor=1"})
            assert answer.status_code == 200
            spans = collector.wait(9)
            assert f"trace_id={TRACE}" in front.output() and f"trace_id={TRACE}" in back.output()
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert {span.trace_state for span in spans} == {"vendor=1"}
    by_id = {span.span_id: span for span in spans}
    root, = (span for span in spans if span.name == "chat far")
    call, = (span for span in spans if span.name == "call xgen-demo")
    served, = (span for span in spans if span.name == "chat xgen-demo")
    assert root.parent_span_id.hex() == "b7ad6b7169203331"
    assert call.parent_span_id == root.span_id and served.parent_span_id == call.span_id
    assert (root.kind, call.kind, served.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER)
    usage = answer.json()["usage"]
    for span in (root, served):
        told = attributes(span)
        assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
        assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
        assert told["gen_ai.request.max_tokens"] == 8 and told["gen_ai.request.temperature"] == 0
        assert told["http.response.status_code"] == 200
        assert told["gen_ai.request.id"] == answer.headers["x-request-id"]
    # Each lies within the one that it is part of; two processes read the same clock here.
    for span in spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        if span.parent_span_id in by_id:
            parent = by_id[span.parent_span_id]
            assert span.start_time_unix_nano >= parent.start_time_unix_nano - 2_000_000
            assert span.end_time_unix_nano <= parent.end_time_unix_nano + 2_000_000
    phases = [span.name for span in spans if span.parent_span_id == served.span_id]
    assert sorted(phases) == ["decode", "prefill", "queue"]


def test_a_wait_for_the_model_to_load_is_queueing(tmp_path, collector):
    models = [{"name": "late", "source": "builtin:xgen-demo", "load": "on_demand"}]
    with serve(tmp_path, "one", {"tracing": {"endpoint": collector.url}, "models": models}) as program:
        assert program.post("/v1/completions", {"model": "late", "prompt": "x", "max_tokens": 2, "ignore_eos": True}).status_code == 200
        spans = {span.name: span for span in collector.wait(4)}
        load, = re.findall(r'^xgen_model_load_seconds\{.*phase="load"\} (\S+)$', program.get("/metrics").text, re.M)
        queued, = re.findall(r"^vllm:request_queue_time_seconds_sum\{.*\} (\S+)$", program.get("/metrics").text, re.M)
    root = spans["text_completion late"]
    seconds = lambda span: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert float(load) > 0.001
    assert seconds(spans["queue"]) >= 0.9 * float(load) and float(queued) >= 0.9 * float(load)
    for before, after in (("queue", "prefill"), ("prefill", "decode")):
        assert abs(spans[after].start_time_unix_nano - spans[before].end_time_unix_nano) < 1000
    assert spans["queue"].start_time_unix_nano >= root.start_time_unix_nano - 2_000_000
    assert spans["decode"].end_time_unix_nano <= root.end_time_unix_nano + 2_000_000


def test_the_share_and_the_callers_decision(tmp_path, collector):
    body = {"model": "xgen-demo", "prompt": "x", "max_tokens": 2, "ignore_eos": True}
    with serve(tmp_path, "one", {"tracing": {"endpoint": collector.url, "sample": 0}}) as program:
        for parent in ("", CALLER[:-1] + "0"):
            assert program.post("/v1/completions", body, headers={"traceparent": parent}).status_code == 200
        program.get("/v1/models")
        program.post("/v1/completions", body, headers={"traceparent": CALLER})
        assert {span.trace_id.hex() for span in collector.wait(4)} == {TRACE}


def test_an_error_in_a_stream_and_a_gone_client_are_told(tmp_path, collector):
    with serve(tmp_path, "one", {"tracing": {"endpoint": collector.url}}) as program:
        assert program.post("/v1/completions", {"model": "nobody", "prompt": "x"}).status_code == 404
        span, = collector.wait(1)
        assert span.status.code == span.status.STATUS_CODE_UNSET and attributes(span)["http.response.status_code"] == 404
        with httpx.stream("POST", program.url + "/v1/completions", timeout=60 * PATIENCE,
                          json={"model": "xgen-demo", "prompt": "x", "max_tokens": 900, "ignore_eos": True, "stream": True}) as answer:
            next(answer.iter_lines())
        *phases, span = collector.wait(4)
        assert attributes(span)["http.response.status_code"] == 499
        assert [each.name for each in phases] == ["queue", "prefill", "decode"]


def test_what_is_queued_at_the_end_is_sent(tmp_path, collector):
    with serve(tmp_path, "one", {"tracing": {"endpoint": collector.url}, "server": {"drain_delay": "0s"}}) as program:
        program.post("/v1/completions", {"model": "xgen-demo", "prompt": "x", "max_tokens": 2, "ignore_eos": True})
    assert len(collector.wait(4)) == 4


def test_a_collector_that_fails_costs_no_request(tmp_path):
    for url in ("http://127.0.0.1:1", None):
        failing = Collector(status=503)
        with serve(tmp_path, "one", {"tracing": {"endpoint": url or failing.url}}) as program:
            for _ in range(20):
                assert program.post("/v1/completions", {"model": "xgen-demo", "prompt": "x", "max_tokens": 2, "ignore_eos": True}).status_code == 200
            end = time.monotonic() + 30 * PATIENCE
            while "xgen_trace_spans_dropped_total 0\n" in program.get("/metrics").text:
                assert time.monotonic() < end
                time.sleep(0.1)
            assert "the collector does not take spans" in program.output()
        failing.server.shutdown()


@pytest.mark.parametrize("tracing, says", [
    ({"endpoint": "collector:4318"}, "tracing.endpoint"),
    ({"endpoint": "ftp://collector"}, "tracing.endpoint"),
    ({"sample": 2}, "tracing.sample: expected a number from 0 to 1"),
    ({"sample": "all"}, "tracing.sample: expected a number from 0 to 1"),
    ({"rate": 1}, "tracing.rate: unknown key"),
])
def test_bad_settings_are_refused(tmp_path, tracing, says):
    program = None
    try:
        (tmp_path / "bad.yaml").write_text(json.dumps({"tracing": tracing}))
        program = Process("--config", tmp_path / "bad.yaml", ready=False)
        assert program.child.wait(20 * PATIENCE) == 2
        assert says in program.output()
    finally:
        if program:
            program.child.kill()
