"""First inputs for the fuzz targets, made from the data of the other tests: without them no input gets past the
first bytes of a binary format."""
import json
import pathlib
import struct

TESTS = pathlib.Path(__file__).resolve().parent.parent

CONFIG = """\
server: {host: 127.0.0.1, port: 9000, threads: 2, max_body: 1MiB, drain_delay: 250ms, unknown_fields: warn}
log: {level: warn, format: json}
memory: {host: 50%}
compute: {threads: 3, kernels: scalar}
defaults: &d {max_model_len: 4096, max_num_seqs: 8}
models:
  - name: a/b
    aliases: [default, other]
    source: builtin:xgen-demo
    kv_cache: 2GiB
    kv_cache_dtype: f16
    prefix_caching: false
    engine: native
    device: auto
"""

HTTP = [
    "GET / HTTP/1.1\r\nHost: t\r\n\r\n",
    "GET http://host:1/a?b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "POST /a%2Fb?q=1 HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    'POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5;x="y"\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-B: t\r\n\r\n',
]


def http_cases():
    """The requests of tests/cases/http that are one text or one JSON value."""
    for file in sorted((TESTS / "cases/http").glob("*.json")):
        for case in json.loads(file.read_text()):
            if "repeat" not in case["request"]:
                yield case["request"]


def http_request():
    """The first two bytes say where the rest is cut: see http_request_fuzz.cpp."""
    yield from (b"\0\x28" + text.encode() for text in HTTP)
    yield from (b"\0\x28" + request["raw"].encode() for request in http_cases() if "raw" in request)


