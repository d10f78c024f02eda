"""`xgen-model chat`: through pipes, and in a terminal."""
import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import time

import stub
from process import PATIENCE, PROGRAM, Process, free_port

ENV = dict(os.environ, OPENAI_API_KEY="")


def chat(url, text, *args, code=0, env=None):
    """What it wrote to stdout and stderr after being given this on stdin."""
    result = subprocess.run([PROGRAM, "chat", url, *args], input=text if isinstance(text, bytes) else text.encode(), capture_output=True,
                            timeout=60 * PATIENCE, env=dict(ENV, **(env or {})))
    assert result.returncode == code, result
    return result.stdout.decode(), result.stderr.decode()


def echo(_stub, body, _number):
    """Says how many messages came, and the last of them."""
    yield f"{len(body['messages'])}: "
    yield body["messages"][-1]["content"]


def test_answers_go_to_stdout_and_the_rest_does_not():
    with stub.serving(echo) as server:
        out, err = chat(server.url, "first\n\nsecond\n//third\n")
        assert out == "1: first\n3: second\n5: /third\n"
        assert len(re.findall(r"^\[.* to the first token, 2 tokens, .* tokens/s\]$", err, re.M)) == 3
        assert server.streams[1]["messages"] == [{"role": "user", "content": "first"}, {"role": "assistant", "content": "1: first"},
                                                 {"role": "user", "content": "second"}]


def test_commands(tmp_path):
    file = tmp_path / "talk.json"
    with stub.serving(echo) as server:
        out, err = chat(server.url, f"/help\na\n/clear\n/system new\n/system\nb\n/save {file}\n/save {file}\n/save\n/nonsense\n/quit\nc\n", "--system", "old",
                        "--extra", '{"temperature": 0}', code=1)
        assert out == "2: a\n2: b\n"
        assert [body["messages"][0]["content"] for body in server.streams] == ["old", "new"]
        assert server.streams[0]["temperature"] == 0
    assert "/clear" in err and "new\n" in err
    assert f"/save {file}: File exists" in err and "/save needs the name" in err and "no command /nonsense" in err
    assert json.loads(file.read_text()) == {"model": "stub", "messages": [
        {"role": "system", "content": "new"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "2: b"}]}
    assert file.stat().st_mode & 0o777 == 0o600


def test_messages_of_several_lines_and_of_any_bytes():
    with stub.serving(echo) as server:
        out, _ = chat(server.url, b'"""\none\n\n/two\n"""\ngr\xc3\xbc\xc3\x9f \xff\xea\xb0\x80\nwithout an end')
        assert out == "1: one\n\n/two\n3: grüß \ufffd가\n5: without an end\n"
        _, err = chat(server.url, '"""\nopen', code=1)
        assert 'there is no second """' in err


def test_what_fails_is_said_and_the_question_may_be_asked_again():
    def answer(_stub, body, number):
        if number == 0:
            return 500, {"error": {"message": "out of paper"}}
        if number == 1:
            return cut()
        return echo(None, body, number)

    def cut():
        yield "half"
        raise stub.Cut

    with stub.serving(answer) as server:
        out, err = chat(server.url, "a\nb\nc\n", code=1)
    assert "xgen-model: the server answered 500: out of paper" in err and "the answer broke off: " in err
    assert out == "half\n3: c\n", "what was half said is kept, what was not answered is not"


def test_a_stdout_that_fails_ends_it():
    with stub.serving(echo) as server:
        with open("/dev/full", "w") as full:
            done = subprocess.run([PROGRAM, "chat", server.url], input=b"a\nb\nc\n", stdout=full, stderr=subprocess.PIPE, env=ENV,
                                  timeout=60 * PATIENCE)
        assert done.returncode == 1 and done.stderr.count(b"stdout cannot be written") == 1
        assert len(server.streams) == 1, "nothing more is asked that nobody sees"
        ours, theirs = os.pipe()
        os.close(ours)
        done = subprocess.run([PROGRAM, "chat", server.url], input=b"a\nb\nc\n", stdout=theirs, stderr=subprocess.PIPE, env=ENV,
                              timeout=60 * PATIENCE)
        os.close(theirs)
        assert done.returncode == 1 and len(server.streams) == 2


