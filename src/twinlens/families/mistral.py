"""Mistral (Jiang et al. 2023): Llama with a window in every layer."""

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

shape = partial(rows.llama_shape, kv_heads=8)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    norm = Norm(Normalize(eps=c.get("rms_norm_eps", default=1e-6)))
    act = rows.activation(c, "hidden_act", default="silu")[0]
    scores = Scores(sqrt(shape.head_width), window=c.optional("sliding_window", 4096))
    table = rotary(c, shape.head_width, dtype)

    yield rows.embed("model.embed_tokens")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b in rows.blocks(shape, "model.layers"):
        attention = b.rotary_attention("self_attn", Rotate(width=table.width), scores)
        yield from b.in_sequence(stream, norm, attention, b.gated_mlp("mlp", act))
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=False)
