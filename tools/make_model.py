"""Writes a model of a real shape with random weights, to measure and test with: a GGUF file or a Hugging Face folder.

    python3 tools/make_model.py qwen05 --type Q8_0 --out qwen05-q8.gguf
    python3 tools/make_model.py tiny --type BF16 --out tiny-hf        # safetensors types: F32, F16, BF16

The tokenizer is byte-level: the 256 bytes, made-up merges of them up to the vocabulary's size, and the special tokens
<|begin|>, <|end|>, <|user|>, <|assistant|>. Needs numpy only.
"""

import argparse
import json
import pathlib
import struct

try:
    import numpy as np
except ImportError:
    raise SystemExit("make_model.py needs numpy: apt-get install python3-numpy, or pip install numpy")

SHAPES = {
    # The sizes of Llama-3.2-1B, Qwen2.5-0.5B, and two for tests.
    "llama1b": dict(arch="llama", hidden=2048, inner=8192, layers=16, heads=32, kv_heads=8, head_dim=64, vocab=128256,
                    theta=500000.0, eps=1e-5, tied=True, bias=False, context=8192),
    "qwen05": dict(arch="qwen2", hidden=896, inner=4864, layers=24, heads=14, kv_heads=2, head_dim=64, vocab=151936,
                   theta=1000000.0, eps=1e-6, tied=True, bias=True, context=32768),
    "small": dict(arch="llama", hidden=256, inner=768, layers=6, heads=8, kv_heads=2, head_dim=32, vocab=320,
                  theta=10000.0, eps=1e-5, tied=False, bias=False, context=8192),
    "tiny": dict(arch="llama", hidden=64, inner=128, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=320,
                 theta=10000.0, eps=1e-5, tied=False, bias=False, context=2048),
}
SPECIAL = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ '<|begin|>' }}{% for message in messages %}"
    "{{ ('<|assistant|>' if message['role'] == 'assistant' else '<|user|>') + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# GGUF: number of the tensor type, elements and bytes per block, offsets of its half-precision scales.
GGML_TYPES = {
    "F32": (0, 1, 4, []), "F16": (1, 1, 2, []), "BF16": (30, 1, 2, []),
    "Q4_0": (2, 32, 18, [0]), "Q4_1": (3, 32, 20, [0, 2]), "Q5_0": (6, 32, 22, [0]), "Q5_1": (7, 32, 24, [0, 2]),
    "Q8_0": (8, 32, 34, [0]), "Q2_K": (10, 256, 84, [80, 82]), "Q3_K": (11, 256, 110, [108]),
    "Q4_K": (12, 256, 144, [0, 2]), "Q5_K": (13, 256, 176, [0, 2]), "Q6_K": (14, 256, 210, [208]),
}
# Typical size of a stored number per unit of scale, so that the weights get about the wanted deviation.
SPREAD = {"Q4_0": 4.6, "Q4_1": 4.6, "Q5_0": 9.2, "Q5_1": 9.2, "Q8_0": 74, "Q2_K": 13.9, "Q3_K": 43, "Q4_K": 259,
          "Q5_K": 524, "Q6_K": 1370}


class Weights:
    """Random matrices, quickly: normal numbers for plain types, random blocks with sane scales for the others."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)

    def matrix(self, rows: int, cols: int, kind: str) -> bytes:
        deviation = 0.7 / np.sqrt(cols)
        number, block, size, halves = GGML_TYPES[kind]
        if not halves:
            values = self.random.standard_normal(rows * cols, dtype=np.float32) * np.float32(deviation)
            return plain(values, kind)
        count = rows * cols // block
        data = np.frombuffer(self.random.bytes(count * size), dtype=np.uint8).reshape(count, size).copy()
        scale = np.full(count, deviation / SPREAD[kind], dtype=np.float16)
        for i, at in enumerate(halves):
            # A second half is the offset: it moves the unsigned numbers to about zero mean.
            value = scale if i == 0 else self.offset(kind, scale)
            data[:, at : at + 2] = value.view(np.uint8).reshape(count, 2)
        return data.tobytes()

    @staticmethod
    def offset(kind: str, scale: np.ndarray) -> np.ndarray:
        factor = {"Q4_1": -7.5, "Q5_1": -15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}[kind]
        return (scale.astype(np.float32) * factor).astype(np.float16)


def plain(values: np.ndarray, kind: str) -> bytes:
    if kind == "F32":
        return values.astype(np.float32).tobytes()
    if kind == "F16":
        return values.astype(np.float16).tobytes()
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {b: chr(b) for b in kept}
    for b in range(256):
        symbols.setdefault(b, chr(256 + len(symbols) - len(kept)))
    return [symbols[b] for b in range(256)]


def vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Tokens and merges: every merge joins two tokens that are there already, letters first."""
    symbols = byte_symbols()
    tokens, merges = list(symbols), []
    letters = [symbols[b] for b in b" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"]
    seen = set(tokens)
    wanted = size - len(SPECIAL)
    first = 0
    words = list(letters)
    while len(tokens) < wanted:
        left = words[first]
        first += 1
        for right in letters[1:]:
            joined = left + right
            if joined in seen or len(tokens) == wanted:
                continue
            seen.add(joined)
            tokens.append(joined)
            merges.append(f"{left} {right}")
            words.append(joined)
    return tokens + SPECIAL, merges


