"""Models that text-generation-inference serves: the real program before a scripted TGI, judged by TGI's own OpenAPI document."""
import contextlib
import json

import jsonschema
import openai
import pytest

from process import SHARED, Process
from test_remote import chat, eventually, lines_of, metric, write
from tgi import Tgi

DOCUMENT = SHARED / "data/openapi/tgi-openapi.json"
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "strict": True,
                                           "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}}


@pytest.fixture
def front(tmp_path):
    """The program before a TGI: front(tgi)."""
    with contextlib.ExitStack() as running:
        yield lambda tgi: running.enter_context(
            Process("--config", write(tmp_path, [{"name": "m", "engine": "tgi", "urls": [tgi.url]}])))


@pytest.mark.parametrize("ends", ["chunks", "connection"])
@pytest.mark.parametrize("blank", [b"", b" "])
def test_answers_of_chats_and_texts(front, ends, blank):
    with Tgi(ends, blank) as tgi:
        server = front(tgi)
        usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        answer = server.post("/v1/completions", {"model": "m", "prompt": "say a b", "logprobs": 1}).json()
        assert answer["choices"][0]["text"] == "a b" and answer["choices"][0]["finish_reason"] == "stop"
        assert answer["choices"][0]["logprobs"]["tokens"] == ["a", " b"]
        assert answer["usage"].items() >= usage.items()
        answer = server.post("/v1/chat/completions", chat("say a b")).json()
        assert answer["choices"][0]["message"]["content"] == "a b" and answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"].items() >= usage.items()
        chunks = [json.loads(line) for line in lines_of(server, chat("say a b")) if line != "[DONE]"]
        assert [c["choices"][0]["delta"]["content"] for c in chunks if c["choices"][0]["delta"].get("content")] == ["a", " b"]
        assert metric(server.url, "vllm:generation_tokens_total", "m") == 6
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            choice = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "call"}], tools=TOOLS).choices[0]
            assert choice.finish_reason == "tool_calls"
            assert json.loads(choice.message.tool_calls[0].function.arguments) == {"n": 1}
        assert metric(server.url, "vllm:generation_tokens_total", "m") == 15
        assert server.post("/tokenize", {"model": "m", "prompt": "ab"}).json()["tokens"] == [0, 1]


@pytest.mark.parametrize("kind,status,said", [
    ("validation", 400, "Input validation error: `inputs` is odd"),
    ("generation", 500, "Request failed during generation: CUDA error"),
    ("overloaded", 429, "Model is overloaded"),
    ("incomplete_generation", 500, "Incomplete generation")])
def test_faults(front, kind, status, said):
    with Tgi() as tgi:
        server = front(tgi)
        for path, body in (("/v1/chat/completions", chat(f"refuse {kind}")), ("/v1/completions", {"model": "m", "prompt": f"refuse {kind}"})):
            answer = server.post(path, body)
            assert answer.status_code == status and said in answer.json()["error"]["message"]
            assert ("retry-after" in answer.headers) == (status == 429)
        # After a token has gone out the status is gone as well.
        events = list(lines_of(server, chat(f"fail {kind}")))
        assert events[-1] == "[DONE]" and said in json.loads(events[-2])["error"]["message"]
        answer = server.post("/v1/completions", {"model": "m", "prompt": f"fail {kind}"})
        assert answer.status_code == status and said in answer.json()["error"]["message"]


@pytest.mark.parametrize("ends", ["chunks", "connection"])
def test_a_connection_that_ends_too_early(front, ends):
    with Tgi(ends) as tgi:
        server = front(tgi)
        for path, body in (("/v1/chat/completions", chat("break")), ("/v1/completions", {"model": "m", "prompt": "break"})):
            answer = server.post(path, body)
            assert answer.status_code == 503 and "broke off its answer" in answer.json()["error"]["message"]


def test_a_stop_string_ends_it_there(front):
    with Tgi(step=0.02) as tgi:
        server = front(tgi)
        many = " ".join(str(i) for i in range(500))
        for path, body in (("/v1/chat/completions", chat("say " + many, stop=["3"])), ("/v1/completions", {"model": "m", "prompt": "say " + many, "stop": "3"})):
            answer = server.post(path, body).json()
            choice = answer["choices"][0]
            assert choice.get("text", choice.get("message", {}).get("content")) == "0 1 2 "
            assert choice["finish_reason"] == "stop" and choice["stop_reason"] == "3"
            assert answer["usage"]["prompt_tokens"] == len("say " + many)
        eventually(lambda: tgi.left == 2)


