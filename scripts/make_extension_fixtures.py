#!/usr/bin/env python3
"""Makes tests/fixtures/tiny-*/{self_extend,dca,streaming}.json: what tiny networks say when their
attention reads positions by these methods, pair by pair of a query and a key as the papers define
them, without any of the decompositions that a fast program needs.

Needs torch and transformers (made with 2.15 and 5.23). Tests read the results only.
  python3 scripts/make_extension_fixtures.py [tests/fixtures]
"""
import json
import sys

import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from make_model_fixtures import N_GREEDY, N_PROMPT, log_probabilities, rounded, write_json

# As in tests/mpi/test_extension.c.
GROUP, NEIGHBOURS = 4, 16
CHUNK, DCA_CONTEXT = 24, 32
SINKS, WINDOW = 3, 20


def self_extend(n):
    """Jin et al. 2024, LLM Maybe LongLM, algorithm 1."""
    query, key, seen = torch.zeros(3, n, n, dtype=torch.long)
    for i in range(n):
        for j in range(i + 1):
            seen[i, j] = 1
            if i - j < NEIGHBOURS:
                query[i, j], key[i, j] = i, j
            else:
                query[i, j] = i // GROUP + NEIGHBOURS - NEIGHBOURS // GROUP
                key[i, j] = j // GROUP
    return query, key, seen


def dca(n):
    """An et al. 2024, Training-Free Long-Context Scaling, section 3."""
    query, key, seen = torch.zeros(3, n, n, dtype=torch.long)
    for i in range(n):
        for j in range(i + 1):
            seen[i, j] = 1
            key[i, j] = j % CHUNK
            behind = i // CHUNK - j // CHUNK
            query[i, j] = (i % CHUNK if behind == 0 else
                           min(CHUNK + i % CHUNK, DCA_CONTEXT - 1) if behind == 1 else
                           DCA_CONTEXT - 1)
    return query, key, seen


def streaming(n):
    """Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks: the cache holds
    the first tokens and the last ones, and positions are those in the cache."""
    query, key, seen = torch.zeros(3, n, n, dtype=torch.long)
    for i in range(n):
        cache = [j for j in range(i + 1) if j < SINKS or i - j < WINDOW]
        for place, j in enumerate(cache):
            seen[i, j], key[i, j], query[i, j] = 1, place, len(cache) - 1
    return query, key, seen


def rotate(x, angles):
    """x [.., d] by angles [.., d / 2]: halves, as Hugging Face's checkpoints have them."""
    a, b = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def make_forward(positions, inv_freq):
    def forward(self, hidden_states, position_embeddings=None, attention_mask=None,
                past_key_values=None, **kwargs):
        n, dim = hidden_states.shape[1], self.head_dim
        def heads(projection, norm):
            x = projection(hidden_states).view(n, -1, dim)
            return (norm(x) if norm else x).transpose(0, 1)
        q = heads(self.q_proj, getattr(self, "q_norm", None))
        k = heads(self.k_proj, getattr(self, "k_norm", None))
        v = heads(self.v_proj, None)
        repeat = q.shape[0] // k.shape[0]
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        query, key, seen = positions(n)
        # [heads, n, n, dim]: every pair has its own rotations.
        turned_q = rotate(q[:, :, None, :].expand(-1, n, n, dim), query[..., None] * inv_freq)
        turned_k = rotate(k[:, None, :, :].expand(-1, n, n, dim), key[..., None] * inv_freq)
        score = (turned_q * turned_k).sum(-1) * self.scaling
        weight = score.masked_fill(seen == 0, -torch.inf).softmax(-1)
        out = (weight @ v).transpose(0, 1).reshape(1, n, -1)
        return self.o_proj(out), weight
    return forward


def greedy(model, prompt, n):
    ids, margins = list(prompt), []
    for _ in range(n):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        best = torch.topk(logits, 2)
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return {"prompt": list(prompt), "token": ids[len(prompt):], "margin": rounded(margins)}


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures"
    classes = {"tiny-llama": modeling_llama.LlamaAttention, "tiny-qwen3": modeling_qwen3.Qwen3Attention}
    for name, attention in classes.items():
        model = AutoModelForCausalLM.from_pretrained(f"{root}/{name}", dtype=torch.float64,
                                                     attn_implementation="eager").eval()
        theta = model.config.rope_parameters["rope_theta"]
        dim = model.config.head_dim
        inv_freq = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        with open(f"{root}/{name}/reference.json", encoding="utf-8") as f:
            tokens = {case["name"]: case["token"] for case in json.load(f)["cases"]}
        for method in (self_extend, dca, streaming):
            attention.forward = make_forward(method, inv_freq)
            cases = []
            for case in ("long", "short"):
                logprob, last = log_probabilities(model, tokens[case])
                cases.append({"name": case, "token": tokens[case], "logprob": logprob,
                              "last_logits": last})
            # The prompt is longer than every window, so that decode sees all parts.
            prompt = tokens["long"][:4 * N_PROMPT]
            write_json(f"{root}/{name}/{method.__name__}.json",
                       {"cases": cases, "greedy": [greedy(model, prompt, N_GREEDY)]})


if __name__ == "__main__":
    main()