def test_ctrl_c_ends_what_reads_a_file():
    def slow(_stub, _body, _number):
        for _ in range(2000):
            yield "more "
            time.sleep(0.02)

    with stub.serving(slow) as server:
        child = subprocess.Popen([PROGRAM, "chat", server.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV)
        child.stdin.write(b"a\nb\nc\n")
        child.stdin.close()
        assert child.stdout.read(5) == b"more "
        child.send_signal(signal.SIGINT)
        assert child.wait(20 * PATIENCE) == 130
        assert len(server.streams) == 1
        child.stdout.close()
        child.stderr.close()


def test_ctrl_c_ends_it_while_the_server_is_silent():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20 * PATIENCE)
        child = subprocess.Popen([PROGRAM, "chat", f"127.0.0.1:{silent.getsockname()[1]}"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE, env=ENV)
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)
            child.send_signal(signal.SIGINT)
            assert child.wait(20 * PATIENCE) == 130
        assert child.stderr.read() == b""
        child.stderr.close()


def test_no_server_no_key_no_choice(tmp_path):
    _, err = chat(f"127.0.0.1:{free_port()}", "a\n", code=1)
    assert "cannot connect: Connection refused" in err
    with stub.serving(echo, models=("one", "two")) as server:
        _, err = chat(server.url, "a\n", code=1)
        assert "choose one with --model: one, two" in err
        assert chat(server.url, "a\n", "--model", "two")[0] == "1: a\n"
        (tmp_path / "key").write_text("secret\n")
        chat(server.url, "a\n", "--model", "two", "--api-key-file", str(tmp_path / "key"))
        assert server.keys[-1] == "Bearer secret"
    for args, want in ((["ftp://x"], "http"), (["h", "--extra", "1"], "--extra: expected"), (["h", "--timeout", "0"], "--timeout: expected")):
        _, err = chat(args[0], "", *args[1:], code=2)
        assert want in err


class Terminal:
    """The program in a terminal of its own."""

    def __init__(self, *args):
        self.ours, theirs = pty.openpty()
        self.child = subprocess.Popen([PROGRAM, "chat", *args], stdin=theirs, stdout=theirs, stderr=theirs, env=ENV, start_new_session=True,
                                      preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0))
        os.close(theirs)
        self.seen = ""

    def type(self, text):
        os.write(self.ours, text.encode())

    def expect(self, pattern):
        """Reads on until it has been shown; what came before goes."""
        end = time.monotonic() + 20 * PATIENCE
        while not (found := re.search(pattern, self.seen, re.S)):
            assert time.monotonic() < end, self.seen
            try:
                self.seen += os.read(self.ours, 65536).decode()
            except OSError:
                raise AssertionError(self.seen) from None
        shown, self.seen = self.seen[:found.end()], self.seen[found.end():]
        return shown

    def end(self):
        with contextlib.suppress(OSError):
            while os.read(self.ours, 65536):
                pass
        os.close(self.ours)
        return self.child.wait(20 * PATIENCE)


def test_in_a_terminal_ctrl_c_stops_an_answer_and_a_second_one_at_the_prompt_leaves():
    def answer(_stub, body, number):
        if number == 0:
            yield "slow\x1b[31m"
            for _ in range(2000):
                time.sleep(0.02)
                yield " more"
        yield from echo(None, body, number)

    with stub.serving(answer) as server:
        terminal = Terminal(server.url)
        terminal.expect("stub at http.*/help tells more.*>>> ")
        terminal.type("go\n")
        shown = terminal.expect(r"slow\[31m more more")
        assert "\x1b[31m" not in shown, "a model does not colour the terminal"
        terminal.type("\x03")
        terminal.expect(r"stopped\].*>>> ")
        terminal.type("typed \x03")
        terminal.expect("once more to leave.*>>> ")
        terminal.type("and then\n")
        terminal.expect(r"3: and then\r\n.*to the first token.*>>> ")
        terminal.type("\x03")
        terminal.expect("once more to leave.*>>> ")
        terminal.type("\x03")
        assert terminal.end() == 0
        assert server.streams[1]["messages"][1]["content"].startswith("slow\x1b[31m more"), "what was said stays said"


def test_ctrl_d_leaves():
    with stub.serving(echo) as server:
        terminal = Terminal(server.url)
        terminal.expect(">>> ")
        terminal.type("\x04")
        assert terminal.end() == 0


def test_the_demo_model_answers():
    with Process() as server:
        out, err = chat(server.url, "How do I add a model?\n")
        assert "models.yaml" in out and "to the first token" in err
