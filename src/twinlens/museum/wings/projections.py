"""Biases and fused projections."""

from __future__ import annotations

import torch
from torch import nn

from twinlens.museum.exhibit import Model, Want, Wing
from twinlens.museum.hands import attentions, layers

WING = Wing("biases and fused projections")
exhibit = WING.exhibit
ALL3 = (0, 1, 2)


def _no_bias(m: Model, *names: str) -> None:
    for a in attentions(m):
        for name in names:
            getattr(a, name).bias.zero_()


@exhibit(
    "qwen2-qkv-bias-dropped",
    "qwen2",
    Want("bias", layers=ALL3, at=("attn",)),
    source="sbryngelson/ANEForge#253; ServiceNow/Fast-LLM#398",
)
def _(m: Model) -> None:
    """The biases of queries, keys and values are left out."""
    _no_bias(m, "q_proj", "k_proj", "v_proj")


@exhibit("low-rank-kv-bias-dropped", "qwen2", Want("bias", layers=ALL3, at=("attn",)), source="shadowpa0327/Palu#8")
def _(m: Model) -> None:
    """The biases of keys and values are left out."""
    _no_bias(m, "k_proj", "v_proj")


@exhibit(
    "key-bias-dropped-with-rope", "qwen2", Want("bias", layers=ALL3, at=("attn",)), source="sbryngelson/ANEForge#253"
)
def _(m: Model) -> None:
    """The bias of the keys is left out; rotation makes it matter."""
    _no_bias(m, "k_proj")


@exhibit("key-bias-dropped-no-rope", "opt", source="keras-team/keras-hub#801")
def _(m: Model) -> None:
    """The bias of the keys is left out; without rotation it adds a constant to all scores of a row."""
    _no_bias(m, "k_proj")


@exhibit(
    "llama-mlp-bias-not-read",
    "llama",
    Want("bias", layers=ALL3, at=("mlp",)),
    build={"mlp_bias": True},
    source="NVIDIA/TensorRT-LLM#3476; IBM/text-generation-inference#85",
)
def _(m: Model) -> None:
    """`mlp_bias` is not read: the MLP has no biases."""
    for x in layers(m):
        x.mlp.gate_proj.bias = x.mlp.up_proj.bias = x.mlp.down_proj.bias = None


@exhibit("gptq-bias-randomly-initialised", "llama", Want("bias", layers=ALL3), source="huggingface/optimum#1827")
def _(m: Model) -> None:
    """Products without a bias get one that nobody initialised."""
    for a in attentions(m):
        a.o_proj.bias = nn.Parameter(0.02 * torch.randn(48).to(a.o_proj.weight.dtype))


@exhibit(
    "starcoder2-output-bias-dropped",
    "starcoder2",
    Want("bias", layers=ALL3),
    source="shadowpa0327/Palu#8",
    like="low-rank-kv-bias-dropped",
)
def _(m: Model) -> None:
    """The biases of the output products are not converted."""
    for x in layers(m):
        x.self_attn.o_proj.bias.zero_()
        x.mlp.c_proj.bias.zero_()


@exhibit(
    "neox-qkv-not-interleaved-per-head",
    "gpt_neox",
    Want(("qkv.order", "weight", "bias"), layers=ALL3),
    source="elixir-nx/bumblebee#204",
)
def _(m: Model) -> None:
    """Rows of the fused product stand by head in the checkpoint, and are read as thirds."""
    for a in attentions(m):
        for t in (a.query_key_value.weight, a.query_key_value.bias):
            t.copy_(t.view(3, 4, 12, -1).transpose(0, 1).reshape(t.shape).clone())


@exhibit(
    "falcon-new-arch-qkv-plain-split",
    "falcon, 40b",
    Want(("qkv.order", "weight", "bias"), layers=ALL3),
    source="explosion/curated-transformers#253; explosion/curated-transformers#294",
)
def _(m: Model) -> None:
    """Rows by key/value head, read as all queries, all keys, all values."""
    for a in attentions(m):
        for t in (a.query_key_value.weight, a.query_key_value.bias):
            if t is None:
                continue
            q, k, v = t.view(96, -1).split([48, 24, 24])
            groups = torch.cat([q.view(2, 2, 12, -1), k.view(2, 1, 12, -1), v.view(2, 1, 12, -1)], dim=1)
            t.copy_(groups.reshape(t.shape).clone())


@exhibit(
    "gqa-fused-qkv-equal-chunks",
    "phi3",
    Want(("qkv.order", "weight"), layers=ALL3),
    source="vllm-project/vllm#13686; vllm-project/vllm#13687",
)
def _(m: Model) -> None:
    """Keys and values are cut out of the fused product in the wrong order."""
    for a in attentions(m):
        w = a.qkv_proj.weight
        w.copy_(torch.cat((w[:48], w[72:], w[48:72])).clone())


@exhibit(
    "bloom-qkv-order",
    "gpt2",
    Want(("qkv.order", "weight", "bias"), layers=ALL3),
    source="huggingface/transformers#17474",
)
def _(m: Model) -> None:
    """The thirds of the fused product are keys, queries, values."""
    for a in attentions(m):
        a.c_attn.register_forward_hook(lambda mod, x, y: torch.cat([y.chunk(3, -1)[i] for i in (1, 0, 2)], -1))
