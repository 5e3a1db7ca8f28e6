"""Qwen 3 with experts (Yang et al. 2025): Qwen 3 whose MLPs are experts, but in layers that say otherwise."""

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

shape = partial(rows.llama_shape, kv_heads=4, experts=128)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    c.ignore("a loss of training", "output_router_logits", "router_aux_loss_coef")
    c.ignore("weights say how wide experts are", "moe_intermediate_size")
    norm = Norm(Normalize(eps=c.get("rms_norm_eps", default=1e-6)))
    act, bias = rows.activation(c, "hidden_act", default="silu")[0], c.get("attention_bias", default=False)
    experts = Experts(act, formula="kernel", kernel=rows.expert_kernel(c))
    select = rows.select(c, shape, 8)
    weigh = RouterWeights(norm="sum" if c.get("norm_topk_prob", default=False) else "none")
    every, dense = c.get("decoder_sparse_step", default=1), c.get("mlp_only_layers", default=[])
    window = c.optional("sliding_window", 4096) if c.get("use_sliding_window", default=False) else None
    c.ignore("no window is in use", "sliding_window")
    scores = Scores(sqrt(shape.head_width), window=window)
    table = rotary(c, shape.head_width, dtype)

    yield rows.embed("model.embed_tokens")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b in rows.blocks(shape, "model.layers"):
        attention = b.rotary_attention("self_attn", Rotate(width=table.width), scores, bias=bias, head_norm=norm)
        is_sparse = b.layer not in dense and (b.layer + 1) % every == 0 and shape.experts
        sparse = [*b.router("mlp.gate", select, weigh), b.experts("mlp.experts", experts)]
        yield from b.in_sequence(stream, norm, attention, sparse if is_sparse else b.gated_mlp("mlp", act))
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=False)
