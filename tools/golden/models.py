#!/usr/bin/env python3
"""Makes tests/golden/models: what Hugging Face transformers computes for a tiny random model of every architecture.

Usage: python tools/golden/models.py [--check] [CASE...]      (needs torch and transformers 5)

Each case becomes NAME.json and NAME.logits (float32, little-endian, [rows][vocab] in the order of the JSON's
"positions", prompt after prompt). The weights are not stored: element i of a tensor is
    offset + scale * u,   u = ((mix(fnv1a64(name) + i) >> 40) - 2^23) / 2^23
in float32, mix being SplitMix64's finaliser of (x + 1) * golden gamma. The C++ tests make the same numbers.

A case's config is written as published checkpoints write it (rope_scaling, rope_theta ...); "saved_config" is what
transformers 5 itself saves (rope_parameters ...). Both must load. A greedy continuation with a near tie would make
the comparison a matter of luck: the generator then tries the next seed, which is part of the tensor names' hash.
"""

import argparse
import json
import math
import pathlib
import tempfile

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "models"
GREEDY = 64
MIN_MARGIN = 2e-3  # of the largest |logit|: the gap between best and second best at every greedy step


def base(model_type, **kw):
    cfg = dict(
        model_type=model_type, vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5,
        hidden_act="silu", rope_theta=10000.0, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )
    cfg.update(kw)
    return {k: v for k, v in cfg.items() if v != "drop"}


def longrope(n, long_base):
    return dict(
        type="longrope",
        short_factor=[1.0 + 0.05 * i for i in range(n)],
        long_factor=[long_base + 0.6 * i for i in range(n)],
    )


