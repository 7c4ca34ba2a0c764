#!/usr/bin/env python3
"""Makes the tests/fixtures/tiny-* of encoders and of decoders whose layers have windows.

Needs torch, transformers and gguf (made with 2.15, 5.23 and 0.19). Tests read the results only.
  python3 scripts/make_window_fixtures.py [tests/fixtures]
References are computed in float64 from weights that bf16 and fp16 hold exactly. Encoders: every
token's last state, alone and with documents packed behind one another. Each folder has another of
the dialects in which such checkpoints are published.
"""
import json
import os
import sys

import gguf
import numpy
import torch
from safetensors.torch import save_file
from transformers import (BertConfig, BertForMaskedLM, Gemma3ForCausalLM, Gemma3TextConfig,
                          Gemma3TextModel, MistralConfig, MistralForCausalLM, ModernBertConfig,
                          ModernBertForMaskedLM, ModernBertModel, Qwen3Config, Qwen3ForCausalLM,
                          XLMRobertaConfig, XLMRobertaModel)

from make_model_fixtures import (N_GREEDY, config_of, greedy, log_probabilities, rounded,
                                 write_json)

WINDOW = 16
SHAPE = dict(vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
             num_attention_heads=2, max_position_embeddings=160)
DECODER = dict(SHAPE, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
               max_position_embeddings=4096, bos_token_id=1, eos_token_id=2,
               sliding_window=WINDOW)


