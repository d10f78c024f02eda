"""Trains xgen-demo from questions.yaml and writes models/demo: config, weights, tokenizer, chat template.

Everything is seeded and counted in steps, so the same machine and library versions give the same model again.
"""

import argparse
import json
import math
import os
import pathlib
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import text
from model import CONFIG, Qwen3

REPO = pathlib.Path(__file__).resolve().parents[2]


def batches(sampler, tokens_per_batch, pool_size=1024):
    """Padded batches of conversations of about the same length: (ids, targets), targets -100 where nothing is learnt."""
    waiting = []
    while True:
        # Lengths in steps of 8 and full batches only: few shapes, so that the matrix library's caches work.
        rounded = lambda conversation: -(-len(conversation[0]) // 8) * 8
        waiting += [sampler.conversation() for _ in range(pool_size)]
        ready, groups = [], {}
        for conversation in waiting:
            rows = groups.setdefault(rounded(conversation), [])
            rows.append(conversation)
            if len(rows) == max(1, tokens_per_batch // rounded(conversation)):
                ready.append(groups.pop(rounded(conversation)))
        waiting = [conversation for rows in groups.values() for conversation in rows]
        sampler.rng.shuffle(ready)
        for rows in ready:
            length = rounded(rows[0])
            ids = torch.zeros(len(rows), length, dtype=torch.long)
            targets = torch.full((len(rows), length), -100)
            for row, (tokens, mask) in enumerate(rows):
                tokens, mask = torch.tensor(tokens), torch.tensor(mask)
                ids[row, : len(tokens)] = tokens
                targets[row, : len(tokens) - 1] = torch.where(mask[1:] == 1, tokens[1:], -100)
            yield ids, targets


@torch.no_grad()
def check_answers(model, chat, questions, systems=(None,), batch_size=48):
    """For each (fact, question): is the greedy answer the fact's answer, token for token, and by which margin?

    A greedy answer equals the expected one exactly when, at each of its positions, the expected token has the highest
    logit given the expected tokens before it; so one forward pass per question decides it. Returns a list of
    (right, smallest logit margin over the answer), in the order of the questions, for each system prompt.
    """
    model.eval()
    prompts = [text.single_turn(chat, fact, question, system) for system in systems for fact, question in questions]
    results = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][0]) + len(prompts[i][1]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        length = max(len(prompts[i][0]) + len(prompts[i][1]) for i in chosen)
        ids = torch.zeros(len(chosen), length, dtype=torch.long)
        for row, i in enumerate(chosen):
            tokens = prompts[i][0] + prompts[i][1]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        hidden = model.hidden(ids)
        for row, i in enumerate(chosen):
            prompt, answer = prompts[i]
            span = hidden[row, len(prompt) - 1 : len(prompt) + len(answer) - 1]
            logits = model.logits(span)
            expected = torch.tensor(answer)[:, None]
            score = logits.gather(1, expected)[:, 0]
            others = logits.scatter(1, expected, -math.inf).max(dim=1).values
            margin = (score - others).min().item()
            results[i] = (margin > 0, margin)
    return results


@torch.no_grad()
def greedy(model, chat, messages, limit=200):
    """The greedy reply to [(role, text), ...]."""
    model.eval()
    ids = [token for role, content in messages for token in chat.turn(role, content)] + chat.reply("")[0]
    start = len(ids)
    while len(ids) - start < limit:
        token = model.logits(model.hidden(torch.tensor([ids]))[0, -1]).argmax().item()
        if token == chat.end:
            break
        ids.append(token)
    return chat.tokenizer.decode(ids[start:], skip_special_tokens=True)


def share(results):
    return sum(right for right, _ in results) / max(1, len(results))


def train(args, facts, chat, config):
    torch.manual_seed(args.seed)
    model = Qwen3(config, dropout=args.dropout)
    if args.init:
        model.load_state_dict({k: v.float() for k, v in load_file(args.init).items()}, strict=False)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, vocabulary {config['vocab_size']}", flush=True)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    unseen = {name: text.load_unseen(facts, name) for name in text.UNSEEN}
    kept = [question for pairs in unseen.values() for _, question in pairs]
    kept += [question for fact in facts for question in fact.dev]
    sampler = text.Sampler(facts, chat, args.seed, kept)
    stream = batches(sampler, args.batch_tokens)
    dev = [(fact, question) for fact in facts for question in fact.dev]
    known = [(fact, question) for fact in facts for question in fact.questions]

    def step(scale):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * scale
        model.train()
        ids, targets = next(stream)
        wanted = targets != -100
        loss = F.cross_entropy(model.logits(model.hidden(ids)[wanted]), targets[wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    began, running = time.time(), 0.0
    for done in range(1, args.steps + 1):
        progress = max(0.0, (done - args.warmup) / max(1, args.steps - args.warmup))
        loss = step(min(1.0, done / args.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))))
        running = loss if done == 1 else 0.97 * running + 0.03 * loss
        if done % args.report == 0:
            line = f"step {done} loss {running:.4f} {(time.time() - began) / done:.3f} s/step"
            if dev:
                line += f" held out {share(check_answers(model, chat, dev)):.3f}"
            print(line, flush=True)
            save(model, chat, config, args.out)
    # What is still wrong gets more room, until every listed question is answered word for word and not by a hair. Without
    # dropout, whose noise would keep the closest cases undecided; ever more gently, as each round costs other wordings.
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    for part in range(args.polish + 1):
        saved = rounded(model, config)
        results = check_answers(saved, chat, known)
        weak = dict.fromkeys(pair for pair, (_, margin) in zip(known, results) if margin < args.margin)
        sampler.focus.update(weak)
        wrong = sum(not right for right, _ in results)
        seen = ", ".join(f"{name} {sum(right for right, _ in check_answers(saved, chat, pairs))} of {len(pairs)}" for name, pairs in unseen.items())
        print(f"polish {part}: {wrong} wrong, {len(weak)} below the margin, {seen}, {time.time() - began:.0f} s", flush=True)
        save(model, chat, config, args.out)
        if not weak or part == args.polish:
            break
        peak = args.polish_lr * args.polish_decay**part
        for i in range(args.polish_steps):
            step(peak * (1 - 0.9 * i / args.polish_steps))
    return model


def rounded(model, config):
    """The model with its weights as they are saved, in F16, computing in F32."""
    copy = Qwen3(config)
    copy.load_state_dict({name: weight.half().float() for name, weight in model.state_dict().items()})
    return copy


def save(model, chat, config, out):
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().to(torch.float16).contiguous() for name, p in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    write = lambda name, data: (out / name).write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write("config.json", config)
    chat.tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    special = lambda content: {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    write(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {str(i): special(content) for i, content in enumerate(text.SPECIAL)},
            "add_bos_token": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
            "chat_template": text.CHAT_TEMPLATE,
        },
    )
    ends = [chat.end, chat.tokenizer.token_to_id("<|endoftext|>")]
    write("generation_config.json", {"do_sample": False, "temperature": 0.0, "eos_token_id": ends, "pad_token_id": ends[1]})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=REPO / "models/demo")
    parser.add_argument("--questions", type=pathlib.Path, default=text.HERE / "questions.yaml")
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--warmup", type=int, default=80)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--vocab", type=int, default=3584)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=int, default=250)
    parser.add_argument("--margin", type=float, default=0.3, help="least logit margin of every token of an answer")
    parser.add_argument("--polish", type=int, default=9, help="most rounds of further training on what is still wrong")
    parser.add_argument("--polish-steps", type=int, default=60)
    parser.add_argument("--polish-lr", type=float, default=0.04, help="of the first round, as a share of --lr")
    parser.add_argument("--polish-decay", type=float, default=0.8, help="of the learning rate from round to round")
    parser.add_argument("--hold-out", type=float, default=0.0, help="share of the wordings kept from training, to measure on")
    parser.add_argument("--init", type=pathlib.Path, help="a model.safetensors to go on from, instead of random weights")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    facts = text.load_facts(args.questions)
    tokenizer = text.train_tokenizer(facts, args.vocab)
    text.hold_out(facts, args.hold_out, args.seed)
    chat = text.Chat(tokenizer)
    config = {
        **CONFIG,
        "vocab_size": tokenizer.get_vocab_size(),
        "bos_token_id": None,
        "eos_token_id": chat.end,
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "torch_dtype": "float16",
    }
    model = train(args, facts, chat, config)
    save(model, chat, config, args.out)

    model = Qwen3(config)
    model.load_state_dict({k: v.float() for k, v in load_file(args.out / "model.safetensors").items()}, strict=False)
    known = [(fact, question) for fact in facts for question in fact.questions]
    results = check_answers(model, chat, known)
    for (fact, question), (right, margin) in zip(known, results):
        if not right:
            print(f"WRONG {fact.id}/{fact.language}: {question} (margin {margin:.3f}) -> {greedy(model, chat, [('user', question)])}")
    print(f"{sum(r for r, _ in results)} of {len(results)} questions answered word for word; smallest margin {min(m for _, m in results):.3f}")
    dev = [(fact, question) for fact in facts for question in fact.dev]
    if dev:
        results = check_answers(model, chat, dev)
        for (fact, question), (right, _) in zip(dev, results):
            if not right:
                print(f"DEV {fact.id}/{fact.language}: {question} -> {greedy(model, chat, [('user', question)])[:90]}")
        print(f"{share(results):.3f} of {len(results)} held-out wordings answered word for word")


if __name__ == "__main__":
    main()
