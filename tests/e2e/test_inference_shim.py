"""deploy/python/inference.py, as callers use it, against the program."""
import asyncio
import contextlib
import json
import sys

import pytest

from process import PATIENCE, ROOT, Process
from test_remote import eventually, metric

sys.path.insert(0, str(ROOT / "deploy/python"))
from inference import ModelService, ModelServiceError  # noqa: E402

CHAT = {"model": "xgen-demo", "messages": [{"role": "user", "content": "How do I add a model?"}], "temperature": 0}


@pytest.fixture(scope="module")
def process():
    with Process() as one:
        yield one


@pytest.fixture
def call(process, tmp_path):
    """call(use): use(service), a coroutine, on a service that was found by a config.yml."""
    (tmp_path / "config.yml").write_text(f'app: {{name: x}}\n# model_service_url: http://nowhere\nmodel_service_url: "{process.url}"  # ours\n')

    def run(use):
        async def main():
            service = ModelService(tmp_path / "config.yml")
            async with contextlib.aclosing(service):
                return await use(service)
        return asyncio.run(main())
    return run


def test_whole_and_streamed_answers(call):
    async def use(service):
        whole = await service.generate_async(CHAT)
        chunks = [chunk async for chunk in await service.generate_async({**CHAT, "stream": True})]
        return whole, chunks

    whole, chunks = call(use)
    said = whole["choices"][0]["message"]["content"]
    assert "models.yaml" in said and whole["usage"]["completion_tokens"] > 0
    assert len(chunks) > 3
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == said


def test_prompts_and_models_of_pydantic(call):
    class Request:
        def model_dump(self, exclude_none):
            assert exclude_none
            return {"model": "xgen-demo", "prompt": "How do", "max_tokens": 4, "temperature": 0}

    assert call(lambda service: service.generate_async(Request()))["usage"]["completion_tokens"] == 4


def test_several_at_once(call):
    async def use(service):
        return await asyncio.gather(*(service.generate_async(CHAT) for _ in range(8)))

    assert len({answer["choices"][0]["message"]["content"] for answer in call(use)}) == 1


def test_errors(call, tmp_path):
    async def use(service):
        for body in ({**CHAT, "model": "none"}, {**CHAT, "model": "none", "stream": True}):
            with pytest.raises(ModelServiceError) as caught:
                await service.generate_async(body)
            assert caught.value.status == 404 and "none" in str(caught.value)

    call(use)
    (tmp_path / "config.yml").write_text("other: 1\n")
    with pytest.raises(ValueError, match="model_service_url is missing"):
        ModelService(tmp_path / "config.yml")


@contextlib.asynccontextmanager
async def answering(status, *events):
    """A ModelService whose server answers each request with these bytes, and ends the stream."""
    async def serve(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            writer.write(b"HTTP/1.1 %d X\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" % status)
            for event in events:
                writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                await writer.drain()
            writer.write(b"0\r\n\r\n")

    async def end_quietly(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, OSError), contextlib.closing(writer):
            await serve(reader, writer)

    server = await asyncio.start_server(end_quietly, "127.0.0.1", 0)
    async with server, contextlib.aclosing(ModelService(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")) as service:
        yield service


def chunks_of(status, *events):
    async def use():
        async with answering(status, *events) as service:
            return [chunk async for chunk in await service.generate_async({**CHAT, "stream": True})]
    return asyncio.run(use())


def test_texts_with_line_separators_of_unicode():
    text = "a\u2028b\u2029c\u0085d\x0be\x0cf"
    event = b'data: ' + json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n\ndata: [DONE]\n\n"
    assert chunks_of(200, event) == [{"text": text}]
    assert chunks_of(200, *(event[i:i + 1] for i in range(len(event)))) == [{"text": text}], "whatever the pieces are"


def test_streams_that_are_not_whole_and_errors_of_every_form():
    for event, said in ((b'data: {"a": 1}\n\n', "ended before it was complete"), (b"", "ended before it was complete"),
                        (b'data: {"error": "out of paper"}\n\n', "out of paper"), (b'data: {"error": {"message": "no ink"}}\n\n', "no ink")):
        with pytest.raises(ModelServiceError, match=said):
            chunks_of(200, *[event] if event else [])
    with pytest.raises(ModelServiceError, match="too long") as caught:
        chunks_of(422, b'{"error": "too long"}')
    assert caught.value.status == 422 and caught.value.error == {"message": "too long"}


def test_more_than_a_hundred_at_once():
    async def use():
        came, all_here = 0, asyncio.Event()

        async def serve(reader, writer):
            nonlocal came
            await reader.readuntil(b"}")
            came += 1
            if came == 150:
                all_here.set()
            await all_here.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=256)
        async with server, contextlib.aclosing(ModelService(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=20.0 * PATIENCE)) as service:
            return await asyncio.gather(*(service.generate_async(CHAT) for _ in range(150)))

    assert asyncio.run(use()) == [{}] * 150


def test_who_stops_before_the_first_chunk_ends_the_request(call, process):
    async def use(service):
        stream = await service.generate_async({**CHAT, "stream": True, "max_tokens": 500, "ignore_eos": True})
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        eventually(lambda: metric(process.url, "vllm:num_requests_running", "xgen-demo") == 0)

    before = metric(process.url, "vllm:generation_tokens_total", "xgen-demo")
    call(use)
    assert metric(process.url, "vllm:generation_tokens_total", "xgen-demo") - before < 500


def test_who_stops_listening_ends_the_request(call, process):
    async def use(service):
        stream = await service.generate_async({**CHAT, "stream": True, "max_tokens": 500, "ignore_eos": True})
        async with contextlib.aclosing(stream):
            async for _ in stream:
                break

    before = metric(process.url, "vllm:generation_tokens_total", "xgen-demo")
    call(use)
    eventually(lambda: metric(process.url, "vllm:num_requests_running", "xgen-demo") == 0)
    assert metric(process.url, "vllm:generation_tokens_total", "xgen-demo") - before < 500
