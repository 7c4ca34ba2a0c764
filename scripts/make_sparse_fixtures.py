#!/usr/bin/env python3
"""Makes the fixtures of latent attention, expert layers and DeepSeek Sparse Attention.

Needs torch and transformers (made with 2.15 and 5.23). Tests read the results only.
  python3 scripts/make_sparse_fixtures.py [tests/fixtures]
References are float64 from weights that bf16 (or fp8 with its scales) holds exactly. transformers
scores keys without Hadamard transform and fp8, which dsa.precision = fp32 does as well. For fp8,
DeepSeek's act_quant (one power of two as the scale of each head of a query and of each key, after
the transform) is put around its product: reference-index-fp8.json.

A selection at a near-tie would test noise, so each text is chosen token by token such that no
query of an indexed layer, and no choice of experts, hangs on less than MARGIN. Exact ties stay:
several keys score 0.0, and the earlier positions of those are taken.

reference.json, beside what make_model_fixtures.py writes: "selection", for the case "long",
  layer   its index
  hash    FNV-1a, 64 bits, over the positions of all queries in order, each query's ascending, as
          little-endian 32-bit integers
  sets    {query: positions} of some queries
  margin  smallest lead of the last selected key over the first left out, over the largest
          |score| of the query; exact ties apart
  ties    queries whose last selected key ties exactly with the first left out
"""
import contextlib
import copy
import os
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, DeepseekV32Config, DeepseekV32ForCausalLM,
                          DeepseekV3Config, DeepseekV3ForCausalLM, GlmMoeDsaConfig,
                          GlmMoeDsaForCausalLM)

import make_model_fixtures as common

MARGIN = 1e-4
MARGIN_FP8 = 1e-3  # room for what flips between two codes of small elements
NOISE_FP8 = 1e-6 * 448  # of an element in units of its scale: no large one is so near to a flip
GREEDY_MARGIN = 0.02
FP8_MAX, BLOCK = 448.0, 128
SAMPLED_QUERIES = (0, 15, 16, 17, 40, 99, 150)
YARN = dict(factor=40, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0,
            original_max_position_embeddings=4096)
SHAPE = dict(vocab_size=256, hidden_size=64, intermediate_size=144, moe_intermediate_size=24,
             num_hidden_layers=4, first_k_dense_replace=2, num_attention_heads=4,
             num_key_value_heads=4, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1,
             n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5,
             q_lora_rank=48, kv_lora_rank=32, qk_nope_head_dim=24, qk_rope_head_dim=16,
             v_head_dim=40, max_position_embeddings=163840, attention_dropout=0.0,
             bos_token_id=1, eos_token_id=2)
INDEX = dict(index_topk=16, index_n_heads=4, index_head_dim=32)


