"""Checks models/demo with Hugging Face transformers, and writes what the C++ tests read: tests/demo/*.

Every listed question must get its fact's answer word for word, from greedy decoding of the saved weights in F32.
"""

import argparse
import json
import os
import pathlib
import re

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import text
from model import Qwen3
from train import REPO, check_answers, greedy, share

# Fields of answers, and members of objects, that the answers mention beside the parameters of requests.
NOT_PARAMETERS = {"finish_reason", "include_usage"}
# Values of keys.
NOT_KEYS = {"on_demand", "least_loaded", "round_robin"}
SNAKE = re.compile(r"(?<![\w.:/-])[a-z]+(?:_[a-z]+)+(?![\w/-])")
ROUTE = re.compile(
    r"(?<![\w.])/(?:(?:v1|admin|api/management)(?=/[a-z])|health|tokenize|detokenize|version|metrics|loading-status|load(?!\w))"
    r"(?:/[a-z]+(?:-[a-z]+)*|/\{id\})*"
)
KEY = re.compile(r"(?<![\w/])(?:server|log|memory|compute|sources|tracing|defaults|models)\.[a-z_]+")


def mentioned(facts, sections):
    """What the answers speak of, for the test that holds it against the tables of the program.

    routes, config_keys (section.key), parameters and metrics have to exist there; refused are the parameters that have
    to be refused by name there; words lists every word of the answers about a section, so that the test can see whether
    a key is spoken of at all.
    """
    routes, keys, parameters, refused, metrics, words = set(), set(), set(), set(), set(), {}
    for fact in facts:
        answer, section = fact.answer, sections.get(fact.id)
        routes |= set(ROUTE.findall(answer)) | ({"/"} if "GET / " in answer or "GET /는" in answer else set())
        keys |= {key for key in KEY.findall(answer) if key != "models.yaml"}
        metrics |= set(re.findall(r"vllm:[a-z_]+", answer))
        if section == "request":
            parameters |= set(SNAKE.findall(answer)) - NOT_PARAMETERS
        elif section == "refused":
            refused |= set(SNAKE.findall(answer))
        elif section:
            keys |= {f"{section}.{name}" for name in SNAKE.findall(answer) if name not in NOT_KEYS}
            words.setdefault(section, set()).update(re.findall(r"\b[a-z_]+\b", answer))
    return {
        "routes": sorted(routes),
        "config_keys": sorted(keys),
        "parameters": sorted(parameters),
        "refused": sorted(refused),
        "metrics": sorted(metrics),
        "words": {section: sorted(found) for section, found in sorted(words.items())},
        "must_be_covered": ["routes", "config_keys"],
    }


@torch.no_grad()
def reply(model, tokenizer, messages):
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=200)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=pathlib.Path, default=REPO / "models/demo")
    parser.add_argument("--out", type=pathlib.Path, default=REPO / "tests/demo")
    parser.add_argument("--every", type=int, default=10, help="ask transformers each n-th question (1: all)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    facts = text.load_facts()
    chat = text.Chat(Tokenizer.from_file(str(args.model / "tokenizer.json")))
    config = json.loads((args.model / "config.json").read_text())
    model = Qwen3(config)
    missing, unexpected = model.load_state_dict(
        {k: v.float() for k, v in load_file(args.model / "model.safetensors").items()}, strict=False
    )
    assert not missing and not unexpected, (missing, unexpected)
    known = [(fact, question) for fact in facts for question in fact.questions]
    unseen = {name: text.load_unseen(facts, name) for name in text.UNSEEN}
    trained = {text.key(question) for _, question in known}
    assert not [question for pairs in unseen.values() for _, question in pairs if text.key(question) in trained]

    results = check_answers(model, chat, known)
    print(f"own forward pass: {sum(r for r, _ in results)} of {len(known)} word for word, smallest margin {min(m for _, m in results):.3f}")
    for prompt in text.SYSTEM_PROMPTS[:2]:
        print(f"with the system prompt {prompt!r}: {share(check_answers(model, chat, known, [prompt])):.4f}")
    for name, pairs in unseen.items():
        answered = check_answers(model, chat, pairs)
        for (fact, question), (right, _) in zip(pairs, answered):
            if not right:
                print(f"{name}, {fact.id}/{fact.language}: {question} -> {greedy(model, chat, [('user', question)])}")
        print(f"{name}: {sum(r for r, _ in answered)} of {len(pairs)}")

    theirs = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    differing, asked = 0, known[:: args.every]
    for fact, question in asked:
        prompt, answer = text.single_turn(chat, fact, question)
        messages = [{"role": "user", "content": question}]
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"] == prompt
        got = reply(theirs, tokenizer, messages)
        if got != fact.answer:
            differing += 1
            print(f"transformers, {fact.id}/{fact.language}: {question} -> {got}")
    prompt, answer = text.single_turn(chat, *known[0])
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        ours = model.logits(model.hidden(ids))
        distance = ((theirs(ids).logits - ours).norm() / ours.norm()).item()
    print(f"transformers: {len(asked) - differing} of {len(asked)} word for word; relative distance of the logits {distance:.1e}")

    args.out.mkdir(parents=True, exist_ok=True)
    row = lambda fact, question: {"id": fact.id, "language": fact.language, "question": question, "answer": fact.answer}
    for name, pairs in {"answers": known, **unseen}.items():
        rows = [json.dumps(row(*pair), ensure_ascii=False) + "\n" for pair in pairs]
        (args.out / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    sections = {entry["id"]: entry["about"] for entry in yaml.safe_load((text.HERE / "questions.yaml").read_text(encoding="utf-8")) if "about" in entry}
    (args.out / "facts.json").write_text(json.dumps(mentioned(facts, sections), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if differing or not all(right for right, _ in results):
        raise SystemExit("some trained questions are not answered word for word")


if __name__ == "__main__":
    main()
