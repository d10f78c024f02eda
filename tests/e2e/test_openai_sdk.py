"""The official OpenAI SDK against a server. What holds for every model runs against each server; what needs to know the
model's words runs against the scripted one."""
import concurrent.futures
import time

import httpx
import openai
import pytest


@pytest.fixture(scope="module")
def client(server):
    with server.client() as one:
        yield one


def chat(text):
    return [{"role": "user", "content": text}]


# ---- every server ----

def test_models(server, client):
    models = client.models.list().data
    assert server.model in [model.id for model in models]
    one = client.models.retrieve(server.model)
    assert one.id == server.model and one.object == "model" and one.created > 0


def test_chat(server, client):
    answer = client.chat.completions.create(model=server.model, messages=chat("Hello"), max_completion_tokens=8, temperature=0)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.model == server.model and answer.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 8
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= 0


def test_chat_stream_says_the_same(server, client):
    body = dict(model=server.model, messages=chat("Hello"), max_tokens=12, temperature=0)
    whole = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [whole.choices[0].finish_reason]
    assert len({c.id for c in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])


def test_completion_stream_says_the_same(server, client):
    body = dict(model=server.model, prompt="Once upon a time", max_tokens=12, temperature=0)
    whole = client.completions.create(**body)
    chunks = list(client.completions.create(**body, stream=True))
    assert whole.object == "text_completion" and whole.id.startswith("cmpl-")
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_max_tokens(server, client):
    answer = client.completions.create(model=server.model, prompt="Once", max_tokens=3, temperature=0, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 3 and answer.choices[0].finish_reason == "length"


def test_stop(server, client):
    prompt = "say one two three four" if server.scripted else "Once upon a time"
    ask = lambda **more: client.completions.create(model=server.model, prompt=prompt, max_tokens=12, temperature=0,
                                                   extra_body={"ignore_eos": True}, **more)
    whole = ask().choices[0].text
    word = whole.split()[2]
    for stop in [word, [word, "never"]]:
        choice = ask(stop=stop).choices[0]
        assert choice.text == whole[:whole.index(word)] and choice.finish_reason == "stop"
    parts = ask(stop=word, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole[:whole.index(word)]


def test_n(server, client):
    answer = client.chat.completions.create(model=server.model, messages=chat("Hello"), n=3, max_tokens=4, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    chunks = client.chat.completions.create(model=server.model, messages=chat("Hello"), n=3, max_tokens=4, seed=1, stream=True)
    texts = {0: "", 1: "", 2: ""}
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in answer.choices}


def test_seed(server, client):
    body = dict(model=server.model, prompt="Once", max_tokens=8, temperature=1.0, seed=7)
    assert client.completions.create(**body).choices[0].text == client.completions.create(**body).choices[0].text


def test_several_prompts(server, client):
    body = dict(model=server.model, max_tokens=4, temperature=0)
    together = client.completions.create(prompt=["Once", "Hello there"], **body)
    alone = [client.completions.create(prompt=prompt, **body).choices[0].text for prompt in ("Once", "Hello there")]
    assert [choice.text for choice in together.choices] == alone
    assert [choice.index for choice in together.choices] == [0, 1]


def test_chat_logprobs(server, client):
    answer = client.chat.completions.create(model=server.model, messages=chat("Hello"), max_tokens=4, temperature=0,
                                            logprobs=True, top_logprobs=2, extra_body={"ignore_eos": True})
    content = answer.choices[0].logprobs.content
    assert len(content) == 4
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        assert token.top_logprobs[0].token == token.token  # greedy
    said = b"".join(bytes(token.bytes) for token in content).decode(errors="replace")
    assert said.startswith(answer.choices[0].message.content)


def test_completion_logprobs_with_echo(server, client):
    prompt = "Once upon"
    answer = client.completions.create(model=server.model, prompt=prompt, max_tokens=2, temperature=0, logprobs=1, echo=True,
                                       extra_body={"ignore_eos": True})
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text.startswith(prompt)
    size = len(logprobs.tokens)
    assert size == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == sorted(logprobs.text_offset)


def test_streamed_logprobs(server, client):
    body = dict(model=server.model, messages=chat("Hello"), max_tokens=4, temperature=0, logprobs=True, top_logprobs=1,
                extra_body={"ignore_eos": True})
    whole = client.chat.completions.create(**body).choices[0].logprobs.content
    streamed = []
    for chunk in client.chat.completions.create(**body, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [token.token for token in streamed] == [token.token for token in whole]
    assert [token.logprob for token in streamed] == [token.logprob for token in whole]


def test_errors_are_the_sdks_exceptions(server, client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="no-such-model", messages=chat("x"))
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as range_error:
        client.chat.completions.create(model=server.model, messages=chat("x"), temperature=-1)
    assert range_error.value.param == "temperature" and range_error.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=server.model, messages=chat("x"), tools=[{"type": "function", "function": {"name": "f"}}])
    assert refused.value.param == "tools" and refused.value.code == "unsupported_parameter"
    with pytest.raises(openai.BadRequestError) as misspelt:
        client.chat.completions.create(model=server.model, messages=chat("x"), extra_body={"temprature": 1})
    assert misspelt.value.param == "temprature"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=server.model, messages=[])
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such/model")
    # And the next request works.
    assert client.completions.create(model=server.model, prompt="x", max_tokens=1).choices


def test_request_id_comes_back(server, client):
    raw = client.completions.with_raw_response.create(model=server.model, prompt="x", max_tokens=1,
                                                      extra_headers={"x-request-id": "from-the-sdk"})
    assert raw.headers["x-request-id"] == "from-the-sdk" and raw.parse().id == "cmpl-from-the-sdk"


def test_many_at_once(server, client):
    def one(i):
        chunks = client.chat.completions.create(model=server.model, messages=chat(f"Hello {i}"), max_tokens=6, stream=True)
        return [c.choices[0].finish_reason for c in chunks][-1]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(reason in ("stop", "length") for reason in pool.map(one, range(32)))


def test_a_stream_may_be_left(server, client):
    for _ in range(5):
        stream = client.completions.create(model=server.model, prompt="Once", max_tokens=2000, stream=True,
                                           extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
    assert client.completions.create(model=server.model, prompt="x", max_tokens=1).choices


def test_tokenize_and_back(server):
    made = httpx.post(server.url + "/tokenize", json={"model": server.model, "prompt": "Hello there", "return_token_strs": True}).json()
    assert made["count"] == len(made["tokens"]) == len(made["token_strs"]) and made["max_model_len"] > 0
    back = httpx.post(server.url + "/detokenize", json={"model": server.model, "tokens": made["tokens"]}).json()
    assert "Hello there" in back["prompt"]


def test_gateway_prefix(server):
    answer = httpx.post(server.url + "/api/inference/v1/completions", json={"model": server.model, "prompt": "x", "max_tokens": 1})
    assert answer.status_code == 200 and answer.json()["choices"]


# ---- the scripted model ----

def test_scripted_words(scripted):
    with scripted.client() as client:
        answer = client.chat.completions.create(model="scripted", messages=chat('say Grüße, "안녕" \\ 😀'))
        assert answer.choices[0].message.content == 'Grüße, "안녕" \\ 😀'
        stopped = client.chat.completions.create(model="scripted", messages=chat("say one two three"), stop=["two", "x"])
        assert stopped.choices[0].message.content == "one " and stopped.choices[0].finish_reason == "stop"
        assert stopped.choices[0].stop_reason == "two"


def test_scripted_overload_is_a_rate_limit_error(scripted):
    with scripted.client() as client:
        with pytest.raises(openai.RateLimitError) as overload:
            client.completions.create(model="scripted", prompt="error 7")
        assert overload.value.response.headers["retry-after"] == "7"
        with pytest.raises(openai.InternalServerError):
            client.completions.create(model="scripted", prompt="error 10")


def test_scripted_error_inside_a_stream(scripted):
    with scripted.client() as client:
        stream = client.chat.completions.create(model="scripted", messages=chat("break"), stream=True)
        with pytest.raises(openai.APIError) as broken:
            list(stream)
        assert "in the middle" in broken.value.message


def test_scripted_client_timeout_cancels(scripted):
    with scripted.client() as client:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3).completions.create(model="scripted", prompt="hold")
        begin = time.monotonic()
        assert client.completions.create(model="scripted", prompt="say x").choices[0].text == "x"
        assert time.monotonic() - begin < 5