def test_what_tgi_would_drop_is_refused(front):
    with Tgi() as tgi:
        server = front(tgi)
        calls = [{"id": i, "type": "function", "function": {"name": "look", "arguments": "{}"}} for i in "ab"]
        results = [{"role": "tool", "tool_call_id": i, "content": i} for i in "ba"]
        for messages in ([{"role": "assistant", "content": "I look.", "tool_calls": calls}],
                         [{"role": "assistant", "content": None, "tool_calls": calls}, *results]):
            answer = server.post("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "say x"}, *messages]})
            assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"
        assert not [path for path, _ in tgi.requests if "chat" in path]


# --- By TGI's own document.

def document():
    """Its schemas as JSON Schema. What it does not describe, it passes over in silence: requests may have nothing of that."""
    def translated(node):
        if isinstance(node, list):
            return [translated(each) for each in node]
        if not isinstance(node, dict):
            return node
        out = {key: translated(value) for key, value in node.items() if key not in ("nullable", "example", "discriminator", "format")}
        return {"anyOf": [out, {"type": "null"}]} if node.get("nullable") is True else out

    schemas = translated(json.loads(DOCUMENT.read_text())["components"]["schemas"])
    for name in ("GenerateRequest", "GenerateParameters", "ChatRequest", "StreamOptions", "Message", "Url", "Tool", "ToolCall", "FunctionDefinition"):
        schemas[name]["unevaluatedProperties"] = False
    # An alias in its source, which the document cannot say; its own examples use it.
    function = schemas["FunctionDefinition"]
    function["properties"]["parameters"] = function["properties"]["arguments"]
    function["required"] = ["name"]
    function["oneOf"] = [{"required": ["arguments"]}, {"required": ["parameters"]}]
    return schemas


REQUESTS = {"/generate_stream": "GenerateRequest", "/v1/chat/completions": "ChatRequest", "/tokenize": "GenerateRequest", "/chat_tokenize": "ChatRequest"}
REPLIES = {"/generate_stream": "StreamResponse", "/v1/chat/completions": "ChatCompletionChunk", "/tokenize": "TokenizeResponse",
           "/chat_tokenize": "ChatTokenizeResponse", "/info": "Info"}


@pytest.mark.skipif(not DOCUMENT.exists(), reason="shared data is absent")
def test_bodies_are_as_tgi_describes_them(front):
    schemas = document()

    def judge(name, body):
        jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}).validate(body)

    with pytest.raises(jsonschema.ValidationError):  # the judge is awake
        judge("ChatRequest", {"messages": [{"role": "tool", "content": "x", "tool_call_id": "0"}]})
    with pytest.raises(jsonschema.ValidationError):
        judge("ChatRequest", {"messages": [{"role": "assistant", "content": None}]})
    with pytest.raises(jsonschema.ValidationError):
        judge("GenerateRequest", {"inputs": "x", "parameters": {"temperature": 0}})

    messages = [{"role": "system", "content": "Be short."},
                {"role": "user", "name": "ann", "content": [{"type": "text", "text": "What is it?"},
                                                            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}]},
                {"role": "assistant", "content": "", "reasoning_content": "Hm.",
                 "tool_calls": [{"id": i, "type": "function", "function": {"name": "look", "arguments": "{}"}} for i in "ab"]},
                *({"role": "tool", "tool_call_id": i, "content": "seen"} for i in "ab"),
                {"role": "assistant", "content": "A cat.", "reasoning_content": "So."}]
    everything = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "frequency_penalty": 0.5, "seed": 7, "stop": ["END"]}
    greedy = {"temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
    with Tgi() as tgi:
        server = front(tgi)
        for more in (everything, greedy, {"tools": TOOLS, "tool_choice": "required", "logprobs": True, "top_logprobs": 2},
                     {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "look"}}},
                     {"tools": [{"type": "function", "function": {"name": "look"}}]}, {"response_format": SCHEMA},
                     {"stop": ["c"]}):  # cut here: the prompt is counted by /chat_tokenize
            answer = server.post("/v1/chat/completions", {"model": "m", "messages": [*messages, {"role": "user", "content": "say a b c d"}], **more})
            assert answer.status_code == 200, answer.text
        for more in (everything, greedy, {"top_k": 40, "repetition_penalty": 1.1, "logprobs": 2, "echo": False, "truncate_prompt_tokens": 100},
                     {"response_format": SCHEMA, "echo": True}, {"stop": "c"}):
            answer = server.post("/v1/completions", {"model": "m", "prompt": "say a b c d", **more})
            assert answer.status_code == 200, answer.text
        for prompt in ("call", "fail generation", "fail overloaded"):
            server.post("/v1/chat/completions", chat(prompt, tools=TOOLS))
            server.post("/v1/completions", {"model": "m", "prompt": prompt.replace("call", "refuse validation")})
        assert server.post("/tokenize", {"model": "m", "prompt": "ab"}).status_code == 200
        assert server.post("/tokenize", {"model": "m", "messages": messages}).status_code == 200
        eventually(lambda: "/info" in {path for path, *_ in tgi.replies})
        assert {path for path, _ in tgi.requests} == set(REQUESTS)
        for path, body in list(tgi.requests):
            judge(REQUESTS[path], body)
        assert {path for path, *_ in tgi.replies} >= set(REPLIES)
        for path, status, body in list(tgi.replies):
            if body is not None:
                judge("ErrorResponse" if "error_type" in body else REPLIES[path], body)