# (config, prompt lengths, {prompt index: max_context to load with})
CASES = {
    "llama": (base("llama", num_hidden_layers=2), [70, 5], {}),
    "llama_mha_biases": (
        base("llama", num_key_value_heads="drop", head_dim=24, attention_bias=True, mlp_bias=True, num_hidden_layers=2),
        [20], {}),
    "llama_gelu": (base("llama", hidden_act="gelu", num_hidden_layers=2, hidden_size=32, intermediate_size=48), [20], {}),
    "llama3": (
        base("llama", tie_word_embeddings=True, rope_theta=500000.0, head_dim=16,
             rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                               original_max_position_embeddings=32)),
        [70, 9], {}),
    "llama_linear": (base("llama", rope_scaling=dict(type="linear", factor=4.0)), [60], {}),
    "llama_yarn": (
        base("llama", head_dim=32, rope_scaling=dict(rope_type="yarn", factor=8.0, beta_fast=16, beta_slow=2,
                                        original_max_position_embeddings=48, mscale=1.0, mscale_all_dim=0.8,
                                        truncate=False)),
        [80], {}),
    "llama_yarn_factor": (
        base("llama", num_hidden_layers=2,
             rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=16, beta_slow=2, attention_factor=1.3,
                               original_max_position_embeddings=48)),
        [80], {}),
    "qwen2": (
        base("qwen2", tie_word_embeddings=True, use_sliding_window=True, sliding_window=12, max_window_layers=1,
             rope_theta=1000000.0, rms_norm_eps=1e-6),
        [50, 4], {}),
    "qwen2_yarn": (
        base("qwen2", use_sliding_window=False, sliding_window=8, max_position_embeddings=48, head_dim="drop",
             hidden_size=128, num_hidden_layers=2,
             rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=48)),
        [70], {}),
    "qwen3": (base("qwen3", head_dim=32, tie_word_embeddings=True, rope_theta=1000000.0), [60, 6], {}),
    "mistral": (base("mistral", sliding_window=16, head_dim=16), [60, 7], {}),
    "smollm3": (
        base("smollm3", num_hidden_layers=5, tie_word_embeddings=True, rope_theta=5000000.0,
             no_rope_layers=[1, 1, 1, 0, 1], no_rope_layer_interval=4, use_sliding_window=False, pad_token_id=0),
        [60], {}),
    "phi3_longrope": (
        base("phi3", max_position_embeddings=512, original_max_position_embeddings=96, partial_rotary_factor=0.75,
             hidden_size=128, num_hidden_layers=2, sliding_window=None, rope_scaling=longrope(12, 2.0), pad_token_id=0),
        [100, 12], {1: 96}),
    "phi3": (
        base("phi3", num_key_value_heads=4, max_position_embeddings=256, original_max_position_embeddings=256,
             sliding_window=20, pad_token_id=0),
        [60], {}),
    "gemma2": (
        base("gemma2", num_hidden_layers=4, head_dim=32, hidden_act="drop", hidden_activation="gelu_pytorch_tanh",
             query_pre_attn_scalar=24, sliding_window=12, attn_logit_softcapping=1.5, final_logit_softcapping=0.5,
             tie_word_embeddings=True, rms_norm_eps=1e-6, pad_token_id=0),
        [50, 5], {}),
    # With the 27B model's count of layers, which is what tells its attention scale in a GGUF file.
    "gemma2_27b": (
        base("gemma2", num_hidden_layers=46, hidden_size=32, intermediate_size=32, num_attention_heads=2,
             num_key_value_heads=1, head_dim=24, hidden_act="drop", hidden_activation="gelu_pytorch_tanh",
             query_pre_attn_scalar=16, sliding_window=12, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
             tie_word_embeddings=True, rms_norm_eps=1e-6, pad_token_id=0),
        [30], {}),
    "gemma3": (
        base("gemma3_text", num_hidden_layers=7, head_dim=32, hidden_act="drop", intermediate_size=64,
             num_key_value_heads=1, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=32, sliding_window=12,
             sliding_window_pattern=6, rope_theta=1000000.0, rope_local_base_freq=10000.0,
             rope_scaling=dict(rope_type="linear", factor=8.0), tie_word_embeddings=True, rms_norm_eps=1e-6,
             pad_token_id=0),
        [60, 5], {}),
    "granite": (
        base("granite", embedding_multiplier=12.0, attention_multiplier=0.09375, residual_multiplier=0.22,
             logits_scaling=5.0, tie_word_embeddings=True, attention_bias=False, mlp_bias=False),
        [50], {}),
    "olmo2": (base("olmo2", num_key_value_heads=4, rope_theta=500000.0, rms_norm_eps=1e-6, pad_token_id=0), [50], {}),
    "exaone4": (
        base("exaone4", num_hidden_layers=5, head_dim=16, sliding_window=12, sliding_window_pattern="LLLG",
             layer_types=["sliding_attention"] * 3 + ["full_attention", "sliding_attention"],
             rope_theta=1000000.0,
             rope_scaling=dict(rope_type="llama3", factor=16.0, low_freq_factor=1.0, high_freq_factor=4.0,
                               original_max_position_embeddings=32)),
        [60], {}),
    "exaone4_global": (
        base("exaone4", num_hidden_layers=2, head_dim=16, sliding_window=None, sliding_window_pattern=None,
             layer_types=["full_attention"] * 2, tie_word_embeddings=True, rope_theta=1000000.0),
        [40], {}),
    "glm4": (
        base("glm4", head_dim=32, partial_rotary_factor=0.5, attention_bias=True, eos_token_id=[2, 3, 4],
             pad_token_id=0),
        [50, 5], {}),
    "mixtral": (
        base("mixtral", num_hidden_layers=2, intermediate_size=48, num_local_experts=4, num_experts_per_tok=2,
             sliding_window=None, head_dim=16),
        [40, 5], {}),
    "qwen3_moe": (
        base("qwen3_moe", num_hidden_layers=3, head_dim=16, num_experts=8, num_experts_per_tok=3,
             moe_intermediate_size=24, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[1],
             rms_norm_eps=1e-6),
        [40, 5], {}),
    "qwen3_moe_sparse": (
        base("qwen3_moe", num_hidden_layers=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
             moe_intermediate_size=32, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
             tie_word_embeddings=True),
        [30], {}),
    "qwen3_moe_plain": (
        base("qwen3_moe", num_hidden_layers=2, head_dim=16, num_experts=6, num_experts_per_tok=2,
             moe_intermediate_size=24, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[]),
        [30], {}),
}


