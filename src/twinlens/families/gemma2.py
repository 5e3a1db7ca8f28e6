"""Gemma 2 (Gemma Team 2024): 1 + w norms around each branch, caps, windows in every other layer."""

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
    windows = rows.windows(c, shape.layers, ("sliding_attention", "full_attention"), 4096)
    scale = sqrt(c.get("query_pre_attn_scalar", default=256.0))
    cap, last = c.optional("attn_logit_softcapping", 50.0), c.optional("final_logit_softcapping", 30.0)
    table = rotary(c, shape.head_width, dtype)

    yield rows.embed("model.embed_tokens", Embed(sqrt(shape.d_model)))  # Gemma report, section 2
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b, window in zip(rows.blocks(shape, "model.layers"), windows, strict=True):
        scores = Scores(scale, cap, window)
        attention = b.rotary_attention("self_attn", Rotate(width=table.width), scores, bias=bias)
        yield from b.in_sequence(stream, norm, attention, b.gated_mlp("mlp", act), norms=rows.SANDWICH)
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=True, op=Unembed(softcap=last))
