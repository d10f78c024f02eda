"""deploy/python/inference.py, as callers use it, against the program."""
import asyncio
import contextlib
import sys

import pytest

from process import ROOT, Process
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
