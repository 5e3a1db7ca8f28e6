"""DeepSeek-V3 (DeepSeek-AI 2024): attention over latents, experts chosen by groups, and one that all tokens share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt

import torch

from twinlens.families import rows
from twinlens.families.config import Config
from twinlens.families.rope import rotary, yarn_size
from twinlens.families.rows import Norm
from twinlens.ops import Experts, Normalize, Rotate, RouterLogits, RouterWeights, Scores
from twinlens.spec import Shape, Step


def shape(c: Config) -> Shape:
    """A head has a part that is rotated and one that is not; its values have a width of their own."""
    c.ignore("the widths of both parts of a head and of its values say more", "head_dim", "qk_head_dim")
    c.ignore("each head has its own keys, made from one latent", "num_key_value_heads")
    turned, plain = c.get("qk_rope_head_dim", default=64), c.get("qk_nope_head_dim", default=128)
    values, rank = c.get("v_head_dim", default=128), c.get("kv_lora_rank", default=512)
    return replace(
        rows.llama_shape(c, experts=256),
        kv_heads=c.get("num_attention_heads"),
        head_width=plain + turned,
        value_width=values,
        further=(("n", rank + turned), ("c", rank), ("y", plain + values), ("z", turned)),
        spare_layers=c.get("num_nextn_predict_layers", "num_mtp_layers", default=1),
    )


def steps(c: Config, shape: Shape, dtype: torch.dtype) -> Iterator[Step]:
    """The rows of the model."""
    c.ignore("dropout is off in evaluation", "attention_dropout")
    c.ignore("training", "output_router_logits", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "ep_size")
    c.ignore("weights say how wide experts are", "moe_intermediate_size", "n_shared_experts")
    c.require("scoring_func", "sigmoid", "other scores have another formula")
    c.require("topk_method", "noaux_tc", "other ways to choose have another formula")
    c.require("moe_layer_freq", 1, "every layer after the dense ones has experts")
    norm, latent = (Norm(Normalize(eps=eps)) for eps in (c.get("rms_norm_eps", default=1e-6), 1e-6))
    act, bias = rows.activation(c, "hidden_act", default="silu")[0], c.get("attention_bias", default=False)
    experts = Experts(act, formula="kernel", kernel=rows.expert_kernel(c))
    select = rows.select(
        c, shape, 8, score="sigmoid", groups=c.get("n_group", default=8), top_groups=c.get("topk_group", default=4),
        listed="unsorted",
    )  # fmt: skip
    weigh = RouterWeights(
        "sigmoid", norm="sum" if c.get("norm_topk_prob", default=True) else "none",
        scale=c.get("routed_scaling_factor", default=2.5), out=torch.float32,
    )  # fmt: skip
    turned, plain = c.get("qk_rope_head_dim", default=64), c.get("qk_nope_head_dim", default=128)
    table = rotary(c, turned, dtype)
    layout = "interleaved_to_half" if c.get("rope_interleave", default=True) else "half"
    rotate = Rotate(width=table.width, layout=layout)
    scores = Scores(sqrt(shape.head_width) / yarn_size(c) ** 2)
    ranks, dense = (c.optional("q_lora_rank", 1536), c.get("kv_lora_rank", default=512)), "first_k_dense_replace"
    dense = c.get(dense, default=3)

    yield rows.embed("model.embed_tokens")
    yield from rows.rotary_tables(table)
    stream = "hook_embed"
    for b in rows.blocks(shape, "model.layers"):
        attention = b.latent_attention("self_attn", rotate, scores, latent, ranks, plain, bias=bias)
        sparse = [
            *b.router("mlp.gate", select, weigh, RouterLogits(torch.float32), correction="e_score_correction_bias"),
            b.experts("mlp.experts", experts, writes="mlp.experts.hook_out"),
            *b.gated_mlp("mlp.shared_experts", act, under="mlp.shared"),
            b.with_shared(),
        ]
        yield from b.in_sequence(stream, norm, attention, sparse if b.layer >= dense else b.gated_mlp("mlp", act))
        stream = b.end
    yield from norm.rows("ln_final", stream, "model.norm")
    yield rows.unembed(c, "model.embed_tokens", tied=False)
