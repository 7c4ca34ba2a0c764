#!/usr/bin/env python3
"""Writes tests/fixtures/rope.json: inverse frequencies and attention factors as Hugging Face
transformers computes them, for tests/unit/test_rope.c.

usage: make_rope_fixture.py [OUTPUT]      (needs torch and transformers; not needed to build or test)
"""
import json
import sys

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

CASES = [
    ("default", 64, 10000.0, 4096, {"rope_type": "default"}),
    ("default, large base", 128, 1e6, 32768, {"rope_type": "default"}),
    ("linear", 64, 10000.0, 4096, {"rope_type": "linear", "factor": 4.0}),
    ("yarn", 128, 1e6, 131072,
     {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    ("yarn, small heads", 16, 10000.0, 4096,
     {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}),
    ("yarn, not truncated", 64, 150000.0, 131072,
     {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096,
      "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0}),
    ("yarn, betas and attention factor", 64, 10000.0, 8192,
     {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096,
      "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25}),
    ("yarn, mscale", 64, 10000.0, 163840,
     {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096,
      "mscale": 1.0, "mscale_all_dim": 0.5}),
    ("llama3, 3.1", 128, 500000.0, 131072,
     {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}),
    ("llama3, 3.2", 64, 500000.0, 131072,
     {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}),
    ("dynamic, short", 64, 10000.0, 4096, {"rope_type": "dynamic", "factor": 2.0}, 100),
    ("dynamic, long", 64, 10000.0, 4096, {"rope_type": "dynamic", "factor": 2.0}, 9001),
    ("dynamic, factor 1", 128, 500000.0, 8192, {"rope_type": "dynamic", "factor": 1.0}, 65536),
    ("longrope, short", 32, 10000.0, 16384,
     {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 4096,
      "short_factor": [1 + i / 64 for i in range(16)],
      "long_factor": [1.5 ** i for i in range(16)]}, 4096),
    ("longrope, long", 32, 10000.0, 16384,
     {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 4096,
      "short_factor": [1 + i / 64 for i in range(16)],
      "long_factor": [1.5 ** i for i in range(16)]}, 4097),
    ("longrope, factor of contexts", 32, 10000.0, 131072,
     {"rope_type": "longrope", "original_max_position_embeddings": 4096,
      "short_factor": [1.0] * 16, "long_factor": [1.25 ** i for i in range(16)]}, 131072),
    ("longrope, attention factor", 32, 10000.0, 131072,
     {"rope_type": "longrope", "original_max_position_embeddings": 4096, "attention_factor": 1.5,
      "short_factor": [1.0] * 16, "long_factor": [1.25 ** i for i in range(16)]}, 5000),
]


def compute(name, head_dim, base, context, parameters, length=1):
    config = LlamaConfig(hidden_size=2 * head_dim, num_attention_heads=2, num_key_value_heads=2,
                         head_dim=head_dim, max_position_embeddings=context,
                         rope_parameters={"rope_theta": base, **parameters})
    if parameters["rope_type"] == "default":
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
        frequencies, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu",
                                                                                seq_len=length)
    # The configuration goes along, so that the test reads it as Halka reads any config.json.
    return {"name": name,
            "config": {"model_type": "llama", "hidden_size": 2 * head_dim, "num_hidden_layers": 1,
                       "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 8,
                       "max_position_embeddings": context,
                       "rope_parameters": {"rope_theta": base, **parameters}},
            "length": length,
            "inv_freq": [float(f"{x:.9g}") for x in frequencies.tolist()],
            "attention_factor": float(factor)}


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures/rope.json"
    with open(path, "w") as out:
        out.write("[\n" + ",\n".join(json.dumps(compute(*case)) for case in CASES) + "\n]\n")


if __name__ == "__main__":
    main()
