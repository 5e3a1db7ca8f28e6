"""GPT-2 (Radford et al. 2019): learned positions, layer norm with bias, fused projections."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.ops import (
    Activate,
    Add,
    Embed,
    Mix,
    Normalize,
    NormWeight,
    Part,
    PositionEmbed,
    Project,
    Scores,
    Softmax,
    Unembed,
)  # fmt: skip
from twinlens.sites import block
from twinlens.spec import Shape, Step, Weight


def shape(c: Config) -> Shape:
    """Sizes that the weights fix."""
    heads, width = c.get("n_head", "num_attention_heads"), c.get("n_embd", "hidden_size")
    positions = c.get("n_positions", "max_position_embeddings")
    c.ignore("fixed by the weights", "n_inner")
    c.ignore("the length of the causal buffer of old code, equal to n_positions", "n_ctx")
    layers = c.get("n_layer", "num_hidden_layers")
    return Shape(layers, width, heads, heads, width // heads, c.get("vocab_size"), positions)


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "resid_pdrop", "embd_pdrop", "attn_pdrop")
    c.ignore("the summary head of other tasks", *(f"summary_{k}" for k in (
        "type", "use_proj", "activation", "proj_to_labels", "first_dropout")))  # fmt: skip
    c.ignore("an order of evaluation", "reorder_and_upcast_attn", "scale_attn_weights_in_fp32")
    c.require("add_cross_attention", False, "a decoder alone has none")
    normalize, weight = (
        Normalize(eps=c.get("layer_norm_epsilon", default=1e-5), kind="layer", out=torch.float32),
        NormWeight(dtype=torch.float32, kernel="fused"),  # torch's kernel rounds once, at its end
    )
    act, theirs = rows.activation(c, "activation_function", default="gelu_new")
    activate = Activate(act, formula="plain" if theirs == "gelu_new" else "kernel")
    scaled = c.get("scale_attn_weights", default=True)
    by_layer = c.get("scale_attn_by_inverse_layer_idx", default=False)
    tied = c.get("tie_word_embeddings", default=True)
    d, addmm = shape.d_model, Project(product="addmm")

    yield Step("hook_embed", Embed(), ("tokens",), (("W", Weight("transformer.wte.weight")),))
    yield Step(
        "hook_pos_embed",
        PositionEmbed(),
        ("positions",),
        (("W", Weight("transformer.wpe.weight")),),
    )
    stream = None
    for i in range(shape.layers):
        name, at = f"transformer.h.{i}", block(i, "")[:-1]

        def norm(site: str, reads: str, theirs: str, name: str = name, at: str = at) -> Iterator[Step]:
            names = (f"{name}.{theirs}.weight", f"{name}.{theirs}.bias")
            return rows.norm(f"{at}.{site}", f"{at}.{reads}", normalize, weight, names)

        yield (
            rows.copy(f"{at}.hook_resid_pre", stream)
            if stream
            else rows.residual(f"{at}.hook_resid_pre", "hook_embed", "hook_pos_embed")
        )
        yield from norm("ln1", "hook_resid_pre", "ln_1")
        yield rows.project(
            f"{at}.attn.hook_qkv",
            f"{at}.ln1.hook_out",
            f"{name}.attn.c_attn",
            addmm,
            bias=True,
            transposed=True,
        )
        for part in "qkv":
            yield Step(f"{at}.attn.hook_{part}", Part(part, shape.heads), (f"{at}.attn.hook_qkv",))
        scores = Scores(scale=(sqrt(d // shape.heads) if scaled else 1.0) * (i + 1 if by_layer else 1))
        yield from rows.attention(i, scores, Softmax(dtype=None), Mix(), "hook_q", "hook_k")
        yield rows.project(
            f"{at}.attn.hook_out",
            f"{at}.attn.hook_z",
            f"{name}.attn.c_proj",
            addmm.replace(from_heads=True),
            bias=True,
            transposed=True,
        )
        yield rows.branch(f"{at}.hook_attn_out", f"{at}.attn.hook_out")
        yield Step(f"{at}.hook_resid_mid", Add(), (f"{at}.hook_resid_pre", f"{at}.hook_attn_out"))
        yield from norm("ln2", "hook_resid_mid", "ln_2")
        yield rows.project(
            f"{at}.mlp.hook_pre",
            f"{at}.ln2.hook_out",
            f"{name}.mlp.c_fc",
            addmm,
            bias=True,
            transposed=True,
        )
        yield Step(f"{at}.mlp.hook_post", activate, (f"{at}.mlp.hook_pre",))
        yield rows.project(
            f"{at}.mlp.hook_out",
            f"{at}.mlp.hook_post",
            f"{name}.mlp.c_proj",
            addmm,
            bias=True,
            transposed=True,
        )
        yield rows.branch(f"{at}.hook_mlp_out", f"{at}.mlp.hook_out")
        stream = f"{at}.hook_resid_post"
        yield rows.residual(stream, f"{at}.hook_resid_mid", f"{at}.hook_mlp_out")
    yield from rows.norm(
        "ln_final",
        stream or "hook_embed",
        normalize,
        weight,
        ("transformer.ln_f.weight", "transformer.ln_f.bias"),
    )
    head = "transformer.wte.weight" if tied else "lm_head.weight"
    yield Step("logits", Unembed(), ("ln_final.hook_out",), (("W", Weight(head)),))
