"""Gemma 3, text (Gemma Team 2025): norms of queries and keys, and a rotary base of its own for local layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Embed, Rotate, Scores, Unembed
from twinlens.spec import Shape, Step

shape = partial(rows.llama_shape, head_width=256, kv_heads=4)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    c.ignore("a repetition of hidden_activation, which is what runs", "hidden_act")
    c.require("use_bidirectional_attention", False, "a causal model has none")
    norm = Norm.wide(c.get("rms_norm_eps", default=1e-6), offset=1.0)
    act = rows.activation(c, "hidden_activation", default="gelu_pytorch_tanh")[0]
    bias = c.get("attention_bias", default=False)
    pattern = c.get("sliding_window_pattern", "_sliding_window_pattern", default=6)
    kinds = ("sliding_attention",) * (pattern - 1) + ("full_attention",)
    windows = rows.windows(c, shape.layers, kinds, 4096)
    scale = sqrt(c.get("query_pre_attn_scalar", default=256.0))
    cap, last = (c.get(f"{of}_logit_softcapping", default=None, like=1.0) for of in ("attn", "final"))
    table = rotary(c, shape.head_width, dtype, theta=1e6, layers="full_attention")
    local = rotary(c, shape.head_width, dtype, theta=1e4, layers="sliding_attention", key="rope_local_base_freq")

    yield rows.embed("model.embed_tokens", Embed(sqrt(shape.d_model)))
    yield from rows.rotary_tables(table)
    yield from rows.rotary_tables(local, "rotary.local")
    stream = "hook_embed"
    for b, window in zip(rows.blocks(shape, "model.layers"), windows, strict=True):
        scores, tables = Scores(scale, cap, window), "rotary" if window is None else "rotary.local"
        attention = b.rotary_attention(
            "self_attn", Rotate(width=table.width), scores, bias=bias, head_norm=norm, tables=tables
        )
        yield from b.in_sequence(stream, norm, attention, b.gated_mlp("mlp", act), norms=rows.SANDWICH)
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=True, op=Unembed(softcap=last))
