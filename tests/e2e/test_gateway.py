"""Several replicas of one model behind one server, all of them real processes."""
import concurrent.futures
import http.server
import json
import threading

import httpx

from hosts import Hosts
from process import PATIENCE, Process, free_port, run
from test_remote import Scripted, chat, eventually, lines_of, metric, write


def gateway(folder, urls, **settings):
    settings = {"health_interval": "200ms", "connect_timeout": "1s", **settings}
    return write(folder, [{"name": "m", "engine": "openai", "urls": [url + "/v1" for url in urls], **settings}])


def content(events):
    return "".join(json.loads(event)["choices"][0]["delta"].get("content") or ""
                   for event in events if event != "[DONE]" and json.loads(event).get("choices"))


def test_conversations_go_where_their_beginning_is(tmp_path):
    with Process() as a, Process() as b, Process() as c:
        replicas = [a, b, c]
        with Process("--config", gateway(tmp_path, [r.url for r in replicas], model="xgen-demo")) as front:
            talks = [[{"role": "user", "content": f"Question {i}: " + "how do I add a model? " * 20}] for i in range(9)]
            shares = []
            for turn in range(4):
                cached = prompt = 0
                for talk in talks:
                    answer = front.post("/v1/chat/completions", {"model": "m", "messages": talk, "max_tokens": 8, "temperature": 0})
                    assert answer.status_code == 200, answer.text
                    usage = answer.json()["usage"]
                    cached += usage["prompt_tokens_details"]["cached_tokens"]
                    prompt += usage["prompt_tokens"]
                    talk.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
                    talk.append({"role": "user", "content": "And then? Tell me more of it. " * 4})
                shares.append(cached / prompt)
            assert all(share > 0.6 for share in shares[1:]), shares
            served = [metric(r.url, "vllm:request_success_total", "xgen-demo", 'finished_reason="length"') +
                      metric(r.url, "vllm:request_success_total", "xgen-demo", 'finished_reason="stop"') for r in replicas]
            assert sum(served) == 36 and min(served) > 0, served
            told = front.get("/admin/models").json()["models"][0]
            assert told["engine"] == "openai"
            assert front.get("/api/management/status").json()["models"][0]["backend"] == "openai"
            assert {each["url"]: each["requests"] for each in told["replicas"]} == \
                {r.url + "/v1": count for r, count in zip(replicas, served)}
            assert all(each["healthy"] and not each["circuit_open"] and not each["failures"] for each in told["replicas"])


def test_a_killed_replica_costs_no_request_that_had_not_begun(tmp_path):
    with Scripted(step_us=3000) as a, Scripted(step_us=3000) as b, Scripted(step_us=3000) as c:
        path = gateway(tmp_path, [a.url, b.url, c.url], model="scripted", balance="least_loaded")
        with Process("--config", path) as front:
            text = "say " + "0123456789" * 600
            begun, outcomes = threading.Semaphore(0), []

            def stream():
                events = []
                for event in lines_of(front, chat(text, max_tokens=2000)):
                    if not events:
                        begun.release()
                    events.append(event)
                outcomes.append(events)

            def ask(_):
                return front.post("/v1/chat/completions", chat("say yes")).json()["choices"][0]["message"]["content"]

            streams = [threading.Thread(target=stream) for _ in range(12)]
            for each in streams:
                each.start()
            for _ in streams:  # or those of the killed replica go elsewhere
                assert begun.acquire(timeout=20)
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                answers = pool.map(ask, range(200))
                a.kill()
                assert list(answers) == ["yes"] * 200
            for each in streams:
                each.join()
            broken = [events for events in outcomes if "error" in events[-2]]
            whole = [events for events in outcomes if "error" not in events[-2]]
            assert 1 <= len(broken) <= 6, len(broken)
            for events in whole:
                assert content(events) == text[4:]
            for events in broken:
                assert events[-1] == "[DONE]"
                error = json.loads(events[-2])["error"]
                assert error["type"] == "server_error" and error["message"], error
            assert front.get("/health").status_code == 200


def test_without_replicas_clients_are_told_when_to_come_again_and_a_new_one_is_found(tmp_path):
    with Scripted() as a, Scripted() as b:
        with Process("--config", gateway(tmp_path, [a.url, b.url], model="scripted")) as front:
            assert front.post("/v1/completions", {"model": "m", "prompt": "say x"}).status_code == 200
            a.kill()
            b.kill()
            eventually(lambda: front.post("/v1/completions", {"model": "m", "prompt": "say x"}).status_code == 503)
            refused = front.post("/v1/completions", {"model": "m", "prompt": "say x"})
            assert int(refused.headers["retry-after"]) >= 1
            assert httpx.get(front.url + "/health/live").status_code == 200
            with Scripted(port=int(a.url.rsplit(":", 1)[1])):
                eventually(lambda: front.post("/v1/completions", {"model": "m", "prompt": "say x"}).status_code == 200)


