"""Mixtral (Jiang et al. 2024): Mistral with eight experts for an MLP, two of which a token is given to."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Experts, Normalize, Rotate, RouterWeights, Scores
from twinlens.spec import Shape, Step

shape = partial(rows.llama_shape, kv_heads=8, experts=8)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout", "router_jitter_noise")
    c.ignore("a loss of training", "output_router_logits", "router_aux_loss_coef")
    norm = Norm(Normalize(eps=c.get("rms_norm_eps", default=1e-5)))
    act = rows.activation(c, "hidden_act", default="silu")[0]
    experts = Experts(act, formula="kernel", kernel=rows.expert_kernel(c))
    select = rows.select(c, shape, 2)
    scores = Scores(sqrt(shape.head_width), window=c.optional("sliding_window", None, like=1))
    table = rotary(c, shape.head_width, dtype, theta=1e6)

    yield rows.embed("model.embed_tokens")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b in rows.blocks(shape, "model.layers"):
        attention = b.rotary_attention("self_attn", Rotate(width=table.width), scores)
        routed = b.router("mlp.gate", select, RouterWeights(norm="sum", out=torch.float32))
        yield from b.in_sequence(stream, norm, attention, [*routed, b.experts("mlp.experts", experts)])
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=False)
