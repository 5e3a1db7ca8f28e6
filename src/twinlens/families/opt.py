"""OPT (Zhang et al. 2022): learned positions two rows further on, counted from the padding mask."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rows import Norm
from twinlens.ops import Activate, PositionEmbed, Scores
from twinlens.spec import Shape, Step

inputs = (("positions", "cumsum(mask) * mask - 1"),)
"""Padding has position -1, the first real token 0."""


def shape(c: Config) -> Shape:
    """Sizes that the weights fix."""
    heads, width, why = c.get("num_attention_heads"), c.get("hidden_size"), "no released decoder but OPT-350m differs"
    c.require("word_embed_proj_dim", width, why)
    c.require("do_layer_norm_before", True, why)
    layers, positions = c.get("num_hidden_layers"), c.get("max_position_embeddings")
    return Shape(layers, width, heads, heads, width // heads, c.get("vocab_size"), positions, c.get("ffn_dim"))


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout", "dropout", "activation_dropout", "layerdrop")
    c.ignore("how weights are drawn", "init_std")
    c.require("_remove_final_layer_norm", False, "a repair of checkpoints that were tuned with old code")
    c.require("layer_norm_elementwise_affine", True, "no released decoder has norms without weights")
    norm = Norm.fused(1e-5)  # torch's default, which no key changes
    act = Activate(*rows.activation(c, "activation_function", default="relu"))
    bias = c.get("enable_bias", default=True)
    scores = Scores(sqrt(shape.head_width), scaling="query")

    yield rows.embed("model.decoder.embed_tokens")
    yield rows.learned_positions("model.decoder.embed_positions", PositionEmbed(offset=2))
    stream = ("hook_embed", "hook_pos_embed")
    for b in rows.blocks(shape, "model.decoder.layers"):
        yield b.start(*stream)
        yield from b.norm("ln1", "hook_resid_pre", norm, "self_attn_layer_norm")
        yield from b.heads("self_attn", bias=bias)
        yield from b.attend(scores, q="hook_q", k="hook_k")
        yield b.output("self_attn.out_proj", bias=bias)
        yield from b.add_attention()
        yield from b.norm("ln2", "hook_resid_mid", norm, "final_layer_norm")
        yield from b.mlp("fc1", "fc2", act, bias=bias)
        yield from b.add_mlp()
        stream = (b.end,)
    yield from norm.rows("ln_final", stream[-1], "model.decoder.final_layer_norm")
    yield rows.unembed(c, "model.decoder.embed_tokens", tied=True)