def tensors(shape: dict, hf: bool):
    """(name, rows or None for a vector, cols) in file order; vectors are norms (ones) or biases (small)."""
    h, q, kv = shape["hidden"], shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]
    names = {
        "embed": ("token_embd", "model.embed_tokens"), "norm": ("output_norm", "model.norm"), "head": ("output", "lm_head"),
        "attn_norm": ("attn_norm", "input_layernorm"), "ffn_norm": ("ffn_norm", "post_attention_layernorm"),
        "q": ("attn_q", "self_attn.q_proj"), "k": ("attn_k", "self_attn.k_proj"), "v": ("attn_v", "self_attn.v_proj"),
        "o": ("attn_output", "self_attn.o_proj"), "gate": ("ffn_gate", "mlp.gate_proj"), "up": ("ffn_up", "mlp.up_proj"),
        "down": ("ffn_down", "mlp.down_proj"),
    }
    pick = lambda key: names[key][1 if hf else 0]  # noqa: E731
    yield pick("embed") + ".weight", shape["vocab"], h
    for i in range(shape["layers"]):
        layer = f"model.layers.{i}." if hf else f"blk.{i}."
        yield layer + pick("attn_norm") + ".weight", None, h
        for key, rows, cols in (("q", q, h), ("k", kv, h), ("v", kv, h), ("o", h, q)):
            yield layer + pick(key) + ".weight", rows, cols
            if shape["bias"] and key != "o":
                yield layer + pick(key) + ".bias", None, rows
        yield layer + pick("ffn_norm") + ".weight", None, h
        for key, rows, cols in (("gate", shape["inner"], h), ("up", shape["inner"], h), ("down", h, shape["inner"])):
            yield layer + pick(key) + ".weight", rows, cols
    yield pick("norm") + ".weight", None, h
    if not shape["tied"]:
        yield pick("head") + ".weight", shape["vocab"], h


def vector(name: str, size: int, random: np.random.Generator) -> np.ndarray:
    if name.endswith(".bias"):
        return (random.standard_normal(size) * 0.02).astype(np.float32)
    return np.ones(size, dtype=np.float32)


# --- GGUF, version 3.

def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key: str, value) -> bytes:
    head = text(key)
    if isinstance(value, bool):
        return head + struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return head + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return head + struct.pack("<If", 6, value)
    if isinstance(value, str):
        return head + struct.pack("<I", 8) + text(value)
    if value and isinstance(value[0], str):
        return head + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return head + struct.pack("<IIQ", 9, 5, len(value)) + np.asarray(value, dtype="<i4").tobytes()