def test_a_request_is_sent_to_as_many_replicas_as_it_may_be(tmp_path):
    with Scripted() as a, Scripted() as b, Scripted() as c:
        path = gateway(tmp_path, [a.url, b.url, c.url], model="scripted", max_attempts=2)
        with Process("--config", path) as front:
            assert front.post("/v1/completions", {"model": "m", "prompt": "error 9"}).status_code == 500
            replicas = front.get("/admin/models").json()["models"][0]["replicas"]
            assert sorted(each["failures"] for each in replicas) == [0, 1, 1]


def test_a_replica_that_is_well_but_answers_no_request_goes_out(tmp_path):
    done = threading.Event()

    class Hung(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "scripted"}]}')

        def do_POST(self):
            done.wait()

        def log_message(self, *_):
            pass

    with Scripted() as well, http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hung) as hung:
        threading.Thread(target=hung.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{hung.server_port}/v1", well.url + "/v1"]
        path = write(tmp_path, [{"name": "m", "engine": "openai", "urls": urls, "model": "scripted", "balance": "round_robin"}],
                     server={"request_timeout": f"{PATIENCE}s"})
        with Process("--config", path) as front:
            answers = [front.post("/v1/completions", {"model": "m", "prompt": "say x"}).status_code for _ in range(10)]
            assert sorted(answers) == [200] * 5 + [408] * 5
            replicas = front.get("/admin/models").json()["models"][0]["replicas"]
            assert {each["url"]: each["ejections"] for each in replicas} == {urls[0]: 1, urls[1]: 0}
        done.set()
        hung.shutdown()


def test_load_that_others_bring_counts(tmp_path):
    with Process() as a, Process() as b:
        path = gateway(tmp_path, [a.url, b.url], model="xgen-demo", balance="least_loaded")
        with Process("--config", path) as front:
            busy = [a.stream("/v1/completions", {"model": "xgen-demo", "prompt": "x", "max_tokens": 2000, "n": 8, "ignore_eos": True})
                    for _ in range(6)]
            for each in busy:
                next(each)
            eventually(lambda: metric(a.url, "vllm:num_requests_running", "xgen-demo") >= 1)

            def share():
                before = metric(b.url, "vllm:generation_tokens_total", "xgen-demo")
                for _ in range(6):
                    front.post("/v1/completions", {"model": "m", "prompt": "hi", "max_tokens": 2})
                return metric(b.url, "vllm:generation_tokens_total", "xgen-demo") - before

            eventually(lambda: share() == 12)
            for each in busy:
                each.close()


def test_every_address_of_a_name_is_a_replica_while_it_is_there(tmp_path):
    hosts, port = Hosts(tmp_path), free_port()
    path = gateway(tmp_path, [f"http://pods.test:{port}"], model="xgen-demo", replica_per_address=True,
                   balance="round_robin", health_interval="100ms")
    assert "each address a replica" in run("check", "--config", path).stdout

    def ask():
        return front.post("/v1/completions", {"model": "m", "prompt": "x", "max_tokens": 2, "ignore_eos": True})

    def served(*replicas):
        return [metric(r.url, "vllm:request_success_total", "xgen-demo", 'finished_reason="length"') for r in replicas]

    with Process("--config", path, before=hosts.command) as front:
        refused = ask()
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert "no address is known of pods.test" in refused.text
        unwell = front.get("/health")
        assert unwell.status_code == 503 and unwell.json()["status"] == "degraded"
        assert "no address is known of pods.test" in unwell.json()["models"][0]["detail"]
        assert "no address is known of pods.test" in front.get("/admin/models").json()["models"][0]["detail"]
        with Process(port=port) as a, Process(host="127.0.0.2", port=port) as b:
            hosts.set("pods.test", "127.0.0.1", "127.0.0.2")
            eventually(lambda: front.output().count("replica=http://127.0.0.") == 2)
            assert front.get("/health").status_code == 200
            assert [ask().status_code for _ in range(6)] == [200] * 6
            assert served(a, b) == [3, 3]
            # What runs on one that leaves runs on; nothing new goes there.
            n = 8 if PATIENCE == 1 else 1  # long enough for what follows
            streams = [front.stream("/v1/completions", {"model": "m", "prompt": "x", "max_tokens": 1900, "ignore_eos": True, "n": n})
                       for _ in range(2)]
            for each in streams:
                next(each)
            hosts.set("pods.test", "127.0.0.1")
            eventually(lambda: "replica gone" in front.output())
            assert [ask().status_code for _ in range(4)] == [200] * 4
            assert served(a, b) == [7, 3]
            assert metric(front.url, "vllm:num_requests_running", "m") == 2
            for each in streams:
                ends = [c["finish_reason"] for event in each for c in event["choices"] if c["finish_reason"]]
                assert ends == ["length"] * n
            assert min(served(a, b)) > 3
            hosts.set("pods.test")
            eventually(lambda: ask().status_code == 503)
        # The log says which of them is not well.
        hosts.set("pods.test", "127.0.0.2")
        eventually(lambda: f"engine is not well model=m url=http://127.0.0.2:{port}/v1" in front.output())
