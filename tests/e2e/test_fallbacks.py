"""Models that stand in for others, computed here and elsewhere, as real processes."""
import concurrent.futures
import shutil

import openai

from process import ROOT, Process, free_port
from test_models import demo, say
from test_remote import Scripted, chat, eventually, metric, remote, write


def test_another_engine_and_a_model_of_this_process_stand_in_for_each_other(tmp_path):
    with Scripted() as engine:
        models = [
            remote("m", f"http://127.0.0.1:{free_port()}", fallbacks=["dead", "demo"]),
            remote("dead", f"http://127.0.0.1:{free_port()}"),
            # One request runs and one waits: a third is one too many.
            demo("demo", max_num_seqs=1, max_waiting=1, fallbacks=["elsewhere"]),
            remote("elsewhere", engine.url, model="scripted"),
        ]
        with Process("--config", write(tmp_path, models)) as front, \
                openai.OpenAI(base_url=front.url + "/v1", api_key="none", max_retries=0) as client:
            ask = dict(messages=[{"role": "user", "content": "How do I add a model?"}], temperature=0)
            here = client.chat.completions.create(model="demo", **ask)
            stood_in = client.chat.completions.with_raw_response.create(model="m", **ask)
            assert stood_in.headers["x-xgen-model"] == "demo"
            answer = stood_in.parse()
            assert answer.model == "demo"
            assert answer.choices[0].message.content == here.choices[0].message.content
            text = ""
            for chunk in client.chat.completions.create(model="m", stream=True, **ask):
                assert chunk.model == "demo"
                text += chunk.choices[0].delta.content or "" if chunk.choices else ""
            assert text == here.choices[0].message.content
            assert metric(front.url, "xgen_model_fallbacks_total", "m", 'target="demo"') == 2
            assert metric(front.url, "xgen_model_fallbacks_total", "m", 'target="dead"') == 2

            running = [front.stream("/v1/completions", {"model": "demo", "prompt": "x", "max_tokens": 1500, "ignore_eos": True})]
            next(running[0])
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                asked = [pool.submit(front.post, "/v1/completions", {"model": "demo", "prompt": "say x", "max_tokens": 8})
                         for _ in range(8)]
                eventually(lambda: metric(front.url, "xgen_model_fallbacks_total", "demo", 'target="elsewhere"') >= 7)
                running[0].close()
                answers = [each.result() for each in asked]
            assert [each.status_code for each in answers] == [200] * 8
            models = [each.json()["model"] for each in answers]
            assert models.count("elsewhere") >= 7 and set(models) <= {"demo", "elsewhere"}, models
            for each in answers:
                if each.json()["model"] == "elsewhere":
                    assert each.json()["choices"][0]["text"] == "x" and each.headers["x-xgen-model"] == "elsewhere"
            assert front.output().count("a request goes to another model") >= 11
            trace = "0af7651916cd43dd8448eb211c80319c"
            front.post("/v1/completions", {"model": "m", "prompt": "x", "max_tokens": 1},
                       headers={"x-request-id": "one-2", "traceparent": f"00-{trace}-b7ad6b7169203331-01"})
            line, = [each for each in front.output().splitlines() if "goes to another model" in each and "request_id=one-2 " in each and "target=demo" in each]
            assert f"trace_id={trace}" in line


def test_a_model_that_cannot_be_loaded_is_stood_in_for(tmp_path):
    folder = shutil.copytree(ROOT / "models/demo", tmp_path / "copy")
    models = [demo("ready", pin=True, kv_cache="30MiB"), demo("busy", load="on_demand", kv_cache="20MiB"),
              demo("no-room", load="on_demand", kv_cache="20MiB", fallbacks=["ready"]),
              {"name": "broken", "source": str(folder), "load": "on_demand", "kv_cache": "10MiB", "fallbacks": ["busy"]}]
    with Process("--config", write(tmp_path, models, memory={"host": "90MiB"})) as server:
        (folder / "tokenizer.json").write_text("{")
        answer = say(server, "broken")  # and "busy" is loaded for it
        assert answer.status_code == 200 and answer.json()["model"] == "busy", answer.text
        story = server.stream("/v1/completions", {"model": "busy", "prompt": "hi", "max_tokens": 2000, "ignore_eos": True})
        next(story)
        answer = say(server, "no-room")
        story.close()
        assert answer.status_code == 200 and answer.json()["model"] == "ready", answer.text
        assert "target=ready" in server.output() and "but of the memory budget" in server.output()


def test_a_reload_checks_the_lists_and_applies_them(tmp_path):
    with Scripted() as engine:
        def models(**more):
            return [remote("m", f"http://127.0.0.1:{free_port()}", **more), remote("elsewhere", engine.url, model="scripted")]

        path = write(tmp_path, models())
        with Process("--config", path) as front:
            assert front.post("/v1/chat/completions", chat("say x")).status_code == 503
            write(tmp_path, models(fallbacks=["nobody"]))
            answer = front.post("/admin/reload", {})
            assert answer.status_code == 400 and "models[0].fallbacks[0]: 'nobody' is no model" in answer.text, answer.text
            write(tmp_path, models(fallbacks=["elsewhere"]))
            assert front.post("/admin/reload", {}).status_code == 200
            assert front.post("/v1/chat/completions", chat("say x")).json()["model"] == "elsewhere"
            assert front.get("/admin/models").json()["models"][0]["fallbacks"] == ["elsewhere"]
