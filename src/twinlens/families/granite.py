"""Granite (IBM 2024): Llama with a factor on embeddings, scores, branches and logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Embed, Normalize, Rotate, Scores, Unembed
from twinlens.spec import Shape, Step

shape = rows.llama_shape


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    norm = Norm(Normalize(eps=c.get("rms_norm_eps", default=1e-6)))
    act = rows.activation(c, "hidden_act", default="silu")[0]
    bias, mlp_bias = c.get("attention_bias", default=False), c.get("mlp_bias", default=False)
    scores, factor = (
        Scores(1.0 / c.get("attention_multiplier", default=1.0)),
        float(c.get("residual_multiplier", default=1.0)),
    )
    embed = Embed(float(c.get("embedding_multiplier", default=1.0)), constant="exact")
    unembed = Unembed(factor=1.0 / c.get("logits_scaling", default=1.0), factored="divide")
    table = rotary(c, shape.head_width, dtype)

    yield rows.embed("model.embed_tokens", embed)
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b in rows.blocks(shape, "model.layers"):
        attention = b.rotary_attention("self_attn", Rotate(width=table.width), scores, bias=bias)
        yield from b.in_sequence(stream, norm, attention, b.gated_mlp("mlp", act, bias=mlp_bias), factor=factor)
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=False, op=unembed)
