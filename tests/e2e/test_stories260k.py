"""A real model with a known greedy continuation, through the whole program."""
import concurrent.futures
import subprocess

import pytest

from process import BUILD, SHARED, Process

DATA = SHARED / "data/stories260K"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if not DATA.exists():
        pytest.skip("needs ../shared/data/stories260K")
    folder = tmp_path_factory.mktemp("model") / "stories260K"
    subprocess.run([BUILD / "tests/convert_stories260k", DATA, folder], check=True)
    with Process(folder) as process:
        yield process


@pytest.fixture(scope="module")
def golden():
    ids = [int(word) for word in (DATA / "golden_ids.txt").read_text().replace(",", " ").replace("[", " ").replace("]", " ").split()]
    return ids, (DATA / "golden_greedy.txt").read_text()


def request(golden):
    ids, _ = golden
    # golden_ids.txt begins with BOS, which an empty prompt becomes.
    return {"model": "stories260K", "prompt": [ids[0]], "temperature": 0, "max_tokens": len(ids) - 1, "ignore_eos": True}


def whole(server, body):
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def streamed(server, body):
    return "".join(event["choices"][0]["text"] for event in server.stream("/v1/completions", body) if event["choices"])


def test_greedy_text_alone(server, golden):
    assert whole(server, request(golden)).strip() == golden[1].strip()


def test_greedy_text_streamed(server, golden):
    assert streamed(server, request(golden)).strip() == golden[1].strip()


def test_greedy_text_beside_fifteen_others(server, golden):
    others = [{"model": "stories260K", "prompt": text, "temperature": 1.0, "seed": i, "max_tokens": 20 + 17 * i, "ignore_eos": True}
              for i, text in enumerate(["Once upon a time", "Lily and Tom", "The dog", "One day, a big", "In the park"] * 3)]
    with concurrent.futures.ThreadPoolExecutor(17) as pool:
        noise = [pool.submit(whole, server, body) for body in others]
        a = pool.submit(whole, server, request(golden))
        b = pool.submit(streamed, server, request(golden))
        assert a.result().strip() == golden[1].strip()
        assert b.result().strip() == golden[1].strip()
        together = [each.result() for each in noise]
    # And the others are what they are when they run alone: seeds count, neighbours do not.
    assert together == [whole(server, body) for body in others]
