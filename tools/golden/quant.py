"""Writes tests/golden/quant/NAME.{q,f32}: random blocks of each GGUF format and what PyPI's gguf makes of them.

Needs numpy and gguf. Run it from the repository's root; the files are small and committed.
"""

import pathlib

import gguf
import numpy as np

BLOCKS = 6  # units of each format
# Where the half-precision scales of a unit lie: they must be sane numbers, everything else is random bytes.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}


def main() -> None:
    folder = pathlib.Path("tests/golden/quant")
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(20)
    for name, halves in HALVES.items():
        kind = gguf.GGMLQuantizationType[name]
        size = gguf.GGML_QUANT_SIZES[kind][1]
        data = random.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for at in halves:
            scales = random.normal(0, 0.05, BLOCKS).astype(np.float16)
            scales[0] = np.float16(6e-8)  # a denormal
            scales[1] = np.float16(-12.5)
            data[:, at : at + 2] = scales.view(np.uint8).reshape(BLOCKS, 2)
        values = gguf.quants.dequantize(data.reshape(-1), kind).astype(np.float32)
        (folder / f"{name}.q").write_bytes(data.tobytes())
        (folder / f"{name}.f32").write_bytes(values.tobytes())


if __name__ == "__main__":
    main()
