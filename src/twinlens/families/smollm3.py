"""SmolLM3 (Hugging Face 2025): Llama without rotary positions in every fourth layer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import sqrt

import torch

from twinlens.errors import ConfigError
from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Normalize, Rotate, Scores
from twinlens.spec import Shape, Step

shape = partial(rows.llama_shape, kv_heads=4)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    norm = Norm(Normalize(eps=c.get("rms_norm_eps", default=1e-6)))
    act = rows.activation(c, "hidden_act", default="silu")[0]
    bias, mlp_bias = c.get("attention_bias", default=False), c.get("mlp_bias", default=False)
    every = c.get("no_rope_layer_interval", default=4)
    rotates = c.get("no_rope_layers", default=[(i + 1) % every for i in range(shape.layers)])  # 0: it does not
    if len(rotates) < shape.layers:
        raise ConfigError(
            f"the config says no_rope_layers={rotates!r}, and that it has {shape.layers} layers; give each"
        )
    slides = c.get("use_sliding_window", default=False)
    kinds = tuple("full_attention" if on or not slides else "sliding_attention" for on in rotates[: shape.layers])
    windows = rows.windows(c, shape.layers, kinds, None, on=slides)
    table = rotary(c, shape.head_width, dtype, theta=2e6)

    yield rows.embed("model.embed_tokens")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b, window in zip(rows.blocks(shape, "model.layers"), windows, strict=True):
        rotate = Rotate(width=table.width) if rotates[b.layer] else None
        attention = b.rotary_attention("self_attn", rotate, Scores(sqrt(shape.head_width), window=window), bias=bias)
        yield from b.in_sequence(stream, norm, attention, b.gated_mlp("mlp", act, bias=mlp_bias))
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=True)
