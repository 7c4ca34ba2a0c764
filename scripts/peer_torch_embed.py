#!/usr/bin/env python3
"""The peer of `make bench`'s part embed: transformers on torch, mean pooling, padded batches.

  PYTHON scripts/peer_torch_embed.py MODEL DTYPE BATCH TOKENS...
MODEL is a folder, DTYPE float32 or bfloat16, BATCH the documents of a padded batch, TOKENS files of
token ids. Prints tokens/s and tokens per second of processor time (padding not counted) and the peak
resident memory in MiB. Attention is sdpa. A short batch warms up first. Needs torch and transformers.
"""
import resource
import sys
import time

import torch
from transformers import AutoModel

folder, dtype, batch = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3])
documents = [[int(word) for word in open(path).read().split()] for path in sys.argv[4:]]
model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()


def embed(rows):
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), model.config.pad_token_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row)
        mask[i, :len(row)] = 1
    state = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return (state * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


with torch.inference_mode():
    embed([documents[0][:64]] * 2)
    begun, cpu = time.perf_counter(), time.process_time()
    for i in range(0, len(documents), batch):
        embed(documents[i:i + batch])
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
n = sum(map(len, documents))
print(f"{n / seconds:.1f} {n / cpu:.1f} {peak:.0f}")