def fnv1a64(text):
    h = 0xCBF29CE484222325
    for b in text.encode():
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def uniform(key, n):
    """n float32 in [-1, 1), exact multiples of 2^-23."""
    with np.errstate(over="ignore"):
        x = (np.uint64(fnv1a64(key)) + np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return ((x >> np.uint64(40)).astype(np.int64) - (1 << 23)).astype(np.float32) * np.float32(2.0**-23)


def offset_and_scale(config, name, shape):
    """Distribution of one tensor: norms around their neutral value, matrices with gain about 1."""
    if "norm" in name:
        if "post_" in name and config["num_hidden_layers"] > 40:
            return -0.9375, 0.03125  # gemma: many blocks that each add little, lest rounding errors grow with the depth
        return (0.0 if config["model_type"].startswith("gemma") else 1.0), 0.25
    if name.endswith("bias"):
        return 0.0, 0.25
    if "embed_tokens" in name:
        # A tied embedding must be small beside what the blocks add, or every token predicts itself.
        kind = config["model_type"]
        small = 2.0**-6 if kind == "granite" else 2.0**-5 if kind.startswith("gemma") else 2.0**-4
        return 0.0, small if config["tie_word_embeddings"] else 1.0
    gain = 4.0 if "lm_head" in name else 2.0 if name.endswith("gate.weight") else 1.5
    # A power of two near gain * sqrt(3 / fan_in), so that scaling is exact.
    return 0.0, 2.0 ** round(math.log2(gain * math.sqrt(3.0 / shape[-1])))


def build(config, seed, folder):
    """Writes the checkpoint as published ones are named; returns the list of tensors."""
    hf = AutoConfig.for_model(**{k: v for k, v in config.items()})
    model = AutoModelForCausalLM.from_config(hf, attn_implementation="eager", dtype=torch.float32)
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    with safe_open(path, "np") as f:
        shapes = {name: list(f.get_slice(name).get_shape()) for name in f.keys()}
    tensors, data = [], {}
    for name, shape in sorted(shapes.items()):
        offset, scale = offset_and_scale(config, name, shape)
        n = int(np.prod(shape))
        data[name] = (np.float32(offset) + np.float32(scale) * uniform(f"{seed}:{name}", n)).reshape(shape)
        tensors.append([name, shape, offset, scale])
    save_file(data, path, metadata={"format": "pt"})
    return tensors


@torch.no_grad()
def logits_of(model, tokens):
    return model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


def run(name):
    config, lengths, contexts = CASES[name]
    for seed in range(50):
        with tempfile.TemporaryDirectory() as tmp:
            folder = pathlib.Path(tmp)
            tensors = build(config, seed, folder)
            saved = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config))
            model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        prompts, rows, ok, worst, top = [], [], True, 1.0, 0.0
        for p, length in enumerate(lengths):
            u = uniform(f"{seed}:prompt{p}", length)
            tokens = [int((x + 1) / 2 * (config["vocab_size"] - 5)) + 5 for x in u.astype(np.float64)]
            greedy = list(tokens)
            for _ in range(GREEDY):
                last = logits_of(model, greedy)[-1]
                second, first = np.sort(last)[-2:]
                worst = min(worst, float((first - second) / np.abs(last).max()))
                greedy.append(int(last.argmax()))
                if worst < MIN_MARGIN:
                    ok = False
                    break
            if not ok:
                break
            everything = logits_of(model, greedy)
            positions = sorted({0, 1, length // 3, length // 2, length - 1, len(greedy) - 1})
            rows.append(everything[positions])
            top = max(top, float(np.abs(everything).max()))
            prompts.append(dict(tokens=tokens, greedy=greedy[length:], positions=positions,
                                max_context=contexts.get(p, 0), distinct=len(set(greedy[length:]))))
        if ok:
            break
        print(f"{name}: seed {seed}: margin {worst:.1e}")
    else:
        raise SystemExit(f"{name}: no seed without near ties")
    saved.pop("transformers_version", None)
    print(f"{name}: seed {seed}, margin {worst:.1e}, max |logit| {top:.2f}, distinct greedy "
          f"{[q['distinct'] for q in prompts]}, {sum(int(np.prod(t[1])) for t in tensors)} parameters")
    return dict(name=name, seed=seed, config=config, saved_config=saved, tensors=tensors,
                prompts=[{k: v for k, v in q.items() if k != "distinct"} for q in prompts]), np.concatenate(rows)


def dump(golden):
    """JSON with one line per prompt field and tensor, so that diffs stay readable."""
    parts = []
    for key, value in golden.items():
        if key in ("tensors", "prompts"):
            parts.append(f'"{key}": [\n' + ",\n".join(json.dumps(v) for v in value) + "\n]")
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], default=[])
    parser.add_argument("--check", action="store_true", help="compare with the stored files instead of writing them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    for name in args.cases or CASES:
        golden, logits = run(name)
        if args.check:
            stored = np.fromfile(OUT / f"{name}.logits", "<f4").reshape(logits.shape)
            print(f"  stored logits differ by {np.abs(stored - logits).max() / np.abs(logits).max():.1e}")
            assert json.loads((OUT / f"{name}.json").read_text())["prompts"] == golden["prompts"]
            continue
        (OUT / f"{name}.json").write_text(dump(golden))
        logits.astype("<f4").tofile(OUT / f"{name}.logits")


if __name__ == "__main__":
    main()
