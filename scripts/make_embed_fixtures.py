#!/usr/bin/env python3
"""Makes tests/fixtures/embed: a tokenizer, a text, modules of sentence-transformers, and the vectors
that Hugging Face transformers, those modules and pooling in Python give for them with the tiny random
models.

Needs torch, transformers, tokenizers and sentence-transformers (made with 2.15, 5.23, 0.23, 6.2).
Tests read the results only.
  python3 scripts/make_embed_fixtures.py [tests/fixtures [MODEL...]]
A line of MODEL.vectors is a name and the elements of one vector: document:mean, document:last,
document:cls, paragraph:K (mean of the tokens that begin in it, from the whole document's states),
alone:K (mean over the paragraph encoded by itself, specials too), modules:document and modules:K
(document and paragraph K through the Dense layers and Normalize of tests/fixtures/embed/modules). Of
models whose rotations depend on the length, ids:N: the mean over N ids as tests/cli/embed.sh makes them.
MODEL may be a folder with a published model for sentences: NAME.vectors gets what sentence-transformers
makes of the first paragraphs of a novel, one by one, then "nearest" and the numbers of the three that are
nearest to QUESTION among all.
"""
import json
import os
import re
import sys

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModel

N_VOCAB = 256  # below that of each tiny model
N_HIDDEN = 32  # of each
LENGTHS = 40, 64, 65, 100, 130
N_PARAGRAPH = 12  # of the novel, whose vectors are kept
QUESTION = "How rich is Mr. Bingley?"
TEXT = """The ferry leaves the harbour of Velm at seven in the morning and comes back at dusk.
Its captain is Ayşe Kılıç, who has sailed the strait for thirty years.

Tickets are sold at the red kiosk beside the fish market,
   and dogs travel free of charge.
\t
  In winter the ferry is replaced by a sledge – drawn by two white horses.\r
\r
Children under six pay nothing. 雪が降る。

The end
"""


def make_tokenizer(path):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=N_VOCAB, special_tokens=["[PAD]", "[CLS]", "[SEP]"],
        show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.save(path)
    return tokenizer


def paragraphs(text):
    for match in re.finditer(r"(?:[^\n]*\S[^\n]*(?:\n|$))+", text):
        first = match.start() + len(match[0]) - len(match[0].lstrip())
        yield first, first + len(match[0].strip())


def make_modules(folder):
    """What EmbeddingGemma has behind its network, with a bias and an activation besides."""
    torch.manual_seed(7)
    modules = [Pooling(N_HIDDEN, pooling_mode="mean"),
               Dense(N_HIDDEN, 48, bias=False, activation_function=torch.nn.Identity()),
               Dense(48, 20, bias=True, activation_function=torch.nn.Tanh()), Normalize()]
    names = ["1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]
    entries = [{"idx": 0, "name": "0", "path": "",
                "type": "sentence_transformers.base.modules.transformer.Transformer"}]
    for index, (module, name) in enumerate(zip(modules, names), start=1):
        os.makedirs(f"{folder}/{name}", exist_ok=True)
        module.save(f"{folder}/{name}")
        entries.append({"idx": index, "name": str(index), "path": name,
                        "type": f"{type(module).__module__}.{type(module).__name__}"})
    with open(f"{folder}/modules.json", "w", encoding="utf-8") as f:
        json.dump(entries, f, indent=2)
    return modules


def apply(modules, states):
    """The vector of [n_token, n_hidden] states."""
    features = {"token_embeddings": states[None].float(),
                "attention_mask": torch.ones(1, len(states), dtype=torch.int64)}
    with torch.no_grad():
        for module in modules:
            features = module(features)
    return features["sentence_embedding"][0]


def write_lengths(root, name):
    with open(f"{root}/embed/{name}.vectors", "w", encoding="utf-8") as f:
        for n in LENGTHS:  # a model that has read nothing longer
            model = AutoModel.from_pretrained(f"{root}/{name}", dtype=torch.float64,
                                              attn_implementation="eager").eval()
            ids = [(7 * i + n) % 190 for i in range(1, n + 1)]
            with torch.no_grad():
                row = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
            f.write(" ".join([f"ids:{n}"] + [f"{x:.7g}" for x in row.tolist()]) + "\n")


def write_published(root, path):
    name = os.path.basename(os.path.normpath(path))
    with open(f"{root}/smollm2/pride.txt", encoding="utf-8") as f:
        text = f.read()
    model = SentenceTransformer(path, device="cpu")
    model.max_seq_length = model.tokenizer.model_max_length = 512
    rows = model.encode([text[a:b] for a, b in paragraphs(text)], batch_size=1)
    cosine = rows @ model.encode(QUESTION)
    with open(f"{root}/embed/{name}.vectors", "w", encoding="utf-8") as f:
        for k, row in enumerate(rows[:N_PARAGRAPH]):
            f.write(" ".join([f"alone:{k}"] + [f"{x:.7g}" for x in row.tolist()]) + "\n")
        f.write("nearest " + " ".join(map(str, (-cosine).argsort()[:3].tolist())) + "\n")


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures"
    folder = f"{root}/embed"
    os.makedirs(folder, exist_ok=True)
    tokenizer = make_tokenizer(f"{folder}/tokenizer.json")
    modules = make_modules(f"{folder}/modules")
    with open(f"{folder}/text", "w", encoding="utf-8", newline="") as f:
        f.write(TEXT)
    for name in sys.argv[2:] or ["tiny-llama"]:
        if os.path.isdir(name):
            write_published(root, name)
            continue
        if name in ("tiny-dynamic", "tiny-longrope"):
            write_lengths(root, name)
            continue
        model = AutoModel.from_pretrained(f"{root}/{name}", dtype=torch.float64,
                                          attn_implementation="eager").eval()

        def states(text):
            encoding = tokenizer.encode(text)
            with torch.no_grad():
                return encoding, model(torch.tensor([encoding.ids])).last_hidden_state[0]

        whole, state = states(TEXT)
        rows = {"document:mean": state.mean(0), "document:cls": state[0], "document:last": state[-1],
                "modules:document": apply(modules, state)}
        starts = [next((i for i in range(a, b) if not TEXT[i].isspace()), a) for a, b in whole.offsets]
        for k, (begin, end) in enumerate(paragraphs(TEXT)):
            own = [t for t in range(1, len(starts) - 1) if begin <= starts[t] < end]
            rows[f"paragraph:{k}"] = state[own].mean(0)
            rows[f"modules:{k}"] = apply(modules, state[own])
            rows[f"alone:{k}"] = states(TEXT[begin:end])[1].mean(0)
        with open(f"{folder}/{name}.vectors", "w", encoding="utf-8") as f:
            for key, row in rows.items():
                f.write(" ".join([key] + [f"{x:.7g}" for x in row.tolist()]) + "\n")


if __name__ == "__main__":
    main()
