"""gpt-oss (OpenAI 2025): sinks beside the keys, windows in every other layer, experts with biases and clamped gates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Experts, Rotate, RouterWeights, Scores, Softmax
from twinlens.spec import Shape, Step

shape = partial(rows.llama_shape, head_width=64, kv_heads=8, experts=128)
_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
"""The class's, where the config has none."""


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    c.ignore("a loss of training", "output_router_logits", "router_aux_loss_coef")
    c.require("hidden_act", "silu", "experts have an activation of their own")
    c.ignore("repeats num_experts_per_tok", "experts_per_token")
    c.ignore("repeats original_max_position_embeddings of the rotary part", "initial_context_length")
    norm = Norm.wide(c.get("rms_norm_eps", default=1e-5), out=dtype)
    bias = c.get("attention_bias", default=True)
    kernel = rows.expert_kernel(c)
    experts = Experts(
        "silu", slope=c.get("swiglu_alpha", default=1.702), shift=1.0, limit=c.get("swiglu_limit", default=7.0),
        layout="interleaved", product="matmul", kernel=kernel,
    )  # fmt: skip
    select = rows.select(c, shape, 4, score="none", dtype=None)
    weigh = RouterWeights(over="chosen", dtype=None)
    windows = rows.windows(c, shape.layers, ("sliding_attention", "full_attention"), 128)
    table = rotary(c, shape.head_width, dtype, theta=150000.0, default=_YARN)

    yield rows.embed("model.embed_tokens")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b, window in zip(rows.blocks(shape, "model.layers"), windows, strict=True):
        scores = Scores(sqrt(shape.head_width), window=window)
        softmax = Softmax(dtype=None, sinks=True, largest="before")
        attention = b.rotary_attention("self_attn", Rotate(width=table.width), scores, bias=bias, softmax=softmax)
        sparse = [
            *b.router("mlp.router", select, weigh, bias=True),
            b.experts("mlp.experts", experts, bias=True, transposed=True),
        ]
        yield from b.in_sequence(stream, norm, attention, sparse)
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=False)
