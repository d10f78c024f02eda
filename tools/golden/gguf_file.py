#!/usr/bin/env python3
"""Makes tests/golden/gguf_files/NAME.json: what transformers computes for a GGUF file that others made.

Usage: python tools/golden/gguf_file.py FILE.gguf      (needs torch, transformers 5, accelerate, gguf)

transformers reads the metadata, de-quantises the tensors and undoes the converter's permutation by code of its own.
Stored are a prompt, its greedy continuation, and at every 16th position the largest logits and some others.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "gguf_files"


@torch.no_grad()
def main():
    path = pathlib.Path(sys.argv[1])
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, attn_implementation="eager",
                                                 dtype=torch.float32).eval()

    def logits(tokens):
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()

    vocab = model.config.vocab_size
    prompt = [1, *((i * i * 7919 + 31) % vocab for i in range(63))]
    everything = list(prompt)
    margin = 1.0
    for _ in range(64):
        last = logits(everything)[-1]
        second, first = np.sort(last)[-2:]
        margin = min(margin, float((first - second) / np.abs(last).max()))
        everything.append(int(last.argmax()))
    rows = []
    for position in range(15, len(everything), 16):
        row = logits(everything)[position]
        ids = sorted({*np.argsort(-row)[:8].tolist(), *range(position, vocab, vocab // 8)})
        rows.append(dict(position=position, largest=float(np.abs(row).max()), ids=ids, logits=row[ids].tolist()))
    print(f"{path.name}: smallest margin {margin:.1e}, {len(set(everything[64:]))} distinct greedy tokens")
    OUT.mkdir(parents=True, exist_ok=True)
    parts = [f'"prompt": {json.dumps(prompt)}', f'"greedy": {json.dumps(everything[64:])}',
             '"rows": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]"]
    (OUT / f"{path.stem}.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main()