class Watch:
    """While it watches, ties of top-k go to the lower position, and each choice is recorded. With
    fp8, index queries and keys are rounded as DeepSeek rounds them."""

    def __init__(self, model, fp8=False):
        self.fp8 = fp8
        self.indexers = {i: layer.self_attn.indexer for i, layer in enumerate(model.model.layers)
                         if getattr(layer.self_attn, "indexer", None) is not None}
        self.gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
        self.layer = None

    def __enter__(self):
        self.queries = {i: [] for i in self.indexers}  # per layer, per query: positions, margin
        self.margins = []  # (absolute position, margin) of every choice that is no exact tie
        with contextlib.ExitStack() as undo:
            for i, indexer in self.indexers.items():
                undo.callback(indexer.register_forward_pre_hook(self.start_of(i)).remove)
                undo.callback(indexer.register_forward_hook(self.stop).remove)
            for gate in self.gates:
                undo.callback(gate.register_forward_hook(self.route).remove)
            for owner, name, new in ((torch, "matmul", self.matmul(torch.matmul)),
                                     (torch.Tensor, "topk", self.topk(torch.Tensor.topk)),
                                     (torch.nn.functional, "relu",
                                      self.relu(torch.nn.functional.relu))):
                undo.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, new)
            self.undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self.undo.close()

    def start_of(self, layer):
        def start(*_):
            self.layer, self.rounds = layer, self.fp8
        return start

    def stop(self, *_):
        self.layer = None

    def matmul(self, plain):
        def matmul(query, key, *rest, **more):
            if self.layer is None or not self.rounds:
                return plain(query, key, *rest, **more)
            self.rounds = False  # the product with the head weights, which comes next, stays
            query = self.round(query, 1)
            key = self.round(key.transpose(-1, -2), 2).transpose(-1, -2)
            return plain(query, key, *rest, **more)
        return matmul

    def round(self, x, token_axis):
        """x [.., dim] after the Hadamard transform, as fp8 times its scale."""
        y, half = x.double(), 1
        while half < x.shape[-1]:
            pair = y.unflatten(-1, (-1, 2, half))
            y = torch.stack((pair[..., 0, :] + pair[..., 1, :], pair[..., 0, :] - pair[..., 1, :]),
                            dim=-2).flatten(-3)
            half *= 2
        y = y * x.shape[-1] ** -0.5
        scale = (y.abs().amax(-1, keepdim=True).clamp(min=1e-4) / FP8_MAX).log2().ceil().exp2()
        y = y / scale
        code = y.float().clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).double()
        step = (y.abs().clamp(min=2.0 ** -6).log2().floor() - 3).exp2()
        near = (step >= 1) & (((y - code).abs() - step / 2).abs() < NOISE_FP8)
        for t in near.movedim(token_axis, 0).flatten(1).any(1).nonzero().flatten().tolist():
            self.margins.append((t, 0.0, self.layer, True))
        return (code * scale).to(x.dtype)

    def relu(self, plain):
        def relu(x, *rest, **more):
            if self.layer is not None:
                self.active = x[0].double()  # [query, head, key]
            return plain(x, *rest, **more)
        return relu

    def topk(self, plain):
        def topk(scores, k, *rest, **more):
            if self.layer is None:
                return plain(scores, k, *rest, **more)
            order = torch.sort(scores, dim=-1, descending=True, stable=True)
            rows, values = order.indices[0], order.values[0].double()
            first = scores.shape[-1] - scores.shape[-2]
            for t in range(rows.shape[0]):
                seen = first + t + 1
                self.queries[self.layer].append(sorted(rows[t, :min(k, seen)].tolist()))
                if seen > k:
                    self.margins.append((first + t, *self.lead(values[t, :seen], k, t)))
            return torch.return_types.topk((order.values[..., :k], order.indices[..., :k]))
        return topk

    def lead(self, values, k, t):
        """(margin, layer, tie) of one query's choice."""
        gap = float(values[k - 1] - values[k]) / float(values.abs().max())
        if gap == 0.0 and float(values[k]) == 0.0:
            # A plateau of zeros: no head of a zero key may come near to being active.
            best = self.active[t, :, :values.shape[0]].amax(0)
            distance = best[best <= 0].abs().min() / self.active[t].abs().max()
            return float(distance), self.layer, True  # with fp8, of rounded products
        return gap, self.layer, False

    def route(self, gate, _, result):
        logits, _, chosen = result
        score = logits.double().sigmoid() + gate.e_score_correction_bias.double()
        group = score.view(len(score), gate.num_group, -1).topk(2, dim=-1)[0].sum(-1)
        groups = group.sort(dim=-1, descending=True)
        margin = torch.full_like(group[:, 0], torch.inf)
        if gate.topk_group < gate.num_group:
            margin = groups.values[:, gate.topk_group - 1] - groups.values[:, gate.topk_group]
        allowed = torch.zeros_like(group).scatter(1, groups.indices[:, :gate.topk_group], 1)
        allowed = allowed.repeat_interleave(gate.num_experts // gate.num_group, 1)
        best = score.masked_fill(allowed == 0, -torch.inf).sort(dim=-1, descending=True)
        expected = best.indices[:, :gate.top_k].sort().values
        assert torch.equal(expected, chosen.sort().values)
        inside = best.values[:, gate.top_k - 1] - best.values[:, gate.top_k]
        for t, value in enumerate(torch.minimum(margin, inside).tolist()):
            self.margins.append((t, value, None, False))


def run(model, ids, fp8=False):
    with Watch(model, fp8) as watch, torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    return watch


def close_choices(watch):
    least = MARGIN_FP8 if watch.fp8 else MARGIN
    return [m[0] for m in watch.margins if m[1] < least]


def text(model, n, generator, fp8=False):
    """n tokens none of whose choices is close: the first that brings one is drawn again."""
    ids = torch.randint(3, model.config.vocab_size, (n,), generator=generator).tolist()
    while close := close_choices(run(model, ids, fp8)):
        ids[min(close)] = int(torch.randint(3, model.config.vocab_size, (1,), generator=generator))
    return ids


def greedy(model, generator, fp8):
    """A prompt whose continuation has no close choice, and that continuation."""
    while True:
        prompt = text(model, common.N_PROMPT, generator, fp8)
        with Watch(model, fp8):
            result = common.greedy(model, prompt, common.N_GREEDY)
        close = close_choices(run(model, result["prompt"] + result["token"], fp8))
        if min(result["margin"]) > GREEDY_MARGIN and not close:
            return result


def fnv1a(positions):
    value = 0xcbf29ce484222325
    for byte in b"".join(p.to_bytes(4, "little") for row in positions for p in row):
        value = (value ^ byte) * 0x100000001b3 % 2**64
    return f"{value:016x}"


def selection(watch):
    out = []
    for layer, rows in watch.queries.items():
        margins = [m for m in watch.margins if m[2] == layer]
        out.append({"layer": layer, "hash": fnv1a(rows),
                    "sets": {t: rows[t] for t in SAMPLED_QUERIES},
                    "margin": float(f"{min(m[1] for m in margins if not m[3]):.3g}"),
                    "ties": sum(m[3] for m in margins)})
    return out


def reference(model, seed, fp8=False):
    generator = torch.Generator().manual_seed(seed + 1)
    long = text(model, common.N_LONG, generator, fp8)
    short = text(model, common.N_SHORT, generator, fp8)
    cases = []
    for name, ids in (("long", long), ("short", short), ("one", long[:1])):
        with Watch(model, fp8):
            logprob, last = common.log_probabilities(model, ids)
        cases.append({"name": name, "token": ids, "logprob": logprob, "last_logits": last})
    out = {"cases": cases, "greedy": [greedy(model, generator, fp8)]}
    if selected := selection(run(model, long, fp8)):
        out["selection"] = selected
    return out


def build(kind, config, seed):
    model = kind(config).double().eval()
    common.random_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("q_b_proj.weight"):
            parameter.data *= 0.5  # so that a query's weight lies on several of its keys
    for name, buffer in sorted(model.named_buffers()):
        if name.endswith("e_score_correction_bias"):
            bias = 0.2 * torch.randn(buffer.shape, generator=generator, dtype=torch.float64)
            buffer.copy_(bias.to(torch.bfloat16))
    return prepared(model)


def prepared(model):
    model.set_experts_implementation("eager")  # the grouped products refuse float64
    model.set_attn_implementation("eager")
    return model


def published(model):
    """The tensors under the names of published checkpoints, one per expert, in bf16."""
    with tempfile.TemporaryDirectory() as folder:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
        tensors = load_file(f"{folder}/model.safetensors")
    return {name: tensor.float() if name.endswith("e_score_correction_bias") else tensor
            for name, tensor in sorted(tensors.items())}


def next_token_layer(n_hidden, index, seed):
    """Some tensors of a layer that predicts a further token, which a reader has to pass over."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"enorm.weight": (n_hidden,), "hnorm.weight": (n_hidden,),
              "eh_proj.weight": (n_hidden, 2 * n_hidden), "shared_head.norm.weight": (n_hidden,)}
    return {f"model.layers.{index}.{name}":
            torch.randn(shape, generator=generator).to(torch.bfloat16)
            for name, shape in shapes.items()}


def quantise(tensors):
    """(stored, values): fp8 with fp32 scales of 128 x 128 blocks where DeepSeek stores those."""
    keep = ("embed_tokens.weight", "lm_head.weight", "norm.weight", "mlp.gate.weight",
            "weights_proj.weight", "k_norm.weight", "eh_proj.weight")
    stored, values = {}, {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or name.endswith(keep):
            stored[name], values[name] = tensor, tensor.double()
            continue
        rows, columns = (-(-n // BLOCK) for n in tensor.shape)
        scale = torch.empty(rows, columns, dtype=torch.float32)
        small, value = torch.empty_like(tensor, dtype=torch.float8_e4m3fn), tensor.double()
        for r in range(rows):
            for c in range(columns):
                at = (slice(r * BLOCK, (r + 1) * BLOCK), slice(c * BLOCK, (c + 1) * BLOCK))
                scale[r, c] = tensor[at].float().abs().max() / FP8_MAX
                small[at] = (tensor[at].float() / scale[r, c]).to(torch.float8_e4m3fn)
                value[at] = small[at].double() * scale[r, c].double()
        stored[name], stored[f"{name}_scale_inv"], values[name] = small, scale, value
    return stored, values


def model_of(tensors, config):
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
        common.write_json(f"{folder}/config.json", config)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    return prepared(model.eval())


def dialect_of_deepseek(config):
    """config.json as DeepSeek publishes it: rope_scaling, torch_dtype, no list of layers."""
    out = {k: v for k, v in config.items()
           if k not in ("layer_types", "mlp_layer_types", "rope_parameters", "dtype", "head_dim",
                        "qk_head_dim", "mlp_bias", "output_router_logits", "tie_word_embeddings")}
    out.update(rope_theta=10000, rope_scaling=dict(YARN, type="yarn"), torch_dtype="bfloat16",
               moe_layer_freq=1, num_nextn_predict_layers=1, scoring_func="sigmoid",
               topk_method="noaux_tc", tie_word_embeddings=False, transformers_version="4.44.2")
    return out


def write(folder, model, tensors, config, seed):
    os.makedirs(folder, exist_ok=True)
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    common.write_json(f"{folder}/config.json", config, 2)
    out = reference(model, seed)
    common.write_json(f"{folder}/reference.json", out)
    print(folder, [(s["layer"], s["margin"], s["ties"]) for s in out.get("selection", [])],
          min(out["greedy"][0]["margin"]))


def make_deepseek_v32(root):
    seed = 11
    shape = dict(SHAPE, **INDEX)
    shape["q_lora_rank"] = 136  # two blocks of 128, the second ragged, both ways in q_b_proj
    rope = dict(YARN, rope_type="yarn", rope_theta=10000.0)
    model = build(DeepseekV32ForCausalLM, DeepseekV32Config(**shape, rope_parameters=rope), seed)
    tensors = published(model)
    plain = common.config_of(model, "bfloat16")
    config = dialect_of_deepseek(plain)
    extra = next_token_layer(shape["hidden_size"], shape["num_hidden_layers"], seed)
    folder = f"{root}/deepseek_v32_tiny"
    write(folder, model, tensors | extra, config, seed)
    common.write_json(f"{folder}/reference-index-fp8.json", reference(model, seed, True))
    stored, values = quantise(tensors)
    config["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3",
                                     "quant_method": "fp8", "scale_fmt": "ue8m0",
                                     "weight_block_size": [BLOCK, BLOCK]}
    write(f"{root}/deepseek_v32_fp8_tiny", model_of(values, plain), stored, config, seed)


def make_deepseek_v3(root):
    seed = 12
    rope = dict(YARN, rope_type="yarn", rope_theta=10000.0)
    model = build(DeepseekV3ForCausalLM, DeepseekV3Config(**SHAPE, rope_parameters=rope), seed)
    write(f"{root}/deepseek_v3_tiny", model, published(model),
          common.config_of(model, "bfloat16"), seed)


def make_glm_moe_dsa(root):
    seed = 13
    shape = dict(SHAPE, **INDEX)
    shape.update(n_group=1, topk_group=1, rms_norm_eps=1e-5, max_position_embeddings=202752,
                 indexer_types=["full", "shared", "full", "shared"],
                 rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})
    model = build(GlmMoeDsaForCausalLM, GlmMoeDsaConfig(**shape), seed)
    config = common.config_of(model, "bfloat16")
    config.update(indexer_rope_interleave=True, scoring_func="sigmoid", topk_method="noaux_tc",
                  moe_layer_freq=1)
    write(f"{root}/glm_moe_dsa_tiny", model, published(model), config, seed)


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures"
    make_deepseek_v32(root)
    make_deepseek_v3(root)
    make_glm_moe_dsa(root)


if __name__ == "__main__":
    main()
