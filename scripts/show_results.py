#!/usr/bin/env python3
"""Prints results.jsonl files for people: scripts/show_results.py FILE..."""
import json
import sys
import textwrap


def paragraph(text, indent):
    return textwrap.fill(" ".join(text.split()), 96, initial_indent=indent, subsequent_indent=indent)


for path in sys.argv[1:]:
    with open(path, encoding="utf-8", errors="replace") as lines:
        for result in map(json.loads, lines):
            print(f"== {result.get('task', '')} {result['document']}")
            if "perplexity" in result:
                print(f"{result['n_token']} tokens, perplexity {result['perplexity']}")
            if "n_row" in result:
                print(f"{result['n_row']} vectors of {result['n_hidden']}, rows from "
                      f"{result['first_row']} of vectors.npy, pooling {result['pooling']}")
            if result.get("task") == "locate":
                print(f"question: {result['question']}")
                for passage in result["passages"]:
                    print(f"{passage['rank']}: bytes {passage['byte_start']}..{passage['byte_end']}, "
                          f"cosine {passage['score']:.3f}")
                    print(paragraph(passage["text"][:300], "  | "))
            if "answer" in result:
                print(f"question: {result.get('question', '')}")
                print(paragraph(result["answer"], "  "))
                for rank, passage in enumerate(result.get("evidence", [])[:3], 1):
                    print(f"evidence {rank}: bytes {passage['byte_start']}..{passage['byte_end']}, "
                          f"weight {passage['weight']:.3g}")
                    print(paragraph(passage["text"][:300], "  | "))
            print()
