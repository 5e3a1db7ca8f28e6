"""Phi-3 (Abdin et al. 2024): fused projections, part of each head rotated, longrope."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Normalize, Part, Rotate, Scores
from twinlens.spec import Shape, Step

shape = rows.llama_shape


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout", "embd_pdrop", "resid_pdrop")
    norm = Norm(Normalize(eps=c.get("rms_norm_eps", default=1e-5)))
    act = rows.activation(c, "hidden_act", default="silu")[0]
    scores = Scores(sqrt(shape.head_width), window=c.optional("sliding_window", None, like=1))
    table = rotary(c, shape.head_width, dtype)

    yield rows.embed("model.embed_tokens")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b in rows.blocks(shape, "model.layers"):
        attention = (
            *b.fused_heads("self_attn.qkv_proj", Part()),
            *b.rotate(Rotate(width=table.width)),
            *b.attend(scores),
            b.output("self_attn.o_proj"),
        )
        yield from b.in_sequence(stream, norm, attention, b.gated_mlp("mlp", act, fused="gate_up_proj"))
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=False)
