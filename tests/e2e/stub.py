"""An OpenAI server for tests that streams what a function says, when it says so, and notes what came."""
import contextlib
import http.server
import json
import socket
import threading
import time


class Cut(Exception):
    """Ends the connection where it stands."""


class Stub:
    """`answer(stub, body, number)` yields the texts of an answer, or raises Cut, or returns (status, body) at once where
    it is no generator. `usage`: whether the server counts tokens."""

    def __init__(self, answer, usage=True, models=("stub",), max_len=None):
        self.answer, self.usage, self.models, self.max_len = answer, usage, models, max_len
        self.bodies, self.keys, self.times = [], [], []
        self.lock = threading.Lock()

    @property
    def streams(self):
        """The bodies of requests that asked for a stream."""
        return [body for body in self.bodies if body.get("stream")]

    def text(self, text, chat):
        delta = {"index": 0, "delta": {"content": text}} if chat else {"index": 0, "text": text}
        return {"object": "chat.completion.chunk", "choices": [dict(delta, finish_reason=None)]}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        stub = self.server.stub
        stub.keys.append(self.headers.get("Authorization"))
        extra = {"max_model_len": stub.max_len} if stub.max_len else {}
        self.reply(200, {"object": "list", "data": [{"id": name, **extra} for name in stub.models]})

    def do_POST(self):
        stub, came = self.server.stub, time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.path.endswith("/chat/completions")
        with stub.lock:
            number = len(stub.streams)
            stub.bodies.append(body)
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": 1}
        if not body.get("stream"):
            self.reply(200, {"choices": [], **({"usage": usage} if stub.usage else {})})
            return
        pieces = stub.answer(stub, body, number)
        if isinstance(pieces, tuple):
            self.reply(*pieces)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = []
        try:
            for text in pieces:
                # Before it is sent: the client must not have it sooner.
                sent.append(time.monotonic())
                self.event(json.dumps(stub.text(text, chat)))
            if stub.usage and body.get("stream_options", {}).get("include_usage"):
                self.event(json.dumps({"choices": [], "usage": dict(usage, completion_tokens=len(sent))}))
            self.event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")
        except (Cut, OSError):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        with stub.lock:
            stub.times.append((came, sent, prompt))

    def event(self, data):
        data = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        pass


@contextlib.contextmanager
def serving(answer, **kwargs):
    """A Stub, with its `url`."""
    stub = Stub(answer, **kwargs)
    server = Server(("127.0.0.1", 0), Handler)
    server.stub = stub
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def words(*texts, first=0.0, gap=0.0):
    """An answer of these texts, with its times."""
    def answer(_stub, _body, _number):
        for i, text in enumerate(texts):
            time.sleep(gap if i else first)
            yield text
    return answer
