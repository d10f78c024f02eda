"""`inference.ModelService` for code that imports it: the same call, answered by xgen-model over HTTP. Needs httpx."""
import json
import pathlib
import re

import httpx


class ModelServiceError(Exception):
    """What the service answered instead: `status` of HTTP, and OpenAI's error object as `error`."""

    def __init__(self, status, error):
        if not isinstance(error, dict):
            error = {"message": str(error)}
        super().__init__(error.get("message", f"status {status}"))
        self.status, self.error = status, error


class ModelService:
    """`config` is the callers' config.yml, which holds `model_service_url`; `url` can be given instead."""

    def __init__(self, config="config.yml", *, url=None, api_key=None, timeout=600.0):
        if url is None:
            found = re.search(r"^\s*model_service_url\s*:\s*[\"']?([^\"'\s#]+)", pathlib.Path(config).read_text(), re.MULTILINE)
            if found is None:
                raise ValueError(f"{config}: model_service_url is missing")
            url = found[1]
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # Without httpx's limit of 100: how many requests are served at once is the service's to say.
        self._client = httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=httpx.Timeout(timeout, connect=5.0),
                                         limits=httpx.Limits(max_connections=None))

    async def generate_async(self, request):
        """`request`: the fields of OpenAI's chat completions (with `messages`) or completions (with `prompt`), as a dict
        or a pydantic model. Gives the answer as a dict; with `stream: true` an async iterator of its chunks."""
        body = request.model_dump(exclude_none=True) if hasattr(request, "model_dump") else dict(request)
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        answer = await self._client.send(self._client.build_request("POST", path, json=body), stream=True)
        if answer.is_success and body.get("stream"):
            return _Chunks(answer)
        text = (await answer.aread()).decode()
        if answer.is_success:
            return json.loads(text)
        try:
            error = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):  # of a proxy in between
            error = {"message": text}
        raise ModelServiceError(answer.status_code, error)

    async def aclose(self):
        await self._client.aclose()


class _Chunks:
    """The chunks of a streamed answer. aclose() ends the request, also where nothing has been read: a generator that has
    not begun would not."""

    def __init__(self, answer):
        self._answer, self._chunks = answer, self._read()

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await self._chunks.__anext__()

    async def aclose(self):
        await self._chunks.aclose()
        await self._answer.aclose()

    async def _read(self):
        try:
            rest = b""
            async for piece in self._answer.aiter_bytes():
                # Not aiter_lines(): U+2028 and the like, which may stand in a text, end lines for it.
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if line == b"data: [DONE]":
                        return
                    if line.startswith(b"data: "):
                        chunk = json.loads(line[6:])
                        if "error" in chunk:
                            raise ModelServiceError(self._answer.status_code, chunk["error"])
                        yield chunk
            raise ModelServiceError(self._answer.status_code, {"message": "the answer ended before it was complete"})
        finally:  # who stops listening ends the request
            await self._answer.aclose()
