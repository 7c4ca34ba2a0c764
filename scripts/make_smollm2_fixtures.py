#!/usr/bin/env python3
"""Makes tests/fixtures/smollm2/reference.json: what transformers computes on real text.

Needs torch, transformers, accelerate, gguf and tokenizers. Tests read the result only.
  python3 scripts/make_smollm2_fixtures.py MODEL.gguf [tests/fixtures/smollm2]
The GGUF's weights are dequantised and everything is computed in fp32. transformers' own GGUF
tokenizer misses the digit split of the smollm family, so the ids come from the rules below.
"""
import os
import sys

import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from make_model_fixtures import greedy, log_probabilities, write_json

LICENCE = "/usr/share/common-licenses/GPL-3"
N_LICENCE = 2048
N_GREEDY = 32
QUESTIONS = ("What is the capital of France?", "List the months of 2024 that have 31 days.")


def build_tokenizer(path):
    """Byte-level BPE of the smollm family: digits one by one, then GPT-2's pattern."""
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    types = fields["tokenizer.ggml.token_type"].contents()
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    control = 3
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types) if k == control])
    return tokenizer


def read_text(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def main():
    path = sys.argv[1]
    folder = sys.argv[2] if len(sys.argv) > 2 else "tests/fixtures/smollm2"
    tokenizer = build_tokenizer(path)
    model = AutoModelForCausalLM.from_pretrained(
        os.path.dirname(os.path.abspath(path)), gguf_file=os.path.basename(path),
        dtype=torch.float32, attn_implementation="eager").eval()
    config = model.config
    print("model", config.model_type, config.num_hidden_layers, config.rope_parameters,
          config.rms_norm_eps, config.tie_word_embeddings)

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    cases = []
    for name, text, limit in (("gpl3", read_text(LICENCE), N_LICENCE),
                              ("pride", read_text(f"{folder}/pride.txt"), None)):
        ids = encode(text)[:limit]
        logprob, _ = log_probabilities(model, ids)
        print(name, len(ids), "perplexity",
              float(torch.tensor(logprob[1:], dtype=torch.float64).mean().neg().exp()))
        cases.append({"name": name, "token": ids, "logprob": logprob})
    prompts = [encode(read_text(LICENCE))[:300]] + [
        encode(f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n") for q in QUESTIONS]
    answers = [greedy(model, p, N_GREEDY) for p in prompts]
    for answer in answers:
        print(repr(tokenizer.decode(answer["token"])), min(answer["margin"]))
    write_json(f"{folder}/reference.json", {"cases": cases, "greedy": answers})


if __name__ == "__main__":
    main()
