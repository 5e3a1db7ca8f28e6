"""Command R7B (Cohere 2024): attention and MLP side by side, windows with rotary and full layers without."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Rotate, Scores, Unembed
from twinlens.spec import Shape, Step

shape = rows.llama_shape


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    norm = Norm.wide(c.get("layer_norm_eps", default=1e-5), kind="layer")
    act, bias = rows.activation(c, "hidden_act", default="silu")[0], c.get("attention_bias", default=False)
    pattern = c.get("sliding_window_pattern", default=4)
    kinds = ("sliding_attention",) * (pattern - 1) + ("full_attention",)
    windows = rows.windows(c, shape.layers, kinds, 4096)
    table = rotary(c, shape.head_width, dtype)
    turn = Rotate(width=table.width, layout="interleaved", dtype=torch.float32)

    yield rows.embed("model.embed_tokens")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b, window in zip(rows.blocks(shape, "model.layers"), windows, strict=True):
        scores = Scores(sqrt(shape.head_width), window=window)
        yield b.start(stream)
        yield from b.norm("ln1", "hook_resid_pre", norm, "input_layernorm")
        yield from b.rotary_attention("self_attn", turn if window is not None else None, scores, bias=bias)
        yield from b.gated_mlp("mlp", act, reads="ln1.hook_out")
        yield from b.add_both("left")
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    factor = c.get("logit_scale", default=0.0625)
    yield rows.unembed(c, "model.embed_tokens", tied=True, op=Unembed(factor=float(factor)))
