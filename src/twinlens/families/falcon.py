"""Falcon (Almazrouei et al. 2023): fused heads by group, attention and MLP side by side, softmax as stored."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Activate, Mix, Part, Project, Rotate, Scores, Softmax
from twinlens.spec import Shape, Step


def shape(c: Config) -> Shape:
    """Sizes that the weights fix: Falcon-7b has one key/value head, Falcon-40b groups, falcon-rw one for each."""
    heads, width = c.get("num_attention_heads", "n_head"), c.get("hidden_size", "n_embed")
    c.ignore("rotary positions have no table", "max_position_embeddings")
    grouped = c.get("new_decoder_architecture", default=False)
    one = c.get("multi_query", default=True) and not grouped
    kv_heads = c.get("num_kv_heads", "n_head_kv", default=heads)
    layers = c.get("num_hidden_layers", "n_layer")
    inner = c.get("ffn_hidden_size", default=4 * width)
    return Shape(layers, width, heads, 1 if one else kv_heads, width // heads, c.get("vocab_size"), mlp_width=inner)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout", "hidden_dropout")
    c.ignore("how old code ran it", "apply_residual_connection_post_layernorm")
    c.require("alibi", False, "the rotary models are declared")
    norm = Norm.fused(c.get("layer_norm_epsilon", default=1e-5))
    act = Activate(*rows.activation(c, "activation", default="gelu"))
    bias, parallel = c.get("bias", default=False), c.get("parallel_attn", default=True)
    grouped = c.get("new_decoder_architecture", default=False)
    two = grouped and (c.get("num_ln_in_parallel_attn", default=None, like=1) or 2) == 2
    product, table = Project(product="matmul"), rotary(c, shape.head_width, dtype)
    scores, softmax = Scores(sqrt(shape.head_width), scaling="divide"), Softmax(dtype=None)

    yield rows.embed("transformer.word_embeddings")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b in rows.blocks(shape, "transformer.h"):
        yield b.start(stream)
        yield from b.norm("ln1", "hook_resid_pre", norm, "ln_attn" if two else "input_layernorm")
        yield from b.fused_heads("self_attention.query_key_value", Part(layout="interleaved"), product, bias=bias)
        yield from b.rotate(Rotate(width=table.width))
        yield from b.attend(scores, softmax=softmax, mix=Mix(sharing="broadcast"))
        yield b.output("self_attention.dense", product, bias=bias)
        parallel = parallel or grouped
        if not parallel:
            yield from b.add_attention()
        reads = "ln1.hook_out"
        if two or not parallel:
            yield from b.norm(
                "ln2",
                "hook_resid_pre" if two else "hook_resid_mid",
                norm,
                "ln_mlp" if two else "post_attention_layernorm",
            )
            reads = "ln2.hook_out"
        yield from b.mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", act, product, bias=bias, reads=reads)
        yield from b.add_both("right") if parallel else b.add_mlp()
        stream = b.end
    yield from norm.rows("ln_final", stream, "transformer.ln_f")
    yield rows.unembed(c, "transformer.word_embeddings", tied=True)
