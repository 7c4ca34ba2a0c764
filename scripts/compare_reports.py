#!/usr/bin/env python3
"""Prints runs side by side: perplexity, seconds, bytes.
  python3 scripts/compare_reports.py NAME=OUTPUT...
Seconds are of the rank that took longest; index is the time to score and select.
"""
import json
import sys


def column(name, folder):
    with open(f"{folder}/report.json") as file:
        report = json.load(file)
    with open(f"{folder}/results.jsonl") as file:
        result = json.loads(file.readline())
    ranks = report["ranks"]

    def longest(*phases):
        return max(sum(rank["seconds"][phase] for phase in phases) for rank in ranks)

    mib = 1 << 20
    return [name, f"{result['perplexity']:.3f}", f"{longest('attention', 'index'):.2f}",
            f"{longest('attention'):.2f}", f"{longest('index'):.2f}",
            f"{longest('matmul', 'attention', 'index', 'ring_wait', 'merge', 'other', 'decode'):.2f}",
            f"{sum(rank['attention_flop'] for rank in ranks) * 1e-9:.1f}",
            f"{sum(rank['kv_bytes'] for rank in ranks) / mib:.1f}",
            f"{sum(rank['bytes_received'] for rank in ranks) / mib:.1f}"]


ROWS = ["", "perplexity", "attention and index, s", "  attention", "  index", "all work, s",
        "attention, GFLOP", "K/V and index keys, MiB", "received by ranks, MiB"]
columns = [column(*argument.split("=", 1)) for argument in sys.argv[1:]]
for i, row in enumerate(ROWS):
    print(f"  {row:24}" + "".join(f"{values[i]:>12}" for values in columns))
