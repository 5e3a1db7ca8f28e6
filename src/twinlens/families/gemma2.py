"""Gemma 2 (Gemma Team 2024): 1 + w norms around each branch, caps, windows in every other layer."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch

from twinlens.families import llama, rows
from twinlens.families.config import Config
from twinlens.ops import (
    Embed,
    Normalize,
    NormWeight,
    Scores,
    Unembed,
)
from twinlens.sites import block
from twinlens.spec import Shape, Step, Weight

shape = llama.shape


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    c.ignore("a repetition of hidden_activation, which is what runs", "hidden_act")
    c.require("use_bidirectional_attention", False, "a causal model has none")
    normalize = Normalize(eps=c.get("rms_norm_eps", default=1e-6), out=torch.float32)
    weight = NormWeight(offset=1.0, dtype=torch.float32)
    act, _ = rows.activation(c, "hidden_activation", default="gelu_pytorch_tanh")
    bias, tied = c.get("attention_bias", default=False), c.get("tie_word_embeddings", default=True)
    e, window = shape.head_width, c.get("sliding_window", default=4096)
    alternating = [("sliding_attention", "full_attention")[i % 2] for i in range(shape.layers)]
    kinds = c.get("layer_types", default=alternating)
    scale, cap = (
        sqrt(c.get("query_pre_attn_scalar", default=256)),
        c.get("attn_logit_softcapping", default=None),
    )

    factor = sqrt(shape.d_model)  # Gemma report, section 2
    yield Step("hook_embed", Embed(factor), ("tokens",), (("W", Weight("model.embed_tokens.weight")),))
    yield from rows.rotary_tables(rows.rotary(c, e, dtype))
    stream = "hook_embed"
    for i in range(shape.layers):
        name, at = f"model.layers.{i}", block(i, "")[:-1]

        def norm(site: str, reads: str, theirs: str, name: str = name, at: str = at) -> Iterator[Step]:
            return rows.norm(f"{at}.{site}", f"{at}.{reads}", normalize, weight, (f"{name}.{theirs}.weight",))

        yield rows.copy(f"{at}.hook_resid_pre", stream)
        yield from norm("ln1", "hook_resid_pre", "input_layernorm")
        scores = Scores(scale, cap, window if kinds[i] == "sliding_attention" else None)
        yield from rows.rotary_attention(i, f"{name}.self_attn", shape, scores, bias=bias)
        yield from norm("ln1_post", "attn.hook_out", "post_attention_layernorm")
        yield rows.branch(f"{at}.hook_attn_out", f"{at}.ln1_post.hook_out")
        yield rows.residual(f"{at}.hook_resid_mid", f"{at}.hook_resid_pre", f"{at}.hook_attn_out")
        yield from norm("ln2", "hook_resid_mid", "pre_feedforward_layernorm")
        yield from rows.gated_mlp(i, f"{at}.ln2.hook_out", f"{name}.mlp", act, bias=False)
        yield from norm("ln2_post", "mlp.hook_out", "post_feedforward_layernorm")
        yield rows.branch(f"{at}.hook_mlp_out", f"{at}.ln2_post.hook_out")
        stream = f"{at}.hook_resid_post"
        yield rows.residual(stream, f"{at}.hook_resid_mid", f"{at}.hook_mlp_out")
    yield from rows.norm("ln_final", stream, normalize, weight, ("model.norm.weight",))
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    unembed = Unembed(softcap=c.get("final_logit_softcapping", default=None))
    yield Step("logits", unembed, ("ln_final.hook_out",), (("W", Weight(head)),))