def write_gguf(shape: dict, name: str, kind: str, seed: int, out: pathlib.Path) -> None:
    tokens, merges = vocabulary(shape["vocab"])
    arch = shape["arch"]
    end = len(tokens) - len(SPECIAL) + SPECIAL.index("<|end|>")
    values = {
        "general.architecture": arch, "general.name": f"random {name}", "general.alignment": 32,
        f"{arch}.context_length": shape["context"], f"{arch}.embedding_length": shape["hidden"],
        f"{arch}.block_count": shape["layers"], f"{arch}.feed_forward_length": shape["inner"],
        f"{arch}.attention.head_count": shape["heads"], f"{arch}.attention.head_count_kv": shape["kv_heads"],
        f"{arch}.attention.key_length": shape["head_dim"], f"{arch}.attention.value_length": shape["head_dim"],
        f"{arch}.attention.layer_norm_rms_epsilon": shape["eps"], f"{arch}.rope.freq_base": shape["theta"],
        f"{arch}.rope.dimension_count": shape["head_dim"], f"{arch}.vocab_size": shape["vocab"],
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - len(SPECIAL)) + [3] * len(SPECIAL),
        "tokenizer.ggml.merges": merges, "tokenizer.ggml.bos_token_id": end - 1, "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    plan, offset = [], 0
    for tensor, rows, cols in tensors(shape, hf=False):
        # A row that is no whole number of blocks falls back to Q8_0, as llama.cpp's quantisers do to smaller blocks.
        chosen = "F32" if rows is None else kind if cols % GGML_TYPES[kind][1] == 0 else "Q8_0"
        number, block, size, _ = GGML_TYPES[chosen]
        length = (rows or 1) * cols // block * size
        plan.append((tensor, rows, cols, chosen, offset, length))
        offset += (length + 31) // 32 * 32
    weights = Weights(seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(plan), len(values)))
        for key, value in values.items():
            file.write(pair(key, value))
        for tensor, rows, cols, chosen, at, _ in plan:
            dims = [cols] if rows is None else [cols, rows]
            file.write(text(tensor) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, GGML_TYPES[chosen][0], at))
        file.write(b"\0" * (-file.tell() % 32))
        for tensor, rows, cols, chosen, _, length in plan:
            if rows is None:
                file.write(vector(tensor, cols, weights.random).tobytes())
            else:
                file.write(weights.matrix(rows, cols, chosen))
            file.write(b"\0" * (-length % 32))


# --- Hugging Face folder.

def write_folder(shape: dict, kind: str, seed: int, out: pathlib.Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokens, merges = vocabulary(shape["vocab"])
    first_special = len(tokens) - len(SPECIAL)
    ids = {token: i for i, token in enumerate(tokens)}
    architecture = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[shape["arch"]]
    dump(out / "config.json", {
        "architectures": [architecture], "model_type": shape["arch"], "hidden_size": shape["hidden"],
        "intermediate_size": shape["inner"], "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"], "head_dim": shape["head_dim"], "vocab_size": shape["vocab"],
        "rope_theta": shape["theta"], "rms_norm_eps": shape["eps"], "tie_word_embeddings": shape["tied"],
        "max_position_embeddings": shape["context"], "hidden_act": "silu", "bos_token_id": ids["<|begin|>"],
        "eos_token_id": ids["<|end|>"], "torch_dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind],
    })
    dump(out / "generation_config.json", {"bos_token_id": ids["<|begin|>"], "eos_token_id": ids["<|end|>"]})
    dump(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>",
        "chat_template": CHAT_TEMPLATE, "model_max_length": shape["context"],
    })
    dump(out / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": first_special + i, "content": s, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, s in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for t, i in ids.items() if i < first_special}, "merges": merges},
    })
    size = GGML_TYPES[kind][2]
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor, rows, cols in tensors(shape, hf=True):
        length = (rows or 1) * cols * size
        header[tensor] = {"dtype": kind, "shape": [cols] if rows is None else [rows, cols],
                          "data_offsets": [offset, offset + length]}
        offset += length
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    weights = Weights(seed)
    with (out / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor, rows, cols in tensors(shape, hf=True):
            file.write(plain(vector(tensor, cols, weights.random), kind) if rows is None else weights.matrix(rows, cols, kind))


def dump(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--type", default="Q8_0", choices=GGML_TYPES, help="format of the matrices")
    parser.add_argument("--layers", type=int, help="fewer or more layers than the shape has")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="NAME.gguf, or a folder for safetensors")
    args = parser.parse_args()
    shape = dict(SHAPES[args.shape])
    if args.layers is not None:
        shape["layers"] = args.layers
    if args.out.suffix == ".gguf":
        write_gguf(shape, args.shape, args.type, args.seed, args.out)
    elif args.type in ("F32", "F16", "BF16"):
        write_folder(shape, args.type, args.seed, args.out)
    else:
        parser.error(f"{args.type} needs an --out that ends in .gguf")


if __name__ == "__main__":
    main()
