"""Llama (Touvron et al. 2023), as transformers runs it: grouped heads, rotary, gated MLP."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.ops import (
    Embed,
    Normalize,
    NormWeight,
    Scores,
    Unembed,
)
from twinlens.sites import block
from twinlens.spec import Shape, Step, Weight


def shape(c: Config) -> Shape:
    """Sizes that the weights fix."""
    heads = c.get("num_attention_heads")
    width = c.get("hidden_size")
    c.ignore("fixed by the weights", "intermediate_size")
    c.ignore("rotary positions have no table", "max_position_embeddings")
    return Shape(
        layers=c.get("num_hidden_layers"),
        d_model=width,
        heads=heads,
        kv_heads=c.get("num_key_value_heads", default=heads),
        head_width=c.get("head_dim", default=width // heads),
        vocabulary=c.get("vocab_size"),
    )


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    norm = Normalize(eps=c.get("rms_norm_eps", default=1e-6))
    act, _ = rows.activation(c, "hidden_act", default="silu")
    bias, mlp_bias = c.get("attention_bias", default=False), c.get("mlp_bias", default=False)
    tied = c.get("tie_word_embeddings", default=False)
    e = shape.head_width

    yield Step("hook_embed", Embed(), ("tokens",), (("W", Weight("model.embed_tokens.weight")),))
    yield from rows.rotary_tables(rows.rotary(c, e, dtype))
    stream = "hook_embed"
    for i in range(shape.layers):
        name, at = f"model.layers.{i}", block(i, "")[:-1]
        yield rows.copy(f"{at}.hook_resid_pre", stream)
        yield from rows.norm(
            f"{at}.ln1",
            f"{at}.hook_resid_pre",
            norm,
            NormWeight(),
            (f"{name}.input_layernorm.weight",),
        )
        yield from rows.rotary_attention(i, f"{name}.self_attn", shape, Scores(scale=sqrt(e)), bias=bias)
        yield rows.branch(f"{at}.hook_attn_out", f"{at}.attn.hook_out")
        yield rows.residual(f"{at}.hook_resid_mid", f"{at}.hook_resid_pre", f"{at}.hook_attn_out")
        yield from rows.norm(
            f"{at}.ln2",
            f"{at}.hook_resid_mid",
            norm,
            NormWeight(),
            (f"{name}.post_attention_layernorm.weight",),
        )
        yield from rows.gated_mlp(i, f"{at}.ln2.hook_out", f"{name}.mlp", act, bias=mlp_bias)
        yield rows.branch(f"{at}.hook_mlp_out", f"{at}.mlp.hook_out")
        stream = f"{at}.hook_resid_post"
        yield rows.residual(stream, f"{at}.hook_resid_mid", f"{at}.hook_mlp_out")
    yield from rows.norm("ln_final", stream, norm, NormWeight(), ("model.norm.weight",))
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    yield Step("logits", Unembed(), ("ln_final.hook_out",), (("W", Weight(head)),))