def http_response():
    """The first byte may be an h, for the answer to HEAD: see http_response_fuzz.cpp."""
    yield from (text.encode() for text in (
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\n\r\nto the end",
        "hHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        'HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n5;x="y"\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-B: t\r\n\r\nmore'))


def openai_stream():
    def chunk(choices, **more):
        return "data: " + json.dumps({"choices": choices, **more}) + "\n\n"
    chat = {"role": "assistant", "content": "\u00e9", "reasoning_content": "Hm",
            "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}
    logprobs = {"content": [{"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -2}]}]}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    yield (": hello\n\n" + chunk([{"index": 0, "delta": chat, "logprobs": logprobs, "finish_reason": None}]) +
           chunk([{"index": 1, "delta": {}, "finish_reason": "stop", "stop_reason": 7}]) +
           chunk([{"index": 0, "delta": {}, "finish_reason": "length", "matched_stop": "x"}]) +
           chunk([], usage=usage) + "data:[DONE]\r\n\r\n").encode()
    completion = {"tokens": ["a", "bytes:\\xe2\\x80"], "token_logprobs": [None, -1.5], "top_logprobs": [None, {"a": -1}]}
    yield chunk([{"index": 0, "text": "a", "logprobs": completion}]).encode() + b"event: x\ndata: 1\ndata: 2\n\n"
    yield b'data: {"error": {"message": "the secret", "type": "BadRequestError", "code": 400}}\n\n'
    yield b'data: {"object": "error", "message": "m", "param": "n", "code": "rate_limit_exceeded"}\n\n'


def json_request():
    """The first byte chooses the endpoint: see json_request_fuzz.cpp."""
    endpoints = {"/v1/completions": b"0", "/v1/chat/completions": b"1", "/tokenize": b"2", "/detokenize": b"3"}
    for request in http_cases():
        endpoint = endpoints.get(request.get("path"))
        body = json.dumps(request["json"]) if "json" in request else request.get("body")
        if endpoint and body:
            yield endpoint + body.encode()


def sources():
    yield from (b"org/repo@refs/pr/1/sub/a.gguf", b"org/repo@feature%2Fx", b"bucket/models/a b/x-00001-of-00002.gguf", b"hf://org/repo")
    yield (b'<?xml version="1.0"?><ListBucketResult xmlns="x"><IsTruncated>true</IsTruncated><NextContinuationToken>1+/=</NextContinuationToken>'
           b"<Contents><Key>a &amp;&#252;&#x1F600;/b</Key><ETag>&quot;900150983cd24fb0d6963f7d28e17f72&quot;</ETag><Size>3</Size></Contents>"
           b"</ListBucketResult>")


def jinja():
    for case in json.loads((TESTS / "golden/chat_templates/language.json").read_text())["cases"]:
        yield case["template"].encode()


def safetensors():
    header = {"__metadata__": {"format": "pt"},
              "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
              "b": {"dtype": "BF16", "shape": [2], "data_offsets": [24, 28]},
              "c": {"dtype": "F16", "shape": [0, 1], "data_offsets": [28, 28]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text + bytes(range(28))


def gguf_string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(value):
    """Type number and bytes (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""
    match value:
        case bool():
            return 7, struct.pack("<?", value)
        case int():
            return 4, struct.pack("<I", value)
        case float():
            return 6, struct.pack("<f", value)
        case str():
            return 8, gguf_string(value)
    items = [gguf_value(item) for item in value]
    return 9, struct.pack("<IQ", items[0][0], len(items)) + b"".join(data for _, data in items)


def gguf_file(metadata, tensors=()):
    """Tensors: (name, shape with the fastest dimension first, type number, bytes)."""
    out = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        number, data = gguf_value(value)
        out += gguf_string(key) + struct.pack("<I", number) + data
    blob = b""
    for name, shape, number, data in tensors:
        out += gguf_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, len(blob))
        blob += data + bytes(-len(data) % 32)
    return out + bytes(-len(out) % 32) + blob


def gguf():
    yield gguf_file({"general.architecture": "llama", "general.alignment": 32, "llama.block_count": 1, "x.f": 0.5,
                     "x.flags": [True, False], "x.nested": [[1, 2], [3]]},
                    [("token_embd.weight", (2, 3), 0, bytes(24)), ("blk.0.attn_q.weight", (32, 2), 8, bytes(68)),
                     ("output_norm.weight", (4,), 1, bytes(8))])
    letters = list("abdelnorsw")
    ggml = "tokenizer.ggml."
    spaced = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581"] + letters + ["\u2581ab"]
    spm = {ggml + "model": "llama", ggml + "tokens": spaced, ggml + "scores": [float(-i) for i in range(len(spaced))],
           ggml + "token_type": [2, 3, 3] + [6] * 256 + [1] * (len(spaced) - 259), ggml + "bos_token_id": 1,
           ggml + "eos_token_id": 2, ggml + "unknown_token_id": 0, ggml + "add_bos_token": True,
           ggml + "add_space_prefix": True, "tokenizer.chat_template": "{{ messages }}"}
    yield gguf_file(spm)
    yield gguf_file({**spm, ggml + "model": "t5"})
    bpe = letters + ["\u0120", "ab", "\u0120ab", "<|end|>"]
    yield gguf_file({ggml + "model": "gpt2", ggml + "pre": "llama-bpe", ggml + "tokens": bpe,
                     ggml + "token_type": [1] * (len(bpe) - 1) + [3], ggml + "merges": ["a b", "\u0120 ab"],
                     ggml + "eos_token_id": len(bpe) - 1})
    yield gguf_file({ggml + "model": "bert", ggml + "tokens": ["[UNK]", "[CLS]", "[SEP]", "\u2581hello", "\u2581w", "r", ","],
                     ggml + "unknown_token_id": 0, ggml + "cls_token_id": 1, ggml + "seperator_token_id": 2})


def golden_tokenizers(ending):
    return (file.read_bytes() for file in sorted((TESTS / "golden/tokenizers").glob("*." + ending)))


SEEDS = {
    "config": lambda: [CONFIG.encode()],
    "gguf": gguf,
    "http_request": http_request,
    "http_response": http_response,
    "import": lambda: [path.read_bytes() for path in sorted((TESTS / "cases/import").glob("*/input.*"))],
    "jinja": jinja,
    "sources": sources,
    "json_request": json_request,
    "openai_stream": openai_stream,
    "safetensors": safetensors,
    "tokenizer_json": lambda: golden_tokenizers("tokenizer.json"),
    "tokenizer_model": lambda: golden_tokenizers("tokenizer.model"),
}


def write_seeds(target, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(SEEDS[target]()):
        (folder / f"seed-{index}").write_bytes(data)
