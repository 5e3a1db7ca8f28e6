"""GPT-2 (Radford et al. 2019): learned positions, layer norm with bias, fused projections."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rows import Norm
from twinlens.ops import Activate, Part, Project, Scores, Softmax
from twinlens.spec import Shape, Step

SUMMARY = tuple(f"summary_{k}" for k in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout"))


def shape(c: Config) -> Shape:
    """Sizes that the weights fix."""
    heads, width = c.get("n_head", "num_attention_heads"), c.get("n_embd", "hidden_size")
    positions = c.get("n_positions", "max_position_embeddings")
    c.ignore("the length of the causal buffer of old code, equal to n_positions", "n_ctx")
    layers = c.get("n_layer", "num_hidden_layers")
    inner = c.get("n_inner", default=4 * width)
    return Shape(layers, width, heads, heads, width // heads, c.get("vocab_size"), positions, inner)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "resid_pdrop", "embd_pdrop", "attn_pdrop")
    c.ignore("the summary head of other tasks", *SUMMARY)
    c.ignore("an order of evaluation", "reorder_and_upcast_attn", "scale_attn_weights_in_fp32")
    c.require("add_cross_attention", False, "a decoder alone has none")
    norm = Norm.fused(c.get("layer_norm_epsilon", default=1e-5))
    activate = Activate(*rows.activation(c, "activation_function", default="gelu_new"))
    scaled = c.get("scale_attn_weights", default=True)
    by_layer = c.get("scale_attn_by_inverse_layer_idx", default=False)
    scale, conv = sqrt(shape.head_width) if scaled else 1.0, Project(product="addmm")

    yield rows.embed("transformer.wte")
    yield rows.learned_positions("transformer.wpe")
    stream = ("hook_embed", "hook_pos_embed")
    for b in rows.blocks(shape, "transformer.h"):
        yield b.start(*stream)
        yield from b.norm("ln1", "hook_resid_pre", norm, "ln_1")
        yield from b.fused_heads("attn.c_attn", Part(), conv, bias=True, transposed=True)
        scores = Scores(scale * (b.layer + 1 if by_layer else 1))
        yield from b.attend(scores, softmax=Softmax(dtype=None), q="hook_q", k="hook_k")
        yield b.output("attn.c_proj", conv, bias=True, transposed=True)
        yield from b.add_attention()
        yield from b.norm("ln2", "hook_resid_mid", norm, "ln_2")
        yield from b.mlp("mlp.c_fc", "mlp.c_proj", activate, conv, transposed=True)
        yield from b.add_mlp()
        stream = (b.end,)
    yield from norm.rows("ln_final", stream[-1], "transformer.ln_f")
    yield rows.unembed(c, "transformer.wte", tied=True)
