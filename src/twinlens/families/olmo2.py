"""OLMo 2 (OLMo Team 2024): norms after each branch only, and over all queries and all keys at once."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Rotate, Scores
from twinlens.spec import Shape, Step

shape = rows.llama_shape


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    norm = Norm.wide(c.get("rms_norm_eps", default=1e-5))
    heads = Norm(norm.normalize.replace(over="whole"), norm.weight.replace(flat=True))
    act, bias = rows.activation(c, "hidden_act", default="silu")[0], c.get("attention_bias", default=False)
    table = rotary(c, shape.head_width, torch.float32)  # transformers leaves its tables as they are computed

    yield rows.embed("model.embed_tokens")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    norms = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")
    for b in rows.blocks(shape, "model.layers"):
        attention = b.rotary_attention(
            "self_attn", Rotate(width=table.width), Scores(sqrt(shape.head_width)), bias=bias, head_norm=heads,
            reads="hook_resid_pre",
        )  # fmt: skip
        yield from b.in_sequence(stream, norm, attention, b.gated_mlp("mlp", act, reads="hook_resid_mid"), norms=norms)
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=False)
