#!/usr/bin/env python3
"""Writes tests/fixtures/quants/: blocks of every format and their fp32 expansion by the `gguf` package.

NAME.blocks holds the encoded bytes, NAME.f32 the same elements as little-endian fp32. Needs
`pip install gguf numpy`; run from the repository root.
"""
import pathlib

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

N_ELEMENT = 512
SCALES = {  # byte offsets of the fp16 scales in blocks that the package cannot encode
    "Q4_K": (144, (0, 2)),
    "Q5_K": (176, (0, 2)),
    "Q6_K": (210, (208,)),
}

folder = pathlib.Path("tests/fixtures/quants")
folder.mkdir(parents=True, exist_ok=True)
random = np.random.default_rng(1)
for name in ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"):
    kind = Type[name]
    if name in SCALES:  # every bit pattern is a valid block once its fp16 scales are finite
        block_bytes, offsets = SCALES[name]
        blocks = random.integers(0, 256, (N_ELEMENT // 256, block_bytes), dtype=np.uint8)
        for offset in offsets:
            scale = random.uniform(-0.01, 0.01, (len(blocks), 1)).astype(np.float16)
            blocks[:, offset : offset + 2] = scale.view(np.uint8)
        blocks = blocks.reshape(1, -1)
    else:
        values = random.standard_normal((1, N_ELEMENT)).astype(np.float32)
        blocks = quants.quantize(values, kind)
    expanded = quants.dequantize(blocks, kind)
    (folder / f"{name}.blocks").write_bytes(blocks.tobytes())
    (folder / f"{name}.f32").write_bytes(expanded.astype("<f4").tobytes())
