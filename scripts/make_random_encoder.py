#!/usr/bin/env python3
"""Makes a checkpoint of ModernBERT-base's shape with random weights, for measuring speed.

  python3 scripts/make_random_encoder.py FOLDER [EVERY]
Every EVERY-th layer sees the whole document (3 as published, 1: all), the others 128 tokens.
Weights are float32 as published; one block of random numbers is repeated, which takes as long to
multiply as any other. Needs the standard library only.
"""
import array
import json
import os
import random
import struct
import sys

N_LAYER, N_HIDDEN, N_FEED_FORWARD, N_HEAD, N_VOCAB = 22, 768, 1152, 12, 50368
BLOCK = 65537  # a prime, so that rows differ


def shapes():
    yield "embeddings.tok_embeddings.weight", (N_VOCAB, N_HIDDEN)
    yield "embeddings.norm.weight", (N_HIDDEN,)
    for i in range(N_LAYER):
        if i > 0:
            yield f"layers.{i}.attn_norm.weight", (N_HIDDEN,)
        yield f"layers.{i}.attn.Wqkv.weight", (3 * N_HIDDEN, N_HIDDEN)
        yield f"layers.{i}.attn.Wo.weight", (N_HIDDEN, N_HIDDEN)
        yield f"layers.{i}.mlp_norm.weight", (N_HIDDEN,)
        yield f"layers.{i}.mlp.Wi.weight", (2 * N_FEED_FORWARD, N_HIDDEN)
        yield f"layers.{i}.mlp.Wo.weight", (N_HIDDEN, N_FEED_FORWARD)
    yield "final_norm.weight", (N_HIDDEN,)


def config(every):
    return {"architectures": ["ModernBertModel"], "model_type": "modernbert", "dtype": "float32",
            "vocab_size": N_VOCAB, "hidden_size": N_HIDDEN, "intermediate_size": N_FEED_FORWARD,
            "num_hidden_layers": N_LAYER, "num_attention_heads": N_HEAD,
            "max_position_embeddings": 8192, "global_attn_every_n_layers": every,
            "local_attention": 128, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0,
            "hidden_activation": "gelu", "norm_eps": 1e-05, "norm_bias": False,
            "attention_bias": False, "mlp_bias": False, "pad_token_id": 50283,
            "bos_token_id": 50281, "eos_token_id": 50282, "cls_token_id": 50281,
            "sep_token_id": 50282, "tie_word_embeddings": True}


def main():
    folder, every = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
    draw = random.Random(1)
    block = array.array("f", (draw.gauss(0, 0.03) for _ in range(BLOCK))).tobytes()
    header, offset, tensors = {}, 0, list(shapes())
    for name, shape in tensors:
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header["model." + name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for i, (name, shape) in enumerate(tensors):
            if len(shape) == 1:
                f.write(array.array("f", [1.0] * shape[0]).tobytes())
                continue
            size, begin = 4 * shape[0] * shape[1], 4 * (i * 997 % BLOCK)
            repeated = block[begin:] + block * (size // len(block) + 1)
            f.write(repeated[:size])
    with open(f"{folder}/config.json", "w", encoding="utf-8") as f:
        json.dump(config(every), f, indent=2)
        f.write("\n")


if __name__ == "__main__":
    main()
