"""StarCoder 2 (Lozhkov et al. 2024): layer norms and biases, a plain MLP, rotary, a window in every layer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Activate, Rotate, Scores
from twinlens.spec import Shape, Step

shape = partial(rows.llama_shape, kv_heads=2)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout", "residual_dropout", "embedding_dropout")
    norm = Norm.fused(c.get("norm_epsilon", default=1e-5))
    act = Activate(*rows.activation(c, "hidden_act", default="gelu_pytorch_tanh"))
    bias = c.get("use_bias", default=True)
    scores = Scores(sqrt(shape.head_width), window=c.optional("sliding_window", None, like=1))
    table = rotary(c, shape.head_width, dtype)

    yield rows.embed("model.embed_tokens")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b in rows.blocks(shape, "model.layers"):
        attention = b.rotary_attention("self_attn", Rotate(width=table.width), scores, bias=bias)
        yield from b.in_sequence(stream, norm, attention, b.mlp("mlp.c_fc", "mlp.c_proj", act, bias=bias))
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=True)
