"""GLM-4 of 2025 (Zhipu AI): norms around each branch, half of each head rotated, in pairs side by side."""

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

shape = partial(rows.llama_shape, head_width=128, kv_heads=2)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    norm = Norm(Normalize(eps=c.get("rms_norm_eps", default=1.5625e-7)))
    act, bias = rows.activation(c, "hidden_act", default="silu")[0], c.get("attention_bias", default=True)
    table = rotary(c, shape.head_width, dtype, partial=0.5)

    yield rows.embed("model.embed_tokens")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    norms = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")
    for b in rows.blocks(shape, "model.layers"):
        rotate, scores = Rotate(width=table.width, layout="interleaved"), Scores(sqrt(shape.head_width))
        attention = b.rotary_attention("self_attn", rotate, scores, bias=bias, out_bias=False)
        yield from b.in_sequence(stream, norm, attention, b.gated_mlp("mlp", act, fused="gate_up_proj"), norms=norms)
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=False)
