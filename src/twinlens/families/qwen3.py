"""Qwen 3 (Yang et al. 2025): norms of queries and keys head by head, and no biases."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Normalize, Rotate, Scores
from twinlens.spec import Shape, Step

shape = partial(rows.llama_shape, head_width=128, kv_heads=32)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    norm = Norm(Normalize(eps=c.get("rms_norm_eps", default=1e-6)))
    act, bias = rows.activation(c, "hidden_act", default="silu")[0], c.get("attention_bias", default=False)
    windows = rows.upper_windows(c, shape.layers)
    table = rotary(c, shape.head_width, dtype)

    yield rows.embed("model.embed_tokens")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b, window in zip(rows.blocks(shape, "model.layers"), windows, strict=True):
        scores = Scores(sqrt(shape.head_width), window=window)
        attention = b.rotary_attention("self_attn", Rotate(width=table.width), scores, bias=bias, head_norm=norm)
        yield from b.in_sequence(stream, norm, attention, b.gated_mlp("mlp", act))
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=False)
