"""Gemma (Gemma Team 2024): 1 + w norms, embeddings times sqrt(d), heads wider than the model has room for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Embed, Rotate, Scores
from twinlens.spec import Shape, Step

shape = partial(rows.llama_shape, head_width=256, kv_heads=16)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    c.ignore("a name of hidden_act that old checkpoints have beside it", "hidden_activation")
    c.require("use_bidirectional_attention", False, "a causal model has none")
    norm = Norm.wide(c.get("rms_norm_eps", default=1e-6), offset=1.0)
    c.understand("hidden_act", "gelu", "gelu_pytorch_tanh")  # huggingface/transformers#29402
    act = rows.activation(c, "hidden_act", default="gelu_pytorch_tanh")[0]
    bias = c.get("attention_bias", default=False)
    table = rotary(c, shape.head_width, dtype)

    yield rows.embed("model.embed_tokens", Embed(sqrt(shape.d_model)))
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b in rows.blocks(shape, "model.layers"):
        scores = Scores(sqrt(shape.head_width))
        attention = b.rotary_attention("self_attn", Rotate(width=table.width), scores, bias=bias)
        yield from b.in_sequence(stream, norm, attention, b.gated_mlp("mlp", act))
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=True)
