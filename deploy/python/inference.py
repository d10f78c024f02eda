"""`inference.ModelService` for code that imports it: the same call, answered by xgen-model over HTTP. Needs httpx."""
import json
import pathlib
import re

import httpx


class ModelServiceError(Exception):
    """What the service answered instead: `status` of HTTP, and OpenAI's error object as `error`."""

    def __init__(self, status, error):
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
        self._client = httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=httpx.Timeout(timeout, connect=5.0))

    async def generate_async(self, request):
        """`request`: the fields of OpenAI's chat completions (with `messages`) or completions (with `prompt`), as a dict
        or a pydantic model. Gives the answer as a dict; with `stream: true` an async iterator of its chunks."""
        body = request.model_dump(exclude_none=True) if hasattr(request, "model_dump") else dict(request)
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        answer = await self._client.send(self._client.build_request("POST", path, json=body), stream=True)
        if answer.is_success and body.get("stream"):
            return self._chunks(answer)
        text = (await answer.aread()).decode()
        if answer.is_success:
            return json.loads(text)
        try:
            error = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):  # of a proxy in between
            error = {"message": text}
        raise ModelServiceError(answer.status_code, error)

    async def _chunks(self, answer):
        try:
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        raise ModelServiceError(answer.status_code, chunk["error"])
                    yield chunk
        finally:  # who stops listening ends the request
            await answer.aclose()

    async def aclose(self):
        await self._client.aclose()
