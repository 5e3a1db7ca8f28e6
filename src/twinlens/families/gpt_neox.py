"""GPT-NeoX (Black et al. 2022) and Pythia: attention and MLP side by side, part of each head rotated."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary
from twinlens.families.rows import Norm
from twinlens.ops import Activate, Part, Rotate, Scores
from twinlens.spec import Shape, Step

shape = rows.llama_shape


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout", "hidden_dropout", "classifier_dropout")
    c.ignore("the length of a causal buffer of old code", "max_position_embeddings")
    norm = Norm.fused(c.get("layer_norm_eps", default=1e-5))
    act = Activate(*rows.activation(c, "hidden_act", default="gelu"))
    bias, parallel = c.get("attention_bias", default=True), c.get("use_parallel_residual", default=True)
    table = rotary(c, shape.head_width, dtype, partial=0.25)

    yield rows.embed("gpt_neox.embed_in")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b in rows.blocks(shape, "gpt_neox.layers"):
        yield b.start(stream)
        yield from b.norm("ln1", "hook_resid_pre", norm, "input_layernorm")
        yield from b.fused_heads("attention.query_key_value", Part(layout="interleaved"), bias=bias)
        yield from b.rotate(Rotate(width=table.width))
        yield from b.attend(Scores(sqrt(shape.head_width)))
        yield b.output("attention.dense", bias=bias)
        if not parallel:
            yield from b.add_attention()
        yield from b.norm("ln2", "hook_resid_pre" if parallel else "hook_resid_mid", norm, "post_attention_layernorm")
        yield from b.mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", act)
        yield from b.add_both("right") if parallel else b.add_mlp()
        stream = b.end
    yield from norm.rows("ln_final", stream, "gpt_neox.final_layer_norm")
    yield rows.unembed(c, "gpt_neox.embed_in", tied=False)