def random_weights(model, seed, norm_mean=1.0):
    """Attention far from uniform, states of every layer far from each other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            x = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name.lower().endswith("norm.weight"):
                x = norm_mean + 0.2 * x
            elif name.endswith("bias"):
                x = 0.3 * x
            elif "embed" in name:
                x = 0.4 * x
            else:
                x = 1.5 * x / parameter.shape[-1] ** 0.5
            parameter.copy_(x.to(torch.bfloat16).to(torch.float16).to(torch.float64))
    return model


def random_tokens(model, seed, n):
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randint(3, model.config.vocab_size, (n,), generator=generator).tolist()


def states(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0].double()


def encoder_reference(model, seed):
    """model: without heads."""
    long = random_tokens(model, seed, 113)
    cases = []
    for n in (1, WINDOW, WINDOW + 1, 37, 113):
        cases.append({"name": f"{n} tokens", "token": long[:n],
                      "state": rounded(states(model, long[:n]).flatten().tolist())})
    ends = [7, 8, 8 + WINDOW, 73]
    parts = [long[a:b] for a, b in zip([0] + ends, ends)]
    packed = torch.cat([states(model, part) for part in parts])
    cases.append({"name": "packed", "token": long[:ends[-1]], "document_end": ends,
                  "state": rounded(packed.flatten().tolist())})
    return {"cases": cases, "greedy": []}


def decoder_reference(model, seed):
    long = random_tokens(model, seed, 113)
    cases = []
    for n in (1, WINDOW, WINDOW + 1, 37, 113):
        logprob, last = log_probabilities(model, long[:n])
        cases.append({"name": f"{n} tokens", "token": long[:n], "logprob": logprob,
                      "last_logits": last})
    return {"cases": cases, "greedy": [greedy(model, long[:23], N_GREEDY),
                                       greedy(model, long[:5], 2 * N_GREEDY)]}


class Masked:
    """The model as `attention.window` and `attention.sinks` change it: full layers see a window and
    the first tokens, others their own window."""

    def __init__(self, model, window, sinks):
        self.model, self.config, self.window, self.sinks = model, model.config, window, sinks

    def __call__(self, ids, **_):
        n = ids.shape[1]
        back = torch.arange(n)[:, None] - torch.arange(n)[None, :]
        full = (back >= 0) & ((back < self.window) | (torch.arange(n)[None, :] < self.sinks))
        windowed = (back >= 0) & (back < WINDOW)
        masks = {"full_attention": full[None, None], "sliding_attention": windowed[None, None]}
        return self.model(ids, attention_mask=masks, use_cache=False)


def masked_reference(model, seed, window, sinks):
    masked = Masked(model, window, sinks)
    long = random_tokens(model, seed, 113)
    cases = []
    for n in (1, window, window + 1, window + sinks + 1, 113):
        logprob, last = log_probabilities(masked, long[:n])
        cases.append({"name": f"{n} tokens", "token": long[:n], "logprob": logprob,
                      "last_logits": last})
    ids, margins = long[:window - 2], []
    for _ in range(N_GREEDY):
        with torch.no_grad():
            best = torch.topk(masked(torch.tensor([ids])).logits[0, -1].double(), 2)
        ids = ids + [int(best.indices[0])]
        margins.append(float(best.values[0] - best.values[1]))
    return {"cases": cases, "greedy": [{"prompt": ids[:window - 2], "token": ids[window - 2:],
                                        "margin": rounded(margins)}]}


def save(folder, model, dtype, config, rename=lambda name: name, drop=()):
    os.makedirs(folder, exist_ok=True)
    tensors = {rename(k): v.to(dtype).contiguous() for k, v in model.state_dict().items()
               if k not in drop and "inv_freq" not in k and v.dim() > 0}
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    write_json(f"{folder}/config.json", config, 2)


def make_modernbert(root):
    shape = dict(SHAPE, global_attn_every_n_layers=3, local_attention=WINDOW, norm_eps=1e-5,
                 pad_token_id=0, cls_token_id=1, sep_token_id=2, eos_token_id=2, bos_token_id=1)
    model = ModernBertForMaskedLM(ModernBertConfig(**shape)).double().eval()
    random_weights(model, 11)
    config = config_of(model, "float16")
    for key in ("layer_types", "rope_parameters"):
        del config[key]
    config.update(global_attn_every_n_layers=3, global_rope_theta=160000.0,
                  local_rope_theta=10000.0, transformers_version="4.48.0")
    save(f"{root}/tiny-modernbert", model, torch.float16, config, drop=("decoder.weight",))
    write_json(f"{root}/tiny-modernbert/reference.json", encoder_reference(model.model, 11))

    shape.update(attention_bias=True, mlp_bias=True, norm_bias=True,
                 layer_types=["sliding_attention", "full_attention"] * 2,
                 rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 8000.0},
                                  "sliding_attention": {"rope_type": "default",
                                                        "rope_theta": 500.0}})
    model = ModernBertModel(ModernBertConfig(**shape)).double().eval()
    random_weights(model, 12)
    save(f"{root}/tiny-modernbert-bias", model, torch.bfloat16, config_of(model, "bfloat16"))
    write_json(f"{root}/tiny-modernbert-bias/reference.json", encoder_reference(model, 12))


def make_bert(root):
    model = BertForMaskedLM(BertConfig(**SHAPE)).double().eval()
    random_weights(model, 13)
    save(f"{root}/tiny-bert", model, torch.float16, config_of(model, "float16"),
         rename=lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma")
         .replace("LayerNorm.bias", "LayerNorm.beta"), drop=("cls.predictions.decoder.weight",))
    write_json(f"{root}/tiny-bert/reference.json", encoder_reference(model.bert, 13))
    shape = dict(SHAPE, max_position_embeddings=162, type_vocab_size=1, layer_norm_eps=1e-5)
    model = XLMRobertaModel(XLMRobertaConfig(**shape)).double().eval()
    random_weights(model, 14)
    save(f"{root}/tiny-xlm-roberta", model, torch.bfloat16, config_of(model, "bfloat16"))
    write_json(f"{root}/tiny-xlm-roberta/reference.json", encoder_reference(model, 14))


def write_gguf(path, model):
    config = model.config
    rope = config.rope_parameters["full_attention"]
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_float32("gemma3.attention.scale", config.query_pre_attn_scalar ** -0.5)
    writer.add_array("gemma3.attention.sliding_window_pattern",
                     [kind == "sliding_attention" for kind in config.layer_types])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, value in sorted(model.state_dict().items()):
        if name == "lm_head.weight" or "inv_freq" in name or value.dim() == 0:
            continue
        norm = name.endswith("norm.weight")
        value = (value + 1).float() if norm else value.half()
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)) ,
                          numpy.ascontiguousarray(value.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_gemma3(root):
    shape = dict(DECODER, query_pre_attn_scalar=24, pad_token_id=0, tie_word_embeddings=True,
                 layer_types=["sliding_attention", "sliding_attention", "full_attention",
                              "sliding_attention"],
                 rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0,
                                                     "rope_theta": 1000000.0},
                                  "sliding_attention": {"rope_type": "default",
                                                        "rope_theta": 10000.0}})
    model = Gemma3ForCausalLM(Gemma3TextConfig(**shape)).double().eval()
    random_weights(model, 15, norm_mean=0.0)
    # As Gemma 3 with images is published: the text model is a part of it.
    text = config_of(model, "bfloat16")
    for key in ("architectures", "layer_types", "rope_parameters", "eos_token_id"):
        text.pop(key, None)
    text.update(sliding_window_pattern=3, rope_local_base_freq=10000.0, rope_theta=1000000.0,
                rope_scaling={"rope_type": "linear", "factor": 8.0})
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
              "eos_token_id": [2, 106], "text_config": text, "vision_config": {},
              "torch_dtype": "bfloat16", "transformers_version": "4.50.0"}
    save(f"{root}/tiny-gemma3", model, torch.bfloat16, config,
         rename=lambda name: "language_model." + name, drop=("lm_head.weight",))
    write_gguf(f"{root}/tiny-gemma3/model.gguf", model)
    write_json(f"{root}/tiny-gemma3/reference.json", decoder_reference(model, 15))

    model = Gemma3TextModel(Gemma3TextConfig(**shape, use_bidirectional_attention=True))
    random_weights(model.double().eval(), 16, norm_mean=0.0)
    save(f"{root}/tiny-embeddinggemma", model, torch.float16, config_of(model, "float16"))
    write_json(f"{root}/tiny-embeddinggemma/reference.json", encoder_reference(model, 16))


def make_decoder(root, name, model, seed):
    random_weights(model.double().eval(), seed)
    save(f"{root}/{name}", model, torch.bfloat16, config_of(model, "bfloat16"))
    write_json(f"{root}/{name}/reference.json", decoder_reference(model, seed))
    return model


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures"
    make_modernbert(root)
    make_bert(root)
    make_gemma3(root)
    make_decoder(root, "tiny-mistral-window", MistralForCausalLM(MistralConfig(**DECODER)), 17)
    qwen3 = dict(DECODER, use_sliding_window=True, max_window_layers=2)
    model = make_decoder(root, "tiny-qwen3-window", Qwen3ForCausalLM(Qwen3Config(**qwen3)), 18)
    write_json(f"{root}/tiny-qwen3-window/reference-sinks.json", masked_reference(model, 18, 24, 4))


if __name__ == "__main__":
    main()
