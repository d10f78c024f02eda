#!/usr/bin/env python3
"""Makes tests/golden/gguf: what llama.cpp's own converter writes for the models of tests/golden/models.

Usage: python tools/golden/gguf_models.py CONVERTER [--check BUILD_DIR] [--keep DIR] [CASE...]
       (needs what models.py needs, sentencepiece, tokenizers; CONVERTER is a llama.cpp checkout or unpacked release)

Each case's tiny model is written as a checkpoint, with a small tokenizer, and converted. NAME.json then holds the
metadata that describe the model (not the tokenizer's), and every tensor's type, shape and the CRC-32 of its bytes;
of the RoPE factor tensors, which the converter computes, the values. The C++ tests make the same file from these and
from the weights, so what they load is byte for byte what the converter wrote.

--check writes nothing: it compares with the stored files, and has BUILD_DIR's test_model run the converter's files
themselves, in F32, F16, BF16, Q8_0, with Q, K and V fused, and in parts (except where it leaves a needed key out).
"""

import argparse
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import zlib

import models
import numpy as np
import sentencepiece
import tokenizers

OUT = models.OUT.parent / "gguf"
SENTENCEPIECE = ("llama", "mistral", "mixtral", "phi3", "gemma2", "gemma3_text")

# Models that a GGUF file cannot describe.
INEXPRESSIBLE = {
    "llama_gelu": "GGUF states no activation: every architecture has one",
    "llama_yarn": "GGUF has no key for YaRN's truncate, and none for mscale beside mscale_all_dim",
    "qwen3_moe": "GGUF's qwen3moe has no tensors for dense layers among the sparse ones",
}
# Keys of GGUF that the converter leaves out for these architectures although the model is another one without them.
LEFT_OUT = {
    "mistral": {"llama.attention.sliding_window": ["u32", 16]},
    "qwen2": {"qwen2.attention.sliding_window": ["u32", 12],
              "qwen2.attention.sliding_window_pattern": ["bool[]", [False, True, True]]},
    "gemma2": {"gemma2.attention.scale": ["f32", float(np.float32(24**-0.5))]},
    "qwen3_moe_plain": {"qwen3moe.expert_weights_norm": ["bool", False]},
}


def write_tokenizer(config, folder):
    """Either kind in a size below the models' vocabulary."""
    if config["model_type"] in SENTENCEPIECE:
        text = pathlib.Path(__file__).read_text().split("\n")
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_prefix=str(folder / "tokenizer"),
                                                 vocab_size=140, hard_vocab_limit=False, minloglevel=2)
        return
    alphabet = [chr(c) for c in range(33, 127)] + ["\u0120"]
    words = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", *alphabet, "\u0120a"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[("\u0120", "a")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(words[:5])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>", unk_token="<unk>")))


def write_checkpoint(name, folder):
    golden = json.loads((models.OUT / f"{name}.json").read_text())
    config = golden["config"]
    models.build(config, golden["seed"], folder)
    config["architectures"] = golden["saved_config"]["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(config, folder)


def convert(converter, folder, output, *options):
    """Runs the converter as its command line does; only its check for a pre-tokenizer known by hash is passed."""
    for path in (converter, converter / "gguf-py"):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    import conversion.base

    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "default"
    script = str(converter / "convert_hf_to_gguf.py")
    saved = sys.argv
    sys.argv = [script, str(folder), "--outfile", str(output), *options]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.argv = saved


def describe(path, name):
    import gguf

    reader = gguf.GGUFReader(path)
    short = {"UINT32": "u32", "INT32": "i32", "FLOAT32": "f32", "BOOL": "bool", "STRING": "str"}
    metadata = {}
    for key, field in reader.fields.items():
        if key.startswith(("GGUF.", "tokenizer.", "general.")) and key != "general.architecture":
            continue
        metadata[key] = [short[field.types[-1].name] + "[]" * (len(field.types) - 1), field.contents()]
    tensors = {}
    for t in reader.tensors:
        shape = [int(n) for n in reversed(t.shape)]
        rope = t.name.startswith("rope_")
        tensors[t.name] = [t.tensor_type.name, shape,
                           t.data.tolist() if rope else zlib.crc32(np.ascontiguousarray(t.data).tobytes())]
    return dict(metadata=metadata, left_out=LEFT_OUT.get(name, {}), tensors=tensors)


def dump(golden):
    """JSON with one line per key and tensor, so that diffs stay readable."""
    parts = []
    for part, entries in golden.items():
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(entries.items()))
        parts.append(f'"{part}": {{\n{lines}\n}}' if lines else f'"{part}": {{}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("converter", type=pathlib.Path)
    parser.add_argument("cases", nargs="*", choices=[[], *models.CASES], default=[])
    parser.add_argument("--check", type=pathlib.Path, metavar="BUILD_DIR")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="leave the converted files there")
    args = parser.parse_args()
    converter = args.converter.resolve()
    models.torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        converted = args.keep or pathlib.Path(tmp) / "converted"
        converted.mkdir(parents=True, exist_ok=True)
        for name in args.cases or [c for c in models.CASES if c not in INEXPRESSIBLE]:
            folder = pathlib.Path(tmp) / name
            folder.mkdir()
            write_checkpoint(name, folder)
            convert(converter, folder, converted / f"{name}.f32.gguf", "--outtype", "f32")
            golden = dump(describe(converted / f"{name}.f32.gguf", name))
            if not args.check:
                (OUT / f"{name}.json").write_text(golden)
                continue
            assert golden == (OUT / f"{name}.json").read_text(), f"{name}: the converter writes something else today"
            if name in LEFT_OUT:  # the files alone are another model's
                (converted / f"{name}.f32.gguf").unlink()
                continue
            # Through 46 layers the rounding of weights grows beyond what could tell right from wrong.
            for kind in () if name == "gemma2_27b" else ("f16", "bf16", "q8_0"):
                convert(converter, folder, converted / f"{name}.{kind}.gguf", "--outtype", kind)
            convert(converter, folder, converted / f"{name}.fused.gguf", "--outtype", "f32", "--fuse-qkv")
            convert(converter, folder, converted / f"{name}.split.gguf", "--outtype", "f32", "--split-max-tensors", "9")
        if args.check:
            subprocess.run([args.check / "tests" / "test_model", "--gtest_filter=ConvertedGguf.*"], check=True,
                           env=os.environ | {"XGEN_CONVERTED_GGUF": str(converted)})


if __name__ == "__main__":
    main()
