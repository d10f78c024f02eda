"""A text-generation-inference on this machine: what it is asked decides what it answers, fault by fault."""
import http.server
import json
import threading
import time

INFO = {"model_id": "org/m", "max_concurrent_requests": 128, "max_best_of": 2, "max_stop_sequences": 4, "max_input_tokens": 1000,
        "max_total_tokens": 2048, "validation_workers": 2, "max_client_batch_size": 4, "router": "text-generation-router", "version": "3.3.6"}
STATUS = {"validation": 422, "generation": 424, "overloaded": 429, "incomplete_generation": 500}
WORDS = {"validation": "Input validation error: `inputs` is odd", "generation": "Request failed during generation: CUDA error",
         "overloaded": "Model is overloaded", "incomplete_generation": "Incomplete generation"}


def fault(kind):
    return {"error": WORDS[kind], "error_type": kind}


class Handler(http.server.BaseHTTPRequestHandler):
    """`say A B` answers these words, a token each; `refuse KIND` with that fault and its status; `fail KIND` with the
    fault inside a stream, after one token; `break` ends the connection in the middle; `call` calls the first tool."""
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body, status=200):
        self.server.owner.replies.append((self.path, status, body))
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.reply(INFO if self.path == "/info" else None)

    def do_POST(self):
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner.requests.append((self.path, body))
        prompt = body["inputs"] if "inputs" in body else self.text_of(body["messages"][-1])
        if self.path in ("/tokenize", "/chat_tokenize"):
            tokens = [{"id": i, "text": c, "start": i, "stop": i + 1} for i, c in enumerate(prompt)]
            return self.reply(tokens if self.path == "/tokenize" else {"tokenize_response": tokens, "templated_text": prompt})
        verb, *words = prompt.split(" ")
        if verb == "refuse":
            return self.reply(fault(words[0]), STATUS[words[0]])
        self.begin()
        try:
            chat = self.path == "/v1/chat/completions"
            if verb == "call":
                self.call(body["tools"][0]["function"]["name"], len(prompt))
            elif verb in ("fail", "break"):
                self.tokens(chat, ["tok", None], len(prompt))
                if verb == "fail":
                    # Of the errors in a chat's stream TGI's document says nothing.
                    self.event({"error": {"message": WORDS[words[0]], "http_status_code": 422}} if chat else fault(words[0]), not chat)
            else:
                self.tokens(chat, [word if i == 0 else " " + word for i, word in enumerate(words)], len(prompt))
            if chat and verb != "break":
                self.send(b"data:" + owner.blank + b"[DONE]\n\n")
            if verb != "break":
                self.end()
        except (BrokenPipeError, ConnectionResetError):
            owner.left += 1
        self.close_connection = True

    def text_of(self, message):
        content = message["content"]
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)

    # --- Streams.

    def begin(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header(*(("Connection", "close") if self.server.owner.ends == "connection" else ("Transfer-Encoding", "chunked")))
        self.end_headers()

    def send(self, data):
        chunked = self.server.owner.ends == "chunks"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
        time.sleep(self.server.owner.step)

    def end(self):
        if self.server.owner.ends == "chunks":
            self.wfile.write(b"0\r\n\r\n")

    def event(self, body, described=True):
        if described:
            self.server.owner.replies.append((self.path, 200, body))
        self.send(b"data:" + self.server.owner.blank + json.dumps(body).encode() + b"\n\n")

    def tokens(self, chat, texts, prompt_tokens):
        """The last text is that of the end; None: it does not come."""
        for index, text in enumerate(texts):
            if text is None:
                return
            last = index + 1 == len(texts)
            if chat:
                self.chunk({"role": "assistant", "content": text}, "stop" if last else None)
            else:
                token = {"id": index, "text": text, "logprob": -0.5, "special": False}
                details = {"finish_reason": "eos_token", "generated_tokens": len(texts), "seed": 1, "input_length": prompt_tokens}
                self.event({"index": index + 1, "token": token, "top_tokens": [token],
                            "generated_text": "".join(texts) if last else None, "details": details if last else None})
        if chat:
            self.usage(prompt_tokens, len(texts))

    def call(self, name, prompt_tokens):
        for part in ({"name": name, "arguments": "{"}, {"name": None, "arguments": " \"n\": 1}"}):
            self.chunk({"role": "assistant", "tool_calls": [{"index": 0, "id": "0", "type": "function", "function": part}]}, None)
        self.usage(prompt_tokens, 9)

    def chunk(self, delta, finish):
        logprobs = {"content": [{"token": "t", "logprob": -0.5, "top_logprobs": [{"token": "t", "logprob": -0.5}]}]}
        choice = {"index": 0, "delta": delta, "logprobs": logprobs if "content" in delta else None, "finish_reason": finish}
        self.event({"object": "chat.completion.chunk", "id": "", "created": 1, "model": "org/m", "system_fingerprint": "3.3.6-native",
                    "choices": [choice], "usage": None})

    def usage(self, prompt, completion):
        self.event({"object": "chat.completion.chunk", "id": "", "created": 1, "model": "org/m", "system_fingerprint": "3.3.6-native",
                    "choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}})


class Tgi:
    """`ends`: what ends a stream: "chunks", or the "connection". `blank`: after "data:". `step`: seconds between events."""

    def __init__(self, ends="chunks", blank=b"", step=0):
        self.ends, self.blank, self.step = ends, blank, step
        self.requests = []  # (path, body)
        self.replies = []   # (path, status, body), of streams each event that TGI's document describes
        self.left = 0       # streams whose client did not wait for their end
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.owner = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
