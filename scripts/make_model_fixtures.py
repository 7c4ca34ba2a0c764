#!/usr/bin/env python3
"""Makes tests/fixtures/tiny-*: random checkpoints and what Hugging Face transformers says of them.

Needs torch and transformers (made with 2.15 and 5.23). Tests read the results only.
  python3 scripts/make_model_fixtures.py [tests/fixtures]
Weights are rounded to bf16 and fp16 first, so every stored format holds the same values exactly.
References are computed in float64 from those values.
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

N_LONG, N_SHORT, N_PROMPT, N_GREEDY = 151, 37, 23, 16
SHAPE = dict(num_hidden_layers=3, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2,
             attention_dropout=0.0)
LLAMA = dict(SHAPE, vocab_size=300, hidden_size=32, intermediate_size=48, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, tie_word_embeddings=True,
             rope_parameters={"rope_type": "default", "rope_theta": 10000.0})


def random_weights(model, seed):
    """Weights large enough that attention is far from uniform and logits are spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            x = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name.endswith("norm.weight"):
                x = 1 + 0.2 * x
            elif name.endswith("bias"):
                x = 0.3 * x
            elif "embed_tokens" in name or "lm_head" in name:
                x = 0.4 * x
            else:
                x = 1.5 * x / parameter.shape[-1] ** 0.5
            parameter.copy_(x.to(torch.bfloat16).to(torch.float16).to(torch.float64))


def rounded(values):
    return [None if v is None else round(float(v), 6) for v in values]


def log_probabilities(model, ids):
    """[null, ln p(1 | 0), ...] and the logits after the last token."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    picked = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return rounded([None] + picked.tolist()), rounded(logits[-1].tolist())


def fix_rotation(model, length):
    """The rotations of a sequence of this length from now on: transformers would change them as a
    sequence grows and leave the keys that it keeps as they were."""
    rotary = model.model.rotary_emb
    kind = model.config.rope_parameters.get("rope_type")  # none: by layer type
    if kind not in ("dynamic", "longrope"):
        return
    frequencies, rotary.attention_scaling = ROPE_INIT_FUNCTIONS[kind](model.config, "cpu", length)
    rotary.inv_freq = frequencies
    rotary.rope_type = "default"


def greedy(model, prompt, n):
    """n greedy tokens after a prompt, and by how much the best logit led the second each time."""
    ids, margins, cache = list(prompt), [], None
    step = torch.tensor([ids])
    fix_rotation(model, len(prompt) + n)
    for _ in range(n):
        with torch.no_grad():
            result = model(step, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        best = torch.topk(result.logits[0, -1].double(), 2)
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        step = torch.tensor([[ids[-1]]])
    return {"prompt": list(prompt), "token": ids[len(prompt):], "margin": rounded(margins)}


def write_json(path, value, indent=None):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=indent, separators=None if indent else (",", ":"))
        f.write("\n")


def reference(model, seed):
    n_vocab = model.config.vocab_size
    generator = torch.Generator().manual_seed(seed + 1)
    long = torch.randint(3, n_vocab, (N_LONG,), generator=generator).tolist()
    cases = []
    for name, ids in (("long", long), ("short", long[60:60 + N_SHORT]), ("one", long[:1])):
        logprob, last = log_probabilities(model, ids)
        cases.append({"name": name, "token": ids, "logprob": logprob, "last_logits": last})
    return {"cases": cases, "greedy": [greedy(model, long[:N_PROMPT], N_GREEDY)]}


def save(folder, model, dtype, config, shards=1):
    os.makedirs(folder, exist_ok=True)
    tied = model.config.tie_word_embeddings
    tensors = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items()
               if not (tied and k == "lm_head.weight")}
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    else:
        where = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            part = names[shard::shards]
            save_file({k: tensors[k] for k in part}, f"{folder}/{file}", metadata={"format": "pt"})
            where.update({k: file for k in part})
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        write_json(f"{folder}/model.safetensors.index.json",
                   {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}, 2)
    write_json(f"{folder}/config.json", config, 2)


def config_of(model, dtype):
    """config.json in the dialect of transformers 5: rope_parameters and dtype."""
    config = json.loads(model.config.to_json_string(use_diff=True))
    config["architectures"] = [type(model).__name__]
    config["dtype"] = dtype
    config.setdefault("tie_word_embeddings", model.config.tie_word_embeddings)
    return config


def old_dialect(config):
    """The same configuration as transformers 4 wrote it."""
    config = dict(config)
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope.get("rope_type") == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.44.0"
    return config


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures"

    def make(name, model, seed, dtype, dtype_name, shards=1, drop=()):
        model = model.double().eval()
        random_weights(model, seed)
        config = config_of(model, dtype_name)
        for key in drop:
            config.pop(key, None)
        save(f"{root}/{name}", model, dtype, config, shards)
        write_json(f"{root}/{name}/reference.json", reference(model, seed))
        return model

    model = make("tiny-llama", LlamaForCausalLM(LlamaConfig(**LLAMA)), 1, torch.float32, "float32")
    save(f"{root}/tiny-llama-old", model, torch.bfloat16, old_dialect(config_of(model, "bfloat16")))
    write_json(f"{root}/tiny-llama-old/reference.json", reference(model, 1))
    # A small original context puts this model's wavelengths into all three bands of the formula.
    llama3 = dict(LLAMA, tie_word_embeddings=False, num_attention_heads=6, hidden_size=48,
                  vocab_size=280,
                  rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                                   "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                   "original_max_position_embeddings": 64})
    make("tiny-llama3", LlamaForCausalLM(LlamaConfig(**llama3)), 2, torch.float16, "float16", 3)
    # A trained context of 64 tokens: the case of 37 lies within, that of 151 beyond. One seed, so
    # that the models differ by their rotations alone.
    scalings = {
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 2.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
        "longrope": {"factor": 4.0, "original_max_position_embeddings": 64,
                     "short_factor": [1.0 + i / 16 for i in range(8)],
                     "long_factor": [1.0 + 0.5 * i for i in range(8)]}}
    for kind, parameters in scalings.items():
        context = 64 if kind == "dynamic" else 256
        config = dict(LLAMA, num_hidden_layers=2, vocab_size=200, max_position_embeddings=context,
                      rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **parameters})
        make(f"tiny-{kind}", LlamaForCausalLM(LlamaConfig(**config)), 6, torch.bfloat16,
             "bfloat16")
    qwen = dict(LLAMA, rms_norm_eps=1e-6,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})
    qwen2 = {k: v for k, v in qwen.items() if k != "head_dim"}
    qwen2.update(hidden_size=64, intermediate_size=48, vocab_size=256)
    make("tiny-qwen2", Qwen2ForCausalLM(Qwen2Config(**qwen2)), 3, torch.bfloat16, "bfloat16")
    make("tiny-qwen3", Qwen3ForCausalLM(Qwen3Config(**qwen)), 4, torch.bfloat16, "bfloat16")
    mistral = dict(LLAMA, tie_word_embeddings=False, sliding_window=None, hidden_size=64,
                   intermediate_size=40, vocab_size=200)
    make("tiny-mistral", MistralForCausalLM(MistralConfig(**mistral)), 5, torch.bfloat16,
         "bfloat16", drop=("head_dim",))


if __name__ == "__main__":
    main()
